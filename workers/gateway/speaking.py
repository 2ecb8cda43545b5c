"""From a door's request to the pipeline's speech, and back.

    async with gateway.speak("Hello.", voice="alloy") as speech:
        async for event in speech:           # Sound, and the protocol's events; the last one ends it
            ...

With ``text=None`` the text is still growing: ``write``, ``flush``, ``end``. Leaving the block before the
last event cancels what is left, at once: nothing more is made for a listener that is gone.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

from ipc.client import AsyncClient
from ipc.client_errors import ChatterlineError
from ipc.client_speech import AsyncSpeech
from ipc.client_track import Sound
from ipc.messages import (
    Accepted,
    Cancelled,
    Event,
    Failed,
    Finished,
    Priority,
    Rejected,
    Setting,
    Speak,
    VoiceList,
)
from pipeline.config import Gateway as GatewayConfig
from workers.gateway.aliases import Aliases, Chosen
from workers.gateway.errors import Busy, GatewayError, Unavailable, translated
from workers.gateway.metrics import Metrics
from workers.gateway.records import record_of

VOICES_KEPT_S = 5.0
ENGINE_S = 10.0
"""A request waits this long for an engine that is still loading."""
BEGINNING = 8
"""Requests that are handed to the pipeline at the same time. Each has a connection of its own, and of many that have
something to say at the same moment ZeroMQ reads the latest first: of a burst some would wait for all the others."""


class Speech:
    """One utterance on its way to a listener."""

    def __init__(self, speech: AsyncSpeech, door: str, metrics: Metrics) -> None:
        self._speech = speech
        self._door = door
        self._metrics = metrics
        self._began_s = time.monotonic()
        self._sounded_s: float | None = None
        self.samples = 0
        """Samples that have come so far."""

    @property
    def id(self) -> str:
        """The utterance's id in the pipeline."""
        return self._speech.id

    @property
    def accepted(self) -> Accepted:
        """The voice, language and seed that were chosen."""
        accepted = self._speech.accepted
        assert accepted is not None
        return accepted

    @property
    def over(self) -> bool:
        """Whether its last event has come."""
        return self._speech.ending is not None

    async def write(self, text: str) -> None:
        """More of a growing text; waits while it runs far ahead of the voice."""
        with _translating():
            await self._speech.write(text)

    async def flush(self) -> None:
        """Speak what is pending now, complete clause or not."""
        with _translating():
            await self._speech.flush()

    async def end(self) -> None:
        """The text is complete."""
        with _translating():
            await self._speech.end()

    async def cancel(self) -> None:
        """Silence it; the last event then is `Cancelled`."""
        with _translating():
            await self._speech.cancel()

    async def played(self, samples: int) -> None:
        """Say how much of it the listener has played."""
        with _translating():
            await self._speech.played(samples)

    def __aiter__(self) -> AsyncIterator[Event | Sound]:
        return self.events()

    async def events(self) -> AsyncGenerator[Event | Sound, None]:
        """Everything that happens, in order; the last is `Finished`, `Cancelled`, or `Failed` with ``final``."""
        with _translating():
            async for event in self._speech.events():
                if isinstance(event, Sound):
                    self._note_sound(event)
                yield event

    async def sounds(self) -> AsyncGenerator[Sound, None]:
        """Its sound alone. Raises `GatewayError` when it fails or somebody else silences it."""
        async for event in self.events():
            if isinstance(event, Sound):
                yield event
            else:
                self.check(event)

    @staticmethod
    def check(event: Event) -> None:
        """Raises `GatewayError` for an event that ends the speech otherwise than by its end."""
        match event:
            case Failed(final=True, reason=reason):
                raise GatewayError(500, f"it cannot be spoken: {reason}")
            case Cancelled():
                raise GatewayError(503, "the speech was cancelled by somebody else", code="cancelled")
            case Rejected():
                raise GatewayError(400, event.reason, param=event.field)
            case Finished(samples=0, failed_segments=failed) if failed:
                raise GatewayError(500, "nothing of it could be spoken")

    def _note_sound(self, sound: Sound) -> None:
        now = time.monotonic()
        if self._sounded_s is None:
            self._metrics.first_sound(self._door, now - self._began_s)
            if (record := record_of.get()) is not None:
                record.sounded()
        else:
            self._metrics.between_sounds(self._door, now - self._sounded_s)
        self._sounded_s = now
        self.samples += sound.count


