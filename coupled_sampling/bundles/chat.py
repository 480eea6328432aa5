"""Conversations as text: the chat template that an instruction-tuned model was trained with.

A template is a program in the language Jinja that writes a list of messages as one text, special tokens and all. It comes with the
weights, from anybody, so it runs in a sandbox that changes nothing, reaches nothing but the messages, and comes to an end. As in
transformers, where the format comes from, a template writes every special token itself: what it wrote is encoded without any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coupled_sampling.arguments import in_one_line
from coupled_sampling.bundles.chat_sandbox import make_environment
from coupled_sampling.bundles.json_files import CHAT_TEMPLATE, read_object
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.fields import check_fields

__all__ = ["ChatTemplate"]


@dataclass(frozen=True)
class ChatTemplate:
    """How a model takes a conversation.

    Parameters
    ----------
    source
        The template, in Jinja.
    special_tokens
        The names by which it calls special tokens, such as ``bos_token``, and their texts.

    Examples
    --------
    >>> from coupled_sampling.bundles import ChatTemplate
    >>> template = ChatTemplate(
    ...     "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\\n{% endfor %}"
    ...     "{% if add_generation_prompt %}[assistant] {% endif %}",
    ...     {"bos_token": "<s>"},
    ... )
    >>> template.render([{"role": "user", "content": "Why is the sky blue?"}])
    '<s>[user] Why is the sky blue?\\n[assistant] '
    """

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, path: Path) -> ChatTemplate:
        """The template in a bundle's file.

        Raises
        ------
        BundleError
            There is none in it.
        """
        record = read_object(path, CHAT_TEMPLATE)
        try:
            source, special = record["template"], record["special_tokens"]
            if not isinstance(source, str) or not all(isinstance(text, str) for text in special.values()):
                raise TypeError("texts were expected")
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path} is no chat template ({error!r}); export the bundle again") from error
        return cls(source, special)

    def write(self, path: Path) -> None:
        """Write it as a bundle's file."""
        record = {"template": self.source, "special_tokens": dict(self.special_tokens)}
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        path.write_bytes(text.encode("utf-8", "backslashreplace"))  # half a surrogate pair, as JSON escapes it

    def render(self, messages: Sequence[Mapping[str, Any]], *, reply: bool = True, **more: Any) -> str:
        """The text of a conversation, to be encoded with ``special_tokens=False``.

        Parameters
        ----------
        messages
            ``{"role": ..., "content": ...}`` each, the first one first; roles are mostly ``system``, ``user`` and ``assistant``.
        reply
            Whether the text ends with the beginning of a reply, which the model is to write.
        **more
            What else the template knows, such as ``tools``.

        Raises
        ------
        InvalidArgument
            The template refuses the messages, or fails with them.
        MissingDependency
            The package jinja2 is not installed.
        """
        environment = make_environment()
        values = {"tools": None, "documents": None, **self.special_tokens, **more}
        try:
            made = environment.from_string(self.source).render(
                messages=[dict(message) for message in messages], add_generation_prompt=reply, **values
            )
        except Exception as error:  # a stranger's program: anything may come
            raise InvalidArgument(
                f"messages cannot be written by the chat template of this model: {type(error).__name__}: {in_one_line(error)}"
            ) from error
        return str(made)
