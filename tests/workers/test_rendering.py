"""Streams of tokens become samples in the ring: exactly once, whoever dies; bounded; nobody starves."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.messages import (
    CancelStream,
    Grant,
    Internal,
    OpenStream,
    Rendered,
    StreamClosed,
    StreamFailed,
    Tokens,
    TokenSample,
    Welcome,
)
from ipc.ring import Arena
from pipeline.credit import next_cut
from pipeline.engines.base import AudioStep, EngineConfig, Samples
from tests.workers.tiny import (
    BROKEN,
    HELD_SAMPLES,
    LOOKAHEAD,
    POISON,
    REFUSED,
    TOKEN_SAMPLES,
    TinyAudio,
    encode,
    sound,
)
from workers.rendering import AudioStreams

SPEAKER, STREAM = 480_000, 48_000
SEED = 7


class Bench:
    """An arena, its readers and a dispatcher's hand on it; `worker` starts (again) the stage."""

    def __init__(self, max_batch: int = 16, ladder: bool = True, slots: int = 6, capacity: int = STREAM) -> None:
        self.arena = Arena.create(max(SPEAKER, capacity), capacity, slots - 1)
        self.max_batch, self.ladder = max_batch, ladder
        self.lease = 0
        self.heard: dict[int, list[Samples]] = {slot: [] for slot in range(slots)}
        self.readers = [self.arena.reader(slot) for slot in range(slots)]
        self.worker()

    def worker(self) -> AudioStreams:
        self.model = TinyAudio(EngineConfig(max_batch=self.max_batch), lambda *_: None, ladder=self.ladder)
        self.streams = AudioStreams(self.model, self.arena.writer)
        self.lease += 1
        for slot in range(self.arena.slots):
            self.arena.control(slot).grant(self.lease)
        return self.streams

    def written(self, slot: int = 1) -> int:
        return self.arena.control(slot).written

    def open(self, stream: int, slot: int = 1, *, rungs: tuple[int, ...] = (2, 4, 8), **fields: object) -> OpenStream:
        given: dict[str, object] = {
            "lease": self.lease,
            "epoch": 1,
            "segment": stream,
            "first_sample": self.written(slot) if "first_sample" not in fields else 0,
            "voice": "tiny",
            "language": "en",
            "speed": 1.0,
            "seed": SEED,
            "settings": {},
            "boundary": "sentence",
            "pause_samples": 0,
        } | fields
        return OpenStream(stream=stream, slot=slot, rungs=rungs, **given)  # type: ignore[arg-type]

    def read(self, slot: int = 1, limit: int = 10**9) -> int:
        reader = self.readers[slot]
        first, second = reader.regions(limit)
        self.heard[slot] += [first.copy(), second.copy()]
        reader.advance(len(first) + len(second))
        return len(first) + len(second)

    def all_heard(self, slot: int = 1) -> Samples:
        while self.read(slot):
            continue
        return np.concatenate([np.zeros(0, np.float32), *self.heard[slot]])

    def settle(self) -> list[Internal]:
        """Step until nothing can be done without room or tokens."""
        made: list[Internal] = []
        for _ in range(1000):
            made += self.streams.step()
            if not self.streams.ready:
                return made
        raise AssertionError("it never rests")


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.arena.close()


def feed(streams: AudioStreams, stream: int, text: str, first: int = 0, final: bool = True) -> list[Internal]:
    return streams.handle(Tokens(stream, first, len(text), encode(text), final))


def rendered(messages: list[Internal], stream: int = 1) -> list[Rendered]:
    return [one for one in messages if isinstance(one, Rendered) and one.stream == stream]


TEXT = "The quick brown fox jumps over it."
WHOLE = sound(encode(TEXT), SEED)


