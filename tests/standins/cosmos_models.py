"""Small Cosmos models with random weights, and their logits from the facts of the published code, in numpy and by loops.

Nothing of the library's own descriptions, rotary tables or reference is used here.
"""

import numpy as np

from coupled_sampling.export.checkpoints.contract import Checkpoint, TensorInfo

__all__ = ["CLIP", "LARGE", "LARGE_TEXT", "SMALL", "SMALL_TEXT", "cosmos_logits", "cosmos_tensors", "published"]

CLIP = (3, 2, 3)
"""Frames, rows and columns."""

SMALL = {"width": 48, "heads": 4, "kv_heads": 2, "head": 12, "mlp": 40, "layers": 2, "codes": 30, "stretched": False}
LARGE = SMALL | {"width": 60, "stretched": True}
"""Built as 4B and as 12B: heads together are as wide as the model, or not."""

SMALL_TEXT, LARGE_TEXT = ({**sizes, "context": 20} for sizes in (SMALL, LARGE))
"""Built as 5B and as 13B: with vectors of a text, of so many entries. The token behind the codes begins a video."""


def cosmos_tensors(sizes, prefix=""):
    """Random tensors by their names; no norm's weights are near 1, and outputs depend on all of it."""
    random = np.random.default_rng(7)
    width, queries, keys = sizes["width"], sizes["heads"] * sizes["head"], sizes["kv_heads"] * sizes["head"]
    text = sizes.get("context", 0)
    # With text there is a row more, and rows that nothing uses up to a multiple of 64.
    shapes = {"tok_embeddings": (sizes["codes"] + (64 - sizes["codes"] % 64 if text else 0), width)}
    for i in range(sizes["layers"]):
        shapes |= {
            f"layers.{i}.attention_norm": (width,),
            f"layers.{i}.attention.wq": (queries, width),
            f"layers.{i}.attention.wk": (keys, width),
            f"layers.{i}.attention.wv": (keys, width),
            f"layers.{i}.attention.wo": (width, queries),
            f"layers.{i}.attention.q_norm": (sizes["head"],),
            f"layers.{i}.attention.k_norm": (sizes["head"],),
            f"layers.{i}.ffn_norm": (width,),
            f"layers.{i}.feed_forward.w1": (sizes["mlp"], width),
            f"layers.{i}.feed_forward.w2": (width, sizes["mlp"]),
            f"layers.{i}.feed_forward.w3": (sizes["mlp"], width),
        }
        if text:
            shapes |= {
                f"layers.{i}.cross_attention_norm": (width,),
                f"layers.{i}.cross_attention.wq": (queries, width),
                f"layers.{i}.cross_attention.wk": (keys, text),
                f"layers.{i}.cross_attention.wv": (keys, text),
                f"layers.{i}.cross_attention.wo": (width, queries),
                f"layers.{i}.cross_attention.q_norm": (sizes["head"],),
                f"layers.{i}.cross_attention.k_norm": (sizes["head"],),
            }
    shapes |= {"norm": (width,), "output": (sizes["codes"], width)}
    made = {}
    for name, shape in shapes.items():
        noise = random.normal(size=shape)
        array = (
            1.2 + 0.4 * noise if len(shape) == 1 else noise * (0.05 if "embed" in name else 1.5 / np.sqrt(shape[-1]))
        )
        made[f"{prefix}{name}.weight"] = array.astype(np.float32)
    return made


def published(width, layers, *, text=False, rows=None):
    """A checkpoint of the published sizes, of which nothing can be read."""
    rows = rows or (64064 if text else 64000)
    shapes = {"tok_embeddings": (rows, width), "norm": (width,), "output": (64000, width)}
    for i in range(layers):
        own = {"attention_norm": (width,), "ffn_norm": (width,), "feed_forward.w2": (width, 14336)}
        own |= dict.fromkeys(("feed_forward.w1", "feed_forward.w3"), (14336, width))
        for part, source in (("attention", width), *((("cross_attention", 1024),) if text else ())):
            own |= {f"{part}.wq": (4096, width), f"{part}.wk": (1024, source), f"{part}.wv": (1024, source)}
            own |= {f"{part}.wo": (width, 4096), f"{part}.q_norm": (128,), f"{part}.k_norm": (128,)}
        own |= {"cross_attention_norm": (width,)} if text else {}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in own.items()}
    table = {f"{name}.weight": TensorInfo(shape, "bfloat16", 0, None) for name, shape in shapes.items()}
    return Checkpoint("published", "torch", {}, table, None)


