"""Speech at another speed: pitch and length are right, joins are not heard, a successor makes the same samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("python_stretch")
pytest.importorskip("chatterbox")

from pipeline.engines.base import EngineError, Samples
from pipeline.engines.chatterbox.stretch import RATE, Stretcher, stretched, stretchers
from pipeline.engines.chatterbox.tiny_files import hum

pytestmark = pytest.mark.chatterbox

SPEEDS = (0.25, 0.4, 0.5, 0.8, 1.25, 2.0, 4.0)
RUNGS = (7, 12, 25, 25, 25)
TOKEN = 960


def cuts_of(length: int, rungs: tuple[int, ...] = RUNGS) -> list[int]:
    cuts = [cut * TOKEN for cut in itertools.accumulate(rungs)]
    return [cut for cut in cuts if cut < length] + [length]


def run(sound: Samples, speed: float, cuts: list[int], killed: bool = False) -> list[Samples]:
    """In pieces; ``killed``: every piece by a successor."""
    stretcher, made, at = Stretcher(speed), [], 0
    for cut in cuts:
        if killed:
            stretcher = Stretcher(speed, stretcher.state())
        made.append(stretcher.process(sound[at:cut], cut == len(sound)))
        at = cut
    return made


def tone(hz: float, seconds: float = 4.0) -> Samples:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("hz", [110.0, 220.0, 440.0])
def test_pitch_stays_within_one_percent_and_length_within_20_ms(speed: float, hz: float) -> None:
    sound = tone(hz)
    made = np.concatenate(run(sound, speed, cuts_of(len(sound))))
    assert abs(len(made) - len(sound) / speed) <= 0.02 * RATE
    edge = int(0.1 * RATE * max(1.0, 1 / speed))
    middle = made[edge:-edge]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 19))
    assert np.argmax(spectrum) * RATE / (1 << 19) == pytest.approx(hz, rel=0.01)
    loudness = [np.sqrt(np.mean(middle[at : at + 480] ** 2)) for at in range(0, len(middle) - 480, 480)]
    assert min(loudness) > 0.8 * 0.3 / np.sqrt(2), "no hole at a join"


@pytest.mark.parametrize("speed", SPEEDS)
def test_joins_are_no_rougher_than_the_sound_between_them(speed: float) -> None:
    sound = hum(3.5)
    pieces = run(sound, speed, cuts_of(len(sound)))
    made = np.concatenate(pieces)
    rough = np.abs(np.diff(made, 2))
    joins = [int(join) for join in np.cumsum([len(piece) for piece in pieces])[:-1] if join > RATE // 10]
    near = [rough[join - 240 : join + 240].max() for join in joins]
    assert near
    assert max(near) <= 1.2 * rough.max()
    assert np.median(near) <= 2.0 * np.median([rough[at : at + 480].max() for at in range(0, len(rough) - 480, 480)])


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_successor_makes_the_same_samples(speed: float) -> None:
    sound = hum(3.0)
    cuts = cuts_of(len(sound))
    one, other = run(sound, speed, cuts), run(sound, speed, cuts, killed=True)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("speed", SPEEDS)
def test_state_is_small_and_what_is_held_back_is_short(speed: float) -> None:
    stretcher, sound = Stretcher(speed), hum(4.0)
    for cut in range(0, len(sound), 12 * TOKEN):
        made = stretcher.process(sound[cut : cut + 12 * TOKEN], False)
        assert len(stretcher.state()) < 40_000
        assert made.dtype == np.float32
    assert stretcher.held_s < 0.25
    assert stretcher.scale == 1 / speed


def test_events_stay_where_they_belong() -> None:
    sound = tone(220.0)
    sound[: 2 * RATE] = 0
    for speed in (0.5, 2.0):
        made = np.concatenate(run(sound, speed, cuts_of(len(sound))))
        onset = int(np.argmax(np.abs(made) > 0.15))
        assert abs(onset * speed / RATE - 2.0) < 0.04


@pytest.mark.parametrize("length", [0, 1, 100, 959, 960, 5000])
@pytest.mark.parametrize("speed", [0.25, 1.5, 4.0])
def test_short_streams_come_out_whole(length: int, speed: float) -> None:
    sound = hum(1.0)[:length]
    made = np.concatenate(run(sound, speed, [length // 2, length] if length > 1 else [length]))
    assert len(made) == round(length / speed)


def test_pieces_of_no_length_change_nothing() -> None:
    sound = hum(1.0)
    stretcher = Stretcher(2.0)
    made = [stretcher.process(sound, False), stretcher.process(sound[:0], False), stretcher.process(sound[:0], True)]
    assert len(np.concatenate(made)) == len(sound) // 2


def test_the_library_is_repeatable_at_every_speed() -> None:
    sound = hum(1.0)
    for speed in SPEEDS:
        assert np.array_equal(stretched(sound, speed), stretched(sound, speed))


def test_ordinary_speed_needs_nothing_and_an_impossible_one_is_refused() -> None:
    assert stretchers(1.0) == ()
    assert len(stretchers(1.5)) == 1
    for speed in (0.2, 4.5, float("nan")):
        with pytest.raises(EngineError, match=r"speed: .* is not between 0.25 and 4"):
            stretchers(speed)
