"""The live door, with the unmodified `websockets` client and the real processes."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from ipc.client import AsyncClient
from ipc.messages import Aligned, Finished
from tests.harness import until

pytestmark = pytest.mark.slow

SETTINGS = {"gateway.max_sockets": 20, "gateway.stall_s": 3, "text.idle_s": 1}

TEXT = "The boat goes against the wind, though never straight into it. Its sail is a wing that stands upright. "
READY = {"type": "ready", "sample_rate": 24000, "format": "pcm_s16le"}


@pytest.fixture(scope="module")
def address(speaking):
    return speaking.url.replace("http", "ws") + "/ws/tts/live"


@pytest.fixture
async def client(speaking):
    async with AsyncClient(speaking.to) as one:
        yield one


class Received:
    """Everything until the server hangs up, as a strict client reads it."""

    def __init__(self):
        self.messages, self.pcm, self.chunks = [], b"", 0
        self.closed = None

    @classmethod
    async def of(cls, socket):
        self = cls()
        announced = None
        try:
            async for message in socket:
                if isinstance(message, bytes):
                    assert announced == {"type": "audio", "chunk_id": self.chunks, "size": len(message)}
                    self.chunks += 1
                    self.pcm += message
                    announced = None
                    continue
                assert announced is None, "exactly one binary frame follows"
                told = json.loads(message)
                if told["type"] == "audio":
                    announced = told
                else:
                    self.messages.append(told)
        except ConnectionClosedError:
            pass
        self.closed = socket.close_code
        return self


async def ready(socket, **init):
    await socket.send(json.dumps(init))
    assert json.loads(await socket.recv()) == READY


async def spoken(address, pieces, **init):
    async with connect(address) as socket:
        await ready(socket, **init)
        for piece in pieces:
            await socket.send(piece)
        await socket.send("")
        return await Received.of(socket)


async def direct(client, text, **options):
    """The sound, its words and its end, without the gateway."""
    speech = await client.speak_stream(_pieces(text), output="stream", **options)
    events = [event async for event in speech.events()]
    pcm = b"".join(event.pcm for event in events if hasattr(event, "pcm"))
    return pcm, [event for event in events if isinstance(event, Aligned)], events[-1]


async def _pieces(text):
    yield text


async def idle(client):
    """Wait until the pipeline has nothing to say."""
    for _ in range(2000):
        if not (await client.status()).queued:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("something is still being spoken")


async def test_text_in_pieces_is_the_same_sound_as_without_the_gateway(address, client):
    words = [word + " " for word in TEXT.split()]
    got = await spoken(address, words, voice="en-us", seed=7)
    pcm, _, ending = await direct(client, TEXT, voice="en-us", seed=7)
    assert isinstance(ending, Finished)
    np.testing.assert_array_equal(np.frombuffer(got.pcm, "<i2"), np.frombuffer(pcm, "<i2"))
    assert got.messages[-1] == {"type": "end", "total_chunks": got.chunks}
    assert got.closed == 1000


async def test_words_and_progress_are_the_engines_own(address, client):
    got = await spoken(address, [TEXT], voice="en-us", seed=7, alignment=True)
    _, words, ending = await direct(client, TEXT, voice="en-us", seed=7)
    told = [message for message in got.messages if message["type"] == "aligned"]
    assert [(tuple(one["chars"]), tuple(one["samples"])) for one in told] == [(w.chars, w.samples) for w in words]
    progress = [message for message in got.messages if message["type"] == "progress"]
    assert progress[-1] == {"type": "progress", "chars": ending.chars, "seconds": ending.seconds}
    for one in progress[:-1]:
        heard = [word for word in words if word.samples[1] <= one["seconds"] * 24_000]
        following = words[min(len(heard), len(words) - 1)]
        assert (heard[-1].chars[0] if heard else 0) <= one["chars"] <= following.chars[1]


async def test_kokoros_names_give_a_french_voice_at_that_speed(address, client):
    asked = {"voice": "ff_siwis", "language": "fr-fr", "speed": 0.8}
    slow = await spoken(address, ["Le bateau va contre le vent."], **asked)
    plain = await spoken(address, ["Le bateau va contre le vent."], voice="ff_siwis")
    assert slow.messages[-1]["type"] == "end"
    assert len(slow.pcm) / len(plain.pcm) == pytest.approx(1.25, abs=0.08)
    english = await spoken(address, ["Le bateau va contre le vent."], voice="en-us")
    assert english.pcm != plain.pcm


async def test_it_sounds_before_the_text_is_complete(address):
    async with connect(address) as socket:
        await ready(socket)
        await socket.send("The boat goes against the wind, though ")
        assert json.loads(await asyncio.wait_for(socket.recv(), 20))["type"] == "audio"


async def test_a_flush_speaks_half_a_clause(address):
    async with connect(address) as socket:
        await ready(socket)
        await socket.send("Sailing ")
        await socket.send('{"type":"flush"}')
        assert json.loads(await asyncio.wait_for(socket.recv(), 20))["type"] == "audio"


async def test_binary_framing_is_bare_sound_and_one_last_message(address):
    async with connect(address) as socket:
        await socket.send(json.dumps({"framing": "binary", "voice": "en-us", "seed": 7}))
        await socket.send(TEXT)
        await socket.send("")
        messages = [message async for message in socket]
    assert all(isinstance(message, bytes) for message in messages[:-1])
    assert json.loads(messages[-1]) == {"type": "end", "total_chunks": len(messages) - 1}
    got = await spoken(address, [TEXT], voice="en-us", seed=7)
    assert b"".join(messages[:-1]) == got.pcm


async def test_a_cancel_silences_at_once_and_overtakes_the_text(address, client):
    async with connect(address) as socket:
        await ready(socket)
        for _ in range(50):
            await socket.send(TEXT * 10)
        assert json.loads(await socket.recv())["type"] == "audio"
        await socket.recv()
        await socket.send('{"type":"cancel"}')
        last, chunks = None, 1
        async for message in socket:
            chunks += isinstance(message, bytes)
            last = message
        told = json.loads(last)
        assert (told["type"], told["total_chunks"], told["cancelled"]) == ("end", chunks, True)
        assert TEXT.startswith(told["heard"][:100])
        assert socket.close_code == 1000
    await idle(client)


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"cancel","now":true}',
        '{"type":"stop"}',
        '["type", "cancel"]',
        'Say {"type":"cancel"}',
        '{"type":"cancel"',
        '{"type":["cancel"]}',
    ],
)
async def test_only_an_exact_order_is_one_and_all_else_is_text(address, text):
    got = await spoken(address, [text])
    assert got.messages[-1] == {"type": "end", "total_chunks": got.chunks}
    assert got.chunks > 0


async def test_an_order_in_two_frames_is_spoken(address):
    got = await spoken(address, ["{", '"type":"cancel"}'])
    assert "cancelled" not in got.messages[-1]
    assert got.chunks > 0


@pytest.mark.parametrize("pieces", [[], ["  ", "\n"], ["…"]])
async def test_nothing_to_say_ends_in_order(address, pieces):
    got = await spoken(address, pieces)
    assert got.messages[-1] == {"type": "end", "total_chunks": got.chunks}
    assert got.closed == 1000


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("Hello", "JSON object"),
        ("[]", "object"),
        (b"{}", "JSON object"),
        ('{"speed": 9}', "speed"),
        ('{"voice": 3}', "voice"),
        ('{"voice": "nobody"}', "nobody"),
        ('{"voice": "../../etc/passwd"}', "no voice"),
        ('{"framing": "x"}', "framing"),
        ('{"x": ' + "[" * 100_000, "JSON object"),
    ],
)
async def test_a_wrong_init_is_an_error_that_says_why(address, init, words):
    async with connect(address) as socket:
        await socket.send(init)
        told = json.loads(await socket.recv())
        assert told["type"] == "error"
        assert words in told["message"]
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1008


async def test_what_the_pipeline_refuses_is_told(address):
    async with connect(address) as socket:
        await ready(socket, settings={"pitch": 1000})
        await socket.send("Hello.")
        got = await Received.of(socket)
    assert got.messages[-1]["type"] == "error"
    assert "pitch" in got.messages[-1]["message"]
    assert got.closed == 1008


async def test_a_frame_that_is_too_long_ends_the_connection_and_no_other(address):
    async with connect(address) as other, connect(address) as socket:
        await ready(other)
        await ready(socket)
        await socket.send("x" * 300_000)
        assert (await Received.of(socket)).closed == 1009
        await other.send("Hello.")
        await other.send("")
        assert (await Received.of(other)).chunks


async def test_several_at_once_do_not_mix(address):
    texts = [f"Number {number} goes against the wind, {'again ' * number}and home. " for number in range(8)]
    alone = [await spoken(address, [text], seed=3) for text in texts[::4]]
    together = await asyncio.gather(*(spoken(address, [text], seed=3) for text in texts))
    assert [one.pcm for one in together[::4]] == [one.pcm for one in alone]
    assert all(one.messages[-1]["type"] == "end" for one in together)


async def test_a_connection_may_be_used_again(address):
    async with connect(address) as socket:
        await ready(socket, reuse=True)
        for _ in range(3):
            await socket.send("Hello.")
            await socket.send("")
            chunks = 0
            async for message in socket:
                chunks += isinstance(message, bytes)
                if isinstance(message, str) and json.loads(message)["type"] == "end":
                    break
            assert json.loads(message) == {"type": "end", "total_chunks": chunks}
            assert chunks


async def test_a_client_that_leaves_leaves_nothing_behind(address, client):
    before = (await client.status()).counters.get("finished", 0)
    for number in range(100):
        socket = await connect(address)
        await ready(socket)
        for _ in range(20):
            await socket.send(TEXT * 20)
        if number % 2:
            await socket.recv()
            socket.transport.abort()
        else:
            await socket.close()
    await idle(client)
    assert (await client.status()).counters.get("finished", 0) == before


async def test_a_slow_reader_slows_nobody_else(address):
    async with connect(address, max_queue=1) as slow:
        await ready(slow)
        await slow.send(TEXT * 200)
        assert (await asyncio.wait_for(spoken(address, ["Hello."]), 30)).chunks
        slow.transport.abort()  # a handshake to close would wait for what it does not read


async def test_who_takes_nothing_is_hung_up_on(address, client, speaking):
    socket = await connect(address, ping_interval=None)
    await ready(socket)
    await socket.send(TEXT * 200)
    await socket.send("")
    await socket.recv()
    socket.transport.pause_reading()
    await idle(client)
    until(lambda: "the client took nothing for 3 s" in speaking.log(), "it is in the log")
    socket.transport.abort()


async def test_a_writer_that_falls_silent_gets_its_end(address):
    async with connect(address) as socket:
        await ready(socket)
        await socket.send("Hello. ")
        got = await asyncio.wait_for(Received.of(socket), 30)
    assert got.messages[-1] == {"type": "end", "total_chunks": got.chunks}


async def test_one_connection_too_many_is_told_to_come_back_later(address):
    held = [await connect(address) for _ in range(20)]
    try:
        with pytest.raises(InvalidStatus) as refused:
            await connect(address)
        assert refused.value.response.status_code == 429
    finally:
        await asyncio.gather(*(socket.close() for socket in held))


async def test_a_page_elsewhere_cannot_open_it(address):
    with pytest.raises(InvalidStatus) as refused:
        await connect(address, origin="https://evil.example")
    assert refused.value.response.status_code == 403
