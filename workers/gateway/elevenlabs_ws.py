"""The door for ElevenLabs' clients over WebSocket: `stream-input` and `multi-stream-input`.

`stream-input` is one text: messages with `text`, an empty one ends it; after the last sound comes `isFinal`
and the connection is closed with 1000. `multi-stream-input` holds several, told apart by `context_id`, each
with an `isFinal` of its own; `close_socket` ends it. The key may stand in the first message. What goes wrong
is told as ``{message, error, code}``.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct, field
from starlette.datastructures import QueryParams
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from workers.gateway.answering import say_door
from workers.gateway.char_times import HOLD_S
from workers.gateway.elevenlabs_api import DOOR, VoiceSettings, format_of
from workers.gateway.elevenlabs_context import Asked, Context
from workers.gateway.errors import Busy, GatewayError, Unavailable
from workers.gateway.gate import key_of
from workers.gateway.records import record_of

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

NORMAL, POLICY, FAILED, LATER = 1000, 1008, 1011, 1013
INACTIVITY_S, MOST_INACTIVITY_S = 20.0, 180.0
FIRST_MESSAGE_S = 10.0
MOST_CONTEXTS = 10
SHORT_HOLD_S = 0.002
"""Sound waits so long for its characters' times where ``sync_alignment`` does not ask for them."""

DEFAULT_CONTEXT = "default"
REASON_BYTES = 120


class Message(Struct, frozen=True):
    """What a client sends; what else a message holds is ignored."""

    text: str | None = None
    flush: bool | None = None
    context_id: Annotated[str, Meta(max_length=128)] | None = None
    contextId: Annotated[str, Meta(max_length=128)] | None = None
    close_context: bool | None = None
    close_socket: bool | None = None
    voice_settings: VoiceSettings | None = None
    xi_api_key: str | None = None
    xi_api_key_dashed: str | None = field(default=None, name="xi-api-key")
    authorization: str | None = None

    @property
    def context(self) -> str:
        """Which text it is about."""
        return self.context_id or self.contextId or DEFAULT_CONTEXT

    @property
    def key(self) -> str:
        """The API key, if it stands here."""
        return self.xi_api_key or self.xi_api_key_dashed or (self.authorization or "").removeprefix("Bearer ")


