"""A language model that answers in JSON: every answer fits a schema, and drafts save passes on what the schema prescribes.

    python examples/smollm2/structured.py --window 8 --seeds 3

Each prompt is continued by ``ar`` and by the match methods, at one seed and with one grammar. Every answer is parsed and held to
the schema, and the match methods must give the very tokens of ``ar``; where either fails the exit code is 1. First guesses come
from an n-gram lookup, and from the grammar itself (`coupled_sampling.grammars.GrammarDrafts`): keys and punctuation that must
come.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import smollm2
from generate import open_bundle_of, parser_of_model

from coupled_sampling import Generation, Sampling, Trace, generate
from coupled_sampling.backends import OrtProvider
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.contracts import LogitsProvider
from coupled_sampling.drafting import Drafting, NGram
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.grammars import Grammar, GrammarDrafts

HOBBIES = ("reading", "music", "sports", "cooking", "travel")
SCHEMA = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "pattern": "^[A-Z][a-z]{1,11}$"},
        "occupation": {"type": "string", "pattern": "^[a-z ]{3,24}$"},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "hobbies": {"type": "array", "items": {"enum": HOBBIES}, "minItems": 1, "maxItems": 3},
        "has_children": {"type": "boolean"},
    },
    "required": ["first_name", "occupation", "age", "hobbies", "has_children"],
    "additionalProperties": False,
}
"""All of it is bounded, so an answer is whole after so many tokens, whatever the model likes."""

PROMPTS = (
    "Describe a teacher from London as a JSON object.",
    "Invent a character for a detective story, as JSON.",
    "Write a JSON record of a retired sailor.",
    "Give me a profile of a young scientist in JSON.",
)
LONGEST = 1 + len(
    json.dumps(
        {
            "first_name": 12 * "x",
            "occupation": 24 * "x",
            "age": 99,
            "hobbies": ["reading"] * 3,
            "has_children": False,
        },
        separators=(",", ":"),
    )
)
"""Most tokens of an answer: at most one a letter, and the end."""

DRAFTINGS: dict[str, Drafting] = {"ngram:3": NGram(3), "grammar": GrammarDrafts(NGram(3))}
RUNS = (("ar", "ngram:3"), *itertools.product(("scd-match", "speculative-match"), DRAFTINGS))


class Answers(NamedTuple):
    """What one method made of all prompts and seeds."""

    method: str
    drafting: str
    texts: list[str]
    tokens: list[Any]
    traces: list[Trace]
    seconds: float

    @property
    def tokens_per_decoding_step(self) -> float:
        """Passes that only read the prompt left out."""
        passes = sum(trace.nfe - trace.committed_per_step.count(0) for trace in self.traces)
        return sum(trace.tokens for trace in self.traces) / passes


def faults(text: str) -> Iterator[str]:
    """What is wrong with an answer, checked without the engine that made it."""
    try:
        value = json.loads(text)
    except ValueError as error:
        yield f"{text!r} is no JSON: {error}"
        return
    if not isinstance(value, dict) or sorted(value) != sorted(SCHEMA["required"]):
        yield f"{text!r} has not the keys {SCHEMA['required']}"
        return
    hobbies, age = value["hobbies"], value["age"]
    if not (isinstance(hobbies, list) and 1 <= len(hobbies) <= 3 and set(hobbies) <= set(HOBBIES)):
        yield f"hobbies are {hobbies!r}"
    if type(age) is not int or not 18 <= age <= 99:
        yield f"age is {age!r}"
    if type(value["has_children"]) is not bool:
        yield f"has_children is {value['has_children']!r}"
    for name, most in (("first_name", 12), ("occupation", 24)):
        if not isinstance(value[name], str) or not 2 <= len(value[name]) <= most:
            yield f"{name} is {value[name]!r}"


def answers(
    model: LogitsProvider, bundle: Bundle, grammar: Grammar, method: str, drafting: str, given: argparse.Namespace
) -> Answers:
    """All prompts at all seeds by one method."""
    tokenizer = Tokenizer(bundle.folder / str(bundle.manifest.tokenizer))
    prompts = [tokenizer.encode(smollm2.TURNS.format(prompt)) for prompt in given.prompts]
    sampling = Sampling(temperature=given.temperature, processors=(grammar,))
    began, made = time.perf_counter(), list[Generation]()
    for seed in range(given.seeds):
        made.append(
            generate(
                model,
                prompts,
                length=LONGEST,
                seed=seed,
                stop=grammar.stop,
                sampling=sampling,
                method=method,
                window=given.window,
                drafting=DRAFTINGS[drafting],
            )
        )
    tokens = [row for generation in made for row in generation.tokens]
    return Answers(
        method,
        drafting,
        [tokenizer.decode(row.tolist()) for row in tokens],
        tokens,
        [trace for generation in made for trace in generation.traces],
        time.perf_counter() - began,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of_model(__doc__)
    add = parser.add_argument
    add("--prompts", nargs="+", default=PROMPTS, help="messages to the assistant")
    add("--seeds", type=int, default=1, help="how often every prompt is answered (default 1)")
    add("--window", type=int, default=8, help="most tokens forwarded per pass (default 8)")
    add("--temperature", type=float, default=1.0, help="0 is greedy (default 1)")
    return parser.parse_args(arguments)


def _run(given: argparse.Namespace) -> int:
    if given.seeds < 1:
        raise InvalidArgument(f"seeds is {given.seeds}, expected at least 1")
    bundle = open_bundle_of(given)
    grammar = Grammar.json_schema(SCHEMA, bundle, whitespace=False)
    wrong: list[str] = []
    with OrtProvider.open(bundle, threads=given.threads) as model:
        found = [answers(model, bundle, grammar, method, drafting, given) for method, drafting in RUNS]
    reference = found[0]
    print("\n".join(reference.texts))
    print(f"\n{'method':<20}{'first guesses':<15}{'answers':>8}{'tokens':>8}{'tokens/step':>13}{'seconds':>9}")
    for each in found:
        wrong += [f"{each.method}, {each.drafting}: {fault}" for text in each.texts for fault in faults(text)]
        if not all(map(np.array_equal, each.tokens, reference.tokens)):
            wrong.append(f"{each.method}, {each.drafting}: other tokens than ar, which is a bug or rounding")
        count = sum(trace.tokens for trace in each.traces)
        drafting = "none" if each.method == "ar" else each.drafting
        print(
            f"{each.method:<20}{drafting:<15}{len(each.texts):>8}{count:>8}{each.tokens_per_decoding_step:>13.2f}{each.seconds:>9.1f}"
        )
    print("\n".join(wrong) or "\nEvery answer fits the schema, and all methods gave the tokens of ar.", file=sys.stderr)
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    try:
        return _run(given)
    except CoupledSamplingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
