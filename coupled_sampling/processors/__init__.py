"""Logits processors: penalties, forbidden and forced tokens, and an adapter for those written for transformers.

Each is a frozen record of settings that goes into `coupled_sampling.Sampling`, for any number of requests at once::

    Sampling(processors=(RepetitionPenalty(1.2), NoRepeatNGram(3), MinNewTokens(10, stop=[2])))

They are part of the target law: decoding is lossless with respect to the law that they make. Each answers for a slot from the
tokens to its left alone, so drafts cost nothing in exactness, whatever the method; and each knows where the prompt ends. They run
on logits of any array library, where the logits are. The definitions are those of transformers, vLLM and OpenAI's API, and where
these differ the docstring says which is followed.

What needs the whole step in a graph or in kernels (``step`` of a bundle) refuses processors.
"""

from coupled_sampling.processors.adapter import TransformersProcessor
from coupled_sampling.processors.constraints import AllowedTokens, ForcedTokens, LogitBias, MinNewTokens
from coupled_sampling.processors.penalties import FrequencyPenalty, PresencePenalty, RepetitionPenalty
from coupled_sampling.processors.repeats import BadWords, NoRepeatNGram

__all__ = [
    "AllowedTokens",
    "BadWords",
    "ForcedTokens",
    "FrequencyPenalty",
    "LogitBias",
    "MinNewTokens",
    "NoRepeatNGram",
    "PresencePenalty",
    "RepetitionPenalty",
    "TransformersProcessor",
]
