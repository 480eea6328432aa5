"""Coupled decoding in one jitted loop, beside ``ar`` in another: passes, seconds, and whether the tokens are the library's.

    python examples/jax/run.py
    python examples/jax/run.py --noise device --rows 5
    python examples/jax/run.py --random-weights 1b --length 128

Runs on whatever device JAX finds. The exit code is 1 if logits are not the bundle's, or if a decision differs from the library's by
more than rounding can explain.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from check import TOLERANCE, first_difference, logits_apart
from decode import State, decode, decode_ar
from model import SHAPES, Params, Shape, random_params, read_bundle
from randomness import Randomness, keys, tables

from coupled_sampling import METHODS, LogitsProvider, Method, Request, Sampling, open_bundle
from coupled_sampling.drafting import Copy
from coupled_sampling.methods import find_method


@dataclass(frozen=True)
class Job:
    """What is to be decoded: one token per prompt, ``length`` more each."""

    shape: Shape
    params: Params
    prompts: Sequence[int]
    length: int
    window: int
    lag: int
    fill: int
    sampling: Sampling
    seed: int
    rows: int
    noise: str
    repeats: int

    def batches(self) -> list[range]:
        """Prompts that are decoded at the same time; prompt i has the noise of sequence i, as in `coupled_sampling.generate`."""
        return [range(i, min(i + self.rows, len(self.prompts))) for i in range(0, len(self.prompts), self.rows)]

    def randomness(self, method: Method, batch: range) -> Randomness:
        if self.noise == "device":
            return keys(self.shape.vocab_size, rows=len(batch), seed=self.seed, first_row=batch.start)
        make = partial(tables, method, self.shape.vocab_size, length=self.length, seed=self.seed)
        return make(rows=len(batch), first_row=batch.start)

    def arguments(self, method: Method) -> list[tuple[Params, jax.Array, Randomness]]:
        """What a loop is called with for each batch."""
        prompts = [jnp.asarray([self.prompts[i] for i in batch], jnp.int32) for batch in self.batches()]
        noise = [self.randomness(method, batch) for batch in self.batches()]
        return [(self.params, *both) for both in zip(prompts, noise, strict=True)]


@dataclass
class Run:
    """A jitted loop over all batches, and what it took."""

    method: Method
    loop: Callable[..., object]
    batches: list[tuple[Params, jax.Array, Randomness]]
    found: list[object] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each run over all batches, the first not among them."""

    def once(self) -> float:
        begin = time.perf_counter()
        self.found = [jax.block_until_ready(self.loop(*batch)) for batch in self.batches]
        return time.perf_counter() - begin


def runs_of(job: Job, methods: Sequence[Method]) -> list[Run]:
    """``ar`` and the ``methods``, compiled, then timed in turns: so that other work on the machine disturbs all alike."""
    common = {"shape": job.shape, "length": job.length, "sampling": job.sampling}
    runs = [Run(METHODS["ar"], partial(decode_ar, **common), job.arguments(METHODS["ar"]))]
    for method in methods:
        loop = partial(decode, method=method, window=job.window, lag=job.lag, fill=job.fill, **common)
        runs.append(Run(method, loop, job.arguments(method)))
    for run in runs:
        run.once()
    for _ in range(job.repeats):
        for run in runs:
            run.seconds.append(run.once())
    return runs


def tokens_of(job: Job, decoded: list[State]) -> np.ndarray:
    return np.concatenate([np.asarray(state.line)[:, 1 : job.length + 1] for state in decoded])


