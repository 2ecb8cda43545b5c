"""One Wyoming connection: what its events ask for, spoken one after the other."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from ipc.client_track import Sound
from ipc.messages import SAMPLE_RATE, Failed, VoiceList
from workers.gateway.errors import GatewayError
from workers.gateway.records import Record, log, record_of
from workers.gateway.speaking import Speech

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

DOOR = "wyoming"
MOST_WAITING = 16
"""Requests of one connection that may wait for the one that is spoken."""

_ATTRIBUTION = Attribution(name="Chatterline", url="")


class Handler(AsyncEventHandler):
    """One connection's events."""

    def __init__(self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        bounded = _Bounded(reader, gateway.config.max_message_kb * 1024)
        super().__init__(cast(asyncio.StreamReader, bounded), writer)
        self._gateway = gateway
        self._peer = peer
        self._waiting: asyncio.Queue[_Request] = asyncio.Queue(MOST_WAITING)
        self._growing: _Request | None = None
        self._speaking = asyncio.create_task(self._speak_all())
        self._speaking.add_done_callback(self._spoken)

    async def handle_event(self, event: Event) -> bool:
        """What an event asks for. False ends the connection."""
        if Describe.is_type(event.type):
            await self._describe()
        elif Ping.is_type(event.type):
            await self._send(Pong(text=Ping.from_event(event).text).event())
        elif SynthesizeStart.is_type(event.type):
            start = SynthesizeStart.from_event(event)
            await self._end_growing()
            self._growing = _Request(start.voice, _format(event), streams=True)
            await self._waiting.put(self._growing)
        elif SynthesizeChunk.is_type(event.type) and self._growing is not None:
            await self._growing.add(SynthesizeChunk.from_event(event).text)
        elif Synthesize.is_type(event.type):
            await self._synthesize(Synthesize.from_event(event), _format(event))
        elif SynthesizeStop.is_type(event.type):
            await self._end_growing()
        return True

    async def disconnect(self) -> None:
        """The connection ends: silence what it asked for."""
        self._speaking.cancel()
        await asyncio.gather(self._speaking, return_exceptions=True)

    async def _synthesize(self, asked: Synthesize, text_format: object) -> None:
        if self._growing is not None:
            self._growing.whole = asked.text
            return
        request = _Request(asked.voice, text_format, streams=False)
        await request.add(asked.text)
        await request.end()
        await self._waiting.put(request)

    async def _end_growing(self) -> None:
        if self._growing is not None:
            request, self._growing = self._growing, None
            await request.end()

    async def _speak_all(self) -> None:
        while True:
            request = await self._waiting.get()
            record = Record(f"req-{uuid.uuid4().hex[:16]}", "WYOMING", "synthesize", self._peer)
            record.door, record.status = DOOR, 200
            record_of.set(record)
            try:
                await self._speak(request, record)
            except GatewayError as error:
                record.status, record.error = error.status, error.message
                await self._send(Error(text=error.message, code=error.code).event())
            finally:
                record.close()
                self._gateway.metrics.answered(DOOR, record.status)
            await self._send(AudioStop().event())
            request.drop()
            if request.streams:
                await request.ended.wait()
                await self._send(SynthesizeStopped().event())

    async def _speak(self, request: _Request, record: Record) -> None:
        if request.text_format == "ssml":
            raise GatewayError(400, "SSML is not spoken; send plain text", param="text_format")
        voice = request.voice or SynthesizeVoice()
        first = await request.take()
        await self._send(AudioStart(rate=SAMPLE_RATE, width=2, channels=1).event())
        if first is None:
            return
        async with self._gateway.speak(None, voice=voice.name, language=voice.language, door=DOOR) as speech:
            feeding = asyncio.create_task(_feed(speech, first, request))
            try:
                async for event in speech:
                    if isinstance(event, Sound):
                        chunk = AudioChunk(rate=SAMPLE_RATE, width=2, channels=1, audio=event.pcm)
                        await self._send(chunk.event())
                        record.sent(len(event.pcm))
                    elif isinstance(event, Failed) and not event.final:
                        await self._send(Error(text=event.reason, code="failed").event())
                    else:
                        speech.check(event)
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    async def _describe(self) -> None:
        await self._send(described(await self._gateway.speaking.voices()).event())

    async def _send(self, event: Event) -> None:
        """Send an event; hang up on whoever takes nothing for `gateway.stall_s`."""
        async with asyncio.timeout(self._gateway.config.stall_s):
            await self.write_event(event)

    def _spoken(self, speaking: asyncio.Task[None]) -> None:
        """Nothing more is spoken: the connection is of no use."""
        if not speaking.cancelled() and (error := speaking.exception()) is not None:
            if isinstance(error, TimeoutError):
                log.warning("Wyoming: %s took nothing for %g s", self._peer, self._gateway.config.stall_s)
            elif not isinstance(error, ConnectionError):
                log.error("Wyoming: hung up on %s", self._peer, exc_info=error)
            self.writer.transport.abort()


class _Request:
    """A text to speak, which may still be growing. The oldest of it is handed over first."""

    def __init__(self, voice: SynthesizeVoice | None, text_format: object, *, streams: bool) -> None:
        self.voice = voice
        self.text_format = text_format
        self.streams = streams
        self.whole = ""
        """All of it, as told by the `synthesize` that is for servers which cannot stream."""
        self.ended = asyncio.Event()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue(256)
        self._any = False
        self._dropped = False

    async def add(self, text: str) -> None:
        """More of it; waits while it runs far ahead."""
        if not isinstance(text, str):
            raise TypeError(f"a text is expected, not {type(text).__name__}")
        if text and not self._dropped:
            self._any = self._any or not text.isspace()
            await self._pieces.put(text)

    async def end(self) -> None:
        """It is complete."""
        if not self._any and self.whole:
            await self.add(self.whole)
        self.ended.set()
        await self._pieces.put(None)

    def drop(self) -> None:
        """What still comes is not wanted."""
        self._dropped = True
        while not self._pieces.empty():
            self._pieces.get_nowait()

    async def take(self) -> str | None:
        """The next piece; None after the last."""
        return await self._pieces.get()


def _format(event: Event) -> object:
    """Plain text or SSML, as newer clients say."""
    return event.data.get("text_format")


async def _feed(speech: Speech, first: str, request: _Request) -> None:
    """Hand a growing text over."""
    piece: str | None = first
    with suppress(GatewayError):  # the events tell
        while piece is not None:
            await speech.write(piece)
            piece = await request.take()
        await speech.end()


class _Bounded:
    """A stream that is not read beyond what an event may have."""

    def __init__(self, reader: asyncio.StreamReader, most_bytes: int) -> None:
        self._reader = reader
        self._most_bytes = most_bytes

    async def readline(self) -> bytes:
        return await self._reader.readline()

    async def readexactly(self, count: int) -> bytes:
        if count > self._most_bytes:
            raise ValueError(f"an event has at most {self._most_bytes:,} bytes (gateway.max_message_kb)")
        return await self._reader.readexactly(count)


def described(listed: VoiceList) -> Info:
    """What this programme can do, the default voice first. A voice without a language of its own speaks all."""
    own = {voice.language for voice in listed.voices}
    more: dict[str, list[str]] = {}
    for language in listed.languages:
        if language not in own:
            more.setdefault(_speaker_of(language, listed), []).append(language)
    voices = [
        TtsVoice(
            name=voice.id,
            description=voice.name,
            languages=[voice.language, *more.get(voice.id, [])] if voice.language else list(listed.languages),
            attribution=_ATTRIBUTION,
            installed=True,
            version=None,
        )
        for voice in sorted(listed.voices, key=lambda one: one.id != listed.default)
    ]
    program = TtsProgram(
        name="chatterline",
        description=f"Chatterline ({listed.engine})",
        attribution=_ATTRIBUTION,
        installed=True,
        version=None,
        voices=voices,
        supports_synthesize_streaming=True,
    )
    return Info(tts=[program])


def _speaker_of(language: str, listed: VoiceList) -> str:
    """The voice under which a language is listed that no voice is made for: one of a sister (``fr`` for
    ``fr-fr``), else the default."""
    primary = language.split("-")[0]
    return next((voice.id for voice in listed.voices if voice.language.split("-")[0] == primary), listed.default)
