"""The sound between processes: one anonymous piece of shared memory with a ring per output.

Contract
--------
- An arena holds slot 0 (the speaker) and slots 1… (remote listeners). It is made before any worker
  and inherited as a descriptor; it has no name, so nothing can be left behind, stolen or unlinked.
- A slot is a ring of float32 mono samples with one writer (s3gen) and one reader (the player, or the
  dispatcher for a remote listener). The dispatcher steers it: lease, discards, pause.
- Positions are absolute sample numbers. Cursors only grow and nothing is ever reset: sample k lies at
  ``k % capacity`` of the ring while ``read <= k < written``.
- A word is 8 bytes, aligned, native order, and loaded or stored whole. Every word has one writer, and
  words of different writers lie on different 64-byte lines.
- A span ``(start_sample, epoch, segment)`` says to whom the samples from its start up to the next
  span's start belong. It is published before its samples. Spans of a slot stand in order of start and
  of epoch. A span published where the last one began (its writer died or was cancelled before any
  sample) is added behind it; the earlier one then covers nothing and the last one counts.
- A span is discarded when ``epoch < discard_below`` or when its stint was discarded on its own. That
  holds for samples not written yet, too, so a cancel races with no writer. A stint stands in the table
  of discarded epochs; when a later one needs its word, its spans are marked one by one instead: it has
  them all, because stints are begun in order. So any number of stints can be discarded, and no discard
  fails or undoes another.
- Any process may be killed between any two stores. A writer's successor finds `RingWriter.written`
  and writes sample ``written`` next; what the dead one had copied beyond it does not exist. A
  reader's successor finds `RingReader.read`: what was not committed by `advance` is read again.
- A `RingWriter`, `RingReader` or `RingControl` is used by one thread. None of them ever waits.

Bytes of an arena
-----------------
::

    0    magic │ version │ rate │ slots │ speaker_samples │ stream_samples │ bytes │ ·
    64   slot 0 (speaker_samples)   slot 1 (stream_samples)   slot 2 …        each on a 64-byte line

Bytes of a slot, one row a line; who writes it after creation stands on the right
::

    0     magic │ version │ rate │ capacity │ lease │ · · ·                 dispatcher (lease)
    64    written │ spans │ complete │ · · · · ·                            writer
    128   read │ · · · · · · ·                                              reader
    192   discard_below │ paused │ · · · · · ·                              dispatcher
    256   sequence │ underruns │ latency_ns │ callback_ns │
                     dac_sample │ dac_ns │ state │ ·                        reader
    320   discarded epochs: 64 words, epoch e in word e % 64                dispatcher
    832   dropped spans: 64 words, span i is marked by i + 1 in word i % 64 dispatcher
    1344  64 spans: start_sample │ epoch │ segment │ ·, span i in place i % 64  writer
    3392  capacity × float32                                                writer

Fences
------
x86 keeps loads and stores of one thread in the order needed here, ARM64 does not. Each fence below
names the hazard it prevents:

- SPACE    writer: `read`, fence, samples. Without: samples overwrite what is still being read.
- SOUND    writer: samples, fence, `written`. Without: the reader plays what lay there a lap ago.
- SPAN     writer: span, fence, `spans`. Without: the reader takes an old lap's span for the new one.
- LAP      writer: `spans`, fence, the next span. Without: `RingControl.spans` can't tell that the
           span it is copying is being overwritten.
- ORDER    reader: `written`, fence, `spans`, fence, spans and samples. The other way round a span that
           appears in between is missed, and its samples are dropped with a discarded span's.
- WHOLE    writer: `written`, fence, `complete`; reader: `complete`, fence, `written`. Without: samples
           are missing before a place that was said to be complete.
- CONSUMED reader: samples and spans loaded, fence, `read`. Without: the writer overwrites them first.
- HANDOVER discards: marks of a stint's spans, fence, its word given to another. Without: for a moment
           neither holds, and a cancelled stint sounds.
- TORN     reader state: odd sequence, fence, fields, fence, even sequence. Without: half an update.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ipc.messages import SAMPLE_RATE

Samples = npt.NDArray[np.float32]

VERSION = 1
SPAN_PLACES = 64
_ARENA_MAGIC = int.from_bytes(b"CHATAREN", "little")
_SLOT_MAGIC = int.from_bytes(b"CHATRING", "little")
_LINE_BYTES = 64
_WORD_BYTES = 8
_SAMPLE_BYTES = 4
_ZEROS_BYTES = 1 << 20

# Words of the arena's line.
_MAGIC, _VERSION, _RATE, _SLOTS, _SPEAKER, _STREAM, _BYTES, _EPOCH = range(8)
# Words of a slot; the first three are those of the arena's line.
_CAPACITY, _LEASE = 3, 4
_WRITTEN, _SPANS, _COMPLETE = 8, 9, 10
_READ = 16
_DISCARD_BELOW, _PAUSED = 24, 25
_SEQUENCE, _STATE = 32, 33
_DISCARDED = 40
_DROPPED = _DISCARDED + SPAN_PLACES
_SPAN_RING = _DROPPED + SPAN_PLACES
_SPAN_WORDS = 4
_SLOT_WORDS = _SPAN_RING + SPAN_PLACES * _SPAN_WORDS
_MOST = 2**63 - 1
_STATE_TRIES = 64


class RingError(Exception):
    """The shared memory cannot be made, attached or used that way; the message says what to do."""


class LeaseLost(RingError):
    """The slot belongs to another writer now: drop the stream, the dispatcher knows."""


class Span(NamedTuple):
    """From ``start_sample`` on, until the next span, samples belong to ``segment`` of stint ``epoch``."""

    start_sample: int
    epoch: int
    segment: int


class ReaderState(NamedTuple):
    """What the reader tells. Sample ``dac_sample`` reaches the ear at monotonic time ``dac_ns``;
    ``callback_ns`` is the monotonic time of the last callback, ``state`` the reader's own code."""

    underruns: int = 0
    latency_ns: int = 0
    callback_ns: int = 0
    dac_sample: int = 0
    dac_ns: int = 0
    state: int = 0


