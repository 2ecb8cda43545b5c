"""The real player into a real, paced sound server, recorded: every sample is a counter, so that
what was lost, repeated or altered shows."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from pipeline.config import Player
from tests.workers.playing import PlayerProcess
from tests.workers.pulse import PulseServer, Recorder, counter_signal, counters, needs_pulse, until
from workers.playback import State

pytestmark = [pytest.mark.sound, pytest.mark.slow, needs_pulse]

BLOCK = 512
FADE = 120
BUFFERED = 8 * BLOCK
"""More than the device and the server hold at once: what a lost device may take with it."""

PICKY = """
import sounddevice
honest = sounddevice.check_output_settings
def picky(device, channels, dtype, samplerate):
    if samplerate == 24000 or channels == 1:
        raise sounddevice.PortAudioError("Invalid sample rate")
    honest(device, channels=channels, dtype=dtype, samplerate=samplerate)
sounddevice.check_output_settings = picky
"""
"""A sound card that knows neither 24 kHz nor mono."""


@pytest.fixture(scope="module")
def calm_pulse() -> Iterator[PulseServer]:
    """One server for the tests that do nothing to it."""
    with PulseServer() as server:
        yield server


@pytest.fixture
def calm_player(calm_pulse: PulseServer) -> Iterator[PlayerProcess]:
    with PlayerProcess(Player(output="speaker", device="pulse"), calm_pulse.env) as process:
        yield process


@pytest.fixture
def pulse() -> Iterator[PulseServer]:
    """A server of the test's own."""
    with PulseServer() as server:
        yield server


@pytest.fixture
def player(pulse: PulseServer) -> Iterator[PlayerProcess]:
    with PlayerProcess(Player(output="speaker", device="pulse"), pulse.env) as process:
        yield process


def heard_exactly(recording: npt.NDArray[np.float32]) -> list[int]:
    """Positions of unaltered samples, in the order of hearing. What faded is left out: it is where
    the position neither is whole nor follows or precedes its neighbour's by one."""
    known = counters(recording)
    whole = known == np.floor(known)
    steps = np.diff(known) == 1
    steady = np.concatenate([[False], steps]) | np.concatenate([steps, [False]])
    return [int(k) for k in known[whole & steady]]


def assert_in_order(positions: list[int]) -> None:
    for a, b in itertools.pairwise(positions):
        assert a < b, f"sample {b} was heard after {a}"


def wait_heard(recorder: Recorder, last: int) -> npt.NDArray[np.float32]:
    """Everything recorded once sample ``last`` was heard."""
    code = counter_signal(last, 1)[0]
    until(lambda: code in recorder.heard(), f"sample {last} is recorded")
    return recorder.heard()


def burn(count: int) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]


@pytest.mark.parametrize("burners", [0, 2])
def test_what_the_ring_holds_is_what_is_heard_sample_for_sample(
    calm_pulse: PulseServer, calm_player: PlayerProcess, burners: int
) -> None:
    """Ten utterances of uneven length into one stream, on an idle machine and on a busy one."""
    recorder = calm_pulse.record()
    calm_player.start()
    busy = burn(burners)
    try:
        for run in range(10):
            first = calm_player.say(15_000 + 777 * run, epoch=run + 1)
            calm_player.until_read(calm_player.writer.written)
            wait_heard(recorder, calm_player.writer.written - 1)
            assert calm_player.writer.written > first
    finally:
        for process in busy:
            process.kill()
            process.wait()
    heard = recorder.heard()
    assert np.array_equal(heard, counter_signal(0, calm_player.writer.written))
    assert calm_player.control.reader_state().underruns == 0


def test_the_sound_server_dies_and_comes_back(pulse: PulseServer, player: PlayerProcess) -> None:
    before = pulse.record()
    player.start()
    talk = player.saying(100_000)
    player.until_read(24_000)
    pulse.kill()
    player.until_stats("the loss is reported", lambda stats: stats.state == "no device" and stats.note)
    assert player.control.reader_state().state == State.NO_DEVICE
    held = player.control.read
    pulse.start()
    after = pulse.record()
    player.until_read(100_000)
    talk.join(10)
    player.until_stats("it is back", lambda stats: stats.reopens == 1 and not stats.note)
    first, second = heard_exactly(before.heard()), heard_exactly(wait_heard(after, 99_999))
    assert_in_order(first + second)
    assert held - first[-1] <= BUFFERED, "only what was in the device is lost"
    assert second == list(range(second[0], 100_000)), "and nothing after it"
    assert held <= second[0] <= held + BUFFERED + FADE
    assert player.control.reader_state().underruns == 0


def test_the_sound_server_hangs_and_goes_on(pulse: PulseServer, player: PlayerProcess) -> None:
    recorder = pulse.record()
    player.start()
    talk = player.saying(90_000)
    player.until_read(24_000)
    pulse.hang()
    try:
        player.until_stats("the hang is reported", lambda stats: stats.state == "no device")
        held = player.control.read
        player.until_stats("closing it hangs too", lambda stats: "does not answer" in stats.note)
        assert player.control.read == held, "nothing is taken meanwhile"
    finally:
        pulse.go_on()
    player.until_read(90_000)
    talk.join(10)
    positions = heard_exactly(wait_heard(recorder, 89_999))
    assert_in_order(positions)
    assert len(positions) >= 90_000 - BUFFERED - FADE
    assert player.control.reader_state().underruns == 0


