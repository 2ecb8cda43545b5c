"""Blocks of output: what is heard exactly, what fades, what waits."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.ring import Arena, RingControl, RingReader, RingWriter, Samples
from tests.workers.pulse import counter_signal, counters
from workers.playback import Playback, State

RATE_HZ = 24_000
BLOCK = 512
FADE = 120
PREBUFFER = 2880
CAPACITY = 24_000


class Speaker:
    """A ring with all its ends and a playback, driven block by block."""

    def __init__(self, prebuffer: int = PREBUFFER, capacity: int = CAPACITY) -> None:
        self.arena = Arena.create(capacity, 64, 0)
        self.control: RingControl = self.arena.control(0)
        self.control.grant(1)
        self.writer: RingWriter = self.arena.writer(0, 1)
        self.reader: RingReader = self.arena.reader(0)
        self.playback = Playback(self.reader, BLOCK, RATE_HZ, prebuffer)
        self.now_ns = 0

    def say(self, samples: int, *, epoch: int = 1, segment: int = 0, complete: bool = True) -> None:
        """Write counter-coded samples: sample k of the ring tells k."""
        assert self.writer.begin_span(epoch, segment)
        assert self.writer.write(counter_signal(self.writer.written, samples)) == samples
        if complete:
            self.writer.complete()

    def block(self, length: int = BLOCK) -> Samples:
        """One block, put out and committed."""
        out = np.full(length, np.nan, np.float32)
        self.playback.fill(out)
        self.playback.commit(self.now_ns, self.now_ns + 1_000_000, 1_000_000)
        self.now_ns += length * 1_000_000_000 // RATE_HZ
        return out

    def blocks(self, count: int) -> Samples:
        return np.concatenate([self.block() for _ in range(count)])


@pytest.fixture
def speaker() -> Iterator[Speaker]:
    made = Speaker()
    yield made
    made.arena.close()


def exact(sound: Samples) -> list[int]:
    """Positions of the samples that came out as they were written."""
    known = counters(sound)
    return [int(k) for k in known if k >= 0 and k == int(k)]


def test_a_complete_utterance_comes_out_sample_for_sample(speaker: Speaker) -> None:
    speaker.say(20_001)
    sound = speaker.blocks(41)
    assert np.array_equal(sound[:20_001], counter_signal(0, 20_001))
    assert not sound[20_001:].any()
    assert speaker.playback.starvations == 0
    assert speaker.playback.state is State.IDLE


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 3000), min_size=1, max_size=25),
    ends=st.lists(st.booleans(), min_size=25, max_size=25),
    lengths=st.lists(st.integers(60, BLOCK), min_size=1, max_size=8),
    prebuffer=st.integers(0, 6000),
)
def test_whatever_the_pieces_nothing_complete_is_altered_lost_or_repeated(
    pieces: list[int], ends: list[bool], lengths: list[int], prebuffer: int
) -> None:
    """Segments of many pieces through a small ring: writer always ahead, so nothing ever breaks off."""
    speaker = Speaker(prebuffer, capacity=9000)
    heard = [np.zeros(0, np.float32)]
    turn = segment = 0
    for piece, end in zip(pieces, ends, strict=False):
        speaker.say(piece, segment=segment, complete=False)
        if end:
            speaker.writer.complete()
            segment += 1
        # The writer stays ahead: as one that renders in time does.
        while speaker.writer.writable() < 3000:
            heard.append(speaker.block(lengths[turn % len(lengths)]))
            turn += 1
    speaker.writer.complete()
    while speaker.reader.read < speaker.writer.written and turn < 2000:
        heard.append(speaker.block(lengths[turn % len(lengths)]))
        turn += 1
    sound = np.concatenate(heard)
    assert np.array_equal(sound[sound != 0], counter_signal(0, sum(pieces)))
    assert speaker.playback.starvations == 0
    speaker.arena.close()


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.integers(1, 2500), min_size=2, max_size=20), gaps=st.lists(st.integers(0, 8), min_size=20))
def test_a_slow_writer_costs_fades_and_nothing_else(pieces: list[int], gaps: list[int]) -> None:
    speaker = Speaker()
    altered = 0

    def play(blocks: int) -> None:
        nonlocal altered
        for _ in range(blocks):
            before = speaker.reader.read
            sound = speaker.block()
            taken = speaker.reader.read - before
            made = counter_signal(before, taken)
            altered += int(np.count_nonzero(sound[:taken] != made))
            assert np.all(sound[:taken] <= made)
            assert not sound[taken:].any()

    for piece, gap in zip(pieces, gaps, strict=False):
        while speaker.writer.writable() < piece:
            play(1)
        speaker.say(piece, complete=False)
        play(gap)
    speaker.writer.complete()
    play(CAPACITY // BLOCK + 1)
    assert speaker.reader.read == sum(pieces)
    assert altered <= 2 * FADE * speaker.playback.starvations
    speaker.arena.close()


def test_speech_still_being_made_waits_for_the_prebuffer(speaker: Speaker) -> None:
    speaker.say(PREBUFFER - 1, complete=False)
    assert not speaker.block().any()
    speaker.say(1, complete=False)
    assert np.array_equal(speaker.block(), counter_signal(0, BLOCK))


def test_a_complete_utterance_shorter_than_the_prebuffer_starts_at_once(speaker: Speaker) -> None:
    speaker.say(7)
    assert exact(speaker.block()) == list(range(7))
    assert speaker.playback.starvations == 0


def test_a_prebuffer_of_nothing_does_not_starve_at_once() -> None:
    speaker = Speaker(prebuffer=0)
    speaker.say(BLOCK, complete=False)
    assert not speaker.block().any()
    speaker.say(FADE, complete=False)
    assert np.array_equal(speaker.block(), counter_signal(0, BLOCK))
    assert speaker.playback.starvations == 0


def test_running_dry_in_mid_speech_fades_out_counts_once_and_fades_in_again(speaker: Speaker) -> None:
    speaker.say(3000, complete=False)
    sound = speaker.blocks(10)
    assert speaker.playback.starvations == 1
    assert speaker.playback.state is State.STARVED
    assert exact(sound)[: 3000 - FADE] == list(range(3000 - FADE))
    tail = sound[3000 - FADE : 3000] / counter_signal(3000 - FADE, FADE)
    assert np.all(np.diff(tail) < 0)
    assert tail[0] > 0.98
    assert tail[-1] < 0.02
    assert not sound[3000:].any()

    speaker.say(100, complete=False)
    assert not speaker.block().any(), "it waits for the prebuffer again"
    speaker.say(2900)
    sound = speaker.blocks(8)
    rise = sound[:FADE] / counter_signal(3000, FADE)
    assert np.all(np.diff(rise) > 0)
    assert exact(sound[FADE:3000]) == list(range(3000 + FADE, 6000))
    assert speaker.playback.starvations == 1


def test_a_pause_between_segments_is_no_starvation_and_fades_nothing(speaker: Speaker) -> None:
    speaker.say(3000)
    first = speaker.blocks(8)
    speaker.say(3000, segment=1)
    second = speaker.blocks(6)
    assert exact(np.concatenate([first, second])) == list(range(6000))
    assert speaker.playback.starvations == 0


@pytest.mark.parametrize("first", [3 * BLOCK, 3 * BLOCK - 1, 3 * BLOCK + 1, 3 * BLOCK - FADE, 2 * BLOCK + 7])
@pytest.mark.parametrize("begun", [1, FADE, FADE + 1, 300])
def test_the_first_samples_of_a_slow_next_segment_do_not_cost_the_last_its_end(
    speaker: Speaker, first: int, begun: int
) -> None:
    speaker.say(first)
    speaker.say(begun, segment=1, complete=False)
    heard = [speaker.blocks(6)]
    speaker.say(4000, segment=1)
    heard.append(speaker.blocks(14))
    assert exact(np.concatenate(heard)) == list(range(first + begun + 4000))
    assert speaker.playback.starvations == 0


def test_what_a_failed_maker_left_is_heard_in_the_end(speaker: Speaker) -> None:
    speaker.say(1000, complete=False)
    sound = speaker.blocks(30)
    assert speaker.reader.read == 1000
    sound = sound[sound != 0]
    assert len(sound) == 1000
    assert np.array_equal(sound[: 1000 - FADE], counter_signal(0, 1000 - FADE))


def test_a_trickle_is_waited_for(speaker: Speaker) -> None:
    for _ in range(40):
        speaker.say(50, complete=False)
        assert not speaker.block().any()


@pytest.mark.parametrize("length", [3 * BLOCK, 3 * BLOCK - 9])
def test_after_a_complete_utterance_the_next_waits_for_its_own_prebuffer(speaker: Speaker, length: int) -> None:
    speaker.say(length)
    speaker.blocks(5)
    speaker.say(PREBUFFER - 1, epoch=2, complete=False)
    assert not speaker.block().any()
    speaker.say(1, epoch=2, complete=False)
    assert exact(speaker.block()) == list(range(length, length + BLOCK))
    assert speaker.playback.starvations == 0


def test_a_failed_segments_successor_is_not_faded_in(speaker: Speaker) -> None:
    speaker.say(3000, complete=False)
    speaker.blocks(10)
    assert speaker.playback.state is State.STARVED
    speaker.say(3000, segment=1)
    assert exact(speaker.blocks(7)) == list(range(3000, 6000))


def test_a_pause_fades_takes_nothing_more_and_loses_nothing(speaker: Speaker) -> None:
    speaker.say(6000)
    before = speaker.blocks(3)
    speaker.control.pause(True)
    held = speaker.blocks(5)
    assert speaker.reader.read == 3 * BLOCK
    assert held[:FADE].any()
    assert not held[FADE:].any()
    assert speaker.playback.state is State.PAUSED
    speaker.control.pause(False)
    after = speaker.blocks(12)
    assert np.all(np.diff(after[:FADE] / counter_signal(3 * BLOCK, FADE)) > 0)
    assert exact(np.concatenate([before, after[FADE:]])) == [*range(3 * BLOCK), *range(3 * BLOCK + FADE, 6000)]


def test_what_begins_during_a_pause_begins_exactly(speaker: Speaker) -> None:
    speaker.control.pause(True)
    speaker.say(3000)
    assert not speaker.blocks(3).any()
    speaker.control.pause(False)
    assert exact(speaker.blocks(6)) == list(range(3000))


@pytest.mark.parametrize("by", ["epoch", "one"])
def test_a_cancel_is_silence_within_the_block_and_the_next_utterance_is_whole(speaker: Speaker, by: str) -> None:
    speaker.say(10_000)
    speaker.blocks(3)
    speaker.say(3000, epoch=2)
    speaker.control.discard_below(2) if by == "epoch" else speaker.control.discard_one(1)
    sound = speaker.blocks(7)
    fall = sound[:FADE] / counter_signal(3 * BLOCK, FADE)
    assert np.all(np.diff(fall) < 0)
    assert np.array_equal(sound[FADE : FADE + 3000], counter_signal(10_000, 3000))
    assert not sound[FADE + 3000 :].any()
    assert speaker.playback.starvations == 0


def test_a_cancel_with_nothing_after_it_is_a_short_fade_and_silence(speaker: Speaker) -> None:
    speaker.say(10_000)
    speaker.blocks(3)
    speaker.control.discard_below(2)
    sound = speaker.blocks(2)
    assert sound[0] != 0
    assert not sound[FADE:].any()
    assert speaker.reader.read == 10_000
    assert speaker.playback.state is State.IDLE


def test_after_a_cancel_in_a_pause_the_next_utterance_is_whole(speaker: Speaker) -> None:
    speaker.say(5000)
    speaker.blocks(3)
    speaker.control.pause(True)
    speaker.blocks(2)
    speaker.control.discard_below(2)
    assert not speaker.block().any()
    speaker.control.pause(False)
    speaker.say(3000, epoch=2)
    assert exact(speaker.blocks(7)) == list(range(5000, 8000))


def test_a_cancelled_successor_does_not_fade_the_end_of_what_plays(speaker: Speaker) -> None:
    speaker.say(3000)
    speaker.say(2000, epoch=2, complete=False)
    speaker.control.discard_one(2)
    assert exact(speaker.blocks(8)) == list(range(3000))
    assert speaker.playback.starvations == 0


def test_a_cancel_that_comes_in_the_middle_of_a_block_breaks_nothing(speaker: Speaker) -> None:
    speaker.say(10_000)
    speaker.blocks(2)
    honest = speaker.reader.regions

    def cancelled_meanwhile(limit: int) -> tuple[Samples, Samples]:
        speaker.control.discard_below(2)
        return honest(limit)

    speaker.reader.regions = cancelled_meanwhile  # type: ignore[method-assign]
    sound = speaker.blocks(2)
    assert sound[0] != 0
    assert not sound[FADE:].any()
    assert speaker.reader.read == 10_000


def test_a_block_that_was_not_put_out_is_made_again_by_a_successor(speaker: Speaker) -> None:
    speaker.say(5000)
    speaker.blocks(2)
    lost = np.zeros(BLOCK, np.float32)
    speaker.playback.fill(lost)  # and the player is killed here
    speaker.playback = Playback(speaker.arena.reader(0), BLOCK, RATE_HZ, PREBUFFER)
    assert np.array_equal(speaker.block(), lost)


def test_the_ring_tells_when_a_sample_reaches_the_ear(speaker: Speaker) -> None:
    speaker.say(10_000)
    speaker.blocks(2)
    state = speaker.control.reader_state()
    assert (state.dac_sample, state.state) == (BLOCK, State.PLAYING)
    assert state.dac_ns == state.callback_ns + 1_000_000
    assert state.latency_ns == 1_000_000
    # After a cancel the next utterance begins behind the fade, inside the block.
    speaker.say(3000, epoch=2)
    speaker.control.discard_below(2)
    speaker.block()
    state = speaker.control.reader_state()
    assert state.dac_sample == 10_000
    assert state.dac_ns == state.callback_ns + 1_000_000 + FADE * 1_000_000_000 // RATE_HZ


def test_silence_keeps_the_last_known_time_and_counts_underruns(speaker: Speaker) -> None:
    speaker.say(3000, complete=False)
    speaker.blocks(6)
    before = speaker.control.reader_state()
    speaker.blocks(5)
    after = speaker.control.reader_state()
    assert (after.dac_sample, after.dac_ns) == (before.dac_sample, before.dac_ns)
    assert after.callback_ns > before.callback_ns
    assert (after.underruns, after.state) == (1, State.STARVED)


def test_without_a_device_nothing_is_taken_but_cancelled_speech(speaker: Speaker) -> None:
    speaker.say(10_000)
    speaker.blocks(2)
    speaker.playback.hold(5)
    assert speaker.reader.read == 2 * BLOCK
    assert speaker.control.reader_state().state == State.NO_DEVICE
    sound = speaker.blocks(3)
    assert np.all(np.diff(sound[:FADE] / counter_signal(2 * BLOCK, FADE)) > 0), "faded in where it broke off"
    speaker.control.discard_below(2)
    speaker.playback.hold(6)
    assert speaker.reader.read == 10_000
    speaker.say(3000, epoch=2)
    assert exact(speaker.blocks(7)) == list(range(10_000, 13_000))


def test_closing_fades_and_takes_nothing_more(speaker: Speaker) -> None:
    speaker.say(10_000)
    speaker.blocks(2)
    speaker.playback.closing = True
    sound = speaker.blocks(3)
    assert sound[0] != 0
    assert not sound[FADE:].any()
    assert speaker.reader.read == 2 * BLOCK


def test_free_pace_takes_everything_there_is_and_no_silence(speaker: Speaker) -> None:
    speaker.say(700, complete=False)
    speaker.say(900, epoch=2)
    out = np.zeros(4096, np.float32)
    taken = speaker.playback.drain(out)
    assert np.array_equal(out[:taken], counter_signal(0, 1600))
    speaker.playback.commit(1, 1, 0)
    assert speaker.playback.drain(out) == 0
    speaker.control.pause(True)
    speaker.say(10, epoch=2)
    assert speaker.playback.drain(out) == 0
    speaker.control.discard_below(3)
    speaker.control.pause(False)
    assert speaker.playback.drain(out) == 0
    assert speaker.reader.read == 1610


def test_blocks_keep_nothing_that_grows(speaker: Speaker) -> None:
    speaker.say(20_000)
    speaker.blocks(20)
    gc.collect()
    tracemalloc.start()
    out = np.zeros(BLOCK, np.float32)
    for turn in range(2000):
        speaker.playback.fill(out)
        speaker.playback.commit(turn, turn, 1)
        if turn == 1000:
            begin = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[0] - begin
    tracemalloc.stop()
    assert grown < 1000
