"""Bugs of steps that are engines of TensorRT, and of the graph and the noise that they are made of."""

from planting import Bug

__all__ = ["BUGS"]

ENGINES = ("test_trt_step", "test_trt_step_refusals")
GRAPHS = ("test_window_noise_graph",)

BUGS = (
    Bug(
        "first-refusal-by-an-argmax-of-equals",
        "_Decision.first_true",
        'graph.op("ReduceMin", graph.op("Where", mask, places, none), graph.integers(1), keepdims=1)',
        'graph.op("Cast", graph.op("ArgMax", graph.op("Cast", mask, to=1), axis=1, keepdims=1), to=1)',
        "Where ArgMax finds another of equal entries than the first, refused drafts are committed.",
        GRAPHS,
    ),
    Bug(
        "greedy-token-by-an-argmax-of-equals",
        "_Decision.write",
        'self.noise == "ring"',
        "True",
        "Of equal logits a greedy row takes another than the first.",
        GRAPHS,
    ),
    Bug(
        "noise-of-the-window-and-not-of-the-position",
        "TrtStep._fill_rows",
        '("start", *_COUNTS)',
        "_COUNTS",
        "A slot has the same noise in every window, wherever that begins.",
        ENGINES,
    ),
    Bug(
        "one-noise-for-all-sequences",
        "TrtStep._fill_rows",
        "info.sequence",
        "0",
        "Sequences of one seed share their noise.",
        ENGINES,
    ),
    Bug(
        "rows-not-uploaded",
        "TrtStep._make_noise",
        "rows * ROW.itemsize",
        "(rows - 1) * ROW.itemsize",
        "The last row gets noise of an earlier step's positions.",
        ENGINES,
    ),
    Bug(
        "outcome-before-the-stream-was-waited-for",
        "TrtStep.step",
        "self.stream.synchronize()",
        "",
        "Tokens are read before they were made.",
        ENGINES,
    ),
    Bug(
        "outcome-in-memory-that-the-next-step-writes",
        "TrtStep.step",
        "close_rows(window, tokens[:, :width].copy(), committed.copy(), highest[:, :width])",
        "close_rows(window, tokens[:, :width], committed, highest[:, :width])",
        "An outcome changes when the next step is made.",
        ("test_trt_step", "test_trt_step_refusals"),
    ),
    Bug(
        "padding-forgotten",
        "Runner.run",
        "self._has_padded or fit.shape.width > fit.width",
        "self._has_padded",
        "A window may start behind columns that padding wrote over.",
        ENGINES,
    ),
    Bug(
        "decision-left-out-of-the-fingerprint",
        "Fingerprint.of",
        "manifest.window_graph.file if graph is None else graph",
        "manifest.window_graph.file",
        "An engine with the decision of another release is loaded.",
        ENGINES,
    ),
    Bug(
        "step-and-window-engines-in-one-folder",
        "EngineStore.place",
        "Path(self.graph).stem",
        '"window"',
        "Engines of window graphs and of steps replace each other.",
        ENGINES,
    ),
    Bug(
        "padding-writes-over-what-idle-rows-hold",
        "Runner.fill",
        "window[...] = self._written[at]",
        "window[...] = tokens[:, -1:]",
        "While others step, padding destroys a part of what a row has read of its prompt.",
        ("test_trt_provider", *ENGINES),
    ),
    Bug(
        "padding-never-noted",
        "Runner._note_padding",
        "np.where(self._repeats | (slots == width), left, new)",
        "left",
        "A window may start behind columns that padding wrote over.",
        ("test_trt_provider", *ENGINES),
    ),
    Bug(
        "prompts-of-engines-in-windows",
        "TrtStep.prompt_chunk",
        "self.max_window",
        "1",
        "A prompt is read token by token.",
        ENGINES,
    ),
    Bug(
        "prefixes-of-guided-rows-kept",
        "KernelStep.keeps_prefixes",
        "self._guided is None and not isinstance(self.provider, RequestObserver)",
        "True",
        "A row is begun on the state of a request that was told the model differently.",
        ("test_cuda_kernel_step",),
    ),
)
