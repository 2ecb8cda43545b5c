"""The gateway as a program's speech provider: an async generator of text in, one of sound out.

    provider = Provider("http://127.0.0.1:8880", voice="ff_siwis")
    async for pcm in provider.speak(tokens()):      # s16le, mono, 24,000 samples a second
        play(pcm)

Text goes over the live WebSocket while it is written, and sound comes while it is made. Where that cannot be had (the
package `websockets` is not installed, a proxy lets no WebSocket through, the connection breaks before the
first sound), the text is gathered and spoken by one HTTP call. Leaving the loop silences what is left.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ipc.client_errors import ChatterlineError
from ipc.messages import SAMPLE_RATE

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

FRAME_CHARS = 16_384
READ_BYTES = 16_384
OPEN_S = 5.0
ERROR_BYTES = 2000

_ORDER = re.compile(r'\s*\{\s*"type"\s*:\s*"[^"]*"\s*\}\s*')
"""What the gateway might take for an order."""


class ProviderError(ChatterlineError):
    """The gateway is not there, refused, or broke off in the middle."""


class Provider:
    """A voice at a gateway. Any number of texts may be spoken at once.

    ``url`` is the gateway's; ``voice`` any name that it knows. ``timeout_s`` bounds every wait for it.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        url: str = "http://127.0.0.1:8880",
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float | None = None,
        api_key: str = "",
        timeout_s: float = 30.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no gateway; one is http://127.0.0.1:8880")
        self._url = url.rstrip("/")
        asked = {"voice": voice, "language": language, "speed": speed}
        self._asked = {name: value for name, value in asked.items() if value is not None}
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self.fallback_reason = ""
        """Why the last text went by HTTP; empty: it did not."""

    async def speak(self, text: str | AsyncIterable[str]) -> AsyncGenerator[bytes, None]:
        """The sound of a text, as it comes. Raises `ProviderError`, and what ``text`` raises."""
        self.fallback_reason = ""
        written = _Written(text)
        try:
            async with aclosing(self._live(written)) as sounds:
                async for pcm in sounds:
                    yield pcm
                    written.keep = False
        except _NoSocket as reason:
            self.fallback_reason = str(reason)
            async with aclosing(self._buffered(await written.all())) as sounds:
                async for pcm in sounds:
                    yield pcm
        finally:
            await written.close()

    # ---------------------------------------------------------------- WebSocket

    async def _live(self, written: _Written) -> AsyncGenerator[bytes, None]:
        """Over the live WebSocket. Raises `_NoSocket` when it cannot be had."""
        try:
            from websockets.asyncio.client import connect
            from websockets.exceptions import ConnectionClosed, WebSocketException
        except ImportError:
            raise _NoSocket("the package websockets is not installed") from None
        address = "ws" + self._url.removeprefix("http") + "/ws/tts/live"
        sounded = False
        try:
            async with connect(
                address, additional_headers=self._headers, open_timeout=OPEN_S, compression=None, max_size=None
            ) as connection:
                await connection.send(json.dumps(self._asked))
                await self._ready(connection)
                sending = asyncio.create_task(written.send(connection))
                try:
                    async for pcm in self._received(connection, written, sending):
                        sounded = True
                        yield pcm
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except ConnectionClosed as error:
            if sounded:
                raise ProviderError(f"{self._url}: the connection broke off ({error})") from error
            raise _NoSocket(f"the connection broke before there was sound ({error})") from error
        except (OSError, TimeoutError, WebSocketException) as error:
            raise _NoSocket(f"no WebSocket: {error or type(error).__name__}") from error

    async def _ready(self, connection: ClientConnection) -> None:
        async with asyncio.timeout(self._timeout_s):
            said = await connection.recv()
        try:
            message = json.loads(said)
            kind = message["type"]
        except (ValueError, KeyError, TypeError) as error:
            raise _NoSocket(f"what answers there is no live door ({said[:100]!r})") from error
        if kind != "ready":
            raise ProviderError(f"{self._url}: {message.get('message', message)}")

    async def _received(
        self, connection: ClientConnection, written: _Written, sending: asyncio.Task[None]
    ) -> AsyncGenerator[bytes, None]:
        """Sound until the end. The wait for it is bounded once all of the text is there."""
        while True:
            waiting = asyncio.ensure_future(connection.recv())
            try:
                if not sending.done():
                    await asyncio.wait([waiting, sending], return_when=asyncio.FIRST_COMPLETED)
                if written.error is not None:
                    raise written.error
                async with asyncio.timeout(self._timeout_s if sending.done() else None):
                    message = await waiting
            except TimeoutError:
                raise ProviderError(f"{self._url}: nothing came for {self._timeout_s:g} s") from None
            finally:
                waiting.cancel()
            if isinstance(message, bytes):
                yield message
                continue
            told = json.loads(message)
            if told["type"] == "end":
                return
            if told["type"] == "error":
                raise ProviderError(f"{self._url}: {told['message']}")

    # ---------------------------------------------------------------- HTTP

    async def _buffered(self, text: str) -> AsyncGenerator[bytes, None]:
        """By one HTTP call."""
        if not text.strip():
            return
        parts = urlsplit(self._url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self._timeout_s)
        body = {"model": "tts-1", "voice": "default", "input": text, "response_format": "pcm", **self._asked}
        try:
            response = await asyncio.to_thread(_post, connection, f"{parts.path}/v1/audio/speech", body, self._headers)
            sock = connection.sock
            left = b""
            while data := await asyncio.to_thread(response.read1, READ_BYTES):
                whole = left + data
                end = len(whole) - len(whole) % 2
                left = whole[end:]
                if end:
                    yield whole[:end]
        except (OSError, http.client.HTTPException) as error:
            raise ProviderError(f"{self._url}: {error or type(error).__name__}") from error
        finally:
            if (sock := connection.sock) is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            connection.close()


