"""Tokens per second of one model's weights here and in what people would use instead, on the CPU.

    python benchmarks/peers.py CHECKPOINT [--quantize int4] [--length 64] [--openings 4] [--folder DIR] [--json FILE]

CHECKPOINT is a GGUF file or a folder of Hugging Face of a Llama. From the same tensors are made: a bundle of this library, and
with the package onnxruntime-genai and its model builder (which needs torch and transformers) what that runs. llama-cpp-python runs
the GGUF file itself, in the file's own quantisation. Who is not installed is skipped by name.

All of them continue the same prompts by the same number of tokens, sampled with top-k 50 at temperature 1, no end token; one
sequence at a time, prompts included. They take turns in an order that changes, so that whatever else the machine does befalls
them alike, and all are opened anew several times: where weights come to lie in memory makes up to 20 % of a pass's time. Rates
are shares of `ar` here: the median of the ratios within a turn, with the smallest and the largest; by the clock, and by the
processor time of the process, which other work on the machine disturbs less (with ``--threads 1`` least, since threads that wait
for each other spin).

With ``--quantize int4`` ONNX Runtime GenAI is run twice: as its builder makes it, with activations rounded to int8 (level 4), and
with float32 activations as here (level 1). What the first gains in speed it takes from the law: see docs/other-peoples-onnx.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling import Sampling, generate
from coupled_sampling.backends import Place, open_model
from coupled_sampling.export import ExportSettings, Storage, export_checkpoint, open_checkpoint
from coupled_sampling.export.checkpoints.text import write_text_files

TOP_K = 50
ROOM = 512
"""Positions per sequence."""

PROMPTS = (
    "The lighthouse keeper climbed the stairs as he had done every evening for",
    "To make a simple vegetable soup, first chop two onions and",
    "In the year 1890 the railway reached the valley, and with it came",
    "def read_lines(path):\n    with open(path) as file:\n",
    "Dear neighbours, we are writing to you because the garden behind our",
    "The difference between a virus and a bacterium is that",
)

Run = Callable[[Sequence[int], int, int], int]
"""From a prompt, a number of tokens and a seed to how many tokens were made."""


def here(folder: Path, method: str, threads: int) -> Run:
    """A method of this library with the settings that a bundle of text recommends."""
    model = open_model(folder, Place(threads=threads), method=method)
    settings = {} if method == "ar" else {"window": 4, "drafting": "ngram"}

    def run(prompt: Sequence[int], length: int, seed: int) -> int:
        made = generate(model, [prompt], length=length, seed=seed, sampling=Sampling(top_k=TOP_K), **settings)
        return len(made.tokens[0])

    return run


def genai(folder: Path) -> Run:
    """onnxruntime-genai on what its builder made."""
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(folder))

    def run(prompt: Sequence[int], length: int, seed: int) -> int:
        parameters, whole = onnxruntime_genai.GeneratorParams(model), len(prompt) + length
        # No end token before the last: min_length keeps it out.
        parameters.set_search_options(
            max_length=whole, min_length=whole, do_sample=True, top_k=TOP_K, temperature=1.0, random_seed=seed
        )
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(np.array(prompt, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return len(generator.get_sequence(0)) - len(prompt)

    return run


def llama_cpp(file: Path, threads: int) -> Run:
    """llama-cpp-python on the GGUF file."""
    import llama_cpp

    model = llama_cpp.Llama(str(file), n_ctx=ROOM, n_threads=threads, n_threads_batch=threads, verbose=False)

    def run(prompt: Sequence[int], length: int, seed: int) -> int:
        model.reset()
        model.set_seed(seed)
        tokens = model.generate(list(prompt), top_k=TOP_K, top_p=1.0, min_p=0.0, temp=1.0, repeat_penalty=1.0)
        return sum(1 for _, token in zip(range(length), tokens, strict=False))

    return run


def has(*packages: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in packages)


def write_hugging_face(source: Path, folder: Path) -> None:
    """The tensors of a checkpoint as a folder of Hugging Face, which the builder of ONNX Runtime GenAI reads."""
    from safetensors.numpy import save_file

    folder.mkdir()
    with open_checkpoint(source) as checkpoint:
        names = checkpoint.names()
        save_file({name: np.ascontiguousarray(checkpoint.read(name)) for name in names}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(dict(checkpoint.config)))
        write_text_files(checkpoint, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def build_genai(source: Path, out: Path, precision: str, threads: int) -> None:
    """Have ONNX Runtime GenAI's builder write what its runtime runs, with as many threads as everybody has."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out)]
    command += ["-p", precision, "-e", "cpu", "-c", str(out.parent / "cache")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"onnxruntime-genai's builder failed:\n{done.stderr[-2000:]}")
    path = out / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config))


