"""A real tritonserver, with a real client: `make test-triton`. Without the packages each test is skipped with the reason."""

import contextlib
import json
import queue
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling import Decoder, open_bundle
from coupled_sampling.backends import open_model
from coupled_sampling.serving.triton.repository import write_model
from coupled_sampling.serving.triton.settings import TritonSettings
from standins.text_bundles import write_text_bundle
from standins.tokenizers_of_text import byte_level
from standins.tritonserver import tritonserver, until

triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]: make test-triton installs it")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

GUIDE = Path(__file__).parents[3] / "docs" / "triton.md"
KINDS = {
    np.dtype(np.int64): "INT64",
    np.dtype(np.uint64): "UINT64",
    np.dtype(np.float64): "FP64",
    np.dtype(bool): "BOOL",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def server(folder):
    repository = folder / "models"
    write_model(open_bundle("fashion"), repository, TritonSettings(rows=8, lanes=3, threads=1))
    write_model(open_bundle("fashion"), repository, TritonSettings(rows=1, most_waiting=0, threads=1), name="narrow")
    write_model(open_bundle(write_text_bundle(folder, byte_level())), repository, name="words")
    gone = folder / "gone"
    shutil.copytree(open_bundle("fashion").folder, gone)
    write_model(open_bundle(gone), repository, name="gone", link=True)
    shutil.rmtree(gone)
    options = ["--exit-on-error=false", "--strict-readiness=false"]
    with tritonserver(repository, folder, *options) as running:
        for name in ("fashion", "narrow", "words"):
            until(lambda name=name: running.get(f"/v2/models/{name}/ready") is not None, running)
        yield running


def tensor(name, value):
    values = np.atleast_1d(value)
    if values.dtype.kind in "US":
        values = np.array([one.encode() for one in values.tolist()], object)
    made = triton.InferInput(name, list(values.shape), KINDS.get(values.dtype, "BYTES"))
    made.set_data_from_numpy(values)
    return made


class Client:
    """A client with one stream, whose requests have names."""

    def __init__(self, client, headers):
        self._client, self._answers = client, queue.Queue()
        client.start_stream(lambda result, error: self._answers.put((result, error)), headers=headers)

    def ask(self, model, name="", **inputs):
        given = [tensor(key, value) for key, value in inputs.items()]
        self._client.async_stream_infer(model, given, request_id=name)

    def next(self):
        """The next answer: its request, its tensors by name, and whether it is the last."""
        result, error = self._answers.get(timeout=30)
        if error is not None:
            raise error
        found = result.get_response()
        tensors = {one.name: result.as_numpy(one.name) for one in found.outputs}
        return found.id, tensors, found.parameters["triton_final_response"].bool_param

    def all(self, count=1, found=None):
        """All answers of as many requests, by name, behind those that were ``found``."""
        found = {} if found is None else found
        while count:
            name, tensors, last = self.next()
            found.setdefault(name, []).append(tensors)
            count -= last
        return found

    def cancel(self):
        self._client.stop_stream(cancel_requests=True)


@contextlib.contextmanager
def connected(server, headers=None):
    with contextlib.closing(triton.InferenceServerClient(server.grpc)) as client:
        made = Client(client, headers)
        try:
            yield made
        finally:
            made.cancel()


def tokens(answers):
    return [token for answer in answers for token in answer["tokens"].tolist()]


def test_the_server_takes_the_configuration_as_it_is_meant(server):
    with contextlib.closing(triton.InferenceServerClient(server.grpc)) as client:
        assert client.is_model_ready("fashion")
        config = client.get_model_config("fashion").config
        metadata = client.get_model_metadata("words")
    assert (config.max_batch_size, config.model_transaction_policy.decoupled) == (0, True)
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, config.instance_group[0].KIND_CPU)]
    assert all(one.optional for one in config.input)
    assert {one.name: one.datatype for one in metadata.outputs}["text"] == "BYTES"


