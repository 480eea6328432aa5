"""The class that Triton runs, called as Triton calls it, with a stand-in for the server's module; `test_server` has a real one."""

import asyncio
import contextlib
import sys

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.serving.errors import DeadlineExceeded, EngineFailed, Overloaded
from coupled_sampling.serving.jobs import Job
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from coupled_sampling.serving.triton.answers import Answer, refusal
from coupled_sampling.serving.triton.backend import TritonPythonModel
from coupled_sampling.serving.triton.repository import write_model
from coupled_sampling.serving.triton.settings import TritonSettings
from standins.codebook_clips import clip_of, write_clip_bundle
from standins.text_bundles import write_text_bundle
from standins.tokenizers_of_text import byte_level
from standins.triton_server import Request, arguments, make_server


@contextlib.contextmanager
def running(folder, server, **changes):
    model = TritonPythonModel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", server)
        model.initialize(arguments(folder, **changes))
    try:
        yield model
    finally:
        model.finalize()


@pytest.fixture
def server():
    return make_server()


@pytest.fixture(scope="module")
def shared(repository):
    """A model that stays open; nothing that happens to it is worth a line in the server's log."""
    server = make_server()
    with running(repository / "fashion", server) as model:
        yield model
    assert not server.logged


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    write_model(open_bundle("fashion"), folder / "models", TritonSettings(rows=4, most_waiting=64, threads=1))
    write_model(
        open_bundle("fashion"), folder / "models", TritonSettings(rows=1, most_waiting=0, drain=0), name="narrow"
    )
    write_model(open_bundle(write_text_bundle(folder, byte_level())), folder / "models", name="words")
    write_model(
        open_bundle(write_clip_bundle(folder / "clips")), folder / "models", TritonSettings(threads=1), name="clips"
    )
    return folder / "models"


def text(*values):
    return np.array([value.encode() for value in values], object)


def shoe(seed, **more):
    return Request(prompt=text("shoe"), seed=np.array([seed], np.uint64), **more)


def tokens(responses):
    assert all(response.error is None for response in responses), responses[-1].error.message
    return [token for response in responses for token in response.tensors["tokens"].tolist()]


def alone(bundle, job):
    async def pieces(lanes):
        async with await lanes.submit(job) as found:
            return [piece async for piece in found]

    with Lanes(lambda: open_bundle(bundle), LaneSettings(rows=1)) as lanes:
        return asyncio.run(pieces(lanes))


def test_requests_together_have_the_tokens_that_they_have_alone(shared):
    requests = [shoe(seed) for seed in range(6)]
    shared.execute(requests[:2])
    shared.execute(requests[2:])
    found = [request.responses() for request in requests]
    expected = alone("fashion", Job((263,), seed=4))
    assert tokens(found[4]) == [token for piece in expected for token in piece.tokens]
    assert len({tuple(tokens(one)) for one in found}) == 6
    last = found[4][-1].tensors
    assert last["finish_reason"].tolist() == [b"length"]
    assert last["passes"].tolist() == [len(expected[-1].committed_per_pass)] == [len(found[4])]
    assert found[4][0].tensors["finish_reason"].tolist() == [b""]


def test_numbers_are_told_once_all_is_done(repository, server):
    with running(repository / "fashion", server) as model:
        assert server.numbers["coupled_sampling_tokens_total", "scd-match"].value == 0
        request = shoe(1)
        model.execute([request])
        found = request.responses()
    numbers = {name: metric.value for (name, _), metric in server.numbers.items()}
    assert numbers["coupled_sampling_tokens_total"] == 196
    assert numbers["coupled_sampling_passes_total"] == len(found)
    assert numbers["coupled_sampling_accepted_total"] == 196 - len(found)
    assert numbers["coupled_sampling_running"] == numbers["coupled_sampling_waiting"] == 0


