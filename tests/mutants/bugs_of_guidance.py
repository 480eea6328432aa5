"""Bugs of guidance: of the pairs of rows, wherever they are run, and of the logits that are made of them."""

from planting import Bug

__all__ = ["BUGS"]

GUIDED = ("test_guidance",)
STATE = ("test_step_state",)
GRAPH = ("test_step_graph",)
KERNELS = ("test_cuda_kernel_step",)

BUGS = (
    Bug(
        "unconditional-prompt-forwarded-anew",
        "GuidedRows.openings",
        "pair.primed = True",
        "",
        "At every step the unconditional prompt is forwarded again, and padding written over the tokens behind it.",
        GUIDED,
    ),
    Bug(
        "one-row-opens-for-all",
        "GuidedRows.openings",
        "pair.primed = True",
        """\
for each in self._pairs:
    if each is not None:
        each.primed = True
""",
        "Once one row's unconditional prompt was forwarded, those of rows that begin with it are not.",
        GUIDED,
    ),
    Bug(
        "row-used-again-counts-as-opened",
        "GuidedRows.begin",
        "_Pair(chosen, len(prompt))",
        "_Pair(chosen, len(prompt), self._pairs[row] is not None)",
        "A row's second sequence is guided by the unconditional prompt of its first one.",
        GUIDED,
    ),
    Bug(
        "row-used-again-keeps-its-pair",
        "GuidedRows.begin",
        "self._pairs[row] = _Pair(chosen, len(prompt))",
        "self._pairs[row] = self._pairs[row] or _Pair(chosen, len(prompt))",
        "A row's second sequence is shifted as its first one was.",
        GUIDED,
    ),
    Bug(
        "unconditional-prompt-from-a-part-of-the-prompt",
        "GuidedRows.begin",
        "self._unconditional(prompt)",
        "self._unconditional(prompt[:1])",
        "The function that makes an unconditional prompt does not see all of the prompt.",
        GUIDED,
    ),
    Bug(
        "last-position-of-guidance-refused",
        "GuidedRows.paired",
        "begin + width > self._inner_length",
        "begin + width >= self._inner_length",
        "A sequence whose unconditional row just fits is refused half-way.",
        GUIDED,
    ),
    Bug(
        "unconditional-row-past-the-memory",
        "GuidedRows.paired",
        "begin + width > self._inner_length",
        "begin + width > self._inner_length + 1",
        "An unconditional row leaves the model's memory by one position.",
        GUIDED,
    ),
    Bug(
        "guided-length-one-too-short",
        "GuidedRows.__init__",
        "self.max_length -= len(self._checked(unconditional)) - 1",
        "self.max_length -= len(self._checked(unconditional))",
        "Sequences that fit are refused.",
        GUIDED,
    ),
    Bug(
        "guided-length-one-too-long",
        "GuidedRows.__init__",
        "self.max_length -= len(self._checked(unconditional)) - 1",
        "self.max_length -= len(self._checked(unconditional)) - 2",
        "A sequence that does not fit is taken, and ends half-way.",
        GUIDED,
    ),
    Bug(
        "guided-window-wider-than-the-memory",
        "GuidedProvider.__init__",
        "min(max_window(provider), self.max_length)",
        "max_window(provider)",
        "Windows are promised that do not fit.",
        GUIDED,
    ),
    Bug(
        "lag-forgotten",
        "GuidedRows.paired",
        "lag[b] = begin - (int(start[b]) + pair.shift)",
        "lag[b] = 0",
        "Where the unconditional prompt is shorter, its logits are combined with those of other positions.",
        GUIDED,
    ),
    Bug(
        "lag-of-the-first-row",
        "GuidedProvider.forward",
        "enumerate(paired.lag.tolist())",
        "enumerate([paired.lag.tolist()[0]] * len(paired.lag))",
        "All rows are aligned as the first one is.",
        GUIDED,
    ),
    Bug(
        "last-token-of-the-unconditional-prompt-replaced",
        "_Pair.window",
        "np.where(position < len(self.unconditional), prompt, own)",
        "np.where(position < len(self.unconditional) - 1, prompt, own)",
        "The unconditional prompt ends with a token of the row's own.",
        GUIDED,
    ),
    Bug(
        "nothing-of-the-conditional-row-forbids-all-the-same",
        "GuidedProvider._combine",
        "self.scale in (0, 1)",
        "self.scale == 1",
        "At scale 0 tokens are forbidden by a row that has no say.",
        GUIDED,
    ),
    Bug(
        "half-precision-combined-as-it-is",
        "GuidedProvider.forward",
        "at_least_float32(self.provider.forward(paired.tokens, paired.start))",
        "self.provider.forward(paired.tokens, paired.start)",
        "Guided logits are rounded to half precision.",
        GUIDED,
    ),
    Bug(
        "models-told-the-prompts-of-the-other-rows",
        "GuidedProvider.begin",
        """\
self.provider.begin(2 * row, request)
self.provider.begin(2 * row + 1, replace(request, prompt=unconditional))
""",
        """\
self.provider.begin(2 * row + 1, request)
self.provider.begin(2 * row, replace(request, prompt=unconditional))
""",
        "A model that is conditioned by its prompts has conditional and unconditional rows exchanged.",
        ("test_guidance",),
    ),
    Bug(
        "kernels-tell-the-unconditional-row-the-prompt",
        "KernelStep.begin",
        "(2 * row + 1, replace(request, prompt=unconditional))",
        "(2 * row + 1, request)",
        "A model that is conditioned by its prompts has no unconditional rows.",
        ("test_cuda_kernel_step",),
    ),
    Bug(
        "graph-keeps-the-pair-of-the-sequence-before",
        "OrtStep.begin",
        "self._guided is not None",
        "self._guided is not None and self._guided._pairs[row] is None",
        "A row's second sequence is shifted as its first one was.",
        STATE,
    ),
    Bug(
        "graph-forgets-the-lag",
        "OrtStep._feed_pairs",
        "paired.lag",
        "0 * paired.lag",
        "Where the unconditional prompt is shorter, its logits are combined with those of other positions.",
        STATE,
    ),
    Bug(
        "graph-aligns-the-other-way",
        "guided_logits",
        'graph.op("Sub", slots, lag)',
        'graph.op("Add", slots, lag)',
        "Where the unconditional prompt is shorter, its logits are combined with those of other positions.",
        STATE,
    ),
    Bug(
        "graph-multiplies-the-unconditional-row-by-nothing",
        "guided_logits",
        'graph.op("Where", graph.op("Equal", scale, graph.number(1.0, "float64")), conditional, mixed)',
        "mixed",
        "At scale 1 a token that the unconditional row forbids has no logit.",
        GRAPH,
    ),
    Bug(
        "graph-of-scale-nothing-forbids-all-the-same",
        "guided_logits",
        'graph.op("Where", graph.op("Equal", scale, graph.number(0.0, "float64")), unconditional, mixed)',
        "mixed",
        "At scale 0 tokens are forbidden by a row that has no say.",
        GRAPH,
    ),
    Bug(
        "graph-guides-forbidden-tokens",
        "guided_logits",
        'graph.op("Where", forbidden, conditional, mixed)',
        "mixed",
        "A token that the conditional row forbids gets a finite logit.",
        GRAPH,
    ),
    Bug(
        "cache-columns-of-the-conditional-rows",
        "OrtStep._feed_tokens",
        "int(start.max())",
        "int(start[::2].max())",
        "Unconditional rows that are further on than their own lose a part of their context.",
        STATE,
    ),
)