class Speaking:
    """The way to the pipeline that all doors share, with its limits."""

    def __init__(self, client: AsyncClient, config: GatewayConfig, metrics: Metrics) -> None:
        self.client = client
        self._config = config
        self._metrics = metrics
        self._open = Counter[str]()
        self._aliases: Aliases | None = None
        self._aliases_until_s = 0.0
        self._asking = asyncio.Lock()
        self._beginning = asyncio.Semaphore(BEGINNING)

    @property
    def in_flight(self) -> int:
        """Utterances that are spoken or wait."""
        return self._open["requests"]

    @asynccontextmanager
    async def speak(
        self,
        text: str | None,
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float | None = None,
        conversation: str | None = None,
        priority: Priority = "normal",
        seed: int | None = None,
        settings: dict[str, bool | int | float | str] | None = None,
        door: str = "http",
    ) -> AsyncIterator[Speech]:
        """Speak ``text``, or (None) a text that is still growing. ``voice`` may be any name that `Aliases`
        knows; ``settings`` are the engine's own.

        Raises `GatewayError`: 400 and 404 (voice) with the field at fault, 429 when too much is under way,
        503 when there is no pipeline.
        """
        with self.place("requests", self._config.max_requests, "gateway.max_requests"):
            chosen = await self.choose(voice, language)
            request = Speak(
                id=uuid.uuid4().hex[:16],
                text=text or "",
                voice=chosen.voice,
                language=chosen.language,
                speed=speed,
                output="stream",
                conversation=conversation or "default",
                priority=priority,
                seed=seed,
                settings=settings or {},
                final=text is not None,
            )
            async with self._turn():
                with _translating():
                    speech = await self.client.begin(request)
            self._metrics.began(door)
            if (record := record_of.get()) is not None:
                record.utterances.append(speech.id)
                record.voice = record.voice or (speech.accepted.voice if speech.accepted else "")
            try:
                yield Speech(speech, door, self._metrics)
            finally:
                if speech.ending is None:
                    self._metrics.abandoned(door)
                    await asyncio.shield(speech.abandon())
                await speech.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of the turns to hand a request over. Raises `Unavailable` when those before it get no answer."""
        try:
            async with asyncio.timeout(self.client.timeout_s):
                await self._beginning.acquire()
        except TimeoutError:
            raise Unavailable(f"the pipeline takes no requests for {self.client.timeout_s:g} s") from None
        try:
            yield
        finally:
            self._beginning.release()

    @contextmanager
    def place(self, kind: str, most: int, key: str) -> Iterator[None]:
        """One of at most ``most`` places of a kind. Raises `Busy` when all are taken."""
        if self._open[kind] >= most:
            self._metrics.refused(kind)
            raise Busy(f"{most} {kind} are under way, which is all that {key} allows; come back later")
        self._open[kind] += 1
        try:
            yield
        finally:
            self._open[kind] -= 1

    def socket(self) -> AbstractContextManager[None]:
        """A place for an open WebSocket or Wyoming connection. Raises `Busy`."""
        return self.place("sockets", self._config.max_sockets, "gateway.max_sockets")

    async def choose(self, voice: str | None, language: str | None) -> Chosen:
        """The engine's voice and language for these names. Raises `GatewayError` (404) for an unknown voice."""
        if voice is None and language is None:
            return Chosen(None, None)
        chosen = (await self.aliases()).choose(voice, language)
        if chosen is None:  # a voice may have been added since
            chosen = (await self.aliases(fresh=True)).choose(voice, language)
        if chosen is None:
            shown = (voice or "")[:100]
            raise GatewayError(404, f"no voice is called {shown!r}", param="voice", code="voice_not_found")
        return chosen

    async def aliases(self, fresh: bool = False) -> Aliases:
        """The engine's voices with their further names; asked for again every few seconds."""
        asked_s = time.monotonic()
        async with self._asking:
            current = self._aliases_until_s - VOICES_KEPT_S >= asked_s if fresh else self._aliases_until_s > asked_s
            if self._aliases is None or not current:
                with _translating():
                    listed = await self._voices()
                self._aliases = Aliases(listed, self._config.aliases)
                self._aliases_until_s = time.monotonic() + VOICES_KEPT_S
            return self._aliases

    async def voices(self) -> VoiceList:
        """The engine's voices, languages and settings."""
        return (await self.aliases()).listed

    async def settings(self) -> dict[str, Setting]:
        """The engine's own settings by name."""
        return {setting.name: setting for setting in (await self.voices()).settings}

    async def _voices(self) -> VoiceList:
        try:
            async with asyncio.timeout(ENGINE_S):
                return await self.client.voices()
        except TimeoutError:
            raise Unavailable("the engine is still loading") from None


@contextmanager
def _translating() -> Iterator[None]:
    """What the client raises, as an answer over HTTP."""
    try:
        yield
    except ChatterlineError as error:
        raise translated(error) from error
    except (ValueError, UnicodeEncodeError) as error:
        raise GatewayError(400, str(error)) from error