def test_one_answer_with_the_picture_where_no_stream_is_wanted(shared):
    request = shoe(2, stream=np.array([False]), pixels=np.array([True]), logprobs=np.array([True]))
    shared.execute([request])
    (found,) = request.responses()
    assert found.tensors["tokens"].shape == found.tensors["logprobs"].shape == (196,)
    assert found.tensors["logprobs"].max() <= 0
    assert found.tensors["pixels"].shape == (28, 28, 1)
    assert found.tensors["pixels"].std() > 10


def test_a_clip_has_its_frames(repository, server):
    with running(repository / "clips", server) as model:
        request = Request(prompt=text("run"), stream=np.array([False]), pixels=np.array([True]))
        model.execute([request])
        (found,) = request.responses()
    np.testing.assert_array_equal(found.tensors["pixels"], clip_of(found.tensors["tokens"]))


def test_texts_are_streamed_up_to_a_stop_and_go_on_after_an_interruption(repository, server):
    with running(repository / "words", server) as model:
        whole = Request(prompt=text("ab"), seed=np.array([3], np.uint64), max_tokens=np.array([24]))
        model.execute([whole])
        responses = whole.responses()
        said = b"".join(response.tensors["text"][0] for response in responses).decode()
        made = tokens(responses)
        again = Request(
            prompt=text("ab"), seed=np.array([3], np.uint64), max_tokens=np.array([24]), generated=np.array(made[:9])
        )
        stop = Request(prompt=text("ab"), seed=np.array([3], np.uint64), max_tokens=np.array([24]), stop=text(said[5]))
        model.execute([again])
        assert tokens(again.responses()) == made[9:]
        model.execute([stop])
        stopped = stop.responses()
    assert len(made) == 24
    assert b"".join(response.tensors["text"][0] for response in stopped).decode() == said[: said.index(said[5])]
    assert stopped[-1].tensors["finish_reason"].tolist() == [b"stop"]


def test_a_client_that_goes_frees_its_row(repository, server):
    with running(repository / "narrow", server) as model:
        going = shoe(1, method=text("ar"))
        model.execute([going])
        going.next()
        going.gone.set()
        last = going.responses()[-1]
        assert last.error.code == server.TritonError.CANCELLED
        assert model._answers.drain(5)
        staying = shoe(1)  # the one row is free: it would be refused else
        model.execute([staying])
        assert len(tokens(staying.responses())) == 196
        sums = asyncio.run(model._lanes.statistics())["ar"]
        assert sums.finished == {"removed": 1}
        assert sums.tokens < 196


@pytest.mark.parametrize(
    ("tensors", "code", "said"),
    [
        ({"prompt": text("hat")}, "invalid", "hat"),
        ({"prompt_tokens": np.array([999])}, "invalid", "prompt"),
        ({"prompt_tokens": np.array([263]), "max_tokens": np.array([5])}, "invalid", "exactly 196 tokens"),
        ({"prompt_tokens": np.array([263]), "method": text("fast")}, "invalid", "fast"),
        ({"prompt_tokens": np.array([263]), "temperature": np.array([-1.0])}, "invalid", "temperature"),
        ({}, "invalid", "no prompt"),
        ({"prompt": text("shoe"), "parameters": {"temprature": 0.5}}, "invalid", "there is no input 'temprature'"),
        (
            {"prompt_tokens": np.array([263]), "timeout": np.array([0.001]), "method": text("ar")},
            "cancelled",
            "longer than it was given",
        ),
    ],
)
def test_what_cannot_be_done_is_one_response_that_says_so(repository, shared, tensors, code, said):
    request = Request(**tensors)
    shared.execute([request])
    response = request.responses()[-1]
    assert response.error.code == code
    assert said in response.error.message
    assert str(repository) not in response.error.message


def test_headers_that_the_server_forwards_are_no_inputs(shared):
    request = shoe(1, parameters={"x-request-id": "7", "triton_enable_empty_final_response": True})
    shared.execute([request])
    assert len(tokens(request.responses())) == 196


