"""The Wyoming door, with the unmodified `wyoming` client doing what Home Assistant does, and the real processes."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager

import numpy as np
import pytest
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from ipc.client import AsyncClient
from tests.harness import until

pytestmark = pytest.mark.slow

SETTINGS = {"gateway.wyoming": "127.0.0.1:0", "gateway.stall_s": 3}

TEXT = "The boat goes against the wind, though never straight into it. Its sail is a wing that stands upright."


@pytest.fixture(scope="module")
def port(speaking):
    def said():
        found = re.search(r"tcp://127\.0\.0\.1:(\d+) protocol=wyoming", speaking.log())
        return int(found[1]) if found else 0

    return until(said, "the gateway says where Wyoming listens")


@pytest.fixture
async def client(speaking):
    async with AsyncClient(speaking.to) as one:
        yield one


@asynccontextmanager
async def connected(port):
    async with AsyncTcpClient("127.0.0.1", port) as one:
        yield one


async def read_until(client, last):
    """Everything up to an event of this kind, as (types in order without repetition, sound)."""
    types, pcm = [], b""
    while True:
        event = await asyncio.wait_for(client.read_event(), 30)
        assert event is not None, f"hung up after {types}"
        if not types or types[-1] != event.type:
            types.append(event.type)
        if AudioStart.is_type(event.type):
            start = AudioStart.from_event(event)
            assert (start.rate, start.width, start.channels) == (24_000, 2, 1)
        if AudioChunk.is_type(event.type):
            pcm += AudioChunk.from_event(event).audio
        if last.is_type(event.type):
            return types, pcm


async def whole(client, text, **voice):
    await client.write_event(Synthesize(text, voice=SynthesizeVoice(**voice) if voice else None).event())
    return await read_until(client, AudioStop)


async def growing(client, pieces, full="", **voice):
    """As Home Assistant streams an answer."""
    await client.write_event(SynthesizeStart(voice=SynthesizeVoice(**voice) if voice else None).event())
    for piece in pieces:
        await client.write_event(SynthesizeChunk(piece).event())
    if full:
        await client.write_event(Synthesize(full).event())
    await client.write_event(SynthesizeStop().event())
    return await read_until(client, SynthesizeStopped)


async def direct(client, text, **options):
    speech = await client.speak_stream(_pieces(text), output="stream", **options)
    return b"".join([pcm async for pcm in speech.pcm()])


async def _pieces(text):
    yield text


async def idle(client):
    for _ in range(500):
        if not (await client.status()).queued:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("something is still being spoken")


def same(one, other):
    np.testing.assert_array_equal(np.frombuffer(one, "<i2"), np.frombuffer(other, "<i2"))


async def test_it_describes_its_voices_and_languages(port, client):
    listed = await client.voices()
    async with connected(port) as wyoming:
        await wyoming.write_event(Describe().event())
        info = Info.from_event(await wyoming.read_event())
    (program,) = info.tts
    assert program.installed
    assert program.supports_synthesize_streaming
    assert {voice.name for voice in program.voices} == {voice.id for voice in listed.voices}
    assert program.voices[0].name == listed.default
    assert {language for voice in program.voices for language in voice.languages} >= set(listed.languages)
    assert "fr-fr" in next(voice.languages for voice in program.voices if voice.name == "fr")


async def test_a_whole_text_is_spoken_to_its_last_sample(port, client):
    async with connected(port) as wyoming:
        types, pcm = await whole(wyoming, TEXT, name="en-us")
    assert types == ["audio-start", "audio-chunk", "audio-stop"]
    same(pcm, await direct(client, TEXT, voice="en-us"))


async def test_a_growing_text_is_spoken_once_though_it_is_also_sent_whole(port, client):
    words = re.findall(r"\S+\s*", TEXT)
    async with connected(port) as wyoming:
        types, pcm = await growing(wyoming, words, TEXT, name="en-us")
        assert types == ["audio-start", "audio-chunk", "audio-stop", "synthesize-stopped"]
        same(pcm, await direct(client, TEXT, voice="en-us"))
        types, again = await whole(wyoming, "Hello.", name="en-us")
        assert types == ["audio-start", "audio-chunk", "audio-stop"]
        same(again, await direct(client, "Hello.", voice="en-us"))


async def test_it_sounds_before_the_text_is_complete(port):
    async with connected(port) as wyoming:
        await wyoming.write_event(SynthesizeStart().event())
        await wyoming.write_event(SynthesizeChunk("The boat goes against the wind, though ").event())
        await read_until(wyoming, AudioChunk)
        await wyoming.write_event(SynthesizeStop().event())
        await read_until(wyoming, SynthesizeStopped)


async def test_a_start_whose_text_comes_whole_is_spoken(port, client):
    async with connected(port) as wyoming:
        types, pcm = await growing(wyoming, [], "Hello.", name="en-us")
    assert types[-1] == "synthesize-stopped"
    same(pcm, await direct(client, "Hello.", voice="en-us"))


@pytest.mark.parametrize("pieces", [[], ["  "]])
async def test_nothing_to_say_ends_in_order(port, pieces):
    async with connected(port) as wyoming:
        types, pcm = await growing(wyoming, pieces)
    assert types == ["audio-start", "audio-stop", "synthesize-stopped"]
    assert pcm == b""


async def test_a_voice_is_chosen_by_name_or_language(port, client):
    async with connected(port) as wyoming:
        german = (await whole(wyoming, "Guten Morgen.", language="de"))[1]
        same(german, await direct(client, "Guten Morgen.", language="de"))
        named = (await whole(wyoming, "Bonjour.", name="fr-fr"))[1]
        same(named, await direct(client, "Bonjour.", voice="fr"))


async def test_requests_of_one_connection_are_spoken_in_order(port, client):
    texts = ["One.", "Two, and more of it.", "Three."]
    async with connected(port) as wyoming:
        for text in texts:
            await wyoming.write_event(Synthesize(text, voice=SynthesizeVoice(name="en-us")).event())
        got = [(await read_until(wyoming, AudioStop))[1] for _ in texts]
    for text, pcm in zip(texts, got, strict=True):
        same(pcm, await direct(client, text, voice="en-us"))


async def test_a_ping_is_answered_while_it_speaks(port):
    async with connected(port) as wyoming:
        await wyoming.write_event(Synthesize(TEXT * 20).event())
        await wyoming.write_event(Ping(text="x").event())
        types, _ = await read_until(wyoming, Pong)
        assert types[-1] == "pong"


@pytest.mark.parametrize(
    ("request_event", "words"),
    [
        (Synthesize("Hi.", voice=SynthesizeVoice(name="nobody")).event(), "nobody"),
        (Event("synthesize", {"text": "<speak>Hi.</speak>", "text_format": "ssml"}), "SSML"),
    ],
)
async def test_what_cannot_be_spoken_is_an_error_and_the_connection_stays(port, request_event, words):
    async with connected(port) as wyoming:
        await wyoming.write_event(request_event)
        while not Error.is_type((event := await wyoming.read_event()).type):
            assert event is not None
        assert words in Error.from_event(event).text
        await read_until(wyoming, AudioStop)
        assert (await whole(wyoming, "Hello."))[1]


async def test_an_error_in_a_growing_text_still_ends_with_stopped(port):
    async with connected(port) as wyoming:
        types, _ = await growing(wyoming, ["Hello. "] * 1000, name="nobody")
        assert types[-2:] == ["audio-stop", "synthesize-stopped"]
        assert "error" in types


@pytest.mark.parametrize("streams", [False, True])
async def test_who_leaves_is_not_spoken_for_any_more(port, client, streams):
    before = (await client.status()).counters.get("finished", 0)
    for _ in range(20):
        async with connected(port) as wyoming:
            if streams:
                await wyoming.write_event(SynthesizeStart().event())
                await wyoming.write_event(SynthesizeChunk(TEXT * 100).event())
            else:
                await wyoming.write_event(Synthesize(TEXT * 100).event())
            await read_until(wyoming, AudioChunk)
    await idle(client)
    assert (await client.status()).counters.get("finished", 0) == before


async def test_who_takes_nothing_is_hung_up_on(port, client):
    _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(json.dumps({"type": "synthesize", "data": {"text": TEXT * 500}}).encode() + b"\n")
    await writer.drain()
    for _ in range(1000):
        if (await client.status()).queued:
            break
        await asyncio.sleep(0.01)
    await asyncio.wait_for(asyncio.shield(_idle_soon(client)), 30)
    writer.close()


async def _idle_soon(client):
    while (await client.status()).queued:
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "data",
    [
        b'POST / HTTP/1.1\r\nHost: localhost\r\n\r\n{"type":"synthesize","data":{"text":"Boo."}}\n',
        b'{"type": "synthesize"}\n',
        b'{"type": "synthesize", "data": {"text": 5}}\n',
        b'{"type": "synthesize", "data_length": 99999999999}\n',
        b'{"type": "synthesize", "payload_length": 99999999999}\n',
        b'{"type": "synthesize", "data": {"text": "x", "voice": 7}}\n',
        b"[]\n",
        b'"x"\n',
        b"\xff\xfe\n",
        b"[" * 60_000 + b"\n",
        b"x" * 200_000,
    ],
)
async def test_what_is_no_event_is_hung_up_on_and_nothing_spoken(port, client, data):
    accepted = (await client.status()).counters.get("accepted", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    assert await asyncio.wait_for(_rest(reader), 20) is None
    writer.close()
    assert (await client.status()).counters.get("accepted", 0) == accepted


async def _rest(reader):
    try:
        while await reader.read(4096):
            continue
    except ConnectionResetError:
        pass


def test_no_traceback_is_logged(speaking):
    assert "Traceback" not in "".join(path.read_text() for path in (speaking.folder / "state").rglob("*gateway*"))
