"""A small GGUF file in its parts, and what can be wrong in them: written by hand, since no library writes what is wrong."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np

__all__ = ["damage_entry", "damage_table", "gguf_file", "gguf_parts"]

_U32, _I32, _F32, _BOOL, _TEXT, _LIST, _U64 = 4, 5, 6, 7, 8, 9, 10
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", _U32: "I", _I32: "i", _F32: "f", _BOOL: "?", _U64: "Q", 11: "q", 12: "d"}


@functools.cache
def gguf_parts() -> tuple[list[tuple[str, int, Any]], list[tuple[str, tuple[int, ...], int, int]], bytes]:
    """Entries (key, type, value), tensors (name, dimensions, type, offset) and the bytes of a small Qwen 2."""
    alphabet = [*map(chr, range(33, 127)), "Ġ", "th", "the", "<end>"]
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": 16, "feed_forward_length": 32}
    sizes |= {"attention.head_count": 2, "attention.head_count_kv": 2}
    entries: list[tuple[str, int, Any]] = [("general.architecture", _TEXT, "llama")]
    entries += [(f"llama.{key}", _U32, value) for key, value in sizes.items()]
    entries += [("llama.attention.layer_norm_rms_epsilon", _F32, 1e-5), ("llama.rope.freq_base", _F32, 1e4)]
    entries += [("tokenizer.ggml.model", _TEXT, "gpt2"), ("tokenizer.ggml.pre", _TEXT, "gpt-2")]
    entries += [
        ("tokenizer.ggml.tokens", _LIST, (_TEXT, alphabet)),
        ("tokenizer.ggml.merges", _LIST, (_TEXT, ["t h", "th e"])),
    ]
    entries += [("tokenizer.ggml.token_type", _LIST, (_I32, [1] * (len(alphabet) - 1) + [3]))]
    entries += [
        ("tokenizer.ggml.eos_token_id", _U32, len(alphabet) - 1),
        ("tokenizer.ggml.add_bos_token", _BOOL, False),
    ]
    entries += [("tokenizer.chat_template", _TEXT, "{{ messages }}"), ("general.alignment", _U32, 32)]
    shapes = {
        "token_embd.weight": (len(alphabet), 16),
        "output_norm.weight": (16,),
        "output.weight": (len(alphabet), 16),
    }
    shapes |= {f"blk.0.attn_{name}.weight": (16, 16) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.{name}_norm.weight": (16,) for name in ("attn", "ffn")}
    shapes |= {"blk.0.ffn_gate.weight": (32, 16), "blk.0.ffn_up.weight": (32, 16), "blk.0.ffn_down.weight": (16, 32)}
    random, table, weights = np.random.default_rng(0), [], b""
    for name, shape in shapes.items():
        table.append((name, shape[::-1], 0, len(weights)))
        weights += random.normal(0, 0.3, shape).astype("<f4").tobytes()
        weights += bytes(-len(weights) % 32)
    return entries, table, weights


def damage_entry(random: Random, entries: list[list[Any]]) -> None:
    entry = random.choice(entries)
    numbers = (0, 1, 2, 3, 8_388_610, 2**31 - 1, 2**32 - 1)
    match random.randrange(8):
        case 0:
            entries.remove(entry)
        case 1:
            entry[0] = random.choice((entry[0] + "x", "", random.choice(entries)[0], "general.architecture"))
        case 2:
            entry[1:] = [_TEXT, random.choice(("", "x", "llama", "gpt2", "qwen2", "0", "yarn", "x" * 3000, "{{ 1 }}"))]
        case 3:
            entry[1:] = [_LIST, random.choice(((_U32, [1, 2]), (_TEXT, ["a", "b"]), (_F32, []), (_TEXT, ["a", "a"])))]
        case 4:
            entry[1:] = [_F32, random.choice((0.0, -1.0, float("nan"), float("inf"), 0.5))]
        case 5:
            entry[1:] = [_BOOL, random.random() < 0.5]
        case 6:
            entry[1:] = [random.choice((_U64, _U32)), random.choice(numbers)]
        case 7:
            added = random.choice(
                ("rope.scaling.type", "rope.dimension_count", "attention.key_length", "vocab_size", "expert_count")
            )
            entries.append(
                [
                    f"llama.{added}",
                    *random.choice(((_TEXT, "yarn"), (_U32, 8), (_U32, 3), (_LIST, (_U32, [1])), (_F32, 2.0))),
                ]
            )


def damage_table(random: Random, table: list[list[Any]]) -> None:
    entry = random.choice(table)
    match random.randrange(6):
        case 0:
            table.remove(entry)
        case 1:
            entry[0] = random.choice(
                (entry[0] + "x", "", random.choice(table)[0], "rope_freqs.weight", "blk.9.attn_q.weight")
            )
        case 2:
            entry[1] = random.choice(
                ((), (0,), (1,), (16,), (16, 16, 1), (2**63, 2), (2**32, 2**32), (32, 8), entry[1][::-1])
            )
        case 3:
            entry[2] = random.choice((*range(44), 2**31, 99))
        case 4:
            entry[3] = random.choice((0, 1, 7, 32, 2**31, 2**63, 2**64 - 64))
        case 5:
            table.append(
                ["rope_freqs.weight", random.choice(((4,), (3,), (2, 2), (8,))), random.choice((0, 0, 1, 24)), 0]
            )


def gguf_file(entries: list[list[Any]], table: list[list[Any]], weights: bytes, random: Random | None) -> bytes:
    counts = [len(table), len(entries)]
    if random is not None:
        counts[random.randrange(2)] = random.choice((0, 1, 10**4, 2**31, 2**63, 2**64 - 1))
    made = b"GGUF" + struct.pack("<IQQ", 3, *counts)
    for key, kind, value in entries:
        made += _text(key) + struct.pack("<I", kind) + b"".join(_value(kind, value))
    for name, dimensions, kind, offset in table:
        made += _text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
    return made + bytes(-len(made) % 32) + weights


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> Iterator[bytes]:
    if kind == _TEXT:
        yield _text(value)
    elif kind == _LIST:
        inner, items = value
        yield struct.pack("<IQ", inner, len(items))
        for item in items:
            yield from _value(inner, item)
    else:
        yield struct.pack(f"<{_FORMS[kind]}", value)
