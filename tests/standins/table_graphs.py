"""A model that is a table, as a window graph whose cache is the tokens themselves and as a provider in numpy.

Its logits depend on every token before, so state that is wrong anywhere shows.
"""

from functools import lru_cache

import numpy as np

from coupled_sampling.export.graphs.builder import GraphBuilder
from coupled_sampling.trees import Tree

VOCAB, LENGTH = 7, 60
COLUMNS = 90
"""Of the cache of a graph that takes trees."""
WIDE = 150
"""A vocabulary that is searched in two levels, the last block shorter than the others."""


def table(seed, vocab_size=VOCAB, forbidden=0.15):
    """Logits of the next token given the last one and a checksum of all tokens, with a share of forbidden ones."""
    random = np.random.default_rng(seed)
    logits = 2 * random.standard_normal((vocab_size, vocab_size, vocab_size), np.float32)
    logits[random.random(logits.shape) < forbidden] = -np.inf
    logits[..., 0] = np.where(np.isinf(logits).all(-1), 0, logits[..., 0])
    return logits


FAULTS = ("none possible", "NaN", "NaN for one token", "+inf")
"""What logits can be of which no law can be made."""


def with_dead_states(logits, fault, reachable=0.0, seed=0):
    """The table with a last token that is never possible, and behind it nothing but states of which no law can be made.

    Drafts run into them, texts do not; but of the other states a share ``reachable`` is as dead, and there texts end.
    """
    random, logits, impossible = np.random.default_rng(seed), logits.copy(), logits.shape[-1] - 1
    dead = random.random(logits.shape[:2]) < reachable
    logits[..., impossible] = -np.inf
    alone = np.isinf(logits).all(-1)
    logits[..., 0] = np.where(alone, 0, logits[..., 0])
    dead[:, impossible] = True
    if fault == "NaN for one token":
        logits[dead, random.integers(0, impossible, dead.sum())] = np.nan
    elif fault == "+inf":
        logits[dead, random.integers(0, impossible, dead.sum())] = np.inf
    else:
        logits[dead] = np.nan if fault == "NaN" else -np.inf
    return logits


def weights_of(vocab_size):
    """What a token counts for in the checksum, by its position; never nothing, so that each position matters."""
    return 1 + np.arange(LENGTH) % (vocab_size - 1)


class Table:
    """The oracle's model: HostStep looks the same table up with numpy."""

    def __init__(self, logits, batch_size=1):
        self.logits, self.batch_size = logits, batch_size
        self.vocab_size, self.max_length = logits.shape[-1], LENGTH
        self.held = np.zeros((batch_size, LENGTH), np.int64)

    def forward(self, tokens, start):
        rows = np.arange(len(start))[:, None]
        at = start[:, None] + np.arange(tokens.shape[1])
        self.held[rows, at] = tokens
        sums = np.cumsum((self.held + 1) * weights_of(self.vocab_size), axis=1)[rows, at]
        return self.logits[sums % self.vocab_size, tokens]

    @property
    def max_columns(self):
        return COLUMNS

    def forward_tree(self, tokens, start, parents, rows):
        tree, weights = Tree.of(parents), weights_of(self.vocab_size)
        counted = (tokens + 1) * weights[start[:, None] + tree.depth]
        below = np.where(np.arange(LENGTH) < start[:, None], (self.held[rows] + 1) * weights, 0).sum(axis=1)
        for b, leading in enumerate(tree.leading()):
            self.held[rows[b], start[b] :] = -99  # what stands beside the path is nobody's
            self.held[rows[b], start[b] : start[b] + leading] = tokens[b, :leading]
        sums = below[:, None] + np.where(tree.sees, counted[:, None], 0).sum(axis=2)
        return self.logits[sums % self.vocab_size, tokens]


