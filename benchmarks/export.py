"""Time and peak memory of an export, for a random checkpoint made on the spot.

    python benchmarks/export.py [--layers 16] [--dtype float16] [--folder DIR]

The checkpoint is Llama-shaped (width 2048, 32 heads on 8, vocabulary 32,000; 16 layers are 1.1 billion parameters), stored as
float16 in shards. The export runs in a process of its own; its peak of resident memory is that of the whole process, pages of
memory-mapped files included. The target is a peak below 1.3 times the larger of the file written and one shard.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WIDTH, HEADS, KV_HEADS, HIDDEN, VOCABULARY, SHARDS = 2048, 32, 8, 8192, 32000, 2


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


def export(source: str, out: str, dtype: str) -> None:
    """The process that is measured."""
    from coupled_sampling.export import ExportSettings, Storage, export_checkpoint

    began = time.perf_counter()
    done = export_checkpoint(source, out, ExportSettings(storage=Storage(dtype), max_length=1024))
    seconds = time.perf_counter() - began
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak": peak, "bytes": done.bytes}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--folder", type=Path, help="where to make the files; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, out = Path(folder) / "checkpoint", Path(folder) / "bundle"
        source.mkdir()
        parameters, shard = write_checkpoint(source, arguments.layers)
        command = [sys.executable, __file__, "--export", str(source), str(out), arguments.dtype]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    bound = max(result["bytes"], shard)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {parameters / 1e9:.2f} billion parameters, {arguments.dtype}"
    )
    print(
        f"{result['seconds']:.1f} s; written {result['bytes'] / 1e9:.2f} GB, largest shard {shard / 1e9:.2f} GB, peak memory "
        f"{result['peak'] / 1e9:.2f} GB: {result['peak'] / bound:.2f} times the larger of the two"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--export"]:
        export(*sys.argv[2:5])
    else:
        main()
