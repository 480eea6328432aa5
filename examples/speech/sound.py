"""From a WAV file to what a speech model's encoder reads, with numpy alone: the samples, or Whisper's spectrogram of them."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["RATE", "log_mel", "read_wav"]

RATE = 16_000
"""Samples in a second, for Whisper and Moonshine alike."""
WINDOW, HOP, SECONDS = 400, 160, 30


def read_wav(path: Path) -> NDArray[np.float32]:
    """Samples (n,) in [-1, 1) of a file of 16-bit numbers; channels are averaged, another rate is interpolated to `RATE`."""
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"{path} has samples of {8 * file.getsampwidth()} bits, expected 16")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        rate = file.getframerate()
    mono = samples.mean(axis=1) / 32768
    if rate != RATE:
        places = np.arange(len(mono) * RATE // rate) * (rate / RATE)
        mono = np.interp(places, np.arange(len(mono)), mono)
    return mono.astype(np.float32)


def log_mel(samples: NDArray[np.float32], bins: int = 80, seconds: int = SECONDS) -> NDArray[np.float32]:
    """Whisper's spectrogram (bins, 100 * seconds) of ``samples``, which are cut or filled with silence to ``seconds``.

    Powers of windows of 25 ms every 10 ms, by mel bin; their logarithms to base 10, none more than 8 below the largest; scaled.
    """
    whole = np.zeros(seconds * RATE)
    count = min(len(samples), len(whole))
    whole[:count] = samples[:count]
    padded = np.pad(whole, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][: len(whole) // HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    powers = np.abs(np.fft.rfft(frames * hann)) ** 2
    logs = np.log10(np.maximum(mel_filters(bins) @ powers.T, 1e-10))
    return ((np.maximum(logs, logs.max() - 8) + 4) / 4).astype(np.float32)


def mel_filters(bins: int) -> NDArray[np.float64]:
    """Triangles (bins, WINDOW // 2 + 1) on the mel scale of Slaney's toolbox, each of area one."""
    edges = _hertz(np.linspace(0, _mel(RATE / 2), bins + 2))
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return np.asarray(triangles * (2 / (edges[2:] - edges[:-2]))[:, None])


KNEE, STEP = 1000.0, 27 / np.log(6.4)
"""Mels are 3 for 200 Hz below 1,000 Hz, and logarithmic above."""


def _mel(hertz: float) -> float:
    return float(15 + STEP * np.log(hertz / KNEE)) if hertz >= KNEE else 3 * hertz / 200


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel >= 15, KNEE * np.exp((mel - 15) / STEP), mel * 200 / 3)
