"""Devices at other rates: the same sound, and the right times."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from ipc.ring import Arena, Samples
from workers.playback import Playback
from workers.sound_rate import DirectFeed, ResampledFeed, device_block_samples, make_feed

BLOCK = 512


class Setup:
    def __init__(self, samples: Samples) -> None:
        self.arena = Arena.create(48_000, 64, 0)
        self.control = self.arena.control(0)
        self.control.grant(1)
        writer = self.arena.writer(0, 1)
        writer.begin_span(1, 0)
        assert writer.write(samples) == len(samples)
        writer.complete()
        self.playback = Playback(self.arena.reader(0), BLOCK, 24_000, 2880)


def tone(samples: int) -> Samples:
    return (0.5 * np.sin(np.arange(samples) * 0.2)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100, 48_000, 96_000])
def test_the_device_hears_what_a_one_shot_resampler_makes(rate_hz: int) -> None:
    made = tone(20_000)
    setup = Setup(made)
    feed = ResampledFeed(setup.playback, BLOCK, rate_hz)
    lead = feed._fed  # silence, until its resampler gave something
    block = device_block_samples(BLOCK, rate_hz)
    sound = np.zeros(0, np.float32)
    for _ in range(20_000 // BLOCK + 12):
        out = np.zeros(block, np.float32)
        feed.fill(out, 0, 0, 0)
        sound = np.concatenate([sound, out])
    whole = np.concatenate([np.zeros(lead, np.float32), made, np.zeros(24_000, np.float32)])
    expected = soxr.resample(whole, 24_000, rate_hz, "HQ")[: len(sound)]
    assert np.max(np.abs(sound - expected)) < 1e-5
    assert np.max(np.abs(expected)) > 0.4


@pytest.mark.parametrize("rate_hz", [24_000, 44_100, 48_000])
def test_the_reported_time_is_when_the_sample_is_heard(rate_hz: int) -> None:
    """A click at ring sample 5000: its place in the device's stream against what the ring says."""
    made = np.zeros(10_000, np.float32)
    made[5000] = 1.0
    setup = Setup(made)
    feed = make_feed(setup.playback, BLOCK, rate_hz)
    block = device_block_samples(BLOCK, rate_hz)
    sound = np.zeros(0, np.float32)
    told: list[float] = []
    for turn in range(60):
        dac_ns = turn * block * 1_000_000_000 // rate_hz
        out = np.zeros(block, np.float32)
        feed.fill(out, 0, dac_ns, 0)
        sound = np.concatenate([sound, out])
        state = setup.control.reader_state()
        if 0 < state.dac_sample < 10_000:
            told.append(state.dac_ns / 1e9 + (5000 - state.dac_sample) / 24_000)
    heard_s = int(np.argmax(sound)) / rate_hz
    assert told
    assert all(abs(at - heard_s) < 0.0002 for at in told)


def test_24_khz_passes_unchanged() -> None:
    made = tone(5000)
    setup = Setup(made)
    feed = make_feed(setup.playback, BLOCK, 24_000)
    assert isinstance(feed, DirectFeed)
    out = np.zeros(BLOCK, np.float32)
    feed.fill(out, 0, 0, 0)
    assert np.array_equal(out, made[:BLOCK])


def test_a_cancel_is_silence_after_what_the_resampler_holds() -> None:
    setup = Setup(tone(40_000))
    feed = ResampledFeed(setup.playback, BLOCK, 48_000)
    out = np.zeros(2 * BLOCK, np.float32)
    for _ in range(10):
        feed.fill(out, 0, 0, 0)
    setup.control.discard_below(2)
    for _ in range(5):
        feed.fill(out, 0, 0, 0)
    feed.fill(out, 0, 0, 0)
    assert np.max(np.abs(out)) < 1e-6
