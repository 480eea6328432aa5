"""`TrtStep` on stand-ins: TensorRT's runs the engine's graph with ONNX Runtime, CUDA's keeps the rules, kernels are emulated.

Nothing ran on a GPU. TensorRT's stand-in finds the last of equal entries, where the real one promises nothing.
"""

import json

import numpy as np
import pytest

from coupled_sampling import Decoder, HostStep, Request, Sampling, generate
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.trt import BuildOptions, EngineStore, load_or_build
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.contracts import RowInfo
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs import decision_law, step
from coupled_sampling.export.graphs.decision import _Decision
from coupled_sampling.testing import StepComparison
from standins.trt_bundles import EQUAL, LENGTH, Machine, adding, write_bundle
from standins.trt_steps import GRAPH, PROMPTS, SAMPLINGS, STEPS, expect_the_tokens_of_host_step, kernels, one_row

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("cuda.bindings.nvrtc")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("step") / "toy", steps=STEPS)


@pytest.fixture
def with_kernels(monkeypatch):
    with kernels(monkeypatch) as install:
        yield install


@pytest.fixture
def machine(with_kernels):
    return with_kernels(Machine())


@pytest.mark.parametrize("seed", [0, 3, 2**64 - 1])
@pytest.mark.parametrize(
    ("windows", "window"), [((1, 4, 16), 6), ((16,), 16), ((1, 2, 3, 4, 5, 6), 6), ((1, 4, 16), 1)]
)
def test_generation_gives_the_tokens_of_host_step(machine, bundle, seed, windows, window):
    """Padded windows and unpadded ones; greedy rows; near the end of the caches, where padding does not fit, too."""
    step = machine.open_step(bundle, windows=windows)
    found = expect_the_tokens_of_host_step(bundle, step, seed=seed, window=window, length=LENGTH - 4)
    assert window == 1 or any(max(trace.committed_per_step) > 1 for trace in found.traces)
    assert step.captured
    step.close()
    step.close()
    assert machine.cuda.live() == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_drafts_that_the_model_cannot_compute_end_there_and_disturb_nothing(machine, bundle, tmp_path, value):
    """Token 10 is never generated, and its embedding is no number: without it tokens are the same."""

    def dead(model):
        table = next(one for one in model.graph.initializer if one.name == "embedding.weight")
        numbers = onnx.numpy_helper.to_array(table).copy()
        numbers[10] = value
        table.CopyFrom(onnx.numpy_helper.from_array(numbers, table.name))

    step = machine.open_step(write_bundle(tmp_path / "toy", change=dead, steps=STEPS))
    for window in (4, 9):
        settings = {"window": window, "length": 30, "drafting": "random:7:4"}
        found = expect_the_tokens_of_host_step(step.bundle, step, **settings)
        expected = generate(OrtProvider.open(bundle, batch_size=3, threads=1), PROMPTS, method="scd-match", seed=3,
                            sampling=SAMPLINGS, **settings)  # fmt: skip
        assert [row.tolist() for row in found.tokens] == [row.tolist() for row in expected.tokens]


def test_long_prompts_are_read_in_the_widest_windows_beside_other_rows(machine, bundle):
    step = machine.open_step(bundle, windows=(1, 4, 16))
    assert (step.prompt_chunk, step.touches_all, step.keeps_prefixes) == (16, True, True)
    decoder = Decoder(step, window=3, drafting="repeat")
    prompts = {0: [1], 1: [*range(8)] * 4, 2: [8, 2] * 12}
    rows = {decoder.add(Request(prompt, 7, seed=5, sequence=i)): [] for i, prompt in prompts.items()}
    passes = []
    run = step._runner.run
    step._runner.run = lambda fit, before: passes.append(fit.width) or run(fit, before)
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            rows[commit.handle] += commit.tokens.tolist()
    assert passes.count(16) == 1
    assert sorted(passes)[-2:] == [15, 16]  # 31 tokens before the last one, and 23 of the other row at the same time
    provider = OrtProvider.open(bundle, batch_size=3, threads=1)
    for handle, prompt in prompts.items():
        own = generate(provider, [prompt], length=7, method="ar", seed=5, sequences=[handle])
        assert rows[handle] == own.tokens[0].tolist()


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("columns", [(), (16,)])
def test_flavours_columns_and_rows_that_change_their_sequence(with_kernels, bundle, flavour, columns):
    step = with_kernels(Machine(flavour=flavour)).open_step(bundle, rows=2, columns=columns)
    both = StepComparison(OrtProvider.open(bundle, batch_size=2, threads=1), step)
    decoder = Decoder(both, window=5, drafting="repeat")
    for i, prompt in enumerate([[8], [8, 1, 2, 5, 3, 7, 1, 0, 4], [3, 0], [1], [9, 2]]):
        decoder.add(Request(prompt, 20 - 2 * i, seed=7, sequence=i, sampling=SAMPLINGS[i % 3]))
    while decoder.active or decoder.waiting:
        decoder.step()
    report = both.report()
    assert report.sites > 100
    assert (report.ties, report.disagreements) == (0, 0)


