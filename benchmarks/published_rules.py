"""The published samplers' rules on one model, by slots per pass: the embedded one, temperature 1, in passes.

    python benchmarks/published_rules.py table [--count 40] [--seed 7] [--slots 32,64,256] [--only NAME] [--out FILE]
    python benchmarks/published_rules.py proof     # the mended rule of SJD-PAC: its law, exactly, on toys

Passes are free of noise: they depend on the model, the seed and nothing else. Rules, not implementations, are compared: each runs
here, on the same pictures.

- SJD (arXiv 2410.01699): redrafts independent, acceptance by rejection. Fresh drafts drawn uniformly, as published; and as this
  library does, copied from the row above.
- SCD (arXiv 2510.24211): redrafts by the Gumbel or the maximal coupling, acceptance by rejection, no corrections. Fresh drafts
  likewise.
- SJD-PAC (arXiv 2603.18599), mended: ``sjd_pac.py`` says what that is, and what was assumed. Its released code is biased.
- This library's ``scd-match`` with the fitted corrections of the bundle, without branches and with.

A chain can be no wider than the picture: 256 slots are 196 for rules without trees.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from sjd_pac import Draft, Pac

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import open_model
from coupled_sampling.contracts import Trees
from coupled_sampling.draft_contracts import DraftContext, Proposal, proposal_sites
from coupled_sampling.drafting import Drafting
from coupled_sampling.noise import Noise, Purpose
from coupled_sampling.testing import autoregressive_law, random_table, total_variation
from coupled_sampling.testing.exact.enumeration import enumerate_paths

BRANCHES = {32: 4, 64: 24, 256: 192}


class Uniform:
    """Fresh drafts drawn uniformly, and tested as such."""

    carries_laws = True

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `coupled_sampling.drafting.Drafting`."""
        made = []
        for context in contexts:
            sites, laws = (
                proposal_sites([context], 0, context.wanted),
                np.full((1, context.wanted, vocab_size), 1 / vocab_size),
            )
            drawn = noise.categorical(laws, sites, Purpose.PROPOSE, where=sites.valid)
            made.append(Proposal(np.asarray(drawn[0], np.int64), laws[0]))
        return made


class Pictures:
    """The model, the prompts, and how many passes each rule takes for each picture."""

    def __init__(self, model: Any, count: int, seed: int) -> None:
        self.bundle, self.model, self.seed = open_bundle("fashion"), model, seed
        named = [prompt.tokens for prompt in self.bundle.manifest.prompts.values()]
        self.prompts = [named[i % len(named)] for i in range(count)]
        self.length = self.bundle.manifest.length
        self.copying = self.bundle.settings(drafting="copy:14").drafting

    def library(
        self, method: str, slots: int, *, drafting: Drafting, corrections: str = "none", branches: bool = False
    ) -> np.ndarray:
        """Passes of a method of this library."""
        made = generate(
            self.model,
            self.prompts,
            length=self.length,
            seed=self.seed,
            method=method,
            window=slots if branches else min(slots, self.model.max_length),
            drafting=drafting,
            branches=BRANCHES[slots] if branches else 0,
            corrections=None if corrections == "none" else self.bundle.corrector(method, corrections),
        )
        return np.array([trace.nfe for trace in made.traces])

    def pac(self, slots: int, *, width: int, copies: int | None) -> np.ndarray:
        """Passes of the mended SJD-PAC, whose trees are three levels deep."""
        rule = Pac(slots, width, 3, copies)
        return np.array([self._picture(rule, prompt, i) for i, prompt in enumerate(self.prompts)])

    def _picture(self, rule: Pac, prompt: Sequence[int], sequence: int) -> int:
        generator, held = np.random.default_rng([self.seed, sequence]), list[int]()

        def laws_of(committed: Sequence[int], tokens: Sequence[int], parents: Sequence[int]) -> np.ndarray:
            before = [*committed[:-1]]
            cached = next(
                (i for i, pair in enumerate(zip(held, before, strict=False)) if pair[0] != pair[1]),
                min(len(held), len(before)),
            )
            again = before[cached:]
            chain = list(range(-1, len(again)))
            window = np.array([[*again, *tokens]], np.int64)
            tree = np.array([[*chain, *(len(again) + parent for parent in parents[1:])]], np.int64)
            logits = self.model.forward_tree(window, np.array([cached]), tree, range(1))[0, len(again) :].astype(
                np.float64
            )
            leads = next((i for i, parent in enumerate(parents) if parent != i - 1), len(parents))
            held[:] = [*before, *tokens[:leads]]
            laws = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return np.asarray(laws / laws.sum(axis=-1, keepdims=True))

        def choose(law: np.ndarray) -> int:
            sums = np.cumsum(law)
            return int(np.searchsorted(sums, generator.random() * sums[-1], side="right"))

        committed, drafts, passes = tuple(prompt), tuple[Draft, ...](), 0
        total = len(prompt) + self.length
        while len(committed) < total:
            committed, drafts = rule.advance(
                committed, drafts, total, len(prompt), laws_of, choose, self.model.vocab_size
            )
            passes += 1
        return passes


