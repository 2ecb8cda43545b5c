"""The Python provider: live where it can be, by one HTTP call where not; the same sound either way."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import aclosing, asynccontextmanager

import numpy as np
import pytest

from chatterline import AsyncClient, Provider, ProviderError
from ipc.provider import frames
from workers.gateway.live_inbox import order_in

pytestmark = pytest.mark.slow

TEXT = "The boat goes against the wind, though never straight into it. Its sail is a wing that stands upright."


@pytest.fixture
async def client(speaking):
    async with AsyncClient(speaking.to) as one:
        yield one


@pytest.fixture
async def sound(client):
    """What the pipeline itself makes of the text."""
    speech = await client.speak_stream(words(), output="stream", voice="en-us")
    return b"".join([pcm async for pcm in speech.pcm()])


async def words(text=TEXT):
    for word in text.split(" "):
        yield word + " "
        await asyncio.sleep(0)


async def all_of(provider, text):
    async with aclosing(provider.speak(text)) as sounds:
        return b"".join([pcm async for pcm in sounds])


def same(one, other):
    np.testing.assert_array_equal(np.frombuffer(one, "<i2"), np.frombuffer(other, "<i2"))


@asynccontextmanager
async def proxy(url, websocket):
    """Passes HTTP on; what it does with a WebSocket is its own: ``refuse``, ``break`` before there is sound, or ``cut``
    in the middle of it."""
    host, port = url.removeprefix("http://").split(":")
    upgrades = 0

    async def pump(reader, writer, most_bytes):
        while most_bytes > 0 and (data := await reader.read(65536)):
            most_bytes -= len(data)
            writer.write(data)
            await writer.drain()

    async def serve(reader, writer):
        nonlocal upgrades
        head = await reader.readuntil(b"\r\n\r\n")
        upgrade = b"upgrade: websocket" in head.lower()
        upgrades += upgrade
        there, out = await asyncio.open_connection(host, int(port))
        try:
            if upgrade and websocket == "refuse":
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            out.write(head)
            most = {"break": (10**9, 200), "cut": (50_000, 10**9)}[websocket] if upgrade else (10**9, 10**9)
            pumps = [asyncio.create_task(pump(there, writer, most[0])), asyncio.create_task(pump(reader, out, most[1]))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for one in pumps:
                one.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            out.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", lambda: upgrades
    finally:
        server.close()


async def test_text_in_sound_out_while_it_is_written(speaking, sound):
    provider = Provider(speaking.url, voice="en-us")
    same(await all_of(provider, words()), sound)
    assert provider.fallback_reason == ""


async def test_a_whole_text_will_do(speaking, sound):
    provider = Provider(speaking.url, voice="en-us")
    assert len(await all_of(provider, TEXT)) > 0.9 * len(sound)


async def test_sound_comes_before_the_text_is_complete(speaking):
    sounded = asyncio.Event()

    async def waiting():
        yield "The boat goes against the wind, though "
        await asyncio.wait_for(sounded.wait(), 20)
        yield "never straight."

    async for _ in Provider(speaking.url).speak(waiting()):
        sounded.set()


async def test_without_the_package_websockets_it_is_one_http_call(speaking, sound, monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    provider = Provider(speaking.url, voice="en-us")
    same(await all_of(provider, words()), sound)
    assert "websockets" in provider.fallback_reason


@pytest.mark.parametrize(("websocket", "reason"), [("refuse", "502"), ("break", "before there was sound")])
async def test_where_no_websocket_gets_through_it_is_one_http_call(speaking, sound, websocket, reason):
    async def slowly():
        async for word in words("Sailing " * 30):
            yield word

    async with proxy(speaking.url, websocket) as (url, upgrades):
        provider = Provider(url, voice="en-us")
        if websocket == "refuse":
            same(await all_of(provider, words()), sound)
        else:
            assert await all_of(provider, slowly())
        assert upgrades() == 1
        assert reason in provider.fallback_reason


async def test_a_connection_that_breaks_in_the_middle_is_an_error_and_nothing_is_said_twice(speaking, client):
    got = []

    async def listen(provider):
        async for pcm in provider.speak(TEXT * 5):
            got.append(pcm)  # noqa: PERF401 (what came before the error counts)

    async with proxy(speaking.url, "cut") as (url, upgrades):
        provider = Provider(url, voice="en-us")
        with pytest.raises(ProviderError, match="broke off"):
            await listen(provider)
        assert upgrades() == 1
    assert got
    assert provider.fallback_reason == ""
    await idle(client)


@pytest.mark.parametrize("buffered", [False, True])
async def test_what_the_gateway_refuses_is_raised(speaking, monkeypatch, buffered):
    if buffered:
        monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    with pytest.raises(ProviderError, match="nobody"):
        await all_of(Provider(speaking.url, voice="nobody"), words())


@pytest.mark.parametrize("buffered", [False, True])
async def test_what_the_text_raises_is_raised(speaking, client, monkeypatch, buffered):
    async def failing():
        yield "Hello"
        raise RuntimeError("the model broke")

    if buffered:
        monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    with pytest.raises(RuntimeError, match="the model broke"):
        await all_of(Provider(speaking.url), failing())
    await idle(client)


@pytest.mark.parametrize("buffered", [False, True])
async def test_leaving_silences_what_is_left(speaking, client, monkeypatch, buffered):
    if buffered:
        monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    before = (await client.status()).counters.get("finished", 0)
    async with aclosing(Provider(speaking.url).speak(TEXT * 300)) as sounds:
        async for _ in sounds:
            break
    await idle(client)
    assert (await client.status()).counters.get("finished", 0) == before


@pytest.mark.parametrize("piece", [None, b"bytes", "half a \ud83d"])
async def test_what_is_no_text_is_its_writers_fault(speaking, piece):
    async def wrong():
        yield "Hello. "
        yield piece

    with pytest.raises((AttributeError, UnicodeEncodeError)):
        await all_of(Provider(speaking.url), wrong())


async def idle(client):
    for _ in range(1000):
        if not (await client.status()).queued:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("something is still being spoken")


async def test_several_at_once(speaking, sound):
    provider = Provider(speaking.url, voice="en-us")
    for got in await asyncio.gather(*(all_of(provider, words()) for _ in range(5))):
        same(got, sound)


async def test_nobody_there_is_an_error_that_names_the_address():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ProviderError, match=url):
        await all_of(Provider(url), words())


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"cancel"}',
        ' {"type": "flush"} ',
        '{{"type":"cancel"}',
        '{"type":"cancel"}}',
        '{"type":"cancel"}{"type":"cancel"}',
        "{",
        "x" * 40_000,
        "",
    ],
)
def test_no_frame_is_taken_for_an_order(text):
    cut = list(frames(text))
    assert "".join(cut) == text
    assert all(order_in(frame) is None for frame in cut)


@pytest.mark.parametrize("url", ["127.0.0.1:8880", "ws://127.0.0.1"])
def test_what_is_no_gateway_is_refused(url):
    with pytest.raises(ValueError, match="no gateway"):
        Provider(url)
