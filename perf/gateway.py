"""How long after the dispatcher's first sound the first byte of it comes out of each door of the gateway.

The gateway runs in a process of its own and reaches the pipeline through a relay in this one, which notes when the
first sound of an utterance leaves the dispatcher; the client is in this process as well, so that both times come from
one clock. One request at a time, each of another text, over a connection that is there already where a door keeps one
(HTTP); what is counted ends with the first byte of sound, which for WAV, FLAC and Opus is the header with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from websockets.asyncio.client import connect
from wyoming.audio import AudioChunk
from wyoming.client import AsyncTcpClient
from wyoming.tts import Synthesize

from ipc.client import AsyncClient
from launch.table import environment
from perf import common, running, texts
from perf.common import Row
from pipeline.config_rules import split_tcp

WARM = 5
START_S = 30.0
ANSWER_S = 20.0
RELAY_BYTES = 65536
_SOUND = b'"type":"audio"'
_LISTENING = re.compile(r"listening  url=http://(\S+?):(\d+)")

Ask = Callable[[str], Awaitable[float]]


class Relay:
    """Between gateway and dispatcher. ``sounded_s``: when the first sound since `reset` passed."""

    def __init__(self, to: str) -> None:
        self._host, self._port = split_tcp(to)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.sounded_s: float | None = None
        self.to = ""

    async def start(self) -> None:
        """Listen at `to`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.to = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def reset(self) -> None:
        """What comes now belongs to the next request."""
        self.sounded_s = None

    async def close(self) -> None:
        """Hang up."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_in, there_out = await asyncio.open_connection(self._host, self._port)
        for pump in (self._pump(reader, there_out, False), self._pump(there_in, writer, True)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, watched: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(RELAY_BYTES):
                if watched and self.sounded_s is None and _SOUND in data:
                    self.sounded_s = time.perf_counter()
                writer.write(data)
                await writer.drain()
        writer.close()


class Http:
    """One connection that is kept; as little of a client as can be."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def post(self, path: str, body: dict[str, object]) -> Ask:
        """A door: the request with the text put into ``body`` where it says TEXT."""
        name = next(key for key, value in body.items() if value == "TEXT")

        async def ask(text: str) -> float:
            return await self._post(path, json.dumps(body | {name: text}).encode())

        return ask

    async def _post(self, path: str, body: bytes) -> float:
        """When the first byte of the answer's body came; the rest is read."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer.split(b"\r\n")[0]:
            raise common.PerfError(f"{path} answered {answer.splitlines()[0].decode()}")
        first_s = 0.0
        while size := int(await reader.readline(), 16):
            first_s = first_s or time.perf_counter()
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
        return first_s


def live(host: str, port: int) -> Ask:
    """The live WebSocket."""

    async def ask(text: str) -> float:
        async with connect(f"ws://{host}:{port}/ws/tts/live") as socket:
            await socket.send("{}")
            await socket.recv()
            await socket.send(text)
            await socket.send("")
            first_s = 0.0
            async for message in socket:
                if isinstance(message, bytes):
                    first_s = first_s or time.perf_counter()
            return first_s

    return ask


def elevenlabs_socket(host: str, port: int) -> Ask:
    """ElevenLabs' WebSocket."""
    url = f"ws://{host}:{port}/v1/text-to-speech/default/stream-input?output_format=pcm_24000"

    async def ask(text: str) -> float:
        async with connect(url) as socket:
            for piece in (" ", text + " ", ""):
                await socket.send(json.dumps({"text": piece}))
            first_s = 0.0
            async for message in socket:
                if not first_s and json.loads(message)["audio"]:
                    first_s = time.perf_counter()
            return first_s

    return ask


def wyoming(host: str, port: int) -> Ask:
    """Wyoming."""

    async def ask(text: str) -> float:
        async with AsyncTcpClient(host, port) as client:
            await client.write_event(Synthesize(text).event())
            first_s = 0.0
            while (event := await client.read_event()) is not None and event.type != "audio-stop":
                if AudioChunk.is_type(event.type):
                    first_s = first_s or time.perf_counter()
            return first_s

    return ask


def doors(host: str, port: int, wyoming_port: int) -> dict[str, Ask]:
    """Every door by name."""
    http = Http(host, port)
    found = {
        f"OpenAI, {name}": http.post("/v1/audio/speech", {"input": "TEXT", "response_format": name})
        for name in ("pcm", "wav", "flac", "mp3", "opus", "aac")
    }
    sse: dict[str, object] = {"input": "TEXT", "response_format": "pcm", "stream_format": "sse"}
    found["OpenAI, SSE with pcm"] = http.post("/v1/audio/speech", sse)
    for name in ("pcm_24000", "pcm_16000", "mp3_44100_128"):
        path = f"/v1/text-to-speech/default/stream?output_format={name}"
        found[f"ElevenLabs, {name}"] = http.post(path, {"text": "TEXT"})
    found["ElevenLabs, WebSocket"] = elevenlabs_socket(host, port)
    found["live WebSocket"] = live(host, port)
    found["Wyoming"] = wyoming(host, wyoming_port)
    return found


@asynccontextmanager
async def gateway(to: str) -> AsyncIterator[tuple[str, int, int]]:
    """A gateway in front of ``to``: its host, its port, and Wyoming's."""
    wyoming_port = running.free_port()
    command = [sys.executable, "-m", "workers.gateway", "--to", to, "--set", "gateway.bind=127.0.0.1:0"]
    command += ["--set", f"gateway.wyoming=127.0.0.1:{wyoming_port}"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment())
    assert process.stderr is not None
    reading: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(START_S):
            while (found := _LISTENING.search((line := await process.stderr.readline()).decode())) is None:
                if not line:
                    raise common.PerfError("the gateway did not start")
        reading = asyncio.create_task(process.stderr.read())
        yield found[1], int(found[2]), wyoming_port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        if reading is not None:
            await reading


async def measure(given: argparse.Namespace) -> None:
    """All doors against one pipeline."""
    began = common.Began()
    settings: Row = {"model.engine": given.engine, "player.output": "none"}
    rows, rng = [], random.Random(given.seed)
    with running.pipeline(given.to, settings) as place:
        async with AsyncClient(place.to) as client:
            await (await client.speak("Warm.", output="stream")).wait()
        relay = Relay(place.to)
        await relay.start()
        async with gateway(relay.to) as (host, port, wyoming_port):
            for name, ask in doors(host, port, wyoming_port).items():
                values = []
                for number in range(WARM + given.requests):
                    relay.reset()
                    async with asyncio.timeout(ANSWER_S):
                        first_s = await ask(f"{texts.sentence(rng)} {texts.sentence(rng)}")
                    if relay.sounded_s is None or not first_s:
                        raise common.PerfError(f"{name}: no sound came")
                    if number >= WARM:
                        values.append((first_s - relay.sounded_s) * 1000)
                rows.append(common.quantiles(name, values))
        await relay.close()
    title = "the dispatcher's first sound → first byte out of the door"
    figures: Row = {"slowest_door_p50_ms": max(float(row["p50_ms"] or 0) for row in rows)}
    common.report("gateway", given, {title: rows}, figures, place.settings, began)


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__)
    parser.add_argument("--requests", type=int, default=100, help="through each door (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, requests=1)
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
