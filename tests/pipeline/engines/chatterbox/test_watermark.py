"""The stream's watermark is found by Perth's own detector, is nearly the package's own, and can be resumed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("chatterbox")
pytest.importorskip("perth")

from pipeline.engines.base import Samples
from pipeline.engines.chatterbox import watermark
from pipeline.engines.chatterbox.tiny_files import hum
from pipeline.engines.chatterbox.watermark import LATENCY_S, RATE, Marker, Watermarker

pytestmark = pytest.mark.chatterbox
perth = pytest.importorskip("perth")

RUNGS = (7, 12, 25, 25, 50)


@pytest.fixture(scope="module")
def marker() -> Marker:
    made = Marker.load()
    assert made.encoder is not None, made.note
    return made


@pytest.fixture(scope="module")
def package():
    return perth.PerthImplicitWatermarker()


@pytest.fixture(scope="module")
def sound() -> Samples:
    """Low enough to pass the package's resampling unchanged."""
    spectrum = np.fft.rfft(hum(3.0))
    spectrum[int(9000 * 3.0) :] = 0
    low = np.fft.irfft(spectrum)
    return (0.6 * low / np.abs(low).max()).astype(np.float32)


def run(marker: Marker, sound: Samples, cuts: list[int], killed: bool = False) -> list[Samples]:
    made, at, one = [], 0, Watermarker(marker)
    for cut in cuts:
        if killed:
            one = Watermarker(marker, one.state())
        made.append(one.process(sound[at:cut], cut == len(sound)))
        at = cut
    return made


def cuts_of(length: int) -> list[int]:
    cuts = [cut * 960 for cut in itertools.accumulate(RUNGS)]
    return [cut for cut in cuts if cut < length] + [length]


def test_the_packages_detector_finds_it_also_after_resuming(marker: Marker, package, sound: Samples) -> None:
    assert float(package.get_watermark(sound, RATE, round=False)) < 0.2
    for killed in (False, True):
        made = np.concatenate(run(marker, sound, cuts_of(len(sound)), killed))
        assert len(made) == len(sound)
        assert float(package.get_watermark(made, RATE, round=False)) > 0.8


def test_it_is_nearly_what_the_package_makes_of_the_whole(marker: Marker, package, sound: Samples) -> None:
    whole = package.apply_watermark(sound, RATE)
    made = np.concatenate(run(marker, sound, cuts_of(len(sound))))
    mark = np.sqrt(np.mean((whole - sound) ** 2))
    assert mark > 0
    assert np.sqrt(np.mean((whole - made) ** 2)) < 0.1 * mark


def test_with_all_of_the_context_cuts_do_not_matter(
    marker: Marker, sound: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark, "AHEAD", watermark.NEIGHBOURS)
    whole = np.concatenate(run(marker, sound, [len(sound)]))
    for cuts in (cuts_of(len(sound)), [*range(1000, len(sound), 1000), len(sound)]):
        assert np.allclose(np.concatenate(run(marker, sound, cuts)), whole, atol=1e-5)


def test_a_successor_makes_the_same_samples(marker: Marker, sound: Samples) -> None:
    cuts = cuts_of(len(sound))
    for one, other in zip(run(marker, sound, cuts), run(marker, sound, cuts, killed=True), strict=True):
        assert np.array_equal(one, other)


def test_it_holds_back_no_more_than_it_says_and_its_state_is_small(marker: Marker, sound: Samples) -> None:
    one, taken, given = Watermarker(marker), 0, 0
    for cut in range(0, len(sound), 2000):
        piece = sound[cut : cut + 2000]
        taken += len(piece)
        given += len(one.process(piece, False))
        assert taken - given <= (LATENCY_S + 0.01) * RATE
        assert len(one.state()) < 30_000
    assert LATENCY_S < 0.12


def test_it_is_added_without_a_step_at_joins(marker: Marker, sound: Samples) -> None:
    pieces = run(marker, sound, cuts_of(len(sound)))
    mark = np.concatenate(pieces) - sound
    rough = np.abs(np.diff(mark, 2))
    joins = np.cumsum([len(piece) for piece in pieces])[:-1]
    assert max(rough[join - 2 : join + 2].max() for join in joins if join) <= rough.max() * 0.9


@pytest.mark.parametrize("length", [0, 1, 2, 100, 768, 769, 1536, 5000])
def test_short_streams_come_out_whole(length: int, marker: Marker, sound: Samples) -> None:
    made = run(marker, sound[:length], [length // 2, length] if length > 1 else [length])
    assert len(np.concatenate(made)) == length
    assert np.isfinite(np.concatenate(made)).all()


def test_silence_stays_silent(marker: Marker) -> None:
    quiet = np.zeros(RATE, np.float32)
    assert np.abs(np.concatenate(run(marker, quiet, cuts_of(len(quiet))))).max() < 1e-6


def test_without_its_package_speech_goes_on_and_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perth, "PerthImplicitWatermarker", None)
    made = Marker.load()
    assert made.factories() == ()
    assert "watermark: off" in made.note
    assert "pip install 'setuptools<82'" in made.note