def test_a_sound_server_that_hangs_from_the_start_is_not_waited_for(pulse: PulseServer, tmp_path: Path) -> None:
    pulse.hang()
    with PlayerProcess(Player(output="auto"), pulse.env, cwd=tmp_path) as player:
        player.start()
        assert "does not answer" in player.facts.note
        player.say(5000)
        player.until_read(5000)
        assert player.stop().count("\n") == 1, "one line tells it"
    assert (tmp_path / "chatterline.wav").stat().st_size == 44 + 2 * 5000
    pulse.go_on()


def test_the_device_is_pulled_out_and_plugged_in_again(pulse: PulseServer, player: PlayerProcess) -> None:
    before = pulse.record()
    player.start()
    talk = player.saying(80_000)
    player.until_read(24_000)
    pulse.unload_sink()
    player.until_stats("the loss is reported", lambda stats: stats.state == "no device")
    held = player.control.read
    player.until_stats("it tries in vain", lambda stats: "until there is one" in stats.note)
    assert player.control.read == held
    pulse.load_sink()
    after = pulse.record()
    player.until_read(80_000)
    talk.join(10)
    first, second = heard_exactly(before.heard()), heard_exactly(wait_heard(after, 79_999))
    assert_in_order(first + second)
    assert held - first[-1] <= BUFFERED
    # The device was back before the recording ran: what was heard in between is not in it.
    assert second[-1] == 79_999
    assert player.stop() != ""


def test_a_cancel_falls_silent_and_the_next_utterance_is_whole(
    calm_pulse: PulseServer, calm_player: PlayerProcess
) -> None:
    recorder = calm_pulse.record()
    calm_player.start()
    calm_player.say(60_000)
    calm_player.until_read(10_000)
    calm_player.control.discard_below(2)
    at = calm_player.control.read
    first = calm_player.say(12_000, epoch=2)
    calm_player.until_read(72_000)
    positions = heard_exactly(wait_heard(recorder, 71_999))
    cut = positions.index(first)
    assert positions[cut - 1] <= at + BLOCK
    assert positions[cut:] == list(range(first, first + 12_000))
    assert len(positions[:cut]) == positions[cut - 1] + 1


def test_a_killed_player_is_followed_by_one_that_repeats_at_most_a_block(
    calm_pulse: PulseServer, calm_player: PlayerProcess
) -> None:
    recorder = calm_pulse.record()
    calm_player.start()
    talk = calm_player.saying(80_000)
    calm_player.until_read(24_000)
    calm_player.kill()
    held = calm_player.control.read
    calm_player.start()
    calm_player.until_read(80_000)
    talk.join(10)
    recording = wait_heard(recorder, 79_999)
    positions = heard_exactly(recording)
    repeated = len(positions) - len(set(positions))
    assert repeated <= BLOCK
    assert len(set(positions)) >= 80_000 - BUFFERED - FADE
    assert set(range(held + BLOCK, 80_000)) <= set(positions)


def test_leaving_in_mid_speech_fades(calm_pulse: PulseServer, calm_player: PlayerProcess) -> None:
    recorder = calm_pulse.record()
    calm_player.start()
    calm_player.say(60_000)
    calm_player.until_read(20_000)
    calm_player.stop()
    taken = calm_player.control.read
    recording = wait_heard(recorder, taken - 1)
    assert heard_exactly(recording) == list(range(taken))
    fade = recording[taken:]
    assert len(fade) == FADE
    assert np.all(np.diff(fade) < 0)


def test_a_device_without_24_khz_or_mono_gets_resampled_sound(
    calm_pulse: PulseServer, calm_player: PlayerProcess
) -> None:
    recorder = calm_pulse.record()
    calm_player.start(prelude=PICKY)
    assert (calm_player.facts.device_rate_hz, calm_player.facts.block_samples) == (44_100, 941)
    tone = (0.5 * np.sin(2 * np.pi * 700 * np.arange(48_000) / 24_000) * np.hanning(48_000)).astype(np.float32)
    assert calm_player.writer.begin_span(1, 0)
    assert calm_player.writer.write(tone) == len(tone)
    calm_player.writer.complete()
    calm_player.until_read(48_000)
    until(lambda: len(recorder.heard()) > 47_900, "the tone is recorded")
    calm_player.stop()
    heard = recorder.heard()[:48_200]
    envelope = np.abs(np.fft.rfft(heard, 1 << 16))
    assert abs(int(envelope.argmax()) * 24_000 / (1 << 16) - 700) < 1
    assert np.sum(heard**2) == pytest.approx(np.sum(tone**2), rel=0.01)
    shift = int(np.argmax(np.correlate(heard, tone[20_000:28_000], "valid"))) - 20_000
    ours = heard[20_000 + shift : 28_000 + shift]
    assert np.corrcoef(ours, tone[20_000:28_000])[0, 1] > 0.999


def test_the_player_costs_next_to_nothing(calm_pulse: PulseServer, calm_player: PlayerProcess) -> None:
    """Generous: a tenth of a core; what is measured in earnest stands in the notes."""
    calm_player.start()
    process = psutil.Process(calm_player.pid)
    before = sum(process.cpu_times()[:2])
    calm_player.say(96_000)
    calm_player.until_read(96_000)
    assert sum(process.cpu_times()[:2]) - before < 0.4
    assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER
    ask = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    if subprocess.run([sys.executable, "-c", ask], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        policies = {os.sched_getscheduler(thread.id) for thread in process.threads()}
        assert os.SCHED_FIFO in policies, "the callback's thread has real-time priority"