def test_a_step_is_one_graph_with_its_noise_and_allocates_nothing(machine, bundle):
    step = machine.open_step(bundle)
    expect_the_tokens_of_host_step(bundle, step)
    machine.cuda.calls.clear()
    expect_the_tokens_of_host_step(bundle, step)
    calls = [name for name in machine.cuda.calls if name not in ("cuCtxSetCurrent", "cuStreamSynchronize")]
    assert set(calls) == {"cuGraphLaunch"}
    assert machine.cuda.waits == []


def test_caches_are_one_buffer_and_noise_never_crosses(machine, bundle):
    step = machine.open_step(bundle)
    expect_the_tokens_of_host_step(bundle, step)
    context = next(iter(step._runner._prepared.values())).context._context
    for name in ("0.key", "0.value", "1.key", "1.value"):
        past, present = (context.get_tensor_address(f"{prefix}.{name}") for prefix in ("past_key_values", "present"))
        assert past == present != 0
    assert "noise" in step._runner.memories
    assert "noise" not in step._runner.host


@pytest.mark.parametrize(
    "replacement",
    [
        ("row.start + slot + 1, int(group)", "row.start + slot, int(group)"),
        ("row.sequence, row.start + slot + 1, int(group)", "blockIdx.y + 1, row.start + slot + 1, int(group)"),
        ("if (!Slot(row).decides(slot)) return;\n    float", "if (slot) return;\n    float"),
    ],
    ids=["position", "sequence", "slots"],
)
def test_wrong_noise_is_seen(with_kernels, bundle, replacement):
    """Negative control: noise of another position, of another sequence, and none but the first slot's."""
    step = with_kernels(Machine(), replacement).open_step(bundle)
    with pytest.raises(AssertionError):
        expect_the_tokens_of_host_step(bundle, step)


def test_an_argmax_for_the_first_refusal_is_seen(machine, tmp_path, monkeypatch):
    """Negative control: of equal entries the stand-in finds the last, which commits drafts that were refused."""

    def by_argmax(decision, mask):
        return decision.graph.op("ArgMax", decision.graph.op("Cast", mask, to=1), axis=1, keepdims=1)

    monkeypatch.setattr(_Decision, "first_true", by_argmax)
    bundle = write_bundle(tmp_path / "toy", steps=STEPS)
    step = machine.open_step(bundle)
    with pytest.raises((AssertionError, InvalidArgument)):
        expect_the_tokens_of_host_step(bundle, step)


def test_noise_of_the_step_before_is_seen(machine, bundle, monkeypatch):
    """Negative control: were it captured with the first window's rows, later windows would get old noise."""
    step = machine.open_step(bundle)
    make, made = step._make_noise, []
    monkeypatch.setattr(step, "_make_noise", lambda fit: made.append(fit.shape) or len(made) > 1 or make(fit))
    with pytest.raises(AssertionError):
        expect_the_tokens_of_host_step(bundle, step)


def test_interrupted_steps_are_done_again(machine, bundle):
    step = machine.open_step(bundle)
    decide, calls = step.step, []

    def losing(window):
        outcome = decide(window)
        calls.append(window)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return outcome

    def tokens_of(one, lossy):
        decoder = Decoder(one, window=5, drafting="repeat")
        rows = {decoder.add(Request(prompt, 18, seed=3, sequence=i)): [] for i, prompt in enumerate(PROMPTS)}
        while decoder.active or decoder.waiting:
            try:
                commits = decoder.step()
            except KeyboardInterrupt:
                assert lossy
                continue
            for commit in commits:
                rows[commit.handle].extend(commit.tokens.tolist())
        return list(rows.values())

    expected = tokens_of(HostStep(OrtProvider.open(bundle, batch_size=3, threads=1), "scd-match"), False)
    step.step = losing
    assert tokens_of(step, True) == expected


def test_half_precision_decides_in_float32(machine, bundle):
    """The engine's tokens are those of HostStep over the converted model, whose logits an engine of the window graph gives."""
    step = machine.open_step(bundle, precision="float16")
    provider = machine.open(bundle, precision="float16")
    settings = {"length": 20, "window": 6, "seed": 3, "drafting": "repeat", "sampling": SAMPLINGS}
    found = generate(step, PROMPTS, **settings)
    expected = generate(provider, PROMPTS, method="scd-match", **settings)
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in expected.tokens]
    kinds = {name: kind for name, (_, kind, _) in step.engine.tensors().items()}
    assert (kinds["noise"], kinds["highest_logits"], kinds["past_key_values.0.key"]) == ("FLOAT", "FLOAT", "HALF")