class _NoSocket(Exception):
    """The live WebSocket cannot be had; the message says why."""


class _Written:
    """The text as far as it is written: a task of its own takes it, so that it can go another way."""

    def __init__(self, text: str | AsyncIterable[str]) -> None:
        self._pieces: list[str] = []
        self._complete = False
        self._changed = asyncio.Condition()
        self.keep = True
        """What was sent may have to be sent another way."""
        self.error: BaseException | None = None
        self._taking = asyncio.create_task(self._take(text))

    async def _take(self, text: str | AsyncIterable[str]) -> None:
        try:
            if isinstance(text, str):
                await self._add(text)
            else:
                async for piece in text:
                    await self._add(piece)
        except Exception as error:  # noqa: BLE001 (raised where the sound is waited for)
            self.error = error
        async with self._changed:
            self._complete = True
            self._changed.notify_all()

    async def _add(self, piece: str) -> None:
        piece.encode()  # what is no text, or a lone surrogate, is the writer's fault
        async with self._changed:
            self._pieces.append(piece)
            self._changed.notify_all()

    async def send(self, connection: ClientConnection) -> None:
        """Send all of it, as it comes."""
        at = 0
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._pieces) > at or self._complete)  # noqa: B023
                if len(self._pieces) <= at:
                    break
                piece = self._pieces[at]
                self._pieces[at] = piece if self.keep else ""
            at += 1
            for frame in frames(piece):
                await connection.send(frame)
        if self.error is None:
            await connection.send("")

    async def all(self) -> str:
        """The whole text, once it is complete. Raises what its writer raised."""
        await asyncio.wait([self._taking])
        if self.error is not None:
            raise self.error
        return "".join(self._pieces)

    async def close(self) -> None:
        """Take no more."""
        self._taking.cancel()
        await asyncio.gather(self._taking, return_exceptions=True)


def frames(text: str) -> Iterator[str]:
    """A piece of text as frames, none of which is taken for an order: one that could be goes in two."""
    for start in range(0, len(text), FRAME_CHARS):
        frame = text[start : start + FRAME_CHARS]
        cut = frame.index("{") + 1 if _ORDER.fullmatch(frame) else len(frame)
        yield from filter(None, (frame[:cut], frame[cut:]))


def _post(connection: http.client.HTTPConnection, path: str, body: Any, headers: dict[str, str]) -> Any:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    if response.status == http.client.OK:
        return response
    said = response.read(ERROR_BYTES).decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(said)["error"]["message"]
    raise http.client.HTTPException(f"{response.status}: {said}")
