"""Many at once, and many who leave: fair, nothing lost, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.engines.sine import expected
from tests.harness import Pipeline, own_memory_bytes, until
from tests.workers.gateway.standalone import WEB

ENGINE = "sine"
SETTINGS = {"gateway.max_sockets": 300}
AT_ONCE, BEYOND, PLACES = 200, 20, 64
TEXT = "a tone for everybody who asks for one"
SOUND = expected(len(TEXT)).tobytes()
LONG = "on and on " * 2000
MIB = 2**20

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Asked:
    """One request of many: when its answer began, and what it was."""

    streams: Streams
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    began_s: float = 0.0
    body: bytes = b""

    async def read(self) -> None:
        """The whole answer."""
        reader, writer = self.streams
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.began_s = time.monotonic()
        self.status = int(head[0].split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        if "content-length" in self.headers:
            self.body = await reader.readexactly(int(self.headers["content-length"]))
        else:
            while size := int(await reader.readline(), 16):
                self.body += await reader.readexactly(size)
                await reader.readline()
        writer.close()


async def ask(url: str, body: dict[str, object], path: str = "/v1/audio/speech") -> Asked:
    """Send a request; its answer is not read yet. A small buffer, so that the kernel takes little of it."""
    host, port = url.removeprefix("http://").split(":")
    streams = await asyncio.open_connection(host, int(port), limit=2**16)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(data)}\r\n\r\n"
    streams[1].write(head.encode() + data)
    await streams[1].drain()
    return Asked(streams)


def figure(speaking: Pipeline, name: str) -> float:
    """One of the gateway's figures."""
    found = re.search(rf"^{name} (\S+)$", WEB.get(f"{speaking.url}/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


@dataclass
class Growing:
    """A live listener whose text is not complete before it is told so."""

    socket: ClientConnection
    began_s: float = 0.0
    sound: bytes = b""

    async def hear(self) -> None:
        """All of its sound."""
        async for message in self.socket:
            if isinstance(message, bytes):
                self.began_s = self.began_s or time.monotonic()
                self.sound += message
            else:
                assert json.loads(message)["type"] == "end", message


async def test_two_hundred_at_once_are_all_served_in_their_turn_and_no_more(speaking: Pipeline) -> None:
    body: dict[str, object] = {"input": TEXT, "response_format": "pcm"}
    async with AsyncExitStack() as stack:
        asked: list[Growing] = []
        for _ in range(AT_ONCE):
            address = f"{speaking.url.replace('http', 'ws', 1)}/ws/tts/live"
            asked.append(Growing(await stack.enter_async_context(connect(address, compression=None))))
            for message in ('{"framing": "binary"}', TEXT):
                await asked[-1].socket.send(message)
        hearing = [asyncio.create_task(one.hear()) for one in asked]
        all_there = partial(until, lambda: figure(speaking, "chatterline_in_flight") == AT_ONCE, "all are under way")
        await asyncio.to_thread(all_there)
        refused = [await ask(speaking.url, body) for _ in range(BEYOND)]
        await asyncio.gather(*(one.read() for one in refused))
        assert {one.status for one in refused} == {429}
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        for one in asked:
            await one.socket.send("")
        async with asyncio.timeout(60):
            await asyncio.gather(*hearing)
    assert all(one.sound == SOUND for one in asked)
    check_turns([one.began_s for one in asked])
    served = await ask(speaking.url, body)
    await served.read()
    assert served.body == SOUND


async def test_two_hundred_requests_over_http_all_get_their_sound_in_their_turn(speaking: Pipeline) -> None:
    asked = [await ask(speaking.url, {"input": TEXT, "response_format": "pcm"}) for _ in range(AT_ONCE)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(one.read() for one in asked))
    assert {one.status for one in asked} == {200}
    assert all(one.body == SOUND for one in asked)
    check_turns([one.began_s for one in asked])


def check_turns(began_s: list[float]) -> None:
    """Who asked first was served first, but for the `PLACES` that are served at once."""
    order = sorted(range(len(began_s)), key=lambda number: began_s[number])
    waited_longer = [place - number for place, number in enumerate(order)]
    assert max(waited_longer) < PLACES, f"somebody waited for many who came later: {waited_longer}"


@asynccontextmanager
async def listening(speaking: Pipeline, way: str) -> AsyncIterator[None]:
    """A listener through one of the doors that has heard its first sound; left as the block is."""
    ws = speaking.url.replace("http://", "ws://")
    if way == "live":
        async with connect(f"{ws}/ws/tts/live") as socket:
            for message in ('{"framing": "binary"}', LONG):
                await socket.send(message)
            while not isinstance(await socket.recv(), bytes):
                continue
            yield
            socket.transport.abort()
    elif way == "elevenlabs socket":
        async with connect(f"{ws}/v1/text-to-speech/default/stream-input?output_format=pcm_24000") as socket:
            await socket.send(json.dumps({"text": LONG}))
            await socket.recv()
            yield
            socket.transport.abort()
    else:
        path, name = ("/v1/audio/speech", "input") if way == "openai" else ("/v1/text-to-speech/default/stream", "text")
        one = await ask(speaking.url, {name: LONG, "response_format": "mp3"}, path)
        await one.streams[0].readuntil(b"\r\n\r\n")
        yield
        one.streams[1].transport.abort()


async def leave(speaking: Pipeline, count: int) -> None:
    """So many listeners, one after the other, each in mid-speech."""
    for number in range(count):
        ways = ("openai", "elevenlabs", "elevenlabs socket", "live")
        async with asyncio.timeout(20), listening(speaking, ways[number % len(ways)]):
            pass


@dataclass(frozen=True)
class Held:
    """What the gateway holds while nobody asks."""

    tasks: float
    files: int
    memory: int

    @classmethod
    def by(cls, speaking: Pipeline) -> Held:
        process = psutil.Process(speaking.pid("gateway"))
        return cls(figure(speaking, "chatterline_gateway_tasks"), process.num_fds(), own_memory_bytes(process))


@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="the system tells no number of open files")
async def test_when_a_hundred_leave_in_mid_speech_nothing_goes_on_and_nothing_is_left(speaking: Pipeline) -> None:
    def quiet() -> bool:
        with speaking.client() as direct:
            status = direct.status()
        streams = sum(stage.streams for stage in status.stages)
        return status.queued == 0 and streams == 0 and figure(speaking, "chatterline_in_flight") == 0

    held = []
    with speaking.client() as direct:
        before = direct.status().counters.get("cancelled", 0)
    for count in (40, 100):  # the first warm it up: buffers, codecs, the allocator's arenas
        await leave(speaking, count)
        await asyncio.to_thread(until, quiet, "nothing goes on for nobody")
        held.append(await asyncio.to_thread(Held.by, speaking))
    with speaking.client() as direct:
        assert direct.status().counters["cancelled"] == before + 140
    warm, after = held
    assert abs(after.tasks - warm.tasks) <= 4, held
    assert abs(after.files - warm.files) <= 8, held
    assert after.memory - warm.memory < 4 * MIB, held


async def test_who_reads_nothing_costs_nobody_else_and_little_memory(speaking: Pipeline) -> None:
    process = psutil.Process(speaking.pid("gateway"))
    before = own_memory_bytes(process)
    slow = [await ask(speaking.url, {"input": LONG, "response_format": "pcm"}) for _ in range(8)]
    for one in slow:
        await one.streams[0].readuntil(b"\r\n\r\n")
        one.streams[0]._transport.pause_reading()  # type: ignore[attr-defined]
    quick = [await ask(speaking.url, {"input": TEXT, "response_format": "pcm"}) for _ in range(8)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(one.read() for one in quick))
    assert all(one.body == SOUND for one in quick)
    with speaking.client() as direct:
        assert direct.status().queued == len(slow)
    assert own_memory_bytes(process) - before < 24 * MIB
    for one in slow:
        one.streams[1].transport.abort()
