"""Bugs of quantised weights: of their packing, of the operator that reads them, and of the check that finds such bugs."""

from planting import Bug

__all__ = ["BUGS"]

NBITS = ("test_nbits",)

BUGS = (
    Bug(
        "nibbles-the-other-way-round",
        "packed_nibbles",
        "rows[..., ::2] | rows[..., 1::2] << 4",
        "rows[..., 1::2] | rows[..., ::2] << 4",
        "Two neighbouring inputs swap their weights.",
        NBITS,
    ),
    Bug(
        "activations-are-rounded",
        "nbits:_product",
        "{'K': inputs, 'N': outputs, 'bits': bits, 'block_size': block, 'accuracy_level': 1}",
        "{'K': inputs, 'N': outputs, 'bits': bits, 'block_size': block, 'accuracy_level': 4}",
        "Logits of a position depend on the width of the window that it was scored in.",
        NBITS,
    ),
    Bug(
        "low-half-loses-its-zero",
        "nbits_product",
        "_product(graph, x, packed[1], scale, codes.shape, block, zeros=nothing, bias=bias)",
        "_product(graph, x, packed[1], scale, codes.shape, block, bias=bias)",
        "The low halves of int8 codes are read as if they were 8 less.",
        NBITS,
    ),
    Bug(
        "bias-is-lost",
        "Linear.product",
        "None if bias is None else self.vector(f'{name}.bias', bias)",
        "None",
        "Quantised maps of models with biases have none.",
        ("test_storage", "test_nbits"),
    ),
    Bug(
        "check-of-rounded-weights-left-out",
        "check_stored",
        "if rounds and storage.compute == 'float32':\n"
        "    check_reference(*rounded_model(description, weights, storage), provider, exact=True)",
        "",
        "A graph whose codes are packed wrongly is exported, since rounded weights may differ by anything.",
        NBITS,
    ),
    Bug(
        "check-passes-over-tokens-that-are-never-generated",
        "check_reference",
        "errors[~known & ~np.isneginf(found)] = np.inf",
        "",
        "A graph that can generate tokens of the prompt's part of the vocabulary is exported.",
        ("test_check",),
    ),
    Bug(
        "check-without-a-picture",
        "check_reference",
        "tokens[count // 4] = description.pictures.begin",
        "pass",
        "No picture begins in the tokens that are tried, so that wrong positions in one are exported.",
        ("test_check",),
    ),
    Bug(
        "quantised-head-not-told-from-the-embedding",
        "rounded_model",
        "description.tied_head and storage.bits > 0",
        "False",
        "The check of a tied model expects logits of a head that is less rounded than the graph's.",
        NBITS,
    ),
    Bug(
        "norms-of-heads-taken-for-matrices",
        "DecoderDescription.matrices",
        "len(shape) == 2 and name not in tables and '_norm.' not in name",
        "len(shape) == 2 and name not in tables",
        "The check of a narrowed Chameleon expects norms to be rounded, and refuses a graph that is right.",
        ("test_storage",),
    ),
    Bug(
        "domain-not-recorded",
        "Storage.domains",
        "(NBITS_DOMAIN,) if self.is_nbits else ()",
        "()",
        "A back end without the operator is given the bundle.",
        NBITS,
    ),
)