def cosmos_logits(sizes, tensors, tokens, clip=CLIP, prefix="", vectors=None):
    """Logits (T, codes) of one sequence, in float64; with ``vectors`` (n, context) of a text, it begins with the token for that."""

    def tensor(name):
        return tensors[f"{prefix}{name}.weight"].astype(np.float64)

    def normed(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * tensor(name)

    def attended(part, x, source, turned, seen):
        """What a part's attention to the first ``seen(t)`` rows of ``source`` adds."""
        heads = {}
        for name, rows in (("q", x), ("k", source), ("v", source)):
            heads[name] = (rows @ tensor(f"{part}.w{name}").T).reshape(len(rows), -1, sizes["head"])
        for name in "qk":
            heads[name] = turned(normed(heads[name], f"{part}.{name}_norm"))
        mixed = np.zeros_like(heads["q"])
        for h in range(sizes["heads"]):
            own = h // (sizes["heads"] // sizes["kv_heads"])
            for t in range(len(x)):
                scores = np.exp(heads["k"][: seen(t), own] @ heads["q"][t, h] / np.sqrt(sizes["head"]))
                mixed[t, h] = scores / scores.sum() @ heads["v"][: seen(t), own]
        return mixed.reshape(len(x), -1) @ tensor(f"{part}.wo").T

    before = 0 if vectors is None else 1
    places = range(len(tokens) - before)
    angles = np.array([[0] * (sizes["head"] // 2)] * before + [_angles(s, sizes, clip) for s in places])
    if vectors is not None:
        added = np.array([[0] * sizes["width"], *(_position(s, sizes["width"], clip) for s in places)])
        context = np.zeros((512, sizes["context"]))
        context[: len(vectors)] = vectors
    x = tensor("tok_embeddings")[tokens]
    for i in range(sizes["layers"]):
        if vectors is not None:
            x = x + added
        y = normed(x, f"layers.{i}.attention_norm")
        x = x + attended(f"layers.{i}.attention", y, y, lambda heads: _turned(heads, angles), lambda t: t + 1)
        if vectors is not None:
            y = normed(x, f"layers.{i}.cross_attention_norm")
            x = x + attended(f"layers.{i}.cross_attention", y, context, lambda heads: heads, lambda _: 512)
        y = normed(x, f"layers.{i}.ffn_norm")
        gate = y @ tensor(f"layers.{i}.feed_forward.w1").T
        up = y @ tensor(f"layers.{i}.feed_forward.w3").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ tensor(f"layers.{i}.feed_forward.w2").T
    return normed(x, "norm") @ tensor("output").T


def _parts(s, size, clip):
    """Of place ``s`` of a clip, and of ``size`` entries that tell it: each axis, its index and how many of them are its."""
    _, rows, columns = clip
    space = 2 * (size // 6)
    yield "frame", s // (rows * columns), size - 2 * space
    yield "row", s // columns % rows, space
    yield "column", s % columns, space


def _position(s, width, clip):
    """What every layer adds at place ``s`` of a clip: sines, then cosines, for each axis."""
    found = []
    for _, index, entries in _parts(s, width, clip):
        angles = [index * 10_000.0 ** (-2 * k / entries) for k in range(entries // 2)]
        found += [np.sin(angle) for angle in angles] + [np.cos(angle) for angle in angles]
    return found


def _angles(s, sizes, clip):
    """The angles of a head's pairs at place ``s`` of a clip: first those of the frame, then the row's, then the column's."""
    found = []
    for axis, index, entries in _parts(s, sizes["head"], clip):
        for i in range(entries // 2):
            frequency = 500_000.0 ** (-2 * i / entries)
            if sizes["stretched"]:
                first = 3 if axis == "frame" else 40
                high, low = 2 * np.pi * 4 / first, 2 * np.pi / first
                kept = min(max((frequency - low) / (high - low), 0), 1)
                frequency *= (1 - kept) / 2 + kept
            found.append(index * frequency)
    return found


def _turned(heads, angles):
    """``heads`` (T, heads, size), entry i with entry i + size / 2, as complex numbers."""
    half = heads.shape[-1] // 2
    turned = (heads[..., :half] + 1j * heads[..., half:]) * np.exp(1j * angles[:, None])
    return np.concatenate([turned.real, turned.imag], axis=-1)