class _Fence:
    """A full memory fence: no load or store moves across a call, on any processor.

    Releasing and taking a held lock is a store-release followed by a load-acquire of the same word
    (the other order would let both neighbours move in between). The lock is private, so it is never
    contended and never waits.
    """

    __slots__ = ("_acquire", "_release")

    def __init__(self) -> None:
        lock = Lock()
        lock.acquire()
        self._acquire, self._release = lock.acquire, lock.release

    def __call__(self) -> None:
        self._release()
        self._acquire()


def _span(words: memoryview[int], index: int) -> Span:
    at = _SPAN_RING + index % SPAN_PLACES * _SPAN_WORDS
    return Span(words[at], words[at + 1], words[at + 2])


class RingWriter:
    """The writing end of a slot. `begin_span`, then `write` until everything is accepted."""

    def __init__(self, words: memoryview[int], pcm: Samples, slot: int, lease: int) -> None:
        self._words = words
        self._pcm = pcm
        self._slot = slot
        self._lease = lease
        self._fence = _Fence()
        self._refused = False
        self._check_lease()

    @property
    def written(self) -> int:
        """The next sample's number."""
        return self._words[_WRITTEN]

    def writable(self) -> int:
        """Samples that `write` would accept now; 0 after a refused `begin_span`."""
        if self._refused:
            return 0
        return len(self._pcm) - (self._words[_WRITTEN] - self._words[_READ])

    def begin_span(self, epoch: int, segment: int) -> bool:
        """The samples from `written` on belong to this segment.

        The same segment again is no new span. False: the reader still needs every span's place; then
        nothing is accepted until a later `begin_span` returns True. Raises `LeaseLost`, and
        `RingError` when epochs would not stand in order.
        """
        words = self._words
        self._check_lease()
        if not 1 <= epoch <= _MOST or not 0 <= segment <= _MOST:
            raise RingError(f"span (epoch {epoch}, segment {segment}): epochs count from 1, segments from 0")
        count = words[_SPANS]
        if count and (last := _span(words, count - 1)).epoch >= epoch:
            if last.epoch > epoch:
                raise RingError(f"slot {self._slot}: epoch {epoch} after {last.epoch}: number every stint higher")
            if last.segment == segment:
                self._refused = False
                return True
        # The place to be taken is that of span count-64: free once the reader is in a later one.
        self._refused = count >= SPAN_PLACES and _span(words, count - SPAN_PLACES + 1).start_sample > words[_READ]
        if self._refused:
            return False
        self._fence()  # LAP, and CONSUMED's other half: the reader is done with the place
        at = _SPAN_RING + count % SPAN_PLACES * _SPAN_WORDS
        words[at], words[at + 1], words[at + 2] = words[_WRITTEN], epoch, segment
        self._fence()  # SPAN
        words[_SPANS] = count + 1
        return True

    def write(self, samples: Samples) -> int:
        """Append float32 mono samples of the span begun last; returns how many were accepted (the first ones).

        Raises `LeaseLost`, and `RingError` for another shape or type or when no span was ever begun.
        """
        words = self._words
        self._check_lease()
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise RingError(f"samples: {samples.ndim} dimensions of {samples.dtype}; one of float32 is allowed")
        if not words[_SPANS]:
            raise RingError(f"slot {self._slot}: samples without a span; call begin_span first")
        accepted = min(len(samples), self.writable())
        if not accepted:
            return 0
        self._fence()  # SPACE
        written, capacity = words[_WRITTEN], len(self._pcm)
        at = written % capacity
        first = min(accepted, capacity - at)
        self._pcm[at : at + first] = samples[:first]
        if first < accepted:
            self._pcm[: accepted - first] = samples[first:accepted]
        self._fence()  # SOUND
        words[_WRITTEN] = written + accepted
        return accepted

    def complete(self) -> None:
        """What is written so far ends a piece of speech: the reader may run dry here, nothing breaks off.

        Raises `LeaseLost`.
        """
        self._check_lease()
        self._fence()  # WHOLE
        self._words[_COMPLETE] = self._words[_WRITTEN]

    def _check_lease(self) -> None:
        if self._words[_LEASE] != self._lease:
            raise LeaseLost(f"slot {self._slot}: lease {self._lease} was passed on, {self._words[_LEASE]} holds it now")


