"""Bugs of graphs that compute in float16 and bfloat16, and of the memory of their caches."""

from planting import Bug

__all__ = ["BUGS"]

HALF = ("test_ort_half",)
STORAGE = ("test_storage",)

BUGS = (
    Bug(
        "bfloat16-bound-as-integers",
        "HostBinding._bind",
        "self._told.get(name, dtype)",
        "dtype",
        "ONNX Runtime is told that a cache of bfloat16 holds integers of 16 bits, and refuses it.",
        HALF,
    ),
    Bug(
        "bfloat16-captured-as-integers",
        "GraphBinding._bound_anew",
        "self._told.get(name, kept.dtype)",
        "kept.dtype",
        "The same in a session that captures CUDA graphs, which binds by itself.",
        HALF,
    ),
    Bug(
        "caches-of-float32-whatever-the-graph",
        "OrtProvider.__init__",
        "TYPES[CACHE_TYPES[graph.dtype]]",
        "TYPES['tensor(float)']",
        "Caches take twice the memory, and are bound as what they are not.",
        HALF,
    ),
    Bug(
        "step-graph-of-any-type",
        "check_against_bundle",
        "(value.type, list(value.shape[1:]))",
        "(cache[0], list(value.shape[1:]))",
        "A step graph of float32 is opened in a bundle of float16: another model than the window graph's.",
        HALF,
    ),
    Bug(
        "bfloat16-compared",
        "Storage.compared",
        "'float32' if self.compute == 'bfloat16' else self.compute",
        "self.compute",
        "A graph in bfloat16 has operators that ONNX Runtime has no CUDA kernel for, and cannot be opened.",
        ("test_cuda_placement",),
    ),
    Bug(
        "scales-rounded-behind-the-codes",
        "storage:quantised",
        "converted('scale', scales, dtype).astype(np.float32)",
        "np.asarray(scales, np.float32)",
        "Codes are the nearest for scales that nobody keeps, and off by up to a quarter for scales of bfloat16.",
        STORAGE,
    ),
    Bug(
        "codes-beyond-the-last",
        "storage:quantised",
        "np.rint(blocks * inverse[..., None]).clip(-most, most)",
        "np.rint(blocks * inverse[..., None])",
        "Where a scale of float16 was rounded down by a third, the largest weight of its block changes its sign.",
        STORAGE,
    ),
    Bug(
        "bytes-off-by-one",
        "nbits:_packed_bytes",
        "codes.T.astype(np.int16) + 128",
        "codes.T.astype(np.int16) + 127",
        "Every weight of 8 bits is one scale too small.",
        STORAGE,
    ),
    Bug(
        "last-slot-of-guidance-from-a-size",
        "guided_logits",
        "graph.op('ReduceMax', slots, keepdims=1)",
        "graph.op('Sub', graph.op('Size', slots), graph.number(1, 'int64'))",
        "ONNX Runtime computes it on the CPU, and every guided step on CUDA waits for a copy.",
        ("test_cuda_placement",),
    ),
)
