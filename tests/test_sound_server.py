"""The whole chain into a real, paced sound server: what is recorded there is what the engine makes.

The sink's monitor is recorded as it plays: 24 kHz, mono, float32, which is also the player's format. So
nothing on the way has a reason to change a sample, and sounds are compared for equality.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import pytest
import soundfile

from chatterline import Client, Speech
from ipc.messages import SAMPLE_RATE, Aligned, Cancelled, Event, Finished, Progress, Started
from ipc.ring import Arena
from pipeline.engines.base import Samples
from tests.harness import Pipeline, direct_sound, pcm, trimmed, until
from tests.workers.pulse import PulseServer, Recorder, needs_pulse

pytestmark = [pytest.mark.sound, pytest.mark.slow, needs_pulse]

Start = Callable[..., Pipeline]
_Kind = TypeVar("_Kind")

BLOCK = 512
FADE = 120
LOST = 8 * BLOCK
"""More than the device and the server hold at once: what a lost device may take with it."""

SPEAKER = {"player.device": "pulse", "player.pace": "realtime"}
SAYINGS = ["Yes.", "The kettle began to sing.", "No! Why? Because.", "It was 7 o'clock.", "Rivers; and the sea."]
TEXT = "The kettle began to sing, and the whole kitchen listened. Nobody had expected a tune from it!"


@pytest.fixture(scope="module")
def calm_pulse() -> Iterator[PulseServer]:
    """One server for the tests that do nothing to it."""
    with PulseServer() as server:
        yield server


@pytest.fixture
def recorder(calm_pulse: PulseServer) -> Iterator[Recorder]:
    """What this test plays into the calm server."""
    recording = calm_pulse.record()
    yield recording
    recording.stop()


@pytest.fixture
def pulse() -> Iterator[PulseServer]:
    """A server of the test's own."""
    with PulseServer() as server:
        yield server


@contextmanager
def busy(burners: int) -> Iterator[None]:
    """So many processes that take all the processor they can get."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(burners)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@lru_cache
def made_by(engine: str, text: str, seed: int) -> Samples:
    """What the engine makes of it. Best made before the machine is busy."""
    return direct_sound(engine, text, seed)


def sounding(sound: Samples) -> slice:
    """Where it begins and ends to be anything but silence."""
    heard = np.flatnonzero(sound)
    return slice(int(heard[0]), int(heard[-1]) + 1) if len(heard) else slice(0, 0)


def equal_at_start(a: Samples, b: Samples) -> int:
    """So many samples from the start are the same."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


