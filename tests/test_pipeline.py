"""The whole pipeline, with every process real: what a program asks for is what is heard."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import psutil
import pytest
import zmq

from chatterline import Client
from ipc.messages import SAMPLE_RATE, Aligned, Cancelled, Event, Finished, Progress, Started
from pipeline.engines.base import Samples
from tests.harness import Pipeline, direct_sound, until

Start = Callable[..., Pipeline]

TEXT = (
    "The kettle began to sing, and the whole kitchen listened. Nobody had expected a tune from it! "
    "It was an old song about rivers; the cat knew it well. When the last note had gone, we ate."
)


def s16(samples: Samples) -> Samples:
    """Samples as they arrive over a 16-bit path, which some have taken already."""
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32767
    return (np.rint(np.clip(samples, -1, 1) * 32767) / 32767).astype(np.float32)


def assert_same(heard: Samples, made: Samples) -> None:
    """Equal sample for sample but for the silence at both ends (a WAV starts and ends somewhere)."""
    trimmed = [part[np.flatnonzero(part)[0] : np.flatnonzero(part)[-1] + 1] for part in (s16(heard), s16(made))]
    assert len(trimmed[0]) == len(trimmed[1])
    different = np.flatnonzero(np.abs(trimmed[0] - trimmed[1]) > 1.01 / 32767)
    assert not len(different), f"first at sample {different[0]} of {len(trimmed[0])}"


def assert_in_order(heard: Samples, parts: list[Samples], most_silence: int = 2048) -> None:
    """Every part is there whole, in this order, with at most that much silence put in between."""
    rest = s16(heard)
    for part in parts:
        sound = s16(part)[np.flatnonzero(s16(part))[0] : np.flatnonzero(s16(part))[-1] + 1]
        start = int(np.flatnonzero(rest)[0])
        assert start <= most_silence + 24_000
        assert np.allclose(rest[start : start + len(sound)], sound, atol=1.01 / 32767)
        rest = rest[start + len(sound) :]
    assert not rest.any()


def collect(client: Client, text: str, **options: object) -> Samples:
    """A text's sound, received by a remote listener."""
    speech = client.speak(text, output="stream", **options)  # type: ignore[arg-type]
    return np.concatenate([np.asarray(part) for part in speech])


@pytest.mark.brief
def test_the_listener_gets_what_the_engine_makes(pipeline: Start, engine: str) -> None:
    running = pipeline()
    heard = collect(running.client(), TEXT, seed=7)
    assert_same(heard, direct_sound(engine, TEXT, 7))


def test_the_speaker_gets_what_the_engine_makes(pipeline: Start, engine: str) -> None:
    running = pipeline(output="wav")
    finished = running.client().speak(TEXT, seed=7).wait()
    assert running.stop() == 0
    made = direct_sound(engine, TEXT, 7)
    assert finished.samples == len(made)
    assert_same(running.sound(), made)


def test_text_in_any_pieces_sounds_the_same(pipeline: Start, engine: str) -> None:
    running = pipeline({"flow.flush_ms": 5000})
    client = running.client()
    rng = random.Random(3)
    cuts = sorted(rng.sample(range(1, len(TEXT)), 40))
    pieces = [TEXT[first:last] for first, last in pairwise([0, *cuts, len(TEXT)])]
    speech = client.speak_stream(iter(pieces), output="stream", seed=7)
    heard = np.concatenate([np.asarray(part) for part in speech])
    assert_same(heard, direct_sound(engine, TEXT, 7))


def test_events_tell_the_whole_story_in_order(pipeline: Start) -> None:
    running = pipeline({"player.pace": "realtime"})
    speech = running.client().speak(TEXT[:94])
    events: list[Event] = [event for event in speech.events() if isinstance(event, Event)]
    kinds = [type(event).__name__ for event in events if not isinstance(event, Aligned)]
    assert kinds[:2] == ["Accepted", "Started"]
    assert kinds[-1] == "Finished"
    assert set(kinds[2:-1]) == {"Progress"}
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.chars for event in progress] == sorted(event.chars for event in progress)
    aligned = [event for event in events if isinstance(event, Aligned)]
    words = [TEXT[event.chars[0] : event.chars[1]] for event in aligned]
    assert "kettle" in "".join(words).replace(" ", "")
    assert all(first.samples[1] <= second.samples[0] + 1 for first, second in pairwise(aligned))
    finished = next(event for event in events if isinstance(event, Finished))
    assert finished.underruns == 0
    assert finished.chars == 94


def test_barge_in_silences_at_once_and_tells_what_was_heard(pipeline: Start) -> None:
    running = pipeline({"player.pace": "realtime"}, output="wav")
    client = running.client()
    speech = client.speak(TEXT)
    until(lambda: client.status().speaking and client.status().speaking[0].heard_chars > 20, "something is heard")
    cancelled = speech.cancel()
    assert isinstance(cancelled, Cancelled)
    assert 15 < cancelled.chars < len(TEXT) // 2
    assert TEXT.startswith(cancelled.heard)
    follow_up = "And now something else."
    client.speak(follow_up).wait()
    assert running.stop() == 0
    spoken_s = len(running.sound()) / SAMPLE_RATE
    assert spoken_s < cancelled.seconds + 6, "the rest of the text was not spoken"


