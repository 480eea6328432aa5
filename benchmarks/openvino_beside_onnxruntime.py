"""Passes of OpenVINO beside those of ONNX Runtime, on the CPU.

    python benchmarks/openvino_beside_onnxruntime.py [--threads 2] [--turns 8] [--models embedded,float32,int8,int4]

Both run the same bundle in turns, in an order that changes: four calls each, after a pause in which the other one's threads go to
sleep, the first call left out. Printed are medians of a call, and OpenVINO's share of ONNX Runtime's: of the time that passed, and
of the processors' time, which other programs on the machine disturb less. Models: the embedded one, and one of the shape of
SmolLM2-135M with random weights of several types, int8 and int4 in their standard form. A row has 128 tokens before the window.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from step_graph import random_bundle

from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.openvino import OpenVinoProvider
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import LogitsProvider
from coupled_sampling.export import DecoderDescription, Storage
from coupled_sampling.export.graphs.rotary import Rotary

HELD, CALLS, PAUSE = 128, 4, 0.03
WIDTHS, BATCHES = (1, 8, 16, 32), (1, 4)
SMOLLM2 = DecoderDescription(
    49152, 512, width=576, layers=30, heads=9, mlp_width=1536, kv_heads=3, rotary=Rotary(), tied_head=True
)


def model_of(name: str, folder: Path) -> Bundle:
    """`fashion`, or SmolLM2's shape with weights of that type."""
    if name == "embedded":
        return open_bundle("fashion")
    # OpenVINO has no MatMulNBits.
    form = "standard" if name.startswith("int") else "auto"
    return random_bundle(folder, SMOLLM2, Storage(weights=name, form=form))


def measure(bundle: Bundle, batch: int, width: int, threads: int, turns: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Medians of (ONNX Runtime, OpenVINO): seconds that passed, seconds of processors; and the largest difference of logits."""
    providers: tuple[LogitsProvider, ...] = (
        OrtProvider.open(bundle, batch, threads),
        OpenVinoProvider.open(bundle, batch, threads),
    )
    random = np.random.default_rng(0)
    generated = np.arange(bundle.manifest.generated_tokens.count) + bundle.manifest.generated_tokens.first
    tokens = random.choice(generated, (batch, HELD + width))
    held, window = np.zeros(batch, np.int64), tokens[:, HELD:].copy()
    logits = []
    for provider in providers:
        for first in range(0, HELD, 32):
            provider.forward(tokens[:, first : first + 32].copy(), held + first)
        logits.append(provider.forward(window, held + HELD)[..., generated].copy())
    passed: tuple[list[float], ...] = ([], [])
    used: tuple[list[float], ...] = ([], [])
    for _ in range(turns):
        for i in random.permutation(2):
            time.sleep(PAUSE)
            for call in range(CALLS):
                clock, processors = time.perf_counter(), time.process_time()
                providers[i].forward(window, held + HELD)
                if call:
                    passed[i].append(time.perf_counter() - clock)
                    used[i].append(time.process_time() - processors)
    difference = float(np.abs(logits[0] - logits[1]).max())
    return np.median(passed, axis=1), np.median(used, axis=1), difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--models", default="embedded,float32,int8,int4")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}")
    print("model      batch width   ONNX Runtime    OpenVINO   of its time   of its processors   logits differ by")
    with tempfile.TemporaryDirectory() as name:
        for model in arguments.models.split(","):
            bundle = model_of(model, Path(name))
            for batch in BATCHES:
                for width in WIDTHS:
                    passed, used, difference = measure(bundle, batch, width, arguments.threads, arguments.turns)
                    print(
                        f"{model:<10} {batch:>5} {width:>5} {1e3 * passed[0]:>11.2f} ms {1e3 * passed[1]:>8.2f} ms "
                        f"{passed[1] / passed[0]:>13.2f} {used[1] / used[0]:>19.2f} {difference:>18.1e}",
                        flush=True,
                    )
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
