"""The ONNX Runtime backend on a small random model.

The oracle runs the bundle's graph in one plain call over whole sequences, without bindings or buffers of ours; that the
graph computes the model is the claim of test_decoder_graph.py.
"""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling.backends import OrtProvider, PixelDecoder
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.contracts import LogitsProvider, Runs, max_window
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, ProviderError
from standins import ROOT
from standins.loud_sessions import let_sessions_warn
from standins.toy_bundles import toy_gpt, write_toy_bundle

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

LENGTH = 80
GPT = toy_gpt(LENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    codebook = np.arange(8 * 4, dtype=np.uint8).reshape(8, 2, 2, 1)
    return write_toy_bundle(tmp_path_factory.mktemp("bundle"), GPT, max_window=70, codebook=codebook, grid=(2, 3))


@pytest.fixture(scope="module")
def oracle(folder):
    session = onnxruntime.InferenceSession(str(folder / "window.onnx"), providers=["CPUExecutionProvider"])

    def logits(tokens):
        """Logits (T, V) of one sequence (T,)."""
        inputs = {"input_ids": tokens[None], "start": np.zeros(1, np.int64), "kv_length": np.array([LENGTH])}
        caches = [value.name for value in session.get_inputs() if value.name.startswith("past")]
        inputs |= {name: np.zeros((1, 2, LENGTH, 4), np.float32) for name in caches}
        return session.run(["logits"], inputs)[0][0]

    return logits


@pytest.fixture
def provider(folder, monkeypatch):
    let_sessions_warn(monkeypatch)
    return OrtProvider.open(folder, batch_size=3, threads=1)


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, GPT.vocab_size, shape)


def starts(*values):
    return np.array(values, np.int64)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_it_keeps_the_contract(provider):
    assert isinstance(provider, LogitsProvider)
    assert (provider.vocab_size, provider.batch_size, provider.max_length) == (11, 3, LENGTH)
    assert max_window(provider) == 70
    logits = provider.forward(some_tokens(3, 4), starts(0, 0, 0))
    assert (logits.shape, logits.dtype) == ((3, 4, 11), np.float32)


def test_the_execution_provider_in_use_is_reported(provider):
    assert provider.runs == Runs("CPUExecutionProvider")
    assert str(provider.runs) == "on CPUExecutionProvider, step: host"


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_ragged_windows_that_go_back_give_the_logits_of_the_last_tokens_written(folder, oracle, data):
    """Random calls: number of rows, width, starts and tokens all vary, and kv_length with them."""
    provider = OrtProvider.open(folder, batch_size=3, threads=1)
    tokens, cached = some_tokens(3, LENGTH), np.zeros(3, np.int64)
    for _ in range(5):
        rows = data.draw(st.integers(1, 3))
        width = data.draw(st.integers(1, 70))
        start = starts(*(data.draw(st.integers(0, min(int(cached[b]), LENGTH - width))) for b in range(rows)))
        seed = data.draw(st.integers(0, 1000))
        for b in range(rows):
            tokens[b, start[b] :] = some_tokens(LENGTH - start[b], seed=seed + b)
        window = np.stack([tokens[b, start[b] : start[b] + width] for b in range(rows)])
        logits = provider.forward(window, start)
        for b in range(rows):
            close(logits[b], oracle(tokens[b, : start[b] + width])[start[b] :])
        cached[:rows] = start + width


def test_fewer_rows_are_the_first_rows_and_the_others_keep_their_state(provider, oracle):
    tokens = some_tokens(3, 10)
    provider.forward(tokens[:, :5], starts(0, 0, 0))
    provider.forward(some_tokens(1, 9, seed=7), starts(0))
    logits = provider.forward(tokens[:, 5:], starts(5, 5, 5))
    for row in (1, 2):
        close(logits[row], oracle(tokens[row])[5:])
    assert np.abs(logits[0, :, :8] - oracle(tokens[0])[5:, :8]).max() > 1e-3


def test_columns_that_are_not_needed_are_not_read(provider, oracle):
    """What an earlier, longer sequence left behind does not reach a shorter one."""
    provider.forward(some_tokens(3, 70, seed=3), starts(0, 0, 0))
    tokens = some_tokens(1, 6)
    close(provider.forward(tokens, starts(0))[0], oracle(tokens[0]))


def test_a_closed_provider_says_so(folder):
    with OrtProvider.open(folder) as provider:
        provider.forward(some_tokens(1, 4), starts(0))
    provider.close()
    with pytest.raises(ProviderError, match="was closed and cannot run any more"):
        provider.forward(some_tokens(1, 4), starts(0))