class RingReader:
    """The reading end of a slot, fit for a sound card's callback.

    One block: `skip_discarded`, `regions`, use them, `advance`. The views point into the ring: they
    are good until `advance`.
    """

    def __init__(self, words: memoryview[int], pcm: Samples) -> None:
        self._words = words
        self._pcm = pcm.view()
        self._pcm.flags.writeable = False
        self._fence = _Fence()

    @property
    def read(self) -> int:
        """The number of the next sample to read."""
        return self._words[_READ]

    @property
    def written(self) -> int:
        """The number of the next sample to be written."""
        return self._words[_WRITTEN]

    @property
    def complete(self) -> int:
        """Up to this sample the last complete piece of speech goes (0: none yet); it is never beyond
        what `written` and `regions` say afterwards."""
        complete = self._words[_COMPLETE]
        self._fence()  # WHOLE
        return complete

    @property
    def paused(self) -> bool:
        """The dispatcher asks to hold; whether and how is the reader's matter."""
        return bool(self._words[_PAUSED])

    def skip_discarded(self) -> int:
        """Move `read` to the first sample that is not discarded; returns how many were dropped."""
        read = self._words[_READ]
        _, live, _ = self._look(read)
        if live > read:
            self._fence()  # CONSUMED: the spans passed over
            self._words[_READ] = live
        return live - read

    def readable(self) -> int:
        """Samples from `read` up to the first discarded one, or to `written`."""
        read = self._words[_READ]
        return self._look(read)[2] - read

    def regions(self, limit: int) -> tuple[Samples, Samples]:
        """The next samples, ``min(limit, readable())`` in all, as two read-only views, in order.

        The second is not empty only where the ring wraps.
        """
        read, capacity = self._words[_READ], len(self._pcm)
        count = min(limit, self._look(read)[2] - read)
        at = read % capacity
        first = min(count, capacity - at)
        return self._pcm[at : at + first], self._pcm[: count - first]

    def peek(self, position: int, limit: int) -> tuple[int, Span | None, Samples, Samples]:
        """Up to ``limit`` live samples of one span at or after ``position`` (``read`` or later), without
        committing anything: where they begin, their span, and two views as of `regions`.

        For a reader that uses samples before it commits them. Where nothing is live yet, the views
        are empty and the position is where the next samples will be.
        """
        if position < self._words[_READ]:
            raise RingError(f"peek at {position}: the reader has committed up to {self._words[_READ]}")
        begin = self._look(position)[1]
        index, live, end = self._look(begin)
        if index < 0 or live > begin:
            return live, None, self._pcm[:0], self._pcm[:0]
        span, capacity = _span(self._words, index), len(self._pcm)
        spans = self._words[_SPANS]
        self._fence()  # ORDER
        if index + 1 < spans:
            end = min(end, max(begin, _span(self._words, index + 1).start_sample))
        count = min(limit, end - begin)
        at = begin % capacity
        first = min(count, capacity - at)
        return begin, span, self._pcm[at : at + first], self._pcm[: count - first]

    def advance(self, samples: int) -> None:
        """Commit: the next ``samples`` samples are used and their space is free."""
        read = self._words[_READ]
        if not 0 <= samples <= self._words[_WRITTEN] - read:
            raise RingError(f"advance by {samples}: 0 to {self._words[_WRITTEN] - read} samples can be committed")
        self._fence()  # CONSUMED
        self._words[_READ] = read + samples

    def span(self) -> Span | None:
        """The span that sample `read` belongs to, written yet or not: the last one that starts at or
        before it. None before the first span."""
        index = self._look(self._words[_READ])[0]
        return _span(self._words, index) if index >= 0 else None

    def publish(self, state: ReaderState) -> None:
        """Tell the dispatcher how the reader stands."""
        words = self._words
        # Odd already: a predecessor died half-way. Another odd number keeps its half from being taken.
        busy = words[_SEQUENCE] + 1 | 1
        words[_SEQUENCE] = busy
        self._fence()  # TORN
        for at, value in enumerate(state, _STATE):
            words[at] = value
        self._fence()  # TORN
        words[_SEQUENCE] = busy + 1

    def _look(self, read: int) -> tuple[int, int, int]:
        """Index of the span at ``read`` (-1: none), first live and first discarded sample from
        ``read`` on (`written` where there is none).

        Goes from the newest span back to the one at ``read``: those the writer leaves alone.
        """
        words = self._words
        live = discarded = following = words[_WRITTEN]
        self._fence()  # ORDER: spans of samples below `written` are all seen
        index = words[_SPANS] - 1
        self._fence()  # ORDER: what is counted is seen whole
        below = words[_DISCARD_BELOW]
        while index >= 0:
            at = _SPAN_RING + index % SPAN_PLACES * _SPAN_WORDS
            start, epoch = words[at], words[at + 1]
            begin = start if start > read else read
            if begin < following:  # else it covers no sample that is there
                place = index % SPAN_PLACES
                if (
                    epoch < below
                    or words[_DISCARDED + epoch % SPAN_PLACES] == epoch
                    or words[_DROPPED + place] == index + 1
                ):
                    discarded = begin
                else:
                    live = begin
                following = begin
            if start <= read:
                break
            index -= 1
        return index, live, discarded


