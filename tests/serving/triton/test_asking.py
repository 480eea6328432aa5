"""A request's tensors as a job."""

import json

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.triton.asking import read_asked


class Model:
    """What is asked of a `ServedModel`; it writes down how."""

    def __init__(self, tokenizer=None):
        self.tokenizer = tokenizer

    def prompt_of_name(self, name):
        return ("name", name)

    def prompt_of_text(self, text):
        return (len(text),)

    def prompt_of_messages(self, messages):
        return (len(messages),)


def text(*values):
    return np.array([value.encode() for value in values], object)


def asked(tokenizer="any", **tensors):
    return read_asked({"prompt_tokens": np.array([5]), **tensors}, Model(tokenizer))


def test_a_prompt_alone_is_a_request():
    found = asked()
    assert found.job.prompt == (5,)
    assert (found.stream, found.pixels) == (True, False)
    assert found.job.settings == {}
    assert found.job.seed != asked().job.seed  # nobody knows it beforehand


def test_all_of_it_arrives_exactly():
    found = asked(
        seed=np.array([2**64 - 1], np.uint64),
        sequence=np.array([3], np.uint64),
        max_tokens=np.array([7]),
        temperature=np.array([0.9]),
        top_k=np.array([4]),
        top_p=np.array([0.7]),
        min_p=np.array([0.1]),
        method=text("ar"),
        window=np.array([2]),
        branches=np.array([0]),
        guidance=np.array([2.5]),
        guidance_interval=text("3:9"),
        stop=text("\u00e4", "b"),
        regex=text("a+"),
        bias_tokens=np.array([1, 2]),
        bias_values=np.array([0.5, -1.0]),
        frequency_penalty=np.array([0.1]),
        presence_penalty=np.array([0.2]),
        repetition_penalty=np.array([1.3]),
        generated=np.array([8, 9]),
        timeout=np.array([1.5]),
        logprobs=np.array([True]),
        pixels=np.array([True]),
        stream=np.array([False]),
    )
    job = found.job
    assert (job.seed, job.sequence, job.generated, job.deadline) == (2**64 - 1, 3, (8, 9), 1.5)
    assert job.settings == {
        **{"length": 7, "temperature": 0.9, "top_k": 4, "top_p": 0.7, "min_p": 0.1},
        **{"method": "ar", "window": 2, "branches": 0, "guidance": 2.5, "guidance_interval": "3:9"},
    }
    assert job.stop == ("\u00e4", "b")
    assert tuple(job.grammar) == ("regex", "a+")
    assert job.bias == {1: 0.5, 2: -1.0}
    assert (job.frequency_penalty, job.presence_penalty, job.repetition_penalty) == (0.1, 0.2, 1.3)
    assert (found.stream, found.pixels, job.logprobs) == (False, True, True)


def test_a_text_is_continued_and_a_conversation_is_not():
    job = read_asked({"prompt": text("abc")}, Model("any")).job
    assert (job.prompt, job.continued) == ((3,), True)
    job = read_asked({"messages": text(json.dumps([{"role": "user"}] * 2))}, Model("any")).job
    assert (job.prompt, job.continued) == ((2,), False)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"prompt": text("a")}, "prompt_tokens and prompt is given, expected exactly one"),
        ({"bias_tokens": np.array([1])}, "bias_values has 0 numbers for 1 bias_tokens"),
        ({"json_schema": text("{}"), "regex": text("a")}, "expected one of them at most"),
        ({"stop": np.array([b"\xff"], object)}, "stop is no text"),
        ({"timeout": np.array([0.0])}, "deadline is 0.0"),
        ({"prompt_tokens": np.array([], np.int64)}, "prompt"),
    ],
)
def test_what_cannot_work_is_refused(tensors, said):
    with pytest.raises(InvalidArgument, match=said):
        asked(**tensors)


@pytest.mark.parametrize(
    ("messages", "said"),
    [("[", "no JSON"), ("[" * 100_000, "no JSON"), ('{"a": 1}', "expected a list"), ("[1]", "expected a list")],
)
def test_messages_are_json(messages, said):
    with pytest.raises(InvalidArgument, match=said):
        read_asked({"messages": text(messages)}, Model("any"))


def test_there_has_to_be_a_prompt():
    with pytest.raises(
        InvalidArgument, match="no prompt is given, expected exactly one of prompt_tokens, prompt, messages"
    ):
        read_asked({}, Model())
