"""Listeners at the pace of the ear notice a gap, and only a gap."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perf.listening import IN_ADVANCE_S, Ear, crowd
from perf.running import pipeline

ROOT = Path(__file__).parents[2]
SECOND = 24_000


def test_sound_that_comes_in_time_is_never_late() -> None:
    ear = Ear(prebuffer_s=0.1, began_s=10.0)
    for number in range(5):
        ear.hear(SECOND, 11.0 + number + 0.05)
    assert (ear.dry, ear.late_s, ear.speech_s) == (0, 0.0, 5.0)
    assert ear.first_ms == pytest.approx(1050)


def test_sound_that_comes_late_counts_once_and_the_rest_is_due_later() -> None:
    ear = Ear(prebuffer_s=0.1, began_s=0.0)
    ear.hear(SECOND, 1.0)
    ear.hear(SECOND, 2.4)  # due at 2.1
    assert (ear.dry, ear.late_s) == (1, pytest.approx(0.3))
    ear.hear(SECOND, 3.35)  # due at 3.4 now
    assert ear.dry == 1


def test_the_next_piece_is_wanted_before_it_is_due() -> None:
    ear = Ear(prebuffer_s=0.1, began_s=0.0)
    ear.hear(2 * SECOND, 1.0)
    assert ear.wait_s(1.0) == pytest.approx(2.1 - IN_ADVANCE_S)


@pytest.mark.slow
async def test_a_crowd_hears_everything_it_waits_for() -> None:
    with pipeline("", {"model.engine": "espeak"}) as place:
        heard = await crowd(place.to, 3, 1.0, seed=1, spread_s=0.1)
        assert len(heard) == 3
        assert all(one.speech_s >= 1 and one.first_ms > 0 for one in heard)


@pytest.mark.slow
def test_nobody_at_the_address_is_said_in_one_line() -> None:
    command = [sys.executable, "-m", "perf.listening", "--to", "tcp://127.0.0.1:9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stdout or "-")
