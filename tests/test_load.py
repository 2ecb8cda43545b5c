"""More programs at once than anybody has: nothing is lost, nobody starves, and afterwards nothing is left of it."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from threading import Thread

import numpy as np
import pytest
import zmq

from chatterline import Client
from ipc.messages import Finished
from pipeline.engines.base import Samples
from tests.harness import Pipeline, direct_sound, own_memory_bytes, pcm, trimmed, until

Start = Callable[..., Pipeline]

SAYING = "The kettle began to sing."
MOST_BUSY = 4
"""So many times in a row nothing gets busier by chance than ever before."""

ONE_ENGINE = pytest.mark.parametrize("engine", ["espeak"])


def nothing_grows(running: Pipeline, happens: Callable[[], None], memory_mb: float = 5.0) -> int:
    """What happens leaves as many descriptors and threads as before and, when it happens again, no more memory.

    The first time, each process takes what it needs at its busiest (pools of the allocator, code that is loaded at
    its first use); a leak shows every time after that, a busier moment than any before only once. The rings do not
    count: they are taken at the start and mapped as they are touched. Returns how often it happened.
    """
    workers = {child.pid: child for some in running.children().values() for child in some}

    def open_now() -> Counter[str]:
        descriptors = Counter({f"descriptors of {pid}": child.num_fds() for pid, child in workers.items()})
        return descriptors + Counter({f"threads of {pid}": child.num_threads() for pid, child in workers.items()})

    def memory_now_mb() -> float:
        return sum(own_memory_bytes(child) for child in workers.values()) / 1e6

    before = open_now()
    happens()
    grown_mb: list[float] = []
    while not grown_mb or (grown_mb[-1] >= memory_mb and len(grown_mb) < MOST_BUSY):
        before_mb = memory_now_mb()
        happens()
        until(lambda: open_now() == before, "descriptors and threads are as many as before")
        grown_mb.append(memory_now_mb() - before_mb)
    assert set(workers) == {child.pid for some in running.children().values() for child in some}, "nobody died"
    print(f"grown by {', '.join(f'{mb:.1f}' for mb in grown_mb)} MB")
    assert grown_mb[-1] < memory_mb
    return 1 + len(grown_mb)


def lasting(running: Pipeline) -> Client:
    """A client that has used all that it will use."""
    client = running.client()
    client.speak(SAYING).wait()
    client.speak(SAYING, output="stream").wait()
    client.status()
    return client


@ONE_ENGINE
def test_two_hundred_utterances_wait_in_line_and_all_are_spoken_in_order(pipeline: Start) -> None:
    running = pipeline(output="wav")
    client = lasting(running)
    spoken: list[Finished] = []

    def happens() -> None:
        client.pause()
        speeches = [client.speak(f"This is number {number}.", seed=1) for number in range(200)]
        assert client.status().queued >= 200
        client.resume()
        spoken.extend(speech.wait() for speech in speeches)

    times = nothing_grows(running, happens)
    assert running.stop() == 0
    made = [pcm(direct_sound("espeak", f"This is number {number}.", 1)) for number in range(200)] * times
    assert [one.samples for one in spoken] == [len(one) for one in made]
    expected = trimmed(np.concatenate(made))
    assert np.array_equal(running.sound()[-len(expected) :], expected)


@ONE_ENGINE
def test_more_utterances_than_may_wait_are_refused_and_the_others_spoken(pipeline: Start) -> None:
    running = pipeline({"text.max_queued": 20})
    client = running.client()
    client.pause()
    speeches = [client.speak(SAYING) for _ in range(20)]
    with pytest.raises(Exception, match=r"text\.max_queued = 20"):
        client.speak(SAYING)
    client.resume()
    for speech in speeches:
        speech.wait()
    client.speak(SAYING).wait()


@ONE_ENGINE
def test_fifty_listeners_of_whom_ten_never_read_get_their_sound_and_leave_nothing(pipeline: Start) -> None:
    running = pipeline({"text.detach_s": 1.0})
    client = lasting(running)
    made = pcm(direct_sound("espeak", SAYING, 7))

    def happens() -> None:
        with Client(running.to, buffer_s=0.1) as deaf:
            ignored = [deaf.speak(SAYING * 40, output="stream", seed=7) for _ in range(10)]
            with Client(running.to) as reader:
                speeches = [reader.speak(SAYING, output="stream", seed=7) for _ in range(40)]
                for speech in speeches:
                    assert np.array_equal(pcm(speech.audio()), made)
            assert all(speech.ending is None for speech in ignored)
        until(lambda: not client.status().speaking, "the deaf are forgotten")

    nothing_grows(running, happens)


@ONE_ENGINE
def test_a_storm_of_cancels_leaves_the_next_utterance_whole(pipeline: Start) -> None:
    """A thousand in a minute would be slow here."""
    running = pipeline(output="wav")
    client = lasting(running)
    rng = random.Random(1)

    def happens() -> None:
        began_s = time.monotonic()
        for number in range(1000):
            speech = client.speak(f"{SAYING} And {number}.", output=rng.choice(("speaker", "stream")))
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0, 0.02))
            speech.cancel()
        took_s = time.monotonic() - began_s
        print(f"1,000 cancels in {took_s:.1f} s")
        assert took_s < 60

    nothing_grows(running, happens)
    after = client.speak(SAYING, output="stream", seed=7).audio()
    assert np.array_equal(pcm(after), pcm(direct_sound("espeak", SAYING, 7)))
    assert client.status().speaking == ()


@ONE_ENGINE
def test_a_storm_of_connections_leaves_no_trace(pipeline: Start) -> None:
    """Some say nothing, some ask, some leave in mid-stream; a good client goes on beside them."""
    running = pipeline({"text.detach_s": 0.5})
    client = lasting(running)
    rng = random.Random(1)
    made = pcm(direct_sound("espeak", SAYING * 20, 7))

    def happens() -> None:
        good = client.speak(SAYING * 20, output="stream", seed=7)
        heard: list[Samples] = []
        reading = Thread(target=lambda: heard.append(good.audio()))
        reading.start()
        with zmq.Context() as context:
            for number in range(500):
                connect_and_leave(context, running.to, number, rng.randrange(3))
        reading.join()
        assert np.array_equal(pcm(heard[0]), made)
        until(lambda: not client.status().speaking, "who has gone is forgotten")

    nothing_grows(running, happens)


def connect_and_leave(context: zmq.Context[zmq.Socket[bytes]], to: str, number: int, manner: int) -> None:
    """A program that asks how things stand (0), has something spoken and does not wait for it (1), or says nothing."""
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(to)
        if manner == 0:
            socket.send(b'{"type": "status"}')
            assert json.loads(socket.recv())["type"] == "status"
        elif manner == 1:
            speak = {"type": "speak", "id": f"s{number}", "text": SAYING * 5, "output": "stream"}
            socket.send(json.dumps(speak).encode())
            assert json.loads(socket.recv_multipart()[0])["type"] == "accepted"


@ONE_ENGINE
def test_a_low_utterance_waits_while_others_have_something_to_say_and_is_spoken_then(pipeline: Start) -> None:
    """Strictly: priorities are no shares. docs/protocol.md says so."""
    running = pipeline(output="wav")
    client = running.client()
    client.pause()
    first = client.speak(SAYING, seed=1)  # whatever is next to be heard stays where it is
    low = client.speak("Low.", conversation="low", priority="low", seed=1)
    others = [client.speak("Normal.", conversation=f"c{number}", seed=1) for number in range(3)]
    client.resume()
    for speech in (first, *others, low):
        assert isinstance(speech.wait(), Finished)
    assert running.stop() == 0
    made = [pcm(direct_sound("espeak", text, 1)) for text in (SAYING, "Normal.", "Normal.", "Normal.", "Low.")]
    assert np.array_equal(running.sound(), trimmed(np.concatenate(made)))


@ONE_ENGINE
def test_conversations_of_one_priority_take_their_turn_as_they_came(pipeline: Start) -> None:
    """Whoever has much to say does not keep the others waiting for more than what was there before them."""
    running = pipeline(output="wav")
    client = running.client()
    client.pause()
    asked = [("talker", SAYING)] * 5 + [("late", "Late.")] + [("talker", SAYING)] * 5
    speeches = [client.speak(text, conversation=conversation, seed=1) for conversation, text in asked]
    client.resume()
    for speech in speeches:
        speech.wait()
    assert running.stop() == 0
    made = {text: pcm(direct_sound("espeak", text, 1)) for _, text in asked}
    assert np.array_equal(running.sound(), trimmed(np.concatenate([made[text] for _, text in asked])))
