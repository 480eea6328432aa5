"""A randomly weighted Whisper of real shape, exported by Optimum and compared with transformers: logits, greedy text and time.

    python examples/speech/random_whisper.py --out build/whisper --sounds 3

Whisper Tiny's shape: 4 + 4 layers of width 384, 80 mel bins, 1,500 states, 51,865 tokens, 38 million parameters. No package
index is known to have its real weights, so the text is nonsense; that it is the very nonsense of transformers is what is shown.
Exit code 1 if it is not. Needs `pip install torch optimum-onnx`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from optimum.exporters.onnx import main_export
from sound import log_mel
from transcribe import decoded

from coupled_sampling import Request, Sampling
from coupled_sampling.backends import Encoder, EncoderDecoderProvider

START, END = 50258, 50257
SHAPE = {
    "vocab_size": 51865, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "max_source_positions": 1500,
    "max_target_positions": 448, "num_mel_bins": 80, "decoder_start_token_id": START, "eos_token_id": END,
    "bos_token_id": END, "pad_token_id": END, "suppress_tokens": [], "begin_suppress_tokens": [],
}  # fmt: skip


def exported(folder: Path, deviation: float) -> transformers.WhisperForConditionalGeneration:
    """The model, and in ``folder`` its export."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(init_std=deviation, **SHAPE)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    if not (folder / "decoder_model_merged.onnx").is_file():
        model.save_pretrained(folder / "model")
        transformers.WhisperFeatureExtractor().save_pretrained(folder / "model")
        task = "automatic-speech-recognition-with-past"
        main_export(str(folder / "model"), folder, task=task, library_name="transformers", do_validation=False)
    return model


def sounds(count: int) -> list[np.ndarray]:
    """Tones that come and go, each sound with other ones."""
    random, times = np.random.default_rng(0), np.arange(30 * 16_000) / 16_000
    made = []
    for _ in range(count):
        tones = random.uniform(80, 4000, (12, 1))
        starts = random.uniform(0, 28, (12, 1))
        loud = np.exp(-(((times - starts) / random.uniform(0.1, 1.0, (12, 1))) ** 2))
        made.append(log_mel((0.1 * loud * np.sin(2 * np.pi * tones * times)).sum(axis=0).astype(np.float32)))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the export; one that is there is used")
    parser.add_argument("--sounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--deviation", type=float, default=0.06, help="of the weights (default 0.06)")
    given = parser.parse_args()
    model = exported(given.out, given.deviation)
    encoder = Encoder.open(given.out)
    provider = EncoderDecoderProvider.open(given.out, batch_size=given.rows)
    features = sounds(given.sounds)
    conditions = [encoder.encode(spectrogram) for spectrogram in features]

    expected, began = [], time.perf_counter()
    with torch.no_grad():
        for spectrogram in features:
            settings = {"max_new_tokens": given.length, "do_sample": False, "use_cache": True}
            out = model.generate(torch.from_numpy(spectrogram)[None], **settings)[0].tolist()
            expected.append(out[1:] if out[0] == START else out)
        seconds = time.perf_counter() - began
        text = torch.tensor([START, *expected[0]])[None]
        logits = model(torch.from_numpy(features[0])[None], decoder_input_ids=text).logits[0].numpy()
    provider.begin(0, Request([START], 1, condition=conditions[0]))
    found = provider.forward(text.numpy(), np.zeros(1, np.int64))[0]
    difference = np.abs(found - logits).max() / logits.std()
    print(f"parameters {sum(weight.numel() for weight in model.parameters()):,}")
    print(f"logits of {len(found)} positions differ by {difference:.1e} of their spread")

    requests = [
        Request([START], given.length, sequence=i, stop=[END], sampling=Sampling(temperature=0), condition=condition)
        for i, condition in enumerate(conditions)
    ]
    print(f"{'':<12}{'tokens':>8}{'passes':>8}{'seconds':>9}  as transformers")
    print(f"{'transformers':<12}{sum(map(len, expected)):>8}{'':>8}{seconds:>9.2f}  (its encoder included)")
    right = difference < 1e-4
    for method, loop in (("ar", {}), ("scd-match", {"window": given.window, "drafting": "ngram:2"})):
        tokens, passes, took = decoded(provider, requests, method=method, **loop)
        right &= tokens == expected
        print(f"{method:<12}{sum(map(len, tokens)):>8}{passes:>8}{took:>9.2f}  {tokens == expected}")
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
