"""What quantised weights cost and bring on the CPU: memory, time of a pass, drift and perplexity, each beside float32.

    python benchmarks/quantised.py CHECKPOINT [--text FILE] [--openings 3] [--threads 2] [--folder DIR] [--json FILE]
    python benchmarks/quantised.py --layers 16       # a random Llama of 1.1 billion parameters

Memory is what a process of its own has more after opening the bundle and a pass of one token, as a multiple of the bundle's files.
Passes take turns, and all models are opened anew several times: where their weights come to lie in memory makes up to 20 % of a
pass's time. Times are medians of the ratios to float32 within a turn, by the clock and by processor time. Drift is the root mean
square of the change of a logit, in standard deviations of a position's logits, and the mean KL divergence, over the tokens of a
text; perplexity is of the same text. A random model has no perplexity worth the name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling import open_bundle
from coupled_sampling.backends import OrtProvider
from coupled_sampling.export import ExportSettings, Storage, export_checkpoint
from coupled_sampling.testing import CheckFailed, check_provider
from export import write_checkpoint

KINDS = {
    "float32": Storage(),
    "int8": Storage("int8"),
    "int4": Storage("int4"),
}
WIDTHS = (1, 2, 4, 8, 16, 32)
ROOM, CHUNK, TOKENS = 512, 64, 384
TEXT = Path(__file__).parent.parent / "docs" / "losslessness.md"


def resident() -> int:
    """Bytes of resident memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def memory(bundle: str, threads: str) -> None:
    """The process whose memory is measured."""
    opened = open_bundle(bundle)
    import onnxruntime  # noqa: F401 - its own memory is not the model's

    before = resident()
    with OrtProvider.open(opened, threads=int(threads)) as model:
        model.forward(np.array([[5]]), np.array([0]))
        print(json.dumps(resident() - before))


def memory_of(bundle: Path, threads: int) -> float:
    """Memory of the open model as a multiple of the bundle's files."""
    command = [sys.executable, __file__, "--memory", str(bundle), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout) / sum(record.bytes for record in open_bundle(bundle).manifest.files.values())


def times(bundles: dict[str, Path], arguments: argparse.Namespace) -> dict[int, dict[str, np.ndarray]]:
    """Passes by width: (turns, 4), the clock and processor time, as shares of float32's in the same turn and in seconds."""
    order, threads, repeats = np.random.default_rng(0), arguments.threads, arguments.repeats
    found = {width: {kind: [] for kind in bundles} for width in arguments.widths}
    for _ in range(arguments.openings):
        opened = {k: OrtProvider.open(bundles[k], threads=threads) for k in order.permutation(list(bundles))}
        for width in arguments.widths:
            tokens, start = np.arange(5, 5 + width)[None], np.array([32])
            for turn in range(-1, repeats):
                taken = {}
                for kind in order.permutation(list(bundles)):
                    began = time.perf_counter(), time.process_time()
                    opened[kind].forward(tokens, start)
                    taken[kind] = time.perf_counter() - began[0], time.process_time() - began[1]
                for kind, seconds in taken.items() if turn >= 0 else ():  # the first one warms up
                    found[width][kind].append([*np.divide(seconds, taken["float32"]), *seconds])
        for model in opened.values():
            model.close()
    return {width: {kind: np.array(rows) for kind, rows in kinds.items()} for width, kinds in found.items()}