def test_two_providers_share_nothing(folder, oracle):
    one, other = OrtProvider.open(folder), OrtProvider.open(folder)
    tokens, others = some_tokens(1, 10), some_tokens(1, 10, seed=9)
    one.forward(tokens[:, :5], starts(0))
    other.forward(others[:, :5], starts(0))
    first = one.forward(tokens[:, 5:], starts(5))
    second = other.forward(others[:, 5:], starts(5))
    close(first[0], oracle(tokens[0])[5:])
    close(second[0], oracle(others[0])[5:])


NOT_IN_PLACE = "in-place optimization not activated"


def test_the_cache_is_written_in_place(provider, capfd):
    """ONNX Runtime warns whenever TensorScatter has to copy a cache; the next test shows that it would have."""
    caches = provider._caches.kept
    addresses = {past: cache.address for past, cache in caches.items()}
    provider.forward(some_tokens(2, 4), starts(3, 10))
    provider.forward(some_tokens(2, 4), starts(3, 10))
    assert NOT_IN_PLACE not in capfd.readouterr().err
    assert {past: cache.address for past, cache in provider._caches.kept.items()} == addresses
    for cache in caches.values():
        written = np.abs(cache.memory).max(axis=(1, 3)) > 0
        expected = np.zeros((3, LENGTH), bool)
        expected[0, 3:7] = expected[1, 10:14] = True
        np.testing.assert_array_equal(written, expected)


def test_separate_buffers_would_be_copied_and_the_runtime_says_so(provider, capfd):
    inputs = {name: cache.memory for name, cache in provider._caches.kept.items()}
    inputs |= {"input_ids": some_tokens(3, 4), "start": starts(0, 0, 0), "kv_length": starts(LENGTH)}
    provider.binding._session.run(None, inputs)
    assert NOT_IN_PLACE in capfd.readouterr().err


def test_an_interrupted_call_can_simply_be_made_again(provider, oracle):
    class Interrupted:
        def __init__(self, session):
            self.session = session

        def run_with_iobinding(self, binding):
            self.session.run_with_iobinding(binding)
            raise KeyboardInterrupt

    tokens, session = some_tokens(1, 10), provider.binding._session
    provider.forward(tokens[:, :6], starts(0))
    provider.forward(some_tokens(1, 4, seed=4), starts(6))
    provider.binding._session = Interrupted(session)
    with pytest.raises(KeyboardInterrupt):
        provider.forward(some_tokens(1, 4, seed=5), starts(6))
    provider.binding._session = session
    close(provider.forward(tokens[:, 6:], starts(6))[0], oracle(tokens[0])[6:])


@pytest.mark.parametrize(
    ("tokens", "start", "message"),
    [
        ([[1, 2]], starts(0), "tokens is list, expected a numpy int64 array"),
        (some_tokens(2, 2).astype(np.int32), starts(0, 0), r"tokens is int32 \(2, 2\)"),
        (some_tokens(2), starts(0, 0), r"tokens is int64 \(2,\), expected a numpy int64 array with 2 axes"),
        (some_tokens(2, 2), np.zeros(2), r"start is float64 \(2,\)"),
        (some_tokens(2, 2), starts(0), "tokens has 2 rows and start 1"),
        (some_tokens(4, 2), starts(0, 0, 0, 0), "tokens has 4 rows and start 4, .* from 1 to batch_size, 3"),
        (some_tokens(0, 2), starts(), "tokens has 0 rows"),
        (some_tokens(1, 0), starts(0), "tokens has 0 slots, expected 1 to max_window, 70"),
        (some_tokens(1, 71), starts(0), "tokens has 71 slots"),
        (some_tokens(2, 3), starts(0, -1), "row 1 starts at -1, expected 0 to 77"),
        (some_tokens(2, 3), starts(0, 78), "row 1 starts at 78, expected 0 to 77"),
        (some_tokens(2, 3), starts(0, 2**63 - 1), "row 1 starts at 9223372036854775807"),
        (np.array([[0, 1], [2, 11]]), starts(0, 0), r"row 1, slot 1 is token 11, expected tokens in \[0, 11\)"),
        (np.array([[-1, 1]]), starts(0), "row 0, slot 0 is token -1"),
    ],
)
def test_a_call_out_of_bounds_is_refused_and_changes_nothing(provider, tokens, start, message):
    with pytest.raises(InvalidArgument, match=message):
        provider.forward(tokens, start)
    assert all(not cache.memory.any() for cache in provider._caches.kept.values())


