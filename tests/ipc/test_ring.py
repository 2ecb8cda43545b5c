"""The ring against a plain model of it, at its edges, and with a death at every store."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipc import ring
from ipc.messages import SAMPLE_RATE
from ipc.ring import SPAN_PLACES, Arena, LeaseLost, ReaderState, RingControl, RingError, RingReader, RingWriter, Span

CAPACITY = 100


def counted(first: int, samples: int) -> ring.Samples:
    """Sample k of an endless signal in which every sample differs from its neighbours for 2²² samples."""
    return ((np.arange(first, first + samples) % 2**22 + 1) / 2**23).astype(np.float32)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(CAPACITY, 40, 2)
    arena.control(0).grant(1)
    yield arena
    arena.close()


@pytest.fixture
def ends(arena: Arena) -> tuple[RingWriter, RingReader, RingControl]:
    return arena.writer(0, 1), arena.reader(0), arena.control(0)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def take(reader: RingReader, limit: int) -> ring.Samples:
    """Read and commit."""
    first, second = reader.regions(limit)
    samples = np.concatenate((first, second))
    reader.advance(len(samples))
    return samples


# --------------------------------------------------------------------------- samples


def test_samples_come_out_as_they_went_in_across_the_wrap(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, _ = ends
    writer.begin_span(1, 0)
    assert writer.write(counted(0, 70)) == 70
    assert np.array_equal(take(reader, 1000), counted(0, 70))
    assert writer.write(counted(70, 60)) == 60
    first, second = reader.regions(55)
    assert (len(first), len(second)) == (30, 25)
    assert np.array_equal(take(reader, 55), counted(70, 55))
    assert (reader.read, reader.written, reader.readable()) == (125, 130, 5)


def test_a_full_ring_accepts_what_fits_and_tells_how_much(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, _ = ends
    writer.begin_span(1, 0)
    assert writer.write(counted(0, 250)) == CAPACITY
    assert (writer.writable(), writer.write(counted(100, 10))) == (0, 0)
    take(reader, 7)
    assert writer.writable() == 7
    assert writer.write(counted(100, 10)) == 7
    assert np.array_equal(take(reader, 1000), counted(7, 100))


def test_regions_are_views_that_cannot_be_written(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, _ = ends
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    first, second = reader.regions(4)
    assert len(first) == 4
    assert len(second) == 0
    assert not first.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1.0
    writer.write(counted(10, 10))
    assert np.array_equal(first, counted(0, 4)), "an unread sample was touched"


@pytest.mark.parametrize("samples", [-1, 11])
def test_only_written_samples_can_be_committed(ends: tuple[RingWriter, RingReader, RingControl], samples: int) -> None:
    writer, reader, _ = ends
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    with pytest.raises(RingError, match="0 to 10 samples"):
        reader.advance(samples)
    assert reader.read == 0


@pytest.mark.parametrize("wrong", [np.zeros(4), np.zeros((2, 2), np.float32), np.zeros(4, np.int16)])
def test_samples_of_another_type_or_shape_are_refused(
    ends: tuple[RingWriter, RingReader, RingControl], wrong: ring.Samples
) -> None:
    writer, _, _ = ends
    writer.begin_span(1, 0)
    with pytest.raises(RingError, match="float32"):
        writer.write(wrong)
    assert writer.written == 0


def test_samples_before_any_span_are_refused(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    with pytest.raises(RingError, match="begin_span"):
        ends[0].write(counted(0, 1))


# --------------------------------------------------------------------------- spans


def test_the_span_is_known_before_its_first_sample(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, control = ends
    assert reader.span() is None
    assert control.spans() == []
    assert writer.begin_span(3, 0)
    assert control.spans() == [Span(0, 3, 0)]
    assert reader.span() == Span(0, 3, 0)


def test_the_same_span_again_is_no_new_span(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, _, control = ends
    assert writer.begin_span(1, 0)
    writer.write(counted(0, 5))
    assert writer.begin_span(1, 0)
    assert control.spans() == [Span(0, 1, 0)]


def test_a_span_that_got_no_sample_is_superseded_by_the_next(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, control = ends
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    writer.begin_span(2, 0)
    control.discard_one(2)
    writer.begin_span(3, 0)
    writer.write(counted(10, 10))
    assert control.spans() == [Span(0, 1, 0), Span(10, 2, 0), Span(10, 3, 0)]
    assert reader.readable() == 20, "a discarded span without samples must not cut the sound"
    take(reader, 10)
    assert reader.span() == Span(10, 3, 0)


def test_the_span_at_the_end_is_the_one_whose_sample_is_missing(
    ends: tuple[RingWriter, RingReader, RingControl],
) -> None:
    writer, reader, _ = ends
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    take(reader, 10)
    assert reader.span() == Span(0, 1, 0)
    writer.begin_span(1, 1)
    assert reader.span() == Span(10, 1, 1)


@pytest.mark.parametrize(("epoch", "segment"), [(0, 0), (-1, 0), (1, -1), (2**63, 0)])
def test_impossible_span_numbers_are_refused(
    ends: tuple[RingWriter, RingReader, RingControl], epoch: int, segment: int
) -> None:
    with pytest.raises(RingError, match="epochs count from 1"):
        ends[0].begin_span(epoch, segment)


def test_epochs_out_of_order_are_refused(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, _, control = ends
    writer.begin_span(5, 0)
    with pytest.raises(RingError, match="epoch 4 after 5"):
        writer.begin_span(4, 0)
    assert control.spans() == [Span(0, 5, 0)]


def test_a_span_that_is_still_needed_is_never_overwritten_and_nothing_is_accepted_meanwhile(
    ends: tuple[RingWriter, RingReader, RingControl],
) -> None:
    writer, reader, _ = ends
    for segment in range(SPAN_PLACES):
        assert writer.begin_span(1, segment)
        assert writer.write(counted(segment, 1)) == 1
    assert not writer.begin_span(1, SPAN_PLACES)
    assert writer.writable() == 0
    assert writer.write(counted(SPAN_PLACES, 1)) == 0, "the sample would belong to the wrong segment"
    assert reader.span() == Span(0, 1, 0)
    take(reader, 1)
    assert writer.begin_span(1, SPAN_PLACES)
    assert writer.write(counted(SPAN_PLACES, 1)) == 1
    assert reader.span() == Span(1, 1, 1)


def test_a_refused_span_is_forgotten_when_the_last_one_is_begun_again(
    ends: tuple[RingWriter, RingReader, RingControl],
) -> None:
    writer, _, _ = ends
    for segment in range(SPAN_PLACES):
        writer.begin_span(1, segment)
        writer.write(counted(segment, 1))
    assert not writer.begin_span(2, 0)
    assert writer.begin_span(1, SPAN_PLACES - 1)
    assert writer.write(counted(SPAN_PLACES, 1)) == 1


def test_the_dispatcher_is_never_given_a_span_that_may_be_half_overwritten(arena: Arena) -> None:
    control = arena.control(0)
    writer, reader = arena.writer(0, 1), arena.reader(0)
    for segment in range(SPAN_PLACES + 10):
        assert writer.begin_span(1, segment)
        writer.write(counted(segment, 1))
        take(reader, 1)
    # A writer in the middle of its next span: the place is scribbled on, the count is not raised yet.
    words = control._words
    count = words[ring._SPANS]
    words[ring._SPAN_RING + count % SPAN_PLACES * ring._SPAN_WORDS] = -1
    spans = control.spans()
    assert spans == [Span(k, 1, k) for k in range(count - SPAN_PLACES + 1, count)]


def test_spans_overwritten_while_the_dispatcher_copies_them_are_dropped(arena: Arena) -> None:
    control = arena.control(0)
    writer, reader = arena.writer(0, 1), arena.reader(0)

    def add(upto: int) -> None:
        for segment in range(writer.written, upto):
            assert writer.begin_span(1, segment)
            writer.write(counted(segment, 1))
            take(reader, 1)

    add(SPAN_PLACES)
    fences = 0

    def fence() -> None:
        nonlocal fences
        fences += 1
        if fences == 2:  # after the copy, before the count is looked at again
            add(SPAN_PLACES + 7)

    control._fence = fence  # type: ignore[assignment]
    assert control.spans() == [Span(k, 1, k) for k in range(8, SPAN_PLACES)]


# --------------------------------------------------------------------------- discards


def three_stints(writer: RingWriter) -> None:
    """Stints 1, 2, 3 of 10 samples each, the second of two segments."""
    for epoch, segment, first, samples in ((1, 0, 0, 10), (2, 0, 10, 4), (2, 1, 14, 6), (3, 0, 20, 10)):
        assert writer.begin_span(epoch, segment)
        assert writer.write(counted(first, samples)) == samples


def test_a_cancelled_stint_in_the_middle_is_left_out(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, control = ends
    three_stints(writer)
    control.discard_one(2)
    assert reader.skip_discarded() == 0
    assert np.array_equal(take(reader, 1000), counted(0, 10))
    assert reader.readable() == 0
    assert reader.skip_discarded() == 10
    assert reader.span() == Span(20, 3, 0)
    assert np.array_equal(take(reader, 1000), counted(20, 10))


def test_a_cancel_in_mid_stint_drops_the_rest_of_it(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, control = ends
    three_stints(writer)
    take(reader, 12)
    control.discard_below(3)
    assert reader.readable() == 0
    assert reader.regions(10)[0].size == 0
    assert reader.skip_discarded() == 8
    assert reader.read == 20


def test_a_cancel_holds_for_samples_not_written_yet(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, control = ends
    control.discard_below(2)
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    assert reader.readable() == 0
    assert reader.skip_discarded() == 10
    writer.write(counted(10, 10))
    writer.begin_span(2, 0)
    writer.write(counted(20, 5))
    assert reader.skip_discarded() == 10
    assert np.array_equal(take(reader, 1000), counted(20, 5))


def test_several_stints_apart_from_each_other_can_be_cancelled(
    ends: tuple[RingWriter, RingReader, RingControl],
) -> None:
    writer, reader, control = ends
    for epoch in range(1, 21):
        writer.begin_span(epoch, 0)
        writer.write(counted(epoch * 5 - 5, 5))
    for epoch in range(2, 21, 2):
        control.discard_one(epoch)
    heard = []
    while reader.read < reader.written:
        reader.skip_discarded()
        heard.append(take(reader, 1000))
    assert np.array_equal(np.concatenate(heard), np.concatenate([counted(k * 5 - 5, 5) for k in range(1, 21, 2)]))


def test_a_lower_discard_does_not_bring_anything_back(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, control = ends
    three_stints(writer)
    control.discard_below(3)
    control.discard_below(2)
    assert reader.skip_discarded() == 20


def test_no_number_of_cancels_brings_a_cancelled_stint_back(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    """The speaker is held: what stands in the ring stays there while later stints come and go."""
    writer, reader, control = ends
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    writer.begin_span(2, 0)
    writer.write(counted(10, 5))
    writer.begin_span(2, 1)
    writer.write(counted(15, 5))
    control.discard_one(2)
    for epoch in range(3, 300):
        writer.begin_span(epoch, 0)  # from the 65th span on it is refused
        control.discard_one(epoch)
    assert np.array_equal(take(reader, 1000), counted(0, 10))
    assert reader.skip_discarded() == 10
    assert reader.read == reader.written == 20
    assert writer.begin_span(300, 0)
    writer.write(counted(20, 5))
    assert np.array_equal(take(reader, 1000), counted(20, 5))


def test_an_older_stint_can_be_cancelled_after_a_later_one_of_the_same_word(
    ends: tuple[RingWriter, RingReader, RingControl],
) -> None:
    writer, reader, control = ends
    later = 2 + SPAN_PLACES
    for at, epoch in enumerate((1, 2, later)):
        writer.begin_span(epoch, 0)
        writer.write(counted(5 * at, 5))
    control.discard_one(later)
    control.discard_one(2)
    writer.begin_span(later, 1)  # the later one was not over yet
    writer.write(counted(15, 5))
    writer.begin_span(later + 1, 0)
    writer.write(counted(20, 5))
    assert np.array_equal(take(reader, 1000), counted(0, 5))
    assert reader.skip_discarded() == 15
    assert np.array_equal(take(reader, 1000), counted(20, 5))


def test_a_mark_on_a_span_does_not_hold_for_the_next_one_in_its_place(
    ends: tuple[RingWriter, RingReader, RingControl],
) -> None:
    writer, reader, control = ends
    writer.begin_span(1, 0)
    writer.write(counted(0, 1))
    control.discard_one(1)
    control.discard_one(1 + SPAN_PLACES)
    assert reader.skip_discarded() == 1
    for segment in range(1, SPAN_PLACES + 1):
        assert writer.begin_span(2, segment)
        writer.write(counted(segment, 1))
        assert np.array_equal(take(reader, 1000), counted(segment, 1))


@pytest.mark.parametrize("epoch", [0, -1, 2**63])
def test_impossible_epochs_cannot_be_discarded(arena: Arena, epoch: int) -> None:
    control = arena.control(0)
    for discard in (control.discard_one, control.discard_below):
        with pytest.raises(RingError, match=f"epoch {epoch}"):
            discard(epoch)


def test_a_span_that_appears_during_a_skip_keeps_its_samples(arena: Arena) -> None:
    writer, reader, control = arena.writer(0, 1), arena.reader(0), arena.control(0)
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    control.discard_below(2)
    waiting = [lambda: writer.begin_span(2, 0), lambda: writer.write(counted(10, 10))]
    # The writer runs at the reader's every fence: whatever it adds there is not to be skipped.
    plain = reader._fence

    def fence() -> None:
        plain()
        while waiting:
            waiting.pop(0)()

    reader._fence = fence  # type: ignore[assignment]
    assert reader.skip_discarded() == 10
    assert np.array_equal(take(reader, 1000), counted(10, 10))


# --------------------------------------------------------------------------- looking ahead


def test_a_peek_gives_one_span_at_a_time_and_commits_nothing(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, control = ends
    three_stints(writer)
    assert [reader.peek(at, 100)[0:2] for at in (3, 10, 15)] == [
        (3, Span(0, 1, 0)),
        (10, Span(10, 2, 0)),
        (15, Span(14, 2, 1)),
    ]
    assert [reader.peek(at, 100)[2].size for at in (3, 10, 15, 20)] == [7, 4, 5, 10]
    control.discard_one(2)
    seen = []
    position = 4
    while position < reader.written:
        position, span, first, second = reader.peek(position, 7)
        samples = np.concatenate((first, second))
        assert np.array_equal(samples, counted(position, len(samples)))
        seen.append((position, len(samples), span))
        position += len(samples)
    assert seen == [(4, 6, Span(0, 1, 0)), (20, 7, Span(20, 3, 0)), (27, 3, Span(20, 3, 0))]
    assert reader.read == 0


def test_a_peek_goes_across_the_wrap(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    writer, reader, _ = ends
    writer.begin_span(1, 0)
    writer.write(counted(0, 90))
    take(reader, 90)
    writer.write(counted(90, 90))
    position, _, first, second = reader.peek(95, 20)
    assert (position, len(first), len(second)) == (95, 5, 15)
    assert np.array_equal(np.concatenate((first, second)), counted(95, 20))


def test_a_peek_at_what_is_not_there_or_committed_gives_nothing(
    ends: tuple[RingWriter, RingReader, RingControl],
) -> None:
    writer, reader, control = ends
    assert (reader.peek(0, 5)[0], reader.peek(0, 5)[2].size) == (0, 0)
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    assert (reader.peek(10, 5)[0], reader.peek(10, 5)[2].size) == (10, 0)
    control.discard_below(2)
    assert (reader.peek(2, 5)[0], reader.peek(2, 5)[2].size) == (10, 0)
    reader.skip_discarded()
    with pytest.raises(RingError, match="peek at 9"):
        reader.peek(9, 5)


def test_a_complete_piece_of_speech_is_known_up_to_its_last_sample(
    ends: tuple[RingWriter, RingReader, RingControl],
) -> None:
    writer, reader, control = ends
    assert reader.complete == 0
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    assert reader.complete == 0
    writer.complete()
    writer.write(counted(10, 10))
    assert reader.complete == 10
    control.grant(2)
    with pytest.raises(LeaseLost):
        writer.complete()
    assert reader.complete == 10


# --------------------------------------------------------------------------- dispatcher's hold, reader's state


def test_pause_is_seen_by_the_reader(arena: Arena) -> None:
    control, reader = arena.control(0), arena.reader(0)
    assert not reader.paused
    control.pause(True)
    assert reader.paused
    assert control.paused
    control.pause(False)
    assert not reader.paused


def test_a_writer_without_the_lease_writes_nothing(arena: Arena) -> None:
    control, writer = arena.control(0), arena.writer(0, 1)
    writer.begin_span(1, 0)
    writer.write(counted(0, 5))
    control.grant(2)
    with pytest.raises(LeaseLost, match="lease 1 was passed on, 2 holds it"):
        writer.write(counted(5, 5))
    with pytest.raises(LeaseLost):
        writer.begin_span(1, 1)
    with pytest.raises(LeaseLost):
        arena.writer(0, 1)
    assert (control.lease, control.written, control.spans()) == (2, 5, [Span(0, 1, 0)])
    successor = arena.writer(0, 2)
    assert successor.written == 5
    assert successor.write(counted(5, 5)) == 5
    assert np.array_equal(take(arena.reader(0), 100), counted(0, 10))


def test_nobody_writes_to_a_slot_that_was_granted_to_nobody(arena: Arena) -> None:
    with pytest.raises(RingError, match="at least 1"):
        arena.writer(1, 0)
    with pytest.raises(LeaseLost):
        arena.writer(1, 1)
    with pytest.raises(RingError, match="lease -1"):
        arena.control(1).grant(-1)


def test_the_reader_state_arrives_whole(ends: tuple[RingWriter, RingReader, RingControl]) -> None:
    _, reader, control = ends
    assert control.reader_state() == ReaderState()
    state = ReaderState(1, 2, time.monotonic_ns(), 4, 5, 6)
    reader.publish(state)
    assert control.reader_state() == state


def test_half_a_reader_state_is_never_shown_and_a_successor_repairs_it(arena: Arena) -> None:
    reader, control = arena.reader(0), arena.control(0)
    old, half, new = (ReaderState(*[k] * 6) for k in (1, 2, 3))
    reader.publish(old)
    assert control.reader_state() == old
    reader._words = Mortal(reader._words, iter(range(4)))  # type: ignore[assignment]
    with pytest.raises(Killed):
        reader.publish(half)
    assert control.reader_state() == old
    assert arena.control(0).reader_state() == ReaderState(), "a fresh look must not show the half"
    arena.reader(0).publish(new)
    assert control.reader_state() == new


def test_a_reader_state_that_changes_while_it_is_copied_is_copied_again(arena: Arena) -> None:
    reader, control = arena.reader(0), arena.control(0)
    reader.publish(ReaderState(*[1] * 6))
    looks = 0

    def fence() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            reader.publish(ReaderState(*[2] * 6))

    control._fence = fence  # type: ignore[assignment]
    assert control.reader_state() == ReaderState(*[2] * 6)
    assert looks == 4


# --------------------------------------------------------------------------- order of stores

WORD_NAMES = {ring._WRITTEN: "written", ring._SPANS: "spans", ring._READ: "read", ring._SEQUENCE: "sequence"}


class Traced:
    """Memory whose accesses are written down: cursors by name, the rest as ``rest``."""

    def __init__(self, memory: Any, rest: str, trace: list[str]) -> None:
        self._memory, self._rest, self._trace = memory, rest, trace

    def __len__(self) -> int:
        return len(self._memory)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice) or at in WORD_NAMES or at >= ring._SPAN_RING:
            self._trace.append("load " + (self._rest if isinstance(at, slice) else WORD_NAMES.get(at, self._rest)))
        return self._memory[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        name = self._rest if isinstance(at, slice) else WORD_NAMES.get(at, self._rest)
        self._trace.append("store " + name)
        self._memory[at] = value


def traced(end: RingWriter | RingReader | RingControl) -> list[str]:
    """What an end does to memory from now on, with its fences."""
    trace: list[str] = []
    fence = end._fence
    assert isinstance(fence, ring._Fence)

    def traced_fence() -> None:
        trace.append("fence")
        fence()

    end._fence = traced_fence  # type: ignore[assignment]
    end._words = Traced(end._words, "words", trace)  # type: ignore[assignment]
    if not isinstance(end, RingControl):
        end._pcm = Traced(end._pcm, "samples", trace)  # type: ignore[assignment]
    return trace


def test_fences_keep_samples_before_their_cursor_and_space_before_samples(arena: Arena) -> None:
    writer = arena.writer(0, 1)
    writer.begin_span(1, 0)
    trace = traced(writer)
    writer.write(counted(0, 10))
    assert [step for step in trace if step != "load written"] == [
        *("load spans", "load read", "fence", "store samples", "fence", "store written")
    ]


def test_fences_keep_a_span_before_the_count_of_spans_and_after_the_count_before(arena: Arena) -> None:
    writer = arena.writer(0, 1)
    trace = traced(writer)
    writer.begin_span(1, 0)
    assert trace == [
        *("load spans", "fence", "load written", "store words", "store words", "store words", "fence", "store spans")
    ]


def test_fences_keep_what_the_reader_uses_after_the_writers_cursor_and_before_its_own(arena: Arena) -> None:
    writer, reader = arena.writer(0, 1), arena.reader(0)
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    arena.control(0).discard_below(2)
    trace = traced(reader)
    look = ["load read", "load written", "fence", "load spans", "fence", "load words", "load words"]
    reader.skip_discarded()
    assert trace == [*look, "fence", "store read"]
    writer.begin_span(2, 0)
    writer.write(counted(10, 10))
    trace.clear()
    reader.regions(4)
    reader.advance(4)
    assert trace == [*look, "load samples", "load samples", "load read", "load written", "fence", "store read"]


def test_fences_keep_a_reader_state_between_its_two_numbers(arena: Arena) -> None:
    reader, control = arena.reader(0), arena.control(0)
    wrote = traced(reader)
    reader.publish(ReaderState())
    assert wrote == ["load sequence", "store sequence", "fence", *["store words"] * 6, "fence", "store sequence"]
    looked = traced(control)
    control.reader_state()
    assert looked == ["load sequence", "fence", "load words", "fence", "load sequence"]


def test_fences_keep_the_dispatchers_copy_of_spans_between_two_looks_at_their_count(arena: Arena) -> None:
    arena.writer(0, 1).begin_span(1, 0)
    control = arena.control(0)
    trace = traced(control)
    control.spans()
    assert trace == ["load spans", "fence", *["load words"] * 3, "fence", "load spans"]


def test_a_fence_keeps_the_marks_of_a_stint_before_its_word_is_given_away(arena: Arena) -> None:
    arena.writer(0, 1).begin_span(1, 0)
    control = arena.control(0)
    control.discard_one(1)
    trace = traced(control)
    control.discard_one(1 + SPAN_PLACES)
    assert [step for step in trace if not step.startswith("load")][-3:] == ["store words", "fence", "store words"]


# --------------------------------------------------------------------------- deaths


class Killed(BaseException):
    """The process died here."""


class Mortal:
    """Words and samples of a process that dies just before one of its stores."""

    def __init__(self, memory: Any, life: Iterator[int]) -> None:
        self._memory, self._life = memory, life

    def __len__(self) -> int:
        return len(self._memory)

    def __getitem__(self, at: Any) -> Any:
        return self._memory[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        if next(self._life, None) is None:
            raise Killed
        self._memory[at] = value


def test_a_writer_killed_at_any_store_leaves_a_ring_its_successor_goes_on_with() -> None:
    deaths = 0
    for stores in range(60):
        arena = Arena.create(CAPACITY, 1, 0)
        reader, control = arena.reader(0), arena.control(0)
        heard: list[ring.Samples] = []
        position = 0
        for lease in (1, 2):
            control.grant(lease)
            writer = arena.writer(0, lease)
            if lease == 1:
                life = iter(range(stores))
                writer._words = Mortal(writer._words, life)  # type: ignore[assignment]
                writer._pcm = Mortal(writer._pcm, life)  # type: ignore[assignment]
            try:
                while (position := writer.written) < 150:
                    writer.begin_span(1 + position // 30, position // 15)
                    writer.write(counted(position, 15 - position % 15)[: 1 + position % 13])
                    heard.append(take(reader, 9))
            except Killed:
                deaths += 1
                # What a torn copy may leave beyond the cursor.
                beyond = arena._pcm(0, reader._words)
                beyond[(writer.written + np.arange(writer.writable())) % CAPACITY] = np.nan
        heard.append(take(reader, 1000))
        assert np.array_equal(np.concatenate(heard), counted(0, 150)), f"killed before store {stores}"
        starts: dict[int, Span] = {}
        for span in control.spans():
            assert span.start_sample not in starts, "the successor began the same segment again"
            starts[span.start_sample] = span
            assert span == Span(span.start_sample, 1 + span.start_sample // 30, span.start_sample // 15)
        arena.close()
    assert deaths == 60


def test_a_reader_killed_before_its_commit_reads_the_block_again_and_no_other(arena: Arena) -> None:
    writer, reader = arena.writer(0, 1), arena.reader(0)
    writer.begin_span(1, 0)
    writer.write(counted(0, 60))
    take(reader, 20)
    reader.regions(16)
    reader._words = Mortal(reader._words, iter(()))  # type: ignore[assignment]
    with pytest.raises(Killed):
        reader.advance(16)
    assert np.array_equal(take(arena.reader(0), 1000), counted(20, 40))


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """The interpreter goes to another thread after every few steps."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual_s)


