"""From a checkpoint to a bundle: the whole export, atomic.

Everything is written into a hidden folder beside the one that is asked for, checked there, and renamed; whatever goes wrong
on the way, no half-written bundle is ever seen under its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling import __version__
from coupled_sampling.bundles.files import whole_folder
from coupled_sampling.bundles.manifest import TEXT_DEFAULTS, Defaults, GeneratedTokens, Manifest, PixelGraph
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.bundles.records import default_chunk
from coupled_sampling.bundles.replacing import check_replaceable
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.check import Opener, check_opener, check_stored
from coupled_sampling.export.check_text import CheckedText, check_text
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.opening import USUAL, open_checkpoint
from coupled_sampling.export.checkpoints.text import TextFiles, write_text_files
from coupled_sampling.export.families import family_of, find_family
from coupled_sampling.export.families.contract import Exportable
from coupled_sampling.export.families.vqgan import open_picture_decoder
from coupled_sampling.export.fill_token import find_fill_token
from coupled_sampling.export.graphs.condition_graph import write_condition_graph
from coupled_sampling.export.graphs.decoder import write_decoder_graph
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.storage import Storage
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.step_bundle import checked_methods, write_other_writings, write_step_graphs
from coupled_sampling.fields import check_fields, check_is, check_path

__all__ = ["ExportSettings", "Exported", "export_checkpoint"]

_GRAPH, _PIXELS, _CONDITION = "window.onnx", "pixels.onnx", "condition.onnx"
_ROOM_FOR_PROMPTS = 16


@dataclass(frozen=True)
class ExportSettings:
    """How to export.

    Parameters
    ----------
    family
        Name of a family, or "auto".
    storage
        Types of weights and arithmetic.
    max_length
        Positions per sequence; None keeps the checkpoint's.
    windows
        Windows for backends with fixed shapes, recorded in the manifest's provenance; no backend here needs them yet. The graph
        itself takes any. The largest, or ``prompt_chunk`` where that is more, is the most slots in one call.
    prompt_chunk
        Most tokens of a prompt to read in one call, where a sequence has so many positions; None takes 256, or fewer for a large
        vocabulary.
    length
        Tokens per generation; None takes the family's, or 128.
    prompt_frames
        Of a model of clips whose prompts are a clip's first frames: how many of them, in the tokenizer's frames; the others are
        generated. None takes the family's.
    vq
        A checkpoint of the decoder of pictures, as for `coupled_sampling.export.open_checkpoint`, for families that keep it apart;
        None takes the one in the checkpoint itself, if there is one.
    tokenizer
        A ``tokenizer.json``, SentencePiece's ``tokenizer.model``, or the folder of one, to take instead of the checkpoint's own;
        "none" for a bundle without.
    step_graphs
        Methods to write step graphs for; see `coupled_sampling.export.add_step_graphs`.
    name, licence
        Of the bundle; None takes the source's name, and "NOASSERTION" for the licence.
    force
        Replace a bundle that is there.

    Examples
    --------
    >>> from coupled_sampling.export import ExportSettings, Storage
    >>> settings = ExportSettings(storage=Storage(weights="float16"), max_length=512, licence="Apache-2.0")
    >>> settings.family
    'auto'
    """

    family: str = "auto"
    storage: Storage = field(default_factory=Storage)
    max_length: int | None = None
    windows: tuple[int, ...] = (1, 16, 32)
    prompt_chunk: int | None = None
    length: int | None = None
    prompt_frames: int | None = None
    vq: str | Path | None = None
    tokenizer: str | Path | None = None
    step_graphs: tuple[str, ...] = ()
    name: str | None = None
    licence: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.windows or min(self.windows) < 1:
            raise InvalidArgument(f"windows is {self.windows}, expected one or more integers >= 1")
        if self.step_graphs:
            checked_methods(self.step_graphs)
        for name in ("max_length", "length", "prompt_chunk", "prompt_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidArgument(f"{name} is {value}, expected an integer >= 1")


class Exported(NamedTuple):
    """What an export did.

    Examples
    --------
    >>> from pathlib import Path
    >>> from coupled_sampling.export import Exported
    >>> Exported(Path("tiny"), "llama", parameters=1_000_000, bytes=4_100_000, largest_difference=2e-6).family
    'llama'
    """

    folder: Path
    family: str
    parameters: int
    bytes: int
    """Of all files together."""
    largest_difference: float | None
    """Largest difference of a logit from the float64 reference, in units of their standard deviation; None if not checked."""
    text: CheckedText | None = None
    """What the tokenizer did with a few texts; None if not checked, or if there is none."""
    notes: tuple[str, ...] = ()
    """What whoever exports should know, in sentences."""


def export_checkpoint(
    source: str | Path,
    out: str | Path,
    settings: ExportSettings | None = None,
    progress: Callable[[int, int], object] | None = None,
    *,
    check: Opener | None = None,
) -> Exported:
    """Export a checkpoint as a bundle.

    Parameters
    ----------
    source
        As for `coupled_sampling.export.open_checkpoint`.
    out
        Folder to make.
    settings
        See `ExportSettings`.
    progress
        Called with the bytes of each tensor that was read, and with those of all in ``source``.
    check
        What opens the bundle to compare a few of its logits with the float64 reference, before the bundle gets its name, such as
        `coupled_sampling.backends.open_model`; None compares nothing. It also finds the bundle's fill token
        (`coupled_sampling.export.find_fill_token`), which a bundle that was never opened has not.

    Raises
    ------
    CheckpointError
        A checkpoint cannot be read, or is of no family that is known, or has something that is not understood; or ``check`` found
        logits that are not those of the weights as they were stored.
    InvalidArgument
        A setting does not fit the model.
    OutputError
        ``out`` exists and ``force`` is not set, or is no bundle, or has files that are not of it, or cannot be written; or somebody
        made or changed it meanwhile.
    MissingDependency
        A package of the extra [export] is missing.

    Examples
    --------
    A folder as Hugging Face writes it, here with a tiny random Llama in it:

    >>> import json
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from coupled_sampling.export import ExportSettings, export_checkpoint
    >>> config = {"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    >>> config |= {"num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    >>> shapes = {"embed_tokens": (32, 16), "norm": (16,), "layers.0.input_layernorm": (16,)}
    >>> shapes |= {"layers.0.post_attention_layernorm": (16,), "layers.0.mlp.down_proj": (16, 32)}
    >>> shapes |= {f"layers.0.self_attn.{name}_proj": (16, 16) for name in "qkvo"}
    >>> shapes |= {f"layers.0.mlp.{name}_proj": (32, 16) for name in ("gate", "up")}
    >>> random = np.random.default_rng(0)
    >>> weights = {f"model.{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    >>> weights["lm_head.weight"] = random.normal(size=(32, 16)).astype(np.float32)
    >>> Path("tiny").mkdir()
    >>> _ = Path("tiny/config.json").write_text(json.dumps(config))
    >>> save_file(weights, "tiny/model.safetensors")
    >>> exported = export_checkpoint("tiny", "bundle", ExportSettings(windows=(1, 8)))
    >>> exported.family, exported.parameters
    ('llama', 3632)
    """
    check_opener(check)
    chosen = check_is("settings", settings, ExportSettings | None) or ExportSettings()
    out = check_path("out", out)
    replacing = check_replaceable(out, force=chosen.force)
    # What is of no family that is known is refused for that, and not for weights that may be truncated as well.
    with open_checkpoint(source, lambda path, config: family_of(path, config, chosen.family)) as checkpoint:
        family = find_family(checkpoint, chosen.family)
        model = family.load(checkpoint, chosen.max_length)
        if chosen.prompt_frames is not None:
            model = replace(model, decoding=model.decoding.after(chosen.prompt_frames))
        _check_sizes(model.description, chosen)
        with (
            open_picture_decoder(family, model, checkpoint, chosen.vq) as pictures,
            whole_folder(out, replacing) as folder,
        ):
            # First what is read in a second, and may be refused.
            text = write_text_files(checkpoint, folder, chosen.tokenizer, model.description.vocab_size)
            weights = _Counted(model.weights, checkpoint, progress)
            write_decoder_graph(model.description, weights, folder / _GRAPH, chosen.storage)
            if model.description.condition is not None:
                write_condition_graph(model.description, weights, folder / _CONDITION, chosen.storage)
            if pictures is not None:
                weights = _Counted(pictures.weights, checkpoint, progress)
                pictures.write(weights, folder / _PIXELS, chosen.storage)
            manifest = _manifest(model, checkpoint, folder, chosen, pictures, text)
            write_manifest(folder, manifest)
            steps = chosen.step_graphs
            manifest = write_step_graphs(folder, steps) if steps else write_other_writings(folder, manifest)
            difference, checked = None, None
            if check is not None:
                bundle = open_bundle(folder.absolute())
                provider = check(bundle, rows=1)
                difference = check_stored(model.description, model.weights, chosen.storage, provider)
                manifest = replace(manifest, fill_token=find_fill_token(provider, manifest))
                write_manifest(folder, manifest)
                inner = bundle.tokenizer()
                checked = None if inner is None else check_text(inner, manifest.vocab_size)
        total = sum(record.bytes for record in manifest.files.values())
    parameters = sum(int(np.prod(shape)) for shape in model.description.weight_shapes().values())
    return Exported(out, model.family, parameters, total, difference, checked, _notes(checkpoint, chosen, manifest))


def _notes(checkpoint: Checkpoint, settings: ExportSettings, manifest: Manifest) -> tuple[str, ...]:
    """What is as it should be, and still is not what everybody expects."""
    notes = []
    if checkpoint.config.get("auto_map"):
        notes.append(
            "the checkpoint brings Python code of its own (auto_map in config.json), which is not run: the bundle computes what "
            f"the family {manifest.provenance['family']} does, so compare a few logits with those of that code"
        )
    of_text = not manifest.makes_pictures and not manifest.prompts
    if of_text and manifest.tokenizer is None and settings.tokenizer is None:
        notes.append(
            "the checkpoint has no tokenizer (tokenizer.json or tokenizer.model), so prompts can only be numbers of tokens "
            "(--tokens 1,2,3), and so is what is generated; export with --tokenizer FILE to read and write text"
        )
    return tuple(notes)


class _Counted:
    """Weights that report the bytes read for them."""

    def __init__(
        self,
        weights: Callable[[str], NDArray[Any]],
        checkpoint: Checkpoint,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self._weights, self._progress = weights, progress
        self._total = sum(checkpoint.info(name).bytes for name in checkpoint.names())

    def __call__(self, name: str) -> NDArray[Any]:
        value = self._weights(name)
        if self._progress is not None:
            self._progress(value.nbytes, self._total)
        return value


def _check_sizes(description: DecoderDescription, settings: ExportSettings) -> None:
    if description.condition is not None and settings.step_graphs:
        raise InvalidArgument(
            f"step_graphs is {settings.step_graphs}, but this model takes a condition, which step graphs cannot be told; leave out "
            "step_graphs"
        )
    if description.condition is not None and settings.storage.compute == "bfloat16":
        raise InvalidArgument(
            "compute is 'bfloat16', but this model takes a condition, and is decoded on the CPU; expected 'float32' or 'float16'"
        )
    if max(settings.windows) > description.positions:
        raise InvalidArgument(
            f"windows has {max(settings.windows)}, more than the {description.positions} positions of a sequence; "
            "ask for narrower windows or a larger max_length"
        )
    if settings.length is not None and settings.length > description.positions:
        raise InvalidArgument(
            f"length is {settings.length}, more than the {description.positions} positions of a sequence; ask for fewer tokens or "
            "a larger max_length"
        )


def _manifest(
    model: Exportable,
    checkpoint: Checkpoint,
    folder: Path,
    settings: ExportSettings,
    pictures: PictureDecoder | None,
    text: TextFiles,
) -> Manifest:
    description, decoding = model.description, model.decoding
    source = _source(checkpoint.path)
    name, storage = settings.name or (source.name if source.is_dir() else source.stem), settings.storage
    chunk = min(
        settings.prompt_chunk or default_chunk(description.vocab_size, description.positions), description.positions
    )
    widest = max(*settings.windows, chunk)
    plain = decoding.grid is None and decoding.layout is None and pictures is None
    usual = TEXT_DEFAULTS if plain else Defaults(method="scd-gumbel", window=16, drafting=decoding.drafting)
    window = min(usual.window, max(settings.windows)) if decoding.window is None else min(decoding.window, widest)
    stop = dict.fromkeys([*decoding.stop_tokens, *text.stop_tokens])
    return Manifest(
        name=name,
        description=f"{model.family} decoder, {storage.weights} weights, exported from a checkpoint.",
        files={path.name: file_record(path) for path in sorted(folder.iterdir())},
        window_graph=replace(description.manifest(_GRAPH, storage.compute, widest, chunk), domains=storage.domains),
        vocab_size=description.vocab_size,
        generated_tokens=GeneratedTokens(description.generated_first, description.generated),
        length=_length(model, settings.length),
        prompts=dict(decoding.prompts),
        defaults=replace(
            usual,
            window=window,
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            guidance=decoding.guidance,
        ),
        licence=settings.licence or "NOASSERTION",
        provenance={
            "source": source.name,
            "family": model.family,
            "exporter": f"coupled-sampling {__version__}",
            "storage": _storage_record(storage),
            "buckets": {
                "window": sorted({*settings.windows, chunk} | (set() if decoding.window is None else {window}))
            },
            "notes": list(decoding.notes),
            **({} if pictures is None else {"pixels": {"source": pictures.source.name}}),
        },
        pixel_graph=_pixel_graph(pictures),
        grid=decoding.generated_grid,
        prompt_frames=decoding.prompt_frames,
        prompt_begin=decoding.prompt_begin,
        unconditional_prompt=decoding.unconditional_prompt,
        layout=decoding.layout.spans if decoding.layout else (),
        stop_tokens=tuple(token for token in stop if 0 <= token < description.vocab_size),
        tokenizer=text.tokenizer,
        chat_template=text.chat_template,
        condition_graph=None if description.condition is None else description.condition.record(_CONDITION),
    )


def _source(path: Path) -> Path:
    """What a checkpoint is known by: its file, or the folder of a file that is called as in every other folder."""
    folder = path.absolute().parent
    return folder if path.name in USUAL and folder.name else path


def _length(model: Exportable, asked: int | None) -> int:
    """Tokens to generate where nothing else is said."""
    decoding, positions = model.decoding, model.description.positions
    prompts = [prompt.tokens for prompt in decoding.prompts.values()]
    if isinstance(decoding.unconditional_prompt, tuple):
        prompts.append(decoding.unconditional_prompt)
    # Where no prompt is known, half of a very short sequence is left for one.
    longest = max(map(len, prompts)) if prompts else max(1, min(_ROOM_FOR_PROMPTS, positions // 2))
    if decoding.grid is not None and decoding.prompt_frames:
        longest = len(decoding.prompt_begin) + decoding.prompt_frames * decoding.grid.rows * decoding.grid.columns
    length = asked or min(decoding.length or 128, max(1, positions + 1 - longest))
    if decoding.layout is not None and length != decoding.layout.length:
        raise InvalidArgument(
            f"length is {length}, but this model lays out {decoding.layout.length} tokens, and has {positions} positions; leave "
            "length and max_length at what the model was trained for"
        )
    return length


def _storage_record(storage: Storage) -> dict[str, str]:
    kept = {"weights": storage.weights, "compute": storage.compute}
    return kept | ({"form": "nbits" if storage.is_nbits else "standard"} if storage.bits else {})


def _pixel_graph(pictures: PictureDecoder | None) -> PixelGraph | None:
    if pictures is None:
        return None
    decoder = pictures.description
    return PixelGraph(_PIXELS, decoder.height, decoder.width, decoder.channels, decoder.pixel_frames)