class Session:
    """One connection."""

    def __init__(self, gateway: Gateway, socket: WebSocket, multi: bool) -> None:
        self._gateway = gateway
        self._socket = socket
        self._multi = multi
        self._query = socket.query_params
        self._contexts: dict[str, Context] = {}
        self._running: dict[asyncio.Task[None], str] = {}
        self._speed: float | None = None
        self._inactivity_s = INACTIVITY_S
        self._complete = False
        """Nothing more is to come from the client."""

    async def run(self) -> None:
        """Serve it until it is over, and close it."""
        try:
            asked = await self._asked()
            await self._serve(asked)
            await self._close(NORMAL)
        except GatewayError as error:
            await self._fail(error)
        except (WebSocketDisconnect, ConnectionError):
            pass
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _asked(self) -> Asked:
        """What the address asks for, checked."""
        query = self._query
        voice = self._socket.path_params["voice"]
        hold_s = HOLD_S if query.get("sync_alignment") == "true" else SHORT_HOLD_S
        wanted = format_of(query.get("output_format"))
        asked = Asked(voice, query.get("language_code"), None, _seed(query), wanted, hold_s)
        self._inactivity_s = _inactivity(query)
        await self._gateway.speaking.choose(asked.voice, asked.language)
        return asked

    async def _serve(self, asked: Asked) -> None:
        """Take messages, and look after the texts that are spoken."""
        known = self._gateway.keys.known(key_of(self._socket.scope, self._socket.headers))
        first = True
        reading = asyncio.create_task(self._read(FIRST_MESSAGE_S))
        try:
            while not (self._complete and not self._running):
                await asyncio.wait({reading, *self._running}, return_when=asyncio.FIRST_COMPLETED)
                await self._reap()
                if not reading.done():
                    continue
                message = reading.result()
                if first and self._gateway.keys.wanted and not known and not self._gateway.keys.known(message.key):
                    raise GatewayError(401, "a key is needed, as header xi-api-key or in the first message")
                first = False
                self._heed(message, asked)
                reading = asyncio.create_task(self._read(None if self._complete else self._inactivity_s))
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, within_s: float | None) -> Message:
        try:
            async with asyncio.timeout(within_s):
                message = await self._socket.receive()
        except TimeoutError:
            raise GatewayError(408, f"nothing came for {within_s:g} s", code="input_timeout_exceeded") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        try:
            return msgspec.json.decode(message.get("text") or message.get("bytes") or b"", type=Message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise GatewayError(400, f"this is no message of the protocol: {error}", code="invalid_message") from error

    def _heed(self, message: Message, asked: Asked) -> None:
        """Do what a message says."""
        if self._complete:
            return
        if message.voice_settings is not None:
            self._speed = message.voice_settings.speed
        if message.close_socket:
            self._finish()
        elif self._multi:
            self._heed_one_of_many(message, asked)
        else:
            context = self._context(DEFAULT_CONTEXT, asked)
            if message.text == "":
                self._finish()
            elif message.text:
                context.write(message.text)
            if message.flush and message.text != "":
                context.flush()

    def _heed_one_of_many(self, message: Message, asked: Asked) -> None:
        if message.close_context:
            if message.context in self._contexts:
                self._contexts.pop(message.context).close()
            return
        if not message.text and message.context not in self._contexts:
            return  # it only keeps the connection alive
        context = self._context(message.context, asked)
        if message.text:
            context.write(message.text)
        if message.flush:
            context.flush()

    def _finish(self) -> None:
        self._complete = True
        for context in self._contexts.values():
            context.end()

    def _context(self, name: str, asked: Asked) -> Context:
        """The text of this name, which begins here if there is none."""
        known = self._contexts.get(name)
        if known is not None and not known.ended:
            return known
        if len(self._running) >= MOST_CONTEXTS:
            raise GatewayError(429, f"{MOST_CONTEXTS} contexts are open, which is all that one connection may have")
        mark = {"contextId": name} if self._multi else {}
        context = Context(self._gateway, replace(asked, speed=self._speed), self._say, mark)
        self._contexts[name] = context
        self._running[asyncio.create_task(context.run())] = name
        return context

    async def _reap(self) -> None:
        """Look after texts that are over."""
        for task in [task for task in self._running if task.done()]:
            name = self._running.pop(task)
            known = self._contexts.get(name)
            if known is not None and known.ended:
                del self._contexts[name]
            try:
                task.result()
            except GatewayError as error:
                if not self._multi:
                    raise
                await self._say(_told(error) | {"contextId": name})
                await self._say({"audio": None, "isFinal": True, "contextId": name})
            self._complete = self._complete or not self._multi

    # ---------------------------------------------------------------- frames

    async def _say(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._gateway.config.stall_s):
                await self._socket.send_text(msgspec.json.encode(message).decode())
        except TimeoutError:
            raise WebSocketDisconnect(POLICY, "the client takes nothing") from None

    async def _fail(self, error: GatewayError) -> None:
        if (record := record_of.get()) is not None:
            record.error = record.error or error.message
        try:
            await self._say(_told(error))
            await self._close(_close_code(error), error.message)
        except (WebSocketDisconnect, RuntimeError, ConnectionError):
            return

    async def _close(self, code: int, reason: str = "") -> None:
        await self._socket.close(code, reason.encode()[:REASON_BYTES].decode(errors="ignore"))


def routes(gateway: Gateway) -> list[BaseRoute]:
    """The paths."""

    async def serve(socket: WebSocket, multi: bool) -> None:
        say_door(DOOR)
        with gateway.speaking.socket():
            await socket.accept()
            await Session(gateway, socket, multi).run()

    async def one(socket: WebSocket) -> None:
        await serve(socket, multi=False)

    async def many(socket: WebSocket) -> None:
        await serve(socket, multi=True)

    return [
        WebSocketRoute("/v1/text-to-speech/{voice:path}/stream-input", one),
        WebSocketRoute("/v1/text-to-speech/{voice:path}/multi-stream-input", many),
    ]


def _told(error: GatewayError) -> dict[str, Any]:
    return {"message": error.message, "error": error.code, "code": _close_code(error)}


def _close_code(error: GatewayError) -> int:
    if isinstance(error, Busy | Unavailable):
        return LATER
    return FAILED if error.status >= 500 else POLICY


def _seed(query: QueryParams) -> int | None:
    text = query.get("seed", "")
    if text and not (text.isascii() and text.isdecimal() and int(text) < 2**63):
        raise GatewayError(400, f"seed: {text[:30]!r} is no whole number", param="seed")
    return int(text) if text else None


def _inactivity(query: QueryParams) -> float:
    text = query.get("inactivity_timeout", "")
    if not text:
        return INACTIVITY_S
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= MOST_INACTIVITY_S):
        most = f"{MOST_INACTIVITY_S:g}"
        raise GatewayError(400, f"inactivity_timeout: {text[:30]!r} is no number of seconds up to {most}")
    return float(text)
