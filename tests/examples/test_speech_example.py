"""The speech example: sound to spectrograms, text of an exported model, and Moonshine's eight-bit files widened."""

import importlib
import json
import re
import sys
import wave
import zipfile

import numpy as np
import pytest

from coupled_sampling import Request
from coupled_sampling.backends import Encoder, EncoderDecoderProvider
from coupled_sampling.backends.foreign.rewriting import roundings
from coupled_sampling.errors import ProviderError
from standins import ROOT

onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [cpu]")

from standins.encoder_decoder_graphs import MELS, STATE_SIZE, encoder, merged, pair, reference_of  # noqa: E402
from standins.grown_cache_graphs import LENGTH  # noqa: E402


@pytest.fixture
def example(monkeypatch):
    """Imports a module of the example as its programs do."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "speech"))
    for name in ("sound", "transcribe", "moonshine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def write_wav(path, samples, rate=16_000):
    channels = samples.reshape(len(samples), -1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((channels * 32767).astype("<i2").tobytes())
    return path


def tone(hertz, seconds=1.0, rate=16_000):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def test_a_sound_is_read_whatever_its_rate_and_its_channels(example, tmp_path):
    read = example("sound").read_wav
    expected = tone(300)
    np.testing.assert_allclose(read(write_wav(tmp_path / "a.wav", expected)), expected, atol=1e-4)
    other = write_wav(tmp_path / "b.wav", np.stack([tone(300, rate=48_000)] * 2, axis=1), 48_000)
    assert read(other).shape == expected.shape
    np.testing.assert_allclose(read(other), expected, atol=2e-3)


def test_a_tone_is_loud_in_its_own_mel_bin(example):
    """By hand: 3 mels for 200 Hz up to 1,000 Hz, so that 80 bins up to 45.25 mels are 0.5586 mels apart, from there on."""
    log_mel = example("sound").log_mel
    for hertz in (200, 400, 800):
        spectrogram = log_mel(tone(hertz, 2.0).astype(np.float32))
        assert spectrogram.shape == (80, 3000)
        nearest = 3 * hertz / 200 / (45.2455 / 81) - 1
        assert abs(int(spectrogram[:, 100].argmax()) - nearest) < 1
        silence = spectrogram[:, 300:]  # 8 below the loudest in the logarithm, which is divided by 4
        np.testing.assert_allclose(silence, spectrogram.max() - 2, atol=1e-6)
    assert np.unique(log_mel(np.zeros(100, np.float32))).tolist() == [-1.5]


@pytest.mark.frameworks
@pytest.mark.parametrize("bins", [80, 128])
def test_the_spectrogram_is_that_of_transformers(example, bins):
    transformers = pytest.importorskip("transformers", reason="make test-frameworks installs it")
    samples = np.random.default_rng(0).normal(0, 0.1, 90_000).astype(np.float32)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    expected = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(example("sound").log_mel(samples, bins), expected, atol=1e-4)


def test_recordings_are_transcribed_over_fewer_rows(example, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    pair(folder)
    encoder(folder / "encoder_model.onnx")
    config = {"max_target_positions": LENGTH, "num_mel_bins": MELS, "decoder_start_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    ruled = {"suppress_tokens": [3, 4], "begin_suppress_tokens": [2], "no_timestamps_token_id": 5}
    (folder / "generation_config.json").write_text(json.dumps(ruled))
    sounds = [str(write_wav(tmp_path / f"{hertz}.wav", tone(hertz))) for hertz in (200, 900, 3000)]
    settings = ["--rows", "2", "--length", "20", "--temperature", "1"]
    assert example("transcribe").main([str(folder), *sounds, *settings]) == 0
    out, err = capsys.readouterr()
    lines = [line.split(": ") for line in out.splitlines()]
    assert [name for name, _ in lines] == ["200.wav", "900.wav", "3000.wav"]
    assert len({text for _, text in lines}) == 3
    assert not {"2", "3", "4"} & {token for _, text in lines for token in text.split()}
    assert re.search(r"^ar +\d+ +\d+ +[\d.]+$", err, re.MULTILINE)
    with pytest.raises(SystemExit) as ended:
        example("transcribe").main([str(tmp_path), sounds[0]])
    assert ended.value.code == 2
    assert "no folder with encoder_model.onnx" in capsys.readouterr().err
    config |= {"eos_token_id": [2, 7]}
    del config["decoder_start_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        example("transcribe").main([str(folder), sounds[0]])
    assert "says 'decoder_start_token_id'" in capsys.readouterr().err
    (folder / "config.json").write_text(json.dumps(config | {"decoder_start_token_id": 1}))
    assert example("transcribe").main([str(folder), sounds[0], *settings]) == 0


def test_pieces_of_moonshines_own_tokenizer(example, tmp_path):
    """Long pieces have their length in two bytes."""
    long = "▁" + "a" * 200
    pieces = ["<unk>", "<s>", "▁Ever", "▁tried", long]
    content = b""
    for piece in pieces:
        encoded = piece.encode()
        size = len(encoded)
        content += (bytes([size]) if size < 128 else bytes([size % 128 + 128, size // 128])) + encoded
    (tmp_path / "tokenizer.bin").write_bytes(content)
    read = example("transcribe").reader_of(tmp_path)
    assert read([1, 2, 3]) == "Ever tried"
    assert read([3, 4]) == "tried " + "a" * 200


def eight_bits(path, out):
    """The graph of ``path`` with weights and activations of eight bits, in ONNX Runtime's own format."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantised = out.with_suffix(".quantised.onnx")
    quantization.quantize_dynamic(
        str(path), str(quantised), per_channel=True, extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True}
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(out)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(quantised), options, providers=["CPUExecutionProvider"])
    return quantised


