"""``/v1/completions``: its texts are those of `generate`, whoever else asks, however they are told, and wherever they end."""

import concurrent.futures
import json
import sys

import httpx
import numpy as np
import pytest

from coupled_sampling import Decoder
from coupled_sampling.backends import Place, open_model
from coupled_sampling.cli import main
from coupled_sampling.processors import FrequencyPenalty, LogitBias, PresencePenalty, RepetitionPenalty
from coupled_sampling.serving.http import make_app
from coupled_sampling.serving.jobs import Piece
from coupled_sampling.serving.served import ServedModel
from standins.serving import on_loopback
from standins.text_server import NAME, text_server
from standins.tokenizers_of_text import text_at_once


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with text_server(tmp_path_factory.mktemp("text")) as found:
        yield found


@pytest.fixture(scope="module")
def ask(server):
    """``ask(prompt, **fields)``: the choices, and the whole response."""
    with httpx.Client(base_url=server.address, timeout=60) as client:

        def call(prompt, *, model=NAME, **fields):
            reply = client.post("/v1/completions", json={"model": model, "prompt": prompt, **fields})
            assert reply.status_code == 200, reply.text
            return reply.json()["choices"], reply.json()

        yield call


@pytest.fixture(scope="module")
def streamed(server):
    """``streamed(prompt, **fields)``: the events of a stream, but for the last one."""

    def call(prompt, *, model=NAME, **fields):
        asked = {"model": model, "prompt": prompt, "stream": True, **fields}
        with httpx.stream("POST", f"{server.address}/v1/completions", json=asked, timeout=60) as reply:
            lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]

    return call


def text_of(server, prompt, tokens, stop=()):
    return text_at_once(server.inner, tokens, stop, prompt)[0]


def test_choices_are_the_sequences_of_generate_prompt_by_prompt(server, ask):
    prompts = [server.tokens("the cat"), server.tokens("naïve 日")]
    wanted = server.alone([prompt for prompt in prompts for _ in range(3)], 7, length=20)
    choices, whole = ask(["the cat", "naïve 日"], n=3, seed=7, max_tokens=20, return_token_ids=True)
    assert [choice["token_ids"] for choice in choices] == wanted
    assert [choice["text"] for choice in choices] == [
        text_of(server, prompts[i // 3], made) for i, made in enumerate(wanted)
    ]
    assert [choice["index"] for choice in choices] == list(range(6))
    assert {choice["finish_reason"] for choice in choices} == {"length"}
    read = sum(map(len, prompts))
    assert whole["usage"] == {"prompt_tokens": read, "completion_tokens": 120, "total_tokens": read + 120}


def test_the_text_is_the_command_lines(server, ask, capsys):
    options = ["--prompt", "the cat", "--seed", "5", "--length", "24", "--method", "scd-match", "--json"]
    assert main(["generate", str(server.bundle.folder), *options]) == 0
    assert [ask("the cat", seed=5, max_tokens=24)[0][0]["text"]] == json.loads(capsys.readouterr().out)["texts"]


def test_sixteen_requests_at_once_have_the_texts_they_have_alone(server, ask):
    """Of all kinds: other temperatures go to another lane, log-probabilities and penalties to other steps."""
    kinds = [{}, {"temperature": 0.5}, {"top_k": 9, "window": 4}, {"top_p": 0.8}]
    cases = [(server.tokens(f"{seed} cats sat"), seed, kinds[seed % 4]) for seed in range(16)]
    wanted = [server.alone([prompt], seed, length=24, **kind)[0] for prompt, seed, kind in cases]

    def one(case):
        prompt, seed, kind = case
        return ask(prompt, seed=seed, max_tokens=24, return_token_ids=True, **kind)[0][0]["token_ids"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, cases)) == wanted


def test_a_text_ends_before_the_stop_string_and_says_so(server, ask, streamed):
    prompt = server.tokens("the")
    whole = server.alone([prompt], 3, length=60)[0]
    text = text_of(server, prompt, whole)
    stop = next(text[i : i + 3] for i in range(20, len(text) - 3) if "\ufffd" not in text[i : i + 3])
    before, count, _ = text_at_once(server.inner, whole, [stop], prompt)
    assert 0 < count < 60
    (choice,), reply = ask("the", seed=3, max_tokens=60, stop=["never to be seen", stop])
    assert (choice["text"], choice["finish_reason"]) == (before, "stop")
    assert reply["usage"]["completion_tokens"] == count
    told = [event["choices"][0] for event in streamed("the", seed=3, max_tokens=60, stop=stop)]
    assert "".join(choice["text"] for choice in told) == before
    assert [choice["finish_reason"] for choice in told] == [None] * (len(told) - 1) + ["stop"]


def test_a_stop_string_may_begin_with_the_space_before_the_first_word(ask):
    """A text that goes on has that space, so the stop string is in it."""
    (choice,), _ = ask("the", max_tokens=20, stop=" cat", regex=" cats")
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert ask("the", max_tokens=20, stop="tz", regex=" cats")[0][0]["text"] == " cats"


def test_a_stream_has_the_choices_of_the_whole_reply_side_by_side(ask, streamed):
    fields = {"n": 3, "seed": 9, "max_tokens": 30, "return_token_ids": True}
    whole, told = ask("one", **fields), streamed("one", stream_options={"include_usage": True}, **fields)
    last = told.pop()
    assert last["choices"] == []
    assert last["usage"] == whole[1]["usage"]
    assert all(event["usage"] is None for event in told)
    assert len({event["id"] for event in told}) == 1
    choices = [choice for event in told for choice in event["choices"]]
    for wanted in whole[0]:
        own = [choice for choice in choices if choice["index"] == wanted["index"]]
        assert "".join(choice["text"] for choice in own) == wanted["text"]
        assert [token for choice in own for token in choice["token_ids"]] == wanted["token_ids"]
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]
    order = [choice["index"] for choice in choices]
    assert order != sorted(order), "choices wait for each other"