@dataclass
class Spoken:
    """An utterance, and its part of the recording: from ``first`` on."""

    speech: Speech
    recorder: Recorder
    first: int
    asked_s: float
    events: list[Event] = field(default_factory=list)

    def follow(self) -> Spoken:
        """Take its events until the last."""
        self.events += [event for event in self.speech.events() if isinstance(event, Event)]
        return self

    def of(self, kind: type[_Kind]) -> list[_Kind]:
        """Its events of this kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def finished(self) -> Finished:
        """Its end; nothing else may have ended it."""
        assert isinstance(self.events[-1], Finished), self.events[-1]
        return self.events[-1]

    def recorded(self, silence_s: float = 0.2) -> Samples:
        """What was recorded until so much silence came after its end, from its first sound on."""

        def over() -> bool:
            sound = self.recorder.sound(self.first)
            return bool(len(sound) - sounding(sound).stop > silence_s * SAMPLE_RATE)

        # Look only from now on: what is still in the device has to come out before it is silence.
        seen = self.recorder.count() + silence_s * SAMPLE_RATE
        until(lambda: self.recorder.count() > seen and over(), "the sound is over")
        sound = self.recorder.sound(self.first)
        return sound[sounding(sound)]

    def seconds(self) -> tuple[float, float]:
        """When its sound began and when it ended."""
        part = sounding(self.recorder.sound(self.first))
        return self.recorder.second_of(self.first + part.start), self.recorder.second_of(self.first + part.stop)


def speak(client: Client, recorder: Recorder, text: str, seed: int = 7, piece_chars: int = 0) -> Spoken:
    """Say it into the speaker; in pieces of so many characters."""
    first = recorder.count()
    asked_s = time.monotonic()
    if not piece_chars:
        return Spoken(client.speak(text, seed=seed), recorder, first, asked_s)
    pieces = (text[at : at + piece_chars] for at in range(0, len(text), piece_chars))
    return Spoken(client.speak_stream(pieces, seed=seed), recorder, first, asked_s)


def assert_heard_as_made(engine: str, spoken: Spoken, text: str, seed: int = 7) -> None:
    """The recording is what the engine makes, sample for sample."""
    made = made_by(engine, text, seed)
    sound = spoken.recorded()
    assert (spoken.finished.samples, spoken.finished.underruns) == (len(made), 0)
    made = made[sounding(made)]
    same = equal_at_start(sound, made)
    assert len(sound) == len(made) == same, f"{text!r}: {len(sound)} of {len(made)}, the first {same} are right"


def assert_growing(spoken: Spoken) -> None:
    """No position that it told lies before an earlier one, and none beyond what was made."""
    told = spoken.of(Progress)
    assert len(told) > 10
    assert all(a.chars <= b.chars and a.seconds <= b.seconds for a, b in pairwise(told))
    assert told[-1].seconds <= spoken.finished.seconds
    assert told[-1].chars <= spoken.finished.chars


def chars_at(spoken: Spoken, sample: int) -> int:
    """What has been heard of the text when this sample of the utterance has been, as `aligned` tells."""
    chars = 0
    for event in spoken.of(Aligned):
        (from_char, to_char), (from_sample, to_sample) = event.chars, event.samples
        if sample >= to_sample:
            chars = max(chars, to_char)
        elif sample > from_sample:
            share = (sample - from_sample) / (to_sample - from_sample)
            chars = max(chars, from_char + int(share * (to_char - from_char)))
    return chars


def wait_heard(client: Client, chars: int) -> None:
    """So much has been heard of what is being spoken."""
    until(lambda: client.status().speaking[0].heard_chars > chars, f"{chars} characters are heard")


@pytest.mark.parametrize(("engine", "launches", "burners"), [("espeak", 2, 0), ("espeak", 2, 2), ("babble", 1, 2)])
def test_what_the_engine_makes_is_what_is_heard_sample_for_sample(
    pipeline: Start, engine: str, launches: int, burners: int, calm_pulse: PulseServer, recorder: Recorder
) -> None:
    """Utterance after utterance, given at once and in pieces, in pipelines started one after another, on an
    idle machine and on a busy one."""
    for text in SAYINGS:
        made_by(engine, text, 7)
    for _ in range(launches):
        running = pipeline(SPEAKER | {"flow.flush_ms": 5000}, output="speaker", environment=calm_pulse.env)
        client = running.client()
        with busy(burners):
            for number, text in enumerate(SAYINGS):
                spoken = speak(client, recorder, text, piece_chars=number % 3).follow()
                assert_heard_as_made(engine, spoken, text)
        assert running.stop() == 0


@pytest.mark.parametrize("engine", ["espeak"])
def test_started_tells_when_the_first_sample_was_heard(
    pipeline: Start, engine: str, calm_pulse: PulseServer, recorder: Recorder
) -> None:
    """By the recording's clock; the recorder takes 10 ms at a time, and one late reading says nothing."""
    client = pipeline(SPEAKER, output="speaker", environment=calm_pulse.env).client()
    late_ms = []
    made = made_by(engine, SAYINGS[0], 7)
    for _ in range(5):
        spoken = speak(client, recorder, SAYINGS[0]).follow()
        spoken.recorded()
        (started,) = spoken.of(Started)
        began_s = spoken.seconds()[0] - sounding(made).start / SAMPLE_RATE
        late_ms.append((began_s - spoken.asked_s) * 1000 - started.latency_ms)
    print(f"heard later than told, ms: {[round(ms, 1) for ms in late_ms]}")
    assert abs(median(late_ms)) < 20


