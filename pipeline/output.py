"""One output (the speaker, or a remote listener's slot): what stands in its ring, and whose it is.

A *stint* is one segment's stay in the ring. Stints get growing epochs, so that spans in a ring stand
in epoch order and taking something back is a discard on the reader's side: everything below an
epoch, or single stints between those that stay. A cancel drops stints for good; what was only made
ahead of a more urgent utterance is dropped too, and rendered again in its turn, from its tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ipc.messages import SAMPLE_RATE

MAX_UNPLAYED_STINTS = 16
"""Well below the 64 spans and single discards that a ring remembers."""


@dataclass(frozen=True)
class RingView:
    """What the shared memory says of one slot. ``ear_sample`` reaches the ear at ``ear_s``
    (monotonic); ``device_s`` is the latency behind the read cursor."""

    written: int
    read: int
    ear_sample: int
    ear_s: float
    underruns: int = 0
    device_s: float = 0.0
    oldest: dict[int, int] = field(default_factory=dict)
    """By utterance, its first sample that a remote listener can have again."""
    resending: bool = False
    """A listener that attached again has not got all yet that was sent before."""


@dataclass
class Stint:
    """Ring samples ``start`` … ``end`` are segment ``index`` of one utterance; ``base`` is the
    utterance's sample at ``start``."""

    epoch: int
    uid: int
    start: int
    end: int
    base: int
    index: int
    discarded: bool = False


@dataclass
class OutputState:
    """An output and the worker that writes its slot."""

    slot: int
    owner: tuple[bytes, str] | None
    """(client, conversation) of a remote listener; None for the speaker."""
    view: RingView = field(default_factory=lambda: RingView(0, 0, 0, 0.0))
    holder: tuple[int, int] | None = None
    """(index, pid) of the s3gen worker that has the lease."""
    lease: int = 0
    next_epoch: int = 1
    stream: int | None = None
    """The stream being rendered."""
    closing: int | None = None
    """A cancelled stream whose worker has not confirmed yet."""
    settling: bool = False
    """A former writer may still be at work: nothing is opened."""
    stints: deque[Stint] = field(default_factory=deque)
    seen: bool = False
    """``view`` is what the ring says; until then nothing can be placed."""
    moved_s: float = 0.0
    """When the reader last took something."""

    @property
    def free(self) -> bool:
        """A segment may be opened."""
        return self.seen and self.idle and not self.settling

    @property
    def idle(self) -> bool:
        """Nobody writes into the slot."""
        return self.stream is None and self.closing is None

    def ear(self, now_s: float) -> int:
        """The ring sample that reaches the ear now; a remote listener's ear is what was sent.

        The device tells when the block that it took last will be heard, so ``ear_s`` mostly lies ahead.
        """
        view = self.view
        if self.owner is not None:
            return view.ear_sample
        return min(view.read, view.ear_sample + int((now_s - view.ear_s) * SAMPLE_RATE))

    def unplayed(self) -> list[Stint]:
        """Stints with samples that the reader has not taken, and the open one."""
        if not self.stints:
            return []
        return [stint for stint in self.stints if stint.end > self.view.read or stint is self.stints[-1]]

    def live_fill(self) -> int:
        """Samples in the ring that will be heard."""
        read = self.view.read
        return sum(max(0, stint.end - max(stint.start, read)) for stint in self.stints if not stint.discarded)

    def unheard_fill(self) -> int:
        """The same without what a remote listener was sent and has not confirmed."""
        heard = self.view.read if self.owner is None else max(self.view.read, self.view.ear_sample)
        return sum(max(0, stint.end - max(stint.start, heard)) for stint in self.stints if not stint.discarded)

    @property
    def unsent(self) -> bool:
        """A remote listener has not taken all that is there for it. (What it took and has not confirmed stays
        in the ring.)"""
        return any(stint.end > max(stint.start, self.view.ear_sample) for stint in self.stints if not stint.discarded)

    def may_open_stint(self) -> bool:
        """The ring can still tell all unplayed stints apart."""
        waiting = [stint for stint in self.stints if stint.end > self.view.read]
        return len(waiting) < MAX_UNPLAYED_STINTS

    def open_stint(self, uid: int, base: int, index: int) -> Stint:
        """A new stint at the ring's end."""
        stint = Stint(self.next_epoch, uid, self.view.written, self.view.written, base, index)
        self.next_epoch += 1
        self.stints.append(stint)
        return stint

    def take_written(self) -> None:
        """What the last stint's writer had committed counts, reported or not: it is in the ring."""
        if self.stints:
            self.stints[-1].end = max(self.stints[-1].end, self.view.written)

    def unheard(self, margin: int) -> list[Stint]:
        """Stints that the reader will not touch within the next ``margin`` samples, in order."""
        read = self.view.read
        return [stint for stint in self.stints if not stint.discarded and stint.start >= read + margin]

    def forget_played(self, ear: int) -> Iterator[Stint]:
        """Drop and yield stints that the ear is past, except an undiscarded last one."""
        while self.stints:
            first = self.stints[0]
            last_live = len(self.stints) == 1 and not first.discarded
            if last_live or first.end > min(ear, self.view.read):
                return
            yield self.stints.popleft()

    def heard_of(self, stint: Stint, ear: int) -> int:
        """Samples of the stint's utterance that have been heard, counted from its first."""
        return stint.base + min(max(ear, stint.start), stint.end) - stint.start
