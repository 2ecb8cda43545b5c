"""What one block of output is: a pure function of the ring, called from a sound card's callback.

`Playback` turns the speaker's ring into blocks. It does no I/O, takes no lock, logs nothing and
keeps nothing that grows. A block is `Playback.fill`, then the caller puts it out, then
`Playback.commit`: samples leave the ring only after they were put out, so that a player killed in
between repeats at most one block and loses nothing.

States and what moves between them::

    IDLE ──enough──► PLAYING ──a complete piece of speech is over──► IDLE
                        │ ▲
         runs dry early │ │ enough again (faded in)
                        ▼ │
                      STARVED            PAUSED: from any of them and back

*Enough* is ``prebuffer_samples``, or a complete piece of speech however short, or whatever there is
when nothing was added for half a second (its maker has failed: what it made is heard).

Every sample of a complete piece is put out exactly as it was made. Fades (5 ms) are only where sound
would break off: a starvation (the last samples there are fade, the next ones fade in), a pause (what
fades is heard again after it) and a cancel (the first samples that were discarded fade).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import numpy as np

from ipc.ring import ReaderState, Samples, Span

_FADE_S = 0.005
_PATIENCE_S = 0.5


class State(IntEnum):
    """What the speaker does; the reader state's code in the ring."""

    IDLE = 0
    PLAYING = 1
    STARVED = 2
    PAUSED = 3
    NO_DEVICE = 4

    @property
    def label(self) -> str:
        """For people."""
        return self.name.lower().replace("_", " ")


class Reader(Protocol):
    """What is used of `ipc.ring.RingReader`."""

    @property
    def read(self) -> int: ...
    @property
    def complete(self) -> int: ...
    @property
    def paused(self) -> bool: ...
    def skip_discarded(self) -> int: ...
    def regions(self, limit: int) -> tuple[Samples, Samples]: ...
    def advance(self, samples: int) -> None: ...
    def span(self) -> Span | None: ...
    def publish(self, state: ReaderState) -> None: ...


