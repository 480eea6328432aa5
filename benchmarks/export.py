"""Time and peak memory of an export, for a random checkpoint made on the spot, beside an export by PyTorch.

    python benchmarks/export.py [--layers 16] [--dtype float16] [--repeats 1] [--torch] [--folder DIR] [--json FILE]

The checkpoint is Llama-shaped (width 2048, 32 heads on 8, vocabulary 32,000; 16 layers are 1.1 billion parameters, 3 are 0.3),
stored as float16 in shards. Every export runs in a process of its own; its peak of resident memory is that of the whole process,
pages of memory-mapped files included, and its time begins after the imports. The target is a peak below 1.3 times the larger of
the file written and one shard.

With ``--torch``, which needs torch and onnxscript, the same decoder written in PyTorch (``export_torch.py``) reads the same
checkpoint and is exported by ``torch.onnx.export``, through `export_module`. That takes float32, so ``--dtype float32`` is what to
compare it with; the logits of the two are compared then, too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEADS, KV_HEADS, HIDDEN, VOCABULARY, SHARDS, POSITIONS = 2048, 32, 8, 8192, 32000, 2, 1024


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    key = WIDTH // HEADS * KV_HEADS
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (key, WIDTH),
            "self_attn.v_proj": (key, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (HIDDEN, WIDTH),
            "mlp.up_proj": (HIDDEN, WIDTH),
            "mlp.down_proj": (WIDTH, HIDDEN),
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
        }.items():
            found[f"model.layers.{layer}.{name}.weight"] = shape
    return found


def write_checkpoint(folder: Path, layers: int) -> tuple[int, int]:
    """Parameters, and bytes of the largest shard."""
    from safetensors.numpy import save_file

    config = {
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": HIDDEN,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    names, random = list(shapes(layers).items()), np.random.default_rng(0)
    where, largest = {}, 0
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part = names[shard::SHARDS]
        save_file(
            {n: (0.02 * random.standard_normal(s, np.float32)).astype(np.float16) for n, s in part}, folder / file
        )
        where |= {name: file for name, _ in part}
        largest = max(largest, (folder / file).stat().st_size)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return sum(int(np.prod(shape)) for _, shape in names), largest


def peak_memory() -> int:
    """Bytes of resident memory that this process had at most.

    ``ru_maxrss`` begins with what the parent held when it started the process, so Linux's own mark for the program is preferred.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def export(source: str, out: str, dtype: str) -> None:
    """The process that is measured."""
    from coupled_sampling.export import ExportSettings, Storage, export_checkpoint

    began = time.perf_counter()
    done = export_checkpoint(source, out, ExportSettings(storage=Storage(dtype), max_length=POSITIONS))
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": peak_memory(), "bytes": done.bytes}))


def export_by_torch(source: str, out: str) -> None:
    """The other process that is measured."""
    from export_torch import read

    from coupled_sampling.export.torch.module import ModuleSettings, export_module

    began = time.perf_counter()
    decoder, cache = read(Path(source), POSITIONS)
    held = {"read_seconds": time.perf_counter() - began, "read_peak": peak_memory()}
    bundle = export_module(decoder, out, cache, ModuleSettings(name="torch", prompts={"start": [0]}), check=None)
    seconds = time.perf_counter() - began
    written = sum(record.bytes for record in bundle.manifest.files.values())
    print(json.dumps({"seconds": seconds, "peak": peak_memory(), "bytes": written, **held}))


def measured(command: list[str], shard: int) -> dict[str, Any]:
    """Figures that ``command`` prints, with the bound that its peak is compared with."""
    load = os.getloadavg()[0]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {**result, "bound": max(result["bytes"], shard), "load": round(load, 1)}


def difference(first: Path, second: Path) -> float:
    """Largest difference of a logit over two windows, in standard deviations of the first bundle's logits."""
    from coupled_sampling.backends import OrtProvider

    tokens, logits = np.random.default_rng(0).integers(0, VOCABULARY, (1, 6)), []
    for bundle in (first, second):
        provider = OrtProvider.open(bundle)
        starts = (0, 4)
        parts = [provider.forward(tokens[:, s : s + 4], np.array([s])).copy() for s in starts]
        logits.append(np.concatenate(parts, axis=1))
    return float(np.abs(logits[0] - logits[1]).max() / logits[0].std())


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    middle = {name: statistics.median(run[name] for run in runs) for name in ("seconds", "peak", "bytes", "bound")}
    return {**middle, "peak_over_bound": middle["peak"] / middle["bound"], "runs": runs}


def has_torch() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "onnxscript"))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All exports of one checkpoint."""
    source = folder / "checkpoint"
    source.mkdir()
    parameters, shard = write_checkpoint(source, arguments.layers)
    runs: dict[str, list[dict[str, Any]]] = {"coupled-sampling": []}
    agreement = None
    for repeat in range(arguments.repeats):
        own, other = folder / f"own-{repeat}", folder / f"torch-{repeat}"
        runs["coupled-sampling"].append(measured([__file__, "--export", str(source), str(own), arguments.dtype], shard))
        if arguments.torch:
            result = measured([__file__, "--export-by-torch", str(source), str(other)], shard)
            runs.setdefault("torch", []).append(result)
            if agreement is None and arguments.dtype == "float32":
                agreement = difference(own, other)
                if not agreement < 1e-3:
                    raise SystemExit(f"the two exports differ by {agreement:.2g} standard deviations: not one model")
        for bundle in (own, other):
            shutil.rmtree(bundle, ignore_errors=True)
    packages = ["numpy", "onnx", "onnxruntime", *(["torch", "onnxscript"] if arguments.torch else [])]
    return {
        "parameters": parameters, "layers": arguments.layers, "dtype": arguments.dtype, "largest_shard": shard,
        "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "difference_of_logits": agreement, "exports": {name: medians(found) for name, found in runs.items()},
    }  # fmt: skip


def print_result(result: dict[str, Any]) -> None:
    print(f"{result['cores']} cores; {result['parameters'] / 1e9:.2f} billion parameters, {result['dtype']}")
    for name, row in result["exports"].items():
        loads = ", ".join(str(run["load"]) for run in row["runs"])
        print(
            f"{name}: {row['seconds']:.1f} s; written {row['bytes'] / 1e9:.2f} GB, largest shard "
            f"{result['largest_shard'] / 1e9:.2f} GB, peak memory {row['peak'] / 1e9:.2f} GB: {row['peak_over_bound']:.2f} times "
            f"the larger of the two (medians of {len(row['runs'])}, load {loads})"
        )
    if result["difference_of_logits"] is not None:
        print(f"logits of the two differ by {result['difference_of_logits']:.1g} standard deviations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--repeats", type=int, default=1, help="exports of each kind, of which medians are given")
    parser.add_argument(
        "--torch",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="default: with --dtype float32 if there is torch",
    )
    parser.add_argument("--folder", type=Path, help="where to make the files; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="add the result to this file, a list")
    arguments = parser.parse_args()
    if arguments.torch is None:
        arguments.torch = has_torch() and arguments.dtype == "float32"
    if arguments.torch and not has_torch():
        raise SystemExit("--torch needs torch and onnxscript: pip install 'coupled-sampling[torch]'")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(arguments, Path(folder))
    print_result(result)
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        arguments.json.write_text(json.dumps([*known, result], indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--export"]:
        export(*sys.argv[2:5])
    elif sys.argv[1:2] == ["--export-by-torch"]:
        export_by_torch(*sys.argv[2:4])
    else:
        main()
