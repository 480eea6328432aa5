"""Bugs of steps that are engines of TensorRT, and of the graph and the noise that they are made of."""

from planting import Bug

__all__ = ["BUGS"]

DECISION = "export/decision_graph.py"
STEP = "backends/trt/step.py"
RUNNER = "backends/trt/runner.py"
STORE = "backends/trt/store.py"
ENGINES = ("tests/test_trt_step.py",)
GRAPHS = ("tests/test_window_noise_graph.py",)

BUGS = (
    Bug(
        "first-refusal-by-an-argmax-of-equals",
        DECISION,
        'first = graph.op("ReduceMin", graph.op("Where", mask, places, none), graph.integers(1), keepdims=1)',
        'first = graph.op("Cast", graph.op("ArgMax", graph.op("Cast", mask, to=1), axis=1, keepdims=1), to=1)',
        "Where ArgMax finds another of equal entries than the first, refused drafts are committed.",
        GRAPHS,
    ),
    Bug(
        "greedy-token-by-an-argmax-of-equals",
        DECISION,
        'argmax_is_first=self.noise == "ring"',
        "argmax_is_first=True",
        "Of equal logits a greedy row takes another than the first.",
        GRAPHS,
    ),
    Bug(
        "noise-of-the-window-and-not-of-the-position",
        STEP,
        'for name in ("start", *_COUNTS):\n            table',
        "for name in _COUNTS:\n            table",
        "A slot has the same noise in every window, wherever that begins.",
        ENGINES,
    ),
    Bug(
        "one-noise-for-all-sequences",
        STEP,
        "1, info.seed, info.sequence",
        "1, info.seed, 0",
        "Sequences of one seed share their noise.",
        ENGINES,
    ),
    Bug(
        "rows-not-uploaded",
        STEP,
        "        self.stream.upload(self._rows, self._rows_host, rows * ROW.itemsize)\n",
        "        self.stream.upload(self._rows, self._rows_host, (rows - 1) * ROW.itemsize)\n",
        "The last row gets noise of an earlier step's positions.",
        ENGINES,
    ),
    Bug(
        "outcome-before-the-stream-was-waited-for",
        STEP,
        "        self.stream.synchronize()\n        tokens, committed",
        "        tokens, committed",
        "Tokens are read before they were made.",
        ENGINES,
    ),
    Bug(
        "outcome-in-memory-that-the-next-step-writes",
        STEP,
        "Outcome(tokens[:, :width].copy(), committed.copy())",
        "Outcome(tokens[:, :width], committed)",
        "An outcome changes when the next step is made.",
        ENGINES,
    ),
    Bug(
        "padding-forgotten",
        RUNNER,
        "        if self._has_padded or place.shape.width > place.width:\n",
        "        if self._has_padded:\n",
        "A window may start behind columns that padding wrote over.",
        ENGINES,
    ),
    Bug(
        "decision-left-out-of-the-fingerprint",
        STORE,
        "        if method is not None:\n            files",
        "        if False:\n            files",
        "An engine with the decision of another release is loaded.",
        ENGINES,
    ),
    Bug(
        "step-and-window-engines-in-one-folder",
        STORE,
        'stem if method is None else f"{stem}-{method}"',
        "stem",
        "Engines of window graphs and of steps replace each other.",
        ENGINES,
    ),
)