def window_model(logits, kv_length=False):
    """The same table as a window graph; its cache is the tokens themselves, of which ``kv_length`` columns are looked at."""
    vocab_size, graph = logits.shape[-1], GraphBuilder()
    ids, start = graph.input("input_ids", "int64", ["B", "W"]), graph.input("start", "int64", ["B"])
    past = graph.input("past_key_values.0.key", "int64", ["B", 1, LENGTH, 1])
    update = graph.op("Unsqueeze", ids, graph.integers(1, 3))
    graph.op("TensorScatter", past, update, start, name="present.0.key", axis=-2, mode="linear")
    graph.output("present.0.key", "int64", ["B", 1, LENGTH, 1])
    width = graph.op("Squeeze", graph.op("Shape", ids, start=1, end=2))
    zero, one = (graph.constant(f"number.{i}", np.array(i, np.int64)) for i in (0, 1))
    at = graph.op("Add", graph.op("Unsqueeze", start, graph.integers(1)), graph.op("Range", zero, width, one))
    held = graph.op("Reshape", "present.0.key", graph.integers(-1, LENGTH))
    counted = graph.op("Mul", graph.op("Add", held, one), graph.constant("weights", weights_of(vocab_size)))
    if kv_length:
        seen = graph.op("Less", graph.constant("columns", np.arange(LENGTH)), graph.input("kv_length", "int64", [1]))
        counted = graph.op("Where", seen, counted, zero)
    sums = graph.op("GatherElements", graph.op("CumSum", counted, one), at, axis=1)
    sums = graph.op("Mod", sums, graph.constant("vocabulary", np.array(vocab_size)))
    index = graph.op("Concat", *(graph.op("Unsqueeze", x, graph.integers(2)) for x in (sums, ids)), axis=2)
    graph.op("GatherND", graph.constant("table", logits), index, name="logits")
    graph.output("logits", "float32", ["B", "W", vocab_size])
    return graph.build("table", "A table.", {"max_length": str(LENGTH)})


def tree_model(logits):
    """The same table as a window graph that takes trees: the columns from ``start`` on are those of slots."""
    vocab_size, graph = logits.shape[-1], GraphBuilder()
    ids, start = graph.input("input_ids", "int64", ["B", "W"]), graph.input("start", "int64", ["B"])
    parents = graph.input("parents", "int64", ["B", "W"])
    past = graph.input("past_key_values.0.key", "int64", ["B", 1, COLUMNS, 1])
    update, begin = graph.op("Unsqueeze", ids, graph.integers(1, 3)), graph.op("Unsqueeze", start, graph.integers(1))
    graph.op("TensorScatter", past, update, start, name="present.0.key", axis=-2, mode="linear")
    graph.output("present.0.key", "int64", ["B", 1, COLUMNS, 1])
    width = graph.op("Squeeze", graph.op("Shape", ids, start=1, end=2))
    zero, one = (graph.constant(f"number.{i}", np.array(i, np.int64)) for i in (0, 1))
    slots = graph.op("Range", zero, width, one)
    above = graph.op("Where", graph.op("Less", parents, zero), slots, parents)
    sees = graph.op("Equal", graph.op("Unsqueeze", slots, graph.integers(1)), slots)
    sees = graph.op("Expand", sees, graph.op("Concat", graph.op("Shape", ids), graph.op("Shape", slots), axis=0))
    for turn in range(6):  # paths of up to 64 slots
        found = graph.op("GatherND", sees, graph.op("Unsqueeze", above, graph.integers(2)), batch_dims=1)
        sees = graph.op("Or", sees, found, name="tree.sees" if turn == 5 else None)
        above = graph.op("GatherElements", above, above, axis=1)
    count = graph.op("ReduceSum", graph.op("Cast", sees, to=7), graph.integers(2), keepdims=0)
    position = graph.op("Add", begin, graph.op("Sub", count, one), name="tree.position")
    weights = graph.constant("weights", np.resize(weights_of(vocab_size), COLUMNS))
    own = graph.op("Mul", graph.op("Add", ids, one), graph.op("Gather", weights, position))
    own = graph.op("Where", sees, graph.op("Unsqueeze", own, graph.integers(1)), zero)
    held = graph.op("Mul", graph.op("Add", graph.op("Reshape", past, graph.integers(-1, COLUMNS)), one), weights)
    held = graph.op("Where", graph.op("Less", graph.constant("columns", np.arange(COLUMNS)), begin), held, zero)
    below = graph.op("ReduceSum", held, graph.integers(1), keepdims=1)
    sums = graph.op("Add", below, graph.op("ReduceSum", own, graph.integers(2), keepdims=0))
    sums = graph.op("Mod", sums, graph.constant("vocabulary", np.array(vocab_size)))
    index = graph.op("Concat", *(graph.op("Unsqueeze", x, graph.integers(2)) for x in (sums, ids)), axis=2)
    graph.op("GatherND", graph.constant("table", logits), index, name="logits")
    graph.output("logits", "float32", ["B", "W", vocab_size])
    return graph.build("tree_table", "A table.", {"max_length": str(LENGTH)})


def session_of(model):
    """A session of ``model``; one for all that have the same content, since a session keeps nothing between its runs."""
    return _session(model.SerializeToString())


@lru_cache(maxsize=256)
def _session(content):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def finish(decoder, requests):
    for request in requests:
        decoder.add(request)
    while decoder.active or decoder.waiting:
        decoder.step()
