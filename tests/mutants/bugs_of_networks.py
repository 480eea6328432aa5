"""Networks as correctors: what the graph computes, what goes with what, and when one is chosen."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

OF_ORT = ("test_network_correction",)

BUGS = (
    Bug(
        "old-neighbour-read-though-it-stayed",
        "correction_network:_features",
        'graph.op("Mul", was, flag)',
        "was",
        "A neighbour that did not change is read as if it had been another one.",
        OF_ORT,
    ),
    Bug(
        "network-shifted-to-token-zero",
        "correction_network:network_graph",
        "wide[:, first : first + count] = [*weights.basis, weights.bias]",
        "wide[:, :count] = [*weights.basis, weights.bias]",
        "What a network adds goes to the first tokens, not to those that can be generated.",
        OF_ORT,
    ),
    Bug(
        "forbidden-row-is-nan",
        "correction_network:_features",
        'graph.op("LogSoftmax", finite, axis=-1)',
        'graph.op("LogSoftmax", inside, axis=-1)',
        "A row in which every token is forbidden becomes NaN, which is no law and no refusal either.",
        OF_ORT,
    ),
    Bug(
        "network-of-another-table",
        "correction_tables:_tables",
        'network is not None and not np.array_equal(arrays.pop("network"), _digest(network))',
        'network is not None and not len(arrays.pop("network"))',
        "A network is used beside tables that it was not stored with.",
        OF_ORT,
    ),
    Bug(
        "old-network-stays",
        "correction_writing:_named",
        "(record.file, record.network)",
        "(record.file,)",
        "The file of a network that was replaced stays in the bundle, or the new one is removed.",
        OF_ORT,
    ),
    Bug(
        "timed-network-under-rejection",
        "network_choice:candidates_of",
        "record is None or record.network is None or not method.recycles or method.acceptance != 'match'",
        "record is None or record.network is None or not method.recycles",
        "Whether a network is used, on which tokens depend under rejection, is left to how fast the machine is.",
        OF_ORT,
    ),
    Bug(
        "corrections-cost-nothing",
        "Candidates.pays",
        "way.tokens_per_pass / (seconds + way.corrections_per_pass * each)",
        "way.tokens_per_pass / seconds",
        "A network is chosen by the passes that it saves, whatever time it takes.",
        OF_ORT,
    ),
    Bug(
        "model-opened-twice-each-time",
        "opening:open_model",
        "_NOT_WORTH_IT.add(_choice(wanted))",
        "",
        "Whether a network pays is measured at every opening.",
        OF_ORT,
    ),
)
