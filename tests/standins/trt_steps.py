"""What the tests of `TrtStep` share: a machine with emulated kernels, and what its tokens must be."""

import contextlib

import numpy as np

from coupled_sampling import Sampling, generate
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.cuda import pinned_launcher
from coupled_sampling.contracts import RowInfo, Window
from standins.cuda_emulation.emulation import PLAIN, EmulationLauncher

STEPS = ["scd-match"]
GRAPH = "step-scd-match-tensorrt.onnx"
PROMPTS = [[8], [8, 1, 2], [3, 0]]
SAMPLINGS = [Sampling(), Sampling(0), Sampling(0.6)]


@contextlib.contextmanager
def kernels(monkeypatch):
    """What gives kernels to a fake GPU, one piece of their source replaced if asked for."""
    monkeypatch.setattr(pinned_launcher, "compile_kernels", lambda *_: b"")
    launchers = []

    def install(machine, replacement=None):
        launchers.append(EmulationLauncher((*PLAIN, "-O0") if replacement else PLAIN, replacement=replacement))
        machine.cuda.emulator = launchers[-1]
        return machine

    yield install
    for launcher in launchers:
        launcher.end()


def expect_the_tokens_of_host_step(
    bundle, step, *, drafting="repeat", window=6, length=20, seed=3, prompts=PROMPTS, samplings=SAMPLINGS
):
    settings = {"length": length, "window": window, "seed": seed, "drafting": drafting, "sampling": samplings}
    found = generate(step, prompts, **settings)
    provider = OrtProvider.open(bundle, batch_size=step.batch_size, threads=1)
    expected = generate(provider, prompts, method="scd-match", **settings)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.tolist() == other.tolist()
    for one, other in zip(found.traces, expected.traces, strict=True):
        assert one.committed_per_step == other.committed_per_step
    return found


def one_row(tokens, sampling=None, start=0):
    numbers = [np.array([n]) for n in (start, 1, 0, len(tokens) - 1)]
    rows = [RowInfo(0, 0, sampling or Sampling())]
    return Window(
        np.array([tokens]), *numbers, np.array([True]), np.zeros(1, np.int64), rows, [np.array(tokens)], [None]
    )