def test_an_urgent_conversation_goes_first_though_others_were_made_ahead(pipeline: Start, engine: str) -> None:
    running = pipeline({"player.pace": "realtime"}, output="wav")
    client = running.client()
    first = client.speak("This is the first of one.", conversation="one", seed=1)
    second = client.speak("First of two.", conversation="two", seed=1)
    third = client.speak("Second of one.", conversation="one", seed=1)
    until(lambda: client.status().speaking[0].heard_chars, "the first is heard")
    urgent = client.speak("Urgent!", conversation="alarm", priority="high", seed=1)
    total = sum(speech.wait().samples for speech in (first, second, third, urgent))
    assert running.stop() == 0
    said = ("This is the first of one.", "Urgent!", "First of two.", "Second of one.")
    parts = [direct_sound(engine, text, 1) for text in said]
    assert total == sum(map(len, parts))
    assert_in_order(running.sound(), parts)


def test_pause_holds_the_speaker_and_resume_loses_nothing(pipeline: Start, engine: str) -> None:
    running = pipeline({"player.pace": "realtime"}, output="wav")
    client = running.client()
    speech = client.speak(TEXT[:94], seed=7)
    until(lambda: client.status().speaking and client.status().speaking[0].heard_chars > 10, "something is heard")
    client.pause()
    held = client.status().speaking[0].heard_chars
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        assert client.status().speaking[0].heard_chars <= held + 12
    client.resume()
    assert speech.wait().samples == len(direct_sound(engine, TEXT[:94], 7))


def test_a_listener_that_never_reads_slows_nobody(pipeline: Start, request: pytest.FixtureRequest) -> None:
    running = pipeline({"text.max_streams": 8})
    context = zmq.Context()
    request.addfinalizer(context.term)
    for number in range(4):
        socket = context.socket(zmq.DEALER)
        request.addfinalizer(partial(socket.close, linger=0))
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.connect(running.to)
        speak = {"type": "speak", "id": f"s{number}", "text": TEXT * 40, "output": "stream"}
        socket.send(json.dumps(speak).encode())
    client = running.client()
    until(lambda: client.status().queued == 4, "the four are accepted")
    for _ in range(3):
        assert len(collect(client, TEXT)) > 5 * SAMPLE_RATE
    assert client.status().queued == 4
    assert client.status().queues["stream_rings"].most <= 8 * 2.0
    client.cancel(all=True)


def test_ping_and_status_come_from_the_real_loops(pipeline: Start) -> None:
    client = pipeline().client()
    until(lambda: set(client.ping()) == {"t3-0", "s3gen-0"}, "both engine workers answer")
    client.speak(TEXT).wait()
    client.pause()
    held = client.speak(TEXT)
    until(lambda: client.status().queues["ring"].now > 0, "the ring is filled")
    held.cancel()
    client.resume()
    until(lambda: all(s.starved for s in client.status().stages if s.worker != "dispatcher-0"), "all told their shares")
    status = client.status()
    assert status.healthy
    assert {stage.worker for stage in status.stages} >= {"t3-0", "s3gen-0", "player-0"}
    assert 0 < status.queues["ring"].most <= 10
    assert status.latencies["first_pcm"].count == 2
    assert all(abs(s.busy + s.starved + s.blocked - 1) < 0.01 for s in status.stages if s.worker != "dispatcher-0")


def test_a_slow_reader_loses_nothing_of_what_was_on_its_way_when_the_dispatcher_died(
    pipeline: Start, engine: str
) -> None:
    running = pipeline({"supervise.max_restarts": 1000})
    listening = running.client().speak(TEXT * 3, output="stream", seed=7)
    sounds = iter(listening)
    parts: list[Samples] = []
    for _ in range(3):
        parts.append(np.asarray(next(sounds)))
        time.sleep(1.0)  # meanwhile inbox, sockets and kernel buffers fill
        pid = running.kill("dispatcher")
        parts.extend(np.asarray(next(sounds)) for _ in range(25))
        running.wait_replaced("dispatcher", pid)
    parts.extend(np.asarray(part) for part in sounds)
    assert_same(np.concatenate(parts), direct_sound(engine, TEXT * 3, 7))
    until(lambda: not running.client().status().speaking, "the utterance is forgotten")


@pytest.mark.parametrize("engine", ["espeak"])  # with the other one `test_hostile_input` does it
def test_a_long_text_streams_with_flat_memory(pipeline: Start) -> None:
    running = pipeline()
    client = running.client()
    sentence = "Line {} of a very long text is read to somebody who listens until the end of it. "
    text = "".join(sentence.format(number) for number in range(1220))[:100_000]
    collect(client, TEXT)

    def memory() -> int:
        roles = running.children()
        return sum(psutil.Process(child.pid).memory_info().rss for some in roles.values() for child in some)

    speech = client.speak(text, output="stream")
    sounds = iter(speech)
    for _ in range(300):
        next(sounds)
    early = memory()
    seconds = 0.0
    for number, part in enumerate(sounds):
        seconds += len(part) / SAMPLE_RATE
        if seconds > 1500:
            break
        del number
    grown_mb = (memory() - early) / 1e6
    client.cancel(all=True)
    assert grown_mb < 20


def test_started_comes_from_the_clock_of_the_device(pipeline: Start) -> None:
    running = pipeline({"player.pace": "realtime"})
    speech = running.client().speak("Hello there.")
    started = next(event for event in speech.events() if isinstance(event, Started))
    assert 0 < started.latency_ms < 2000
