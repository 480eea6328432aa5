"""Decoders that read an encoder's output: graphs with Optimum's names, as a pair and merged, right ones and broken ones.

The oracle runs ``decoder_model.onnx`` in one plain call over a whole sequence, without any cache.
"""

import dataclasses
import json

import numpy as np
import pytest

from coupled_sampling import Decoder, Guidance, GuidedProvider, LogitsProvider, Request, Sampling
from coupled_sampling.backends import ConcatenatedProvider, Encoder, EncoderDecoderProvider
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError
from coupled_sampling.testing import CheckFailed, check_provider, provider_report
from standins.encoder_decoder_graphs import MELS, PAD, STATE_SIZE, encoder, merged, pair, reference_of
from standins.grown_cache_graphs import LENGTH, VOCABULARY, genai, optimum
from standins.requested import run, tokens_of

onnx = pytest.importorskip("onnx")

KINDS = {
    "pair": {},
    "merged": {},
    "pair-states": {"mask": "states"},
    "merged-samples": {"mask": "samples"},
    "pair-cache_position": {"position": "input"},
    "merged-float16": {"dtype": np.float16},
    "pair-counted": {"position": "counted"},
}
"""Settings by the name of a folder, which begins with the form."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    for kind, settings in KINDS.items():
        folder = root / kind
        (folder / "onnx").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"max_target_positions": LENGTH, "pad_token_id": PAD}))
        pair(folder / "onnx", **settings)
        encoder(folder / "onnx" / "encoder_model.onnx")
        if kind.startswith("merged"):
            merged(folder / "onnx" / "decoder_model_merged.onnx", **settings)
    return root


def opened(folders, kind="merged", batch_size=2, **settings):
    return EncoderDecoderProvider.open(folders / kind, batch_size=batch_size, threads=1, **settings)


def oracle_of(folders, kind="merged"):
    return reference_of(folders / kind / "onnx" / "decoder_model.onnx")


def states(count, seed=0, length=7):
    """Encoders' outputs, of different lengths."""
    random = np.random.default_rng(seed)
    return [random.normal(0, 1, (length + i % 3, STATE_SIZE)).astype(np.float32) for i in range(count)]


def requests(count, length=14):
    """One for each of ``count`` utterances, in ragged lengths."""
    return [
        Request([1 + i % 3] * (1 + i % 4), length + i, seed=3, sequence=i, condition=condition)
        for i, condition in enumerate(states(count))
    ]


def decoded(model, asked, **settings):
    decoder = Decoder(model, **settings)
    for request in asked:
        decoder.add(request)
    return {handle: tokens_of(commits).tolist() for handle, commits in run(decoder).items()}


