"""Small Cosmos models with random weights, and their logits from the facts of the published code, in numpy and by loops.

Nothing of the library's own descriptions, rotary tables or reference is used here.
"""

import numpy as np

__all__ = ["CLIP", "LARGE", "SMALL", "cosmos_logits", "cosmos_tensors"]

CLIP = (3, 2, 3)
"""Frames, rows and columns."""

SMALL = {"width": 48, "heads": 4, "kv_heads": 2, "head": 12, "mlp": 40, "layers": 2, "codes": 30, "stretched": False}
LARGE = SMALL | {"width": 60, "stretched": True}
"""Built as 4B and as 12B: heads together are as wide as the model, or not."""


def cosmos_tensors(sizes, prefix=""):
    """Random tensors by their names; no norm's weights are near 1, and outputs depend on all of it."""
    random = np.random.default_rng(7)
    width, queries, keys = sizes["width"], sizes["heads"] * sizes["head"], sizes["kv_heads"] * sizes["head"]
    shapes = {"tok_embeddings": (sizes["codes"], width)}
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
    shapes |= {"norm": (width,), "output": (sizes["codes"], width)}
    made = {}
    for name, shape in shapes.items():
        noise = random.normal(size=shape)
        array = (
            1.2 + 0.4 * noise if len(shape) == 1 else noise * (0.05 if "embed" in name else 1.5 / np.sqrt(shape[-1]))
        )
        made[f"{prefix}{name}.weight"] = array.astype(np.float32)
    return made


def cosmos_logits(sizes, tensors, tokens, clip=CLIP, prefix=""):
    """Logits (T, codes) of one sequence, in float64."""

    def tensor(name):
        return tensors[f"{prefix}{name}.weight"].astype(np.float64)

    def normed(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * tensor(name)

    angles = np.array([_angles(s, sizes, clip) for s in range(len(tokens))])
    x = tensor("tok_embeddings")[tokens]
    for i in range(sizes["layers"]):
        y = normed(x, f"layers.{i}.attention_norm")
        heads = {
            name: (y @ tensor(f"layers.{i}.attention.w{name}").T).reshape(len(x), -1, sizes["head"]) for name in "qkv"
        }
        for name in "qk":
            heads[name] = _turned(normed(heads[name], f"layers.{i}.attention.{name}_norm"), angles)
        mixed = np.zeros_like(heads["q"])
        for h in range(sizes["heads"]):
            own = h // (sizes["heads"] // sizes["kv_heads"])
            for t in range(len(x)):
                scores = np.exp(heads["k"][: t + 1, own] @ heads["q"][t, h] / np.sqrt(sizes["head"]))
                mixed[t, h] = scores / scores.sum() @ heads["v"][: t + 1, own]
        x = x + mixed.reshape(len(x), -1) @ tensor(f"layers.{i}.attention.wo").T
        y = normed(x, f"layers.{i}.ffn_norm")
        gate = y @ tensor(f"layers.{i}.feed_forward.w1").T
        up = y @ tensor(f"layers.{i}.feed_forward.w3").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ tensor(f"layers.{i}.feed_forward.w2").T
    return normed(x, "norm") @ tensor("output").T


def _angles(s, sizes, clip):
    """The angles of a head's pairs at place ``s`` of a clip: first those of the frame, then the row's, then the column's."""
    _, rows, columns = clip
    place = {"frame": s // (rows * columns), "row": s // columns % rows, "column": s % columns}
    space = 2 * (sizes["head"] // 6)
    found = []
    for axis, entries in (("frame", sizes["head"] - 2 * space), ("row", space), ("column", space)):
        for i in range(entries // 2):
            frequency = 500_000.0 ** (-2 * i / entries)
            if sizes["stretched"]:
                first = 3 if axis == "frame" else 40
                high, low = 2 * np.pi * 4 / first, 2 * np.pi / first
                kept = min(max((frequency - low) / (high - low), 0), 1)
                frequency *= (1 - kept) / 2 + kept
            found.append(place[axis] * frequency)
    return found


def _turned(heads, angles):
    """``heads`` (T, heads, size), entry i with entry i + size / 2, as complex numbers."""
    half = heads.shape[-1] // 2
    turned = (heads[..., :half] + 1j * heads[..., half:]) * np.exp(1j * angles[:, None])
    return np.concatenate([turned.real, turned.imag], axis=-1)
