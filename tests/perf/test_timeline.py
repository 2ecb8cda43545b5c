"""Pieces of work become chunks in their order, overlap is counted once, and the trace is one that Perfetto reads."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ipc.messages import QueueFill, State, Work
from perf import common, timeline, trace
from perf.timeline import Chunk, chunks_of, heard_curve, overlap, playback_of, rows_of
from tests.perf.test_perf import check


def work(worker: str, from_s: float, to_s: float, speech_s: float) -> Work:
    return Work(worker, "a", from_s, to_s, speech_s)


def chunk(stage: str, number: int, from_s: float, to_s: float, speech_s: float, until_s: float) -> Chunk:
    worker = {"T3": "t3-0", "S3Gen": "s3gen-0", "playback": "player-0"}[stage]
    return Chunk(stage, worker, number, from_s, to_s, speech_s, until_s)


CHUNKS = [
    chunk("T3", 1, 0.0, 1.0, 2.0, 2.0),
    chunk("T3", 2, 1.0, 2.0, 2.0, 4.0),
    chunk("S3Gen", 1, 1.0, 1.5, 2.0, 2.0),
    chunk("S3Gen", 2, 2.0, 2.5, 2.0, 4.0),
    chunk("playback", 1, 1.5, 3.5, 2.0, 2.0),
    chunk("playback", 2, 3.5, 5.5, 2.0, 4.0),
]


def test_times_count_from_the_request_and_speech_adds_up() -> None:
    found = chunks_of("T3", [work("t3-0", 100.0, 101.0, 0.5), work("t3-0", 101.5, 102.0, 0.25)], 100.5)
    assert found == [chunk("T3", 1, 0.0, 0.5, 0.5, 0.5), chunk("T3", 2, 1.0, 1.5, 0.25, 0.75)]


def test_pieces_of_one_worker_never_overlap_and_those_of_two_may() -> None:
    pieces = [work("t3-0", 0.0, 2.0, 1.0), work("t3-0", 1.0, 3.0, 1.0), work("t3-1", 1.0, 4.0, 1.0)]
    assert [(one.from_s, one.to_s) for one in chunks_of("T3", pieces, 0.0)] == [(0, 2), (2, 3), (1, 4)]


def test_what_the_ring_took_later_belongs_to_the_chunk_that_was_rendered() -> None:
    pieces = [work("s3gen-0", 1.0, 1.5, 0.4), work("s3gen-0", 2.0, 2.0, 0.6), work("s3gen-0", 2.5, 3.0, 1.0)]
    assert chunks_of("S3Gen", pieces, 0.0) == [
        chunk("S3Gen", 1, 1.0, 1.5, 1.0, 1.0),
        chunk("S3Gen", 2, 2.5, 3.0, 1.0, 2.0),
    ]


def test_an_end_of_a_stream_without_tokens_is_no_chunk() -> None:
    assert len(chunks_of("T3", [work("t3-0", 0, 1, 0.5), work("t3-0", 1, 1.1, 0.0)], 0.0)) == 1


def test_a_chunk_is_heard_when_its_samples_are() -> None:
    rendered = [chunk("S3Gen", 1, 0, 0.1, 1.0, 1.0), chunk("S3Gen", 2, 1, 1.1, 2.0, 3.0)]
    curve = heard_curve([work("player-0", 10.0, 10.8, 0.8), work("player-0", 10.8, 13.0, 2.2)], 9.5)
    first, second = playback_of(rendered, curve, "player-0")
    assert (first.from_s, first.to_s) == pytest.approx((0.5, 1.5))
    assert (second.from_s, second.to_s, second.until_s) == pytest.approx((1.5, 3.5, 3.0))


def test_a_gap_in_playback_stands_between_two_chunks() -> None:
    rendered = [chunk("S3Gen", 1, 0, 0.1, 1.0, 1.0), chunk("S3Gen", 2, 3, 3.1, 1.0, 2.0)]
    curve = heard_curve([work("player-0", 0.0, 1.0, 1.0), work("player-0", 3.0, 4.0, 1.0)], 0.0)
    first, second = playback_of(rendered, curve, "player-0")
    assert (first.from_s, first.to_s) == pytest.approx((0, 1))
    assert (second.from_s, second.to_s) == pytest.approx((3, 4))


def test_what_was_rendered_and_never_heard_has_no_length() -> None:
    rendered = [chunk("S3Gen", 1, 0, 0.1, 1.0, 1.0), chunk("S3Gen", 2, 3, 3.1, 1.0, 2.0)]
    curve = heard_curve([work("player-0", 0.0, 1.0, 1.0)], 0.0)
    assert [one.to_s - one.from_s for one in playback_of(rendered, curve, "player-0")] == [1.0, 0.0]
    assert playback_of(rendered, [], "player-0") == []


def test_overlap_is_total_time_against_the_sum_of_the_stages() -> None:
    figures = overlap(CHUNKS)
    assert (figures["t3_ms"], figures["s3gen_ms"], figures["playback_ms"]) == (2000, 1000, 4000)
    assert (figures["total_ms"], figures["sum_of_stages_ms"], figures["saved_by_overlap_ms"]) == (5500, 7000, 1500)
    assert figures["first_sound_ms"] == 1500
    # T3 with S3Gen from 1 to 1.5, T3 with playback to 2, S3Gen with playback to 2.5
    assert figures["two_or_more_at_once_%"] == pytest.approx(100 * 1.5 / 5.5, abs=0.01)


def test_two_workers_of_a_stage_are_one_stage_at_work() -> None:
    both = [Chunk("T3", f"t3-{n}", n + 1, 0.0, 1.0, 1.0, n + 1.0) for n in range(2)]
    figures = overlap([*both, chunk("playback", 1, 1.0, 2.0, 1.0, 1.0)])
    assert (figures["t3_ms"], figures["two_or_more_at_once_%"]) == (1000, 0)


# ------------------------------------------------------------------- the trace


def state(uptime_s: float, ring_s: float) -> State:
    return State(
        engine="", engine_reason="", uptime_s=uptime_s, paused=False, healthy=True, stages=(), latencies={},
        queues={
            "ring": QueueFill(ring_s, 0, 9, 10, "s", 1), "text_waiting": QueueFill(7, 0, 9, None, "characters", 1)
        },
        counters={}, speaking=(), queued=1, player={},
    )  # fmt: skip


def check_trace(events: list[dict[str, Any]]) -> None:
    """What the Chrome trace event format asks of the kinds of event that are used, and Perfetto of slices."""
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert {e["ph"] for e in events} <= {"X", "M", "C"}
    lanes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in events:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["pid"] in processes
        if event["ph"] == "X":
            assert isinstance(event["ts"], int)
            assert isinstance(event["dur"], int)
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert (event["pid"], event["tid"]) in names
            lanes.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "C":
            assert event["ts"] >= 0
            assert event["args"]
            assert all(isinstance(value, int | float) for value in event["args"].values())
    for spans in lanes.values():  # one thread's slices must not cut into each other
        assert all(before[1] <= after[0] + 1 for before, after in pairwise(sorted(spans)))


def test_a_trace_has_processes_threads_slices_and_counters() -> None:
    events = trace.events(rows_of(CHUNKS), [state(9.0, 1.0), state(10.5, 2.5)], 10.0)
    check_trace(events)
    slices = [event for event in events if event["ph"] == "X"]
    assert [(one["cat"], one["name"], one["ts"], one["dur"]) for one in slices[:3]] == [
        ("T3", "chunk 1", 0, 1_000_000),
        ("T3", "chunk 2", 1_000_000, 1_000_000),
        ("S3Gen", "chunk 1", 1_000_000, 500_000),
    ]  # fmt: skip
    named = {event["args"]["name"] for event in events if event["ph"] == "M" and "name" in event["args"]}
    assert named == {"T3", "S3Gen", "playback", "queues", "t3-0", "s3gen-0", "player-0"}
    fills = [event for event in events if event["ph"] == "C"]
    assert [(one["name"], one["ts"], one["args"]) for one in fills] == [
        ("ring_s", 500_000, {"s": 2.5}), ("text_waiting_characters", 500_000, {"characters": 7}),
    ]  # fmt: skip


def test_the_picture_is_drawn_from_the_report_alone() -> None:
    pytest.importorskip("matplotlib")
    report = json.loads(json.dumps({"rows": {"chunks": rows_of(CHUNKS)}, "figures": overlap(CHUNKS)}))
    figure = common.blank()
    timeline.draw(report, figure)
    whole, near, curves = figure.axes
    assert [label.get_text() for label in whole.get_yticklabels()] == ["T3", "S3Gen", "playback"]
    assert len(whole.collections) == len(near.collections) == len(CHUNKS)
    assert [line.get_ydata()[-1] for line in curves.lines] == [4.0, 4.0, 4.0]
    assert "5.50 s in all" in whole.get_title(loc="left")


@pytest.mark.slow
@pytest.mark.parametrize("output", ["speaker", "stream"])
def test_a_text_is_followed_through_all_stages(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_file, trace_file = tmp_path / "report.json", tmp_path / "trace.json"
    slow = ["--set", "model.options.token_delay_ms=8", "model.options.render_delay_ms=8"]
    monkeypatch.setattr("sys.argv", [
        "timeline", "--engine", "tests.engines.babble:ENGINE", *slow, "--text", "One is here, and two. Three.",
        "--output", output, "--json", str(report_file), "--trace", str(trace_file),
    ])  # fmt: skip
    assert timeline.main() == 0
    report = json.loads(report_file.read_text())
    check("timeline", report)
    rows, figures = report["rows"]["chunks"], report["figures"]
    of = {stage: [row for row in rows if row["stage"] == stage] for stage in timeline.STAGES}
    assert all(of.values())
    assert [row["chunk"] for row in of["playback"]] == [row["chunk"] for row in of["S3Gen"]]
    heard_ms = of["playback"][-1]["speech_until_ms"]
    assert heard_ms == pytest.approx(of["S3Gen"][-1]["speech_until_ms"], abs=1)
    assert figures["playback_ms"] == pytest.approx(heard_ms, rel=0.1)
    for made, rendered in zip(of["T3"][:1], of["S3Gen"][:1], strict=True):
        assert made["to_ms"] <= rendered["to_ms"]
    assert figures["sum_of_stages_ms"] > figures["total_ms"]
    assert figures["two_or_more_at_once_%"] > 0
    traced = json.loads(trace_file.read_text())
    check_trace(traced["traceEvents"])
    assert len([event for event in traced["traceEvents"] if event["ph"] == "X"]) == len(rows)
    assert {event["name"] for event in traced["traceEvents"] if event["ph"] == "C"} >= {"ring_s", "tokens_waiting_s"}