@pytest.mark.cases(5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_conforms_with_conditions(folders, kind, batch_size):
    model = opened(folders, kind, batch_size)
    assert isinstance(model, LogitsProvider)
    assert (model.vocab_size, model.max_length) == (VOCABULARY, LENGTH)
    assert model.mask_stride == (384 if "samples" in kind else 1)
    tolerance = 3e-2 if "float16" in kind else 1e-4
    assert model.breaks == ((PAD,) if "counted" in kind else ())
    reference = None if "counted" in kind else oracle_of(folders, kind)  # it does not cut behind tokens that fill up
    report = check_provider(model, tolerance=tolerance, reference=reference, conditions=states(3))
    assert {"begin", "takes", "fork", "row-ranges"} <= {result.name for result in report.results}


@pytest.mark.parametrize("kind", ["pair-states", "merged-samples"])
def test_match_is_autoregressive_decoding_over_more_requests_than_rows(folders, kind):
    """The oracle is the graph itself, greedily; each row has several conditions in turn."""
    model, asked = opened(folders, kind, 2), requests(7)
    expected = decoded(model, asked, method="ar")
    for window in (2, 6):
        assert decoded(model, asked, method="scd-match", window=window) == expected
    assert [len(tokens) for tokens in expected.values()] == [request.length for request in asked]
    greedy = [
        Request(r.prompt, 6, condition=r.condition, sequence=r.sequence, sampling=Sampling(temperature=0))
        for r in asked
    ]
    logits = oracle_of(folders, kind)
    for request, tokens in zip(greedy, decoded(model, greedy, method="scd-maximal", window=4).values(), strict=True):
        text = list(request.prompt)
        for _ in range(6):
            text.append(int(logits(text, request.condition)[-1].argmax()))
        assert tokens == text[len(request.prompt) :]


def test_what_stands_behind_a_token_that_fills_up_is_scored_as_ordinary_decoding_scores_it(folders):
    """One token at a time is the yardstick; without such tokens the graph's own single call is another."""
    model, tokens, condition = opened(folders, "pair-counted"), np.array([[1, PAD, 2, PAD, PAD, 3]]), states(1)[0]
    model.begin(0, Request([1], 3, condition=condition))
    steps = [model.forward(tokens[:, j : j + 1], np.full(1, j))[:, 0].copy() for j in range(6)]
    np.testing.assert_allclose(model.forward(tokens, np.zeros(1, np.int64)), np.stack(steps, axis=1), atol=1e-5)
    whole = oracle_of(folders, "pair-counted")
    assert np.abs(whole(tokens[0], condition) - np.concatenate(steps)).max() > 0.1
    plain = np.array([[1, 2, 2, 3]])
    np.testing.assert_allclose(model.forward(plain, np.zeros(1, np.int64))[0], whole(plain[0], condition), atol=1e-5)


def test_the_encoders_caches_are_computed_once_a_request_and_never_change(folders):
    model = opened(folders)
    read, calls = model.read_first, []
    model.read_first = lambda *arguments: calls.append(arguments) or read(*arguments)
    decoder = Decoder(model, method="scd-maximal", window=5, drafting="repeat")
    for request in requests(2, 20):
        decoder.add(request)
    decoder.step()
    held = [reading.caches for reading in model._read]
    before = [[cache.copy() for cache in caches] for caches in held]
    run(decoder)
    assert len(calls) == 2
    for reading, caches, copies in zip(model._read, held, before, strict=True):
        for now, cache, copy in zip(reading.caches, caches, copies, strict=True):
            assert now is cache
            np.testing.assert_array_equal(now, copy)


def test_samples_of_one_request_share_what_was_read(folders):
    model = opened(folders, batch_size=3)
    asked = Request([1, 2, 3], 8, samples=3, condition=states(1)[0])
    found = decoded(model, [asked], method="scd-match", window=4)
    assert model._read[0] is model._read[1] is model._read[2]
    alone = [Request([1, 2, 3], 8, sequence=n, condition=asked.condition) for n in range(3)]
    assert list(found.values()) == [decoded(opened(folders, batch_size=1), [one], method="ar")[0] for one in alone]


def test_a_copied_row_goes_on_with_the_encoders_output_of_its_source(folders):
    model, (first, second), tokens = opened(folders), states(2), np.array([[1, 2, 3, 4, 5]] * 2)
    for row, condition in enumerate((first, second)):
        model.begin(row, Request([1], 3, condition=condition))
    model.forward(tokens[:, :3], np.zeros(2, np.int64))
    model.fork(0, [1], 3)
    logits = model.forward(tokens[:, 3:], np.full(2, 3))
    for row in range(2):
        np.testing.assert_allclose(logits[row], oracle_of(folders)(tokens[row], first)[3:], atol=1e-5)


def test_what_was_shared_is_not_mixed_up_with_what_looks_alike(folders):
    """Same shape, one number else."""
    model, first = opened(folders), states(1)[0]
    second = first.copy()
    second[-1, -1] += 1
    tokens = np.ones((2, 3), np.int64)
    for row, condition in enumerate((first, second)):
        model.begin(row, Request([1], 3, condition=condition))
    logits, oracle = model.forward(tokens, np.zeros(2, np.int64)), oracle_of(folders)
    for row, condition in enumerate((first, second)):
        np.testing.assert_allclose(logits[row], oracle(tokens[row], condition), atol=1e-5)


def test_a_condition_that_is_changed_afterwards_changes_nothing(folders):
    model, own = opened(folders), states(1)[0]
    request = Request([1], 3, condition=own.copy())
    model.begin(0, request)
    request.condition[:] = 0
    model.begin(1, Request([1], 3, condition=np.zeros_like(own)))
    logits = model.forward(np.ones((2, 3), np.int64), np.zeros(2, np.int64))
    for row, condition in enumerate((own, np.zeros_like(own))):
        np.testing.assert_allclose(logits[row], oracle_of(folders)([1, 1, 1], condition), atol=1e-5)


def stale(model):
    """A row keeps what it has read first, whatever request comes."""
    begin = model.begin
    model.begin = lambda row, request: begin(row, request) if model._read[row] is None else None
    return model


def shared(model):
    """There is one place for what is read, for all rows."""
    begin = model.begin

    def begin_all(row, request):
        begin(row, request)
        model._read = [model._read[row] for _ in model._read]

    model.begin = begin_all
    return model


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_row_that_keeps_the_last_requests_encoder_is_caught(folders, batch_size):
    failures = provider_report(stale(opened(folders, "pair", batch_size)), conditions=states(2)).failures
    assert "row-reuse" in failures
    assert batch_size > 1 or "it is never looked at, or the first one is kept" in failures["row-reuse"]
    right, wrong = opened(folders, "pair", batch_size), stale(opened(folders, "pair", batch_size))
    expected, found = (decoded(model, requests(5), method="ar") for model in (right, wrong))
    equal = [expected[handle] == found[handle] for handle in expected]
    assert equal[:batch_size] == [True] * batch_size
    assert not any(equal[batch_size:])


def test_rows_that_share_one_encoders_output_are_caught(folders):
    with pytest.raises(CheckFailed, match="ragged-starts"):
        check_provider(shared(opened(folders, "pair")), conditions=states(2))


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        (None, r"has no condition, expected the encoder's output of one input, floating \(S, 12\); encode"),
        ("sound", "has a condition of str"),
        (np.ones((4, STATE_SIZE), np.int64), "has a condition of int64"),
        (np.ones((1, 4, STATE_SIZE)), r"shape \(1, 4, 12\), expected .* without an axis for a batch"),
        (np.ones((4, STATE_SIZE + 1)), r"shape \(4, 13\)"),
        (np.ones((0, STATE_SIZE)), r"shape \(0, 12\)"),
        (np.full((4, STATE_SIZE), np.nan), "NaN or infinity"),
    ],
)
def test_a_condition_that_cannot_be_read_is_refused_beforehand(folders, condition, problem):
    model = opened(folders)
    request = Request([1], 3, condition=condition)
    with pytest.raises(InvalidArgument, match=f"request .*{problem}"):
        Decoder(model).add(request)
    model.begin(0, Request([1], 3, condition=states(1)[0]))
    with pytest.raises(InvalidArgument, match=f"request .*{problem}"):
        model.begin(0, request)
    with pytest.raises(InvalidArgument, match="row 0 has begun no request"):
        model.forward(np.ones((1, 2), np.int64), np.zeros(1, np.int64))


