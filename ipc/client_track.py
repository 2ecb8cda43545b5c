"""What a client keeps of one utterance: what its events add up to, what of its text may have to be
said again, and what the program has not read yet. Nothing here knows sockets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipc.messages import (
    SAMPLE_RATE,
    Accepted,
    Aligned,
    Audio,
    Cancelled,
    End,
    Event,
    Failed,
    Finished,
    Progress,
    Rejected,
    Request,
    Text,
)

Ending = Finished | Cancelled | Failed | Rejected
Samples = npt.NDArray[np.float32]

PIECE_CHARS = 1000
"""A growing text travels in pieces of at most this size."""

WINDOW_CHARS = 20_000
"""A growing text runs at most this far ahead of its sound; then `write` waits."""

KEPT_EVENTS = 1000
"""Events of a speaker utterance that nobody reads; older ones go first."""


@dataclass(frozen=True)
class Sound:
    """A piece of a streamed utterance: s16le mono PCM from sample ``first_sample`` on."""

    id: str
    first_sample: int
    pcm: bytes

    @property
    def count(self) -> int:
        """Samples in it."""
        return len(self.pcm) // 2

    @property
    def samples(self) -> Samples:
        """The piece as float32 within ±1."""
        floats: Samples = np.frombuffer(self.pcm, "<i2").astype(np.float32) / np.float32(32767)
        return floats


class Track:
    """What an utterance's events add up to."""

    def __init__(self) -> None:
        self.accepted: Accepted | None = None
        self.ending: Ending | None = None
        self.next_sample = 0
        self.gap = False
        """Sound is missing before what came last; it must be asked for again."""
        self.made_chars = 0
        """Up to here the pipeline has made the text into sound: it has that text for certain."""
        self.heard_chars = 0

    @property
    def begun(self) -> bool:
        """Some of it has been heard."""
        return self.next_sample > 0 or self.heard_chars > 0

    def take(self, event: Event, pcm: bytes | memoryview | None) -> Event | Sound | None:
        """Note an event; what there is to tell the program (None: nothing, it was a repetition)."""
        if self.ending is not None:
            return None
        match event:
            case Audio():
                return self._sound(event, bytes(pcm or b""))
            case Accepted():
                first, self.accepted = self.accepted is None, event
                return event if first else None
            case Aligned(chars=(_, chars)) | Failed(chars=(_, chars), final=False):
                self.made_chars = max(self.made_chars, chars)
            case Progress(chars=chars):
                self.heard_chars = chars
                self.made_chars = max(self.made_chars, chars)
            case Finished(chars=chars) | Cancelled(chars=chars):
                self.heard_chars = chars
                self.ending = event
            case Failed():
                self.ending = event
            case _:
                pass
        return event

    def _sound(self, event: Audio, pcm: bytes) -> Sound | None:
        late = self.next_sample - event.first_sample
        if late < 0:
            self.gap = True
            return None
        if late >= event.samples:
            return None
        self.gap = False
        self.next_sample = event.first_sample + event.samples
        return Sound(event.id, event.first_sample + late, pcm[2 * late :])


class GrowingText:
    """The text sent so far: how much, and the tail that the pipeline may not have received.

    Each piece carries its offset, so all of the tail may be sent twice.
    """

    def __init__(self, id: str, text: str, final: bool) -> None:
        self.id = id
        self.sent_chars = len(text)
        self.ended = final
        self._final = final
        self._tail: deque[Text] = deque()

    def pieces(self, text: str) -> Iterator[str]:
        """Cut a text for travelling. A lone surrogate raises here, before it counts as sent."""
        text.encode()
        for start in range(0, len(text), PIECE_CHARS):
            yield text[start : start + PIECE_CHARS]

    def grow(self, piece: str) -> Text:
        """The request that adds a piece."""
        request = Text(id=self.id, text=piece, offset=self.sent_chars)
        self._tail.append(request)
        self.sent_chars += len(piece)
        return request

    def end(self) -> End:
        """The request that ends the text."""
        self.ended = True
        return End(id=self.id, offset=self.sent_chars)

    def forget(self, made_chars: int) -> None:
        """What was made into sound need not be kept."""
        while self._tail and (self._tail[0].offset or 0) + len(self._tail[0].text) <= made_chars:
            self._tail.popleft()

    def again(self) -> list[Request]:
        """All that may have been lost."""
        requests: list[Request] = list(self._tail)
        if self.ended and not self._final:
            requests.append(End(id=self.id, offset=self.sent_chars))
        return requests


class Inbox:
    """What the program has not read yet, and the bell that rings at every change.

    ``lossy``: when nobody reads, old events make room for new ones (a speaker utterance). Otherwise
    the writer is expected to wait while the inbox is `full`.
    """

    def __init__(self, buffer_s: float, lossy: bool) -> None:
        self._most_samples = round(buffer_s * SAMPLE_RATE)
        self._lossy = lossy
        self._changed = asyncio.Condition()
        self._items: deque[Event | Sound] = deque()
        self._samples = 0
        self.dropping = False
        """Sound is not wanted (any more)."""

    @property
    def full(self) -> bool:
        """As much sound waits as may."""
        return self._samples >= self._most_samples

    async def put(self, item: Event | Sound | None) -> None:
        """Add an item (None: ring only)."""
        async with self._changed:
            if isinstance(item, Sound):
                if not self.dropping:
                    self._samples += item.count
                    self._items.append(item)
            elif item is not None:
                if self._lossy and len(self._items) >= KEPT_EVENTS:
                    self._items.popleft()
                self._items.append(item)
            self._changed.notify_all()

    async def take(self, over: Callable[[], bool]) -> Event | Sound | None:
        """The next item, waiting for one; None when there is none and ``over``."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._items) or over())
            if not self._items:
                return None
            item = self._items.popleft()
            if isinstance(item, Sound):
                self._samples -= item.count
            self._changed.notify_all()
            return item

    async def drop_sound(self) -> None:
        """Forget the sound that waits, and all that will come."""
        async with self._changed:
            self.dropping = True
            self._items = deque(item for item in self._items if not isinstance(item, Sound))
            self._samples = 0
            self._changed.notify_all()

    async def until(self, ready: Callable[[], bool], limit_s: float | None = None) -> bool:
        """Wait until a change makes ``ready`` true; False when ``limit_s`` passed before."""
        try:
            async with asyncio.timeout(limit_s), self._changed:
                await self._changed.wait_for(ready)
        except TimeoutError:
            return False
        return True
