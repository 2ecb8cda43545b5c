"""The settings of a request, and what they become for the library.

The rate is ``settings.rate`` × the request's speed, in words a minute. espeak-ng itself speaks at 80 to
449 and speeds finished sound up from 450 on; below 80 we slow finished sound down the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ipc.messages import Setting
from pipeline.engines.base import EngineError, Samples, Settings

SETTINGS = (
    Setting("rate", "int", 175, "words a minute, multiplied by the request's speed", 80, 450),
    Setting("pitch", "int", 50, "pitch of the voice, 50 as the voice is made", 0, 99),
    Setting("pitch_range", "int", 50, "liveliness of the melody, 0 monotone", 0, 99),
    Setting("volume", "float", 1.0, "gain; above 1 peaks are rounded off, not clipped", 0, 2),
    Setting("word_gap_ms", "int", 0, "pause between words, in steps of 10 ms", 0, 1000),
)
SLOWEST_WPM, SPEED_UP_WPM = 80, 450
KNEE = 0.95


@dataclass(frozen=True)
class Style:
    """How to speak. ``stretch``: finished sound is slowed down to this speed (1: not at all).

    ``exact``: the library's sample positions of words can be relied on.
    """

    parameters: dict[str, int]
    stretch: float
    volume: float
    exact: bool


def style_of(settings: Settings, speed: float) -> Style:
    """Settings that `pipeline.engines.base.check_settings` has let through, as a `Style`."""
    if not 0.1 <= speed <= 10:
        raise EngineError(f"speed: {speed!r} is not between 0.1 and 10")
    values = {setting.name: float(settings.get(setting.name, setting.default)) for setting in SETTINGS}
    wpm = values["rate"] * speed
    spoken_wpm = max(SLOWEST_WPM, round(wpm))
    parameters = {
        "rate": spoken_wpm,
        "pitch": round(values["pitch"]),
        "pitch_range": round(values["pitch_range"]),
        "word_gap": round(values["word_gap_ms"] / 10),
    }
    stretch = wpm / SLOWEST_WPM if wpm < SLOWEST_WPM else 1.0
    return Style(parameters, stretch, values["volume"], stretch == 1.0 and spoken_wpm < SPEED_UP_WPM)


def amplify(samples: Samples, volume: float) -> Samples:
    """The samples × ``volume``, within ±1: what passes ``KNEE`` is bent, not cut."""
    if volume != 1.0:
        samples = samples * np.float32(volume)
    loud = np.abs(samples)
    if loud.size and loud.max() > KNEE:
        bent = KNEE + (1 - KNEE) * np.tanh((loud - KNEE) / (1 - KNEE))
        samples = np.where(loud > KNEE, np.copysign(bent, samples), samples).astype(np.float32)
    return samples
