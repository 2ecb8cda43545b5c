"""When each character sounds, from the pipeline's `aligned` events, which usually tell of words.

Within a word characters share its time evenly; what lies between two words shares the time between them.
Every character of the text is told exactly once, in order, so that all that was told together is the text.

A piece of sound goes together with the characters that begin in it. Their times come from the pipeline right
after the sound, so sound is held for them, but never longer than `HOLD_S`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from ipc.client_track import Sound
from ipc.messages import SAMPLE_RATE, Aligned, Event, Finished, Rejected
from workers.gateway.speaking import Speech

HOLD_S = 0.25


@dataclass
class Span:
    """Characters with their beginnings and lengths in samples of the utterance."""

    chars: list[str] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.chars)

    def extend(self, other: Span) -> None:
        """Add what follows."""
        self.chars += other.chars
        self.starts += other.starts
        self.lengths += other.lengths

    def milliseconds(self, from_sample: int) -> dict[str, list[str] | list[int]]:
        """As ElevenLabs' WebSocket tells it: from the beginning of the sound it comes with."""
        scale = 1000 / SAMPLE_RATE
        starts = [max(0, round((start - from_sample) * scale)) for start in self.starts]
        lengths = [round(length * scale) for length in self.lengths]
        return {"chars": self.chars, "charStartTimesMs": starts, "charDurationsMs": lengths}

    def seconds(self) -> dict[str, list[str] | list[float]]:
        """As ElevenLabs' HTTP tells it: from the beginning of the utterance."""
        starts = [round(start / SAMPLE_RATE, 3) for start in self.starts]
        ends = [round((start + n) / SAMPLE_RATE, 3) for start, n in zip(self.starts, self.lengths, strict=True)]
        return {"characters": self.chars, "character_start_times_seconds": starts, "character_end_times_seconds": ends}


class CharTimes:
    """The characters of one utterance: written, aligned, told."""

    def __init__(self) -> None:
        self._text = ""
        self._from = 0
        """Position of the first character that was not told yet; `_text` begins there."""
        self._timed: list[tuple[float, float]] = []
        """Beginning and length of the characters from `_from` on, as far as they are known."""
        self._known_sample = 0.0

    def wrote(self, text: str) -> None:
        """The text has grown by this."""
        self._text += text

    def aligned(self, event: Aligned) -> None:
        """Characters sound here. What is known already is not news."""
        begin, end = event.chars
        known = self._from + len(self._timed)
        if end <= known:
            return
        first, last = float(event.samples[0]), float(event.samples[1])
        begin = max(begin, known)
        self._spread(begin - known, self._known_sample, max(first, self._known_sample))
        self._spread(end - begin, max(first, self._known_sample), last)
        self._known_sample = max(last, self._known_sample)

    def reaches(self, sample: int) -> bool:
        """Whether the characters are known up to this sample."""
        return self._known_sample >= sample

    def take(self, to_sample: float) -> Span:
        """The characters, not told before, that begin before ``to_sample``."""
        count = 0
        while count < min(len(self._timed), len(self._text)) and self._timed[count][0] < to_sample:
            count += 1
        return self._told(count)

    def rest(self, at_sample: float) -> Span:
        """All that is left; what nothing is known of (a last full stop) has no length."""
        self._timed += [(max(self._known_sample, at_sample), 0.0)] * (len(self._text) - len(self._timed))
        return self._told(len(self._text))

    def _spread(self, count: int, begin: float, end: float) -> None:
        length = max(0.0, end - begin) / count if count else 0.0
        self._timed += [(begin + k * length, length) for k in range(count)]

    def _told(self, count: int) -> Span:
        span = Span(list(self._text[:count]), *map(list, zip(*self._timed[:count], strict=True))) if count else Span()
        self._text, self._timed, self._from = self._text[count:], self._timed[count:], self._from + count
        return span


@dataclass(frozen=True)
class Piece:
    """Sound from sample ``first`` on, and the characters that begin in it; the last piece holds all that is
    left of them (and perhaps no sound)."""

    first: int
    pcm: bytes
    span: Span
    last: bool = False


async def with_times(speech: Speech, times: CharTimes, hold_s: float = HOLD_S) -> AsyncGenerator[Piece, None]:
    """The speech in pieces, each held for its characters up to ``hold_s``. Raises `GatewayError` when it fails or
    somebody else silences it."""
    held = _Held(hold_s)
    events = speech.events()
    coming: asyncio.Future[Event | Sound | None] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events, None))
            if held and not (await asyncio.wait({coming}, timeout=held.left_s))[0]:
                yield held.take(times)
            event = await coming
            coming = None
            match event:
                case None:
                    return
                case Sound():
                    held.add(event)
                case Aligned():
                    times.aligned(event)
                case Rejected(field="id"):
                    pass  # the text was ended after a long silence; its last event follows
                case _:
                    speech.check(event)
            if isinstance(event, Finished):
                yield held.take(times, last=True)
            elif held and times.reaches(held.end):
                yield held.take(times)
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()


class _Held:
    """Sound that waits for the times of its characters."""

    def __init__(self, hold_s: float) -> None:
        self.end = 0
        self._hold_s = hold_s
        self._first = 0
        self._parts: list[bytes] = []
        self._since_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def left_s(self) -> float:
        """How long it may still wait."""
        return max(0.0, self._since_s + self._hold_s - time.monotonic())

    def add(self, sound: Sound) -> None:
        """One more piece."""
        if not self._parts:
            self._first, self._since_s = sound.first_sample, time.monotonic()
        self._parts.append(sound.pcm)
        self.end = sound.first_sample + sound.count

    def take(self, times: CharTimes, last: bool = False) -> Piece:
        """All of it, with its characters."""
        parts, self._parts = self._parts, []
        span = times.rest(self.end) if last else times.take(self.end)
        return Piece(self._first if parts else self.end, b"".join(parts), span, last)