def test_a_stream_is_never_cut_within_a_character(server, streamed):
    """The pattern has letters of two to four bytes, and the tokenizer's tokens are bytes."""
    told = streamed("x", seed=1, max_tokens=100, regex="[é日😀]{9}", window=2)
    texts = [choice["text"] for event in told for choice in event["choices"]]
    assert len([text for text in texts if text]) > 3
    assert set("".join(texts)) <= set("é日😀")
    assert len("".join(texts)) == 9
    assert told[-1]["choices"][0]["finish_reason"] == "stop"


def test_an_event_is_one_line_whatever_its_text(streamed):
    """httpx, as Python, ends a line at these characters, too."""
    told = streamed("x", seed=1, max_tokens=60, regex="[\u2028\u2029\u0085]{5}")
    assert len("".join(event["choices"][0]["text"] for event in told)) == 5


def test_logprobs_are_of_the_target_laws_and_tokens_spell_the_text(server, ask, streamed):
    given = {"temperature": 0.7, "top_k": 40}
    settings = server.bundle.settings(method="scd-match", length=20, **given)
    prompt = server.tokens("the cat")
    with open_model(server.bundle, Place(threads=1), **settings.model) as model:
        decoder, wanted = Decoder(model, **settings.decoder), []
        decoder.add(settings.request(prompt, seed=4, logprobs=True))
        while decoder.active or decoder.waiting:
            wanted += [float(one) for commit in decoder.step() for one in commit.logprobs]
    choice = ask("the cat", seed=4, max_tokens=20, logprobs=0, **given)[0][0]
    told = choice["logprobs"]
    np.testing.assert_allclose(told["token_logprobs"], wanted, atol=1e-9)
    assert "".join(told["tokens"]) == choice["text"]
    begins = np.cumsum([0, *map(len, told["tokens"])])[:-1]
    assert told["text_offset"] == begins.tolist()
    parts = [
        event["choices"][0]["logprobs"] for event in streamed("the cat", seed=4, max_tokens=20, logprobs=0, **given)
    ]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [one for part in parts for one in part[name]] == told[name]


