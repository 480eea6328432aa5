"""The arguments of a deployment on many machines, and what is said of wrong ones."""

import importlib.util

import pytest

from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.serving.deployment import app_builder
from coupled_sampling.serving.deployment_settings import DeploymentArgs
from coupled_sampling.serving.keys import read_keys


def test_a_name_alone_is_a_model():
    (model,) = DeploymentArgs.of({"models": ["models/fashion"]}).models
    assert (model.model, model.name, model.rows) == ("models/fashion", "fashion", 8)
    assert model.lane_settings.defaults == {"method": "scd-match"}
    assert model.options == {"max_ongoing_requests": 16, "max_queued_requests": 64}


def test_what_is_said_of_all_models_holds_where_a_model_says_nothing_else():
    asked = DeploymentArgs.of(
        {
            "models": ["a", {"model": "/m/b", "rows": 2, "defaults": {"window": 4}, "deployment": {"num_replicas": 3}}],
            "rows": 6,
            "threads": 2,
            "defaults": {"temperature": 0.5, "window": 8},
            "deployment": {"max_queued_requests": 9, "num_replicas": 1},
        }
    )
    first, second = asked.models
    assert (first.rows, second.rows, first.threads, second.threads) == (6, 2, 2, 2)
    assert first.defaults == {"temperature": 0.5, "window": 8}
    assert second.defaults == {"temperature": 0.5, "window": 4}
    assert first.options == {"max_ongoing_requests": 12, "max_queued_requests": 9, "num_replicas": 1}
    assert second.options == {"max_ongoing_requests": 4, "max_queued_requests": 9, "num_replicas": 3}
    assert second.lane_settings.place.threads == 2


def test_autoscaling_aims_at_full_rows():
    scaled = {"min_replicas": 1, "max_replicas": 4}
    (model,) = DeploymentArgs.of({"models": ["a"], "rows": 6, "deployment": {"autoscaling_config": scaled}}).models
    assert model.options["autoscaling_config"] == {**scaled, "target_ongoing_requests": 6}
    told = {**scaled, "target_ongoing_requests": 2}
    (model,) = DeploymentArgs.of({"models": ["a"], "deployment": {"autoscaling_config": told}}).models
    assert model.options["autoscaling_config"] == told


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "args.models: Field required"),
        ({"models": []}, "args.models: .* at least 1 item"),
        ({"models": ["a"], "row": 3}, "args.row: there is no such argument, got 3"),
        ({"models": ["a"], "rows": 0}, r"args\.rows: .* greater than or equal to 1, got 0"),
        ({"models": [{"model": "a", "gpus": 1}]}, r"args\.models\.0\.gpus: there is no such argument"),
        ({"models": ["a", "x/a"]}, "two models are called 'a'"),
        ({"models": ["ingress"]}, "give it another name"),
        ({"models": ["a b"]}, r"args\.models\.0\.name: .* pattern"),
        ({"models": ["a"], "max_models_per_replica": 2}, "is for multiplexed: true"),
        ({"models": ["a"], "backend": "abacus"}, "abacus"),
        ({"models": ["a"], "http": {"deadline": -1}}, "args.http.deadline: .* greater than 0, got -1"),
    ],
)
def test_what_cannot_work_is_refused_in_words(wrong, words):
    with pytest.raises(InvalidArgument, match=words):
        DeploymentArgs.of(wrong)


def test_a_plugin_is_named_beside_its_back_end():
    args = DeploymentArgs.of({"models": ["fashion"], "backend": "ort", "provider": "webgpu"})
    assert args.models[0].lane_settings.place.provider == "webgpu"


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named():
    with pytest.raises(MissingDependency, match=r"pip install 'coupled-sampling\[ray\]'"):
        app_builder({"models": ["fashion"]})


def test_keys_are_lines_of_a_file_that_has_some(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\n\n  two \n")
    assert read_keys(file, "http.key_file") == ("one", "two")
    for text, words in (("\n", "^http.key_file is .* which has no keys"), ("one\nnot one", "^line 2 of .* is no key")):
        file.write_text(text)
        with pytest.raises(InvalidArgument, match=words):
            read_keys(file, "http.key_file")