def test_eight_bit_files_are_refused_and_taken_when_they_are_widened(example, tmp_path, monkeypatch, capsys):
    """Widened weights differ from the model's by their rounding, and no longer by what else the window holds."""
    merged(tmp_path / "decoder.onnx", mask="samples")
    encoder(tmp_path / "encoder.onnx")
    quantised = eight_bits(tmp_path / "decoder.onnx", tmp_path / "decoder_model_merged.ort")
    eight_bits(tmp_path / "encoder.onnx", tmp_path / "encoder_model.ort")
    later = r"tokens further right in the same window change the logits.* add --widen \(in Python widen=True\)"
    with pytest.raises(ProviderError, match=later):
        EncoderDecoderProvider.open(quantised, max_length=LENGTH, threads=1)
    in_memory = EncoderDecoderProvider.open(quantised, max_length=LENGTH, threads=1, widen=True)
    assert "widened" in in_memory.runs.changes

    moonshine = example("moonshine")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in moonshine.NAMES:
            wheel.write(tmp_path / f"{name}.ort", f"{moonshine.INSIDE}{name}.ort")
        for name in (
            f"{moonshine.INSIDE}tokenizer.bin",
            *(f"moonshine_voice/assets/{sound}" for sound in moonshine.SOUNDS),
        ):
            wheel.writestr(name, b"")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["moonshine.py", "--out", str(out), "--wheel", str(tmp_path / "a.whl")])
    assert moonshine.main() == 0
    assert not roundings(onnx.load(out / "decoder_model_merged.onnx"))
    model = EncoderDecoderProvider.open(out, max_length=LENGTH, threads=1)
    assert model.mask_stride == 384
    features = np.random.default_rng(0).normal(size=(MELS, 6)).astype(np.float32)
    condition = Encoder.open(out, threads=1).encode(features)
    np.testing.assert_allclose(condition, Encoder.open(tmp_path / "encoder.onnx").encode(features), atol=0.05)
    assert condition.shape == (6, STATE_SIZE)
    model.begin(0, Request([1], 3, condition=condition))
    tokens = np.array([[1, 2, 3, 4]])
    pair(tmp_path)
    expected = reference_of(tmp_path / "decoder_model.onnx")(tokens[0], condition)
    found = model.forward(tokens, np.zeros(1, np.int64))[0]
    in_memory.begin(0, Request([1], 3, condition=condition))
    np.testing.assert_allclose(in_memory.forward(tokens, np.zeros(1, np.int64))[0], found, atol=1e-4)
    assert 0 < np.abs(found - expected).max() < 0.2 * expected.std()