def rules(pictures: Pictures) -> list[tuple[str, str, Callable[[int], np.ndarray]]]:
    """Every rule: its name, where fresh drafts come from, and the passes of all pictures by slots."""
    drafts: tuple[tuple[str, Drafting], ...] = (("uniform", Uniform()), ("row above", pictures.copying))
    chains = (("SJD", "sjd"), ("SCD, Gumbel coupling", "scd-gumbel"), ("SCD, maximal coupling", "scd-maximal"))
    return [
        *(
            (name, fresh, partial(pictures.library, method, drafting=drafting))
            for name, method in chains
            for fresh, drafting in drafts
        ),
        *(
            (f"SJD-PAC mended, {width} wide", fresh, partial(pictures.pac, width=width, copies=copies))
            for width in (4, 3)
            for fresh, copies in (("uniform", None), ("row above", 14))
        ),
        *(
            (
                f"scd-match, fitted{', branches' if branches else ''}",
                "row above",
                partial(
                    pictures.library, "scd-match", drafting=pictures.copying, corrections="fitted", branches=branches
                ),
            )
            for branches in (False, True)
        ),
    ]


def table(model: Any, count: int, seed: int, slots: Sequence[int], only: str, out: TextIO) -> None:
    """Every rule whose name begins with ``only``, at every number of slots."""
    pictures = Pictures(model, count, seed)
    print(
        f"{count} pictures of fashion, seed {seed}, temperature 1; tokens per pass (passes a picture)",
        file=out,
    )
    print(f"{'rule':<30}{'fresh drafts':<13}" + "".join(f"{f'{own} slots':>22}" for own in slots), file=out, flush=True)
    for name, fresh, passes_at in rules(pictures):
        if not name.startswith(only):
            continue
        print(f"{name:<30}{fresh:<13}", end="", file=out, flush=True)
        for own in slots:
            passes = passes_at(own)
            error = passes.std(ddof=1) / len(passes) ** 0.5
            told = f"({passes.mean():.1f} ± {error:.1f})"
            print(f"{pictures.length / passes.mean():>8.2f}{told:>14}", end="", file=out, flush=True)
        print(file=out, flush=True)


def exact_law(rule: Pac, seed: int, vocab_size: int, length: int) -> dict[tuple[int, ...], float]:
    """The law of what ``rule`` makes after the prompt 0 on a random table, by all that can happen in each pass."""
    next_law = random_table(seed, vocab_size)

    def laws_of(committed: Sequence[int], tokens: Sequence[int], parents: Sequence[int]) -> np.ndarray:
        paths = [tuple(committed)]
        for token, parent in list(zip(tokens, parents, strict=True))[1:]:
            paths.append((*paths[parent], token))
        return np.array([next_law(path) for path in paths])

    found: dict[tuple[int, ...], float] = {}
    states: dict[tuple[tuple[int, ...], tuple[Draft, ...]], float] = {((0,), ()): 1.0}
    while states:
        (committed, drafts), chance = states.popitem()
        outcomes = enumerate_paths(
            lambda chooser: rule.advance(
                committed,  # noqa: B023
                drafts,  # noqa: B023
                length + 1,
                1,
                laws_of,
                lambda law: chooser.choose(law.tolist(), str),
                vocab_size,
            ),
            max_paths=1_000_000,
        )
        for state, own in outcomes.items():
            if len(state[0]) == length + 1:
                found[state[0][1:]] = found.get(state[0][1:], 0.0) + chance * float(own)
            else:
                states[state] = states.get(state, 0.0) + chance * float(own)
    return found


def proof(out: TextIO) -> None:
    """Total variation from the chain rule's law, mended and as released."""
    print(
        "total variation from the chain rule's law, by all that can happen; the worst of three random tables", file=out
    )
    worlds = ((3, 2, 2, 4, 4), (4, 2, 2, 4, 3), (4, 3, 2, 5, 3), (3, 2, 3, 7, 4))
    faults: dict[str, dict[str, bool]] = {
        "mended": {},
        "siblings from the residual": {"siblings_from_residual": True},
        "uniform after a full window": {"uniform_after_all": True},
    }
    for title, own in faults.items():
        for vocab_size, width, depth, slots, length in worlds:
            rule = Pac(slots, width, depth, **own)  # type: ignore[arg-type]
            worst = max(
                total_variation(
                    exact_law(rule, seed, vocab_size, length),
                    autoregressive_law(random_table(seed, vocab_size), [0], length),
                )
                for seed in range(3)
            )
            world = f"{vocab_size} tokens, tree {width} wide and {depth} deep, {slots} slots, {length} positions"
            print(f"{title:<30}{world}: {worst:.1e}", file=out, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("table", "proof"))
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--slots", default="32,64,256", help=f"some of {', '.join(map(str, BRANCHES))}")
    parser.add_argument("--only", default="", help="rules whose name begins so")
    parser.add_argument("--out", type=Path, help="write there instead")
    arguments = parser.parse_args()
    out = arguments.out.open("w") if arguments.out else sys.stdout
    if arguments.part == "proof":
        proof(out)
        return
    with open_model("fashion", trees=True) as model:
        if not isinstance(model, Trees):
            raise SystemExit("the bundle fashion has no graph for trees")
        table(
            model,
            arguments.count,
            arguments.seed,
            [int(own) for own in arguments.slots.split(",")],
            arguments.only,
            out,
        )


if __name__ == "__main__":
    main()
