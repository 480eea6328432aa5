"""The fill token is the likeliest first token, by the mean law over a model's own prompts."""

from dataclasses import replace

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles import Prompt, Span
from coupled_sampling.errors import InvalidLogits, ProviderError
from coupled_sampling.export import find_fill_token
from coupled_sampling.testing import TableProvider

V = 267


def manifest_of(prompts, layout=()):
    """That of `fashion`, with other prompts: names to tokens."""
    named = {name: Prompt(tuple(tokens), (), name) for name, tokens in prompts.items()}
    found = open_bundle("fashion").manifest
    return replace(found, prompts=named, layout=layout, fill_token=None, grid=None, length=100)


def after(laws):
    """A model whose law after a prompt is ``laws[prompt]``: chances by token; after anything else it says 200."""

    def law(context):
        found = np.zeros(V)
        for token, chance in laws.get(context, {200: 1.0}).items():
            found[token] = chance
        return found

    return TableProvider(law, V)


def test_it_is_the_likeliest_by_the_mean_law_and_not_by_a_vote_or_a_prompt_alone():
    laws = {(256,): {1: 0.6, 2: 0.4}, (257,): {1: 0.6, 2: 0.4}, (258, 3): {2: 0.9, 4: 0.1}}
    manifest = manifest_of({"c": [258, 3], "a": [256], "b": [257]})
    assert find_fill_token(after(laws), manifest) == 2
    assert find_fill_token(after(laws), manifest_of({"a": [256], "b": [257]})) == 1
    assert find_fill_token(after(laws), manifest_of({"c": [258, 3]})) == 2


def test_it_may_stand_first_under_the_layout():
    laws = {(256,): {1: 0.6, 2: 0.3, 9: 0.1}}
    manifest = manifest_of({"a": [256]}, layout=(Span(2, 10, 2), Span(0, 256, 98)))
    found = find_fill_token(after(laws), manifest)
    assert found == 2
    assert replace(manifest, fill_token=found).fill_token == 2


def test_long_prompts_are_read_in_windows():
    prompt = list(range(10))
    model = after({tuple(prompt): {5: 1.0}})
    model.max_window = 4
    assert find_fill_token(model, manifest_of({"a": prompt})) == 5


def test_of_many_prompts_32_are_looked_at_the_first_and_the_last_among_them():
    asked = []

    class Watched(TableProvider):
        def forward(self, tokens, start):
            asked.append(int(tokens[0, 0]))
            return super().forward(tokens, start)

    manifest = manifest_of({str(i): [i] for i in range(200)})
    find_fill_token(Watched(after({}).next_law, V), manifest)
    assert len(asked) == len(set(asked)) == 32
    assert (asked[0], asked[-1]) == (0, 199)


def test_without_prompts_there_is_none():
    assert find_fill_token(after({}), manifest_of({})) is None


def test_a_model_without_a_law_is_refused():
    model = TableProvider(lambda context: np.full(V, np.nan), V)
    with pytest.raises(InvalidLogits):
        find_fill_token(model, manifest_of({"a": [256]}))
    with pytest.raises(ProviderError, match="forward"):
        find_fill_token(TableProvider(lambda context: np.full(5, 0.2), 5), manifest_of({"a": [3]}))


def test_the_embedded_bundles_is_the_one_that_is_found():
    pytest.importorskip("onnxruntime")
    from coupled_sampling.backends import OrtProvider

    manifest = open_bundle("fashion").manifest
    assert manifest.fill_token is not None
    assert find_fill_token(OrtProvider.open("fashion"), manifest) == manifest.fill_token
