"""`TrtStep` on stand-ins: TensorRT's runs the engine's graph with ONNX Runtime, CUDA's keeps the rules, kernels are emulated.

Nothing ran on a GPU. TensorRT's stand-in finds the last of equal entries, where the real one promises nothing.
"""

import json
import sys

import numpy as np
import pytest

from coupled_sampling import Decoder, HostStep, Request, Sampling, generate
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.backends.cuda import pinned_launcher
from coupled_sampling.backends.cuda.device import CudaError
from coupled_sampling.backends.trt import BuildOptions, EngineError, EngineStore, load_or_build
from coupled_sampling.backends.trt.runner import Runner
from coupled_sampling.backends.trt.step import step_tensors
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.cli import main
from coupled_sampling.contracts import RowInfo, Window
from coupled_sampling.errors import BundleError, InvalidArgument, InvalidLogits, MissingDependency, ProviderError
from coupled_sampling.export.graphs import decision_law, step
from coupled_sampling.export.graphs.decision import _Decision
from coupled_sampling.testing import StepComparison
from standins.cuda_emulation.emulation import PLAIN, EmulationLauncher
from standins.fake_cuda import Code
from standins.fake_kernels import EmulatedCuda
from standins.trt_bundles import EQUAL, LENGTH, Machine, adding, write_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("cuda.bindings.nvrtc")

STEPS = ["scd-match"]
GRAPH = "step-scd-match-tensorrt.onnx"
PROMPTS = [[8], [8, 1, 2], [3, 0]]
SAMPLINGS = [Sampling(), Sampling(0), Sampling(0.6)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("step") / "toy", steps=STEPS)


@pytest.fixture
def with_kernels(monkeypatch):
    """What gives kernels to a fake GPU, one piece of their source replaced if asked for."""
    monkeypatch.setattr(pinned_launcher, "compile_kernels", lambda capability, threads: b"")
    launchers = []

    def install(machine, replacement=None):
        launchers.append(EmulationLauncher(PLAIN, replacement=replacement))
        machine.cuda.emulator = launchers[-1]
        return machine

    yield install
    for launcher in launchers:
        launcher.end()


@pytest.fixture
def machine(with_kernels):
    return with_kernels(Machine())


def expect_the_tokens_of_host_step(bundle, step, *, seed=3, window=6, prompts=PROMPTS, samplings=SAMPLINGS, length=20):
    settings = {"length": length, "window": window, "seed": seed, "drafting": "repeat", "sampling": samplings}
    found = generate(step, prompts, **settings)
    provider = OrtProvider.open(bundle, batch_size=step.batch_size, threads=1)
    expected = generate(provider, prompts, method="scd-match", **settings)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.tolist() == other.tolist()
    for one, other in zip(found.traces, expected.traces, strict=True):
        assert one.committed_per_step == other.committed_per_step
    return found


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
    before = [array.tolist() for array in outcome]
    later = step.step(one_row([3, 0, 1])._replace(rows=[RowInfo(5, 6, Sampling())]))
    assert later.tokens.tolist() != outcome.tokens.tolist()
    assert [array.tolist() for array in outcome] == before


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


# What cannot work.


def opened(bundle, method="scd-match", **settings):
    return open_model(bundle, Place("tensorrt"), method=method, step="graph", **settings)


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "speculative"])
def test_other_methods_are_refused_before_anything_is_looked_for(bundle, method):
    message = rf"method is '{method}', expected 'scd-match'.*float64.*ring of 3 axes.*CUDA kernels decide"
    with pytest.raises(InvalidArgument, match=message):
        opened(bundle, method)


def test_guidance_and_cuts_are_refused(bundle):
    with pytest.raises(InvalidArgument, match=r"guidance is 2\.0, expected 1 .*float64"):
        opened("fashion", guidance=2.0)
    with pytest.raises(InvalidArgument, match=r"warped is True, expected neither .*float64"):
        opened(bundle, warped=True)


def test_without_its_graph_the_error_is_the_command_that_makes_it(machine, tmp_path, monkeypatch, capsys):
    bundle = write_bundle(tmp_path / "toy")
    with pytest.raises(BundleError, match="no step graph for TensorRT; make one with") as refused:
        machine.open_step(bundle)
    with pytest.raises(InvalidArgument, match="step is 'graph', but the bundle toy has no step graph for TensorRT"):
        opened(bundle)
    monkeypatch.chdir(tmp_path)
    command = str(refused.value).split("`")[1].split()
    assert main(command[1:]) == 0
    expect_the_tokens_of_host_step(bundle, machine.open_step(tmp_path / "toy-steps"))