def test_a_whole_segment_lands_in_the_ring_and_ends(bench: Bench) -> None:
    assert bench.streams.handle(bench.open(1, segment=9)) == []
    assert feed(bench.streams, 1, TEXT) == []
    reports = rendered(bench.settle())
    assert bench.written() == len(WHOLE)
    assert reports[-1].final
    assert reports[-1].samples == len(WHOLE)
    assert reports[-1].done_tokens == len(TEXT)
    assert [one.final for one in reports[:-1]] == [False] * (len(reports) - 1)
    np.testing.assert_array_equal(bench.all_heard(), WHOLE)
    assert [(span.epoch, span.segment) for span in bench.arena.control(1).spans()] == [(1, 9)]
    assert len(bench.streams) == 0
    assert bench.model.streams  # closing it must not delay the report
    bench.streams.close_finished()
    assert not bench.model.streams
    assert not bench.streams.ready
    assert not bench.streams.blocked


def test_the_segment_s_end_is_marked_complete(bench: Bench) -> None:
    bench.streams.handle(bench.open(1, pause_samples=100))
    feed(bench.streams, 1, TEXT[:10], final=False)
    bench.settle()
    assert bench.readers[1].complete == 0
    feed(bench.streams, 1, TEXT[10:], first=10)
    bench.settle()
    assert bench.readers[1].complete == len(WHOLE) + 100


def test_the_ladder_cuts_at_absolute_tokens_and_its_last_rung_repeats() -> None:
    cuts, done = [], 0
    while done < 40:
        done = next_cut((2, 4, 8), done)
        cuts.append(done)
    assert cuts == [2, 6, 14, 22, 30, 38, 46]
    assert next_cut((2, 4, 8), 3) == 6
    assert next_cut((5,), 0) == 5
    assert next_cut((5,), 5) == 10


@settings(deadline=None, max_examples=60, print_blob=True)
@given(cuts=st.lists(st.integers(0, len(TEXT)), max_size=8), stepping=st.lists(st.booleans(), min_size=9, max_size=9))
def test_the_cuts_and_the_sound_do_not_depend_on_the_transport_s_chunks(cuts: list[int], stepping: list[bool]) -> None:
    bench = Bench(slots=2)
    bench.streams.handle(bench.open(1))
    edges = [0, *sorted(cuts), len(TEXT)]
    reports: list[Internal] = []
    for i, (first, end) in enumerate(itertools.pairwise(edges)):
        reports += feed(bench.streams, 1, TEXT[first:end], first, final=i == len(edges) - 2)
        reports += bench.settle() if stepping[i] else []
    reports += bench.settle()
    upto = [job[1] for call in bench.model.calls for job in call]
    assert upto == [2, 6, 14, 22, 30, 34]
    assert [one.done_tokens for one in rendered(reports) if one.checkpoint is not None] == upto
    np.testing.assert_array_equal(bench.all_heard(), WHOLE)
    bench.arena.close()


def test_nothing_is_rendered_without_its_lookahead(bench: Bench) -> None:
    bench.streams.handle(bench.open(1, rungs=(4,)))
    feed(bench.streams, 1, "x" * (4 + LOOKAHEAD - 1), final=False)
    assert not bench.streams.ready
    feed(bench.streams, 1, "x", first=4 + LOOKAHEAD - 1, final=False)
    assert bench.streams.ready
    bench.settle()
    assert bench.written() == 4 * TOKEN_SAMPLES - HELD_SAMPLES


def test_an_end_that_comes_alone_releases_what_was_held_back(bench: Bench) -> None:
    bench.streams.handle(bench.open(1, rungs=(4,)))
    feed(bench.streams, 1, TEXT[: 4 + LOOKAHEAD], final=False)
    bench.settle()
    (final,) = [one for one in rendered(feed(bench.streams, 1, "", 4 + LOOKAHEAD) + bench.settle()) if one.final]
    assert final.samples == (4 + LOOKAHEAD) * TOKEN_SAMPLES
    np.testing.assert_array_equal(bench.all_heard(), sound(encode(TEXT[: 4 + LOOKAHEAD]), SEED))


