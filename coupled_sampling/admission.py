"""What a decoder asks of a request before anything runs: `Preparation` refuses it by name, or makes rows of it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from coupled_sampling.arguments import checked_tokens, is_whole
from coupled_sampling.arrays import read_only
from coupled_sampling.contracts import CoupledStep, GivesLaws, PointMassesOnly
from coupled_sampling.draft_contracts import AsksForLaws, CarriesLaws, Drafting, SelectiveDrafting
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.requests import Request
from coupled_sampling.rows import Row
from coupled_sampling.sampling import RowInfo, Sampling

__all__ = ["Preparation"]


@dataclass(frozen=True)
class Preparation:
    """Checks requests against what will decode them.

    Parameters
    ----------
    step
        The step, which knows what it takes.
    drafting
        The rule for fresh drafts.
    """

    step: CoupledStep
    drafting: Drafting

    @property
    def refuses_laws(self) -> str | None:
        """Why the step cannot test drafts that carry laws; None if it can."""
        return self.step.refuses_laws if isinstance(self.step, PointMassesOnly) else None

    @cached_property
    def laws_back(self) -> int:
        """How many positions back the drafting rule wants the laws of committed tokens.

        Raises
        ------
        InvalidArgument
            What it says is no number of positions.
        """
        wanted = self.drafting.laws_back if isinstance(self.drafting, AsksForLaws) else 0
        if not is_whole(wanted) or wanted < 0:
            raise InvalidArgument(f"drafting {self.drafting!r}: laws_back is {wanted!r}, expected an integer >= 0")
        return int(wanted)

    def rows(self, request: Request) -> list[Row]:
        """A row for each sample of ``request``; the decoder gives them their handles.

        Raises
        ------
        InvalidArgument
            It cannot be decoded; the message names the argument.
        """
        if not isinstance(request, Request):
            raise InvalidArgument(f"request is a {type(request).__name__}, expected a Request")
        vocab_size = self.step.vocab_size
        prompt = checked_tokens("prompt", request.prompt, vocab_size)
        generated = checked_tokens("generated", request.generated, vocab_size, least=0)
        stop = frozenset(checked_tokens("stop", request.stop, vocab_size, least=0).tolist())
        sequences = [
            checked_tokens(f"stop_sequences[{i}]", run, vocab_size) for i, run in enumerate(request.stop_sequences)
        ]
        self._check_length(len(prompt), request.length)
        # A provider is told the request, and all samples share these.
        request = replace(request, prompt=read_only(prompt), generated=read_only(generated))
        refusals = [self.step.takes(request)]
        if isinstance(self.drafting, SelectiveDrafting):
            refusals.append(self.drafting.takes(request, vocab_size, self.step.batch_size))
        if isinstance(self.drafting, CarriesLaws) and self.drafting.carries_laws and self.refuses_laws is not None:
            refusals.append(f"cannot be drafted for: the drafts carry laws, and {self.refuses_laws}")
        if self.laws_back and not (isinstance(self.step, GivesLaws) and self.step.gives_laws):
            refusals.append(
                f"cannot be drafted for: drafting {self.drafting!r} asks for the laws of committed tokens, which a "
                f"{type(self.step).__name__} does not give; use HostStep for them"
            )
        for reason in refusals:
            if reason is not None:
                raise InvalidArgument(f"request {reason}")
        known = np.concatenate([prompt, generated])
        tokens = np.zeros(len(prompt) + request.length, np.int64)
        tokens[: len(known)] = known
        first = secrets.randbits(63) if request.sequence is None else int(request.sequence)
        rows: list[Row] = []
        for k in range(request.samples):
            own = replace(request, sequence=first + k, samples=1)
            begun = _begun(request)
            info = RowInfo(
                int(request.seed), first + k, begun, request.logprobs, request.model_logprobs, self.laws_back > 0
            )
            row = Row(-1, own, tokens.copy(), info, len(known), stop, sequences, laws_back=self.laws_back)
            row.leader = rows[0] if rows else None
            rows.append(row)
        return rows

    def _check_length(self, prompt: int, length: int) -> None:
        last_input, most = prompt + length - 1, self.step.max_length
        if last_input > most:
            fewer = f" or ask for at most {most + 1 - prompt} tokens" if prompt <= most else ""
            raise InvalidArgument(
                f"a prompt of {prompt} tokens and length {length} need {last_input} cached positions, the model holds {most}; "
                f"shorten the prompt{fewer}"
            )


def _begun(request: Request) -> Sampling:
    """The sampling of one sequence, whose processors know its prompt."""
    try:
        return request.sampling.begin(np.asarray(request.prompt))
    except CoupledSamplingError:
        raise
    except Exception as error:  # a stranger's code: anything may come
        raise InvalidArgument(f"processors: begin(prompt) raised {type(error).__name__}: {error}") from error
