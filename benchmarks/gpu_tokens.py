"""Do the kernels on this GPU decide as the library does? Its noise, then every decision of some hundred steps.

Noise: the words and uniforms of Philox must be the library's bit for bit. Race weights are made with a logarithm, which the GPU
rounds for itself: how many differ, and by how many units in the last place at most, is counted.

Tokens: `KernelStep` and `HostStep` get the same logits, window by window. A difference must be a float tie: both decisions are
judged in float64 (`coupled_sampling.testing.StepComparison`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from gpu_frame import Figure
from gpu_machine import opened

from coupled_sampling import Decoder, Request, Sampling
from coupled_sampling.backends.cuda.compile import require_nvrtc
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.kernels import DRAWS, Launcher
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.pointers import DevicePointer
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.contracts import Integers
from coupled_sampling.noise import race_weights, uniforms
from coupled_sampling.testing import StepComparison

SAMPLINGS = (Sampling(), Sampling(0.7, top_k=2000, top_p=0.95))
MOST_SECONDS = 45
"""After which no more steps are compared: judging a site takes the host some 10 ms at V = 65,536."""
PLACES = ((0, 0), (3, 5), (2**20, 1000))
"""Positions and rounds whose noise is compared."""


class NormalWorld:
    """Normal logits that depend on the token before: on the host, or uploaded by a launcher."""

    batch_size = 1

    def __init__(self, vocab_size: int, max_length: int, width: int, launcher: Launcher | None = None) -> None:
        self.vocab_size, self.max_length, self.max_window = vocab_size, max_length, width
        self.table = 3 * np.random.default_rng(5).standard_normal((7, vocab_size), np.float32)
        self.launcher = launcher
        self.pointer = 0 if launcher is None else launcher.allocate(4 * width * vocab_size)

    def forward(self, tokens: Integers, start: Integers) -> Any:
        logits = self.table[tokens % len(self.table)]
        if self.launcher is None:
            return logits
        self.launcher.upload(self.pointer, logits)
        return DevicePointer(self.pointer, logits.shape, "float32")


def noise_apart(
    launcher: Launcher, vocab_size: int, position: int, round_: int, *, seed: int = 3, sequence: int = 4
) -> dict[str, Any]:
    """How the kernel ``noise`` differs from the library."""
    drawn, words, weights = np.empty(4), np.empty(vocab_size, np.uint64), np.empty(vocab_size, np.float32)
    outs = (drawn, words, weights)
    pointers = [launcher.allocate(out.nbytes) for out in outs]
    parameters = np.array((seed, sequence, position, round_, vocab_size, *pointers), DRAWS)
    launcher.launch("noise", (3, 1), parameters)
    for pointer, out in zip(pointers, outs, strict=True):
        launcher.download(pointer, out)
        launcher.release(pointer)
    expected = race_weights(seed, sequence, position, vocab_size).astype(np.float32)
    philox = np.random.Philox(key=np.array([seed, sequence], np.uint64), counter=[0, position, 1, 0])
    apart = np.abs(weights.view(np.int32).astype(np.int64) - expected.view(np.int32))
    return {
        "position": position, "round": round_,
        "uniforms_equal": bool((drawn == uniforms(seed, sequence, round_, position, 1)[0]).all()),
        "words_equal": bool((words == philox.random_raw(vocab_size)).all()),
        "weights": vocab_size, "weights_apart": int((apart > 0).sum()), "most_units_apart": int(apart.max()),
    }  # fmt: skip


def of_noise(arguments: argparse.Namespace, name: str = "") -> Iterator[Figure]:
    require_nvrtc()
    launcher = PinnedLauncher(Stream(opened(arguments)))
    for position, round_ in PLACES:
        yield "noise", noise_apart(launcher, arguments.vocab_size, position, round_)


def of_tokens(arguments: argparse.Namespace, method: str) -> Iterator[Figure]:
    """Decode with ``method`` by both; windows are as wide as ``--compared-width`` says."""
    require_nvrtc()
    launcher = PinnedLauncher(Stream(opened(arguments)))
    width = 1 if method == "ar" else arguments.compared_width
    steps = arguments.compared_steps
    length = max(2, steps // 2)  # so that several requests come, with other sampling each
    sizes = arguments.vocab_size, length + 1, width
    world = NormalWorld(*sizes)
    kernels = KernelStep(NormalWorld(*sizes, launcher), method, launcher)
    comparison = StepComparison(world, kernels)
    decoder, added, end = Decoder(comparison, window=width, drafting="repeat"), 0, time.monotonic() + MOST_SECONDS
    while comparison.report().steps < steps and time.monotonic() < end:
        if not decoder.active + decoder.waiting:
            decoder.add(Request([1 + added], length, seed=9, sequence=added, sampling=SAMPLINGS[added % 2]))
            added += 1
        decoder.step()
    report = comparison.report()
    yield "tokens", {
        "method": method, "width": width, "vocab_size": arguments.vocab_size, "steps": report.steps,
        "sites": report.sites, "ties": report.ties, "expected_ties": report.expected_ties,
        "disagreements": report.disagreements, "examples": [str(one) for one in report.examples[:3]],
    }  # fmt: skip
