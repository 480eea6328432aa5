"""Calls for some rows of an ONNX Runtime provider, on the CPU and on the stand-in for a GPU: no other row's state is touched.

The oracle is a provider of one row, or the caches themselves, bit by bit.
"""

import numpy as np
import pytest

from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.ort import cuda_session
from coupled_sampling.contracts import Forks, ReadsPrompts, RowRanges
from coupled_sampling.errors import InvalidArgument, ProviderError
from standins.fake_onnxruntime import FakeRuntime
from standins.on_cuda import cuda_provider
from standins.toy_bundles import toy_gpt, write_toy_bundle
from standins.trt_bundles import write_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROWS, LENGTH, VOCAB = 5, 80, 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    codebook = np.arange(8 * 4, dtype=np.uint8).reshape(8, 2, 2, 1)
    where = tmp_path_factory.mktemp("rows")
    return write_toy_bundle(where, toy_gpt(LENGTH), max_window=70, codebook=codebook, grid=(2, 3))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("cuda-rows") / "toy")


@pytest.fixture
def provider(folder):
    return OrtProvider.open(folder, batch_size=ROWS, threads=1)


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


def starts(*values):
    return np.array(values, np.int64)


def state(provider):
    return {name: kept.memory.copy() for name, kept in provider._caches.kept.items()}


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_it_says_what_it_offers(provider):
    assert isinstance(provider, RowRanges)
    assert isinstance(provider, ReadsPrompts)
    assert isinstance(provider, Forks)
    assert provider.forks
    assert provider.prompt_chunk == 70  # as wide as windows can be


@pytest.mark.parametrize("rows", [range(1), range(ROWS), range(2, 3), range(1, 4), range(ROWS - 1, ROWS)], ids=str)
def test_other_rows_keep_their_state_bit_by_bit(provider, rows):
    tokens = some_tokens(ROWS, 40)
    provider.forward(tokens, starts(*[0] * ROWS))
    before = state(provider)
    window, start = some_tokens(len(rows), 6, seed=1), starts(*range(20, 20 + len(rows)))
    provider.forward_rows(window, start, rows)
    for name, now in state(provider).items():
        changed = (now != before[name]).any(axis=(1, 3))  # rows and columns
        written = np.zeros((ROWS, LENGTH), bool)
        for row, first in zip(rows, start, strict=True):
            written[row, first : first + 6] = True
        assert not (changed & ~written).any()
        assert (changed & written).sum() > written.sum() / 2  # a token may be what it was


def test_logits_are_those_of_each_row_alone(provider, folder):
    """Rows and widths vary, and rows go back."""
    alone = [OrtProvider.open(folder, threads=1) for _ in range(ROWS)]
    random, held = np.random.default_rng(3), [0] * ROWS
    for seed in range(40):
        first, last = sorted(random.integers(0, ROWS, 2).tolist())
        rows, width = range(first, last + 1), int(random.integers(1, 20))
        start = starts(*(int(random.integers(0, min(held[row], LENGTH - width) + 1)) for row in rows))
        tokens = some_tokens(len(rows), width, seed=seed)
        found = provider.forward_rows(tokens, start, rows)
        for i, row in enumerate(rows):
            close(found[i], alone[row].forward(tokens[i : i + 1], start[i : i + 1])[0])
            held[row] = int(start[i]) + width


def test_a_call_attends_to_as_many_columns_as_its_own_rows_need(provider):
    """A long row beside them costs them nothing."""
    provider.forward_rows(some_tokens(1, 70), starts(0), range(1))
    assert provider._columns[0] == LENGTH
    provider.forward_rows(some_tokens(2, 3), starts(0, 5), range(1, 3))
    assert provider._columns[0] == 32


def test_a_fork_is_the_state_of_its_source_up_to_a_length(provider):
    tokens = some_tokens(ROWS, 40)
    provider.forward(tokens, starts(*[0] * ROWS))
    before = state(provider)
    provider.fork(3, [0, 4], 25)
    for name, now in state(provider).items():
        expected = before[name].copy()
        expected[[0, 4], :, :25] = before[name][3, :, :25]
        np.testing.assert_array_equal(now, expected)
    window = some_tokens(1, 4, seed=5)
    own = provider.forward_rows(window, starts(25), range(3, 4)).copy()
    for row in (0, 4):
        np.testing.assert_array_equal(provider.forward_rows(window, starts(25), range(row, row + 1)), own)


def test_memory_for_logits_is_what_was_used(provider):
    assert provider.binding._reserved["logits"].size == ROWS * VOCAB
    provider.forward(some_tokens(2, 30), starts(0, 0))
    assert provider.binding._reserved["logits"].size == 2 * 30 * VOCAB
    provider.forward_rows(some_tokens(1, 60), starts(0), range(2, 3))
    assert provider.binding._reserved["logits"].size == 2 * 30 * VOCAB


