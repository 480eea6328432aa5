"""Scalar decoders of GGUF's block types, written from the format's definition, and random blocks to try them on."""

import struct

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the extra [export]")
quants = pytest.importorskip("gguf.quants")


def half(raw):
    return struct.unpack("<e", bytes(raw))[0]


def decode_q8_0(block):
    return [half(block[:2]) * struct.unpack("b", bytes([byte]))[0] for byte in block[2:34]]


def nibbles(data):
    """The 4-bit numbers of 16 bytes: all low halves first, then all high ones."""
    return [byte & 15 for byte in data] + [byte >> 4 for byte in data]


def decode_q4_0(block):
    return [half(block[:2]) * (q - 8) for q in nibbles(block[2:18])]


def decode_q4_1(block):
    return [half(block[:2]) * q + half(block[2:4]) for q in nibbles(block[4:20])]


def fifth_bits(block):
    word = int.from_bytes(bytes(block), "little")
    return [(word >> i & 1) << 4 for i in range(32)]


def decode_q5_0(block):
    return [half(block[:2]) * ((q | h) - 16) for q, h in zip(nibbles(block[6:22]), fifth_bits(block[2:6]), strict=True)]


def decode_q5_1(block):
    pairs = zip(nibbles(block[8:24]), fifth_bits(block[4:8]), strict=True)
    return [half(block[:2]) * (q | h) + half(block[2:4]) for q, h in pairs]


def scale_and_minimum(packed, j):
    """Six-bit scale and minimum of sub-block j of 8, packed in 12 bytes."""
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4


def decode_q4_k(block):
    scale, minimum, packed, data = half(block[:2]), half(block[2:4]), block[4:16], block[16:144]
    values = []
    for i in range(256):
        j = i // 32
        byte = data[32 * (j // 2) + i % 32]
        sub_scale, sub_minimum = scale_and_minimum(packed, j)
        values.append(scale * sub_scale * (byte >> 4 if j % 2 else byte & 15) - minimum * sub_minimum)
    return values


def decode_q5_k(block):
    scale, minimum, packed, high, data = half(block[:2]), half(block[2:4]), block[4:16], block[16:48], block[48:176]
    values = []
    for i in range(256):
        j = i // 32
        byte = data[32 * (j // 2) + i % 32]
        q = (byte >> 4 if j % 2 else byte & 15) + 16 * (high[i % 32] >> j & 1)
        sub_scale, sub_minimum = scale_and_minimum(packed, j)
        values.append(scale * sub_scale * q - minimum * sub_minimum)
    return values


def decode_q6_k(block):
    low, high, scales, scale = block[:128], block[128:192], block[192:208], half(block[208:210])
    values = []
    for i in range(256):
        part, quarter, place = i // 128, i % 128 // 32, i % 32
        byte = low[64 * part + 32 * (quarter % 2) + place]
        q = (byte >> 4 if quarter >= 2 else byte & 15) | (high[32 * part + place] >> 2 * quarter & 3) << 4
        values.append(scale * struct.unpack("b", bytes([scales[i // 16]]))[0] * (q - 32))
    return values


DECODERS = {
    "Q8_0": (32, 34, (0,), decode_q8_0),
    "Q4_0": (32, 18, (0,), decode_q4_0),
    "Q4_1": (32, 20, (0, 2), decode_q4_1),
    "Q5_0": (32, 22, (0,), decode_q5_0),
    "Q5_1": (32, 24, (0, 2), decode_q5_1),
    "Q4_K": (256, 144, (0, 2), decode_q4_k),
    "Q5_K": (256, 176, (0, 2), decode_q5_k),
    "Q6_K": (256, 210, (208,), decode_q6_k),
}
"""Numbers and bytes of a block, places of its half-precision scales, decoder."""


def random_blocks(kind, rows, blocks):
    """Blocks of random bits with scales that are finite."""
    _, size, scales, _ = DECODERS[kind]
    rng = np.random.default_rng(sum(map(ord, kind)))
    raw = rng.integers(0, 256, (rows, blocks, size), np.uint8)
    for place in scales:
        raw[..., place : place + 2] = rng.normal(size=(rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(rows, blocks * size)
