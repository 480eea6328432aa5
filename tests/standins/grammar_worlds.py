"""Small worlds of grammars: a handful of tokens, the texts that they may spell, and oracles that know these by heart."""

import numpy as np
import pytest

from coupled_sampling import METHODS, Sampling
from coupled_sampling.testing import TableProvider, shipped_decoder

tokenizers = pytest.importorskip("tokenizers", reason="grammars need the extra [text]")

END = "</s>"
SPELLED = ["a", "b", "ab", END]
"""The tokens of the small world; two of them spell what one does."""
STOP = SPELLED.index(END)
WORDS = ("a", "ab", "abab", "bab", "bb")
JACOBI = [name for name in METHODS if name != "ar"]


def tokenizer_of(spelled):
    """A byte-level tokenizer whose tokens are spelled so; those in angle brackets are special."""
    vocabulary = {text: token for token, text in enumerate(spelled) if not text.startswith("<")}
    special = [text for text in spelled if text.startswith("<")]
    letters = sorted(set("".join(vocabulary)))
    # Special tokens are numbered behind the others, so they must stand behind them.
    assert spelled[len(vocabulary) :] == special
    assert set(letters) <= set(vocabulary)
    merges = [(text[:1], text[1:]) for text in vocabulary if len(text) == 2]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(special)
    return made


def spell(tokens, spelled=SPELLED):
    return "".join(spelled[token] for token in tokens if spelled[token] != END)


def words_allow(generated):
    """Which tokens may follow in a text of WORDS; by the list alone."""
    if STOP in generated:
        return np.arange(4) == STOP
    text = spell(generated)
    continues = [any(word.startswith(text + more) for word in WORDS) for more in SPELLED[:STOP]]
    return np.array([*continues, text in WORDS])


def restricted(next_law, prompt_length=1):
    """The law of the next token under WORDS."""

    def law(context):
        kept = next_law(context) * words_allow(context[prompt_length:])
        return kept / kept.sum()

    return law


def under(grammar, next_law, **settings):
    """The shipped decoder of a model that knows nothing of the grammar."""
    decode = shipped_decoder(sampling=Sampling(processors=(grammar,)), **settings)

    def run(model, noise, prompts, lengths):
        rows = model.batch_size
        return decode(TableProvider(next_law, 4, rows, model.max_length), noise, prompts, lengths)

    return run


SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"enum": [True, None, 7]}, "minItems": 1, "maxItems": 2},
        "e": {"type": "string", "pattern": "^[ae]{0,2}$"},
    },
    "required": ["a", "e"],
    "additionalProperties": False,
}
JSON = [*'{}[]":,0127aelnrstu', '":', '{"', "tr", "ae", "<pad>", END]


class Babble:
    """A model of flat laws with a little of everything, a pure function of the last three tokens."""

    def __init__(self, vocab_size, batch_size=3):
        self.vocab_size, self.batch_size, self.max_length = vocab_size, batch_size, 96
        self._held = np.zeros((batch_size, 96), np.int64)

    def forward(self, tokens, start):
        logits = np.empty((*tokens.shape, self.vocab_size))
        for b, j in np.ndindex(tokens.shape):
            self._held[b, start[b] + j] = tokens[b, j]
            last = self._held[b, max(0, start[b] + j - 2) : start[b] + j + 1]
            logits[b, j] = np.random.default_rng([7, *last.tolist()]).normal(size=self.vocab_size)
        return logits