class Playback:
    """The speaker's side of the ring, used by one thread at a time.

    ``block_samples`` is the longest block that `fill` is asked for, ``prebuffer_samples`` what must be
    in the ring before speech that is still being made starts (it must be less than the ring holds).
    """

    def __init__(self, reader: Reader, block_samples: int, rate_hz: int, prebuffer_samples: int) -> None:
        self._reader = reader
        self._rate_hz = rate_hz
        self._fade_samples = round(_FADE_S * rate_hz)
        self._start_samples = max(prebuffer_samples, block_samples + self._fade_samples)
        self._patience_samples = round(_PATIENCE_S * rate_hz)
        steps = (np.arange(self._fade_samples, dtype=np.float32) + np.float32(0.5)) / np.float32(self._fade_samples)
        self._rise = steps
        self._fall = steps[::-1].copy()
        self._ahead = np.zeros(self._fade_samples, np.float32)  # copies of the samples that come next
        self._ahead_samples = 0
        self._flowing = False
        self._fade_in = False
        self._top = 0
        self._waited_samples = 0
        self._first = 0
        self._first_at = 0
        self._dac_sample = reader.read
        self._dac_ns = 0
        self.state = State.IDLE
        self.starvations = 0
        self.closing = False
        """Set by anybody: fade what is playing and take nothing more."""
        self.taken_samples = 0
        """Samples of the ring in the block filled last."""
        self.sounding_samples = 0
        """Length of the block filled last without the silence at its end that nobody made."""

    def fill(self, out: Samples) -> None:
        """Make one block (float32, one dimension)."""
        reader = self._reader
        out.fill(0.0)
        self.taken_samples = self.sounding_samples = 0
        skipped = reader.skip_discarded()
        complete, read = reader.complete, reader.read  # before the samples: these are all there then
        first, second = reader.regions(max(self._start_samples, len(out) + self._fade_samples))
        live = len(first) + len(second)
        at = 0
        if self._flowing and (skipped or live < self._ahead_samples):
            at = self._break_off(out)
        if self.closing or reader.paused:
            self._hold(out)
            return
        whole = max(0, min(complete - read, live))
        if live and (self._flowing or self._enough(read, live, whole, len(out) - at)):
            self._stretch(out, at, read, (first, second), whole, complete == read)
        else:
            self._dry(live)

    def commit(self, now_ns: int, dac_ns: int, latency_ns: int) -> None:
        """The block filled last was put out; its first sample reaches the ear at ``dac_ns``."""
        if self.taken_samples:
            self._dac_sample = self._first
            self._dac_ns = dac_ns + self._first_at * 1_000_000_000 // self._rate_hz
            self._reader.advance(self.taken_samples)
        self._publish(now_ns, latency_ns)
        self.taken_samples = 0

    def drain(self, out: Samples) -> int:
        """Free pace: whatever is live now, at most ``len(out)`` samples, without prebuffer or fades.

        Returns their count. `commit` follows as after `fill`.
        """
        reader = self._reader
        self.taken_samples = self.sounding_samples = 0
        reader.skip_discarded()
        if self.closing or reader.paused:
            self.state = State.PAUSED
            return 0
        first, second = reader.regions(len(out))
        out[: len(first)] = first
        taken = len(first) + len(second)
        out[len(first) : taken] = second
        self.taken_samples = self.sounding_samples = taken
        self._first, self._first_at = reader.read, 0
        self.state = State.PLAYING if taken else State.IDLE
        return taken

    def hold(self, now_ns: int) -> None:
        """Nobody takes blocks now: there is no device. Nothing is consumed; cancelled speech is dropped."""
        if self._reader.skip_discarded():
            self._flowing = False
        self._fade_in = self._fade_in or self._flowing
        self.state = State.NO_DEVICE
        self._publish(now_ns, 0)

    def _publish(self, now_ns: int, latency_ns: int) -> None:
        self._reader.publish(
            ReaderState(self.starvations, latency_ns, now_ns, self._dac_sample, self._dac_ns, self.state)
        )

    def _enough(self, read: int, live: int, whole: int, block: int) -> bool:
        """Whether playing may begin with ``live`` samples, ``whole`` of them complete speech.

        ``block``: samples that pass if not.
        """
        if whole or live >= self._start_samples:
            return True
        if read + live != self._top:
            self._top = read + live
            self._waited_samples = 0
            return False
        self._waited_samples += block
        return self._waited_samples >= self._patience_samples

    def _dry(self, live: int) -> None:
        """Nothing to play, or not enough yet."""
        if self._flowing and not live:
            # Played to the last sample, and that one completed a piece: nothing broke off.
            self._flowing = False
        if self.state is not State.STARVED:
            self.state = State.IDLE

    def _stretch(
        self, out: Samples, at: int, read: int, sound: tuple[Samples, Samples], whole: int, between: bool
    ) -> None:
        """Play from ``sound`` into ``out[at:]`` and decide how it ends.

        ``whole``: so many samples may end without a fade; ``between``: so may what ended before ``read``.
        """
        want, live, fade = len(out) - at, len(sound[0]) + len(sound[1]), self._fade_samples
        starves = False
        # A piece that follows may begin in this block if there is enough of it to go on with.
        onward = not whole or live - whole >= len(out) + fade
        if whole >= want or (live - fade >= want and onward):
            take, self._flowing = want, True
        elif whole or (between and self._flowing):
            # One piece ends in this block, or ended with the last; of the next there is not enough.
            take, self._flowing = whole, False
        else:
            take, self._flowing, starves = min(live, want), False, True
        _copy(out[at : at + take], sound, 0)
        if self._fade_in and take:
            self._rise_at(out[at : at + take], read)
        if starves:
            tail = min(fade, take)
            out[at + take - tail : at + take] *= self._fall[fade - tail :]
            self.starvations += 1
            self._fade_in = True
        self._ahead_samples = min(fade, live - take) if self._flowing else 0
        _copy(self._ahead[: self._ahead_samples], sound, take)
        self.state = State.STARVED if starves else State.PLAYING if take else State.IDLE
        self._waited_samples = 0
        self._took(at, take, read)

    def _took(self, at: int, take: int, read: int) -> None:
        self.taken_samples = take
        self.sounding_samples = at + take
        self._first, self._first_at = read, at

    def _rise_at(self, sound: Samples, read: int) -> None:
        """Fade in, unless here begins a segment: nothing of it was heard, so nothing broke off."""
        self._fade_in = False
        span = self._reader.span()
        if span is None or span.start_sample != read:
            length = min(len(sound), self._fade_samples)
            sound[:length] *= self._rise[:length]

    def _break_off(self, out: Samples) -> int:
        """What was playing was cancelled: fade its next samples. Returns how many."""
        faded = 0 if self._fade_in else self._fade(out)
        self._flowing = self._fade_in = False
        self._ahead_samples = 0
        self.state = State.IDLE
        return faded

    def _hold(self, out: Samples) -> None:
        """Paused: fade the next samples once and take none."""
        if self._flowing and not self._fade_in:
            self._fade(out)
            self._fade_in = True
        self.state = State.PAUSED

    def _fade(self, out: Samples) -> int:
        length = min(self._ahead_samples, len(out))
        np.multiply(self._ahead[:length], self._fall[self._fade_samples - length :], out=out[:length])
        self.sounding_samples = length
        return length


def _copy(into: Samples, sound: tuple[Samples, Samples], skip: int) -> None:
    """The two pieces joined, from ``skip`` on; they hold enough for ``into``."""
    first, second = sound
    head = first[skip : skip + len(into)]
    into[: len(head)] = head
    if len(head) < len(into):
        begin = max(0, skip - len(first))
        into[len(head) :] = second[begin : begin + len(into) - len(head)]
