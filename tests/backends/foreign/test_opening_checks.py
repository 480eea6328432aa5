"""What is asked at opening: differences of logits that look smaller than they are, and arguments and sizes that cannot be."""

import json

import numpy as np
import pytest

from coupled_sampling import Decoder, Request
from coupled_sampling.backends import ConcatenatedProvider, EncoderDecoderProvider, open_onnx
from coupled_sampling.backends.foreign.checks import difference_of_logits
from coupled_sampling.backends.foreign.graph import Cache, _tried
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError
from standins.encoder_decoder_graphs import STATE_SIZE, merged
from standins.grown_cache_graphs import LENGTH, VOCABULARY, optimum
from standins.requested import run, tokens_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def barring(path, value, **settings):
    """A decoder in Optimum's style that gives the first token ``value`` instead of a logit, as Chameleon's does its pictures'."""
    model = onnx.load(optimum(path, **settings))
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "free"
    barred = np.arange(VOCABULARY) == 0
    for name, array in (("barred", barred), ("least", np.float32(value))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model.graph.node.append(onnx.helper.make_node("Where", ["barred", "least", "free"], ["logits"]))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("value", [np.finfo(np.float32).min, -1e9, -65504.0, -1e4, -np.inf])
def test_tokens_that_are_never_drawn_do_not_hide_a_wrong_mask(tmp_path, value):
    with pytest.raises(ProviderError, match="not scored like"):
        ConcatenatedProvider.open(barring(tmp_path / "wrong.onnx", value, mask="open"), max_length=LENGTH, threads=1)
    ConcatenatedProvider.open(barring(tmp_path / "right.onnx", value), max_length=LENGTH, threads=1).close()


def test_a_difference_is_that_of_tokens_that_can_be_drawn():
    some = np.array([[0.0, 2.0, -1e9], [0.0, 2.0, -1e9]])
    assert difference_of_logits(some, some) == 0
    assert difference_of_logits(some + np.array([0.5, 0, 7]), some) == pytest.approx(0.5)
    assert difference_of_logits(some + np.array([0, 0, 1e9]), some) > 1e8  # barred by one only
    assert difference_of_logits(some, some + np.array([0, 0, 1e9])) > 1e8
    for wrong in (np.nan, np.inf):
        broken = some.copy()
        broken[1, 0] = wrong
        assert difference_of_logits(broken, some) == difference_of_logits(some, broken) == np.inf


@pytest.mark.parametrize("value", ["0.1", True, 0, 0.3, float("nan"), []])
@pytest.mark.parametrize(
    "open_it", [open_onnx, ConcatenatedProvider.open, EncoderDecoderProvider.open], ids=["onnx", "decoder", "both"]
)
def test_a_tolerance_that_cannot_be_is_refused_by_name(tmp_path, open_it, value):
    with pytest.raises(InvalidArgument, match="tolerance is "):
        open_it(tmp_path / "model.onnx", tolerance=value)


@pytest.mark.parametrize("open_it", [open_onnx, ConcatenatedProvider.open, EncoderDecoderProvider.open])
def test_other_arguments_that_cannot_be_are_refused_by_name(tmp_path, open_it):
    with pytest.raises(InvalidArgument, match="path is None"):
        open_it(None)
    with pytest.raises(InvalidArgument, match="widen is 1"):
        open_it(tmp_path / "model.onnx", widen=1)


@pytest.mark.parametrize("positions", [2**31, 2**62, 10**30])
def test_a_configuration_that_speaks_of_countless_positions_takes_no_memory(tmp_path, positions):
    (tmp_path / "config.json").write_text(json.dumps({"max_target_positions": positions}))
    merged(tmp_path / "decoder_model_merged.onnx")
    with EncoderDecoderProvider.open(tmp_path, batch_size=2, threads=1) as model:
        assert model.max_length == positions
        condition = np.random.default_rng(0).normal(size=(5, STATE_SIZE)).astype(np.float32)
        found = {}
        for method in ("ar", "scd-match"):
            decoder = Decoder(model, method=method, window=1 if method == "ar" else 4)
            for sequence in range(3):
                decoder.add(Request([1, 2], 9, seed=1, sequence=sequence, condition=condition))
            found[method] = {handle: tokens_of(commits).tolist() for handle, commits in run(decoder).items()}
        assert found["ar"] == found["scd-match"]


def test_an_encoder_s_output_without_end_is_refused_before_it_is_made_up(tmp_path):
    path = merged(tmp_path / "decoder_model_merged.onnx")
    model = onnx.load(path)
    (states,) = (value for value in model.graph.input if value.name == "encoder_hidden_states")
    states.type.tensor_type.shape.dim[1].dim_value = 2**40
    onnx.save(model, path)
    with pytest.raises(
        BundleError, match=r"'encoder_hidden_states' has the shape .*, expected at most 33554432 numbers"
    ):
        EncoderDecoderProvider.open(tmp_path, max_length=LENGTH, threads=1)


def test_what_cannot_be_widened_is_not_told_to_be(tmp_path):
    path = optimum(tmp_path / "rounded.onnx", activations="quantised per call")
    model = onnx.load(path)
    (rounding,) = (node for node in model.graph.node if node.op_type == "DynamicQuantizeLinear")
    model.graph.output.append(onnx.helper.make_tensor_value_info(rounding.output[0], onnx.TensorProto.UINT8, None))
    onnx.save(model, path)
    with pytest.raises(
        ProviderError, match=r"the cause is DynamicQuantizeLinear \(1 of them\).*cannot be widened"
    ) as error:
        ConcatenatedProvider.open(path, max_length=LENGTH, threads=1, widen=True)
    assert "--widen" not in str(error.value)


def test_sizes_that_nothing_tells_are_not_tried_without_end():
    tried = list(_tried(Cache("past", "present", 0, 0)))
    assert len(tried) < 1500
    assert {(8, 64), (1, 256), (12, 72), (40, 128), (2, 16)} <= set(tried)
    assert list(_tried(Cache("past", "present", 3, 40))) == [(3, 40)]
    assert {(3, 40), (3, 64)} <= set(_tried(Cache("past", "present", 3, 0)))
    assert {(3, 40), (128, 40)} <= set(_tried(Cache("past", "present", 0, 40)))
