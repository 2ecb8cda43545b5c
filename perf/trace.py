"""A timeline as a Chrome trace (the JSON that https://ui.perfetto.dev and chrome://tracing open).

Stages are processes, workers their threads, chunks complete events (``X``, µs from the request) and queue fills
counters (``C``), each in the unit that its name ends with. Names of processes and threads are metadata (``M``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipc.messages import State
from perf.common import Row

PROCESSES = {"T3": 1, "S3Gen": 2, "playback": 3, "queues": 4}
Event = dict[str, Any]


def events(rows: Sequence[Row], states: Sequence[State], zero_s: float) -> list[Event]:
    """Of chunks (rows of `perf.timeline`) and of the states seen after ``zero_s`` on the dispatcher's clock."""
    threads = sorted({(str(row["stage"]), str(row["worker"])) for row in rows})
    number = {one: index + 1 for index, one in enumerate(threads)}
    found = [_named("process_name", PROCESSES[stage], 0, name=stage) for stage in PROCESSES]
    found += [_named("process_sort_index", pid, 0, sort_index=pid) for pid in PROCESSES.values()]
    found += [_named("thread_name", PROCESSES[stage], number[stage, worker], name=worker) for stage, worker in threads]
    found += [_chunk(row, number[str(row["stage"]), str(row["worker"])]) for row in rows]
    return found + [one for state in states if state.uptime_s >= zero_s for one in _fills(state, zero_s)]


def write(path: Path, found: Sequence[Event], text: str) -> None:
    """The file. ``text`` is what was spoken."""
    content = {"traceEvents": list(found), "displayTimeUnit": "ms", "otherData": {"text": text}}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _named(what: str, pid: int, tid: int, **told: str | int) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": told}


def _chunk(row: Row, tid: int) -> Event:
    from_us, to_us = (round(1000 * float(row[name] or 0)) for name in ("from_ms", "to_ms"))
    return {
        "ph": "X",
        "name": f"chunk {row['chunk']}",
        "cat": str(row["stage"]),
        "pid": PROCESSES[str(row["stage"])],
        "tid": tid,
        "ts": from_us,
        "dur": to_us - from_us,
        "args": {"speech_ms": row["speech_ms"], "speech_until_ms": row["speech_until_ms"]},
    }


def _fills(state: State, zero_s: float) -> list[Event]:
    ts = round(1e6 * (state.uptime_s - zero_s))
    return [
        {
            "ph": "C",
            "name": f"{name}_{fill.unit}",
            "pid": PROCESSES["queues"],
            "tid": 0,
            "ts": ts,
            "args": {fill.unit: fill.now},
        }
        for name, fill in state.queues.items()
    ]