def with_level(source: Path, out: Path, level: int) -> None:
    """A copy of a built model whose MatMulNBits have another accuracy level."""
    import onnx

    out.mkdir()
    for file in source.iterdir():
        if file.name != "model.onnx":
            os.link(file, out / file.name)
    graph = onnx.load(source / "model.onnx", load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = level
    onnx.save(graph, out / "model.onnx")


def peers(source: Path, folder: Path, quantize: str | None, threads: int) -> dict[str, Callable[[], Run]]:
    """What opens everybody that can run here; says who cannot."""
    bundle = folder / "bundle"
    found: dict[str, Callable[[], Run]] = {}
    settings = ExportSettings(storage=Storage(quantize or "float32"), max_length=ROOM, licence="unknown")
    export_checkpoint(source, bundle, settings)
    for method in ("ar", "scd-match"):
        found[f"here, {method}"] = partial(here, bundle, method, threads)
    precision = {None: "fp32", "int4": "int4"}.get(quantize)
    if precision is None:
        print(f"skipped: onnxruntime-genai, whose builder has no {quantize} on the CPU")
    elif not has("onnxruntime_genai", "torch", "transformers", "onnx_ir"):
        print(
            "skipped: onnxruntime-genai, which is not installed: pip install onnxruntime-genai onnx-ir torch transformers"
        )
    else:
        write_hugging_face(source, folder / "hf")
        build_genai(folder / "hf", folder / "genai", precision, threads)
        found["onnxruntime-genai" + (", activations rounded" if quantize else "")] = partial(genai, folder / "genai")
        if quantize:
            with_level(folder / "genai", folder / "genai-1", level=1)
            found["onnxruntime-genai, float32 activations"] = partial(genai, folder / "genai-1")
    if source.suffix != ".gguf":
        print("skipped: llama-cpp-python, which reads GGUF files only")
    elif not has("llama_cpp"):
        print(
            "skipped: llama-cpp-python, which is not installed: pip install llama-cpp-python (it needs a C++ compiler)"
        )
    else:
        found["llama-cpp-python, the file's own types"] = partial(llama_cpp, source, threads)
    return found


def measure(
    openers: dict[str, Callable[[], Run]], prompts: Sequence[Sequence[int]], length: int, openings: int
) -> dict[str, np.ndarray]:
    """Seconds per token of everybody, turn by turn: by the clock, and of this process on all cores."""
    order, taken = np.random.default_rng(0), {name: [] for name in openers}
    for opening in range(openings):
        found = {name: openers[name]() for name in order.permutation(list(openers))}
        for run in found.values():  # what is made at a first call is not measured
            run(prompts[0], 4, 0)
        for prompt in prompts:
            for name in order.permutation(list(found)):
                began = time.perf_counter(), time.process_time()
                made = found[name](prompt, length, opening)
                ended = time.perf_counter(), time.process_time()
                taken[name].append([(end - begin) / made for begin, end in zip(began, ended, strict=True)])
                if made != length:
                    raise SystemExit(f"{name} made {made} tokens, expected {length}")
    return {name: np.array(seconds) for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quantize", choices=("int4", "int8"))
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--openings", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="where to make the files; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="add the result to this file, a list")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = peers(arguments.checkpoint, Path(folder), arguments.quantize, arguments.threads)
        tokens = prompt_tokens(Path(folder) / "bundle")
        loads = [os.getloadavg()[0]]
        taken = measure(found, tokens, arguments.length, arguments.openings)
        loads.append(os.getloadavg()[0])
    title = f"{arguments.checkpoint.name}, {arguments.quantize or 'float32'}"
    print(f"{title}; {os.cpu_count()} cores, {arguments.threads} threads, load {loads[0]:.1f} to {loads[1]:.1f}")
    print(f"{'tokens per second, as a share of ar here':<42} by the clock            by processor time")
    result: dict[str, Any] = {"title": title, "threads": arguments.threads, "load": loads, "shares": {}}
    for name, seconds in taken.items():
        shares = taken["here, ar"] / seconds
        rows = np.array([np.median(shares, axis=0), shares.min(axis=0), shares.max(axis=0)]).T
        result["shares"][name] = {"clock": rows[0].tolist(), "processor": rows[1].tolist()}
        said = "   ".join(f"{middle:5.2f} ({least:.2f} to {most:.2f})" for middle, least, most in rows)
        print(f"{name:<42}{said}")
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        arguments.json.write_text(json.dumps([*known, result], indent=2) + "\n")


def prompt_tokens(bundle: Path) -> list[list[int]]:
    """The prompts in the model's tokens; where it has no tokenizer, as many random ones."""
    from coupled_sampling import open_bundle

    opened = open_bundle(bundle)
    tokenizer = opened.tokenizer()
    if tokenizer is not None:
        return [list(tokenizer.encode(text)) for text in PROMPTS]
    random = np.random.default_rng(0)
    return [random.integers(0, opened.manifest.vocab_size, 14).tolist() for _ in PROMPTS]


if __name__ == "__main__":
    main()
