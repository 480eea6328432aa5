"""Decoding as one jitted loop on the GPU, by ``examples/jax``: the embedded model, then models whose passes are bound by memory.

The embedded model (``jax:embedded``): its logits beside NumPy's, then every picture's tokens beside those of the library with
NumPy. Where they differ, it must be a float tie.

Models of a billion random bfloat16 parameters and of three (``jax:1b``, ``jax:3b``), one sequence:

- *Passes*: forward and argmax alone, in a loop on the device, by width W. Beside them: how many bytes of weights a second that is.
- *Loops*: ``scd-match`` beside ``ar``, in turns, at a number of tokens per pass that is *set*. Random weights accept as they do,
  which says nothing of a trained model. So the loop is run once, and then again with its own tokens as drafts: as many right ones
  as are wanted, then a wrong one (`decode.Foreseen`). Nothing else is changed. Passes are W slots wide, every slot is decided and
  redrawn, noise is read, and what is committed is what the rule commits. Tokens per pass are counted, not assumed. So this
  measures what a pass costs beside one of ``ar``, as the speed-up over the tokens per pass. How many tokens a trained model
  commits is another question.

The drafts are the loop's own tokens, not ``ar``'s: in bfloat16 a pass of one slot rounds otherwise than one of 16, so that the two
decide otherwise here and there. How many tokens at the beginning are ``ar``'s is a figure of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_frame import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "jax"))

try:
    import jax
    import jax.numpy as jnp
    from decode import Foreseen, State, decode, decode_ar
    from model import SHAPES, Params, Shape, empty_cache, forward, params_of, random_params
    from randomness import tables
except ImportError as error:
    from coupled_sampling.errors import MissingDependency

    raise MissingDependency(f"JAX cannot be imported: {error}") from error

from coupled_sampling import METHODS, HostStep, Request, Sampling, generate
from coupled_sampling.contracts import Integers
from coupled_sampling.drafting import Copy
from coupled_sampling.errors import MissingDependency

MATCH = METHODS["scd-match"]
PASSES = 16
"""Of a loop that is timed."""


class JaxProvider:
    """The model of ``examples/jax`` as a `coupled_sampling.LogitsProvider` of one row."""

    batch_size = 1

    def __init__(self, weights: dict[str, np.ndarray], heads: int) -> None:
        self._shape, self._params = params_of(weights, heads)
        self.vocab_size, self.max_length = self._shape.vocab_size, self._shape.positions
        self.max_window = self.max_length
        self._cache = empty_cache(self._shape, 1, self.max_length)
        self._forward = jax.jit(forward, static_argnums=1)

    def forward(self, tokens: Integers, start: Integers) -> jax.Array:
        logits, self._cache = self._forward(self._params, self._shape, self._cache, jnp.array(tokens), jnp.array(start))
        return logits


def require_gpu(rehearse: bool) -> dict[str, Any]:
    """What JAX computes on.

    Raises
    ------
    MissingDependency
        It is no GPU, and this is no rehearsal.
    """
    device = jax.devices()[0]
    if device.platform != "gpu" and not rehearse:
        raise MissingDependency(f"JAX {jax.__version__} sees no GPU, only {device.device_kind}; install jax[cuda13]")
    return {"jax": jax.__version__, "device": device.device_kind}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = jax.block_until_ready(call())
    return time.perf_counter() - began, found


@partial(jax.jit, static_argnames=("shape", "count", "columns"))
def some_passes(params: Params, tokens: jax.Array, *, shape: Shape, count: int, columns: int) -> jax.Array:
    """The last of ``count`` passes over windows of ``tokens`` (1, W), each of what the one before found most likely."""

    def one_pass(i: jax.Array, state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        logits, cache = forward(params, shape, state[1], state[0], jnp.full(1, i))
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

    return jax.lax.fori_loop(0, count, one_pass, (tokens, empty_cache(shape, 1, columns)))[0]


def pass_figure(params: Params, shape: Shape, width: int, columns: int, repeats: int) -> dict[str, Any]:
    call = partial(some_passes, params, jnp.ones((1, width), jnp.int32), shape=shape, count=PASSES, columns=columns)
    compiled, _ = timed(call)
    seconds = statistics.median(timed(call)[0] for _ in range(repeats)) / PASSES
    return {
        "width": width, "pass_ms": 1e3 * seconds, "weights_per_second": shape.bytes_read / seconds,
        "first_seconds": compiled,
    }  # fmt: skip


class Loops:
    """The loops of one model and one sequence, each compiled once."""

    def __init__(self, name: str, params: Params, shape: Shape, length: int, repeats: int) -> None:
        self.name, self.params, self.shape, self.length, self.repeats = name, params, shape, length, repeats
        noise = tables(MATCH, shape.vocab_size, rows=1, length=length, seed=0)
        self._given = params, jnp.ones(1, jnp.int32), noise
        self._common: dict[str, Any] = {"shape": shape, "length": length, "sampling": Sampling()}
        self.first_seconds, tokens = timed(self.ar)
        self.tokens = np.asarray(tokens)[0]
        self.ar_seconds = statistics.median(timed(self.ar)[0] for _ in range(repeats))

    def ar(self) -> jax.Array:
        return decode_ar(*self._given, **self._common)

    def match(self, window: int, foreseen: Foreseen) -> Any:
        return decode(*self._given, foreseen, method=MATCH, window=window, lag=1, fill=0, **self._common)

    def figures(self, window: int, wanted: list[int]) -> Iterator[dict[str, Any]]:
        """``scd-match`` at each number of tokens per pass, beside ``ar``."""
        nothing = Foreseen(jnp.zeros((1, 1 + self.length + window), jnp.int32), jnp.int32(1))
        first_seconds, own = timed(lambda: self.match(window, nothing))
        tokens = np.asarray(own.line)[0, 1 : 1 + self.length]
        runs = {n: Foreseen(own.line, jnp.int32(n)) for n in wanted if n <= window}
        seconds: dict[int, list[float]] = {n: [] for n in (0, *runs)}
        states: dict[int, Any] = {}
        for _ in range(self.repeats):  # in turns: what else the machine does disturbs all alike
            seconds[0].append(timed(self.ar)[0])
            for n, foreseen in runs.items():
                took, states[n] = timed(lambda foreseen=foreseen: self.match(window, foreseen))
                seconds[n].append(took)
        ar_seconds = statistics.median(seconds[0])
        for n, state in states.items():
            took, passes = statistics.median(seconds[n]), int(state.passes)
            per_pass, speed = self.length / passes, ar_seconds / took
            found = np.asarray(state.line)[0, 1 : 1 + self.length]
            yield {
                "model": self.name, "window": window, "wanted": n, "length": self.length, "passes": passes,
                "tokens_per_pass": per_pass, "pass_ms": 1e3 * took / passes, "ar_pass_ms": 1e3 * ar_seconds / self.length,
                "speed_up": speed, "share": speed / per_pass, "same_as_itself": int((found == tokens).sum()),
                "same_as_ar": int((found == self.tokens).cumprod().sum()), "first_seconds": first_seconds,
            }  # fmt: skip


def of_random(arguments: argparse.Namespace, name: str) -> Iterator[Figure]:
    shape = SHAPES["tiny" if arguments.rehearse else name]
    began = time.perf_counter()
    params = jax.block_until_ready(random_params(shape))
    made = {"made_seconds": time.perf_counter() - began, "bytes": sum(x.nbytes for x in jax.tree.leaves(params))}
    told = {**require_gpu(arguments.rehearse), "parameters": shape.parameters, "dtype": shape.dtype, **made}
    stats = jax.devices()[0].memory_stats() or {}
    yield "models", {"model": name, **told, "most_bytes": stats.get("peak_bytes_in_use")}
    loops = Loops(name, params, shape, arguments.forced_length, arguments.repeats)
    first, *others = arguments.windows
    columns = 1 + arguments.forced_length + max(arguments.windows)
    for figure in loops.figures(first, arguments.per_pass):
        yield "loops", figure
    for width in (1, *arguments.windows):
        found = pass_figure(params, shape, width, columns, arguments.repeats)
        yield "passes", {"model": name, **found}
    for window in others:
        for figure in loops.figures(window, arguments.per_pass):
            yield "loops", figure


def of_embedded(arguments: argparse.Namespace) -> Iterator[Figure]:
    """Pictures of the embedded model, whose tokens are to be those of the library on the CPU, with NumPy."""
    from check import first_difference
    from embedded_model import Embedded, read_weights
    from gpu_arrays import LAG, WINDOW, logits_apart

    weights, heads = read_weights()
    told, model = require_gpu(arguments.rehearse), Embedded(np, weights, heads)
    apart, (shape, params) = logits_apart(model, JaxProvider(weights, heads)), params_of(weights, heads)
    length, rule = arguments.picture_length, Copy(LAG, 0)
    settings: dict[str, Any] = {"length": length, "window": WINDOW, "lag": LAG, "fill": 0, "sampling": Sampling()}
    for method in (MATCH, METHODS["scd-maximal"]):
        decoded: list[tuple[float, State]] = []
        for picture in [0, *range(arguments.pictures)]:  # the first one twice, as it compiles
            noise = tables(method, shape.vocab_size, rows=1, length=length, seed=0, first_row=picture)
            prompt = jnp.array([256 + picture], jnp.int32)
            decoded.append(timed(partial(decode, params, prompt, noise, shape=shape, method=method, **settings)))
        same, differences = [], []
        prompts = [[256 + picture] for picture in range(arguments.pictures)]
        expected = generate(HostStep(model, method), prompts, length=length, window=WINDOW, drafting=rule).tokens
        for picture, (_, state) in enumerate(decoded[1:]):
            found = np.asarray(state.line)[0, 1 : 1 + length]
            same.append(int((found == expected[picture]).cumprod().sum()))
            if same[-1] < length:
                request = Request(prompts[picture], length, sequence=picture)
                differences.append(str(first_difference(state, 0, model, method, request, WINDOW, rule)))
        passes = sum(int(state.passes) for _, state in decoded[1:])
        yield "pictures", {
            **told, "method": method.name, "logits_apart": apart, "length": length, "same_tokens": same, "passes": passes,
            "tokens_per_pass": arguments.pictures * length / passes,
            "pass_ms": 1e3 * sum(took for took, _ in decoded[1:]) / passes, "differences": differences,
            "disagreements": sum("DISAGREEMENT" in one for one in differences),
        }  # fmt: skip


def of_jax(arguments: argparse.Namespace, name: str) -> Iterator[Figure]:
    require_gpu(arguments.rehearse)
    yield from of_embedded(arguments) if name == "embedded" else of_random(arguments, name)