def test_a_prompt_is_echoed_as_it_came(server, ask, streamed):
    text = ask("naïve  日", seed=2, max_tokens=8)[0][0]["text"]
    assert ask("naïve  日", seed=2, max_tokens=8, echo=True)[0][0]["text"] == "naïve  日" + text
    told = streamed(["naïve  日", "one"], seed=2, max_tokens=8, echo=True)
    choices = [choice for event in told for choice in event["choices"]]
    assert "".join(choice["text"] for choice in choices if choice["index"] == 0) == "naïve  日" + text
    assert "".join(choice["text"] for choice in choices if choice["index"] == 1).startswith("one")
    within = server.tokens("日")[:-1]
    both = ask(within, seed=2, max_tokens=8, echo=True, return_token_ids=True)[0][0]
    assert both["text"] == server.inner.decode([*within, *both["token_ids"]])


def test_a_model_without_a_tokenizer_goes_on_from_tokens(ask, streamed):
    (choice,), reply = ask([257], model="fashion", seed=3, return_token_ids=True, acceptance=True)
    assert reply["usage"]["completion_tokens"] == 196
    assert choice["text"] == ",".join(map(str, choice["token_ids"]))
    assert sum(choice["acceptance"]["committed_per_pass"]) == 196
    assert choice["acceptance"]["passes"] < 150
    told = streamed([257], model="fashion", seed=3, echo=True)
    assert "".join(event["choices"][0]["text"] for event in told) == f"257,{choice['text']}"
    told = streamed([257], model="fashion", seed=3, logprobs=0)
    assert "".join(token for event in told for token in event["choices"][0]["logprobs"]["tokens"]) == choice["text"]


PENALTIES = {
    "frequency_penalty": FrequencyPenalty,
    "presence_penalty": PresencePenalty,
    "repetition_penalty": RepetitionPenalty,
}


def test_biases_penalties_and_a_pattern_shape_the_text(server, ask):
    cat = server.inner.token_to_id("cat")
    assert ask("the", max_tokens=6, logit_bias={str(cat): 100})[0][0]["text"] == "cat" * 6
    given, bias = (
        {"seed": 6, "max_tokens": 30, "return_token_ids": True, "logit_bias": {str(cat): 5}},
        LogitBias({cat: 5}),
    )
    found = []
    for name, kind in PENALTIES.items():
        (choice,), _ = ask("the cat", **given, **{name: 1.5})
        wanted = server.alone([server.tokens("the cat")], 6, (kind(1.5), bias), length=30)
        assert [choice["token_ids"]] == wanted, name
        found.append(choice["text"])
    assert len({*found, ask("the cat", **given)[0][0]["text"]}) == 4, "a penalty changes nothing"
    choice = ask("the", max_tokens=40, grammar='start: "cat" ("s" | "!"){3}')[0][0]
    assert (choice["text"][:3], set(choice["text"][3:]) <= {"s", "!"}, len(choice["text"])) == ("cat", True, 6)


def test_the_fingerprint_is_of_the_model(ask):
    found = {ask("one", max_tokens=1)[1]["system_fingerprint"] for _ in range(2)}
    assert len(found) == 1
    assert found != {ask([257], model="fashion")[1]["system_fingerprint"]}