class RingControl:
    """The dispatcher's hold on a slot; any process may use it to look."""

    def __init__(self, words: memoryview[int], slot: int) -> None:
        self._words = words
        self._slot = slot
        self._fence = _Fence()
        self._state = ReaderState()

    @property
    def lease(self) -> int:
        """Who may write; 0 is nobody."""
        return self._words[_LEASE]

    def grant(self, lease: int) -> None:
        """Pass the slot on. Only after the exit of the old writer's process was reported: a lease that
        is taken from a live writer stops it at its next call, not in the middle of one."""
        if not 0 <= lease <= _MOST:
            raise RingError(f"slot {self._slot}: lease {lease}: 0 (nobody) to {_MOST} is allowed")
        self._words[_LEASE] = lease

    @property
    def capacity(self) -> int:
        """Samples that fit."""
        return self._words[_CAPACITY]

    @property
    def written(self) -> int:
        """The number of the next sample to be written. Load `read` first where the difference matters."""
        return self._words[_WRITTEN]

    @property
    def read(self) -> int:
        """The number of the next sample to be read."""
        return self._words[_READ]

    @property
    def paused(self) -> bool:
        """What `pause` said last."""
        return bool(self._words[_PAUSED])

    def pause(self, paused: bool) -> None:
        """Ask the reader to hold, or to go on."""
        self._words[_PAUSED] = int(paused)

    def discard_below(self, epoch: int) -> None:
        """Drop every stint before ``epoch``, for good; a lower epoch than before changes nothing."""
        self._check_epoch(epoch)
        if epoch > self._words[_DISCARD_BELOW]:
            self._words[_DISCARD_BELOW] = epoch

    def discard_one(self, epoch: int) -> None:
        """Drop one stint, for good, and keep those before and after it. Any number can be dropped.

        When a stint is given, those before it are over: nothing begins a span of them any more.
        """
        self._check_epoch(epoch)
        words = self._words
        at = _DISCARDED + epoch % SPAN_PLACES
        held = words[at]
        if held > epoch:
            self._drop_spans(epoch)
        elif held != epoch:
            if held:
                self._drop_spans(held)
                self._fence()  # HANDOVER
            words[at] = epoch

    def _drop_spans(self, epoch: int) -> None:
        """Mark the spans of a stint that is over."""
        first, spans = self._known_spans()
        for index, span in enumerate(spans, first):
            if span.epoch == epoch:
                self._words[_DROPPED + index % SPAN_PLACES] = index + 1

    def spans(self) -> list[Span]:
        """The spans still known, oldest first: the last 63 at most, those already read included."""
        return self._known_spans()[1]

    def _known_spans(self) -> tuple[int, list[Span]]:
        """Index of the oldest span that is surely whole, and the spans from it on."""
        words = self._words
        count = words[_SPANS]
        self._fence()  # SPAN's other half
        oldest = max(0, count - SPAN_PLACES)
        spans = [_span(words, index) for index in range(oldest, count)]
        self._fence()  # LAP's other half
        # The writer may be at work on span `spans`, in the place of the one 64 before it.
        whole = max(oldest, words[_SPANS] - SPAN_PLACES + 1)
        return whole, spans[whole - oldest :]

    def reader_state(self) -> ReaderState:
        """What the reader published last, never torn. All zeros before the first time.

        While a publisher is half-way (or died so, until its successor publishes) it is what this
        object saw before.
        """
        words = self._words
        for _ in range(_STATE_TRIES):
            sequence = words[_SEQUENCE]
            if sequence % 2:
                continue
            self._fence()  # TORN
            state = ReaderState(*words[_STATE : _STATE + len(ReaderState._fields)].tolist())
            self._fence()  # TORN
            if words[_SEQUENCE] == sequence:
                self._state = state
                break
        return self._state

    def _check_epoch(self, epoch: int) -> None:
        if not 1 <= epoch <= _MOST:
            raise RingError(f"slot {self._slot}: epoch {epoch}: 1 to {_MOST} is allowed")