def report(job: Job, methods: Sequence[Method], provider: LogitsProvider | None) -> bool:
    """Decode with ``ar`` and each method, and print what it took; whether all is as it must be."""
    runs, fine = runs_of(job, methods), True
    ar_tokens, ar_seconds = np.concatenate(runs[0].found), float(np.median(runs[0].seconds))
    print(f"{'method':<18}{'passes':>8}{'tokens/pass':>13}{'seconds':>9}{'ms/pass':>9}{'speed':>8}")
    for run in runs:
        drafts, seconds = run.method.drafts, float(np.median(run.seconds))
        passes = sum(int(state.passes) for state in run.found) if drafts else job.length * len(job.batches())
        per_pass, speed = len(job.prompts) * job.length / passes, ar_seconds / seconds
        print(
            f"{run.method.name:<18}{passes:>8}{per_pass:>13.2f}{seconds:>9.2f}{1e3 * seconds / passes:>9.2f}{speed:>7.2f}x"
        )
        if run.method.acceptance == "match":
            same = int((tokens_of(job, run.found) == ar_tokens).all(axis=1).sum())
            print(f"    the tokens are ar's in {same} of {len(job.prompts)}")
        if drafts and provider is not None and job.noise == "tables":
            fine &= as_the_library(job, run.method, run.found, provider)
    return fine


def as_the_library(job: Job, method: Method, decoded: list[State], provider: LogitsProvider) -> bool:
    """Compare every decision of every pass; print the first difference of each prompt. Whether all differences are ties."""
    differences = []
    for state, batch in zip(decoded, job.batches(), strict=True):
        for row, sequence in enumerate(batch):
            request = Request([job.prompts[sequence]], job.length, job.seed, sequence, sampling=job.sampling)
            found = first_difference(state, row, provider, method, request, job.window, Copy(job.lag, job.fill))
            differences += [] if found is None else [(sequence, found)]
    print(f"    every decision is the library's in {len(job.prompts) - len(differences)} of {len(job.prompts)}")
    for sequence, found in differences:
        print(f"    prompt {sequence}: {'DIFFERENT' if found.disagreements else 'a float tie'}: {found.examples[0]}")
    return not any(found.disagreements for _, found in differences)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="scd-maximal,scd-gumbel,scd-match", help="of coupled_sampling.METHODS")
    parser.add_argument("--count", type=int, default=10, help="pictures, or sequences (default 10)")
    parser.add_argument("--rows", type=int, default=1, help="how many at the same time (default 1)")
    parser.add_argument("--window", type=int, default=16, help="slots per pass (default 16)")
    parser.add_argument("--lag", type=int, help="guesses copy the token so far back (default: one row of the picture)")
    parser.add_argument("--length", type=int, help="tokens of each (default: a picture, or 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--noise", choices=("tables", "device"), default="tables", help="the library's, or jax.random's"
    )
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many runs is printed (default 3)")
    parser.add_argument("--random-weights", choices=sorted(SHAPES), help="a model of this size, for timing only")
    arguments = parser.parse_args()
    methods = [find_method(name) for name in arguments.methods.split(",") if name]
    if not all(method.drafts for method in methods):
        parser.error("--methods: ar is run anyway, in a loop of its own; name methods that draft")
    print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    provider, fine = None, True
    if arguments.random_weights:
        shape = SHAPES[arguments.random_weights]
        params, length, lag, fill = random_params(shape), arguments.length or 128, arguments.lag or 1, 0
        prompts, sampling = list(range(arguments.count)), Sampling()
        print(f"random weights: {shape.parameters / 1e9:.2f} billion parameters, {shape.dtype}")
    else:
        from coupled_sampling.backends import open_model

        bundle = open_bundle("fashion")
        manifest, provider = bundle.manifest, open_model(bundle)
        shape, params = read_bundle(bundle.folder)
        named = [prompt.tokens[0] for prompt in manifest.prompts.values()]
        prompts = [named[i % len(named)] for i in range(arguments.count)]
        length, lag, sampling = (
            arguments.length or manifest.length,
            arguments.lag or manifest.grid.columns,
            manifest.defaults.sampling(),
        )
        fill = manifest.generated_tokens.first if manifest.fill_token is None else manifest.fill_token
        tokens = np.random.default_rng(0).integers(0, 256, (1, shape.positions))
        apart = logits_apart(params, shape, provider, tokens, arguments.window)
        fine = apart < TOLERANCE
        print(f"logits: at most {apart:.1e} from the bundle's{'' if fine else ', which is too far'}")
    job = Job(
        shape, params, prompts, length, arguments.window, lag, fill, sampling, arguments.seed, arguments.rows,
        arguments.noise, arguments.repeats,
    )  # fmt: skip
    return 0 if report(job, methods, provider) and fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
