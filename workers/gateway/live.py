"""The live door: text in as it is written, sound out as it is made, over one WebSocket. docs/gateway.md has the
messages.

    /ws/tts/live     init (JSON) → ready → text frames, an empty one ends → audio + binary frame…, progress, end

One task reads frames, one writes their text into the pipeline, one sends what comes back; so a cancel is
heeded however much text waits, and a client that is gone is noticed at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ipc.client_track import Sound
from ipc.messages import SAMPLE_RATE, Aligned, Cancelled, Event, Failed, Finished, Progress, Rejected
from workers.gateway.errors import GatewayError, Unavailable
from workers.gateway.gate import SUBPROTOCOLS
from workers.gateway.live_inbox import Inbox, Mark
from workers.gateway.records import record_of
from workers.gateway.speaking import Speech

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

DOOR = "live"
INIT_S = 30.0
"""How long a client may take to say what it wants."""

REFUSED, WRONG_KIND, BROKEN, LATER = 1008, 1003, 1011, 1013
"""Close codes: the request, its kind of frame, us, and come back later."""


class Init(msgspec.Struct):
    """What the client asks for in its first message; what it does not know of is ignored.

    ``framing`` binary: bare PCM, and of the messages only the last. ``alignment``: words come with their samples.
    ``reuse``: after `end` the connection stays, and the next text begins another utterance.
    """

    voice: str | None = None
    language: str | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    settings: dict[str, bool | int | float | str] = {}
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    framing: Literal["json", "binary"] = "json"
    alignment: bool = False
    reuse: bool = False


def routes(gateway: Gateway) -> Sequence[BaseRoute]:
    """The live door."""

    async def live(socket: WebSocket) -> None:
        if (record := record_of.get()) is not None:
            record.door = DOOR
        with gateway.speaking.socket():
            await socket.accept(_subprotocol(socket))
            await Live(gateway, socket).run()

    return [WebSocketRoute("/ws/tts/live", live)]


class Live:
    """One connection."""

    def __init__(self, gateway: Gateway, socket: WebSocket) -> None:
        self._gateway = gateway
        self._socket = socket
        self._inbox = Inbox(gateway.pipeline.text.max_chars)
        self._init = Init()

    async def run(self) -> None:
        """Serve it until it is over, and close it."""
        try:
            self._init = await self._read_init()
            await self._say("ready", sample_rate=SAMPLE_RATE, format="pcm_s16le")
            reading = asyncio.create_task(self._inbox.fill(self._socket))
            try:
                await self._speak_all()
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            await self._close(1000)
        except GatewayError as error:
            await self._fail(error)
        except (WebSocketDisconnect, ConnectionError):
            return

    async def _speak_all(self) -> None:
        """One utterance; with ``reuse`` one after the other."""
        while not self._inbox.gone:
            mark = await self._inbox.begin()
            if mark is None:
                await self._speak()
            elif mark is Mark.END or (mark is Mark.CANCEL and not self._init.reuse):
                await self._say("end", total_chunks=0, last=True)
            if not self._init.reuse:
                return

    async def _speak(self) -> None:
        init = self._init
        async with self._gateway.speak(
            None,
            voice=init.voice,
            language=init.language,
            speed=init.speed,
            seed=init.seed,
            settings=init.settings,
            door=DOOR,
        ) as speech:
            telling = asyncio.create_task(self._tell_all(speech))
            feeding = asyncio.create_task(self._feed(speech))
            stopping = asyncio.create_task(self._inbox.stop())
            try:
                await _first(telling, feeding, stopping)
                if stopping.done() and not self._inbox.gone:
                    feeding.cancel()
                    await speech.cancel()
                if telling.done() or not self._inbox.gone:
                    await telling
            finally:
                await _leave(telling, feeding, stopping)
                self._inbox.next_utterance()

    async def _feed(self, speech: Speech) -> None:
        """Hand over what comes until it is complete."""
        while True:
            item = await self._inbox.take()
            try:
                if isinstance(item, str):
                    await speech.write(item)
                elif item is Mark.FLUSH:
                    await speech.flush()
                else:
                    await speech.end()
                    return
            except GatewayError as error:
                if speech.over or error.param == "id":
                    return  # the events tell how it ended
                raise

    async def _tell_all(self, speech: Speech) -> None:
        """Everything that happens, in the client's framing."""
        chunks = 0
        async for event in speech:
            if not isinstance(event, Sound):
                await self._tell(event, chunks)
                continue
            if self._init.framing == "json":
                await self._say("audio", chunk_id=chunks, size=len(event.pcm))
            await self._send(self._socket.send_bytes(event.pcm))
            chunks += 1

    async def _tell(self, event: Event, chunks: int) -> None:
        match event:
            case Progress():
                await self._say("progress", chars=event.chars, seconds=event.seconds)
            case Aligned() if self._init.alignment:
                await self._say("aligned", chars=event.chars, samples=event.samples, exact=event.exact)
            case Failed(final=False):
                await self._say("error", message=f"characters {event.chars[0]} to {event.chars[1]}: {event.reason}")
            case Finished(samples=0, failed_segments=failed) if failed:
                raise GatewayError(500, "nothing of it could be spoken")
            case Finished():
                await self._say("progress", chars=event.chars, seconds=event.seconds)
                await self._say("end", total_chunks=chunks, last=True)
            case Cancelled() if self._inbox.stopped is Mark.CANCEL:
                await self._say("end", total_chunks=chunks, cancelled=True, heard=event.heard, last=True)
            case Cancelled():
                raise Unavailable("the speech was cancelled by somebody else")
            case Failed():
                raise GatewayError(500, f"it cannot be spoken: {event.reason}")
            case Rejected(field="id"):
                pass  # the text was ended after a long silence; its last event follows
            case Rejected():
                raise GatewayError(400, event.reason, param=event.field)
            case _:
                pass

    # ---------------------------------------------------------------- frames

    async def _read_init(self) -> Init:
        """What is asked for, checked. Raises `GatewayError`."""
        try:
            async with asyncio.timeout(INIT_S):
                message = await self._socket.receive()
        except TimeoutError:
            raise GatewayError(400, f"no init came within {INIT_S:g} s") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        try:
            init = msgspec.json.decode(message.get("text") or b"", type=Init)
        except (msgspec.DecodeError, RecursionError) as error:
            raise GatewayError(400, f'the first message is a JSON object, as in {{"voice": "…"}}: {error}') from error
        await self._gateway.speaking.choose(init.voice, init.language)
        return init

    async def _say(self, type: str, last: bool = False, **fields: Any) -> None:
        """A message; in binary framing only the last."""
        if self._init.framing == "json" or last:
            await self._send(self._socket.send_text(msgspec.json.encode({"type": type, **fields}).decode()))

    async def _send(self, sending: Coroutine[Any, Any, None]) -> None:
        """Hang up on whoever takes nothing for `gateway.stall_s`."""
        stall_s = self._gateway.config.stall_s
        try:
            async with asyncio.timeout(stall_s):
                await sending
        except TimeoutError:
            if (record := record_of.get()) is not None:
                record.error = f"the client took nothing for {stall_s:g} s"
            raise WebSocketDisconnect(REFUSED, "nothing was taken") from None

    async def _fail(self, error: GatewayError) -> None:
        if (record := record_of.get()) is not None:
            record.error = error.message
        code = LATER if error.status in (429, 503) else BROKEN if error.status >= 500 else REFUSED
        try:
            await self._say("error", message=error.message, last=True)
            await self._close(code, error.message)
        except (WebSocketDisconnect, RuntimeError, ConnectionError):
            return

    async def _close(self, code: int, reason: str = "") -> None:
        if self._socket.application_state == WebSocketState.CONNECTED and not self._inbox.gone:
            await self._socket.close(code, reason.encode()[:120].decode(errors="ignore"))


async def _first(telling: asyncio.Task[None], feeding: asyncio.Task[None], stopping: asyncio.Task[Mark]) -> None:
    """Wait until it was told or is stopped. Raises what goes wrong with handing over the text."""
    await asyncio.wait([telling, feeding, stopping], return_when=asyncio.FIRST_COMPLETED)
    if feeding.done() and not telling.done() and not stopping.done():
        feeding.result()
        await asyncio.wait([telling, stopping], return_when=asyncio.FIRST_COMPLETED)


async def _leave(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _subprotocol(socket: WebSocket) -> str | None:
    """One of those that the client offers, as browsers insist on an answer; the key only if there is no other."""
    offered = sorted(socket.scope.get("subprotocols", ()), key=lambda one: one.startswith(SUBPROTOCOLS))
    return next(iter(offered), None)
