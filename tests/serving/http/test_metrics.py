"""The numbers at /metrics, beside a request whose passes are known."""

import asyncio
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import open_model
from coupled_sampling.serving import DeadlineExceeded, Job, Piece, ServedModel
from coupled_sampling.serving.http import HttpSettings, Service
from coupled_sampling.serving.http.metrics import Metrics
from standins import ROOT
from standins.drawing import drawing_app
from standins.serving import on_loopback, served

VLLM = {
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "generation_tokens": "counter",
    "spec_decode_num_drafts": "counter",
    "spec_decode_num_draft_tokens": "counter",
    "spec_decode_num_accepted_tokens": "counter",
    "spec_decode_num_accepted_tokens_per_pos": "counter",
}
"""Names and kinds of vLLM's metrics (docs.vllm.ai, Production Metrics), without ``vllm:`` before them."""

WINDOW, LENGTH = 8, 196


@pytest.fixture
def address():
    with served("fashion", rows=2, most_waiting=1) as models, on_loopback(drawing_app(models, HttpSettings())) as url:
        yield url


def families(address):
    reply = httpx.get(f"{address}/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(reply.text)}


def samples(address):
    """Values by name and labels, ``coupled_sampling_`` left out."""
    return {
        (sample.name.removeprefix("coupled_sampling_"), *sorted(sample.labels.items())): sample.value
        for family in families(address).values()
        for sample in family.samples
    }


def committed(method):
    """Tokens of each pass of the request alone."""
    settings = open_bundle("fashion").settings(method=method, window=WINDOW)
    with open_model(open_bundle("fashion"), **settings.model) as alone:
        made = generate(alone, [[257]], length=LENGTH, seed=3, **settings.decoder)
    return made.traces[0].committed_per_step


def draw(address, **fields):
    return httpx.post(f"{address}/v1/drawings", json={"model": "fashion", "seed": 3, **fields}, timeout=60)


def test_accepted_drafts_are_those_of_the_request_alone(address):
    assert draw(address, method="scd-match", window=WINDOW).status_code == 200
    found, passes = samples(address), committed("scd-match")
    labels = ("method", "scd-match"), ("model_name", "fashion")

    def of(name, *more):
        return found[(name, *sorted((*labels, *more)))]

    assert len(passes) < LENGTH / 1.5  # else there is nothing to count
    assert of("generation_tokens_total") == sum(passes) == LENGTH
    assert of("sequence_passes_total") == of("engine_steps_total") == len(passes)
    assert of("engine_step_seconds_total") > 0
    accepted = [size - 1 for size in passes]
    assert of("spec_decode_num_accepted_tokens_total") == sum(accepted)
    for position in range(max(accepted)):
        by_position = of("spec_decode_num_accepted_tokens_per_pos_total", ("position", str(position)))
        assert by_position == sum(count > position for count in accepted)
    assert of("spec_decode_num_drafts_total") in (len(passes), len(passes) - 1)  # the last token alone has no guess
    assert (
        len(passes) * (WINDOW - 1) - WINDOW**2 < of("spec_decode_num_draft_tokens_total") <= len(passes) * (WINDOW - 1)
    )
    # vLLM's own formula for the mean acceptance length gives tokens per pass
    length = 1 + of("spec_decode_num_accepted_tokens_total") / of("sequence_passes_total")
    assert length == pytest.approx(LENGTH / len(passes))

    model = ("model_name", "fashion")
    assert found[("time_to_first_token_seconds_count", model)] == 1
    assert found[("inter_token_latency_seconds_count", model)] == len(passes) - 1
    assert found[("e2e_request_latency_seconds_count", model)] == 1
    whole = found[("e2e_request_latency_seconds_sum", model)]
    parts = [found[(f"{name}_sum", model)] for name in ("time_to_first_token_seconds", "inter_token_latency_seconds")]
    assert sum(parts) == pytest.approx(whole, rel=0.1, abs=0.02)
    assert found[("requests_finished_total", model, ("reason", "length"))] == 1
    assert of("num_requests_running") == of("num_requests_waiting") == 0


def test_one_token_at_a_time_counts_no_drafts(address):
    assert draw(address, method="ar").status_code == 200
    found = samples(address)
    labels = ("method", "ar"), ("model_name", "fashion")
    assert found[("sequence_passes_total", *labels)] == found[("generation_tokens_total", *labels)] == LENGTH
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens"):
        assert found[(f"spec_decode_{name}_total", *labels)] == 0


def test_refusals_and_ends_are_counted_by_kind(address):
    assert draw(address, n=4).status_code == 429
    assert draw(address, method="sjd-nonsense").status_code == 400
    assert draw(address, timeout=1e-6, method="ar").status_code == 504
    assert draw(address, poisoned=True).status_code == 422
    found, model = samples(address), ("model_name", "fashion")
    assert found[("requests_refused_total", ("kind", "queue_full"), model)] == 1
    assert found[("requests_refused_total", ("kind", "invalid"), model)] == 1
    assert found[("requests_refused_total", ("kind", "deadline"), model)] == 1
    assert found[("requests_finished_total", model, ("reason", "error"))] == 1
    assert ("e2e_request_latency_seconds_count", model) not in found  # of those that finished


def test_a_sequence_that_takes_too_long_has_ended_by_its_deadline():
    class Late:
        async def submit(self, job):
            return self

        async def __aiter__(self):
            yield Piece((1, 2))
            raise DeadlineExceeded("too late")

        async def __aenter__(self):
            return self

        async def __aexit__(self, *raised):
            pass

    async def read(metrics, model):
        async with await Service([model], HttpSettings(), metrics).begin(model, [Job((257,), seed=5)]) as run:
            return [piece async for piece in run]

    metrics, bundle = Metrics(), open_bundle("fashion")
    with pytest.raises(DeadlineExceeded):
        asyncio.run(read(metrics, ServedModel("late", bundle, Late())))
    ended = {"model_name": "late", "reason": "deadline"}
    assert metrics.registry.get_sample_value("coupled_sampling_requests_finished_total", ended) == 1


def test_names_and_kinds_are_those_of_vllm_and_of_the_guide(address):
    draw(address)
    found = {name.removeprefix("coupled_sampling_"): family.type for name, family in families(address).items()}
    assert {name: found[name] for name in VLLM} == VLLM
    table = set(
        re.findall(
            r"^\| `(\w+)`",
            (ROOT / "docs" / "serve.md").read_text().partition("## Metrics")[2].partition("\n## ")[0],
            re.MULTILINE,
        )
    )
    told = {
        re.sub("_total$", "", name)
        for name in (sample[0] for sample in samples(address))
        if not name.startswith(("process_", "python_")) and not name.endswith("_created")
    }
    told = {re.sub("_(bucket|sum|count)$", "", name) for name in told}
    told |= {"requests_refused"}  # nothing was refused
    assert {name.removesuffix("_total") for name in table} == told


def test_two_applications_count_apart():
    first, second = Metrics(), Metrics()
    first.first("a", 1.0)
    assert (
        first.registry.get_sample_value("coupled_sampling_time_to_first_token_seconds_count", {"model_name": "a"}) == 1
    )
    assert (
        second.registry.get_sample_value("coupled_sampling_time_to_first_token_seconds_count", {"model_name": "a"})
        is None
    )
