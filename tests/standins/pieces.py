"""SentencePiece's tokenizers without SentencePiece: its rule in a few lines of Python, and a small vocabulary to try it on."""

import itertools
import struct

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_WORDS = (
    "▁t ▁a he in ▁the er on ▁c at ▁cat ▁s it ing ▁sa ▁sat aa aaa "
    "▁▁ ▁▁▁ ▁▁▁▁ ▁▁▁▁▁ ▁▁▁▁▁▁ ▁▁▁▁▁▁▁ ▁▁▁▁▁▁▁▁ 日本 日本語 é▁ lo ▁lo ▁low"
)
WORDS = _WORDS.split()
LETTERS = "▁abcdefghijklmnopqrstuvwxyz.,<>/|0123456789\n日本語éü"


def vocabulary(added=(), *, fallback=True):
    """Texts, scores and types of pieces as llama.cpp's converter writes them; ``added`` are words added later."""
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    if fallback:
        rows += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    # Runs of spaces share one score, the lowest, as in Llama 2.
    rows += [(word, -1e9 if set(word) == {"▁"} else -float(i), NORMAL) for i, word in enumerate(WORDS)]
    rows += [(letter, -float(len(WORDS) + i), NORMAL) for i, letter in enumerate(LETTERS)]
    rows += [(word, -1000.0, USER_DEFINED) for word in added]
    return [list(column) for column in zip(*rows, strict=True)]


def encode(text, texts, scores, kinds, *, space_before=True):
    """Tokens of a text without markers: of all neighbours that make a piece, the best, the leftmost first, until there are none."""
    if not text:
        return []
    plain = {piece: score for piece, score, kind in zip(texts, scores, kinds, strict=True) if kind == NORMAL}
    symbols = list(("▁" if space_before else "") + text.replace(" ", "▁"))
    while True:
        pairs = [(-plain[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in plain]
        if not pairs:
            break
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    tokens = []
    for symbol in symbols:
        if symbol in plain:
            tokens.append(texts.index(symbol))
        elif BYTE in kinds:
            tokens += [texts.index(f"<0x{byte:02X}>") for byte in symbol.encode()]
        elif tokens[-1:] != [texts.index("<unk>")]:
            tokens.append(texts.index("<unk>"))
    return tokens


def metadata(texts, scores, kinds, **more):
    """The keys of a GGUF file with this tokenizer; ``more`` are others below ``tokenizer.ggml``."""
    own = {"model": "llama", "pre": "default", "tokens": texts, "scores": scores, "token_type": kinds}
    own |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in (own | more).items()}


def wire(number, value):
    """A field of a message of Protocol Buffers: an integer, a float, or bytes."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value % (1 << 64))
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    """An integer in groups of seven bits."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def model_file(texts, scores, kinds, trainer=None, normaliser=None):
    """The bytes of a ``tokenizer.model``; ``trainer`` and ``normaliser`` are fields by number."""
    rows = zip(texts, scores, kinds, strict=True)
    data = b"".join(
        wire(1, wire(1, t.encode()) + wire(2, float(s)) + (wire(3, k) if k != 1 else b"")) for t, s, k in rows
    )
    asked = {3: 2, 35: int(BYTE in kinds), 43: -1} | (trainer or {})
    rule = {1: b"identity", 4: 0} | (normaliser or {})
    return (
        data
        + b"".join(wire(2, wire(n, v)) for n, v in asked.items())
        + wire(3, b"".join(wire(n, v) for n, v in rule.items()))
    )
