"""Bugs of corrected laws in the CUDA kernels, as far as they are Python. Those of the kernels' own source are in their tests."""

from planting import Bug

__all__ = ["BUGS"]

CORRECTED = ("test_cuda_corrections",)

BUGS = (
    Bug(
        "kernels-never-sweep",
        "kernels:decide",
        'parameters["corrections"]',
        "False",
        "The kernels leave redrafts as they were, whatever the corrections.",
        CORRECTED,
    ),
    Bug(
        "basis-not-turned-for-the-device",
        "packed",
        "np.transpose(table.basis)",
        "table.basis",
        "The kernels read each token's direction from those of others.",
        CORRECTED,
    ),
    Bug(
        "neighbours-with-the-row-for-none",
        "packed",
        "table.neighbours[:, : table.vocab_size]",
        "table.neighbours",
        "The kernels read the second neighbour's changes one token further.",
        CORRECTED,
    ),
    Bug(
        "scales-of-a-correction-exchanged",
        "packed",
        "(table.stale_scale, table.unigram_scale, table.unigram, turned, tokens)",
        "(table.unigram_scale, table.stale_scale, table.unigram, turned, tokens)",
        "The stale logits are scaled as the unigram law should be.",
        CORRECTED,
    ),
    Bug(
        "no-memory-for-corrected-logits",
        "Plans._made",
        "scratch_bytes(rows, width, vocab_size, rank, candidates=shape.candidates > 0)",
        "scratch_bytes(rows, width, vocab_size)",
        "The kernels write corrected logits beyond their memory.",
        CORRECTED,
    ),
    Bug(
        "memory-for-the-corrected-logits-of-one-row",
        "scratch_bytes",
        "4 * rows * (slots * _in_fours(vocab_size) + _in_fours(rank))",
        "4 * (slots * _in_fours(vocab_size) + _in_fours(rank))",
        "The kernels write the corrected logits of a second row beyond their memory.",
        CORRECTED,
    ),
    Bug(
        "tables-uploaded-for-every-shape-of-window",
        "CorrectionTables.fill",
        "not self._pointer",
        "True",
        "Device memory runs full of copies of the tables.",
        CORRECTED,
    ),
    Bug(
        "sweep-of-drafts-that-are-dropped",
        "KernelStep.__init__",
        "tables if self.method.recycles else None",
        "tables",
        "Methods that recycle nothing pay for corrections.",
        CORRECTED,
    ),
    Bug(
        "kernels-with-tables-of-another-vocabulary",
        "low_rank",
        "check_corrector(corrector, vocab_size)",
        "check_corrector(corrector)",
        "The kernels read beyond tables that were made for fewer tokens.",
        CORRECTED,
    ),
    Bug(
        "kernels-for-any-corrector",
        "refused_by_kernels",
        "corrector is None or isinstance(corrector, LowRank)",
        "True",
        "A model is opened, and an engine built, for a corrector that no kernel can run.",
        CORRECTED,
    ),
)
