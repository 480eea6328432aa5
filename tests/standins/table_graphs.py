"""A model that is a table, as a window graph whose cache is the tokens themselves and as a provider in numpy."""

import numpy as np

from coupled_sampling.export.graphs.builder import GraphBuilder

VOCAB, LENGTH = 7, 60
WIDE = 150
"""A vocabulary that is searched in two levels, the last block shorter than the others."""


def table(seed, vocab_size=VOCAB):
    """Logits of the next token given the last two, with forbidden tokens."""
    random = np.random.default_rng(seed)
    logits = 2 * random.standard_normal((vocab_size, vocab_size, vocab_size), np.float32)
    logits[random.random(logits.shape) < 0.15] = -np.inf
    logits[..., 0] = np.where(np.isinf(logits).all(-1), 0, logits[..., 0])
    return logits


class Table:
    """The oracle's model: HostStep looks the same table up with numpy. A window's first slot sees its own token only."""

    def __init__(self, logits, batch_size=1):
        self.logits, self.batch_size = logits, batch_size
        self.vocab_size, self.max_length = logits.shape[-1], LENGTH
        self.held = np.zeros((batch_size, LENGTH), np.int64)

    def forward(self, tokens, start):
        before = np.empty_like(tokens)
        for b, first in enumerate(start.tolist()):
            self.held[b, first : first + tokens.shape[1]] = tokens[b]
            before[b] = self.held[b, np.maximum(first + np.arange(tokens.shape[1]) - 1, 0)]
        return self.logits[before, tokens]


def window_model(logits):
    """The same table as a window graph; its cache is the tokens themselves."""
    vocab_size, graph = logits.shape[-1], GraphBuilder()
    ids, start = graph.input("input_ids", "int64", ["B", "W"]), graph.input("start", "int64", ["B"])
    past = graph.input("past_key_values.0.key", "int64", ["B", 1, LENGTH, 1])
    update = graph.op("Unsqueeze", ids, graph.integers(1, 3))
    graph.op("TensorScatter", past, update, start, name="present.0.key", axis=-2, mode="linear")
    graph.output("present.0.key", "int64", ["B", 1, LENGTH, 1])
    width = graph.op("Squeeze", graph.op("Shape", ids, start=1, end=2))
    zero, one = (graph.constant(f"number.{i}", np.array(i, np.int64)) for i in (0, 1))
    slot = graph.op("Range", zero, width, one)
    before = graph.op("Sub", graph.op("Add", graph.op("Unsqueeze", start, graph.integers(1)), slot), one)
    held = graph.op("Reshape", "present.0.key", graph.integers(-1, LENGTH))
    before = graph.op("GatherElements", held, graph.op("Max", before, zero), axis=1)
    index = graph.op("Concat", *(graph.op("Unsqueeze", x, graph.integers(2)) for x in (before, ids)), axis=2)
    graph.op("GatherND", graph.constant("table", logits), index, name="logits")
    graph.output("logits", "float32", ["B", "W", vocab_size])
    return graph.build("table", "A table.", {"max_length": str(LENGTH)})


def session_of(model):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def finish(decoder, requests):
    for request in requests:
        decoder.add(request)
    while decoder.active or decoder.waiting:
        decoder.step()