def test_numbers_that_float16_cannot_hold_are_refused(folders):
    with pytest.raises(InvalidArgument, match="numbers that float16 cannot hold"):
        opened(folders, "merged-float16").begin(0, Request([1], 3, condition=np.full((4, STATE_SIZE), 1e5)))


def test_guidance_is_refused_and_done_by_its_wrapper(folders):
    """A guided row looks at the request's condition, its partner at another one."""
    own, none = states(2, length=5)
    request = Request([1, 2], 6, condition=own, guidance=Guidance(scale=2.0, condition=none))
    with pytest.raises(InvalidArgument, match="has guidance, but the model is not a guided one"):
        Decoder(opened(folders)).add(request)
    guided = GuidedProvider(opened(folders), 1.0, [3])
    guided.begin(0, request)
    logits, oracle = guided.forward(np.array([[1, 2]]), np.zeros(1, np.int64)), oracle_of(folders)
    expected = 2 * oracle([1, 2], own)[1] - oracle([3], none)[0]
    np.testing.assert_allclose(logits[0, 1], expected, atol=1e-5)
    found = [decoded(guided, [request], method=method) for method in ("ar", "scd-match")]
    assert found[0] == found[1]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_failure_in_begin_ends_its_own_request_only(folders, batch_size):
    """Of three rows it is the one in the middle, between two that go on."""
    first, failing, last, short = requests(4)
    model, asked = opened(folders, batch_size=batch_size), [first, dataclasses.replace(short, length=2), last, failing]
    read = model.read_first

    def fails_once(found, mask):
        if len(found[0]) == len(failing.condition):
            raise ProviderError("out of memory")
        return read(found, mask)

    model.read_first = fails_once
    decoder = Decoder(model, method="ar")
    for request in asked:
        decoder.add(request)
    made = run(decoder)
    assert [made[handle][-1].reason for handle in range(4)] == ["length"] * 3 + ["error"]
    assert str(made[3][-1].error) == "request 3: out of memory"
    expected = decoded(opened(folders, batch_size=1), asked[:3], method="ar")
    assert {handle: tokens_of(made[handle]).tolist() for handle in range(3)} == expected


def test_a_closed_one_says_so(folders):
    model = opened(folders)
    model.close()
    model.close()
    for call in (
        lambda: model.begin(0, requests(1)[0]),
        lambda: model.forward(np.ones((1, 1), np.int64), np.zeros(1, np.int64)),
        lambda: model.fork(0, [1], 1),
    ):
        with pytest.raises(ProviderError, match="was closed"):
            call()