REFUSED = [
    ({"prompt": ""}, "prompt", "at least one token"),
    ({"prompt": []}, "prompt", "expected a text"),
    ({"prompt": ["a", 1]}, "prompt", "expected a text"),
    ({"prompt": [[1], []]}, "prompt", "none of them empty"),
    ({"prompt": [330]}, "prompt", "[0, 330)"),
    ({"prompt": [True]}, "prompt", "expected a text"),
    ({"model": "fashion"}, "prompt", "no tokenizer"),
    ({"model": "fashion", "prompt": [257], "max_tokens": 7}, "max_tokens", "exactly 196"),
    ({"model": "fashion", "prompt": [257], "stop": "x"}, "stop", "no text"),
    ({"model": "fashion", "prompt": [257], "regex": "x"}, "response_format", "no text"),
    ({"max_tokens": 257}, "max_tokens", "leaves room for 256"),
    ({"prompt": [5] * 300}, "prompt", "leaves room for 0"),
    ({"logprobs": 2}, "logprobs", "no alternatives"),
    ({"logprobs": 0, "echo": True}, "echo", "logprobs"),
    ({"n": 2, "best_of": 3}, "best_of", "expected n, 2"),
    ({"suffix": "."}, "suffix", "goes on from"),
    ({"n": 33}, "n", "at most 32"),
    ({"prompt": ["a"] * 17, "n": 2}, "n", "34 sequences"),
    ({"logit_bias": {"cat": 1}}, "logit_bias", "'cat'"),
    ({"logit_bias": {"330": 1}}, "logit_bias", "[0, 330)"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "'-1'"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "100"),
    ({"repetition_penalty": 0}, "repetition_penalty", "0.01"),
    ({"stop": ["x"] * 17}, "stop", "at most 16"),
    ({"stop": ""}, "stop", "1 to 1000"),
    ({"stop": "a</s>"}, "stop", "special token"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream is not true"),
    ({"regex": "a(b"}, "regex", "refuses"),
    ({"grammar": "start"}, "grammar", "refuses"),
    ({"regex": "a", "grammar": 'start: "a"'}, "grammar", "one of them"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "no schema"),
    ({"method": "beam"}, "method", "expected one of"),
    ({"window": 999}, "window", "at most 256"),
    ({"guidance": 2}, "guidance", "unconditional"),
    ({"guidance_interval": "3:9"}, "guidance_interval", "guidance is 1"),
    ({"functions": []}, "functions", "no field of this request"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_work_is_refused_before_the_response_begins(server, stream):
    with httpx.Client(base_url=server.address, timeout=60) as client:
        for fields, param, said in REFUSED:
            asked = {"model": NAME, "prompt": "the", **fields}
            if "stream_options" not in fields:
                asked["stream"] = stream
            reply = client.post("/v1/completions", json=asked)
            assert reply.status_code == 400, fields
            error = reply.json()["error"]
            assert (error["param"], error["type"]) == (param, "invalid_request_error"), (fields, error)
            assert said in error["message"], (fields, error)
    assert not [one for model in server.models for one in model.source._lanes.values() if one.statistics.running]


def test_a_grammar_where_its_package_is_missing_is_refused(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    reply = httpx.post(f"{server.address}/v1/completions", json={"model": NAME, "prompt": "the", "regex": "a+"})
    assert reply.status_code == 400
    assert "coupled-sampling[grammar]" in reply.json()["error"]["message"]


class _Failing:
    """A source whose jobs end in an error, behind as many tokens as their seed says."""

    def __init__(self):
        self.left = 0

    async def submit(self, job):
        self._seed = job.seed
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *raised):
        self.left += 1

    async def __aiter__(self):
        for _ in range(self._seed):
            yield Piece((40,))
        yield Piece((), "error", "logits are NaN")


def test_a_text_that_fails_ends_in_an_error(server):
    source = _Failing()
    with on_loopback(make_app([ServedModel("m", server.bundle, source)])) as address:
        asked = {"model": "m", "prompt": "the", "seed": 0, "stream": True}
        early = httpx.post(f"{address}/v1/completions", json=asked)
        assert early.status_code == 422
        assert early.json()["error"]["type"] == "generation_failed"
        late = httpx.post(f"{address}/v1/completions", json=asked | {"seed": 2})
        assert late.status_code == 200
        events = late.text.strip().split("\n\n")
        assert [event.startswith("event: error\n") for event in events] == [False, False, True]
        assert source.left == 2
