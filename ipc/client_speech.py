"""One utterance as the program that asked for it sees it: `AsyncClient.speak` returns it.

It knows its connection only as a `Sender`, and says everything again there after a dispatcher's
restart: each request that it sends may arrive twice without harm.

Sound that nobody reads waits here up to ``buffer_s``; then the connection is not read any more and
the pipeline stops making sound for this stream. Each stream has a connection of its own, so a slow
reader slows nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import msgspec
import numpy as np

from ipc.client_errors import PipelineError, SpeechError, failure_of
from ipc.client_track import WINDOW_CHARS, Ending, GrowingText, Inbox, Samples, Sound, Track
from ipc.messages import (
    SAMPLE_RATE,
    Accepted,
    Attach,
    Cancel,
    Cancelled,
    Event,
    Finished,
    Flush,
    Played,
    Received,
    Rejected,
    Request,
    Speak,
)

log = logging.getLogger("chatterline")

RESEND_S = 2.0
"""A request to speak that is not answered is sent again this often."""

GRACE_S = 2.0
"""How long the last event of an utterance that is said to be over may take."""

ABANDON_S = 1.0
MOST_REPAIRS = 20

CONFIRM_SAMPLES = SAMPLE_RATE // 4
"""What has arrived is confirmed in steps of this size; the pipeline keeps at least twice as much."""


class Sender(Protocol):
    """The connection, as a speech uses it."""

    async def send(self, request: Request) -> None: ...

    def release(self, speech: AsyncSpeech) -> None: ...


class AsyncSpeech:
    """An utterance: wait for it, follow it, take its sound, add to its text, silence it."""

    sample_rate = SAMPLE_RATE

    def __init__(self, sender: Sender, request: Speak, timeout_s: float, buffer_s: float) -> None:
        streams = request.output == "stream"
        self._sender = sender
        self._request = msgspec.structs.replace(request, confirms=streams)
        self._timeout_s = timeout_s
        self._track = Track()
        self._inbox = Inbox(buffer_s, lossy=not streams)
        self._growing = GrowingText(request.id, request.text, request.final)
        self._sending = asyncio.Lock()
        self._error: Exception | None = None
        self._refused: Rejected | None = None
        self._reader: object = None
        self._cancelling = False
        self._asked_again = False
        self._repeated = False
        self._repairs = 0
        self._played: int | None = None
        self._confirmed_samples = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # ---------------------------------------------------------------- facts

    @property
    def id(self) -> str:
        """The utterance's id."""
        return self._request.id

    @property
    def streams(self) -> bool:
        """Its sound comes here and not out of the speaker."""
        return self._request.output == "stream"

    @property
    def accepted(self) -> Accepted | None:
        """The voice, language and seed that were chosen."""
        return self._track.accepted

    @property
    def ending(self) -> Ending | None:
        """How it ended; None while it goes on."""
        return self._track.ending

    @property
    def sent_chars(self) -> int:
        """Characters of the text sent so far."""
        return self._growing.sent_chars

    @property
    def made_chars(self) -> int:
        """Characters of the text as given that are sound by now, as far as is known here."""
        return self._track.made_chars

    @property
    def heard_chars(self) -> int:
        """Characters of the text as given that were heard so far, as far as is known here."""
        return self._track.heard_chars

    # ---------------------------------------------------------------- following

    async def wait(self, reader: object = None) -> Finished:
        """Wait until all of it was heard (speaker) or handed over (stream).

        Raises `SpeechError` when it was refused, failed or (`SpeechCancelled`) was silenced. Sound
        of a stream that the calling task has not read by then is dropped; what another task reads
        is left to it.
        """
        if self._reader in (None, reader or asyncio.current_task()):
            await self._inbox.drop_sound()
        await self._inbox.until(lambda: self._over or self._refused is not None)
        if not self._over and self._refused is not None:
            raise failure_of(self._refused)
        ending = self._result()
        if not isinstance(ending, Finished):
            raise failure_of(ending)
        return ending

    async def cancel(self) -> Ending:
        """Silence it. How it ended: `Cancelled` with the text that was ``heard``, or what had
        happened before the cancel arrived."""
        self._cancelling = True
        await self._inbox.drop_sound()
        if not self._over:
            await self._sender.send(Cancel(id=self.id))
        if not await self._inbox.until(lambda: self._over, self._timeout_s):
            raise PipelineError(f"utterance {self.id}: no answer to its cancel for {self._timeout_s:g} s")
        return self._result()

    async def abandon(self) -> None:
        """Silence it without waiting for the answer; for the way out of an exception."""
        if self._over:
            return
        self._cancelling = True
        await self._inbox.drop_sound()
        try:
            async with asyncio.timeout(ABANDON_S):
                await self._sender.send(Cancel(id=self.id))
        except (TimeoutError, PipelineError) as error:
            log.warning("utterance %s could not be cancelled: %s", self.id, error or "no connection")

    async def events(self, reader: object = None) -> AsyncGenerator[Event | Sound, None]:
        """Everything that happens, in order, `Sound` in the place of audio events; ends after the
        event that ends the utterance. Read a speech in one place."""
        while (item := await self.next(reader or asyncio.current_task())) is not None:
            yield item

    async def sounds(self, reader: object = None) -> AsyncGenerator[Sound, None]:
        """The sound of a stream as it comes. Ends with the utterance; raises `SpeechError` when it
        fails or is silenced by somebody else."""
        while (sound := await self.next_sound(reader or asyncio.current_task())) is not None:
            yield sound

    def __aiter__(self) -> AsyncIterator[Samples]:
        return self._floats()

    async def _floats(self) -> AsyncGenerator[Samples, None]:
        async for sound in self.sounds():
            yield sound.samples

    async def pcm(self) -> AsyncGenerator[bytes, None]:
        """The sound as it comes, as s16le bytes."""
        async for sound in self.sounds():
            yield sound.pcm

    async def audio(self, reader: object = None) -> Samples:
        """All of the sound at once, float32 within ±1."""
        pieces = [sound.samples async for sound in self.sounds(reader)]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    async def next(self, reader: object) -> Event | Sound | None:
        """The next thing that happens, or None after the last."""
        self._reader = reader
        item = await self._inbox.take(lambda: self._over)
        if item is None:
            self._result()
        return item

    async def next_sound(self, reader: object) -> Sound | None:
        """The next piece of sound, or None after the last."""
        if not self.streams:
            raise ValueError("this utterance goes to the speaker; ask for output='stream' to get its sound")
        while (item := await self.next(reader)) is not None:
            if isinstance(item, Sound):
                return item
        ending = self._result()
        if isinstance(ending, Finished) or (self._cancelling and isinstance(ending, Cancelled)):
            return None
        raise failure_of(ending)

    def _result(self) -> Ending:
        """How it ended, once it has."""
        if self._error is not None:
            raise self._error
        assert self._track.ending is not None
        return self._track.ending

    # ---------------------------------------------------------------- a growing text

    async def write(self, text: str) -> None:
        """More of a growing text. Waits while it runs far ahead of the voice.

        Raises `SpeechError` once the utterance is over (`SpeechCancelled`: somebody silenced it).
        """
        for piece in self._growing.pieces(text):
            await self._room()
            async with self._sending:
                self._check_writable()
                await self._sender.send(self._growing.grow(piece))

    async def flush(self) -> None:
        """Speak what is pending now, complete clause or not."""
        self._check_writable()
        await self._sender.send(Flush(id=self.id))

    async def end(self) -> None:
        """The text is complete. Does nothing when it was already."""
        if self._growing.ended:
            return
        self._check_writable()
        async with self._sending:
            await self._sender.send(self._growing.end())

    async def write_all(self, pieces: AsyncIterable[str]) -> None:
        """Write all pieces and end; an exception cancels the utterance."""
        try:
            async for piece in pieces:
                await self.write(piece)
            await self.end()
        except BaseException:
            await self.abandon()
            raise

    def write_from(self, pieces: AsyncIterable[str]) -> None:
        """`write_all` in the background; what goes wrong there is raised where the speech is read."""
        self._spawn(partial(self._write_from, pieces))

    async def _write_from(self, pieces: AsyncIterable[str]) -> None:
        try:
            await self.write_all(pieces)
        except Exception as error:  # noqa: BLE001 (raised where the speech is waited for)
            if not self._over:
                await self.fail(error)

    async def played(self, samples: int) -> None:
        """Say how many samples of the stream your own loudspeaker has played; what was heard is
        then told by that."""
        self._played = samples
        await self._sender.send(Played(id=self.id, samples=samples))

    def _check_writable(self) -> None:
        if self._error is not None:
            raise self._error
        ending = self._track.ending or self._refused
        if isinstance(ending, Finished):
            raise SpeechError(f"utterance {self.id} is over: all of its text was spoken")
        if ending is not None:
            raise failure_of(ending)
        if self._growing.ended:
            raise SpeechError(f"the text of utterance {self.id} is complete; start another one")

    async def _room(self) -> None:
        """Wait until more text may be sent."""
        self._check_writable()
        while self._growing.sent_chars - self._track.made_chars >= WINDOW_CHARS:
            before = self._track.made_chars
            moved = await self._inbox.until(
                lambda before=before: self._track.made_chars > before or self._stopped,  # type: ignore[misc]
                self._timeout_s,
            )
            if not moved and self._inbox.full:
                raise SpeechError(
                    f"utterance {self.id}: its text waits because nobody reads its sound; "
                    "read it in another task or thread while you write"
                )
            self._check_writable()
        self._growing.forget(self._track.made_chars)

    # ---------------------------------------------------------------- from the connection

    async def begin(self) -> None:
        """Send the request and wait until it is accepted; raises `SpeechError` or `PipelineError`."""
        await self._sender.send(self._request)
        waited_s = 0.0
        while not await self._inbox.until(lambda: self._over or self._track.accepted is not None, RESEND_S):
            waited_s += RESEND_S
            if waited_s >= self._timeout_s:
                raise PipelineError(
                    f"the pipeline is there but has not answered for {waited_s:g} s; its engine may still be loading: "
                    "see `speak --status`"
                )
            await self._sender.send(self._request)
        if self._error is not None:
            raise self._error
        if isinstance(self._track.ending, Rejected):
            raise failure_of(self._track.ending)

    async def arrived(self, event: Event, pcm: bytes | memoryview | None) -> None:
        """An event of this utterance; returns when there is room for more."""
        told = self._rejected(event) if isinstance(event, Rejected) else self._track.take(event, pcm)
        if isinstance(told, Sound):
            self._asked_again = False
            await self._inbox.until(lambda: not self._inbox.full or self._inbox.dropping or self._over)
        elif self._track.gap and not self._asked_again:
            self._asked_again = True
            await self._attach()
        if isinstance(event, Accepted) and event.state == "queued" and self._track.begun:
            await self._lost()
        if isinstance(event, Accepted) and event.state in ("finished", "cancelled", "failed") and not self._over:
            self._spawn(partial(self._expect_ending, event.state))
        await self._inbox.put(told)
        await self._confirm(at_least=1 if isinstance(event, Finished) else CONFIRM_SAMPLES)
        if self._track.ending is not None:
            self._sender.release(self)

    async def _confirm(self, at_least: int) -> None:
        """Say what has arrived, if it is so many samples more than was said before."""
        arrived = self._track.next_sample
        if self.streams and arrived - self._confirmed_samples >= at_least:
            self._confirmed_samples = arrived
            with suppress(TimeoutError, PipelineError):
                async with asyncio.timeout(ABANDON_S):
                    await self._sender.send(Received(id=self.id, samples=arrived))

    async def back(self) -> None:
        """The connection was lost and is there again: say what may have been lost."""
        if not self._over:
            await self._repeat()

    async def fail(self, error: Exception) -> None:
        """It can't be followed any more."""
        self._error = self._error or error
        await self._inbox.put(None)
        self._sender.release(self)

    async def close(self) -> None:
        """Stop what runs in the background."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _rejected(self, event: Rejected) -> Event | None:
        """What becomes of a refusal."""
        if self._over:
            return None
        match event:
            case Rejected(request="text" | "end", field="offset") if self._repairs < MOST_REPAIRS:
                self._repairs += 1
                self._spawn(self._repeat)
                return None
            case Rejected(request="text" | "end", field="id") if self._growing.ended and self._repeated:
                return None  # it was complete before it was repeated
            case Rejected(request="attach" | "cancel" | "speak" | ""):
                self._track.ending = event  # it is not known (any more), or its sound is lost
            case Rejected(request="text" | "flush" | "end"):
                self._refused = event
            case _:
                log.warning("utterance %s: %s refused: %s: %s", self.id, event.request, event.field, event.reason)
        return event

    async def _repeat(self) -> None:
        self._repeated = True
        async with self._sending:
            await self._sender.send(self._request)
            if self._cancelling:
                await self._sender.send(Cancel(id=self.id))
                return
            if self.streams and self._track.accepted is not None:
                await self._attach()
            for request in self._growing.again():
                await self._sender.send(request)
            if self._played is not None:
                await self._sender.send(Played(id=self.id, samples=self._played))

    async def _attach(self) -> None:
        self._confirmed_samples = self._track.next_sample
        await self._sender.send(Attach(id=self.id, from_sample=self._confirmed_samples, confirms=True))

    async def _lost(self) -> None:
        """The pipeline has forgotten what it had begun, and would begin again."""
        reason = "the pipeline has lost it: its journal could not be written (is the disk full?)"
        with suppress(PipelineError):
            await self._sender.send(Cancel(id=self.id))
        await self.fail(SpeechError(f"utterance {self.id}: {reason}"))

    async def _expect_ending(self, state: str) -> None:
        if not await self._inbox.until(lambda: self._over, GRACE_S):
            await self.fail(SpeechError(f"utterance {self.id} is over ({state}), but how it ended was lost"))

    @property
    def _over(self) -> bool:
        return self._track.ending is not None or self._error is not None

    @property
    def _stopped(self) -> bool:
        return self._over or self._refused is not None

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except PipelineError as error:
            await self.fail(error)
