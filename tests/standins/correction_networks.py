"""Correction networks that were fitted to nothing, and a second writing of what their graphs do, in numpy."""

from itertools import pairwise

import numpy as np

from coupled_sampling.export.graphs.correction_network import NetworkWeights, network_graph


def random_weights(seed, table, count, *, read=3, embedding=2, hidden=5, basis=4, scale=0.5):
    """Numbers that half precision has, so that nothing is lost when they are stored."""
    generator = np.random.default_rng(seed)
    lags, rows = len(table.lags), table.vocab_size + 1
    sizes = (2 * read + 1 + lags * (2 * embedding + 1), hidden, hidden, basis)

    def numbers(*shape):
        return (scale * generator.standard_normal(shape)).astype(np.float16).astype(np.float32)

    return NetworkWeights(
        numbers(count, read),
        numbers(count, read),
        numbers(lags, rows, embedding),
        numbers(lags, rows, embedding),
        [(numbers(a, b), numbers(b)) for a, b in pairwise(sizes)],
        numbers(basis, count),
        numbers(count),
    )


def random_network(seed, table, *, first=0, count=None, **settings):
    """The content of an ONNX file."""
    count = table.vocab_size - first if count is None else count
    return network_graph(table, random_weights(seed, table, count, **settings), first).SerializeToString()


def predicted(table, weights, first, logits, changes):
    """The same, position by position."""
    rows = []
    for base, old, new in zip(table.correct(logits, changes), changes.old, changes.new, strict=True):
        inside = slice(first, first + len(weights.bias))
        law = np.exp(base[inside] - base[inside].max())
        law /= law.sum()
        with np.errstate(divide="ignore"):
            logs = np.maximum(np.log(law), -15.0)
        features = [logs @ weights.read_logs, law @ weights.read_law, [-(law * logs).sum()]]
        for k, (was, now) in enumerate(zip(old, new, strict=True)):
            flag = float(was != now)
            features += [weights.new[k, now], flag * weights.old[k, was], [flag]]
        x = np.concatenate(features)
        for i, (matrix, vector) in enumerate(weights.layers):
            x = x @ matrix + vector
            x = np.maximum(x, 0) if i < 2 else x
        row = base.copy()
        row[inside] += x @ weights.basis + weights.bias
        rows.append(row)
    return np.array(rows)
