"""Bugs of window graphs without masks: what they see, which graphs get one, and when one is trusted."""

from planting import Bug

__all__ = ["BUGS"]

GRAPHS, CHOICE = ("test_causal_window",), ("test_causal_choice",)

BUGS = (
    Bug(
        "the-last-slot-is-not-filled",
        "causal_window",
        "graph.op('Add', last, graph.integers(1))",
        "graph.op('Add', last, graph.integers(0))",
        "Every slot of a window without masks sees the columns before its own, and not that.",
        GRAPHS,
    ),
    Bug(
        "one-layer-without-a-window-is-enough",
        "_needs_mask",
        "max(parts.masks.values())",
        "min(parts.masks.values())",
        "A layer with a sliding window loses it where another one has none.",
        GRAPHS,
    ),
    Bug(
        "windows-that-begin-at-zero-are-compared",
        "_compared_windows",
        "(width, (width, width // 2))",
        "(width, (0, 0))",
        "A runtime that lets every window begin with the first column is trusted.",
        CHOICE,
    ),
    Bug(
        "single-slots-are-not-compared",
        "_compared_windows",
        "((width, (0, 0)), (width, (width, width // 2)), (1, (2 * width - 1, width // 2)))",
        "((width, (0, 0)), (width, (width, width // 2)))",
        "A runtime that is wrong about windows of one slot is trusted.",
        CHOICE,
    ),
    Bug(
        "no-number-is-no-difference",
        "_difference",
        "np.nan_to_num(each, nan=np.inf)",
        "np.nan_to_num(each, nan=0.0)",
        "A graph whose logits are not finite is trusted.",
        CHOICE,
    ),
    Bug(
        "versions-share-what-was-found",
        "choose_window",
        "(*runtime, *(record.sha256 for _, record in sorted(bundle.manifest.files.items())))",
        "(*runtime[1:], *(record.sha256 for _, record in sorted(bundle.manifest.files.items())))",
        "What one version of ONNX Runtime did decides for another.",
        CHOICE,
    ),
    Bug(
        "grouped-heads-have-a-kernel-in-float32",
        "skips_empty_columns",
        "causal.heads == graph.kv_heads",
        "causal.heads >= graph.kv_heads",
        "In float32 with grouped heads the whole cache is looked at in every pass.",
        CHOICE,
    ),
)
