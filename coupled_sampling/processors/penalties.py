"""Penalties: tokens that came before get other logits.

With ``c[v]`` how often token v stands in a slot's context, and ``x[v]`` its logit:

==================== ================================================== =====================================================
processor            new logit                                          source
==================== ================================================== =====================================================
repetition penalty   x / r if x > 0, else x * r, where c > 0            CTRL, arXiv 1909.05858; transformers' and vLLM's form
frequency penalty    x - f * c                                          OpenAI's API, "frequency and presence penalties"
presence penalty     x - p where c > 0                                  the same
==================== ================================================== =====================================================

Whether the prompt is part of that context differs: the repetition penalty counts it, the other two do not. Each has a field for it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from coupled_sampling.arguments import check_flag, check_number
from coupled_sampling.arrays import namespace
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.processors.parts import Rule, change_seen, counts_before
from coupled_sampling.sampling import Array, Integers

__all__ = ["FrequencyPenalty", "PresencePenalty", "RepetitionPenalty"]


@dataclass(frozen=True)
class _Penalty(Rule):
    """A penalty on tokens that came before."""

    penalty: float
    count_prompt: bool = False

    def __post_init__(self) -> None:
        check_number("penalty", self.penalty)
        check_flag("count_prompt", self.count_prompt)

    def _processed(self, end: int, logits: Array, tokens: Integers, positions: Integers) -> Array:
        return change_seen(logits, *counts_before(tokens, 0 if self.count_prompt else end, positions), self._changed)

    @abstractmethod
    def _changed(self, logits: Array, counts: Array) -> Array:
        """``logits`` of tokens that came ``counts`` times before; it leaves them alone where counts are 0."""


@dataclass(frozen=True)
class RepetitionPenalty(_Penalty):
    """Logits of tokens that came before are divided by ``penalty`` if they are positive and multiplied by it otherwise.

    It is ``repetition_penalty`` of transformers (``RepetitionPenaltyLogitsProcessor``) and of vLLM.

    Parameters
    ----------
    penalty
        > 0. Above 1 repetition is penalised, below 1 it is rewarded.
    count_prompt
        Whether tokens of the prompt came before; they do in transformers and vLLM.

    Examples
    --------
    Token 1 is the prompt, token 0 was generated:

    >>> import numpy as np
    >>> from coupled_sampling.processors import RepetitionPenalty
    >>> logits, tokens, positions = np.array([[3.0, -1.0, 0.5]]), np.array([1, 0]), np.array([2])
    >>> RepetitionPenalty(2.0).begin(tokens[:1])(logits, tokens, positions)
    array([[ 1.5, -2. ,  0.5]])
    >>> RepetitionPenalty(2.0, count_prompt=False).begin(tokens[:1])(logits, tokens, positions)
    array([[ 1.5, -1. ,  0.5]])
    """

    count_prompt: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty <= 0:
            raise InvalidArgument(f"penalty is {self.penalty}, expected a number > 0; 1 changes nothing")

    def _changed(self, logits: Array, counts: Array) -> Array:
        where, penalty = namespace(logits).where, float(self.penalty)
        return where(counts > 0, where(logits > 0, logits / penalty, logits * penalty), logits)


@dataclass(frozen=True)
class FrequencyPenalty(_Penalty):
    """``penalty`` is taken from a token's logit for every time that it came before: ``frequency_penalty`` of OpenAI and vLLM.

    Parameters
    ----------
    penalty
        Any finite number; OpenAI's API takes -2 to 2. Below 0 repetition is rewarded.
    count_prompt
        Whether tokens of the prompt came before. By OpenAI's definition only tokens that were sampled do, and in vLLM, too.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.processors import FrequencyPenalty
    >>> tokens = np.array([1, 0, 0])
    >>> FrequencyPenalty(0.5).begin(tokens[:1])(np.zeros((2, 2)), tokens, np.array([2, 3])).tolist()
    [[-0.5, 0.0], [-1.0, 0.0]]
    """

    def _changed(self, logits: Array, counts: Array) -> Array:
        return logits - counts * float(self.penalty)


@dataclass(frozen=True)
class PresencePenalty(_Penalty):
    """``penalty`` is taken once from the logit of a token that came before: ``presence_penalty`` of OpenAI and vLLM.

    Parameters
    ----------
    penalty
        Any finite number; OpenAI's API takes -2 to 2. Below 0 repetition is rewarded.
    count_prompt
        As for `FrequencyPenalty`.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.processors import PresencePenalty
    >>> tokens = np.array([1, 0, 0])
    >>> PresencePenalty(0.5).begin(tokens[:1])(np.zeros((2, 2)), tokens, np.array([2, 3])).tolist()
    [[-0.5, 0.0], [-0.5, 0.0]]
    """

    def _changed(self, logits: Array, counts: Array) -> Array:
        once = namespace(logits).astype(counts > 0, logits.dtype)
        return logits - once * float(self.penalty)
