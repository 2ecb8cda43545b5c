"""The simulated card hears what a player would put out, and when."""

from __future__ import annotations

import numpy as np
import pytest

from ipc.messages import SAMPLE_RATE
from perf.card import Handed, as_heard, gaps_s, play

BLOCK_S = 512 / SAMPLE_RATE
START_S = 999.5 * BLOCK_S
"""Between two ticks: the next one is half a block later."""


def test_all_at_once_is_heard_from_the_next_tick_without_a_break() -> None:
    (heard,) = play([Handed(START_S + 0.3 * BLOCK_S, 10_000)], least_samples=0)
    assert heard.at_s == pytest.approx(START_S + BLOCK_S / 2)
    assert (heard.first_sample, heard.samples) == (0, 10_000)
    assert gaps_s([heard]) == []


def test_playing_waits_for_enough_or_for_the_end() -> None:
    pieces = [Handed(START_S + number * BLOCK_S, 600) for number in range(4)]
    assert play(pieces, least_samples=1500)[0].at_s == pytest.approx(START_S + 2.5 * BLOCK_S)
    assert play(pieces, least_samples=9999)[0].at_s == pytest.approx(START_S + 3.5 * BLOCK_S)


def test_sound_that_comes_late_makes_a_gap_and_none_is_lost() -> None:
    first, second = play([Handed(START_S, 1000), Handed(START_S + 10 * BLOCK_S, 1000)], least_samples=0)
    assert (first.samples, second.first_sample, second.samples) == (1000, 1000, 1000)
    (gap_s,) = gaps_s([first, second])
    assert gap_s == pytest.approx(10 * BLOCK_S - 1000 / SAMPLE_RATE)


def test_after_a_gap_it_begins_again_with_enough() -> None:
    late_s = START_S + 10 * BLOCK_S
    stretches = play([Handed(START_S, 2000), Handed(late_s, 600), Handed(late_s + BLOCK_S, 2000)], least_samples=2000)
    assert [one.first_sample for one in stretches] == [0, 2000]
    assert stretches[1].at_s == pytest.approx(late_s + 1.5 * BLOCK_S)


def test_sound_in_time_is_never_broken_off() -> None:
    pieces = [Handed(START_S + number * 0.2, SAMPLE_RATE // 4) for number in range(20)]
    (heard,) = play(pieces, least_samples=SAMPLE_RATE // 4)
    assert heard.samples == 5 * SAMPLE_RATE


def test_what_is_heard_begins_with_the_wait_and_keeps_gaps() -> None:
    sound = np.ones(2000, np.float32)
    stretches = play([Handed(START_S, 1000), Handed(START_S + 10 * BLOCK_S, 1000)], least_samples=0)
    heard = as_heard(sound, stretches, START_S - 1.0)
    assert not heard[:SAMPLE_RATE].any()
    assert heard.sum() == 2000
    assert len(heard) == SAMPLE_RATE + 256 + 10 * 512 + 1000
