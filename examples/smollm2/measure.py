"""How much Jacobi methods gain on text: prompts x seeds x first guesses x windows, one file of figures.

    python examples/smollm2/measure.py --out benchmarks/results/smollm2.json

Every configuration runs all methods one after the other on one model, ``ar`` first, so that ratios are within one run. The file is
written after every configuration, and what it holds is not run again. Counts of passes are exact and repeat; seconds depend on
what else the machine does, so its load is kept with every configuration.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import generate
import numpy as np
import smollm2

from coupled_sampling import __version__
from coupled_sampling.backends import OrtProvider
from coupled_sampling.bundles.files import check_writable, write_whole
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.contracts import Sampling
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument

PROMPTS = {
    "explain": "Why is the sky blue?",
    "story": "Write a short story about a fox and a river.",
    "list": "Write the numbers from one to twenty, separated by commas.",
    "copy": "Repeat this sentence three times: The quick brown fox jumps over the lazy dog.",
}
KEYS = ("prompt", "seed", "drafting", "window", "temperature")


def load_or_begin(out: Path, provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs that ``out`` holds, which must have been made by the same model, length, threads and versions."""
    if not out.exists():
        return []
    try:
        content = json.loads(out.read_text())
        found, runs = content["provenance"], content["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"out is {out}, which holds no figures of this script ({error!r}); name another"
        ) from error
    if found != provenance:
        raise InvalidArgument(f"out is {out}, made with {found}, and this is {provenance}; name another file")
    return list(runs)


def medians(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over prompts and seeds, for each drafting, window, temperature and method.

    ``time_ratio`` is tokens per second over those of ``ar`` in the same run.
    """
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        base = run["methods"][0]
        for row in run["methods"]:
            ratio = (row["tokens"] / row["seconds"]) / (base["tokens"] / base["seconds"])
            key = (run["temperature"], run["drafting"], run["window"], row["method"])
            cells.setdefault(key, []).append({**row, "time_ratio": ratio})
    return [
        {
            **dict(zip(("temperature", "drafting", "window", "method"), key, strict=True)),
            "runs": len(rows),
            **{
                f"{name}_{part}": round(float(function([row[name] for row in rows])), 3)
                for name in ("tokens_per_step", "tokens_per_decoding_step", "time_ratio")
                for part, function in (("median", np.median), ("least", min), ("most", max))
            },
            "identical_to_ar": sum(row["identical_to_ar"] for row in rows),
        }
        for key, rows in cells.items()
    ]


def write(out: Path, provenance: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """One line for each run and each cell."""

    def lines(items: Sequence[dict[str, Any]]) -> str:
        return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in items) + "\n  ]"

    load = sorted(run["load"] for run in runs)
    text = (
        f'{{\n  "provenance": {json.dumps(provenance)},\n  "load": {{"least": {load[0]}, "median": {load[len(load) // 2]}, '
        f'"most": {load[-1]}}},\n  "medians": {lines(medians(runs))},\n  "runs": {lines(runs)}\n}}\n'
    )
    write_whole(out, lambda partial: partial.write_text(text))


def configurations(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All combinations, in an order that gives every cell its first runs early."""
    for values in itertools.product(
        range(given.seeds), given.prompts.split(","), given.draftings.split(","), map(int, given.windows.split(","))
    ):
        seed, prompt, drafting, window = values
        yield dict(zip(KEYS, (prompt, seed, drafting, window, given.temperature), strict=True))


def measure(given: argparse.Namespace) -> None:
    check_writable(given.out)
    bundle = generate.open_bundle_of(given)
    provenance = {
        "command": "python examples/smollm2/measure.py", "model": bundle.manifest.name, "gguf_sha256": given.sha256,
        "weights": f"{smollm2.PACKAGE} {smollm2.VERSION}" if given.sha256 == smollm2.SHA256 else "another file",
        "length": given.length, "threads": given.threads, "cores": os.cpu_count(), "python": platform.python_version(),
        "coupled-sampling": __version__,
        **{name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "tokenizers")},
    }  # fmt: skip
    runs = load_or_begin(given.out, provenance)
    done = {tuple(run[key] for key in KEYS) for run in runs}
    model = OrtProvider.open(bundle, threads=given.threads)
    tokenizer = Tokenizer(bundle.folder / str(bundle.manifest.tokenizer))
    methods = generate.DEFAULT_METHODS.split(",")
    for settings in configurations(given):
        if tuple(settings[key] for key in KEYS) in done:
            continue
        prompt = tokenizer.encode(smollm2.TURNS.format(PROMPTS[settings["prompt"]]))
        decoding = DecodingSettings(
            given.length,
            window=settings["window"],
            drafting=settings["drafting"],
            sampling=Sampling(temperature=settings["temperature"]),
            stop=bundle.manifest.stop_tokens,
        )
        results = generate.run(model, prompt, methods, decoding, settings["seed"])
        rows = [{name: _short(value) for name, value in generate.figures(result).items()} for result in results]
        runs.append({**settings, "load": round(os.getloadavg()[0], 1), "methods": rows})
        write(given.out, provenance, runs)
        print(settings, {row["method"]: row["tokens_per_decoding_step"] for row in rows}, flush=True)


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = generate.parser_of_model(__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="JSON to write, or to add to")
    add("--prompts", default=",".join(PROMPTS), help=f"names among {', '.join(PROMPTS)}")
    add("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3 of them)")
    add("--draftings", default="repeat,ngram:3")
    add("--windows", default="4,8,16")
    add("--temperature", type=float, default=1.0)
    add("--length", type=int, default=48, help="most tokens of a run (default 48)")
    given = parser.parse_args(arguments)
    try:
        unknown = set(given.prompts.split(",")) - set(PROMPTS)
        if unknown:
            raise InvalidArgument(f"prompts has {sorted(unknown)}, expected names among {', '.join(PROMPTS)}")
        measure(given)
    except CoupledSamplingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
