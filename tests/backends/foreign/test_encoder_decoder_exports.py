"""Whisper, Moonshine, T5, BART, Marian and M2M100, tiny and random, as Optimum exports them: transformers' logits and tokens.

``make test-frameworks`` installs what they need.
"""

import numpy as np
import pytest

from coupled_sampling import Decoder, Request, Sampling
from coupled_sampling.backends import Encoder, EncoderDecoderProvider
from coupled_sampling.testing import check_provider
from standins.requested import run, tokens_of

pytestmark = pytest.mark.frameworks

START, END, LENGTH = 1, 2, 64
SIZES = {
    "vocab_size": 64,
    "bos_token_id": START,
    "eos_token_id": END,
    "decoder_start_token_id": START,
    "pad_token_id": 0,
}
TASKS = {
    "whisper": "automatic-speech-recognition-with-past",
    "moonshine": "automatic-speech-recognition-with-past",
    "t5": "text2text-generation-with-past",
    "bart": "text2text-generation-with-past",
    "marian": "text2text-generation-with-past",
    "m2m_100": "text2text-generation-with-past",
}
TRANSLATORS = {
    "bart": "BartForConditionalGeneration",
    "marian": "MarianMTModel",
    "m2m_100": "M2M100ForConditionalGeneration",
}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}


def tiny(kind):
    """A random model whose weights are large enough that its tokens are not all alike."""
    torch = pytest.importorskip("torch", reason="make test-frameworks installs it")
    transformers = pytest.importorskip("transformers", reason="make test-frameworks installs it")
    torch.manual_seed(0)
    if kind == "whisper":
        return transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(
                d_model=32, encoder_layers=1, decoder_layers=2, num_mel_bins=8, max_target_positions=LENGTH, init_std=0.3,
                suppress_tokens=[], begin_suppress_tokens=[], **HEADS, **SIZES,
            )
        )  # fmt: skip
    if kind == "moonshine":
        # Optimum names the decoder's layers by the number of the encoder's.
        return transformers.MoonshineForConditionalGeneration(
            transformers.MoonshineConfig(
                hidden_size=32, intermediate_size=32, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
                encoder_num_attention_heads=2, decoder_num_attention_heads=2, max_position_embeddings=LENGTH,
                initializer_range=0.3, **SIZES,
            )
        )  # fmt: skip
    if kind in TRANSLATORS:
        made = getattr(transformers, TRANSLATORS[kind])
        return made(
            made.config_class(
                d_model=32, encoder_layers=2, decoder_layers=2, max_position_embeddings=LENGTH, init_std=0.3,
                forced_eos_token_id=None, **HEADS, **SIZES,
            )
        )  # fmt: skip
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2, initializer_factor=3.0, **SIZES)
    )


def inputs(kind, count):
    """``count`` inputs of different lengths, where the model has any."""
    random = np.random.default_rng(4)
    if kind == "whisper":
        return [random.normal(size=(8, 3000)).astype(np.float32) for _ in range(count)]
    if kind == "moonshine":
        return [random.normal(size=4000 + 1500 * i).astype(np.float32) for i in range(count)]
    return [random.integers(3, 64, 9 + 4 * i) for i in range(count)]


@pytest.fixture(scope="module", params=TASKS)
def exported(request, tmp_path_factory):
    """The kind, transformers' model, and the folder of its export: a pair, and a merged one beside."""
    exporters = pytest.importorskip("optimum.exporters.onnx", reason="make test-frameworks installs it")
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = tiny(kind).eval()
    model.save_pretrained(folder)
    if kind == "whisper":
        import transformers

        transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(folder)
    settings = {"library_name": "transformers", "device": "cpu", "do_validation": False}
    exporters.main_export(str(folder), folder / "onnx", task=TASKS[kind], **settings)
    return kind, model, folder


def reference_of(model):
    """transformers' logits (T, V) of a sequence, token by token, given the encoder's output."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    def logits(tokens, states):
        encoded, past, rows = BaseModelOutput(last_hidden_state=torch.from_numpy(states)[None]), None, []
        with torch.no_grad():
            for token in tokens.tolist():
                given = {
                    "encoder_outputs": encoded,
                    "decoder_input_ids": torch.tensor([[token]]),
                    "past_key_values": past,
                }
                out = model(**given, use_cache=True)
                past = out.past_key_values
                rows.append(out.logits[0, 0].numpy())
        return np.array(rows)

    return logits


@pytest.mark.parametrize("name", ["decoder_model_merged.onnx", "decoder_model.onnx"])
def test_it_conforms_and_has_the_logits_of_transformers(exported, name):
    kind, model, folder = exported
    encoder = Encoder.open(folder, threads=1)
    provider = EncoderDecoderProvider.open(folder / "onnx" / name, batch_size=2, max_length=48, threads=1)
    conditions = [encoder.encode(features) for features in inputs(kind, 2)]
    check_provider(provider, conditions=conditions, reference=reference_of(model), length=24, tolerance=1e-3)
    assert provider.mask_stride == (384 if kind == "moonshine" else 1)
    assert provider.breaks == ((0,) if kind == "m2m_100" else ())


def test_its_text_is_that_of_transformers(exported):
    """Five inputs over two rows: greedily the tokens of ``generate``, and at any temperature match gives those of ar."""
    import torch

    kind, model, folder = exported
    encoder, given = Encoder.open(folder, threads=1), inputs(kind, 5)
    provider = EncoderDecoderProvider.open(folder, batch_size=2, max_length=48, threads=1)
    conditions = [encoder.encode(features) for features in given]
    expected = []
    for features in given:
        name = "inputs" if encoder.input == "input_ids" else encoder.input
        settings = {"max_new_tokens": 24, "do_sample": False, "min_length": 0}
        with torch.no_grad():
            out = model.generate(**{name: torch.from_numpy(features)[None]}, **settings)[0].tolist()
        expected.append(out[1:] if out[0] == START else out)

    def decoded(method, temperature):
        decoder = Decoder(provider, method=method, window=1 if method == "ar" else 6)
        for i, condition in enumerate(conditions):
            sampling = Sampling(temperature=temperature)
            decoder.add(Request([START], 24, sequence=i, stop=[END], sampling=sampling, condition=condition))
        return [tokens_of(commits).tolist() for _, commits in sorted(run(decoder).items())]

    for method in ("ar", "scd-maximal", "scd-match"):
        assert decoded(method, 0) == expected
    assert decoded("scd-match", 1.0) == decoded("ar", 1.0)
