"""``/v1/chat/completions``: replies to what the chat template makes of a conversation."""

import json

import httpx
import pytest

from standins.text_server import NAME, text_server
from standins.tokenizers_of_text import text_at_once


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with text_server(tmp_path_factory.mktemp("text")) as found:
        yield found


@pytest.fixture(scope="module")
def post(server):
    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield lambda messages, **fields: client.post(
            "/v1/chat/completions", json={"model": NAME, "messages": messages, **fields}
        )


@pytest.fixture(scope="module")
def ask(post):
    def call(messages, **fields):
        reply = post(messages, **fields)
        assert reply.status_code == 200, reply.text
        return reply.json()

    return call


@pytest.fixture(scope="module")
def streamed(post):
    """The events of a stream, but for the last one."""

    def call(messages, **fields):
        reply = post(messages, stream=True, **fields)
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]

    return call


def said(content, role="user"):
    return [{"role": role, "content": content}]


def test_a_reply_is_what_follows_the_text_that_the_template_writes(server, ask):
    prompt = server.tokens("<s>system: sat\nuser: the cat?\nassistant: ")
    wanted = server.alone([prompt] * 2, 5, length=20)
    messages = [*said("sat", "system"), *said("the cat?")]
    reply = ask(messages, n=2, seed=5, max_completion_tokens=20, return_token_ids=True, acceptance=True)
    assert [choice["token_ids"] for choice in reply["choices"]] == wanted
    for choice, tokens in zip(reply["choices"], wanted, strict=True):
        assert choice["message"] == {
            "role": "assistant",
            "content": text_at_once(server.inner, tokens)[0],
            "refusal": None,
        }
        assert choice["finish_reason"] == "length"
        assert choice["acceptance"]["tokens"] == 20
    assert reply["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 40,
        "total_tokens": len(prompt) + 40,
    }


def test_parts_of_text_older_names_and_replies_sent_back_are_the_same_conversation(ask):
    def reply(messages, **fields):
        return ask(messages, seed=2, max_tokens=12, **fields)["choices"][0]["message"]

    first = reply(said("one two"))
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert reply(said(parts)) == first
    assert reply([*said("a", "developer"), *said("b")]) == reply([*said("a", "system"), *said("b")])
    back = [*said("one two"), first, *said("three")]
    assert reply(back) == reply([*said("one two"), *said(first["content"], "assistant"), *said("three")])
    assert reply(back) != first


def test_a_reply_without_a_limit_has_as_many_tokens_as_fit(server, ask):
    prompt = server.tokens("<s>user: " + "x" * 220 + "\nassistant: ")
    usage = ask(said("x" * 220))["usage"]
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["completion_tokens"] == 256 + 1 - len(prompt)


def test_a_stream_begins_with_a_role_and_ends_with_a_reason(ask, streamed):
    fields = {"n": 2, "seed": 8, "max_tokens": 24, "return_token_ids": True, "acceptance": True, "logprobs": True}
    whole = ask(said("hi"), **fields)
    told = streamed(said("hi"), stream_options={"include_usage": True}, **fields)
    last = told.pop()
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for wanted in whole["choices"]:
        own = [choice for event in told for choice in event["choices"] if choice["index"] == wanted["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"]["content"] for choice in own[:-1]) == wanted["message"]["content"]
        assert (own[-1]["delta"], own[-1]["finish_reason"]) == ({}, "length")
        assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)
        assert [token for choice in own for token in choice.get("token_ids", ())] == wanted["token_ids"]
        assert ["acceptance" in choice for choice in own] == [False] * (len(own) - 1) + [True]
        assert own[-1]["acceptance"]["tokens"] == wanted["acceptance"]["tokens"] == 24
        probabilities = [one for choice in own if choice["logprobs"] for one in choice["logprobs"]["content"]]
        assert probabilities == wanted["logprobs"]["content"]


def test_tokens_of_logprobs_spell_the_reply_in_text_and_in_bytes(server, ask):
    choice = ask(said("hi"), seed=8, max_tokens=40, logprobs=True, regex="[é日😀]{4}")["choices"][0]
    told = choice["logprobs"]["content"]
    assert choice["finish_reason"] == "stop"
    special = [one for one in told if one["bytes"] is None]
    assert [one["token"] for one in special] == ["</s>"]
    spelled = [one for one in told if one["bytes"] is not None]
    assert "".join(one["token"] for one in spelled) == choice["message"]["content"]
    assert bytes(byte for one in spelled for byte in one["bytes"]).decode() == choice["message"]["content"]
    assert all(one["logprob"] <= 0 and one["top_logprobs"] == [] for one in told)


SCHEMA = {
    "type": "object",
    "properties": {"cat": {"type": "boolean"}, "on": {"enum": ["mat", "dog"]}},
    "required": ["cat", "on"],
    "additionalProperties": False,
}


def test_a_reply_keeps_to_its_schema(server, ask):
    # A random model likes spaces as much as anything, and JSON has room for any number of them.
    blanks = {str(token): -100 for text, token in server.inner.get_vocab().items() if set(text) <= set("ĠĊĉč")}
    wanted = {"type": "json_schema", "json_schema": {"name": "cats", "schema": SCHEMA, "strict": True}}
    reply = ask(said("hi"), n=8, seed=1, max_tokens=100, response_format=wanted, logit_bias=blanks)
    made = [json.loads(choice["message"]["content"]) for choice in reply["choices"]]
    assert {choice["finish_reason"] for choice in reply["choices"]} == {"stop"}
    assert all(isinstance(one["cat"], bool) and one["on"] in ("mat", "dog") and len(one) == 2 for one in made)
    assert len({json.dumps(one) for one in made}) > 1
    text = ask(said("hi"), seed=1, max_tokens=100, response_format={"type": "json_object"}, logit_bias=blanks)
    assert text["choices"][0]["message"]["content"].startswith("{")


REFUSED = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": said([{"type": "image_url", "image_url": {"url": "x"}}])}, "messages.0.content", "'image_url'"),
    ({"messages": said([{"type": "text"}])}, "messages.0.content", "has no text"),
    ({"messages": said(None, "assistant")}, "messages.0.content", "expected a text"),
    ({"messages": said("x", "robot")}, "messages.0.role", "'assistant'"),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
        "messages.0.tool_calls",
        "not supported",
    ),
    ({"messages": said("x" * 400)}, "messages", "leaves room for 0"),
    ({"model": "fashion"}, "messages", "no tokenizer"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "mean the same"),
    ({"max_completion_tokens": 300}, "max_completion_tokens", "leaves room for"),
    ({"logprobs": True, "top_logprobs": 3}, "top_logprobs", "no alternatives"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "calls none"),
    ({"tool_choice": "auto"}, "tool_choice", 'expected "none"'),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
        *["response_format", "refuses"],
    ),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction", "no field of this request"),
]


def test_what_cannot_work_is_refused_by_name(post):
    for fields, param, what in REFUSED:
        messages = fields.get("messages", said("hi"))
        reply = post(messages, **{name: value for name, value in fields.items() if name != "messages"})
        assert reply.status_code == 400, fields
        error = reply.json()["error"]
        assert error["param"] == param, (fields, error)
        assert what in error["message"], (fields, error)
    assert post(said("hi"), tool_choice="none", tools=[], top_logprobs=0, max_tokens=1).status_code == 200
    assert post(said("x" * 400)).json()["error"]["code"] == "context_length_exceeded"
