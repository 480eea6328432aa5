"""Fields that requests for texts have, of completions and of chats: how many, where they end, and what they have to keep to."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from coupled_sampling.arguments import shown
from coupled_sampling.serving.http.errors import ApiError
from coupled_sampling.serving.http.fields import DecodingFields
from coupled_sampling.serving.jobs import GrammarSource
from coupled_sampling.serving.served import ServedModel

__all__ = ["ResponseFormat", "StreamOptions", "TextFields"]

_MOST_STOPS = 16
_LONGEST_STOP = 1000
"""Characters of a stop string: at every step a text is searched as far back as one may begin."""


class StreamOptions(BaseModel):
    """What a stream tells beside the texts."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = Field(False, description="Tell at the end how many tokens there were.")
    include_obfuscation: bool | None = Field(None, description="OpenAI's; without effect.")


class JsonSchema(BaseModel):
    """A JSON schema with a name."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Taken, and without effect: every text keeps to its schema.")


class ResponseFormat(BaseModel):
    """What a text has to be: anything, a JSON object, or a value of a JSON schema."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def _checked_stop(value: object) -> object:
    texts = [value] if isinstance(value, str) else value
    if value is None or (
        isinstance(texts, list)
        and len(texts) <= _MOST_STOPS
        and all(isinstance(text, str) and 1 <= len(text) <= _LONGEST_STOP for text in texts)
    ):
        return value
    raise PydanticCustomError(
        "stop", f"expected a text, or at most {_MOST_STOPS} of them, of 1 to {_LONGEST_STOP} characters each"
    )


class TextFields(DecodingFields):
    """What any request for texts may say."""

    n: int | None = Field(1, ge=1, le=128, description="Texts for each prompt.")
    stop: Annotated[str | list[str] | None, BeforeValidator(_checked_stop)] = Field(
        None, description="Texts that end one; they are no part of it."
    )
    stream: bool | None = Field(False, description="Tell texts while they are made, as server-sent events.")
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = Field(
        None, description="What is added to the logits of tokens, by their numbers."
    )
    frequency_penalty: float | None = Field(0, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(0, ge=-2, le=2, allow_inf_nan=False)
    repetition_penalty: float | None = Field(1, ge=0.01, le=100, allow_inf_nan=False, description="As in transformers.")
    response_format: ResponseFormat | None = None
    regex: str | None = Field(None, min_length=1, description="A regular expression that each text matches.")
    grammar: str | None = Field(None, min_length=1, description="A grammar, in Lark's notation, of each text.")
    return_token_ids: bool | None = Field(False, description="Tell the tokens of each text, too, as `token_ids`.")

    begins_with: ClassVar[str]
    """The field that says what texts begin with."""
    continued: ClassVar[bool]
    """Whether texts go on from the prompt's."""

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are told."""
        raise NotImplementedError

    def most_tokens(self, model: ServedModel) -> tuple[str, int | None]:
        """The field that says how long texts may be, and what it says; None is as long as the model makes them."""
        raise NotImplementedError

    @property
    def prompt_count(self) -> int:
        """How many prompts there are."""
        return 1

    @property
    def choices(self) -> int:
        """Texts for each prompt."""
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end one."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with how many tokens there were."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def bias(self, vocab_size: int) -> dict[int, float]:
        """What is added to logits, by token.

        Raises
        ------
        ApiError
            A key is no token.
        """
        made: dict[int, float] = {}
        for key, value in (self.logit_bias or {}).items():
            # `isdecimal` is true of other scripts' digits, too, which int() knows; the length keeps int() cheap.
            token = int(key) if key.isdecimal() and len(key) < 20 else -1
            if not 0 <= token < vocab_size:
                raise ApiError(
                    400,
                    f"logit_bias has {shown(key)}, expected numbers of tokens in [0, {vocab_size}) as keys",
                    param="logit_bias",
                )
            made[token] = value
        return made

    @property
    def grammar_source(self) -> GrammarSource | None:
        """What texts have to keep to.

        Raises
        ------
        ApiError
            They have to keep to two things at once, or a JSON schema is missing.
        """
        wanted = self.response_format
        made: dict[str, GrammarSource] = {}
        if self.regex is not None:
            made["regex"] = GrammarSource("regex", self.regex)
        if self.grammar is not None:
            made["grammar"] = GrammarSource("lark", self.grammar)
        if wanted is not None and wanted.type != "text":
            made["response_format"] = GrammarSource("json_schema", _schema(wanted))
        if len(made) > 1:
            raise ApiError(
                400, f"{' and '.join(made)} are given, expected one of them; leave others out", param=[*made][-1]
            )
        return next(iter(made.values()), None)

    def check(self, model: ServedModel) -> None:
        """Refuse what cannot work with ``model``.

        Raises
        ------
        ApiError
            It names the field.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is given, but stream is not true; leave it out", param="stream_options")
        if model.writes_text:
            return
        for name, given in (("stop", self.stops), ("response_format, regex or grammar", self.grammar_source)):
            if given:
                raise ApiError(
                    400,
                    f"{name} is given, which is about text, but the tokens of the model {model.name} are no text; leave it out",
                    param=name.partition(",")[0],
                )


def _schema(wanted: ResponseFormat) -> str:
    if wanted.type == "json_object":
        return '{"type": "object"}'
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise ApiError(
            400,
            'response_format has the type json_schema and no schema, expected {"type": "json_schema", '
            '"json_schema": {"name": ..., "schema": {...}}}',
            param="response_format",
        )
    return json.dumps(wanted.json_schema.schema_, ensure_ascii=False, separators=(",", ":"))
