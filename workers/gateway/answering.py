"""Speech as the answer to an HTTP request.

The answer begins with the first bytes of sound, so that what fails before is told with its own status.
Whoever hangs up, or takes nothing for ``stall_s``, ends the speech at once. What fails later cuts the
connection, so that nobody takes half an answer for a whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from workers.gateway.encoding import Format, encoder
from workers.gateway.errors import GatewayError
from workers.gateway.records import Record, record_of
from workers.gateway.speaking import Speech

_Body = TypeVar("_Body")
Body = Callable[[Speech], AsyncGenerator[bytes, None]]


class SpeechResponse:
    """Streams what ``body`` makes of a speech. ``open`` begins it."""

    def __init__(
        self,
        open: Callable[[], AbstractAsyncContextManager[Speech]],
        body: Body,
        media_type: str,
        stall_s: float,
    ) -> None:
        self._open = open
        self._body = body
        self._media_type = media_type
        self._stall_s = stall_s
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of.get()
        work = asyncio.create_task(self._answer(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                _note(record, "the client left")
                return
            work.result()
        except TimeoutError:
            _note(record, f"the client took nothing for {self._stall_s:g} s")
        except GatewayError as error:
            _note(record, error.message)
            if not self._begun:
                raise
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _answer(self, send: Send) -> None:
        async with self._open() as speech, aclosing(self._body(speech)) as body:
            async for data in body:
                if data:
                    await self._begin(send)
                    await self._put(send, data, more=True)
        await self._begin(send)
        await self._put(send, b"", more=False)

    async def _begin(self, send: Send) -> None:
        if self._begun:
            return
        self._begun = True
        headers = [(b"content-type", self._media_type.encode()), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _put(self, send: Send, data: bytes, more: bool) -> None:
        async with asyncio.timeout(self._stall_s):
            await send({"type": "http.response.body", "body": data, "more_body": more})


async def encoded(speech: Speech, wanted: Format) -> AsyncGenerator[bytes, None]:
    """The speech's sound in a format, as it comes."""
    stream = encoder(wanted)
    try:
        async with aclosing(speech.sounds()) as sounds:
            async for sound in sounds:
                yield stream.feed(sound.pcm)
        yield stream.end()
    finally:
        stream.close()


async def read_json(request: Request, kind: type[_Body]) -> _Body:
    """The body of a request. Raises `GatewayError` (400) that names the field at fault."""
    raw = await request.body()
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        param = where.strip("`.").split("[")[0].split(".")[0] or _named(what)
        raise GatewayError(400, f"{param}: {what}" if param else what, param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GatewayError(400, f"the body is no JSON: {error}") from error


def _named(message: str) -> str:
    """The field that a message about a missing one names."""
    return message.split("`")[1] if "required field `" in message else ""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _note(record: Record | None, text: str) -> None:
    if record is not None:
        record.error = record.error or text


def say_door(name: str) -> None:
    """Who answers, for logs and figures."""
    if (record := record_of.get()) is not None:
        record.door = name
