"""Runs of tokens that may not be completed: n-grams that came before, and bad words.

Both look at the last tokens of a slot's context and forbid the tokens that would complete a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count, check_flag, checked_tokens
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.processors.parts import Rule, forbid, tokens_of
from coupled_sampling.sampling import Array, Integers

__all__ = ["BadWords", "NoRepeatNGram"]


@dataclass(frozen=True)
class NoRepeatNGram(Rule):
    """No run of ``ngram_size`` tokens comes twice: ``no_repeat_ngram_size`` of transformers.

    A token is forbidden if with the ``ngram_size - 1`` tokens before it, it would be a run that the context holds already.

    Parameters
    ----------
    ngram_size
        >= 1; 1 forbids every token that came before.
    count_prompt
        Whether the context begins with the prompt, which it does in transformers, or behind it.

    Notes
    -----
    A small vocabulary can run out of runs: a sequence that may continue by no token ends with an error.

    Examples
    --------
    After 0 1 0, a 1 would make the run 0 1 come twice:

    >>> import numpy as np
    >>> from coupled_sampling.processors import NoRepeatNGram
    >>> tokens = np.array([0, 1, 0])
    >>> NoRepeatNGram(2).begin(tokens[:1])(np.zeros((1, 3)), tokens, np.array([3]))
    array([[  0., -inf,   0.]])
    """

    ngram_size: int
    count_prompt: bool = True

    def __post_init__(self) -> None:
        check_count("ngram_size", self.ngram_size)
        check_flag("count_prompt", self.count_prompt)

    def _processed(self, end: int, logits: Array, tokens: Integers, positions: Integers) -> Array:
        context = tokens[0 if self.count_prompt else end :]
        ends = positions - (len(tokens) - len(context))  # of each slot's context
        before = self.ngram_size - 1
        mask = np.zeros((len(positions), logits.shape[-1]), bool)
        if ends.max() <= before:  # no context holds a run yet
            return forbid(logits, mask)
        lasts = np.arange(before, ends.max())  # where a run may end
        found = lasts < ends[:, None]
        for offset in range(1, before + 1):
            # The token that stands as far before the end of each run as this one before the slot. A slot without so many tokens
            # before it has no run in its context either: what is looked up for it does not matter.
            found &= context[lasts - offset] == context[np.maximum(ends - offset, 0)][:, None]
        slots, runs = np.nonzero(found)
        mask[slots, context[lasts[runs]]] = True
        return forbid(logits, mask)


@dataclass(frozen=True)
class BadWords(Rule):
    """Sequences of tokens that are not generated: ``bad_words_ids`` of transformers, ``bad_words`` of vLLM.

    The last token of a word is forbidden where the tokens before it in the word are the last ones of the context.

    Parameters
    ----------
    words
        Sequences of at least one token.
    count_prompt
        Whether a word may begin in the prompt, as in transformers, or only among generated tokens, as in vLLM.

    Notes
    -----
    transformers leaves out a word whose beginning is the whole context; here, and in vLLM, it counts like any other.

    Examples
    --------
    Neither token 2, nor 1 after 0:

    >>> import numpy as np
    >>> from coupled_sampling.processors import BadWords
    >>> tokens = np.array([1, 0])
    >>> BadWords([[2], [0, 1]]).begin(tokens[:1])(np.zeros((2, 3)), tokens, np.array([1, 2])).tolist()
    [[0.0, 0.0, -inf], [0.0, -inf, -inf]]
    """

    words: Sequence[Sequence[int]]
    count_prompt: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.words, str) or not (isinstance(self.words, Sequence) or np.ndim(self.words)):
            raise InvalidArgument(f"words is {self.words!r}, expected a sequence of token sequences")
        words = tuple(tokens_of(f"words[{i}]", word) for i, word in enumerate(self.words))
        object.__setattr__(self, "words", words)
        check_flag("count_prompt", self.count_prompt)

    @cached_property
    def _by_length(self) -> list[Integers]:
        """Words (k, length), those of one length together, so that they are looked for at once."""
        lengths = sorted({len(word) for word in self.words})
        return [np.array([word for word in self.words if len(word) == length]) for length in lengths]

    def _processed(self, end: int, logits: Array, tokens: Integers, positions: Integers) -> Array:
        if any((words >= logits.shape[-1]).any() for words in self._by_length):
            for i, word in enumerate(self.words):
                checked_tokens(f"BadWords.words[{i}]", word, logits.shape[-1])
        mask = np.zeros((len(positions), logits.shape[-1]), bool)
        for words in self._by_length:
            slots, found = np.nonzero(_may_complete(words, tokens, 0 if self.count_prompt else end, positions))
            mask[slots, words[found, -1]] = True
        return forbid(logits, mask)


def _may_complete(words: Integers, tokens: Integers, first: int, positions: Integers) -> NDArray[np.bool_]:
    """Bool (n, k): whether all but the last token of each of ``words`` (k, length) stand right before each slot."""
    before = words.shape[1] - 1
    enough = positions - before >= first
    places = np.where(enough, positions - before, 0)[:, None] + np.arange(before)
    beginnings = tokens[np.minimum(places, len(tokens) - 1)]
    same = (beginnings[:, None, :] == words[None, :, :-1]).all(axis=-1)
    possible: NDArray[np.bool_] = enough[:, None] & same
    return possible
