"""Speech to text with an exported Whisper or Moonshine, n recordings over fewer rows, beside ordinary decoding.

    python examples/speech/transcribe.py FOLDER first.wav second.wav third.wav --rows 2 --method scd-match --window 6

FOLDER is an export by Optimum or transformers.js, or what ``moonshine.py`` beside this file makes: encoder_model.onnx, a decoder,
config.json, and a tokenizer if there is to be text. The encoder runs once for each recording; what it says comes with the request.
``scd-match`` must give the tokens of ``ar``, and the exit code is 1 where it does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sound import log_mel, read_wav

from coupled_sampling import METHODS, Decoder, Request, Sampling
from coupled_sampling.backends import Encoder, EncoderDecoderProvider
from coupled_sampling.errors import CoupledSamplingError
from coupled_sampling.processors import AllowedTokens, LogitBias


def settings_of(folder: Path) -> dict[str, Any]:
    """What config.json and generation_config.json say, in the folder or the one above; the latter wins."""
    found: dict[str, Any] = {}
    for place in (folder.parent, folder):
        for name in ("config.json", "generation_config.json"):
            if (place / name).is_file():
                found |= json.loads((place / name).read_text(encoding="utf-8"))
    return found


def prompt_of(settings: dict[str, Any], language: str) -> list[int]:
    """Whisper is told the language, the task and that there are to be no times; other models only to begin."""
    prompt = [int(settings["decoder_start_token_id"])]
    if settings.get("lang_to_id"):
        prompt += [settings["lang_to_id"][f"<|{language}|>"], settings["task_to_id"]["transcribe"]]
    if settings.get("no_timestamps_token_id"):
        prompt.append(settings["no_timestamps_token_id"])
    return prompt


def sampling_of(settings: dict[str, Any], vocab_size: int, temperature: float) -> Sampling:
    """With Whisper's tokens that may never come, and those that may not come first."""
    processors: list[Any] = []
    if settings.get("suppress_tokens"):
        processors.append(LogitBias(dict.fromkeys(settings["suppress_tokens"], -np.inf)))
    if settings.get("begin_suppress_tokens"):
        processors.append(AllowedTokens({0: sorted({*range(vocab_size)} - {*settings["begin_suppress_tokens"]})}))
    return Sampling(temperature=temperature, processors=tuple(processors))


def features_of(encoder: Encoder, sound: Path, bins: int) -> NDArray[np.float32]:
    samples = read_wav(sound)
    return samples if encoder.input == "input_values" else log_mel(samples, bins)


def reader_of(folder: Path) -> Any:
    """A function from tokens to text."""
    for place in (folder, folder.parent):
        if (place / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
            return lambda tokens: tokenizer.decode(tokens)
        if (place / "tokenizer.bin").is_file():
            pieces = _pieces((place / "tokenizer.bin").read_bytes())
            return lambda tokens: b"".join(pieces[t] for t in tokens).decode(errors="replace").replace("▁", " ").strip()
    return lambda tokens: " ".join(map(str, tokens))


def _pieces(content: bytes) -> list[bytes]:
    """Moonshine's own format: for each token its length, in one byte or in two if it is above 127, and its bytes."""
    pieces, at = [], 0
    while at < len(content):
        length = content[at]
        at += 1
        if length >= 128:
            length = content[at] * 128 + length - 128
            at += 1
        piece = content[at : at + length]
        pieces.append(b"" if piece[:1] == b"<" and piece[-1:] == b">" else piece)
        at += length
    return pieces


def decoded(
    model: EncoderDecoderProvider, requests: list[Request], **settings: Any
) -> tuple[list[list[int]], int, float]:
    """Tokens of each request, passes of all of them together, and seconds."""
    decoder, began = Decoder(model, **settings), time.perf_counter()
    tokens: dict[int, list[int]] = {decoder.add(request): [] for request in requests}
    passes = 0
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            if commit.error is not None:
                raise commit.error
            tokens[commit.handle] += commit.tokens.tolist()
            passes += commit.trace.nfe if commit.finished else 0
    return list(tokens.values()), passes, time.perf_counter() - began


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sounds", type=Path, nargs="+", help="WAV files; of Whisper's the first 30 s are read")
    parser.add_argument("--rows", type=int, default=2, help="recordings decoded at the same time (default 2)")
    parser.add_argument("--method", choices=[name for name in METHODS if name != "speculative"], default="scd-match")
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--drafting", default="repeat")
    parser.add_argument("--length", type=int, default=128, help="most tokens of a recording (default 128)")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--language", default="en", help="for Whisper models of many languages (default en)")
    given = parser.parse_args(arguments)
    try:
        settings, encoder = settings_of(given.folder), Encoder.open(given.folder)
        model = EncoderDecoderProvider.open(given.folder, batch_size=given.rows)
        sampling = sampling_of(settings, model.vocab_size, given.temperature)
        prompt, ends = prompt_of(settings, given.language), settings["eos_token_id"]
        stop = ends if isinstance(ends, list) else [ends]
        length = min(given.length, model.max_length - len(prompt) + 1)
        requests = [
            Request(
                prompt,
                length,
                sequence=i,
                stop=stop,
                sampling=sampling,
                condition=encoder.encode(features_of(encoder, sound, settings.get("num_mel_bins", 80))),
            )
            for i, sound in enumerate(given.sounds)
        ]
        plain = decoded(model, requests, method="ar")
        fast = decoded(model, requests, method=given.method, window=given.window, drafting=given.drafting)
    except KeyError as error:
        parser.exit(2, f"error: {given.folder} has no config.json or generation_config.json that says {error}\n")
    except (CoupledSamplingError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    read = reader_of(given.folder)
    for sound, tokens in zip(given.sounds, fast[0], strict=True):
        print(f"{sound.name}: {read([token for token in tokens if token not in stop])}")
    count = sum(map(len, fast[0]))
    print(f"\n{'method':<12}{'tokens':>8}{'passes':>8}{'seconds':>9}", file=sys.stderr)
    for name, (found, passes, seconds) in (("ar", plain), (given.method, fast)):
        print(f"{name:<12}{sum(map(len, found)):>8}{passes:>8}{seconds:>9.2f}", file=sys.stderr)
    return int(given.method == "scd-match" and (plain[0] != fast[0] or count == 0))


if __name__ == "__main__":
    sys.exit(main())
