"""SentencePiece's tokenizers, rebuilt with the ``tokenizers`` library: Llama 2, Mistral, TinyLlama and their kin.

Such a tokenizer is a list of *pieces* with a score each. A text is taken as it is, with ``▁`` for every space and one before it;
its characters are merged, always the two neighbours that make the piece of the highest score, the leftmost where there are
several; characters that are no piece become pieces for their bytes. Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226.

The library knows merges and no scores: a pair of pieces that makes a third is a merge, and merges are ordered by the score of what
they make. That is the same as long as no two pieces have the same score, runs of one letter apart; other files are refused.

Markers in a text, such as ``<s>``, are the pieces they look like, and what follows one begins as a text does. There llama.cpp and
the files of the models' makers agree; SentencePiece itself sees letters in a marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coupled_sampling.arguments import shown
from coupled_sampling.bundles.text import require_tokenizers
from coupled_sampling.export.checkpoints.contract import CheckpointError

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "USER_DEFINED", "Pieces", "add_markers", "piece_tokenizer"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces, SentencePiece's and GGUF's alike. Markers and words added later are found in a text before it is cut."""

_LONGEST = 1024
"""Letters of a piece that is made by merges; SentencePiece's own limit is 16 unless it is raised."""

_MOST_LETTERS = 1 << 23
"""Letters of all pieces together; Gemma's 256,000 have two million."""

_INSTEAD = "give the tokenizer.json of the model's folder with --tokenizer, or do without by --tokenizer none"


@dataclass(frozen=True)
class Pieces:
    """What a file says about its tokenizer.

    Parameters
    ----------
    source
        Where it is said, for messages.
    texts, scores, kinds
        Of every piece, in the order of their numbers.
    space_before
        Whether a text gets a space before it.
    begin, end
        Numbers of the pieces that are put before and behind a text; None for none.
    squeezes
        Whether several spaces count as one, and those around a text as none.
    """

    source: str
    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    space_before: bool = True
    begin: int | None = None
    end: int | None = None
    squeezes: bool = False

    def __post_init__(self) -> None:
        count = len(self.texts)
        if not count or len(self.scores) != count or len(self.kinds) != count or len(set(self.texts)) != count:
            raise CheckpointError(
                f"{self.source} has {count} pieces, {len(set(self.texts))} of them different, {len(self.scores)} scores and "
                f"{len(self.kinds)} types, expected as many of each; {_INSTEAD}"
            )


def piece_tokenizer(pieces: Pieces) -> Any:
    """A ``tokenizers.Tokenizer`` that cuts texts as SentencePiece does with ``pieces``.

    Raises
    ------
    CheckpointError
        The scores are no order of merges.
    MissingDependency
        ``tokenizers`` is not installed.

    Examples
    --------
    >>> from coupled_sampling.export.checkpoints.pieces import Pieces, piece_tokenizer
    >>> pieces = Pieces("a model", ["<unk>", "▁", "a", "b", "ab", "▁ab"], [0, -3, -4, -5, 0, -1], [2, 1, 1, 1, 1, 1])
    >>> tokenizer = piece_tokenizer(pieces)
    >>> tokenizer.encode("ab abb").tokens, tokenizer.decode([5, 5, 3])
    (['▁ab', '▁ab', 'b'], 'ab abb')
    """
    tokenizers = require_tokenizers()
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    # Words added later are found before spaces are written as letters.
    texts = [
        text.replace("▁", " ") if kind == USER_DEFINED else text
        for text, kind in zip(pieces.texts, pieces.kinds, strict=True)
    ]
    unknown = [text for text, kind in zip(texts, pieces.kinds, strict=True) if kind == UNKNOWN]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {text: i for i, text in enumerate(texts)},
            _merges(pieces),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,  # several unknown characters in a row are one unknown piece
            byte_fallback=BYTE in pieces.kinds,
        )
    )
    rules: list[Any] = []
    if pieces.squeezes:
        # Behind a text the letter that stands for a space goes, too, as it does there.
        patterns = {r"\A +": "", r"[ ▁]+\z": "", " {2,}": " "}
        rules += [normalizers.Replace(tokenizers.Regex(pattern), text) for pattern, text in patterns.items()]
    rules += [normalizers.Prepend("▁")] if pieces.space_before else []
    tokenizer.normalizer = normalizers.Sequence([*rules, normalizers.Replace(" ", "▁")])
    first = [decoders.Strip(" ", 1, 0)] if pieces.space_before else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    )
    add_markers(tokenizer, texts, pieces.kinds, pieces.begin, pieces.end)
    return tokenizer


def add_markers(
    tokenizer: Any, texts: Sequence[str], kinds: Sequence[int], begin: int | None = None, end: int | None = None
) -> None:
    """Have ``tokenizer`` find markers in a text, and put those before and behind it that belong there.

    Parameters
    ----------
    texts, kinds, begin, end
        As those of `Pieces`.
    """
    tokenizers = require_tokenizers()

    def added(wanted: tuple[int, ...], *, special: bool) -> list[Any]:
        chosen = [text for text, kind in zip(texts, kinds, strict=False) if kind in wanted]
        return [tokenizers.AddedToken(text, normalized=False, special=special) for text in chosen]

    tokenizer.add_special_tokens(added((CONTROL, UNKNOWN), special=True))
    tokenizer.add_tokens(added((USER_DEFINED,), special=False))
    before, behind = ([] if mark is None else [texts[mark]] for mark in (begin, end))
    if before or behind:
        single = [*before, "$A", *behind]
        marks = {texts[mark]: mark for mark in (begin, end) if mark is not None}
        try:
            tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single=single, pair=[*single, "$B", *behind], special_tokens=list(marks.items())
            )
        except Exception as error:  # the library reads a language of its own in these texts
            raise CheckpointError(
                f"{shown(single)} cannot be what the tokenizer puts before and behind a text: {error}; {_INSTEAD}"
            ) from error


def _merges(pieces: Pieces) -> list[tuple[str, str]]:
    """All pairs of pieces that make a third, best first."""
    plain = {
        text: score
        for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True)
        if kind == NORMAL
    }
    if sum(map(len, plain)) > _MOST_LETTERS:
        raise CheckpointError(f"{pieces.source} has more than {_MOST_LETTERS} letters in its pieces; {_INSTEAD}")
    ranked: list[tuple[float, int, str, str]] = []
    made_by: dict[float, str] = {}
    for text, score in plain.items():
        if len(text) > _LONGEST:
            raise CheckpointError(
                f"{pieces.source} has a piece of {len(text)} letters, expected at most {_LONGEST}; {_INSTEAD}"
            )
        cuts = [i for i in range(1, len(text)) if text[:i] in plain and text[i:] in plain]
        if not cuts:
            continue
        if not float(score).is_integer():  # nor infinite, nor NaN
            raise CheckpointError(
                f"{pieces.source} has the score {score} for {shown(text)}, expected whole numbers, an order of merges: this is a "
                f"unigram model; {_INSTEAD}"
            )
        other = made_by.setdefault(score, text)
        # Runs of one letter may share a score, as those of spaces do in Llama 2: see the order below.
        if other != text and {*other, *text} != {text[0]}:
            raise CheckpointError(
                f"{pieces.source} has the score {score} for {shown(other)} and {shown(text)}, expected another for every piece, an "
                f"order of merges; {_INSTEAD}"
            )
        # Where the score is the same, the longer left half first: a run of one letter grows from its left end, as it does where
        # the leftmost of equal candidates is merged.
        ranked += [(-score, -cut, text[:cut], text[cut:]) for cut in cuts]
    return [(left, right) for _, _, left, right in sorted(ranked)]
