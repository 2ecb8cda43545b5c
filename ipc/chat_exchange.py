"""One answer of a language model on its way into the voice: read, paced, followed, silenced; and its figures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from ipc.chat_endpoint import ChatEndpoint, ChatError, Message, Piece
from ipc.chat_pace import Pace, Words, has_word
from ipc.client import AsyncClient, SpeakOptions, _speak
from ipc.client_errors import ChatterlineError, SpeechCancelled, SpeechError, failure_of
from ipc.client_speech import AsyncSpeech
from ipc.client_track import Sound
from ipc.messages import SAMPLE_RATE, Aligned, Cancelled, Event, Failed, Finished, Started

Told = Piece | Event | Sound
Teller = Callable[[Told], Awaitable[None]]


@dataclass
class Figures:
    """Milliseconds since the question was asked; None: it did not come to that."""

    first_token_ms: float | None = None
    first_word_ms: float | None = None
    """It was complete; a single letter counts with the word after it."""
    first_sound_ms: float | None = None
    token_gap_p50_ms: float | None = None
    token_gap_p90_ms: float | None = None
    token_gap_max_ms: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    """Of speech that was heard."""


@dataclass
class Answer:
    """An answer: all that the model wrote until then, and what of it was heard."""

    text: str = ""
    heard: str = ""
    interrupted: bool = False
    problem: str = ""
    """Why there is no more of it, if that was not meant."""
    figures: Figures = field(default_factory=Figures)


class Exchange:
    """One answer on its way from the model into the voice."""

    def __init__(self, client: AsyncClient, options: SpeakOptions, pace: Pace, tell: Teller, asked_s: float) -> None:
        self._client, self._options, self._pace, self._tell = client, options, pace, tell
        self._asked_s = asked_s
        self._words = Words()
        self._speech: AsyncSpeech | None = None
        self._following: asyncio.Task[None] | None = None
        self._written = ""
        self._before_chars = 0
        self._before_samples = 0
        self._token_times_s: list[float] = []
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._broken = asyncio.Event()
        self.answer = Answer()

    def interrupt(self) -> None:
        """Silence it; `run` then returns."""
        self._stopped.set()

    async def played(self, samples: int) -> None:
        """So many samples of the answer were played where it is heard."""
        if self._speech is not None and samples > self._before_samples:
            await self._speech.played(samples - self._before_samples)

    async def run(self, endpoint: ChatEndpoint, messages: list[Message]) -> Answer:
        """Speak the answer to ``messages``; returns when it was heard or silenced."""
        speaking = asyncio.ensure_future(self._speak_all(endpoint, messages))
        ends = [speaking, *(asyncio.ensure_future(event.wait()) for event in (self._stopped, self._broken))]
        tasks = [*ends, asyncio.ensure_future(self._keep_pace())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if speaking.done():
                await speaking
            else:
                self.answer.interrupted = self._stopped.is_set()
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)
                if self._broken.is_set():
                    await self._followed_to_the_end()
        except SpeechCancelled:
            self.answer.interrupted = True
        except ChatError as error:
            self.answer.problem = str(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._silence()
            self._conclude()
        return self.answer

    # ---------------------------------------------------------------- text

    async def _speak_all(self, endpoint: ChatEndpoint, messages: list[Message]) -> None:
        problem: ChatError | None = None
        try:
            async with aclosing(endpoint.answer(messages)) as pieces:
                async for piece in pieces:
                    self.answer.text += piece.text
                    self._token_times_s.append(piece.at_s)
                    await self._write(self._words.take(piece.text))
                    await self._tell(piece)
        except ChatError as error:
            problem = error  # what it has said is spoken all the same
        await self._write(self._words.rest())
        await self._finish()
        if problem is not None:
            raise problem

    async def _write(self, words: str) -> None:
        """Hand whole words over, and flush if that is due."""
        if not words or (self._speech is None and words.isspace()):
            self._before_chars += len(words)
            return
        self._written += words
        if self.answer.figures.first_word_ms is None and has_word(self._written):
            self.answer.figures.first_word_ms = self._since(monotonic())
        if self._speech is None:
            await self._begin(words)
        else:
            try:
                await self._speech.write(words)
            except SpeechError:
                await self._go_on()
        self._pace.wrote(words)
        self._changed.set()
        if (due_s := self._pace.due_s) is not None and due_s <= monotonic():
            await self._flush()

    async def _begin(self, words: str) -> None:
        self._speech = await self._client.begin(_speak(words, False, self._options))
        self._following = asyncio.ensure_future(self._follow(self._speech))
        self._following.add_done_callback(self._followed)

    def _followed(self, following: asyncio.Task[None]) -> None:
        if not following.cancelled() and following.exception() is not None:
            self._broken.set()

    async def _go_on(self) -> None:
        """The pipeline has ended the text, as it does when a model is silent for long: say the rest in another
        utterance. Raises what else has ended it."""
        assert self._speech is not None
        await self._followed_to_the_end()
        ending = self._speech.ending
        if not isinstance(ending, Finished):
            raise SpeechError(f"utterance {self._speech.id}: its text is not taken any more")
        rest = self._written[ending.chars :]
        self._before_chars += ending.chars
        self._before_samples += ending.samples
        self._written = rest
        await self._begin(rest)

    async def _finish(self) -> None:
        """The text is complete: wait until it was heard."""
        while self._speech is not None:
            with suppress(SpeechError):  # how it ended is told by whoever follows it
                await self._speech.end()
            await self._followed_to_the_end()
            ending = self._speech.ending
            if not isinstance(ending, Finished) or not self._written[ending.chars :].strip():
                return
            await self._go_on()

    async def _flush(self) -> None:
        self._pace.flushed(monotonic())
        if self._speech is not None and self._speech.ending is None:
            with suppress(SpeechError):  # it is complete, or its end is on the way
                await self._speech.flush()

    async def _keep_pace(self) -> None:
        """Flush when the voice would run out before the next words come."""
        while True:
            self._changed.clear()
            due_s = self._pace.due_s
            try:
                async with asyncio.timeout(None if due_s is None else max(0.0, due_s - monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                await self._flush()

    # ---------------------------------------------------------------- sound

    async def _follow(self, speech: AsyncSpeech) -> None:
        """Note and tell what happens until the utterance is over. Raises `SpeechError` unless it was finished."""
        async for event in speech.events():
            match event:
                case Aligned(chars=(_, chars), samples=(_, samples)):
                    self._pace.made(self._before_chars + chars, self._before_samples + samples, monotonic())
                    self._changed.set()
                case Started() if not speech.streams:
                    self._sounds()
                case Sound():
                    self._sounds()
                case _:
                    pass
            await self._tell(event)
        if isinstance(speech.ending, Cancelled | Failed):
            raise failure_of(speech.ending)

    async def _followed_to_the_end(self) -> None:
        """Wait for that; whoever waits may be cancelled, and the following goes on."""
        if self._following is not None:
            await asyncio.wait([self._following])
            self._following.result()

    def _sounds(self) -> None:
        now_s = monotonic()
        if self.answer.figures.first_sound_ms is None:
            self.answer.figures.first_sound_ms = self._since(now_s)
            self._pace.sounds(now_s)
            self._changed.set()

    async def _silence(self) -> None:
        """Leave nothing behind that still speaks, and learn how it ended."""
        speech, following = self._speech, self._following
        if speech is None or following is None:
            return
        try:
            if speech.ending is None:
                await asyncio.shield(speech.cancel())
            await self._followed_to_the_end()
        except asyncio.CancelledError:
            await speech.abandon()
            raise
        except ChatterlineError:
            pass  # it is over; `run` has raised what there is to say
        finally:
            following.cancel()

    def _conclude(self) -> None:
        answer, figures = self.answer, self.answer.figures
        if self._speech is not None:
            chars, seconds = self._speech.heard_chars, self._before_samples / SAMPLE_RATE
            if isinstance(self._speech.ending, Finished | Cancelled):
                chars, seconds = self._speech.ending.chars, seconds + self._speech.ending.seconds
            answer.heard = answer.text[: self._before_chars + chars]
            figures.seconds = round(seconds, 3)
        figures.tokens = len(self._token_times_s)
        if self._token_times_s:
            figures.first_token_ms = self._since(self._token_times_s[0])
        if len(self._token_times_s) > 1:
            gaps_ms = np.diff(self._token_times_s) * 1000
            p50, p90, most = np.percentile(gaps_ms, (50, 90, 100))
            figures.token_gap_p50_ms, figures.token_gap_p90_ms = round(float(p50), 2), round(float(p90), 2)
            figures.token_gap_max_ms = round(float(most), 2)

    def _since(self, at_s: float) -> float:
        return round((at_s - self._asked_s) * 1000, 2)