def one_row(tokens, sampling=None, start=0):
    numbers = [np.array([n]) for n in (start, 1, 0, len(tokens) - 1)]
    rows = [RowInfo(0, 0, sampling or Sampling())]
    return Window(
        np.array([tokens]), *numbers, np.array([True]), np.zeros(1, np.int64), rows, [np.array(tokens)], [None]
    )


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (one_row([1, 2], Sampling(top_k=2)), r"top_k=2.*float64.*use KernelStep"),
        (one_row([1, 2], Sampling(top_p=0.5)), "row 0 asks for"),
        (one_row([1, 2], Sampling(min_p=0.5)), "row 0 asks for"),
        (one_row([1, 2], Sampling(processors=(lambda x, t, p: x,))), "row 0 has logits processors.*use HostStep"),
        (one_row([1, 11]), "slot 1 is token"),
        (one_row([1, 2], start=LENGTH), "starts at"),
    ],
)
def test_a_window_that_cannot_be_is_refused_before_anything_is_queued(machine, bundle, window, message):
    step = machine.open_step(bundle)
    machine.cuda.calls.clear()
    with pytest.raises(InvalidArgument, match=message):
        step.step(window)
    assert not machine.cuda.calls


def test_what_padding_wrote_over_is_not_read(machine, bundle):
    step = machine.open_step(bundle)
    step.step(one_row([1] * 16))
    step.step(one_row([1] * 5, start=5))
    with pytest.raises(InvalidArgument, match="positions from 10 on were written over by the padding"):
        step.step(one_row([1] * 4, start=12))


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_unusable_logits_are_refused_by_row_and_position(machine, tmp_path, fault):
    step = machine.open_step(write_bundle(tmp_path / "toy", change=adding({3: fault}), steps=STEPS))
    with pytest.raises(InvalidLogits, match="row 0 for position 1 hold"):
        step.step(one_row([1, 2]))


@pytest.mark.parametrize("function", ["cuLaunchKernel", "cuMemcpyDtoHAsync", "cuGraphInstantiate"])
def test_a_failing_call_is_named_and_the_next_one_works(machine, bundle, function):
    step = machine.open_step(bundle)
    machine.cuda.fail(function, Code.CUDA_ERROR_ILLEGAL_ADDRESS)
    with pytest.raises(CudaError, match=f"{function} failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        step.step(one_row([1, 2, 3, 4]))
    expect_the_tokens_of_host_step(bundle, step)


def test_a_failing_build_writes_nothing(with_kernels, tmp_path):
    bundle = write_bundle(tmp_path / "toy", steps=STEPS)
    with pytest.raises(EngineError, match=r"building step-scd-match-tensorrt\.onnx"):
        with_kernels(Machine(builds=False)).open_step(bundle)
    assert list(bundle.with_name("toy.engines").iterdir()) == []


def test_a_lost_mask_is_refused(machine, tmp_path):
    machine.trt.losing_mask = True
    with pytest.raises(EngineError, match="without its boolean mask"):
        machine.open_step(write_bundle(tmp_path / "toy", steps=STEPS))


def test_too_little_memory_is_refused_before_building(with_kernels, bundle, tmp_path):
    machine = with_kernels(Machine(cuda=EmulatedCuda(memory=10_000)))
    with pytest.raises(ProviderError, match=r"at least .* are needed \(weights .*caches .*noise"):
        machine.open_step(bundle, engines=tmp_path)
    assert machine.trt.built == 0


def test_kernels_that_cannot_be_compiled_are_missed_before_building(machine, bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(MissingDependency, match="CUDA kernels need"):
        machine.open_step(bundle, engines=tmp_path)
    assert machine.trt.built == 0


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(with_kernels, bundle):
    step = with_kernels(Machine(flavour="tensorrt-rtx", capturable=False)).open_step(bundle)
    with pytest.warns(UserWarning, match="run without a CUDA graph"):
        expect_the_tokens_of_host_step(bundle, step)
    assert step.captured == []


def test_a_window_engine_is_no_step(machine, bundle):
    """What `Runner` refuses, were one ever to get here."""
    provider = machine.open(bundle)
    opened = open_bundle(bundle)
    with pytest.raises(BundleError, match="'committed' is missing"):
        Runner(
            opened,
            provider.engine,
            provider.options,
            provider.fingerprint,
            step_tensors(opened.manifest),
            (),
        )