def test_sixteen_at_once_have_the_tokens_that_each_has_alone(server):
    settings = [{}, {"temperature": 0.7}, {"top_k": 20, "top_p": 0.9}, {"method": "ar"}]
    with connected(server) as client:
        for seed in range(16):
            client.ask(
                "fashion",
                f"{seed}",
                prompt_tokens=np.array([256 + seed % 10]),
                seed=np.uint64(seed),
                **settings[seed % 4],
            )
        found = client.all(16)
    for i, chosen in enumerate(settings):
        seeds = range(i, 16, 4)
        expected = one_after_another([([256 + seed % 10], seed) for seed in seeds], **chosen)
        assert [tokens(found[f"{seed}"]) for seed in seeds] == expected


def one_after_another(requests, **settings):
    """Tokens of requests, each of which has the model for itself, without any server."""
    bundle = open_bundle("fashion")
    chosen = bundle.settings(**{"method": "scd-match", **settings})
    made = []
    with open_model(bundle, **chosen.model) as model:
        decoder = Decoder(model, **chosen.decoder)
        for prompt, seed in requests:
            decoder.add(chosen.request(prompt, seed=seed))
            made.append([])
            while decoder.active or decoder.waiting:
                made[-1] += [token for commit in decoder.step() for token in commit.tokens.tolist()]
    return made


def test_a_text_comes_as_it_is_made(server):
    with connected(server) as client:
        client.ask("words", prompt="ab", seed=np.uint64(3), max_tokens=24)
        streamed = client.all()[""]
        client.ask("words", prompt="ab", seed=np.uint64(3), max_tokens=24, stream=False)
        (whole,) = client.all()[""]
    said = b"".join(answer["text"][0] for answer in streamed)
    assert len(streamed) > 1
    assert said == whole["text"][0]
    assert tokens(streamed) == whole["tokens"].tolist()
    assert streamed[-1]["passes"][0] == whole["passes"][0] == len(streamed)


