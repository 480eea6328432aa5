"""Window graphs that take trees, in ONNX Runtime, and how far their logits are from those of each path alone."""

import math

import numpy as np
import pytest

from coupled_sampling.export.graphs.decoder import decoder_graph
from coupled_sampling.export.graphs.reference import reference_logits
from coupled_sampling.export.graphs.tree_window import tree_window
from coupled_sampling.trees import Tree, chain

WIDTH, ROWS = 9, 2
"""Most slots of a window, and rows, of `furthest_of_trees`."""


class TreeRun:
    """A graph with its caches, returned by one call and handed to the next."""

    def __init__(self, model, rows):
        onnxruntime = pytest.importorskip("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        inputs = {value.name: value for value in self.session.get_inputs()}
        self.takes_trees, self.has_kv_length = "parents" in inputs, "kv_length" in inputs
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.caches = {
            name: np.zeros((rows, *value.shape[1:]), types[value.type])
            for name, value in inputs.items()
            if name.startswith("past_key_values.")
        }

    def __call__(self, tokens, start, parents=None, spare=0):
        kv_length = np.array([int(np.max(start)) + tokens.shape[1] + spare], np.int64)
        inputs = {"input_ids": tokens, "start": np.asarray(start, np.int64)}
        if self.has_kv_length:
            inputs["kv_length"] = kv_length
        if self.takes_trees:
            inputs["parents"] = chain(*tokens.shape) if parents is None else np.asarray(parents, np.int64)
        logits, *present = self.session.run(None, inputs | self.inputs())
        self.caches = dict(zip(self.caches, present, strict=True))
        return logits

    def inputs(self):
        """What every call is given besides."""
        return self.caches


def random_weights(description, seed=0):
    """Weights that keep the spread of what goes through them."""
    random = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith("norm.weight"):
            return random.normal(1.0, 0.3, shape)
        return random.normal(0, 1 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.3, shape)

    return {name: draw(name, shape).astype(np.float32) for name, shape in description.weight_shapes().items()}


def random_parents(random, rows, width):
    """A path in front, then slots that follow any before them or none, and padding behind."""
    parents = np.array([[random.integers(max(-1, j - 4), j) for j in range(width)] for _ in range(rows)])
    for row, leading in enumerate(random.integers(1, width - 3, rows)):
        parents[row, :leading] = np.arange(-1, leading - 1)
        parents[row, leading] = -1  # a tree of its own in the middle
    parents[0, -1] = -1
    return parents


def furthest_of_trees(description, passes=4, seed=0, begin=None):
    """The largest difference of a finite logit over a prompt and several trees, each after the leading slots of the one before.

    The others are equal. ``begin`` is a token that is drawn often, but in the prompt never.
    """
    random, weights = np.random.default_rng(seed), random_weights(description)
    widest = min(WIDTH, description.positions // 2)
    columns = description.positions + widest
    run = TreeRun(tree_window(decoder_graph(description, weights), columns), ROWS)
    known, worst = [np.zeros(0, np.int64)] * ROWS, 0.0
    for step in range(passes):
        width = widest if step else min(6, widest)
        parents = random_parents(random, ROWS, width) if step else chain(ROWS, width)
        # Now and then back over what is known, to another place in each row.
        back = random.integers(0, 3, ROWS) if step else np.zeros(ROWS, np.int64)
        most = description.positions - width
        known = [tokens[: min(most, max(0, len(tokens) - less))] for tokens, less in zip(known, back, strict=True)]
        tokens = random.integers(0, description.vocab_size, (ROWS, width))
        if begin is not None:  # not in the prompt: the first one decides
            tokens[tokens == begin] = begin - 1
            tokens[random.random(tokens.shape) < 0.2 * (step > 0)] = begin
        found = run(
            tokens, [len(one) for one in known], parents, spare=min(step, columns - width - max(map(len, known)))
        )
        tree = Tree.of(parents)
        for row in range(ROWS):
            for leaf in set(range(width)) - set(parents[row].tolist()):
                path = tree.path(row, leaf)
                sequence = np.concatenate([known[row], tokens[row, path]])
                expected = reference_logits(description, weights, sequence)[len(known[row]) :]
                finite = np.isfinite(expected)
                np.testing.assert_array_equal(found[row, path][~finite], expected[~finite])
                worst = max(worst, float(np.abs(found[row, path][finite] - expected[finite]).max()))
            known[row] = np.concatenate([known[row], tokens[row, : tree.leading()[row]]])
    return worst