BROKEN = {
    "open": ({"causal": "open"}, "tokens further right in the same window change the logits"),
    "deaf": ({"looks": False}, "another encoder's output gives the same logits"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("write", [pair, lambda folder, **s: merged(folder / "decoder_model_merged.onnx", **s)])
def test_a_graph_that_would_be_silently_wrong_is_refused_with_the_reason(tmp_path, kind, write):
    settings, message = BROKEN[kind]
    with pytest.raises(ProviderError, match=message):
        EncoderDecoderProvider.open(write(tmp_path, **settings), max_length=LENGTH, threads=1)


def test_a_pair_of_two_exports_is_refused(tmp_path):
    ours, other = (tmp_path / name for name in ("ours", "other"))
    for seed, folder in enumerate((ours, other)):
        folder.mkdir()
        pair(folder, seed=seed)
    (other / "decoder_with_past_model.onnx").replace(ours / "decoder_with_past_model.onnx")
    with pytest.raises(ProviderError, match=r"decoder_with_past_model\.onnx does not go on like decoder_model\.onnx"):
        EncoderDecoderProvider.open(ours, max_length=LENGTH)


def test_files_are_found_from_whatever_names_them(folders, tmp_path):
    both, onnx_folder = folders / "pair", folders / "pair" / "onnx"
    for path in (both, onnx_folder, onnx_folder / "decoder_model.onnx", onnx_folder / "decoder_with_past_model.onnx"):
        assert EncoderDecoderProvider.open(path).graph.path == onnx_folder / "decoder_with_past_model.onnx"
    assert opened(folders, "merged").graph.path.name == "decoder_model_merged.onnx"  # the pair lies beside it
    with pytest.raises(BundleError, match=r"has no decoder_model_merged\.onnx and no decoder_model\.onnx"):
        EncoderDecoderProvider.open(tmp_path)
    with pytest.raises(BundleError, match="is no file and no folder"):
        EncoderDecoderProvider.open(tmp_path / "nothing")
    alone = pair(tmp_path)
    (tmp_path / "decoder_with_past_model.onnx").unlink()
    with pytest.raises(
        BundleError, match=r"is one of a pair, and decoder_with_past_model\.onnx does not lie beside it"
    ):
        EncoderDecoderProvider.open(alone)


def test_what_is_no_such_decoder_is_refused_for_its_own_reason(folders, tmp_path):
    half = merged(tmp_path / "extra.onnx", extra=[("speaker", onnx.TensorProto.FLOAT, ["batch", 4])])
    cases = {
        half: "nothing is known about speaker",
        optimum(tmp_path / "text.onnx"): "has no input encoder_hidden_states. Open it with ConcatenatedProvider",
        genai(tmp_path / "genai.onnx"): "Open it with ConcatenatedProvider",
        folders / "pair" / "onnx" / "encoder_model.onnx": "is an encoder: .* Open it with Encoder",
        pair(
            tmp_path, drop=["present.1.encoder.key"]
        ): r"has no output 'present\.1\.encoder\.key', but .* named wrongly",
    }
    for path, message in cases.items():
        with pytest.raises(BundleError, match=message):
            EncoderDecoderProvider.open(path, max_length=LENGTH)
    only = (tmp_path / "decoder_with_past_model.onnx").rename(tmp_path / "next.onnx")
    with pytest.raises(BundleError, match="takes caches always, so that nothing computes the encoder's"):
        EncoderDecoderProvider.open(only, max_length=LENGTH)


def test_a_decoder_of_text_names_the_class_that_opens_it(folders):
    found = folders / "merged" / "onnx"
    for name in ("decoder_model_merged", "decoder_model", "decoder_with_past_model"):
        with pytest.raises(BundleError, match=r"is the decoder of an encoder-decoder model.*EncoderDecoderProvider"):
            ConcatenatedProvider.open(found / f"{name}.onnx")
    with pytest.raises(BundleError, match=r"is an encoder.*backends\.Encoder,"):
        ConcatenatedProvider.open(found / "encoder_model.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": LENGTH + 1}, "max_length is .*, expected at most .*config.json"),
        ({"threads": 0}, "threads is 0"),
        ({"tolerance": 0.5}, "tolerance is 0.5"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(folders, arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        EncoderDecoderProvider.open(folders / "merged", **arguments)


def test_an_encoder_gives_what_a_request_wants(folders):
    features = np.random.default_rng(0).normal(size=(MELS, 9))
    with Encoder.open(folders / "merged", threads=1) as model:
        assert model.input == "input_features"
        condition = model.encode(features)
        assert (condition.shape, condition.dtype) == ((9, STATE_SIZE), np.float32)
        for wrong in (features[None], features[:-1], features.astype(complex), np.zeros((MELS, 0)), "sound"):
            with pytest.raises(InvalidArgument, match=r"features is .*, expected float32 \(5, 'frames'\)"):
                model.encode(wrong)
    with pytest.raises(ProviderError, match="was closed"):
        model.encode(features)
    assert opened(folders).takes(Request([1], 3, condition=condition)) is None
    with pytest.raises(BundleError, match=r"expected one of input_features, .* give encoder_model\.onnx"):
        Encoder.open(folders / "merged" / "onnx" / "decoder_model.onnx")
    with pytest.raises(BundleError, match=r"no folder with encoder_model\.onnx"):
        Encoder.open(folders)
    for kind in (Encoder, EncoderDecoderProvider):
        with pytest.raises(InvalidArgument, match="path is None, expected the path"):
            kind.open(None)
