"""A place where sound does not go on stands out, and a place where it does goes unnoticed."""

from __future__ import annotations

import numpy as np

from perf import joins

SECOND = np.arange(24000) / 24000


def test_a_jump_is_a_large_step_and_a_smooth_place_is_not() -> None:
    sound = np.sin(2 * np.pi * 150 * SECOND).astype(np.float32)
    assert joins.steps_at(sound, [6000, 12345])[0] < 1.1
    sound[12000:] += 0.5
    largest, mean = joins.steps_at(sound, [6000, 12000])
    assert largest > 10
    assert mean > 5


def test_another_spectrum_behind_a_join_is_flux_and_the_same_one_is_not() -> None:
    low, high = (np.sin(2 * np.pi * hz * SECOND) for hz in (200, 2000))
    noise = np.random.default_rng(0).normal(0, 0.01, 48000)
    mel = joins.log_mel((np.concatenate([low, high]) + noise).astype(np.float32))
    assert joins.flux_at(mel, [24000]) > 3
    assert joins.flux_at(mel, [12000, 36000]) < 1.5


def test_a_join_that_is_known_roughly_is_found_near_by() -> None:
    sound = np.sin(2 * np.pi * 150 * SECOND).astype(np.float32)
    sound[12000:] += 0.5
    assert joins.steps_at(sound, [12003], around=4)[0] > 10
    assert joins.steps_at(sound, [12003])[0] < 1.1
