"""Two real processes over one ring, either of them killed again and again: every sample exactly once.

The test is supervisor and dispatcher: it starts writer and reader, kills them at random moments, passes
the lease on, cancels stints. Sample k of the signal tells k, segment and stint of a sample follow from k,
so the writer goes on from nothing but its cursor. The reader logs every block with its checksum before it
commits it. Run as a program this file is the writer or the reader.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ipc.ring import Arena, ReaderState, RingControl, Samples, Span

CAPACITY = 12_011
SEGMENT_SAMPLES = 1_777
STINT_SEGMENTS = 5
LONGEST_BLOCK = 3_000
RECORD = struct.Struct("<QII")  # first sample, samples, CRC-32 of their bytes


def signal_of(first: int, samples: int) -> Samples:
    """Samples first, first + 1, … of the signal."""
    return ((np.arange(first, first + samples) % 2**22 + 1) / 2**23).astype(np.float32)


def span_of(sample: int) -> Span:
    """The span that a sample belongs to."""
    segment = sample // SEGMENT_SAMPLES
    return Span(segment * SEGMENT_SAMPLES, 1 + segment // STINT_SEGMENTS, segment)


def state_of(sample: int) -> ReaderState:
    """A reader state of which every part tells the same."""
    return ReaderState(sample, sample + 1, sample + 2, sample + 3, sample + 4, sample + 5)


def write_for_ever(fd: int, lease: int, seed: int) -> None:
    """The writer: pieces of random size, from the cursor on."""
    dice = random.Random(seed)
    writer = Arena.attach(fd).writer(0, lease)
    while True:
        position = writer.written
        span = span_of(position)
        left = span.start_sample + SEGMENT_SAMPLES - position
        piece = signal_of(position, min(left, dice.randint(1, LONGEST_BLOCK)))
        if not writer.begin_span(span.epoch, span.segment) or not writer.write(piece):
            time.sleep(0.0005)


def read_for_ever(fd: int, log: int, seed: int) -> None:
    """The reader: blocks of random size, each logged in one system call before it is committed."""
    dice = random.Random(seed)
    reader = Arena.attach(fd).reader(0)
    while True:
        reader.publish(state_of(reader.read))
        reader.skip_discarded()
        first, second = reader.regions(dice.randint(1, LONGEST_BLOCK))
        samples = len(first) + len(second)
        if samples:
            os.write(log, RECORD.pack(reader.read, samples, zlib.crc32(second.tobytes(), zlib.crc32(first.tobytes()))))
            if dice.random() < 0.1:  # a block takes time to sound: that is when a kill makes it come again
                time.sleep(0.002)
            reader.advance(samples)
        if not samples or dice.random() < 0.2:
            time.sleep(0.0005)


class Pair:
    """Writer and reader processes, replaceable one at a time."""

    def __init__(self, arena: Arena, log: int, dice: random.Random) -> None:
        self.arena, self.control, self.log, self.dice = arena, arena.control(0), log, dice
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.deaths: Counter[str] = Counter()

    def start(self, role: str) -> None:
        if role == "writer":
            self.control.grant(self.control.lease + 1)
        extra = self.control.lease if role == "writer" else self.log
        numbers = [str(number) for number in (self.arena.fd, extra, self.dice.getrandbits(32))]
        self.processes[role] = subprocess.Popen(
            [sys.executable, __file__, role, *numbers],
            pass_fds=(self.arena.fd, self.log),
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def kill(self, role: str) -> None:
        process = self.processes.pop(role)
        if (code := process.poll()) is not None:
            pytest.fail(f"the {role} ended by itself with exit code {code}; its error stands above")
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.deaths[role] += 1

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextmanager
def pair_at_work(seed: int) -> Iterator[Pair]:
    arena = Arena.create(CAPACITY, 1, 0)
    with tempfile.TemporaryFile() as log:
        os.set_inheritable(log.fileno(), True)
        pair = Pair(arena, log.fileno(), random.Random(seed))
        try:
            yield pair
        finally:
            pair.stop()
            arena.close()


def watch(control: RingControl, until_s: float, cancel: random.Random | None, cancelled: set[int]) -> None:
    """Look at spans and state, which must never be torn, until a monotonic time; cancel stints on the way."""
    while time.monotonic() < until_s:
        spans = control.spans()
        assert spans == [span_of(span.start_sample) for span in spans]
        state = control.reader_state()
        assert state in (ReaderState(), state_of(state.underruns))
        if cancel and spans and cancel.random() < 0.05:
            epoch = spans[-1].epoch + cancel.randint(-1, 2)
            if epoch < 1:
                continue
            if cancel.random() < 0.3:
                cancelled.update(range(1, epoch))
                control.discard_below(epoch)
            else:
                cancelled.add(epoch)
                control.discard_one(epoch)
        time.sleep(0.002)


def wait_until_both_move(pair: Pair, deadline_s: float) -> None:
    """Return when both cursors are beyond where they were."""
    control = pair.control
    read, written = control.read, control.written
    while control.read == read or control.written == written:
        codes = {role: process.poll() for role, process in pair.processes.items()}
        if any(code is not None for code in codes.values()) or time.monotonic() > deadline_s:
            spans = control.spans()[-3:]
            pytest.fail(f"stands still at {control.read} of {control.written}, spans {spans}, exit codes {codes}")
        time.sleep(0.002)


def blocks_of(pair: Pair) -> list[tuple[int, int, int]]:
    """All that was read, in order: the log, then what still lies in the ring."""
    log = os.pread(pair.log, os.fstat(pair.log).st_size, 0)
    blocks = list(RECORD.iter_unpack(log))
    reader = pair.arena.reader(0)
    while reader.read < reader.written:
        reader.skip_discarded()
        samples = np.concatenate(reader.regions(LONGEST_BLOCK))
        if len(samples):
            blocks.append((reader.read, len(samples), zlib.crc32(samples.tobytes())))
            reader.advance(len(samples))
    return blocks


def check_exactly_once(blocks: list[tuple[int, int, int]], written: int, cancelled: set[int], deaths: int) -> int:
    """Every sample that was not cancelled, once and in order; returns the number of repeated blocks."""
    end = repeats = longest = 0
    last_first = 0
    for first, samples, checksum in blocks:
        assert zlib.crc32(signal_of(first, samples).tobytes()) == checksum, f"wrong sound at {first} + {samples}"
        if first < end:
            skipped = {span_of(sample).epoch for sample in range(last_first, first)}
            assert first >= last_first, f"at {first}: not only the uncommitted block, from {last_first} on, came again"
            assert skipped <= cancelled, f"at {first}: committed inside the block that began at {last_first}"
            repeats += 1
        else:
            missing = {span_of(sample).epoch for sample in range(end, first)}
            assert missing <= cancelled, f"samples {end} to {first} of stints {missing} were lost"
        end, last_first = first + samples, first
        longest = max(longest, samples)
    assert {span_of(sample).epoch for sample in range(end, written)} <= cancelled
    assert repeats <= deaths, f"{repeats} repeated blocks, but only {deaths} readers were killed"
    assert longest <= LONGEST_BLOCK
    return repeats


@pytest.mark.parametrize(
    ("seconds", "cancels"),
    [
        pytest.param(2, True, id="briefly"),
        pytest.param(10, False, id="10s", marks=pytest.mark.slow),
        pytest.param(30, True, id="30s-with-cancels", marks=pytest.mark.slow),
    ],
)
def test_every_sample_is_heard_exactly_once_whoever_is_killed_whenever(seconds: float, cancels: bool) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    cancelled: set[int] = set()
    with pair_at_work(seed) as pair:
        control = pair.control
        pair.start("writer")
        pair.start("reader")
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            wait_until_both_move(pair, time.monotonic() + 60)
            watch(control, time.monotonic() + dice.random() * 0.1, dice if cancels else None, cancelled)
            roles = dice.choice((["writer"], ["reader"], ["writer", "reader"]))
            for role in roles:
                pair.kill(role)
            for role in roles:
                pair.start(role)
        pair.stop()
        blocks, written = blocks_of(pair), control.written
        repeats = check_exactly_once(blocks, written, cancelled, pair.deaths["reader"] + 1)
        print(f"{written} samples, {len(blocks)} blocks, {repeats} repeated; killed: {dict(pair.deaths)}")
    assert pair.deaths["writer"] >= 1 or pair.deaths["reader"] >= 1
    assert written > CAPACITY, "the ring never wrapped"


if __name__ == "__main__":
    work = {"writer": write_for_ever, "reader": read_for_ever}[sys.argv[1]]
    os.nice(5)
    work(*map(int, sys.argv[2:]))
