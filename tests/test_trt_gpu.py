"""TensorRT on a real GPU: the conformance suite, the tokens of the CPU backend, and captured graphs against plain runs."""

import numpy as np
import pytest
from on_a_gpu import gpu, opened

from coupled_sampling import generate
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.trt import BuildOptions, TrtProvider, find_flavour
from coupled_sampling.bundle import open_bundle
from coupled_sampling.testing import check_provider

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


def open_provider(machine, engines, rows=2, **options):
    flavour, device = machine
    chosen = BuildOptions((rows,), (1, 8, 32), **options)
    return TrtProvider.open("fashion", flavour=flavour, device=device, options=chosen, engines=engines)


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