def arena_of(pid: int) -> Arena:
    """The shared memory that a process of ours has open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if "chatterline-arena" in str(link.readlink()):
            descriptor = os.open(link, os.O_RDWR)
            try:
                return Arena.attach(descriptor)
            finally:
                os.close(descriptor)
    raise AssertionError(f"process {pid} has no arena")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to look into the player's memory")
@pytest.mark.parametrize("engine", ["espeak"])
def test_the_position_clock_runs_as_the_sound_does(
    pipeline: Start, engine: str, calm_pulse: PulseServer, recorder: Recorder
) -> None:
    """Which sample reaches the ear when: a straight line from the first sample to the last."""
    running = pipeline(SPEAKER, output="speaker", environment=calm_pulse.env)
    control = arena_of(running.pid("player")).control(0)
    speech = running.client().speak(TEXT * 2, seed=7)
    seen: set[tuple[int, int]] = set()
    while speech.ending is None:
        state = control.reader_state()
        if state.dac_sample and state.dac_ns:
            seen.add((state.dac_sample, state.dac_ns))
        time.sleep(0.005)
    finished = speech.wait()
    assert finished.underruns == 0
    line = np.array(sorted(seen), np.float64)
    seconds, heard_s = line[:, 0] / SAMPLE_RATE, (line[:, 1] - line[0, 1]) / 1e9
    assert len(line) > 100
    assert np.all(np.diff(line[:, 1]) > 0), "time goes on with every block"
    slope, start = np.polyfit(heard_s, seconds, 1)
    off_ms = np.abs(seconds - (slope * heard_s + start)) * 1000
    print(f"{slope:.5f} s of sound a second; off the line by {np.median(off_ms):.2f} ms, at most {off_ms.max():.2f} ms")
    assert abs(slope - 1) < 0.005
    assert off_ms.max() < 30


def test_barge_in_silences_the_loudspeaker_and_tells_what_it_said(
    pipeline: Start, engine: str, calm_pulse: PulseServer, recorder: Recorder
) -> None:
    client = pipeline(SPEAKER, output="speaker", environment=calm_pulse.env).client()
    made = made_by(engine, TEXT, 7)
    silent_ms = []
    for heard_chars in (10, 20, 40):
        spoken = speak(client, recorder, TEXT)
        wait_heard(client, heard_chars)
        device = client.status().queues["device"]
        cancel_s = time.monotonic()
        cancelled = spoken.speech.cancel()
        sound = spoken.follow().recorded()
        assert isinstance(cancelled, Cancelled)
        exact = equal_at_start(sound, made[sounding(made).start :])
        assert len(sound) - exact <= FADE, "what was made, then one fade, then nothing"
        heard = sounding(made).start + len(sound)
        told = round(cancelled.seconds * SAMPLE_RATE)
        # One block of leave for the clock of the device.
        assert told - BLOCK <= heard <= told + device.most * SAMPLE_RATE + FADE + 2 * BLOCK
        assert TEXT[: cancelled.chars] == cancelled.heard
        words = len(TEXT[: chars_at(spoken, heard)].split()) - len(cancelled.heard.split())
        assert abs(words) <= 1, f"told {cancelled.heard!r}, heard {TEXT[: chars_at(spoken, heard)]!r}"
        silent_ms.append((spoken.seconds()[1] - cancel_s) * 1000)
        print(f"told {told}, heard {heard} samples, {words} words more, silent after {silent_ms[-1]:.1f} ms")
        assert_heard_as_made(engine, speak(client, recorder, SAYINGS[0]).follow(), SAYINGS[0])
    assert median(silent_ms) < (device.now + (BLOCK + FADE) / SAMPLE_RATE + 0.05) * 1000


def split(made: Samples, before: Samples, after: Samples) -> tuple[int, int]:
    """So many samples at the start and at the end of ``made`` were heard unaltered."""
    made = made[sounding(made)]
    return equal_at_start(before, made), equal_at_start(after[::-1], made[::-1])


@pytest.mark.parametrize("engine", ["espeak"])
def test_the_sound_server_dies_in_mid_speech_and_comes_back(pipeline: Start, engine: str, pulse: PulseServer) -> None:
    running = pipeline(SPEAKER, output="speaker", environment=pulse.env)
    client = running.client()
    before = pulse.record()
    spoken = speak(client, before, TEXT)
    wait_heard(client, 20)
    pulse.kill()
    until(lambda: "speech waits" in running.log(), "the loss is told")
    pulse.start()
    after = pulse.record()
    spoken.follow()
    assert_growing(spoken)
    made = made_by(engine, TEXT, 7)
    assert spoken.finished.samples == len(made)
    rest = Spoken(spoken.speech, after, 0, 0.0).recorded()
    first = before.sound(spoken.first)
    start, end = split(made, first[sounding(first)], rest)
    print(f"{start} samples before, {end} after, of {len(made)}")
    assert start > SAMPLE_RATE
    assert start + end <= len(made)
    # The device is back before it is recorded: what came in between is only not recorded.
    assert end > SAMPLE_RATE
    assert len(rest) - end <= FADE


@pytest.mark.parametrize("engine", ["espeak"])
def test_the_sound_server_hangs_in_mid_speech_and_goes_on(pipeline: Start, engine: str, pulse: PulseServer) -> None:
    running = pipeline(SPEAKER, output="speaker", environment=pulse.env)
    client = running.client()
    recorder = pulse.record()
    spoken = speak(client, recorder, TEXT)
    wait_heard(client, 20)
    pulse.hang()
    try:
        until(lambda: "speech waits" in running.log(), "the loss is told")
        held = client.status().speaking[0].heard_chars
    finally:
        pulse.go_on()
    spoken.follow()
    assert_growing(spoken)
    assert held < len(TEXT) // 2
    made = made_by(engine, TEXT, 7)
    assert spoken.finished.samples == len(made)
    sound = spoken.recorded()
    start, end = split(made, sound, sound)
    print(f"{start} samples before, {end} after, of {len(made)}; recorded {len(sound)}")
    assert start > SAMPLE_RATE
    assert len(made[sounding(made)]) - LOST - FADE <= start + end <= len(made)
    assert np.count_nonzero(sound[start : len(sound) - end]) <= 2 * FADE


@pytest.mark.parametrize("engine", ["espeak"])
def test_without_a_sound_server_speech_goes_into_a_file_and_one_line_tells_the_way_out(
    pipeline: Start, engine: str
) -> None:
    nobody = {"PULSE_SERVER": "unix:/nonexistent/native"}
    running = pipeline({"player.device": "pulse"}, output="auto", environment=nobody)
    running.client().speak(SAYINGS[0], seed=7).wait()
    told = [line for line in running.printed().splitlines() if "chatterline.wav" in line]
    assert len(told) == 1, running.printed()
    assert "--set player.device=" in told[0]
    assert running.stop() == 0
    samples, rate = soundfile.read(running.folder / "chatterline.wav", dtype="int16")
    assert rate == SAMPLE_RATE
    assert np.array_equal(trimmed(samples), trimmed(pcm(made_by(engine, SAYINGS[0], 7))))


@pytest.mark.parametrize("engine", ["espeak"])
def test_auto_takes_the_loudspeaker_where_there_is_one(
    pipeline: Start, engine: str, calm_pulse: PulseServer, recorder: Recorder
) -> None:
    running = pipeline(SPEAKER, output="auto", environment=calm_pulse.env)
    spoken = speak(running.client(), recorder, SAYINGS[0]).follow()
    assert_heard_as_made(engine, spoken, SAYINGS[0])
    assert "speaker on pulse" in running.printed()
    assert not (running.folder / "chatterline.wav").exists()
