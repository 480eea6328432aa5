"""Lossless parallel decoding of autoregressive models, in any array library.

A model is a `LogitsProvider`: one method from a window of tokens to logits. `generate` decodes it by one of the
methods of `coupled_sampling.methods`, several tokens per forward pass, and the tokens keep exactly the law of
ordinary autoregressive sampling. Contents, each module opening with its idea:

- `contracts`, `methods`, `errors`: the words everything is written in;
- `couplings`, `draws`, `target`, `noise`: pure functions from laws and noise to tokens;
- `drafting`, `draft_model`, `guidance`: where first guesses come from; classifier-free guidance;
- `trees`, `branching`, `rows_as_paths`: windows that are trees, which branches they get, and models without a mask for them;
- `host_step`, `windows`, `decoding`, `generation`, `trace`: the loop;
- `testing`: how to prove that a decoder is lossless;
- `backends`, `export`: models run by ONNX Runtime; graphs written without PyTorch. Neither is imported from here.
"""

from coupled_sampling.bounds import check_window
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import CoupledStep, LogitsProvider, Outcome, Sampling, Window
from coupled_sampling.decoding import Commit, Decoder, Request
from coupled_sampling.draft_model import DraftModel
from coupled_sampling.errors import CoupledSamplingError
from coupled_sampling.generation import Generation, generate, stream
from coupled_sampling.guidance import GuidedProvider
from coupled_sampling.host_step import HostStep
from coupled_sampling.methods import METHODS, Method
from coupled_sampling.noise import CounterNoise, Noise
from coupled_sampling.requests import Guidance
from coupled_sampling.rows_as_paths import RowsAsPaths
from coupled_sampling.trace import Summary, Trace, summarise
from coupled_sampling.window_search import WindowSearch
from coupled_sampling.windows import WindowRule

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Bundle",
    "Commit",
    "CounterNoise",
    "CoupledSamplingError",
    "CoupledStep",
    "Decoder",
    "DraftModel",
    "Generation",
    "Guidance",
    "GuidedProvider",
    "HostStep",
    "LogitsProvider",
    "Method",
    "Noise",
    "Outcome",
    "Request",
    "RowsAsPaths",
    "Sampling",
    "Summary",
    "Trace",
    "Window",
    "WindowRule",
    "WindowSearch",
    "__version__",
    "check_window",
    "generate",
    "open_bundle",
    "stream",
    "summarise",
]