def test_the_last_position_can_be_used(provider, oracle):
    tokens = some_tokens(LENGTH)
    provider.forward(tokens[None, :70], starts(0))
    close(provider.forward(tokens[None, 70:], starts(70))[0], oracle(tokens)[70:])


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_size_that_cannot_be_is_refused(folder, batch_size):
    with pytest.raises(InvalidArgument, match="batch_size is"):
        OrtProvider.open(folder, batch_size=batch_size)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_a_number_of_threads_that_cannot_be_is_refused(folder, threads):
    with pytest.raises(InvalidArgument, match="threads is"):
        OrtProvider.open(folder, threads=threads)


def test_a_graph_that_is_no_graph_is_a_bundle_error(folder, tmp_path):
    bundle = open_bundle(folder)
    (tmp_path / "window.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"cannot load .*window\.onnx"):
        OrtProvider.open(dataclasses.replace(bundle, folder=tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, r"'past_key_values\.2\.key' is missing"),
        ({"layers": 1}, r"'past_key_values\.1\.key' is .*promises none of that name"),
        ({"head_size": 5}, r"'past_key_values\.0\.key' is .*80, 4\).*80, 5\)"),
        ({"cache_length": 81}, "promises .*81"),
        ({"has_kv_length": False}, "'kv_length' is .*none of that name"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"dtype": "float16"}, r"tensor\(float16\)"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_promises_is_refused(folder, change, message):
    bundle = open_bundle(folder)
    graph = dataclasses.replace(bundle.manifest.window_graph, **change)
    manifest = dataclasses.replace(bundle.manifest, window_graph=graph)
    with pytest.raises(BundleError, match=message):
        OrtProvider.open(dataclasses.replace(bundle, manifest=manifest))


def test_a_session_that_fell_back_to_another_provider_is_refused(folder, monkeypatch):
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["AzureExecutionProvider"])
    with pytest.raises(ProviderError, match=r"runs .* on AzureExecutionProvider, expected CPUExecutionProvider"):
        OrtProvider.open(folder)


def test_an_onnxruntime_that_is_too_old_is_refused(folder, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.27.4")
    with pytest.raises(MissingDependency, match=r"1\.27\.4, expected 1\.28.*coupled-sampling\[cpu\]"):
        open_session(folder / "window.onnx")


def test_a_missing_onnxruntime_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'coupled-sampling\[cpu\]'"):
        OrtProvider.open(folder)


def test_importing_the_backends_loads_no_runtime():
    code = "import sys, coupled_sampling.backends; print({'onnxruntime', 'onnx', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_failing_runtime_is_a_provider_error(provider):
    """Whatever the host lets pass, the runtime's own refusal arrives as one of ours."""
    provider.max_length = 2 * LENGTH
    with pytest.raises(ProviderError, match="window of 1 rows and 4 slots"):
        provider.forward(some_tokens(1, 4), starts(LENGTH - 2))


def test_the_documented_way_to_run_a_bundle_without_this_library_works(folder, oracle):
    page = ROOT.joinpath("docs", "bundle-format.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert '"coupled_sampling/bundles/models/fashion"' in code
    scope = {}
    exec(code.replace('"coupled_sampling/bundles/models/fashion"', repr(str(folder))), scope)
    tokens = np.array(scope["tokens"])
    assert (len(tokens), tokens[0]) == (20, 8)
    np.testing.assert_array_equal(tokens[1:], oracle(tokens[:-1]).argmax(-1))


def test_pictures_of_tokens(folder):
    decoder = PixelDecoder.open(folder)
    assert decoder.shape == (4, 6, 1)
    pixels = decoder(np.array([[0, 1, 2, 3, 4, 7]]))
    assert (pixels.shape, pixels.dtype) == ((1, 4, 6, 1), np.uint8)
    expected = [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11], [12, 13, 16, 17, 28, 29], [14, 15, 18, 19, 30, 31]]
    np.testing.assert_array_equal(pixels[0, :, :, 0], expected)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 5), np.int64), r"tokens is int64 \(1, 5\)"),
        (np.zeros((1, 6)), r"tokens is float64 \(1, 6\)"),
        ([[0] * 6], "tokens is list"),
        (np.array([[0, 0, 0, 0, 0, 0], [0, 0, 8, 0, 0, 0]]), r"picture 1, token 2 is 8, expected tokens in \[0, 8\)"),
        (np.array([[0, 0, 0, -1, 0, 0]]), "picture 0, token 3 is -1"),
    ],
)
def test_tokens_that_make_no_picture_are_refused(folder, tokens, message):
    with pytest.raises(InvalidArgument, match=message):
        PixelDecoder.open(folder)(tokens)


def test_a_bundle_without_a_pixel_graph_makes_no_pictures(folder):
    bundle = open_bundle(folder)
    manifest = dataclasses.replace(bundle.manifest, pixel_graph=None)
    with pytest.raises(BundleError, match="no pixel graph"):
        PixelDecoder.open(dataclasses.replace(bundle, manifest=manifest))