def test_an_engine_that_cuts_its_own_rungs_is_asked_for_each_piece() -> None:
    bench = Bench(ladder=False, slots=2)
    bench.streams.handle(bench.open(1, rungs=()))
    for first, end in ((0, 5), (5, 5), (5, 6), (6, 20)):
        feed(bench.streams, 1, TEXT[first:end], first, final=False)
    bench.settle()
    assert bench.model.calls == [[(1, 5)], [(1, 6)], [(1, 20)]]
    feed(bench.streams, 1, "", 20)
    reports = rendered(bench.settle())
    assert bench.model.calls[3:] == [[(1, 20)]]
    assert reports[-1].final
    np.testing.assert_array_equal(bench.all_heard(), sound(encode(TEXT[:20]), SEED))
    bench.arena.close()


def test_a_pause_follows_the_last_token(bench: Bench) -> None:
    bench.streams.handle(bench.open(1, pause_samples=12_345))
    feed(bench.streams, 1, TEXT)
    reports = rendered(bench.settle())
    assert reports[-1].samples == len(WHOLE) + 12_345
    heard = bench.all_heard()
    np.testing.assert_array_equal(heard[: len(WHOLE)], WHOLE)
    assert len(heard) == len(WHOLE) + 12_345
    assert not heard[len(WHOLE) :].any()


@pytest.mark.parametrize("pause_samples", [0, 4800])
def test_a_segment_without_tokens_is_only_its_pause(bench: Bench, pause_samples: int) -> None:
    bench.streams.handle(bench.open(1, pause_samples=pause_samples))
    assert not bench.streams.ready
    feed(bench.streams, 1, "")
    assert bench.streams.ready
    (final,) = bench.settle()
    assert final == Rendered(1, pause_samples, 0, b"", final=True)
    assert not bench.model.calls
    assert len(bench.all_heard()) == pause_samples
    assert len(bench.arena.control(1).spans()) == (pause_samples > 0)


def test_segments_follow_each_other_without_a_gap(bench: Bench) -> None:
    for stream in (1, 2, 3):
        bench.streams.handle(bench.open(stream, segment=stream, pause_samples=10))
        feed(bench.streams, stream, TEXT[:9])
        bench.settle()
    one = np.concatenate([sound(encode(TEXT[:9]), SEED), np.zeros(10, np.float32)])
    np.testing.assert_array_equal(bench.all_heard(), np.tile(one, 3))
    spans = bench.arena.control(1).spans()
    assert [(span.start_sample, span.segment) for span in spans] == [(0, 1), (len(one), 2), (2 * len(one), 3)]


# --------------------------------------------------------------------------- a full ring


def test_what_the_ring_does_not_take_waits_and_no_more_is_rendered() -> None:
    bench = Bench(capacity=3000, slots=2)
    bench.streams.handle(bench.open(1, pause_samples=5000))
    feed(bench.streams, 1, TEXT)
    reports = bench.settle()
    assert bench.written() == 3000
    assert bench.streams.blocked
    assert not bench.streams.ready
    calls = len(bench.model.calls)
    assert bench.streams.step() == []
    assert not bench.streams.moved
    for _ in range(10_000):
        if not len(bench.streams):
            break
        assert bench.streams.ready or bench.streams.blocked
        bench.read(limit=777)
        reports += bench.streams.step()
        assert sum(len(call) for call in bench.model.calls) <= calls + len(TEXT)
    np.testing.assert_array_equal(bench.all_heard(), np.concatenate([WHOLE, np.zeros(5000, np.float32)]))
    samples = [one.samples for one in rendered(reports)]
    assert samples == sorted(samples)
    assert rendered(reports)[-1].final
    bench.arena.close()


