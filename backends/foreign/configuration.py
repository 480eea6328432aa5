"""What lies beside a decoder graph and says how it is used: configurations, a tokenizer, a chat template.

Optimum puts all of it into the graph's folder, transformers.js into the one above (the graphs are in ``onnx``), ONNX Runtime GenAI
writes a ``genai_config.json`` of its own. Of two files that say the same thing the generation's own settings come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coupled_sampling.bundles.beside import read_object, read_template, read_tokens
from coupled_sampling.bundles.chat import ChatTemplate
from coupled_sampling.errors import InvalidArgument

__all__ = ["GENAI", "TOKENIZER", "Configuration"]

CONFIG, GENAI, GENERATION, TOKENIZER = "config.json", "genai_config.json", "generation_config.json", "tokenizer.json"

LENGTHS = (
    "max_target_positions",
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
)


@dataclass(frozen=True)
class Configuration:
    """The files beside a graph; what is not there is empty.

    Attributes
    ----------
    home
        The folder that they are in.
    model, generation, genai
        ``config.json``, ``generation_config.json`` and ``genai_config.json``.
    """

    home: Path
    model: Mapping[str, Any]
    generation: Mapping[str, Any]
    genai: Mapping[str, Any]

    @classmethod
    def beside(cls, graph: Path) -> Configuration:
        """That of a graph: from its folder, or from the one above.

        Raises
        ------
        BundleError
            A file is not readable JSON.
        """
        folders = (graph.absolute().parent, graph.absolute().parent.parent)
        known = (CONFIG, GENAI, TOKENIZER)
        home = next((folder for folder in folders if any((folder / name).is_file() for name in known)), folders[0])
        model, generation, genai = (read_object(home / name) for name in (CONFIG, GENERATION, GENAI))
        inner = model.get("text_config")
        return cls(home, {**model, **(inner if isinstance(inner, dict) else {})}, generation, genai)

    def max_length(self, graph: Path, given: int | None) -> int:
        """Positions to hold: ``given``, or what the configuration says.

        Raises
        ------
        InvalidArgument
            Neither says anything, or ``given`` is more than the model was made for.
        """
        limit, source = self._length()
        if given is None and limit is None:
            raise InvalidArgument(
                f"max_length is None and there is no {CONFIG} or {GENAI} with a length beside {graph}; give max_length "
                "(--max-length), the number of positions the model was made for or fewer"
            )
        if given is not None and limit is not None and given > limit:
            raise InvalidArgument(f"max_length is {given}, expected at most {limit}, which is what {source} says")
        return int(limit if given is None else given)  # type: ignore[arg-type]  # one of them is an integer

    def cache_sizes(self) -> tuple[int | None, int | None]:
        """Heads of keys and values, and the size of one, where it is said."""
        decoder = _part(self.genai, "model", "decoder")
        heads = _size(decoder, "num_key_value_heads") or _size(
            self.model, "num_key_value_heads", "num_attention_heads", "n_head"
        )
        size = _size(decoder, "head_size") or _size(self.model, "head_dim")
        width, all_heads = (
            _size(self.model, *names) for names in (("hidden_size", "n_embd"), ("num_attention_heads", "n_head"))
        )
        if size is None and width and all_heads:
            size = width // all_heads
        return heads, size

    @property
    def kind(self) -> str:
        """What the model is called by those who wrote it down."""
        found = self.model.get("model_type") or _part(self.genai, "model").get("type")
        return found if isinstance(found, str) else "unknown"

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text or a turn."""
        sources = (self.generation, self.model, _part(self.genai, "model"))
        return tuple(dict.fromkeys(token for source in sources for token in read_tokens(source.get("eos_token_id"))))

    @property
    def sampling(self) -> dict[str, Any]:
        """How the model's makers sample from it, as far as they say so: settings of `coupled_sampling.Sampling`."""
        for source in (self.generation, _part(self.genai, "search")):
            if source.get("do_sample") is True:
                names = ("temperature", "top_k", "top_p", "min_p")
                found = {name: source[name] for name in names if _is_number(source.get(name))}
                # 0 is what transformers write for none.
                return {name: value for name, value in found.items() if not (name == "top_k" and value < 1)}
        return {}

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer's file."""
        path = self.home / TOKENIZER
        return path if path.is_file() else None

    def chat_template(self) -> ChatTemplate | None:
        """How the model takes a conversation.

        Raises
        ------
        BundleError
            A file is not readable.
        """
        return read_template(self.home)

    def _length(self) -> tuple[int | None, str]:
        found = _size(self.model, *LENGTHS)
        scaling = self.model.get("rope_scaling")
        if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in ("longrope", "su"):
            # Beyond it all positions are encoded anew, which a cache cannot follow.
            original = "original_max_position_embeddings"
            found = _size(scaling, original) or _size(self.model, original) or found
        if found is not None:
            return found, str(self.home / CONFIG)
        return _size(_part(self.genai, "model"), "context_length"), str(self.home / GENAI)


def _part(settings: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """An object within an object; empty if there is none."""
    for name in names:
        found = settings.get(name)
        settings = found if isinstance(found, dict) else {}
    return settings


def _size(settings: Mapping[str, Any], *names: str) -> int | None:
    """The first of ``names`` that is a positive integer."""
    found = (settings.get(name) for name in names)
    return next(
        (value for value in found if isinstance(value, int) and not isinstance(value, bool) and value > 0), None
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
