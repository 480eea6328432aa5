"""Bundles: a model as a folder that any back end, in any language, can run.

- `opening`: `open_bundle`, which believes nothing it has not checked;
- `manifest_file`: the file `manifest.json`, read and written;
- `manifest`: what a manifest says, `recommended`: prompts and settings among it, `parsing`: JSON as such records;
- `layouts`: which tokens may stand where;
- `correction_tables`: what predicts laws under changed neighbours, `correction_writing`: putting it into a bundle;
- `settings`: how a bundle's model is decoded;
- `text`: text to tokens and back, `text_stream`: text while it is made, `chat`: conversations as text;
- `files`: writing whole files and folders, or nothing; `json_files`: reading small ones, up to a limit;
- `models`: the model that comes with the library.
"""

from coupled_sampling.bundles.chat import ChatTemplate
from coupled_sampling.bundles.correction_tables import CorrectionTables, neighbour_lags
from coupled_sampling.bundles.correction_writing import write_corrections
from coupled_sampling.bundles.layouts import Layout, Span
from coupled_sampling.bundles.manifest import (
    CausalGraph,
    ConditionGraph,
    CorrectionsRecord,
    Defaults,
    FileRecord,
    GeneratedTokens,
    Grid,
    Manifest,
    PaddedPrompt,
    PixelGraph,
    Prompt,
    StepGraph,
    TreeGraph,
    WindowGraph,
)
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.opening import Bundle, embedded_names, open_bundle
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.bundles.text import StopStrings, TextStream, Tokenizer

__all__ = [
    "Bundle",
    "CausalGraph",
    "ChatTemplate",
    "ConditionGraph",
    "CorrectionTables",
    "CorrectionsRecord",
    "DecodingSettings",
    "Defaults",
    "FileRecord",
    "GeneratedTokens",
    "Grid",
    "Layout",
    "Manifest",
    "PaddedPrompt",
    "PixelGraph",
    "Prompt",
    "Span",
    "StepGraph",
    "StopStrings",
    "TextStream",
    "Tokenizer",
    "TreeGraph",
    "WindowGraph",
    "embedded_names",
    "file_record",
    "neighbour_lags",
    "open_bundle",
    "write_corrections",
    "write_manifest",
]
