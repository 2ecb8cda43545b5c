"""Settings, and what they become."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.base import EngineError
from pipeline.engines.espeak.style import SETTINGS, amplify, style_of


@pytest.mark.parametrize(
    ("rate", "speed", "spoken", "stretch", "exact"),
    [
        (175, 1.0, 175, 1.0, True),
        (175, 2.0, 350, 1.0, True),
        (175, 4.0, 700, 1.0, False),
        (100, 0.5, 80, 0.625, False),
        (80, 1.0, 80, 1.0, True),
        (450, 1.0, 450, 1.0, False),
        (175, 0.25, 80, 43.75 / 80, False),
    ],
)
def test_rate_times_speed_is_kept_at_every_speed(
    rate: int, speed: float, spoken: int, stretch: float, exact: bool
) -> None:
    style = style_of({"rate": rate}, speed)
    assert (style.parameters["rate"], style.stretch, style.exact) == (spoken, stretch, exact)


@pytest.mark.parametrize("speed", [0.0, -1.0, 0.01, 11.0, float("nan"), float("inf")])
def test_impossible_speeds_are_refused(speed: float) -> None:
    with pytest.raises(EngineError, match="speed"):
        style_of({}, speed)


def test_defaults_lie_within_their_limits() -> None:
    for setting in SETTINGS:
        assert setting.least <= setting.default <= setting.most


@given(st.floats(0, 2), st.integers(0, 2**32 - 1))
def test_no_volume_leaves_the_range(volume: float, seed: int) -> None:
    samples = np.random.default_rng(seed).uniform(-1.1, 1.1, 500).astype(np.float32)
    loud = amplify(samples, volume)
    assert loud.dtype == np.float32
    assert np.abs(loud).max() <= 1.0
    assert np.all(np.sign(loud) * np.sign(samples) >= 0)


def test_quiet_samples_are_multiplied_exactly_and_peaks_keep_their_order() -> None:
    ramp = np.linspace(0, 1, 1000, dtype=np.float32)
    assert np.array_equal(amplify(ramp[:400], 2.0), ramp[:400] * 2)
    assert np.all(np.diff(amplify(ramp, 1.5)) >= 0)
    assert amplify(ramp[:900], 1.0) is not None
    assert not amplify(ramp, 0.0).any()
