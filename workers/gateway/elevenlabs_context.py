"""One growing text of ElevenLabs' WebSocket: what is written to it, and the messages that come of it."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.gateway.char_times import CharTimes, with_times
from workers.gateway.encoding import Encoder, Format, encoder
from workers.gateway.errors import GatewayError
from workers.gateway.speaking import Speech

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

DOOR = "elevenlabs"
FLUSH, END = "flush", "end"

Say = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Asked:
    """How it is to be spoken."""

    voice: str
    language: str | None
    speed: float | None
    seed: int | None
    format: Format
    hold_s: float
    """How long sound may wait for the times of its characters."""


class Context:
    """From its first text to its last message. ``mark`` is added to every message that it says."""

    def __init__(self, gateway: Gateway, asked: Asked, say: Say, mark: dict[str, Any]) -> None:
        self._gateway = gateway
        self._asked = asked
        self._say = say
        self._mark = mark
        self._waiting: deque[tuple[str, str]] = deque()
        self._chars = 0
        self._came = asyncio.Event()
        self._stop = asyncio.Event()
        self._times = CharTimes()
        self._unflushed = False
        self.ended = False
        """Nothing more may be written."""

    # ---------------------------------------------------------------- what the client says

    def write(self, text: str) -> None:
        """More text. Raises `GatewayError` when too much waits."""
        if self.ended:
            return
        most = self._gateway.pipeline.text.max_chars
        if self._chars + len(text) > most:
            raise GatewayError(413, f"more than {most:,} characters wait to be spoken (text.max_chars)", param="text")
        self._chars += len(text)
        self._unflushed = self._unflushed or not text.isspace()
        self._put("text", text)

    def flush(self) -> None:
        """Speak what there is."""
        self._unflushed = False
        self._put(FLUSH)

    def end(self) -> None:
        """The text is complete."""
        if not self.ended:
            self.ended = True
            self._put(END)

    def close(self) -> None:
        """What was flushed is still spoken; of anything else no more is heard."""
        if self._unflushed:
            self.ended = True
            self._stop.set()
            self._came.set()
        else:
            self.end()

    def _put(self, kind: str, text: str = "") -> None:
        self._waiting.append((kind, text))
        self._came.set()

    # ---------------------------------------------------------------- what comes of it

    async def run(self) -> None:
        """Until the last message, which says `isFinal`. Raises `GatewayError`."""
        if await self._begun():
            await self._speak()
        await self._say({"audio": None, "isFinal": True, **self._mark})

    async def _begun(self) -> bool:
        """Wait for something to speak; False when it ends before."""
        while not self._stop.is_set():
            while self._waiting:
                kind, text = self._waiting[0]
                if kind == "text" and not text.isspace():
                    return True
                self._waiting.popleft()
                self._chars -= len(text)
                if kind == END:
                    return False
            self._came.clear()
            await self._came.wait()
        return False

    async def _speak(self) -> None:
        asked = self._asked
        stream = encoder(asked.format)
        try:
            async with self._gateway.speak(
                None, voice=asked.voice, language=asked.language, speed=asked.speed, seed=asked.seed, door=DOOR
            ) as speech:
                feeding = asyncio.create_task(self._feed(speech))
                telling = asyncio.create_task(self._tell(speech, stream))
                stopping = asyncio.create_task(self._stop.wait())
                tasks: list[asyncio.Task[Any]] = [feeding, telling, stopping]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    if feeding.done() and not telling.done() and not stopping.done():
                        feeding.result()
                        await asyncio.wait([telling, stopping], return_when=asyncio.FIRST_COMPLETED)
                    if telling.done():
                        telling.result()
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self.ended = True
            stream.close()

    async def _feed(self, speech: Speech) -> None:
        """Hand over the text as it comes."""
        while True:
            while self._waiting:
                kind, text = self._waiting.popleft()
                try:
                    if kind == "text":
                        self._chars -= len(text)
                        self._times.wrote(text)
                        await speech.write(text)
                    elif kind == FLUSH:
                        await speech.flush()
                    else:
                        await speech.end()
                        return
                except GatewayError as error:
                    if speech.over or error.param == "id":
                        return  # it was over already: the events tell how it ended
                    raise
            self._came.clear()
            await self._came.wait()

    async def _tell(self, speech: Speech, stream: Encoder) -> None:
        """Everything that is heard, as messages."""
        async with aclosing(with_times(speech, self._times, self._asked.hold_s)) as pieces:
            async for piece in pieces:
                data = stream.feed(piece.pcm) + (stream.end() if piece.last else b"")
                if not data and not piece.span:
                    continue
                alignment = piece.span.milliseconds(piece.first) if piece.span else None
                audio = base64.b64encode(data).decode()
                told = {"audio": audio, "isFinal": None, "alignment": alignment, "normalizedAlignment": alignment}
                await self._say(told | self._mark)
