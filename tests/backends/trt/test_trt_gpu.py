"""TensorRT on a real GPU: the conformance suite, the tokens of the CPU backend, and captured graphs against plain runs."""

import numpy as np
import pytest

from coupled_sampling import Decoder, Request, Sampling, generate
from coupled_sampling.backends import OrtProvider, Place
from coupled_sampling.backends.trt import BuildOptions, TrtProvider, TrtStep, find_flavour
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.errors import InvalidLogits
from coupled_sampling.export import add_step_graphs
from coupled_sampling.testing import StepComparison, check_provider
from standins.on_a_gpu import gpu, opened
from standins.trt_bundles import EQUAL, adding, write_bundle

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def machine():
    device = gpu()

    def found():
        flavour = find_flavour()
        flavour.gpu(device)  # refuses a GPU that it does not run on
        return flavour

    return opened(found), device


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def stepping(tmp_path_factory):
    """The shipped model with a step graph for TensorRT."""
    pytest.importorskip("onnx")
    return add_step_graphs("fashion", tmp_path_factory.mktemp("bundle") / "fashion-steps", ["scd-match"])


def place(machine, engines):
    return Place(machine[0].name, engines=engines)


def open_provider(machine, engines, rows=2, **options):
    return TrtProvider.open("fashion", place(machine, engines), BuildOptions((rows,), (1, 8, 32), **options))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-3), ("float16", 0.1), ("bfloat16", 0.3)])
def test_it_passes_the_conformance_suite(machine, engines, precision, tolerance):
    manifest = open_bundle("fashion").manifest
    reference = OrtProvider.open("fashion")
    first, count = manifest.generated_tokens.first, manifest.generated_tokens.count

    def logits(tokens):
        return reference.forward(tokens[None], np.zeros(1, np.int64))[0]

    provider = open_provider(machine, engines, precision=precision)
    prompts = [prompt.tokens for prompt in manifest.prompts.values()][:2]
    tokens = range(first, first + count)
    print(check_provider(provider, tolerance=tolerance, reference=logits, prompts=prompts, tokens=tokens))
    provider.close()


def test_it_gives_the_tokens_of_the_cpu_backend(machine, engines):
    settings = {"length": 195, "method": "scd-match", "window": 16, "drafting": "repeat", "seed": 0}
    prompts = [[258], [259]]
    found = generate(open_provider(machine, engines), prompts, **settings).tokens
    expected = generate(OrtProvider.open("fashion", batch_size=2), prompts, **settings).tokens
    # Near ties may fall otherwise, and all that follows with them.
    same = [int((np.asarray(a) == np.asarray(b)).cumprod().sum()) for a, b in zip(found, expected, strict=True)]
    assert max(same) > 100


def test_a_step_engine_gives_the_tokens_of_host_step_over_the_same_engine(machine, engines, stepping):
    """Logits of two engines may differ in the last bit: near ties may fall otherwise, and all that follows with them."""
    settings = {"length": 195, "window": 16, "drafting": "repeat", "seed": 0}
    prompts, options = [[258], [259]], BuildOptions((2,), (1, 8, 32))
    step = opened(lambda: TrtStep.open(stepping, place(machine, engines), options))
    found = generate(step, prompts, **settings).tokens
    assert [row.tolist() for row in generate(step, prompts, **settings).tokens] == [row.tolist() for row in found]
    expected = generate(open_provider(machine, engines), prompts, method="scd-match", **settings).tokens
    same = [int((np.asarray(a) == np.asarray(b)).cumprod().sum()) for a, b in zip(found, expected, strict=True)]
    assert max(same) > 100
    assert {shape.width for shape in step.captured} >= {32}
    step.close()


def test_a_step_engine_differs_from_host_step_by_ties_only(machine, engines, stepping):
    """Site by site: a first refusal that is not the first, or noise of another position, is a disagreement."""
    options = BuildOptions((2,), (1, 8, 32))
    step = opened(lambda: TrtStep.open(stepping, place(machine, engines), options))
    both = StepComparison(open_provider(machine, engines), step, logits_error=2e-3)
    decoder = Decoder(both, window=16, drafting="repeat")
    for sequence in range(4):
        sampling = Sampling(0) if sequence == 3 else Sampling()
        decoder.add(Request([258 + sequence], 190, seed=1, sequence=sequence, sampling=sampling))
    while decoder.active or decoder.waiting:
        decoder.step()
    report = both.report()
    print(report)
    assert report.disagreements == 0
    assert report.ties <= 0.02 * report.sites
    step.close()


def open_toy_step(machine, bundle, engines):
    return opened(lambda: TrtStep.open(bundle, place(machine, engines), BuildOptions((1,), (8,))))


def test_a_greedy_step_engine_takes_the_first_of_equal_logits(machine, tmp_path):
    step = open_toy_step(
        machine, write_bundle(tmp_path / "toy", change=adding(EQUAL), steps=["scd-match"]), tmp_path / "engines"
    )
    made = generate(step, [[8]], length=20, window=8, drafting="repeat", seed=0, sampling=Sampling(0))
    assert set(made.tokens[0].tolist()) == {2}
    step.close()


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_a_step_engine_reports_unusable_logits(machine, tmp_path, fault):
    step = open_toy_step(
        machine, write_bundle(tmp_path / "toy", change=adding({3: fault}), steps=["scd-match"]), tmp_path / "engines"
    )
    with pytest.raises(InvalidLogits):
        generate(step, [[8]], length=4, window=8, drafting="repeat", seed=0)
    step.close()


def test_a_launched_graph_does_what_a_plain_run_does(machine, engines):
    provider, tokens, start = open_provider(machine, engines), np.full((2, 8), 3), np.zeros(2, np.int64)
    plain = provider.forward(tokens, start).copy()
    assert [shape.width for shape in provider.captured] == [8]
    np.testing.assert_array_equal(provider.forward(tokens, start), plain)
    provider.close()


def test_closing_gives_the_memory_back(machine, engines):
    _, device = machine
    open_provider(machine, engines).close()
    before, _ = device.memory()
    for _ in range(3):
        provider = open_provider(machine, engines)
        provider.prepare()
        provider.close()
    after, _ = device.memory()
    assert before - after < 2**26
