"""How sound goes over where two pieces of it meet: steps from sample to sample, and changes of the spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ipc.messages import SAMPLE_RATE

HOP, WINDOW, BANDS = 120, 480, 40
LOUDNESS_FLOOR = 1e-5
Sound = npt.NDArray[np.float32]
Grid = npt.NDArray[np.float64]


def log_mel(sound: Sound) -> Grid:
    """dB in 40 mel bands every 5 ms, (T, 40), from windows of 20 ms."""
    starts = np.arange(0, max(1, len(sound) - WINDOW), HOP)
    frames = np.stack([sound[start : start + WINDOW] for start in starts]) - np.mean(sound)
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), 512)) ** 2
    return np.asarray(10 * np.log10(np.maximum(power @ _bands().T, LOUDNESS_FLOOR)))


def _bands() -> Grid:
    """Triangles on the mel scale, (40, 257)."""
    mels = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = np.arange(257) * SAMPLE_RATE / 512
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0, np.minimum(rise, fall)))


def steps_at(sound: Sound, joins: Sequence[int], around: int = 0) -> tuple[float, float]:
    """The largest and the mean step at the joins, as shares of the 99.9 % quantile of all steps.

    A join may be up to ``around`` samples from where it is said to be: the largest step in its reach counts.
    """
    steps = np.abs(np.diff(sound))
    here = np.array([steps[max(0, join - 1 - around) : join + around].max() for join in joins])
    scale = float(np.quantile(steps, 0.999)) or 1.0
    return float(here.max()) / scale, float(here.mean()) / scale


def flux_at(mel: Grid, joins: Sequence[int]) -> float:
    """Change of the spectrum across the joins, from the window that ends there to the one that begins; 1: as usual."""
    apart = WINDOW // HOP
    flux = np.abs(mel[apart:] - mel[:-apart]).mean(axis=1)
    places = [round(join / HOP) - apart for join in joins]
    return float(np.mean([flux[max(0, min(place, len(flux) - 1))] for place in places]) / flux.mean())
