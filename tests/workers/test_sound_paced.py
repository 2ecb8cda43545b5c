"""Outputs without a sound card: pace, exactness, trouble."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from ipc.messages import PlayerFacts
from ipc.ring import Arena, Samples
from tests.workers.pulse import counter_signal, until
from workers.playback import Playback
from workers.sound_paced import PacedOutput

RATE_HZ = 24_000


class Memory:
    """A sink that keeps everything, and fails when told to."""

    def __init__(self) -> None:
        self.sound = np.zeros(0, np.float32)
        self.silent_samples = 0
        self.trouble: BaseException | None = None
        self.closed = False

    def write(self, samples: Samples, sounding: int) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.sound = np.concatenate([self.sound, samples[:sounding]])
        self.silent_samples += len(samples) - sounding

    def close(self) -> None:
        self.closed = True


class Setup:
    def __init__(self, free: bool, block: int = 512) -> None:
        self.arena = Arena.create(48_000, 64, 0)
        self.control = self.arena.control(0)
        self.control.grant(1)
        self.writer = self.arena.writer(0, 1)
        self.reader = self.arena.reader(0)
        self.sink = Memory()
        playback = Playback(self.reader, block, RATE_HZ, 2880)
        self.output = PacedOutput(playback, self.sink, PlayerFacts("none", "none", RATE_HZ, block, 0.0), free)

    def say(self, samples: int) -> None:
        self.writer.begin_span(1, 0)
        assert self.writer.write(counter_signal(self.writer.written, samples)) == samples
        self.writer.complete()

    def until_read(self, sample: int) -> None:
        until(lambda: self.reader.read >= sample, f"sample {sample} is taken")


@pytest.fixture(params=[False, True], ids=["realtime", "free"])
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    made = Setup(request.param)
    yield made
    made.output.close()
    made.arena.close()


def test_everything_arrives_sample_for_sample(setup: Setup) -> None:
    setup.say(12_345)
    setup.until_read(12_345)
    setup.say(2000)
    setup.until_read(14_345)
    setup.output.close()
    assert np.array_equal(setup.sink.sound, counter_signal(0, 14_345))
    assert setup.sink.closed


@pytest.mark.slow
@pytest.mark.parametrize("block", [64, 512, 2048])
def test_real_time_is_never_overtaken(block: int) -> None:
    setup = Setup(free=False, block=block)
    begun = time.monotonic()
    setup.say(24_000)
    setup.until_read(24_000)
    assert time.monotonic() - begun > 1.0 - (block + 960) / RATE_HZ
    setup.output.close()
    assert setup.sink.silent_samples > 0 or block == 2048


def test_free_pace_writes_no_silence_and_does_not_wait() -> None:
    setup = Setup(free=True)
    for _ in range(8):  # 16 s of speech; the ring holds 2
        setup.say(48_000)
        setup.until_read(setup.writer.written)
    setup.output.close()
    assert len(setup.sink.sound) == 8 * 48_000
    assert setup.sink.silent_samples == 0


@pytest.mark.slow
def test_a_full_disk_holds_speech_and_loses_nothing(setup: Setup) -> None:
    setup.say(24_000)
    setup.until_read(2000)
    setup.sink.trouble = OSError(28, "No space left on device")
    until(lambda: not setup.output.status().available or setup.reader.read == 24_000, "the trouble is reported")
    setup.say(24_000)
    until(lambda: not setup.output.status().available, "the trouble is reported")
    assert "No space left" in setup.output.status().note
    held = setup.reader.read
    setup.output.tend()
    setup.sink.trouble = None
    setup.until_read(48_000)
    assert held < 48_000
    assert setup.output.status().available
    assert np.array_equal(setup.sink.sound, counter_signal(0, 48_000))


def test_what_breaks_the_thread_is_raised_in_the_players_loop(setup: Setup) -> None:
    setup.sink.trouble = RuntimeError("broken sink")
    setup.say(1000)

    def broken() -> bool:
        try:
            setup.output.tend()
        except RuntimeError:
            return True
        return False

    until(broken, "tend raises")


def test_a_pause_is_not_made_up_for_but_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps by 3 s, as after a process was stopped."""
    setup = Setup(free=False)
    honest, jump = time.monotonic_ns, 0
    monkeypatch.setattr(time, "monotonic_ns", lambda: honest() + jump)
    setup.say(48_000)
    setup.until_read(2000)
    before, jump = setup.reader.read, 3_000_000_000
    until(lambda: setup.output.status().underflows == 1, "the delay is counted")
    assert setup.reader.read - before < 24_000
    setup.output.close()


def test_closing_in_mid_speech_fades(setup: Setup) -> None:
    setup.say(48_000)
    setup.until_read(1000)
    setup.output.close()
    taken = setup.reader.read
    assert np.array_equal(setup.sink.sound[:taken], counter_signal(0, taken))
    assert len(setup.sink.sound) - taken in (0, 120)
    assert setup.output.status().callback_p99_ms > 0
