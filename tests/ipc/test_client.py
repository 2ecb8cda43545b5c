"""The client against a dispatcher that answers by script."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zmq
import zmq.auth

from chatterline import (
    AsyncClient,
    Cancelled,
    Client,
    Finished,
    PipelineError,
    RequestError,
    Sound,
    SpeechCancelled,
    SpeechError,
)
from ipc.channels import DispatcherSockets
from ipc.codec import encode_event
from ipc.messages import Paused
from tests.harness import until
from tests.ipc.fake_dispatcher import FakeDispatcher, accepted, cancelled, finished, piece, rejected, speak_everything

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def fake():
    with FakeDispatcher() as dispatcher:
        yield dispatcher


@pytest.fixture
def client(fake):
    with Client(fake.to, timeout_s=10) as one:
        yield one


def ramp(samples, first=0):
    """What `piece` sends, as float."""
    return ((np.arange(first, first + samples) % 1000) / np.float32(32767)).astype(np.float32)


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


# --------------------------------------------------------------------------- speaking


def test_a_text_is_spoken_and_waited_for(fake, client):
    speech = client.speak("Hello.", voice="w", speed=1.5, seed=7, conversation="c", settings={"pitch": 60})
    done = speech.wait()
    assert isinstance(done, Finished)
    assert done.chars == 6
    assert speech.accepted.voice == "v"
    (request,) = fake.of("speak")
    assert request == {
        "type": "speak", "id": speech.id, "text": "Hello.", "voice": "w", "speed": 1.5, "seed": 7,
        "conversation": "c", "settings": {"pitch": 60},
    }  # fmt: skip


def test_events_come_in_order_and_end_with_the_utterance(client):
    kinds = [type(event).__name__ for event in client.speak("Hi", output="stream").events()]
    assert kinds == ["Accepted", "Started", "Sound", "Sound", "Progress", "Finished"]


def test_a_refused_text_raises_what_the_server_said(fake, client):
    fake.script = lambda fake, peer, request: fake.send(peer, rejected(request, "speed", "9.0 is not from 0.25 to 4.0"))
    with pytest.raises(SpeechError, match=r"speed: 9\.0 is not from 0\.25 to 4\.0") as caught:
        client.speak("Hello.", speed=9.0)
    assert caught.value.event.field == "speed"


def test_a_number_that_json_has_no_word_for_is_refused_here(client):
    with pytest.raises(ValueError, match="speed: nan"):
        client.speak("Hello.", speed=float("nan"))
    with pytest.raises(ValueError, match="pitch: inf"):
        client.speak("Hello.", settings={"pitch": float("inf")})


def test_speech_that_failed_raises_the_reason(fake, client):
    def fail(fake, peer, request):
        fake.send(peer, accepted(request))
        fake.send(peer, {"type": "failed", "id": request["id"], "reason": "broken", "chars": [0, 6], "final": True})

    fake.script = fail
    with pytest.raises(SpeechError, match="broken"):
        client.speak("Hello.").wait()


def test_a_part_that_failed_is_told_and_the_rest_goes_on(fake, client):
    def fail(fake, peer, request):
        fake.send(peer, accepted(request))
        fake.send(peer, {"type": "failed", "id": request["id"], "reason": "no", "chars": [0, 2], "final": False})
        fake.send(peer, finished(request))

    fake.script = fail
    speech = client.speak("Hello.")
    assert [type(event).__name__ for event in speech.events()] == ["Accepted", "Failed", "Finished"]
    speech.wait()


def test_two_utterances_of_one_client_do_not_mix(fake, client):
    first, second = client.speak("a", output="stream"), client.speak("bcd", output="stream")
    assert second.audio().shape == (3 * 2400,)
    assert first.audio().shape == (2400,)


def test_all_methods_work_from_many_threads_at_once(fake, client):
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda n: client.speak("x" * n, output="stream").audio().size // 2400, range(1, 20)))
    assert done == list(range(1, 20))


# --------------------------------------------------------------------------- no pipeline, restarts


@pytest.mark.slow
def test_without_a_pipeline_the_error_says_what_to_do_and_soon():
    to = free_address()
    began = time.monotonic()
    with Client(to) as client, pytest.raises(PipelineError, match=rf"no pipeline answers at {to}: start one with"):
        client.speak("Hello.")
    assert time.monotonic() - began < 10  # it takes 2 s; timeout_s is 30


def test_an_address_that_is_none_is_named():
    with Client("nowhere") as client, pytest.raises(PipelineError, match="'nowhere' is no address"):
        client.status()


@pytest.mark.slow
def test_a_client_finds_a_pipeline_that_was_started_after_an_error():
    to = free_address()
    with Client(to) as client:
        with pytest.raises(PipelineError):
            client.speak("Hello.")
        with FakeDispatcher(to=to):
            client.speak("Hello.").wait()


@pytest.mark.slow
def test_a_pipeline_that_does_not_answer_is_told_apart_from_none(fake):
    fake.script = lambda *_: None
    with Client(fake.to, timeout_s=2) as client:
        with pytest.raises(PipelineError, match="has not answered for 2 s"):
            client.speak("Hello.")
        with pytest.raises(PipelineError, match="has not answered for 2 s"):
            client.status()


def test_a_request_that_got_lost_in_a_restart_is_sent_again_with_its_id(fake):
    fake.script = lambda *_: None
    with Client(fake.to) as client, ThreadPoolExecutor(1) as pool:
        speaking = pool.submit(client.speak, "Hello.")
        (lost,) = fake.until("speak")
        fake.close()
        with FakeDispatcher(to=fake.to) as successor:
            speaking.result(20).wait()
            assert {request["id"] for request in successor.of("speak")} == {lost["id"]}


def test_the_same_connection_names_itself_the_same_after_a_restart(fake):
    fake.script = lambda fake, peer, request: fake.send(peer, accepted(request))
    with Client(fake.to) as client:
        speech = client.speak("Hello.")
        peers = {peer for peer, _ in fake.requests}
        fake.close()
        with FakeDispatcher(to=fake.to) as successor:
            speech.wait()
            assert {peer for peer, _ in successor.requests} == peers


def test_sound_goes_on_after_a_restart_with_no_sample_lost_or_repeated(fake):
    def half(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request))
            fake.send(peer, *piece(request, 0))
            fake.send(peer, *piece(request, 2400))

    def rest(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request, "speaking"))
            fake.send(peer, *piece(request, 1200))  # what the dead one may not have got out
        elif request["type"] == "attach":
            fake.state["from"] = request["from_sample"]
            fake.send(peer, *piece(request, 3600))
            fake.send(peer, *piece(request, 6000))
            fake.send(peer, finished(request, 8400))

    fake.script = half
    with Client(fake.to) as client:
        sounds = client.speak("Hello.", output="stream").sounds()
        heard = [next(sounds).samples, next(sounds).samples]
        fake.close()
        with FakeDispatcher(rest, to=fake.to) as successor:
            heard += [sound.samples for sound in sounds]
            assert successor.state["from"] == 4800
    np.testing.assert_array_equal(np.concatenate(heard), ramp(8400))


def test_a_gap_in_the_sound_is_asked_for_and_not_played_over(fake, client):
    def gap(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request))
            for first in (0, 4800, 7200):
                fake.send(peer, *piece(request, first))
        elif request["type"] == "attach":
            for first in range(request["from_sample"], 9600, 2400):
                fake.send(peer, *piece(request, first))
            fake.send(peer, finished(request, 9600))

    fake.script = gap
    np.testing.assert_array_equal(client.speak("Hello.", output="stream").audio(), ramp(9600))
    assert [request["from_sample"] for request in fake.of("attach")] == [2400]


def test_sound_that_is_lost_for_good_is_an_error(fake, client):
    def gap(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request))
            fake.send(peer, *piece(request, 4800))
        elif request["type"] == "attach":
            fake.send(peer, rejected(request, "from_sample", "0 is no longer retained; the oldest is 4800"))

    fake.script = gap
    with pytest.raises(SpeechError, match="no longer retained"):
        client.speak("Hello.", output="stream").audio()


@pytest.mark.slow
def test_a_pipeline_that_never_comes_back_ends_the_wait(fake):
    fake.script = lambda fake, peer, request: fake.send(peer, accepted(request))
    with Client(fake.to, timeout_s=1) as client:
        speech = client.speak("Hello.")
        fake.close()
        with pytest.raises(PipelineError, match="went away and did not come back within 1 s"):
            speech.wait()


def test_how_an_utterance_ended_while_nobody_was_connected_is_told(fake):
    fake.script = lambda fake, peer, request: fake.send(peer, accepted(request))

    def over(fake, peer, request):
        fake.send(peer, accepted(request, "finished"))
        fake.send(peer, finished(request, 100, 6))

    with Client(fake.to) as client:
        speech = client.speak("Hello.")
        fake.close()
        with FakeDispatcher(over, to=fake.to):
            assert speech.wait().samples == 100


def test_a_question_is_asked_again_after_a_restart(fake):
    fake.script = lambda *_: None
    with Client(fake.to) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.status)
        fake.until("status")
        fake.close()
        with FakeDispatcher(to=fake.to):
            assert asked.result(20).engine == "fake"
            assert client.voices().engine == "fake"


# --------------------------------------------------------------------------- growing texts


def test_a_growing_text_is_sent_as_it_comes_and_ended(fake, client):
    with client.utterance(output="stream") as speech:
        for word in ("It ", "comes ", "bit by bit."):
            speech.write(word)
            fake.until("text", len(fake.of("text")))
    assert speech.audio().size == 2400 * len("It comes bit by bit.")
    assert [(text["text"], text["offset"]) for text in fake.of("text")] == [
        ("It ", 0), ("comes ", 3), ("bit by bit.", 9)
    ]  # fmt: skip
    assert fake.of("end")[0]["offset"] == 20


def test_pieces_of_an_iterable_are_spoken(fake, client):
    client.speak_stream(iter(["a", "b"])).wait()
    assert [text["text"] for text in fake.of("text")] == ["a", "b"]


def test_an_exception_while_writing_silences_the_utterance(fake, client):
    with pytest.raises(KeyError), client.utterance() as speech:  # noqa: PT012 (the block is what is tested)
        speech.write("a")
        raise KeyError("the LLM broke")
    assert fake.until("cancel")[0]["id"] == speech.id
    assert fake.of("end") == []


def test_a_writer_learns_that_its_utterance_was_silenced(fake, client):
    def barge_in(fake, peer, request):
        speak_everything(fake, peer, request)
        if request["type"] == "text":
            fake.send(peer, cancelled(request, "It"))

    fake.script = barge_in
    with pytest.raises(SpeechCancelled) as caught, client.utterance() as speech:  # noqa: PT012 (the block is what is tested)
        speech.write("It ")
        until(lambda: speech.ending, "the cancel has arrived")
        speech.write("comes.")
    assert caught.value.heard == "It"
    assert len(fake.of("text")) == 1
    assert fake.of("cancel") == []


def test_a_text_that_runs_far_ahead_waits_for_the_voice(fake, client):
    fake.script = lambda fake, peer, request: (
        fake.send(peer, accepted(request)) if request["type"] == "speak" else listen(fake, peer, request)
    )

    def listen(fake, peer, request):
        if request["type"] == "text" and request["offset"] + len(request["text"]) == 20_000:
            fake.state["full"] = (peer, request)
        if request["type"] == "played":  # the test's way to make the script speak
            peer, request = fake.state["full"]
            fake.send(peer, {"type": "progress", "id": request["id"], "chars": 15_000, "seconds": 1})

    speech = None
    with ThreadPoolExecutor(1) as pool:
        with client.utterance() as speech:
            writing = pool.submit(speech.write, "x" * 30_000)
            fake.until("text", 20)
            assert not writing.done()
            assert speech.sent_chars == 20_000
            speech.played(1)
            writing.result(20)
        assert speech.sent_chars == 30_000


def test_text_that_may_have_got_lost_is_sent_again_with_its_offset(fake):
    def forget(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request))
            fake.send(peer, {"type": "progress", "id": request["id"], "chars": 3, "seconds": 1})

    def complete(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request, "speaking"))
        if request["type"] == "end":
            fake.send(peer, finished(request))

    fake.script = forget
    with Client(fake.to) as client, client.utterance() as speech:
        for word in ("It ", "comes ", "twice."):
            speech.write(word)
            until(lambda: speech.made_chars == 3, "progress has arrived")
        fake.until("text", 3)
        fake.close()
        with FakeDispatcher(complete, to=fake.to) as successor:
            successor.until("text", 2)
            speech.end()
            speech.wait()
            assert [(text["offset"], text["text"]) for text in successor.of("text")] == [
                (3, "comes "),
                (9, "twice."),
            ]
            assert successor.of("end")[0]["offset"] == 15


def test_an_utterance_that_the_pipeline_has_forgotten_is_not_begun_again(fake):
    def script(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request))
            fake.send(peer, {"type": "progress", "id": request["id"], "chars": 3, "seconds": 1})

    fake.script = script
    with Client(fake.to) as client:
        speech = client.speak("It is lost.")
        until(lambda: speech.heard_chars == 3, "it has begun")
        fake.close()
        with FakeDispatcher(script, to=fake.to) as successor:
            with pytest.raises(SpeechError, match="lost it"):
                speech.wait()
            assert successor.until("cancel")[0]["id"] == speech.id


def test_a_gap_in_the_text_is_filled(fake, client):
    def picky(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request))
        elif request["type"] == "end":
            if len(fake.of("text")) == 1:
                fake.send(peer, rejected(request, "offset", "a gap"))
            else:
                fake.send(peer, finished(request))

    fake.script = picky
    with client.utterance() as speech:
        speech.write("It ")
    speech.wait()
    assert [text["offset"] for text in fake.of("text")] == [0, 0]


def test_text_that_is_refused_raises_at_the_writer(fake, client):
    def refuse(fake, peer, request):
        speak_everything(fake, peer, request)
        if request["type"] == "text":
            fake.send(peer, rejected(request, "text", "too much"))

    fake.script = refuse
    with pytest.raises(SpeechError, match="text: too much"), client.utterance() as speech:  # noqa: PT012 (the block is what is tested)
        speech.write("a")
        next(event for event in speech.events() if type(event).__name__ == "Rejected")
        speech.write("b")
    assert fake.until("cancel")


def test_a_lone_surrogate_is_refused_and_spoils_nothing(fake, client):
    with client.utterance(output="stream") as speech:
        speech.write("a")
        with pytest.raises(UnicodeEncodeError):
            speech.write("b\ud800")
        speech.write("c")
    assert speech.audio().size == 2 * 2400


# --------------------------------------------------------------------------- silencing, slow readers


def endless(fake, peer, request):
    """A stream of 200 s that ends early only by a cancel."""
    if request["type"] == "speak":
        fake.send(peer, accepted(request))
        for first in range(0, 2400 * 2000, 2400):
            fake.send(peer, *piece(request, first))
    elif request["type"] == "cancel" and "id" in request:
        fake._waiting[peer].clear()
        fake.send(peer, cancelled(request, "Hel"))
    else:
        speak_everything(fake, peer, request)


@pytest.mark.slow
def test_a_cancel_tells_what_was_heard_and_ends_the_sound(fake, client):
    fake.script = endless
    speech = client.speak("Hello.", output="stream")
    sounds = speech.sounds()
    next(sounds)
    ending = speech.cancel()
    assert isinstance(ending, Cancelled)
    assert ending.heard == "Hel"
    assert list(sounds) == []
    with pytest.raises(SpeechCancelled):
        speech.wait()


def test_a_cancel_that_comes_too_late_tells_how_it_ended(client):
    speech = client.speak("Hello.")
    speech.wait()
    assert isinstance(speech.cancel(), Finished)


def test_a_cancel_that_crosses_the_end_tells_the_end(fake, client):
    def cross(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request))
        else:
            fake.send(peer, finished({"id": request["id"]}))
            fake.send(peer, rejected(request, "id", "it is over"))

    fake.script = cross
    assert isinstance(client.speak("Hello.").cancel(), Finished)


@pytest.mark.slow
def test_a_reader_that_does_not_read_stops_its_own_stream_and_nothing_else(fake):
    fake.script = endless
    with Client(fake.to, buffer_s=1.0) as client:
        slow = client.speak("Hello.", output="stream")
        seen = -1

        def stands_still():
            nonlocal seen
            before, seen = seen, fake.sent_audio
            return before == seen > 0

        until(stands_still, "the sound backs up", every_s=0.3)
        assert fake.sent_audio < 1500  # 150 s of 200 s: what sockets hold, and no more
        fake.script = speak_everything
        assert client.speak("abc", output="stream").audio().size == 3 * 2400
        client.speak("Hello.").wait()
        assert client.status().engine == "fake"
        fake.script = endless
        assert isinstance(slow.cancel(), Cancelled)


def test_waiting_for_a_stream_drops_the_sound_that_nobody_reads(fake, client):
    def long(fake, peer, request):
        fake.send(peer, accepted(request))
        for first in range(0, 2400 * 100, 2400):
            fake.send(peer, *piece(request, first))
        fake.send(peer, finished(request, 2400 * 100))

    fake.script = long
    assert client.speak("Hello.", output="stream").wait().samples == 240_000


def test_waiting_in_one_thread_leaves_the_sound_to_another(fake, client):
    speech = client.speak("x" * 50, output="stream")
    heard = []
    begun = threading.Event()

    def read():
        for sound in speech.sounds():
            heard.append(sound.count)
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(10)
    speech.wait()
    reader.join(10)
    assert sum(heard) == 50 * 2400


@pytest.mark.slow
def test_events_of_the_speaker_that_nobody_reads_do_not_pile_up(fake, client):
    def chatty(fake, peer, request):
        fake.send(peer, accepted(request))
        for chars in range(3000):
            fake.send(peer, {"type": "progress", "id": request["id"], "chars": chars, "seconds": 0.0})
        fake.send(peer, finished(request, chars=3000))

    fake.script = chatty
    speech = client.speak("Hello.")
    speech.wait()
    events = list(speech.events())
    assert len(events) == 1000
    assert isinstance(events[-1], Finished)


def test_sound_of_the_speaker_cannot_be_read(client):
    with pytest.raises(ValueError, match="output='stream'"):
        client.speak("Hello.").audio()


@pytest.mark.slow
def test_a_writer_whose_sound_nobody_reads_is_told(fake):
    def endless_growing(fake, peer, request):
        if request["type"] == "speak":
            endless(fake, peer, request)

    fake.script = endless_growing
    nobody_reads = pytest.raises(SpeechError, match="nobody reads its sound")
    with Client(fake.to, timeout_s=4, buffer_s=1) as client, nobody_reads:
        client.speak_stream(["x" * 30_000], output="stream")


# --------------------------------------------------------------------------- questions


def test_questions_are_answered(client):
    assert client.ping() == {"t3-0": 0.5}
    assert [voice.id for voice in client.voices().voices] == ["v", "w"]
    assert client.status().queues["ring"].bound == 10.0
    client.pause()
    client.resume()
    client.cancel(all=True)


def test_questions_share_a_connection_unless_they_meet(fake, client):
    for _ in range(5):
        client.ping()
    assert len({peer for peer, _ in fake.requests}) == 1


def test_a_refused_question_raises_what_the_server_said(fake, client):
    fake.script = lambda fake, peer, request: fake.send(peer, rejected(request, "conversation", "nothing of 'x'"))
    with pytest.raises(RequestError, match="conversation: nothing of 'x'"):
        client.cancel(conversation="x")


def test_states_are_watched(client):
    states = client.watch(100)
    assert [next(states).engine for _ in range(3)] == ["fake"] * 3
    states.close()


def test_a_voice_travels_in_pieces(fake, client, tmp_path):
    recording = tmp_path / "voice.wav"
    recording.write_bytes(bytes(range(256)) * 2500)
    assert client.add_voice("me", recording).complete
    assert [request["offset"] for request in fake.of("voice_add")] == [0, 262_144, 524_288]


# --------------------------------------------------------------------------- life and death of a client


def test_a_closed_client_says_so_and_closing_twice_is_nothing(fake):
    client = Client(fake.to)
    speech = client.speak("Hello.")
    client.close()
    client.close()
    for call in (client.status, lambda: client.speak("a"), speech.wait):
        with pytest.raises(PipelineError, match="closed"):
            call()


def test_whoever_waits_when_the_client_is_closed_gets_an_error(fake):
    fake.script = lambda fake, peer, request: fake.send(peer, accepted(request))
    client = Client(fake.to)
    speech = client.speak("Hello.")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(speech.wait)
        until(waiting.running, "the thread waits")
        client.close()
        with pytest.raises(PipelineError, match="closed"):
            waiting.result(10)


def test_the_end_of_a_text_leaves_before_the_client_is_closed(fake):
    with Client(fake.to) as client, client.utterance() as speech:
        speech.write("a")
    assert fake.until("end")


def test_a_dropped_client_leaves_no_thread(fake):
    import gc

    client = Client(fake.to)
    client.status()
    del client
    gc.collect()
    until(lambda: not [one for one in threading.enumerate() if one.name == "chatterline-client"], "the thread ends")


# --------------------------------------------------------------------------- asyncio


async def test_the_same_with_asyncio(fake):
    async with AsyncClient(fake.to) as client:
        speech = await client.speak("Hey", output="stream")
        assert sum([piece.size async for piece in speech]) == 3 * 2400
        assert (await speech.wait()).samples == 3 * 2400
        assert [type(event) async for event in (await client.speak("a", output="stream")).events()].count(Sound) == 1
        assert (await client.voices()).engine == "fake"
        async with client.utterance(output="stream") as growing:
            await growing.write("ab")
        assert b"".join([pcm async for pcm in growing.pcm()]) == piece({"id": ""}, 0, 4800)[1]
        async for state in client.watch(100):
            assert state.healthy
            break


async def test_a_watcher_that_is_cancelled_again_and_again_leaves_no_socket_behind(fake):
    seen = asyncio.Event()

    async def watch():
        async for _state in client.watch(50):
            seen.set()

    async with asyncio.timeout(20):
        async with AsyncClient(fake.to) as client:
            watching = asyncio.create_task(watch())
            await seen.wait()
            while not watching.done():  # as anyio does, whatever the task waits for then
                watching.cancel()
                await asyncio.sleep(0)


async def test_an_async_iterator_is_spoken_while_its_sound_is_read(fake):
    async def tokens():
        for token in ("It ", "comes."):
            await asyncio.sleep(0)
            yield token

    async with AsyncClient(fake.to) as client:
        speech = await client.speak_stream(tokens(), output="stream")
        assert (await speech.audio()).size == 2400 * len("It comes.")


async def test_what_the_iterator_raises_is_raised_where_the_speech_is_waited_for(fake):
    async def tokens():
        yield "It "
        raise KeyError("the LLM broke")

    async with AsyncClient(fake.to) as client:
        speech = await client.speak_stream(tokens())
        with pytest.raises(KeyError, match="the LLM broke"):
            await speech.wait()
        assert await asyncio.to_thread(fake.until, "cancel")


async def test_many_tasks_share_a_client(fake):
    async with AsyncClient(fake.to) as client:
        await asyncio.gather(*(one.wait() for one in [await client.speak(f"{n}") for n in range(30)]))
        assert len({peer for peer, _ in fake.requests}) == 1


# --------------------------------------------------------------------------- encryption


@pytest.fixture
def encrypted(tmp_path):
    """An encrypted text socket that answers everything with `paused`; the folder of keys and the address."""
    keys, allowed = tmp_path / "keys", tmp_path / "keys" / "clients"
    allowed.mkdir(parents=True)
    for name in ("server", "client", "stranger"):
        zmq.auth.create_certificates(keys, name)
    (keys / "client.key").rename(allowed / "client.key")
    sockets = DispatcherSockets(f"ipc://{tmp_path}/work.sock", "tcp://127.0.0.1:0", 1, str(keys))
    leave = threading.Event()

    def serve():
        while not leave.is_set():
            for item in sockets.poll(0.05):
                sockets.send_client(item.client, item.req, encode_event(Paused()))

    thread = threading.Thread(target=serve)
    thread.start()
    yield keys, sockets.bound_text
    leave.set()
    thread.join(10)
    sockets.close()


def test_a_client_with_keys_is_let_in(encrypted):
    keys, to = encrypted
    with Client(to, curve=keys) as client:
        client.pause()


@pytest.mark.slow
def test_a_client_without_keys_or_with_unknown_ones_is_told_why(encrypted):
    keys, to = encrypted
    with Client(to, timeout_s=1) as client, pytest.raises(PipelineError, match="curve"):
        client.pause()
    (keys / "stranger.key_secret").rename(keys / "client.key_secret")
    with Client(to, curve=keys, timeout_s=1) as client, pytest.raises(PipelineError, match="refused our keys"):
        client.pause()


def test_missing_keys_are_named(tmp_path):
    with pytest.raises(PipelineError, match=r"must hold server\.key and client\.key_secret"):
        Client(curve=tmp_path)