def test_ranges_that_were_used_long_ago_are_bound_again(folder):
    """More ranges than are remembered, each twice; a binding for the wrong rows would show in the state."""
    rows = 9
    provider, alone = OrtProvider.open(folder, batch_size=rows, threads=1), OrtProvider.open(folder, threads=1)
    ranges = [range(a, b) for a in range(rows) for b in range(a + 1, rows + 1)]
    assert len(ranges) > 32
    for turn in range(2):
        for i, own in enumerate(ranges):
            tokens = some_tokens(len(own), 3, seed=i)
            found = provider.forward_rows(tokens, starts(*[0] * len(own)), own)
            if turn:
                close(found[-1:], alone.forward(tokens[-1:], starts(0)))
    assert len(provider.binding._chosen) <= 32


def test_an_interrupted_call_can_simply_be_made_again(provider, folder):
    class Interrupted:
        def __init__(self, session):
            self.session, self.fails = session, True

        def io_binding(self):
            return self.session.io_binding()

        def run_with_iobinding(self, *arguments):
            self.session.run_with_iobinding(*arguments)
            if self.fails:
                self.fails = False
                raise KeyboardInterrupt

    oracle, tokens, rows = OrtProvider.open(folder, threads=1), some_tokens(1, 12), range(3, 4)
    provider.binding._session = Interrupted(provider.binding._session)
    with pytest.raises(KeyboardInterrupt):
        provider.forward_rows(tokens[:, :8], starts(0), rows)
    provider.forward_rows(tokens[:, :8], starts(0), rows)
    oracle.forward(tokens[:, :8], starts(0))
    close(provider.forward_rows(tokens[:, 8:], starts(8), rows), oracle.forward(tokens[:, 8:], starts(8)))


@pytest.mark.parametrize("rows", [range(4, 6), range(-1, 1), range(3), range(0, 4, 2), range(1, 0, -1), [0, 1], 2])
def test_rows_that_are_none_are_refused(provider, rows):
    with pytest.raises(InvalidArgument, match=r"rows is .*, expected a range of 2 consecutive rows"):
        provider.forward_rows(some_tokens(2, 3), starts(0, 0), rows)
    assert all(not cache.any() for cache in state(provider).values())


def test_forks_out_of_bounds_are_refused(provider):
    for arguments, message in (
        ((5, [0], 3), "row 5 to fork, expected rows from 0 to 4"),
        ((0, [1, -1], 3), "row -1 to fork"),
        ((0, [1], LENGTH + 1), f"length to fork is {LENGTH + 1}, expected 0 to max_length, {LENGTH}"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            provider.fork(*arguments)


def test_a_closed_provider_says_so(folder):
    provider = OrtProvider.open(folder, batch_size=2)
    provider.close()
    assert not provider.forks
    for call in (
        lambda: provider.forward_rows(some_tokens(1, 3), starts(0), range(1)),
        lambda: provider.fork(0, [1], 2),
    ):
        with pytest.raises(ProviderError, match="was closed and cannot run any more"):
            call()


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeRuntime()
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
    return fake


@pytest.mark.parametrize(
    "settings", [{}, {"on_device": True}, {"cuda_graphs": True}, {"cuda_graphs": True, "on_device": True}], ids=str
)
def test_rows_on_a_gpu(small, gpu, settings):
    """Each range and width several times, so that captured graphs are replayed, with calls that need more memory in between."""
    provider = cuda_provider(small, 3, **settings)
    assert not provider.forks
    alone = [OrtProvider.open(small, threads=1) for _ in range(3)]
    ranges = [range(1), range(1, 3), range(2, 3), range(3)]
    for turn in range(4):
        for i, rows in enumerate(ranges):
            for width in (2, 5 + turn):  # the memory for logits grows after graphs were captured
                tokens = some_tokens(len(rows), width, seed=10 * turn + i)
                start = starts(*(turn + row for row in rows))
                found = provider.forward_rows(tokens, start, rows)
                if settings.get("on_device"):
                    found = gpu.at(found.pointer, found.shape, np.float32)
                for j, row in enumerate(rows):
                    expected = alone[row].forward(tokens[j : j + 1], start[j : j + 1])[0]
                    close(found[j], expected)
    if settings.get("cuda_graphs"):
        assert gpu.sessions[0].replays > 5
        assert {(1, 2, 44), (1, 2, 44, 2), (2, 2, 44, 1)} <= set(provider.binding.captured)