def test_the_clients_example_of_the_guide_runs(server, capsys):
    text = GUIDE.read_text()
    program, printed = re.search(r"```py\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL).groups()
    assert "localhost:8001" in program
    exec(compile(program.replace("localhost:8001", server.grpc), "triton.md", "exec"), {})
    # How many passes it takes depends on what the engine has seen, and what corrects its guesses on how dear a pass is.
    assert re.sub(r"in \d+ passes", "in N passes", capsys.readouterr().out) == re.sub(
        r"in \d+ passes", "in N passes", printed
    )


def post(server, path, **body):
    """Status and body over HTTP."""
    asked = urllib.request.Request(
        f"http://{server.http}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_guides_requests_over_http(server):
    bodies = re.findall(r"curl localhost:8000(\S+) -d '(.*?)'", GUIDE.read_text())
    assert len(bodies) == 2
    (_, events), (_, whole) = (post(server, path, **json.loads(body)) for path, body in bodies)
    events = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
    made = [token for event in events for token in np.atleast_1d(event["tokens"]).tolist()]
    assert len(made) == 196
    assert json.loads(whole)["tokens"] == made
    assert json.loads(whole)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("inputs", "code", "said"),
    [
        ({"prompt": "hat"}, "INVALID_ARGUMENT", "hat"),
        ({"prompt": "shoe", "max_tokens": 5}, "INVALID_ARGUMENT", "exactly 196 tokens"),
        ({"prompt": "shoe", "method": "fast"}, "INVALID_ARGUMENT", "method is 'fast'"),
        ({}, "INVALID_ARGUMENT", "no prompt is given"),
        ({"prompt": "shoe", "timeout": 0.001, "method": "ar"}, "CANCELLED", "longer than it was given"),
    ],
)
def test_refusals_have_a_code_and_a_reason(server, folder, inputs, code, said):
    with connected(server, headers={"triton_grpc_error": "true"}) as client:
        client.ask("fashion", **inputs)
        with pytest.raises(InferenceServerException, match=said) as refused:
            client.all()
    assert refused.value.status() == f"StatusCode.{code}"
    assert str(folder) not in str(refused.value)


def test_an_input_that_the_model_cannot_have_is_refused_by_the_server(server):
    with connected(server) as client:
        client.ask("fashion", prompt="shoe", stop="a")
        with pytest.raises(InferenceServerException, match="unexpected inference input 'stop'"):
            client.all()


def test_a_misspelt_input_is_refused_over_http(server):
    status, told = post(server, "/v2/models/fashion/generate", prompt="shoe", stream=False, temprature=0.5)
    assert status == 400
    assert "temprature" in told


def test_a_full_queue_is_refused_and_a_cancelled_stream_frees_its_row(server):
    before = server.metrics()["coupled_sampling_tokens_total"]
    with connected(server) as client:
        client.ask("narrow", prompt="shoe", seed=np.uint64(1), method="ar")
        client.next()
        with connected(server, headers={"triton_grpc_error": "true"}) as other:
            other.ask("narrow", prompt="shoe", method="ar")
            with pytest.raises(InferenceServerException, match="come back later") as refused:
                other.all()
        assert refused.value.status() == "StatusCode.UNAVAILABLE"
    asked = {"prompt": "shoe", "stream": False, "method": "ar"}
    until(
        lambda: post(server, "/v2/models/narrow/generate", **asked)[0] == 200, server
    )  # there is one row, and no queue
    done = lambda: server.metrics()["coupled_sampling_tokens_total"] - before  # noqa: E731
    until(lambda: done() > 196, server)
    server.wait_for_metrics(running=0, waiting=0)
    assert done() < 2 * 196


def test_numbers_are_at_the_servers_metrics(server):
    before = server.wait_for_metrics(running=0) and server.metrics()
    with connected(server) as client:
        client.ask("fashion", prompt="bag", seed=np.uint64(5))
        answers = client.all()[""]
    server.wait_for_metrics(running=0, tokens_total=before["coupled_sampling_tokens_total"] + 196)
    after = server.metrics()
    passes = after["coupled_sampling_passes_total"] - before["coupled_sampling_passes_total"]
    assert passes == len(answers)
    assert after["coupled_sampling_accepted_total"] - before["coupled_sampling_accepted_total"] == 196 - passes


def test_a_bundle_that_is_not_there_is_one_line_and_others_serve(server):
    assert server.get("/v2/models/gone/ready") is None
    assert "gone cannot be served: no bundle" in server.log
    assert server.get("/v2/models/fashion/ready") is not None


def test_unloading_and_ending_let_requests_finish(folder):
    repository = folder / "ending"
    write_model(open_bundle("fashion"), repository, TritonSettings(rows=4, threads=1))
    options = ["--model-control-mode=explicit", "--load-model=fashion"]
    with tritonserver(repository, folder, *options) as running:
        with contextlib.closing(triton.InferenceServerClient(running.grpc)) as other:
            with connected(running) as client:
                begun = begin(client)
                other.unload_model("fashion")
                assert [len(tokens(answers)) for answers in client.all(4, begun).values()] == [196] * 4
            until(lambda: "successfully unloaded 'fashion'" in running.log, running)
            other.load_model("fashion")
        with connected(running) as client:  # a stream that is open keeps the model, and with it the server
            begun = begin(client)
            running.stop()
            assert [len(tokens(answers)) for answers in client.all(4, begun).values()] == [196] * 4
        assert running.ended() == 0


def begin(client):
    """Four requests that take a pass for each token; returns once each has had an answer, with all of these."""
    for seed in range(4):
        client.ask("fashion", f"{seed}", prompt="shoe", seed=np.uint64(seed), method="ar")
    found = {}
    while len(found) < 4:
        name, tensors, last = client.next()
        found.setdefault(name, []).append(tensors)
        assert not last
    return found