def test_reports_say_what_is_in_the_ring_and_a_checkpoint_comes_only_with_a_whole_rung() -> None:
    bench = Bench(capacity=1000, slots=2)
    bench.streams.handle(bench.open(1, rungs=(2, 3)))
    feed(bench.streams, 1, TEXT)
    reports = rendered(bench.settle())
    assert [(one.samples, one.done_tokens, one.checkpoint) for one in reports] == [(1000, 0, None)]
    first_rung = 2 * TOKEN_SAMPLES - HELD_SAMPLES
    bench.read(limit=first_rung - 1000)
    (second,) = rendered(bench.streams.step())
    assert (second.samples, second.done_tokens) == (first_rung, 2)
    assert second.checkpoint == b'{"tokens": 2, "samples": %d}' % first_rung
    bench.arena.close()


def test_each_token_s_place_is_reported_once_when_it_is_in_the_ring() -> None:
    bench = Bench(capacity=500, slots=2)
    bench.streams.handle(bench.open(1))
    feed(bench.streams, 1, TEXT)
    marks: list[TokenSample] = []
    for _ in range(10_000):
        for report in rendered(bench.streams.step()):
            assert all(mark.sample < report.samples or report.checkpoint for mark in report.token_samples)
            marks += report.token_samples
        if not len(bench.streams):
            break
        bench.read()
    assert marks == [TokenSample(i, i * TOKEN_SAMPLES, True) for i in range(len(TEXT))]
    bench.arena.close()


def test_the_cost_of_a_rung_is_reported_once() -> None:
    bench = Bench(capacity=500, slots=2)
    ticks = iter(range(1000))
    bench.streams = AudioStreams(bench.model, bench.arena.writer, clock=lambda: float(next(ticks)))
    bench.streams.handle(bench.open(1, rungs=(100,)))
    feed(bench.streams, 1, TEXT[:5])
    costs = []
    while len(bench.streams):
        costs += [one.render_s for one in rendered(bench.streams.step())]
        bench.read()
    assert costs[0] == 1.0
    assert not any(costs[1:])
    assert len(costs) > 3
    bench.arena.close()


# --------------------------------------------------------------------------- many streams


def test_streams_are_rendered_together_up_to_the_batch_and_in_turn() -> None:
    bench = Bench(max_batch=2, slots=6)
    for stream in range(1, 6):
        bench.streams.handle(bench.open(stream, slot=stream, rungs=(4,)))
        feed(bench.streams, stream, TEXT)
    for _ in range(5):
        bench.streams.step()
    assert [sorted(job[0] for job in call) for call in bench.model.calls] == [[1, 2], [3, 4], [1, 5], [2, 3], [4, 5]]
    bench.settle()
    for slot in range(1, 6):
        np.testing.assert_array_equal(bench.all_heard(slot), WHOLE)
    bench.arena.close()


def test_a_listener_that_never_reads_stalls_only_its_own_stream() -> None:
    bench = Bench(capacity=3000, slots=3)
    for stream in (1, 2):
        bench.streams.handle(bench.open(stream, slot=stream))
        feed(bench.streams, stream, TEXT)
    for _ in range(500):
        bench.streams.step()
        bench.read(2)
    np.testing.assert_array_equal(bench.all_heard(2), WHOLE)
    assert bench.written(1) == 3000
    assert len(bench.streams) == 1
    bench.arena.close()


def test_a_cancelled_stream_frees_its_slot_at_once(bench: Bench) -> None:
    bench.streams.handle(bench.open(1))
    feed(bench.streams, 1, TEXT[:10], final=False)
    bench.settle()
    at = bench.written()
    assert bench.streams.handle(CancelStream(1)) == [StreamClosed(1)]
    assert not bench.model.streams
    assert feed(bench.streams, 1, TEXT[10:], first=10) == []
    assert bench.settle() == []
    assert bench.written() == at
    assert bench.streams.handle(bench.open(2, epoch=2)) == []
    feed(bench.streams, 2, TEXT)
    assert rendered(bench.settle(), 2)[-1].final
    assert bench.streams.handle(CancelStream(77)) == [StreamClosed(77)]


# --------------------------------------------------------------------------- crashes


