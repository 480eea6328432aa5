"""Models that take a request's vectors, as providers: by the contract, row by row, and what they refuse."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from coupled_sampling import Decoder, GuidedProvider, HostStep, Request, open_bundle
from coupled_sampling.backends import OrtProvider, Place, check_model, open_model
from coupled_sampling.bundles import ConditionGraph, Prompt
from coupled_sampling.bundles.manifest_file import file_record
from coupled_sampling.contracts import RequestObserver, Selective, Trees
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.export import Storage, add_step_graphs, reference_logits
from coupled_sampling.export.step_bundle import write_other_writings
from coupled_sampling.testing import CheckFailed, check_provider
from standins.conditioned import COSMOS, LENGTH, PREFIX, VECTORS, some_vectors
from standins.toy_bundles import toy_weights, write_toy_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CAPTION = (22,) * PREFIX.length
PROMPTS = {"cosmos": (22,), "vectors": CAPTION}
KINDS = {"cosmos": COSMOS, "vectors": VECTORS}
CONDITIONS = [some_vectors(5), some_vectors(2, seed=1), some_vectors(4, seed=2)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("conditioned"), {}
    for name, description in KINDS.items():
        prompts = {"begin": Prompt(PROMPTS[name], (), "Begin")}
        made[name] = write_toy_bundle(folder / name, description, max_window=LENGTH, prompts=prompts)
        write_other_writings(made[name], open_bundle(made[name]).manifest)
    return made


def opened(folders, kind="cosmos", rows=3, **settings):
    return OrtProvider.open(folders[kind], batch_size=rows, threads=1, **settings)


def reference(kind):
    return lambda tokens, condition: reference_logits(
        KINDS[kind], toy_weights(KINDS[kind]), np.asarray(tokens), condition=condition
    )


def requests(kind, count=5, **changes):
    """More than there are rows, each with a condition of its own."""
    return [
        Request(PROMPTS[kind], 5 + n, seed=3, sequence=n, condition=some_vectors(1 + n % 5, seed=n), **changes)
        for n in range(count)
    ]


def decoded(model, asked, method="ar", **settings):
    decoder, made = Decoder(model, method=method, **settings), {}
    for request in asked:
        decoder.add(request)
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            assert commit.error is None
            made.setdefault(commit.handle, []).extend(commit.tokens.tolist())
    return made


@pytest.mark.parametrize("trees", [False, True], ids=["windows", "trees"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_contract_and_is_the_reference(folders, kind, trees):
    model = opened(folders, kind, trees=trees)
    assert isinstance(model, RequestObserver)
    assert isinstance(model, Selective)
    assert isinstance(model, Trees) == trees
    report = check_provider(
        model,
        tolerance=1e-4,
        reference=reference(kind),
        prompts=[PROMPTS[kind]],
        conditions=CONDITIONS,
        tokens=range(22),
        length=LENGTH,
    )
    assert {"begin", "takes", "fork", "row-ranges"} <= {result.name for result in report.results}


@pytest.mark.parametrize("kind", [pytest.param("vectors", marks=pytest.mark.long), "cosmos"])
def test_in_float16_what_rows_are_told_is_of_the_type_of_their_caches(tmp_path, kind):
    prompts = {"begin": Prompt(PROMPTS[kind], (), "Begin")}
    half = Storage("float16", "float16")
    folder = write_toy_bundle(tmp_path / kind, KINDS[kind], max_window=LENGTH, prompts=prompts, storage=half)
    asked = requests(kind)
    expected = decoded(OrtProvider.open(folder, 2, threads=1), asked)
    model = OrtProvider.open(folder, 2, threads=1)
    assert decoded(model, asked, "scd-match", window=6) == expected
    assert np.float16 in {kept.dtype for kept in model._conditions._kept.values()}


def test_a_reference_with_other_vectors_is_told_apart(folders):
    """Negative control."""
    other = reference("cosmos")
    with pytest.raises(CheckFailed, match="reference"):
        check_provider(
            opened(folders),
            tolerance=1e-4,
            reference=lambda tokens, condition: other(tokens, condition * 1.1),
            conditions=CONDITIONS,
            prompts=[(22,)],
            length=LENGTH,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_match_is_autoregressive_decoding_over_more_requests_than_rows(folders, kind):
    asked = requests(kind)
    expected = decoded(opened(folders, kind, 2), asked)
    assert decoded(opened(folders, kind, 2), asked, "scd-match", window=6) == expected
    trees = HostStep(opened(folders, kind, 2, trees=True), "scd-match")
    assert decoded(trees, asked, "scd-match", window=8, branches=3) == expected
    # Each has its own: the same requests with one condition for all come out otherwise.
    same = [dataclasses.replace(one, condition=asked[0].condition) for one in asked]
    assert decoded(opened(folders, kind, 2), same) != expected


def test_samples_of_a_request_share_what_was_read_of_its_condition(folders):
    model, (asked,) = opened(folders), requests("cosmos", 1)
    session, runs = model._conditions._session, []
    model._conditions._session = _Counting(session, runs)
    made = decoded(model, [dataclasses.replace(asked, samples=3)], "scd-match", window=4)
    assert len(runs) == 1
    alone = [dataclasses.replace(asked, sequence=n) for n in range(3)]
    assert list(made.values()) == list(decoded(opened(folders, rows=1), alone).values())


class _Counting:
    def __init__(self, session, runs):
        self.session, self.runs = session, runs

    def run(self, *arguments):
        self.runs.append(arguments)
        return self.session.run(*arguments)


class _FailingOnOne:
    """ONNX Runtime as it is for all conditions but those of one vector."""

    def __init__(self, session):
        self.session = session

    def run(self, names, feeds):
        if len(feeds["condition"]) == 1:
            raise RuntimeError("out of memory")
        return self.session.run(names, feeds)


@pytest.mark.parametrize("kind", ["windows", "trees", "guided"])
def test_a_request_that_cannot_begin_stops_no_other_one(folders, kind):
    """Its row stands idle between two that go on, and is forwarded with them."""
    made, settings, others = {}, {"branches": 2} if kind == "trees" else {}, requests("cosmos", 4)[1:]
    others = [dataclasses.replace(one, length=length) for one, length in zip(others, (12, 2, 12), strict=True)]
    inner = opened(folders, rows=6 if kind == "guided" else 3, trees=kind == "trees")
    inner._conditions._session = _FailingOnOne(inner._conditions._session)
    model = GuidedProvider(inner, 2.0, [21]) if kind == "guided" else inner
    decoder = Decoder(model, method="scd-match", window=5, **settings)
    for request in (*others, requests("cosmos", 1)[0]):
        decoder.add(request)
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            made.setdefault(commit.handle, []).append(commit.error or commit.tokens)
    (error,) = made.pop(3)
    assert "ONNX Runtime failed on a condition of 1 vectors: out of memory" in str(error)
    alone = opened(folders, rows=2)
    expected = decoded(GuidedProvider(alone, 2.0, [21]) if kind == "guided" else alone, others)
    assert {handle: np.concatenate(tokens).tolist() for handle, tokens in made.items()} == expected


def test_a_row_whose_request_could_not_begin_has_no_logits(folders):
    """Not those under the condition before, which would be silence."""
    model, tokens = opened(folders, rows=2), np.array([[22, 3], [22, 3]])
    for row in range(2):
        model.begin(row, Request([22], 5, condition=CONDITIONS[row]))
    expected = np.array(model.forward(tokens, np.array([0, 0])))
    with pytest.raises(InvalidArgument, match="no condition"):
        model.begin(1, Request([22], 5))
    found = np.array(model.forward(tokens, np.array([0, 0])))
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.isnan(found[1]).all()
    with pytest.raises(InvalidArgument, match="row 1 has begun no request"):
        model.forward_rows(tokens[1:], np.array([0]), range(1, 2))
    model.fork(0, [1], 2)
    np.testing.assert_allclose(model.forward(tokens, np.array([0, 0]))[1], expected[0], atol=1e-5)


def test_a_fork_takes_the_condition_along(folders):
    model, tokens = opened(folders, rows=2), np.array([[22, 3, 1]])
    for row, vectors in enumerate(CONDITIONS[:2]):
        model.begin(row, Request([22], 5, condition=vectors))
    expected = np.array(model.forward_rows(tokens, np.array([0]), range(1)))
    model.fork(0, [1], 2)
    found = model.forward_rows(tokens[:, 2:], np.array([2]), range(1, 2))
    np.testing.assert_allclose(found[:, 0, :22], expected[:, 2, :22], atol=1e-5)


def test_a_condition_is_copied_when_it_is_told(folders):
    """Else another row with what the array holds now would get what was made of what it held before."""
    model, vectors = opened(folders, rows=2), CONDITIONS[0].astype(np.float32)
    model.begin(0, Request([22], 5, condition=vectors))
    vectors[:] = 0
    model.begin(1, Request([22], 5, condition=vectors))
    one, other = np.array(model.forward(np.array([[22], [22]]), np.array([0, 0])))[:, 0, :22]
    assert np.abs(one - other).max() > 1e-3


def test_the_unconditional_row_has_its_own_tokens_and_the_vectors_mask(folders):
    """Guidance of LlamaGen from text: where the vectors stood, tokens; where nothing stood, nothing either."""
    unconditional, scale = [17, 18, 19, 20, 21], 2.5
    guided = GuidedProvider(opened(folders, "vectors", 2), scale, lambda _: unconditional)
    vectors, tokens = CONDITIONS[1], np.array([[*CAPTION, 4, 9]])
    asked = Request(CAPTION, 8, condition=vectors)
    assert guided.takes(asked) is None
    guided.begin(0, asked)
    found = guided.forward(tokens, np.array([0]))[0, PREFIX.length :, :22]
    one, other = (
        reference("vectors")([*prompt, 4, 9], vectors)[PREFIX.length :, :22] for prompt in (CAPTION, unconditional)
    )
    np.testing.assert_allclose(found, other + scale * (one - other), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "cosmos",
            {"condition": None},
            r"has no condition, expected floating \(n, 10\) with up to 7 vectors n; make it",
        ),
        ("cosmos", {"condition": "a cat"}, "has a condition of str"),
        ("cosmos", {"condition": np.zeros((2, 10), int)}, "has a condition of int64"),
        (
            "cosmos",
            {"condition": np.zeros((8, 10))},
            r"has a condition of shape \(8, 10\).*without an axis for a batch",
        ),
        ("cosmos", {"condition": np.zeros((0, 10))}, r"has a condition of shape \(0, 10\)"),
        ("cosmos", {"condition": np.zeros((7, 9))}, r"has a condition of shape \(7, 9\)"),
        ("cosmos", {"condition": np.zeros((1, 7, 10))}, r"has a condition of shape \(1, 7, 10\)"),
        ("cosmos", {"condition": np.full((2, 10), np.nan)}, "has a condition with NaN or infinity"),
        ("cosmos", {"condition": np.full((2, 10), -1e39)}, "has a condition with numbers that float32 cannot hold"),
        ("vectors", {"prompt": (22,) * 4}, "has a prompt of 4 tokens, expected 5 or more"),
        ("vectors", {"prompt": (*CAPTION, 1, 22)}, "has the token 22 at position 6, expected it before 5"),
    ],
)
def test_requests_that_it_cannot_do_are_refused_before_anything_runs(folders, kind, changes, message):
    model = opened(folders, kind, 1)
    asked = dataclasses.replace(requests(kind, 1)[0], **changes)
    with pytest.raises(InvalidArgument, match=f"request {message}"):
        Decoder(model).add(asked)
    with pytest.raises(InvalidArgument, match=f"request {message}"):
        model.begin(0, asked)
    with pytest.raises(InvalidArgument, match="row 0 has begun no request"):
        model.forward(np.array([[1]]), np.array([0]))


def test_what_else_is_refused(folders):
    model, (asked,) = opened(folders, rows=2), requests("cosmos", 1)
    for row in (2, -1, True, 0.0):
        with pytest.raises(InvalidArgument, match="expected a row from 0 to 1"):
            model.begin(row, asked)
    with pytest.raises(InvalidArgument, match="float32 cannot hold"):
        model.begin(0, dataclasses.replace(asked, condition=np.full((1, 10), 1e300)))
    model.begin(0, asked)
    with pytest.raises(InvalidArgument, match="row 1 has begun no request"):
        model.forward(np.array([[1], [1]]), np.array([0, 0]))
    model.forward_rows(np.array([[22]]), np.array([0]), range(1))
    model.close()
    with pytest.raises(Exception, match="closed"):
        model.begin(0, asked)


def test_steps_and_back_ends_that_cannot_be_told_a_condition_say_so(folders):
    bundle = folders["cosmos"]
    assert check_model(bundle, method="scd-match") == "host"
    with pytest.raises(
        InvalidArgument, match=r"step is 'graph', but toy takes a condition: it runs with host only; use that"
    ):
        check_model(bundle, method="scd-match", step="graph")
    for backend in ("cuda", "openvino", "tensorrt", "tensorrt-rtx"):
        with pytest.raises(InvalidArgument, match=f"backend is '{backend}', but toy takes a condition"):
            check_model(bundle, Place(backend), method="scd-match", step="host")
    with pytest.raises(InvalidArgument, match="toy takes a condition, which step graphs cannot be told"):
        add_step_graphs(bundle, bundle.parent / "steps")


def test_a_whole_step_is_opened_with_conditions_and_guidance(folders, tmp_path):
    """Through the one door; the room of a prompt of vectors is not kept twice."""
    path = write_toy_bundle(
        tmp_path / "toy", VECTORS, max_window=LENGTH, prompts={"caption": Prompt(CAPTION, (), "A caption")}
    )
    document = json.loads((path / "manifest.json").read_text())
    document["unconditional_prompt"], document["length"] = [17, 18, 19, 20, 21], LENGTH + 1 - PREFIX.length
    (path / "manifest.json").write_text(json.dumps(document))
    bundle = open_bundle(path)
    settings = bundle.settings(method="scd-match", window=5, guidance=3.0)
    asked = settings.request(CAPTION, condition=CONDITIONS[1])
    with open_model(bundle, Place(threads=1), 2, **settings.model) as step:
        found = decoded(step, [asked], "scd-match", window=5)
    guided = GuidedProvider(OrtProvider.open(path, batch_size=2, threads=1), 3.0, lambda _: [17, 18, 19, 20, 21])
    assert found == decoded(guided, [asked])
    assert len(found[0]) == LENGTH + 1 - PREFIX.length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["condition_graph"].update(size=9), r"condition.onnx: inputs are .*, the manifest promises"),
        (lambda d: d.update(condition_graph=None), "'condition.0.key' is .*, the manifest promises none of that name"),
        (lambda d: d["condition_graph"].update(length=0), "condition_graph.length is 0, expected an integer >= 1"),
        (
            lambda d: d["condition_graph"].update(file="no.onnx"),
            "condition_graph.file is 'no.onnx', expected a file that is",
        ),
        (
            lambda d: d["condition_graph"].update(token=3),
            "condition_graph.token is 3, expected a token .* not generated",
        ),
        (lambda d: d["condition_graph"].update(token=23), "condition_graph.token is 23, expected a token in"),
        (
            lambda d: d["condition_graph"].update(token=22, length=2),
            r"prompts\['begin'\].tokens is .*, expected a prompt that fits: it has a prompt of 1 tokens",
        ),
        (
            lambda d: d.update(step_graphs=[{"file": "window.onnx", "method": "scd-match"}]),
            "step_graphs is .*, expected none beside condition_graph",
        ),
    ],
)
def test_a_manifest_that_promises_something_else_is_refused(folders, tmp_path, change, message):
    path = tmp_path / "changed"
    path.mkdir()
    for file in folders["cosmos"].iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    document = json.loads((path / "manifest.json").read_text())
    change(document)
    (path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        OrtProvider.open(path, threads=1)


def test_a_graph_that_promises_exabytes_is_refused_before_there_is_room_for_them(folders, tmp_path):
    """What it makes must be what the window graph takes."""
    from onnx import TensorProto, helper

    path, shape = shutil.copytree(folders["cosmos"], tmp_path / "toy"), [1, 10**9, 10**9]
    nodes = [
        helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("", TensorProto.FLOAT, [1], [0])),
        helper.make_node("Constant", [], ["shape"], value=helper.make_tensor("", TensorProto.INT64, [3], shape)),
        helper.make_node("Expand", ["zero", "shape"], ["condition.0.key"]),
    ]
    taken = helper.make_tensor_value_info("condition", TensorProto.FLOAT, ["S", 10])
    made = helper.make_tensor_value_info("condition.0.key", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "condition", [taken], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (path / "condition.onnx").write_bytes(model.SerializeToString())
    document = json.loads((path / "manifest.json").read_text())
    record = file_record(path / "condition.onnx")
    document["files"]["condition.onnx"] = {"sha256": record.sha256, "bytes": record.bytes}
    (path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"'condition.0.key' is .*, the manifest promises .*1000000000"):
        OrtProvider.open(path, threads=1)


def test_a_condition_graph_in_a_manifest_is_read_back(folders):
    bundle = open_bundle(folders["vectors"])
    assert bundle.manifest.condition_graph == ConditionGraph("condition.onnx", 5, 10, 22)
    assert bundle.condition_graph.name == "condition.onnx"
    assert (bundle.manifest.shortest_prompt, open_bundle(folders["cosmos"]).manifest.shortest_prompt) == (5, 1)
    assert open_bundle("fashion").condition_graph is None