def log_laws(bundle: Path, tokens: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (T, V) and log-laws of every position of a text."""
    with OrtProvider.open(bundle, threads=threads) as model:
        starts = range(0, len(tokens), CHUNK)
        parts = [model.forward(tokens[None, i : i + CHUNK], np.array([i]))[0].copy() for i in starts]
    logits = np.concatenate(parts)
    return logits, logits - np.logaddexp.reduce(logits.astype(np.float64), axis=-1, keepdims=True)


def drifts(bundles: dict[str, Path], tokens: np.ndarray, threads: int) -> dict[str, dict[str, float]]:
    """Drift from float32's logits, and perplexity."""
    original, law = log_laws(bundles["float32"], tokens, threads)
    spread, found = original.std(axis=-1, keepdims=True), {}
    for kind, bundle in bundles.items():
        logits, own = log_laws(bundle, tokens, threads)
        found[kind] = {
            "drift": float(np.sqrt((((logits - original) / spread) ** 2).mean())),
            "kl": float((np.exp(law) * (law - own)).sum(axis=-1).mean()),
            "perplexity": float(np.exp(-own[np.arange(len(tokens) - 1), tokens[1:]].mean())),
        }
    return found


def keeps_the_contract(bundle: Path, threads: int) -> bool:
    """Whether `check_provider` passes at its default tolerance."""
    try:
        check_provider(OrtProvider.open(bundle, batch_size=2, threads=threads), length=40)
    except CheckFailed as failure:
        print(failure)
        return False
    return True


def text_tokens(bundle: Path, text: Path) -> np.ndarray:
    opened = open_bundle(bundle)
    tokenizer = opened.tokenizer()
    if tokenizer is None:
        return np.random.default_rng(0).integers(0, opened.manifest.vocab_size, TOKENS)
    return np.array(tokenizer.encode(text.read_text())[:TOKENS])


def report(kind: str, bundle: Path, result: dict[str, Any]) -> None:
    size = sum(record.bytes for record in open_bundle(bundle).manifest.files.values())
    contract = {True: "; check_provider passes", False: "; check_provider FAILS", None: ""}[result["contract"]]
    print(
        f"{kind}: {size / 1e6:.0f} MB, memory {result['memory']:.2f} times that; drift {result['drift']:.3f}, "
        f"KL {result['kl']:.4f}, perplexity {result['perplexity']:.2f}{contract}"
    )
    for name, place in (("clock", 0), ("processor", 1)):
        shares = "   ".join(f"{width}: {result['passes'][width][place]:.2f}" for width in result["passes"])
        print(f"    time of a pass by width, against float32's, {name:<9} {shares}")
    own = "   ".join(f"{width}: {result['passes'][width][2]:.2f}" for width in result["passes"])
    print(f"    processor time by width, against its own at the first  {own}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--layers", type=int, help="make a random checkpoint of so many layers instead")
    parser.add_argument("--text", type=Path, default=TEXT, help="default: docs/losslessness.md")
    parser.add_argument("--openings", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the text (default: %(default)s)")
    parser.add_argument(
        "--contract", action=argparse.BooleanOptionalAction, default=True, help="run check_provider, too"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="where to make the files; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="add the result to this file, a list")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, source = Path(name), arguments.checkpoint
        if arguments.layers:
            source = folder / f"random-{arguments.layers}"
            source.mkdir()
            write_checkpoint(source, arguments.layers)
        bundles = {kind: folder / kind for kind in KINDS}
        for kind, storage in KINDS.items():
            export_checkpoint(source, bundles[kind], ExportSettings(storage=storage, max_length=ROOM))
        threads, loads = arguments.threads, [os.getloadavg()[0]]
        passes = times(bundles, arguments)
        tokens = text_tokens(bundles["float32"], arguments.text)[: arguments.tokens]
        changes = drifts(bundles, tokens, threads)
        results: dict[str, Any] = {}
        for kind, bundle in bundles.items():
            alone = np.median(passes[arguments.widths[0]][kind][:, 3])
            results[kind] = {
                **changes[kind],
                "memory": memory_of(bundle, threads),
                "contract": keeps_the_contract(bundle, threads) if arguments.contract else None,
                "passes": {
                    width: [*np.median(found[kind][:, :2], axis=0), np.median(found[kind][:, 3]) / alone]
                    for width, found in passes.items()
                },
            }
        loads.append(os.getloadavg()[0])
        print(f"{source.name}; {os.cpu_count()} cores, {threads} threads, load {loads[0]:.1f} to {loads[1]:.1f}")
        for kind, bundle in bundles.items():
            report(kind, bundle, results[kind])
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        entry = {"source": source.name, "threads": threads, "load": loads, "kinds": results}
        arguments.json.write_text(json.dumps([*known, entry], indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        memory(*sys.argv[2:4])
    else:
        main()