@settings(deadline=None, max_examples=80, print_blob=True)
@given(
    capacity=st.integers(700, 9000),
    deaths=st.lists(st.integers(1, 30), max_size=6),
    lost=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    pause_samples=st.sampled_from([0, 1500]),
    ladder=st.booleans(),
    read_samples=st.integers(100, 5000),
)
@pytest.mark.slow
def test_successors_go_on_from_the_last_checkpoint_and_repeat_no_sample(
    capacity: int, deaths: list[int], lost: list[int], pause_samples: int, ladder: bool, read_samples: int
) -> None:
    """Workers die after so many steps, their last reports lost; what is heard is the whole, once."""
    bench = Bench(capacity=capacity, ladder=ladder, slots=2)
    known = Rendered(1, 0, 0, b"")
    resume = functools.partial(bench.open, first_sample=0, pause_samples=pause_samples)
    deaths = [*deaths, 10**6]
    for life, steps in enumerate(deaths):
        bench.worker()
        bench.streams.handle(
            resume(life, done_tokens=known.done_tokens, done_samples=known.samples, checkpoint=known.checkpoint or b"")
        )
        for first in range(0, len(TEXT), 5):
            feed(bench.streams, life, TEXT[first : first + 5], first, final=first + 5 >= len(TEXT))
        reports: list[Rendered] = []
        for _ in range(steps):
            if not len(bench.streams):
                break
            reports += rendered(bench.streams.step(), life)
            bench.read(limit=read_samples)
        kept = reports if life == len(deaths) - 1 else reports[: len(reports) - lost[life]]
        if any(one.final for one in kept):
            break
        known = next((one for one in reversed(kept) if one.checkpoint is not None), known)
    whole = np.concatenate([WHOLE, np.zeros(pause_samples, np.float32)])
    np.testing.assert_array_equal(bench.all_heard(), whole)
    bench.arena.close()


def test_a_resumed_stream_may_be_of_a_new_epoch(bench: Bench) -> None:
    bench.streams.handle(bench.open(1, rungs=(4,), epoch=3))
    feed(bench.streams, 1, TEXT[:7], final=False)
    (report,) = rendered(bench.settle())
    bench.worker()
    bench.streams.handle(
        bench.open(
            2,
            rungs=(4,),
            first_sample=0,
            epoch=5,
            segment=1,
            done_tokens=report.done_tokens,
            done_samples=report.samples,
            checkpoint=report.checkpoint,
        )
    )
    feed(bench.streams, 2, TEXT)
    bench.settle()
    assert [(s.start_sample, s.epoch) for s in bench.arena.control(1).spans()] == [(0, 3), (report.samples, 5)]
    np.testing.assert_array_equal(bench.all_heard(), WHOLE)


def test_a_lost_lease_ends_the_stream_without_a_sample_more(bench: Bench) -> None:
    bench.streams.handle(bench.open(1))
    feed(bench.streams, 1, TEXT[:10], final=False)
    bench.settle()
    at = bench.written()
    bench.arena.control(1).grant(bench.lease + 1)
    feed(bench.streams, 1, TEXT[10:], first=10)
    assert bench.settle() == []
    assert bench.written() == at
    assert len(bench.streams) == 0
    assert not bench.model.streams
    assert bench.streams.handle(bench.open(2)) == []  # the old lease again
    assert bench.streams.counters["lease_lost"] == 2
    assert bench.streams.handle(bench.open(3, lease=bench.lease + 1)) == []
    feed(bench.streams, 3, TEXT)
    assert rendered(bench.settle(), 3)[-1].final


def test_a_new_dispatcher_voids_everything(bench: Bench) -> None:
    for stream in (1, 2):
        bench.streams.handle(bench.open(stream, slot=stream))
        feed(bench.streams, stream, TEXT[:10], final=False)
    bench.settle()
    assert bench.streams.handle(Welcome(2, 1)) == []
    assert len(bench.streams) == 0
    assert not bench.model.streams
    bench.streams.handle(bench.open(3))
    feed(bench.streams, 3, TEXT)
    assert rendered(bench.settle(), 3)[-1].final


