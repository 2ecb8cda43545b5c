"""A continuous sine as the engine's output, through the doors that stream text in: every sample arrives, once."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from websockets.asyncio.client import connect
from wyoming.audio import AudioChunk
from wyoming.client import AsyncTcpClient
from wyoming.tts import SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped

from chatterline import Provider
from tests.engines.sine import expected
from tests.harness import until

pytestmark = pytest.mark.slow

ENGINE = "sine"
SETTINGS = {"gateway.wyoming": "127.0.0.1:0"}
TEXT = "a sine has neither words nor ends"


async def pieces():
    for start in range(0, len(TEXT), 3):
        yield TEXT[start : start + 3]


def is_the_sine(pcm):
    np.testing.assert_array_equal(np.frombuffer(pcm, "<i2"), expected(len(TEXT)))


@pytest.mark.parametrize("framing", ["json", "binary"])
async def test_over_the_live_door(speaking, framing):
    async with connect(speaking.url.replace("http", "ws") + "/ws/tts/live") as socket:
        await socket.send(json.dumps({"framing": framing}))
        async for piece in pieces():
            await socket.send(piece)
        await socket.send("")
        is_the_sine(b"".join([message async for message in socket if isinstance(message, bytes)]))


@pytest.mark.parametrize("buffered", [False, True])
async def test_by_the_provider(speaking, monkeypatch, buffered):
    if buffered:
        monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    provider = Provider(speaking.url)
    is_the_sine(b"".join([pcm async for pcm in provider.speak(pieces())]))
    assert bool(provider.fallback_reason) == buffered


async def test_over_wyoming(speaking):
    found = until(lambda: re.search(r"tcp://127\.0\.0\.1:(\d+) protocol=wyoming", speaking.log()), "Wyoming listens")
    pcm = b""
    async with AsyncTcpClient("127.0.0.1", int(found[1])) as client:
        await client.write_event(SynthesizeStart().event())
        async for piece in pieces():
            await client.write_event(SynthesizeChunk(piece).event())
        await client.write_event(SynthesizeStop().event())
        while (event := await client.read_event()) is not None and not SynthesizeStopped.is_type(event.type):
            pcm += AudioChunk.from_event(event).audio if AudioChunk.is_type(event.type) else b""
    is_the_sine(pcm)