def test_greedy_rows_take_the_first_of_equal_logits(machine, tmp_path, monkeypatch):
    """And would not by an ArgMax of which nothing is promised (negative control)."""
    bundle = write_bundle(tmp_path / "toy", change=adding(EQUAL), steps=STEPS)
    found = expect_the_tokens_of_host_step(bundle, machine.open_step(bundle), samplings=[Sampling(0)] * 3)
    assert {token for row in found.tokens for token in row.tolist()} == {2}
    monkeypatch.setattr(decision_law, "first_largest", decision_law.largest)
    write_bundle(bundle, change=adding(EQUAL), steps=STEPS)
    step = machine.open_step(bundle)
    assert "is stale" in step.built_because
    made = generate(step, PROMPTS, length=20, window=6, drafting="repeat", seed=3, sampling=Sampling(0)).tokens
    assert {token for row in made for token in row.tolist()} == {5}


def test_an_outcome_stays_what_it_was(machine, bundle):
    step = machine.open_step(bundle)
    outcome = step.step(one_row([8, 1, 2]))
    before = [array.tolist() for array in outcome[:2]]
    later = step.step(one_row([3, 0, 1])._replace(rows=[RowInfo(5, 6, Sampling())]))
    assert later.tokens.tolist() != outcome.tokens.tolist()
    assert [array.tolist() for array in outcome[:2]] == before


def test_prepare_captures_every_bucket_and_changes_no_token(machine, bundle):
    step = machine.open_step(bundle)
    step.prepare()
    assert [shape.width for shape in step.captured] == [1, 4, 16]
    expect_the_tokens_of_host_step(bundle, step)


# Engines on disk.


def folders(bundle):
    return sorted(path.name for path in bundle.with_name("toy.engines").iterdir() if path.is_dir())


def test_step_engines_lie_beside_window_engines_and_are_never_mixed_up(machine, tmp_path):
    bundle = write_bundle(tmp_path / "toy", steps=STEPS)
    machine.open(bundle)
    step = machine.open_step(bundle)
    assert step.built_because.startswith("there is no engine at")
    window, of_step = sorted(folders(bundle), key=lambda name: "scd_match" in name)
    assert of_step.startswith("step_scd_match_tensorrt-tensorrt-float32-")
    assert machine.open(bundle).built_because == machine.open_step(bundle).built_because == ""
    assert machine.trt.built == 2
    engines = bundle.with_name("toy.engines")
    plans = [(engines / name / "engine.plan").read_bytes() for name in (window, of_step)]
    for name, plan in zip((of_step, window), plans, strict=True):
        (engines / name / "engine.plan").write_bytes(plan)
    assert "is damaged" in machine.open(bundle).built_because
    assert "is damaged" in machine.open_step(bundle).built_because
    for name in ("engine.plan", "fingerprint.json"):
        (engines / of_step / name).write_bytes((engines / window / name).read_bytes())
    assert "is stale: files was" in machine.open_step(bundle).built_because


def test_engines_of_another_decision_are_built_again(machine, tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "toy", steps=STEPS)
    machine.open_step(bundle)
    (folder,) = bundle.with_name("toy.engines").glob("step_*")
    assert set(json.loads((folder / "fingerprint.json").read_text())["files"]) == {GRAPH, "weights.bin"}
    original = step.decision_graph

    def changed(*arguments, **settings):
        model = original(*arguments, **settings)
        model.graph.node[-1].name = "another"
        return model

    monkeypatch.setattr(step, "decision_graph", changed)
    write_bundle(bundle, steps=STEPS)
    assert "is stale: files was" in machine.open_step(bundle).built_because
    write_bundle(bundle, seed=1, steps=STEPS)
    assert "is stale: files was" in machine.open_step(bundle).built_because


def test_step_engines_of_the_rtx_flavour_are_built_without_a_gpu(with_kernels, tmp_path):
    bundle = open_bundle(write_bundle(tmp_path / "toy", steps=STEPS))
    machine = with_kernels(Machine(flavour="tensorrt-rtx"))
    options = BuildOptions((3,), (1, 4, 16)).fitted(bundle.manifest.window_graph)
    load_or_build(bundle, machine.flavour, None, options, EngineStore(bundle, graph=GRAPH))
    assert machine.open_step(bundle).built_because == ""