# --------------------------------------------------------------------------- failures


def test_a_stream_that_breaks_fails_alone(bench: Bench) -> None:
    bench.streams.handle(bench.open(1, slot=1))
    bench.streams.handle(bench.open(2, slot=2))
    feed(bench.streams, 1, TEXT)
    feed(bench.streams, 2, f"well {BROKEN} and so on")
    made = bench.settle()
    assert StreamFailed(2, "broken") in made
    assert rendered(made, 1)[-1].final
    assert list(bench.model.streams) == [1]
    bench.streams.close_finished()
    assert list(bench.model.streams) == []


@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"voice": REFUSED}, "abc", "voice"),
        ({}, f"abc{REFUSED}", "none of ours"),
        ({"rungs": ()}, "abc", "rungs"),
        ({"rungs": (4, 0)}, "abc", "rungs"),
        ({"slot": 99}, "abc", "99"),
        ({"first_sample": 5}, "abc", "the ring holds -5 samples"),
        ({"done_tokens": 9}, "abc", "9 tokens are said to be done"),
        ({"epoch": 0}, "abc", "epoch"),
    ],
)
def test_what_cannot_be_done_fails_with_the_reason(
    bench: Bench, fields: dict[str, object], text: str, reason: str
) -> None:
    made = bench.streams.handle(bench.open(1, **({"first_sample": 0} | fields)))  # type: ignore[arg-type]
    made += feed(bench.streams, 1, text)
    made += bench.settle()
    (failed,) = made
    assert isinstance(failed, StreamFailed)
    assert reason in failed.reason
    assert len(bench.streams) == 0
    assert not bench.model.streams
    assert bench.written() == 0


def test_an_error_that_names_no_stream_is_the_process_s_own(bench: Bench) -> None:
    bench.streams.handle(bench.open(1))
    feed(bench.streams, 1, POISON)
    with pytest.raises(RuntimeError, match="poison"):
        bench.streams.step()


def test_a_slot_has_one_stream_at_a_time(bench: Bench) -> None:
    bench.streams.handle(bench.open(1))
    (failed,) = bench.streams.handle(bench.open(2))
    assert failed == StreamFailed(2, "slot 1 still has an open stream")
    (again,) = bench.streams.handle(bench.open(1))
    assert isinstance(again, StreamFailed)
    assert len(bench.streams) == 0


def test_a_gap_in_the_tokens_fails_the_stream(bench: Bench) -> None:
    bench.streams.handle(bench.open(1))
    feed(bench.streams, 1, "abc", final=False)
    (failed,) = feed(bench.streams, 1, "abc", first=4)
    assert isinstance(failed, StreamFailed)
    assert "3 were the next" in failed.reason


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (AudioStep(1, np.array([0.1, np.nan], np.float32), 3, b""), "no finite numbers"),
        (AudioStep(1, np.zeros(5, np.float64), 3, b""), "float64"),  # type: ignore[arg-type]
        (AudioStep(1, np.zeros((5, 2), np.float32), 3, b""), "2 dimensions"),
        (AudioStep(1, np.zeros(5, np.float32), 2, b""), "up to token 2, asked was 3"),
        (None, "returned nothing"),
    ],
)
def test_what_is_no_sound_never_reaches_a_ring(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: AudioStep | None, reason: str
) -> None:
    monkeypatch.setattr(bench.model, "render", lambda jobs: [] if step is None else [step])
    bench.streams.handle(bench.open(1, rungs=(3,)))
    feed(bench.streams, 1, "abc")
    (failed,) = bench.settle()
    assert isinstance(failed, StreamFailed)
    assert reason in failed.reason
    assert bench.written() == 0


def test_messages_for_others_are_ignored(bench: Bench) -> None:
    for message in (Grant(9, 5.0), Tokens(9, 0, 1, b"x", True)):
        assert bench.streams.handle(message) == []