class Arena:
    """The shared memory of all outputs: made once by `create`, found by `attach` from its descriptor.

    Memory goes back to the system when the last process is gone or has dropped its arena and views.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        """For `create` and `attach`; takes over ``fd`` (also when it raises OSError)."""
        self._fd = fd
        try:
            self._map = mmap.mmap(fd, size_bytes)
        except OSError:
            os.close(fd)
            raise
        self._words = memoryview(self._map).cast("q")

    @classmethod
    def create(cls, speaker_samples: int, stream_samples: int, streams: int) -> Arena:
        """A new arena: slot 0 holds ``speaker_samples``, slots 1…``streams`` ``stream_samples`` each.

        All of it is reserved now, so that no store fails later. Raises `RingError`.
        """
        for field, value, least in (
            ("speaker_samples", speaker_samples, 1),
            ("stream_samples", stream_samples, 1),
            ("streams", streams, 0),
        ):
            if value < least:
                raise RingError(f"{field}: {value} is too small; at least {least}")
        capacities = [speaker_samples] + [stream_samples] * streams
        size_bytes = _LINE_BYTES + sum(map(_slot_bytes, capacities))
        try:
            arena = cls(_reserved_file(size_bytes), size_bytes)
        except OSError as error:
            raise RingError(
                f"arena: {size_bytes / 2**20:.1f} MiB of shared memory cannot be had: {error}; free memory or raise "
                "the limit (`ulimit -f`, the container's), or lower text.max_streams, flow.stream_ring_s or flow.ring_s"
            ) from error
        header = (VERSION, SAMPLE_RATE, len(capacities), speaker_samples, stream_samples, size_bytes)
        for slot, capacity in enumerate(capacities):
            words = arena._slot_words(slot, speaker_samples, stream_samples)
            words[_VERSION], words[_RATE], words[_CAPACITY] = VERSION, SAMPLE_RATE, capacity
            words[_MAGIC] = _SLOT_MAGIC
        for at, value in enumerate(header, _VERSION):
            arena._words[at] = value
        arena._words[_MAGIC] = _ARENA_MAGIC
        return arena

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """The arena behind an inherited descriptor; ``fd`` stays the caller's.

        Raises `RingError` when it is not an arena, or one of another version, rate or size.
        """
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes < _LINE_BYTES or size_bytes % _WORD_BYTES:
                raise RingError(f"arena: descriptor {fd} holds {size_bytes} bytes, not an arena; {_ATTACH_FIX}")
            arena = cls(os.dup(fd), size_bytes)
        except OSError as error:
            raise RingError(f"arena: descriptor {fd} cannot be mapped: {error}; {_ATTACH_FIX}") from error
        try:
            arena._check(size_bytes)
        except RingError:
            arena.close()
            raise
        return arena

    @property
    def fd(self) -> int:
        """The descriptor to pass on (``pass_fds``)."""
        return self._fd

    @property
    def slots(self) -> int:
        """Number of slots, the speaker's included."""
        return self._words[_SLOTS]

    def next_epoch(self) -> int:
        """A number that no dispatcher of this arena had before, from 1 on. For the dispatcher alone."""
        self._words[_EPOCH] += 1
        return self._words[_EPOCH]

    def writer(self, slot: int, lease: int) -> RingWriter:
        """The writing end. Raises `LeaseLost` when the slot is not leased to ``lease``."""
        words = self._known_slot(slot)
        if lease < 1:
            raise RingError(f"slot {slot}: lease {lease}: at least 1 is needed to write")
        return RingWriter(words, self._pcm(slot, words), slot, lease)

    def reader(self, slot: int) -> RingReader:
        """The reading end; a slot has one at a time."""
        words = self._known_slot(slot)
        return RingReader(words, self._pcm(slot, words))

    def control(self, slot: int) -> RingControl:
        """The dispatcher's hold on a slot."""
        return RingControl(self._known_slot(slot), slot)

    def close(self) -> None:
        """Close the descriptor and let go of the memory; ends taken before stay good. Twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            # Not mmap.close(): it fails while any view lives. The mapping ends with its last view.
            del self._words, self._map

    def _known_slot(self, slot: int) -> memoryview[int]:
        if self._fd < 0:
            raise RingError("arena: it is closed; take writers, readers and controls before closing it")
        if not 0 <= slot < self.slots:
            raise RingError(f"slot {slot}: 0 (speaker) to {self.slots - 1} exist; text.max_streams sets their number")
        return self._slot_words(slot, self._words[_SPEAKER], self._words[_STREAM])

    def _slot_words(self, slot: int, speaker_samples: int, stream_samples: int) -> memoryview[int]:
        at = _slot_at(slot, speaker_samples, stream_samples) // _WORD_BYTES
        return self._words[at : at + _SLOT_WORDS]

    def _pcm(self, slot: int, words: memoryview[int]) -> Samples:
        at = _slot_at(slot, self._words[_SPEAKER], self._words[_STREAM]) + _SLOT_WORDS * _WORD_BYTES
        return np.frombuffer(self._map, np.float32, words[_CAPACITY], at)

    def _check(self, size_bytes: int) -> None:
        words = self._words
        _check_header("arena", words, _ARENA_MAGIC)
        slots, speaker, stream, size = (words[at] for at in (_SLOTS, _SPEAKER, _STREAM, _BYTES))
        if min(slots, speaker, stream) < 1 or size != size_bytes or _slot_at(slots, speaker, stream) != size_bytes:
            raise RingError(
                f"arena: the header tells of {slots} slots of {speaker} and {stream} samples in {size} bytes, "
                f"the memory has {size_bytes}; {_ATTACH_FIX}"
            )
        for slot in range(slots):
            slot_words = self._slot_words(slot, speaker, stream)
            _check_header(f"slot {slot}", slot_words, _SLOT_MAGIC)
            if slot_words[_CAPACITY] != (stream if slot else speaker):
                raise RingError(f"slot {slot}: capacity {slot_words[_CAPACITY]} is not the arena's; {_ATTACH_FIX}")


_ATTACH_FIX = "start the process with the descriptor of launch's arena (--arena FD, kept open by pass_fds)"


def _check_header(what: str, words: memoryview[int], magic: int) -> None:
    if words[_MAGIC] != magic:
        raise RingError(f"{what}: magic {words[_MAGIC]:#x}, not {magic:#x}: this is no arena; {_ATTACH_FIX}")
    if words[_VERSION] != VERSION:
        raise RingError(
            f"{what}: version {words[_VERSION]}, this program knows {VERSION}; "
            "stop the pipeline and start all of it from one installation"
        )
    if words[_RATE] != SAMPLE_RATE:
        raise RingError(f"{what}: {words[_RATE]} samples a second, this program knows {SAMPLE_RATE}; {_ATTACH_FIX}")


def _slot_bytes(capacity: int) -> int:
    lines = -(-(_SLOT_WORDS * _WORD_BYTES + capacity * _SAMPLE_BYTES) // _LINE_BYTES)
    return lines * _LINE_BYTES


def _slot_at(slot: int, speaker_samples: int, stream_samples: int) -> int:
    """Byte at which a slot starts (one past the last slot: the arena's size)."""
    if slot == 0:
        return _LINE_BYTES
    return _LINE_BYTES + _slot_bytes(speaker_samples) + (slot - 1) * _slot_bytes(stream_samples)


def _reserved_file(size_bytes: int) -> int:
    """Descriptor of a file without a name that really has this many zero bytes. Raises OSError.

    Growing it with ftruncate would succeed on a full system and end in SIGBUS at a later store.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("chatterline-arena")
    else:
        with tempfile.TemporaryFile(prefix="chatterline-arena-") as file:
            fd = os.dup(file.fileno())
    try:
        _reserve(fd, size_bytes)
    except OSError:
        os.close(fd)
        raise
    return fd


def _reserve(fd: int, size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size_bytes)
        return
    zeros = memoryview(bytes(_ZEROS_BYTES))
    left_bytes = size_bytes
    while left_bytes:
        left_bytes -= os.write(fd, zeros[: min(left_bytes, _ZEROS_BYTES)])
