"""Which tokens may stand where: biases, allowed and forced tokens, and stop tokens that must wait.

The *index* of a generated token counts from the prompt's end: the first token that is generated has index 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from coupled_sampling.arguments import check_count, check_number, checked_tokens
from coupled_sampling.arrays import filled, from_host, namespace
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.processors.parts import Rule, by_index, forbid, token_mask, tokens_of
from coupled_sampling.sampling import Array, Integers

__all__ = ["AllowedTokens", "ForcedTokens", "LogitBias", "MinNewTokens"]

Allowed: TypeAlias = Sequence[int] | Mapping[int, Sequence[int]] | Callable[[int], Sequence[int] | None]
"""Tokens for all indices, by index, or a function of the index."""


@dataclass(frozen=True)
class LogitBias(Rule):
    """A number is added to the logits of some tokens: ``logit_bias`` of OpenAI and vLLM.

    Parameters
    ----------
    bias
        From tokens to what is added: finite numbers, or -inf to forbid. OpenAI's API takes -100 to 100; here nothing is cut off.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.processors import LogitBias
    >>> LogitBias({1: 2.5, 2: -np.inf}).begin(np.array([0]))(np.zeros((1, 3)), np.array([0]), np.array([1]))
    array([[ 0. ,  2.5, -inf]])
    """

    bias: Mapping[int, float]

    def __post_init__(self) -> None:
        if not isinstance(self.bias, Mapping):
            raise InvalidArgument(f"bias is {self.bias!r}, expected a mapping from tokens to numbers")
        tokens = tokens_of("bias", list(self.bias), least=0)
        what = "a finite number, or -inf to forbid the token"
        for token, value in self.bias.items():
            if not (isinstance(value, float) and value == -np.inf):
                check_number(f"bias[{token}]", value, what)
        values = [float(value) for value in self.bias.values()]
        object.__setattr__(self, "bias", dict(zip(tokens, values, strict=True)))

    def _processed(self, end: int, logits: Array, tokens: Integers, positions: Integers) -> Array:
        biased = checked_tokens("LogitBias.bias", list(self.bias), logits.shape[-1], least=0)
        added = np.zeros(logits.shape[-1])
        added[biased] = list(self.bias.values())
        # Apart, so that an infinite logit and an infinite bias never meet.
        forbidden = added == -np.inf
        changed = forbid(logits, forbidden)
        added = np.where(forbidden, 0.0, added)
        return changed + from_host(added, logits, logits.dtype) if added.any() else changed


@dataclass(frozen=True)
class AllowedTokens(Rule):
    """Only some tokens are allowed, the same ones everywhere or others for every generated token.

    The first form is ``allowed_token_ids`` of vLLM. For what is allowed by what came before, write a processor, or use a grammar.

    Parameters
    ----------
    allowed
        Tokens that are allowed everywhere; or a mapping from the index of a generated token to those allowed there, where indices
        it does not have are free; or a function of the index that gives tokens, or None where all are. The function must give the
        same whenever it is asked.

    Examples
    --------
    Even tokens first, odd ones next, and so on:

    >>> import numpy as np
    >>> from coupled_sampling.processors import AllowedTokens
    >>> begun = AllowedTokens(lambda index: [0, 2] if index % 2 == 0 else [1]).begin(np.array([0]))
    >>> begun(np.zeros((2, 3)), np.array([0, 2]), np.array([1, 2])).tolist()
    [[0.0, -inf, 0.0], [-inf, 0.0, -inf]]
    """

    allowed: Allowed

    def __post_init__(self) -> None:
        if isinstance(self.allowed, Mapping):
            by = by_index("allowed", self.allowed)
            given: object = {index: tokens_of(f"allowed[{index}]", tokens) for index, tokens in by.items()}
        else:
            given = self.allowed if callable(self.allowed) else tokens_of("allowed", self.allowed)
        object.__setattr__(self, "allowed", given)

    def _at(self, index: int) -> tuple[str, Sequence[int] | None]:
        """What is allowed at ``index``, None for everything, and how to call it in a message."""
        if isinstance(self.allowed, Mapping):
            return f"AllowedTokens.allowed[{index}]", self.allowed.get(index)
        if not callable(self.allowed):
            return "AllowedTokens.allowed", self.allowed
        name, found = f"AllowedTokens.allowed({index})", self.allowed(index)
        return name, None if found is None else tokens_of(name, found)

    def _processed(self, end: int, logits: Array, tokens: Integers, positions: Integers) -> Array:
        mask = np.zeros((len(positions), logits.shape[-1]), bool)
        for slot, index in enumerate((positions - end).tolist()):
            name, allowed = self._at(index)
            if allowed is not None:
                mask[slot] = ~token_mask(name, allowed, logits.shape[-1])
        return forbid(logits, mask)


@dataclass(frozen=True)
class MinNewTokens(Rule):
    """Stop tokens are forbidden until enough tokens are generated: ``min_new_tokens`` of transformers, ``min_tokens`` of vLLM.

    Parameters
    ----------
    min_new_tokens
        How many tokens come at least before a stop token, >= 0; tokens of the prompt do not count.
    stop
        The stop tokens; give the same to the request.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.processors import MinNewTokens
    >>> begun = MinNewTokens(1, stop=[2]).begin(np.array([0]))
    >>> begun(np.zeros((2, 3)), np.array([0, 1]), np.array([1, 2])).tolist()
    [[0.0, 0.0, -inf], [0.0, 0.0, 0.0]]
    """

    min_new_tokens: int
    stop: Sequence[int]

    def __post_init__(self) -> None:
        check_count("min_new_tokens", self.min_new_tokens, 0)
        object.__setattr__(self, "stop", tokens_of("stop", self.stop))

    def _processed(self, end: int, logits: Array, tokens: Integers, positions: Integers) -> Array:
        early = positions - end < self.min_new_tokens
        return forbid(logits, early[:, None] & token_mask("MinNewTokens.stop", self.stop, logits.shape[-1]))


@dataclass(frozen=True)
class ForcedTokens(Rule):
    """Some generated tokens are given beforehand, whatever the model says: the idea of ``forced_bos_token_id`` of transformers.

    The forced token's logit becomes 0 and every other one -inf, so that it comes even where the model or a processor before this
    one forbids it.

    Parameters
    ----------
    tokens
        A mapping from the index of a generated token to that token; or a sequence, which the output then begins with.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.processors import ForcedTokens
    >>> begun = ForcedTokens({1: 2}).begin(np.array([0]))
    >>> begun(np.ones((2, 3)), np.array([0, 0]), np.array([1, 2])).tolist()
    [[1.0, 1.0, 1.0], [-inf, -inf, 0.0]]
    """

    tokens: Mapping[int, int] | Sequence[int]

    def __post_init__(self) -> None:
        given = self.tokens
        by = by_index("tokens", given) if isinstance(given, Mapping) else dict(enumerate(tokens_of("tokens", given)))
        object.__setattr__(
            self, "tokens", {index: check_count(f"tokens[{index}]", token, 0) for index, token in by.items()}
        )

    def _processed(self, end: int, logits: Array, tokens: Integers, positions: Integers) -> Array:
        assert isinstance(self.tokens, Mapping)
        vocab_size = logits.shape[-1]
        forced = np.array([self.tokens.get(index, -1) for index in (positions - end).tolist()])
        beyond = np.flatnonzero(forced >= vocab_size)
        if beyond.size:
            index = int(positions[beyond[0]] - end)
            raise InvalidArgument(
                f"ForcedTokens.tokens[{index}] is {self.tokens[index]}, expected in [0, {vocab_size})"
            )
        xp = namespace(logits)
        one = from_host(forced[:, None] == np.arange(vocab_size), logits)
        alone = xp.where(one, xp.zeros_like(logits), filled((), -np.inf, logits))
        return xp.where(from_host(forced[:, None] >= 0, logits), alone, logits)