def test_what_does_not_fit_into_the_queue_comes_back_later(repository, server):
    with running(repository / "narrow", server) as model:
        first, second = shoe(1, method=text("ar")), shoe(2, method=text("ar"))
        model.execute([first])
        first.next()
        model.execute([second])
        (refused,) = second.responses()
        assert refused.error.code == server.TritonError.UNAVAILABLE
        assert "come back later" in refused.error.message
        assert len(tokens(first.responses())) == 195


def test_what_is_under_way_is_finished_when_the_model_is_unloaded(repository, server):
    with running(repository / "fashion", server) as model:
        requests = [shoe(seed) for seed in range(3)]
        model.execute(requests)
    assert [len(tokens(request.responses())) for request in requests] == [196] * 3


def test_what_is_not_done_in_the_time_there_is_is_refused(repository, server):
    with running(repository / "narrow", server) as model:
        request = shoe(1, method=text("ar"))
        model.execute([request])
        request.next()
    assert request.responses()[-1].error.code == server.TritonError.UNAVAILABLE
    assert any("requests were ended after 0.0 s" in line for line in server.logged)


@pytest.mark.parametrize(("name", "said"), [("rows", "rows is 0"), ("bundle", "no bundle")])
def test_a_model_that_cannot_be_opened_says_why_in_one_line(repository, server, tmp_path, name, said):
    folder = write_model(open_bundle("fashion"), tmp_path)
    text = (folder / "config.pbtxt").read_text()
    given = {
        "rows": ('string_value: "8"', 'string_value: "0"'),
        "bundle": ('string_value: "bundle"', 'string_value: "nowhere"'),
    }
    (folder / "config.pbtxt").write_text(text.replace(*given[name]))
    with pytest.raises(server.TritonModelException, match=said) as raised, running(folder, server):
        pass
    assert "\n" not in str(raised.value)


def test_a_gpu_where_the_back_end_has_none_is_refused(repository, server):
    with (
        pytest.raises(server.TritonModelException, match="device is 1"),
        running(repository / "fashion", server, model_instance_kind="GPU", model_instance_device_id="1"),
    ):
        pass


def test_a_server_of_before_numpy_2_is_refused(repository, server, monkeypatch, tmp_path):
    (tmp_path / "stub").write_bytes(b"\x7fELF...numpy.core.multiarray\0...")
    monkeypatch.setattr("coupled_sampling.serving.triton.backend._PROGRAM", tmp_path / "stub")
    monkeypatch.setattr(np, "__version__", "2.1.0")
    refused = pytest.raises(server.TritonModelException, match=r"built for NumPy 1.*use Triton 2\.52")
    with refused, running(repository / "fashion", server):
        pass
    monkeypatch.setattr(np, "__version__", "1.26.4")
    with running(repository / "fashion", server):
        pass


def test_a_server_without_metrics_serves(repository, server):
    def none(**_):
        raise RuntimeError("metrics are not supported")

    server.MetricFamily = type("MetricFamily", (), {"COUNTER": 1, "GAUGE": 2, "__new__": lambda cls, **_: none()})
    with running(repository / "fashion", server) as model:
        request = shoe(1)
        model.execute([request])
        assert len(tokens(request.responses())) == 196
    assert any("takes no metrics" in line for line in server.logged)


def test_nothing_of_the_servers_own_is_told():
    secret = "/home/somebody/weights"
    for error, code in ((EngineFailed(secret), "UNAVAILABLE"), (KeyError(secret), "INTERNAL")):
        assert refusal(error)[0] == code
        assert secret not in refusal(error)[1]
    assert refusal(Overloaded("full", 3.0)) == ("UNAVAILABLE", "full (in about 3 s)")
    assert refusal(DeadlineExceeded("late")) == ("CANCELLED", "late")


def test_a_last_response_is_sent_once(server):
    request = Request()
    answer = Answer(server, request)
    answer.refuse(Overloaded("full", 1.0))
    answer.refuse(KeyError("twice"))
    assert len(request.responses()) == 1
    assert not answer.abandoned  # and the sender is not asked any more
