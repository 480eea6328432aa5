"""What a request to a model in Triton may have, and what its answers have: a table of tensors for each.

A model has the tensors that make sense for it: text needs a tokenizer, guidance an unconditional prompt. Triton itself refuses a
request that has others, or has one in another type.

Numbers that shape the target law are FP64: as FP32 a temperature of 0.9 would be 0.89999998, and the tokens not those that the same
request has elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

from coupled_sampling.bundles.manifest import Manifest

__all__ = ["INPUTS", "OUTPUTS", "Tensor", "inputs_of", "outputs_of"]

_TEXT, _CHAT, _GUIDED, _PIXELS, _PICTURES, _CLIPS = "text", "chat", "guided", "pixels", "pictures", "clips"
"""What a model has to have for some tensors."""


class Tensor(NamedTuple):
    """A tensor of a request or an answer."""

    name: str
    kind: str
    """Its type, as ``config.pbtxt`` writes it, without ``TYPE_``."""
    shape: tuple[int, ...]
    """Its dimensions; -1 is any."""
    what: str
    """What it is, for people."""
    needs: str | None = None
    """What the model has to have."""


INPUTS = (
    Tensor("prompt_tokens", "INT64", (-1,), "the prompt, as tokens"),
    Tensor("prompt", "BYTES", (1,), "the prompt: a text to continue, or the name of one of the bundle's prompts"),
    Tensor("messages", "BYTES", (1,), "a conversation as JSON, instead of a prompt", _CHAT),
    Tensor("seed", "UINT64", (1,), "the same seed gives the same tokens; none draws one"),
    Tensor("sequence", "UINT64", (1,), "which sequence of the seed"),
    Tensor("max_tokens", "INT64", (1,), "most tokens to make; a picture or clip has a fixed number"),
    Tensor("temperature", "FP64", (1,), "0 is greedy"),
    Tensor("top_k", "INT64", (1,), "draw from that many likeliest tokens only"),
    Tensor("top_p", "FP64", (1,), "draw from the likeliest tokens of that probability together"),
    Tensor("min_p", "FP64", (1,), "drop tokens less likely than this times the likeliest"),
    Tensor("guidance", "FP64", (1,), "classifier-free guidance scale; 1 is none", _GUIDED),
    Tensor("guidance_interval", "BYTES", (1,), "FIRST:END, the generated tokens that are guided", _GUIDED),
    Tensor("method", "BYTES", (1,), "how to decode"),
    Tensor("window", "INT64", (1,), "slots per pass"),
    Tensor("branches", "INT64", (1,), "slots of each window that are for branches"),
    Tensor("stop", "BYTES", (-1,), "texts that end it", _TEXT),
    Tensor("json_schema", "BYTES", (1,), "a JSON schema that the text keeps to", _TEXT),
    Tensor("regex", "BYTES", (1,), "a regular expression that the text matches", _TEXT),
    Tensor("bias_tokens", "INT64", (-1,), "tokens whose logits are changed"),
    Tensor("bias_values", "FP64", (-1,), "what is added to each of them"),
    Tensor("frequency_penalty", "FP64", (1,), "as OpenAI's"),
    Tensor("presence_penalty", "FP64", (1,), "as OpenAI's"),
    Tensor("repetition_penalty", "FP64", (1,), "as transformers'; 1 is none"),
    Tensor(
        "generated", "INT64", (-1,), "tokens it has already, to go on after an interruption; max_tokens counts them"
    ),
    Tensor("timeout", "FP64", (1,), "seconds within which it has to be done"),
    Tensor("logprobs", "BOOL", (1,), "whether answers have logprobs"),
    Tensor("pixels", "BOOL", (1,), "whether the last answer has the picture or clip", _PIXELS),
    Tensor("stream", "BOOL", (1,), "false: one answer at the end, instead of one for every commit"),
)
"""What a request may have; every one is optional, but there has to be one prompt."""

OUTPUTS = (
    Tensor("tokens", "INT64", (-1,), "newly committed tokens"),
    Tensor("text", "BYTES", (1,), "text that is settled by them, often an empty one", _TEXT),
    Tensor("finish_reason", "BYTES", (1,), "length or stop with the last answer, before that empty"),
    Tensor("passes", "INT64", (1,), "forward passes of this sequence so far"),
    Tensor("logprobs", "FP64", (-1,), "of the tokens under their target laws, where they were asked for"),
    Tensor(
        "pixels",
        "UINT8",
        (-1, -1, -1),
        "height, width, channels: with the last answer, where it was asked for",
        _PICTURES,
    ),
    Tensor(
        "pixels",
        "UINT8",
        (-1, -1, -1, -1),
        "frames, height, width, channels: with the last answer, where it was asked for",
        _CLIPS,
    ),
)
"""What an answer has; a model has no two of the same name."""


def inputs_of(manifest: Manifest) -> tuple[Tensor, ...]:
    """What a request to a model may have."""
    return _of(manifest, INPUTS)


def outputs_of(manifest: Manifest) -> tuple[Tensor, ...]:
    """What an answer of a model has."""
    return _of(manifest, OUTPUTS)


def _of(manifest: Manifest, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    has = {
        None: True,
        _TEXT: manifest.tokenizer is not None,
        _CHAT: manifest.tokenizer is not None and manifest.chat_template is not None,
        _GUIDED: manifest.unconditional_prompt is not None,
        _PIXELS: manifest.pixel_graph is not None,
        _PICTURES: manifest.pixel_graph is not None and not manifest.makes_clips,
        _CLIPS: manifest.makes_clips,
    }
    return tuple(tensor for tensor in tensors if has[tensor.needs])
