"""Whatever is passed in place of an argument, it is taken or refused by name: nothing foreign comes up from inside."""

import numpy as np
import pytest

from coupled_sampling import (
    CounterNoise,
    Decoder,
    DraftModel,
    Guidance,
    GuidedProvider,
    HostStep,
    Request,
    Sampling,
    WindowSearch,
    check_window,
    generate,
    summarise,
)
from coupled_sampling.drafting import Copy, NGram, Random, find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import find_method
from coupled_sampling.testing import TableProvider, random_table
from standins.wrong_values import refusals


def model():
    return TableProvider(random_table(0, 4), 4, 2)


def of_generate(name):
    return lambda value: generate(model(), [[0], [1]], **{"length": 3, name: value})


def of_request(name):
    return lambda value: Decoder(model()).check(Request(**{"prompt": [0], "length": 2, name: value}))


def of_decoder(name):
    return lambda value: Decoder(**{"model": model(), name: value})


def of_guidance(name):
    return lambda value: GuidedProvider(**{"provider": model(), "scale": 2.0, "unconditional": [1], name: value})


CALLS = {
    **{
        f"generate {name}": of_generate(name)
        for name in (
            "length", "seed", "stop", "sampling", "progress", "method", "window", "drafting", "noise", "prompt_chunk",
            "reuse_prefixes", "seeds", "sequences", "stop_sequences",
        )
    },
    **{
        f"Request {name}": of_request(name)
        for name in (
            "prompt", "length", "seed", "sequence", "stop", "sampling", "stop_sequences", "stop_rule", "samples", "logprobs",
            "model_logprobs", "guidance", "condition", "generated",
        )
    },
    **{
        f"Decoder {name}": of_decoder(name)
        for name in ("model", "method", "window", "drafting", "noise", "prompt_chunk", "reuse_prefixes")
    },
    **{f"GuidedProvider {name}": of_guidance(name) for name in ("provider", "scale", "unconditional")},
    **{
        f"Sampling {name}": lambda value, name=name: Sampling(**{name: value})
        for name in ("temperature", "top_k", "top_p", "min_p", "processors")
    },
    **{f"Guidance {name}": lambda value, name=name: Guidance(**{name: value}) for name in ("scale", "unconditional")},
    "generate model": lambda value: generate(value, [[0]], length=2),
    "generate prompts": lambda value: generate(model(), value, length=2),
    "HostStep provider": HostStep,
    "HostStep method": lambda value: HostStep(model(), value),
    "HostStep noise": lambda value: HostStep(model(), "ar", value),
    "DraftModel provider": DraftModel,
    "Decoder.add": lambda value: Decoder(model()).add(value),
    "Decoder.check": lambda value: Decoder(model()).check(value),
    "Decoder.remove": lambda value: Decoder(model()).remove(value),
    "Decoder.trace": lambda value: Decoder(model()).trace(value),
    "Decoder.request": lambda value: Decoder(model()).request(value),
    "WindowSearch largest": WindowSearch,
    "WindowSearch start": lambda value: WindowSearch(32, value),
    "find_drafting": find_drafting,
    "find_method": find_method,
    "Copy": Copy,
    "NGram": NGram,
    "Random first": Random,
    "Random count": lambda value: Random(0, value),
    "check_window tokens": lambda value: check_window(model(), value, np.zeros(1, np.int64)),
    "check_window start": lambda value: check_window(model(), np.zeros((1, 1), np.int64), value),
    "summarise": summarise,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_value_is_taken_or_refused_and_never_something_foreign(name):
    assert refusals(CALLS[name]) or name == "Request condition"


@pytest.mark.parametrize(("name", "value"), [("noise", CounterNoise), ("drafting", Random), ("drafting", NGram)])
def test_a_class_in_place_of_what_it_makes_is_refused(name, value):
    with pytest.raises(InvalidArgument, match=f"{name} is"):
        Decoder(**{"model": model(), name: value})
