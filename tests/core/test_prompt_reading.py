"""How a row comes to hold its prompt: in chunks, as a copy, or still there; what it costs, and that no token depends on it."""

import numpy as np
import pytest

from coupled_sampling import Decoder, Request, generate
from coupled_sampling.drafting import Copy
from coupled_sampling.methods import METHODS
from standins.ranged import Apart
from standins.requested import TABLE, V, model, run, tokens_of


@pytest.mark.cases(5)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reused", [False, True])
def test_tokens_do_not_depend_on_how_a_prompt_was_read(method, reused):
    """Alone, in chunks of any width, as one of several samples that share it, or with a prefix that was there."""
    for length in (1, 4, 5, 23):
        prompt = np.arange(length) % V
        own = Decoder(model(), method=method, window=4, drafting=Copy(3, fill=1))
        own.add(Request(prompt, length=8, sequence=2))
        expected = tokens_of(run(own)[0])
        for chunk, rows in ((1, 2), (3, 3), (8, 4)):
            provider = Apart(TABLE, V, batch_size=rows, chunk=chunk)
            decoder = Decoder(provider, method=method, window=4, drafting=Copy(3, fill=1), reuse_prefixes=reused)
            decoder.add(Request([*prompt[:-1], 0, 1], length=3, sequence=77))
            decoder.step()
            handle = decoder.add(Request(prompt, length=8, samples=5))
            commits = run(decoder)
            np.testing.assert_array_equal(tokens_of(commits[handle + 2]), expected)
            assert max(width for _, width in provider.asked) <= max(chunk, 4)


def test_samples_of_one_prompt_read_it_once():
    provider = Apart(TABLE, V, batch_size=4, max_length=512, chunk=40)
    decoder = Decoder(provider, method="scd-match", window=4)
    assert decoder.add(Request(np.arange(401) % V, length=4, samples=4)) == 0
    commits = run(decoder)
    assert sorted(commits) == [0, 1, 2, 3]
    assert len({tokens_of(own).tobytes() for own in commits.values()}) > 1
    assert [width for _, width in provider.asked if width > 4] == [40] * 10
    assert provider.forked == [(0, (1, 2, 3), 400)]


def test_a_sample_whose_reader_is_removed_reads_for_itself():
    provider = Apart(TABLE, V, batch_size=3, max_length=512, chunk=40)
    decoder = Decoder(provider, method="scd-match", window=4)
    prompt = np.arange(100) % V
    handle = decoder.add(Request(prompt, length=4, samples=3))
    decoder.step()
    decoder.remove(handle)
    commits = run(decoder)
    alone = generate(model(max_length=512), [prompt] * 3, length=4, method="scd-match", window=4).tokens
    for k in (1, 2):
        np.testing.assert_array_equal(tokens_of(commits[handle + k]), alone[k])
    assert provider.forked == [(1, (2,), 99)]


def test_others_wait_for_one_chunk_and_no_more():
    """While two long prompts are read, one chunk of one of them goes before each step of the others, whose windows stay theirs."""
    provider = Apart(TABLE, V, batch_size=4, max_length=512, chunk=50)
    decoder = Decoder(provider, method="ar", window=2)
    decoder.add(Request([0], length=60))
    decoder.step()
    for i in (1, 2):
        decoder.add(Request(np.arange(201) % V, length=2, sequence=i))
    provider.asked.clear()
    for _ in range(8):
        decoder.step()
    chunks = [(rows, width) for rows, width in provider.asked if width > 2]
    assert chunks == [(range(1, 2), 50)] * 4 + [(range(2, 3), 50)] * 4
    for before, after in zip(provider.asked, provider.asked[1:], strict=False):
        assert before[1] <= 2 or after[1] <= 2
    assert all(width == 1 for _, width in provider.asked if width <= 2)


def test_idle_rows_cost_nothing_where_rows_can_be_told_apart():
    provider = Apart(TABLE, V, batch_size=8)
    decoder = Decoder(provider, method="ar")
    handles = [decoder.add(Request([0], length=30 if i in (0, 7) else 1, sequence=i)) for i in range(8)]
    decoder.step()
    provider.asked.clear()
    decoder.step()
    assert [rows for rows, _ in provider.asked] == [range(1), range(7, 8)]
    decoder.remove(handles[0])
    provider.asked.clear()
    decoder.step()
    assert [rows for rows, _ in provider.asked] == [range(7, 8)]


def test_a_prefix_is_used_again_only_if_that_is_wanted_and_nothing_else_differs():
    prompt = np.arange(60) % V
    for wanted, reads in ((False, 2), (True, 1)):
        provider = Apart(TABLE, V, max_length=128, chunk=128)
        decoder = Decoder(provider, window=4, reuse_prefixes=wanted)
        for i in range(2):
            decoder.add(Request(prompt, length=3, sequence=i))
        run(decoder)
        assert sum(width > 4 for _, width in provider.asked) == reads

    class Told(Apart):
        def begin(self, row, request):
            pass

    provider = Told(TABLE, V, max_length=128, chunk=128)
    decoder = Decoder(provider, window=4, reuse_prefixes=True)
    for i in range(2):
        decoder.add(Request(prompt, length=3, sequence=i, condition=i))
    run(decoder)
    assert sum(width > 4 for _, width in provider.asked) == 2


def test_a_prefix_is_copied_from_another_row():
    provider = Apart(TABLE, V, batch_size=2, max_length=128, chunk=128)
    decoder = Decoder(provider, window=4, reuse_prefixes=True)
    decoder.add(Request(np.arange(60) % V, length=30))
    decoder.step()
    decoder.step()
    decoder.add(Request([*(np.arange(50) % V), 3, 3, 3], length=3, sequence=1))
    run(decoder)
    assert provider.forked == [(0, (1,), 50)]