def test_readers_and_dispatcher_never_see_a_torn_span_or_state_while_others_publish(frequent_switches: None) -> None:
    """Threads stand in for processes here: they are interrupted between any two stores."""
    arena = Arena.create(500, 1, 0)
    arena.control(0).grant(1)
    writer, reader, control = arena.writer(0, 1), arena.reader(0), arena.control(0)
    end, wrong = 7_000, list[Any]()
    deadline = time.monotonic() + 60

    def write() -> None:
        while (position := writer.written) < end and time.monotonic() < deadline:
            if not writer.begin_span(1 + position // 70, position // 7) or not writer.write(counted(position, 7)):
                time.sleep(0)

    def read() -> None:
        while (position := reader.read) < end and time.monotonic() < deadline:
            reader.publish(ReaderState(*[position] * 6))
            if not reader.readable():
                time.sleep(0)
            elif reader.span() != Span(position // 7 * 7, 1 + position // 70, position // 7):
                wrong.append(("reader's span", position, reader.span()))
            elif not np.array_equal(block := take(reader, 5), counted(position, len(block))):
                wrong.append(("samples", position, block))

    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    looks = 0
    while any(thread.is_alive() for thread in threads):
        looks += 1
        spans = control.spans()
        if spans != [Span(start, 1 + start // 70, start // 7) for start, _, _ in spans]:
            wrong.append(("dispatcher's spans", spans))
        if len(set(control.reader_state())) > 1:
            wrong.append(("state", control.reader_state()))
    for thread in threads:
        thread.join()
    arena.close()
    assert not wrong, wrong[:5]
    assert control.read == end, "the deadline passed"
    assert looks > 10


# --------------------------------------------------------------------------- the arena


def test_slots_do_not_touch_each_other(arena: Arena) -> None:
    for slot in range(arena.slots):
        arena.control(slot).grant(slot + 1)
        writer = arena.writer(slot, slot + 1)
        writer.begin_span(slot + 1, slot)
        assert writer.write(np.full(1000, slot + 1, np.float32)) == arena.control(slot).capacity
    for slot in range(arena.slots):
        reader, control = arena.reader(slot), arena.control(slot)
        assert control.capacity == (40 if slot else CAPACITY)
        assert control.spans() == [Span(0, slot + 1, slot)]
        assert control.lease == slot + 1
        assert np.array_equal(take(reader, 1000), np.full(control.capacity, slot + 1, np.float32))


def test_words_of_different_writers_lie_on_different_lines() -> None:
    lines = [
        {ring._MAGIC, ring._VERSION, ring._RATE, ring._CAPACITY, ring._LEASE},
        {ring._WRITTEN, ring._SPANS, ring._COMPLETE},
        {ring._READ},
        {ring._DISCARD_BELOW, ring._PAUSED},
        {ring._SEQUENCE, *range(ring._STATE, ring._STATE + 6)},
        set(range(ring._DISCARDED, ring._DROPPED + SPAN_PLACES)),
        set(range(ring._SPAN_RING, ring._SLOT_WORDS)),
    ]
    seen: set[int] = set()
    for words in lines:
        of_this = {word // 8 for word in words}
        assert not of_this & seen
        seen |= of_this
    assert seen == set(range(ring._SLOT_WORDS // 8))
    assert ring._SLOT_WORDS * 8 == 3392, "the map at the head of the file says so"


def test_an_attached_arena_is_the_same_memory(arena: Arena) -> None:
    other = Arena.attach(arena.fd)
    assert other.slots == 3
    writer = arena.writer(0, 1)
    writer.begin_span(1, 0)
    writer.write(counted(0, 10))
    reader = other.reader(0)
    other.close()
    other.close()
    assert np.array_equal(take(reader, 100), counted(0, 10)), "ends outlive their arena"
    assert arena.control(0).read == 10
    os.fstat(arena.fd)  # the caller's descriptor is still open


def test_a_closed_arena_gives_no_more_ends(arena: Arena) -> None:
    other = Arena.attach(arena.fd)
    other.close()
    with pytest.raises(RingError, match="closed"):
        other.reader(0)


@pytest.mark.parametrize("slot", [-1, 3])
def test_an_unknown_slot_is_refused_with_those_that_exist(arena: Arena, slot: int) -> None:
    for end in (arena.reader, arena.control, lambda slot: arena.writer(slot, 1)):
        with pytest.raises(RingError, match=rf"slot {slot}: 0 \(speaker\) to 2 exist"):
            end(slot)


@pytest.mark.parametrize(
    ("sizes", "field"), [((0, 1, 1), "speaker_samples"), ((1, 0, 1), "stream_samples"), ((1, 1, -1), "streams")]
)
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int], field: str) -> None:
    with pytest.raises(RingError, match=field):
        Arena.create(*sizes)


def word_of_slot_1(word: int) -> int:
    return ring._slot_at(1, CAPACITY, 40) + word * 8


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (ring._MAGIC * 8, 0, "arena: magic 0x0"),
        (ring._VERSION * 8, 2, "arena: version 2, this program knows 1"),
        (ring._RATE * 8, 48_000, "arena: 48000 samples a second"),
        (ring._SLOTS * 8, 2**40, "the header tells of"),
        (ring._SLOTS * 8, 0, "the header tells of"),
        (ring._SPEAKER * 8, -5, "the header tells of"),
        (ring._BYTES * 8, 17, "the header tells of"),
        (word_of_slot_1(ring._MAGIC), 0, "slot 1: magic"),
        (word_of_slot_1(ring._VERSION), 9, "slot 1: version 9"),
        (word_of_slot_1(ring._CAPACITY), 10**9, "slot 1: capacity"),
    ],
)
def test_a_torn_or_foreign_header_is_refused(arena: Arena, at: int, value: int, message: str) -> None:
    memory = mmap.mmap(arena.fd, os.fstat(arena.fd).st_size)
    memory[at : at + 8] = value.to_bytes(8, "little", signed=True)
    memory.close()
    open_before = open_descriptors()
    with pytest.raises(RingError, match=message):
        Arena.attach(arena.fd)
    assert open_descriptors() == open_before, "a refused attach must not leak a descriptor"


def test_a_descriptor_that_is_no_arena_is_refused_with_the_fix(tmp_path: object) -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(RingError, match="--arena FD"):
            Arena.attach(read_end)
    finally:
        os.close(read_end)
        os.close(write_end)
    with pytest.raises(RingError, match="cannot be mapped"):
        Arena.attach(read_end)


def test_a_truncated_arena_is_refused(arena: Arena) -> None:
    copy = os.memfd_create("copy") if hasattr(os, "memfd_create") else pytest.skip("needs memfd_create")
    os.write(copy, os.pread(arena.fd, 128, 0))
    try:
        with pytest.raises(RingError, match="the memory has 128"):
            Arena.attach(copy)
    finally:
        os.close(copy)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="posix_fallocate is not on this system")
def test_too_little_memory_is_an_error_with_the_fix_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    open_before = open_descriptors()
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(RingError, match=r"2\.2 MiB .*No space left.*lower text\.max_streams"):
        Arena.create(240_000, 48_000, 7)
    assert open_descriptors() == open_before


def without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memfd_create", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)


@pytest.mark.parametrize("prepare", [lambda _: None, without_linux], ids=["linux", "elsewhere"])
def test_a_limit_on_file_size_is_an_error_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, prepare: Callable[[pytest.MonkeyPatch], None]
) -> None:
    prepare(monkeypatch)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(RingError, match="ulimit -f"):
            Arena.create(2_400_000, 1, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_all_memory_is_there_from_the_start_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    without_linux(monkeypatch)
    arena = Arena.create(CAPACITY + 400_000, 40, 2)
    try:
        stat = os.fstat(arena.fd)
        assert stat.st_nlink == 0, "a name was left behind"
        assert stat.st_blocks * 512 >= stat.st_size
        arena.control(2).grant(1)
        writer, reader = arena.writer(2, 1), Arena.attach(arena.fd).reader(2)
        writer.begin_span(1, 0)
        assert writer.write(counted(0, 100)) == 40
        assert np.array_equal(take(reader, 100), counted(0, 40))
    finally:
        arena.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memfd_create is not on this system")
def test_the_memory_is_reserved_and_has_no_name(arena: Arena) -> None:
    stat = os.fstat(arena.fd)
    assert stat.st_nlink == 0
    assert stat.st_blocks * 512 >= stat.st_size
    assert not os.get_inheritable(arena.fd)


# --------------------------------------------------------------------------- against a model


class RingAgainstModel(RuleBasedStateMachine):
    """Random use of a slot; the model is a list of (sample, epoch, segment) and a few numbers."""

    @initialize(capacity=st.integers(1, 90))
    def start(self, capacity: int) -> None:
        self.arena = Arena.create(capacity, 1, 1)
        self.capacity, self.lease, self.epoch, self.segment = capacity, 0, 1, 0
        self.sounds: list[tuple[int, int]] = []  # (epoch, segment) of every sample ever written
        self.spans: list[Span] = []
        self.at = 0
        self.below, self.ones, self.paused = 0, set[int](), False
        self.refused = False
        self.control, self.reader = self.arena.control(0), self.arena.reader(0)
        self.replace_writer()

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.arena.close()

    def current(self) -> int:
        """Index of the span at the read position; -1 before the first."""
        return sum(span.start_sample <= self.at for span in self.spans) - 1

    def dead(self, sample: int) -> bool:
        epoch = self.sounds[sample][0]
        return epoch < self.below or epoch in self.ones

    def live_samples(self) -> int:
        upto = self.at
        while upto < len(self.sounds) and not self.dead(upto):
            upto += 1
        return upto - self.at

    def begin(self) -> None:
        span = Span(len(self.sounds), self.epoch, self.segment)
        again = bool(self.spans) and self.spans[-1][1:] == span[1:]
        self.refused = not again and len(self.spans) - self.current() >= SPAN_PLACES and len(self.spans) >= SPAN_PLACES
        assert self.writer.begin_span(self.epoch, self.segment) is not self.refused
        if not again and not self.refused:
            self.spans.append(span)

    def add(self, samples: int) -> None:
        accepted = 0 if self.refused else min(samples, self.capacity - (len(self.sounds) - self.at))
        assert self.writer.write(counted(len(self.sounds), samples)) == accepted
        self.sounds += [self.spans[-1][1:]] * accepted

    @rule(samples=st.integers(0, 120), stint=st.booleans(), segment=st.booleans())
    def write(self, samples: int, stint: bool, segment: bool) -> None:
        if stint:
            self.epoch, self.segment = self.epoch + 1, 0
        elif segment:
            self.segment += 1
        self.begin()
        self.add(samples)

    @rule(spans=st.integers(1, 80), samples=st.integers(0, 2), stint=st.booleans())
    def write_many_small_spans(self, spans: int, samples: int, stint: bool) -> None:
        for _ in range(spans):
            self.write(samples, stint, True)

    @precondition(lambda self: self.spans)
    @rule(samples=st.integers(0, 120))
    def write_more(self, samples: int) -> None:
        self.add(samples)

    @rule(limit=st.integers(0, 120), used=st.floats(0, 1))
    def read(self, limit: int, used: float) -> None:
        samples = np.concatenate(self.reader.regions(limit))
        assert len(samples) == min(limit, self.live_samples())
        assert np.array_equal(samples, counted(self.at, len(samples)))
        commit = int(len(samples) * used)
        self.reader.advance(commit)
        self.at += commit

    @rule()
    def skip(self) -> None:
        before = self.at
        while self.at < len(self.sounds) and self.dead(self.at):
            self.at += 1
        assert self.reader.skip_discarded() == self.at - before

    @rule(back=st.integers(-3, 70))
    def discard_below(self, back: int) -> None:
        epoch = max(1, self.epoch - back)
        self.control.discard_below(epoch)
        self.below = max(self.below, epoch)

    @rule(back=st.integers(0, 150))
    def discard_one(self, back: int) -> None:
        epoch = max(1, self.epoch - back)
        self.control.discard_one(epoch)
        self.ones.add(epoch)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.control.pause(paused)
        self.paused = paused

    @rule()
    def replace_writer(self) -> None:
        self.lease += 1
        old = getattr(self, "writer", None)
        self.control.grant(self.lease)
        self.writer = self.arena.writer(0, self.lease)
        self.refused = False
        if old is not None:
            with pytest.raises(LeaseLost):
                old.write(counted(0, 1))

    @rule(numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=6, max_size=6))
    def replace_reader(self, numbers: list[int]) -> None:
        self.reader = self.arena.reader(0)
        self.reader.publish(ReaderState(*numbers))
        assert self.control.reader_state() == ReaderState(*numbers)

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "arena"):
            return
        current = self.current()
        assert (self.reader.read, self.reader.written) == (self.at, len(self.sounds))
        assert (self.control.read, self.control.written, self.writer.written) == (
            self.at,
            len(self.sounds),
            len(self.sounds),
        )
        assert self.reader.readable() == self.live_samples()
        assert self.reader.span() == (self.spans[current] if current >= 0 else None)
        assert self.reader.paused == self.paused
        assert self.writer.writable() == (0 if self.refused else self.capacity - len(self.sounds) + self.at)
        known = self.spans[1 - SPAN_PLACES :] if len(self.spans) >= SPAN_PLACES else self.spans
        assert self.control.spans() == known
        neighbour = self.arena.control(1)
        assert (neighbour.read, neighbour.written, neighbour.spans()) == (0, 0, [])


class TestRingAgainstModel(RingAgainstModel.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None, print_blob=True)


def test_the_rate_is_the_pipelines(arena: Arena) -> None:
    assert arena._words[ring._RATE] == arena.control(1)._words[ring._RATE] == SAMPLE_RATE
