"""Many remote listeners, of whom some never read: memory of the whole pipeline, and who is slowed down.

Readers take their sound as fast as it comes, in a process of their own; those that never read are in another (they
ask for a text, take a tenth of a second of it and leave the rest where it is). Memory is physical memory, summed over
the pipeline's processes: pages of their own, and of the rings each one's fraction. It is read all the time; `before`
is after a warm-up, with nobody there.

- by default: the readers alone, then the same with those that never read beside them, twice (what grows in the second
  round would grow for ever); growth counts from before anybody came;
- ``--text-chars N``: one text of that length to one listener at full speed; memory at each tenth of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from ipc.client import AsyncClient
from ipc.messages import Finished
from launch.table import environment
from perf import common, running, texts
from perf.common import Row

MIB = 2**20
LOOK_EVERY_S = 0.25
STUCK_BUFFER_S = 0.1
START_S = 30.0
READ_S = 600.0
SETTLE_S = 1.0


class Memory:
    """The pipeline's memory over time: ``looks`` are (time, bytes by process)."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        self._processes = processes
        self.looks: list[tuple[float, dict[str, int]]] = []

    def look(self) -> int:
        """Bytes of all processes now."""
        try:
            taken = {name: running.memory_bytes(process) for name, process in self._processes.items()}
        except (psutil.Error, OSError) as error:
            raise common.PerfError(
                f"a process of the pipeline was restarted meanwhile; see its log ({error})"
            ) from error
        self.looks.append((time.monotonic(), taken))
        return sum(taken.values())

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look all the time."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def peak(self) -> int:
        """The most that all processes had at once."""
        return max(sum(taken.values()) for _, taken in self.looks)


# --------------------------------------------------------------------------- the other processes


async def read_all(to: str, count: int, seconds: float, seed: int) -> dict[str, list[float]]:
    """So many listeners that read everything; how long each took, and its seconds of speech."""
    async with AsyncClient(to) as client:

        async def one(number: int) -> tuple[float, float]:
            began_s = time.monotonic()
            speech = await client.speak(texts.prose_of(seconds, seed + number), output="stream", seed=number)
            samples = 0
            async for sound in speech.sounds():
                samples += sound.count
            ending = speech.ending
            if not isinstance(ending, Finished) or ending.samples != samples:
                raise common.PerfError(f"listener {number} got {samples} samples of {ending}")
            return time.monotonic() - began_s, ending.seconds

        taken = await asyncio.gather(*(one(number) for number in range(count)))
    return {"took_s": [took for took, _ in taken], "speech_s": [speech for _, speech in taken]}


async def never_read(to: str, count: int, seconds: float, seed: int) -> None:
    """So many listeners that ask and then read nothing; says a line when all have, and stays until killed."""
    async with AsyncClient(to, buffer_s=STUCK_BUFFER_S) as client:
        speeches = [
            await client.speak(texts.prose_of(seconds, seed + number), output="stream", seed=number)
            for number in range(count)
        ]
        print(f"{len(speeches)} listeners read nothing", flush=True)
        await asyncio.Event().wait()


@asynccontextmanager
async def helper(
    to: str, role: str, count: int, given: argparse.Namespace
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that listens in this role; killed at the end."""
    command = [sys.executable, "-m", "perf.listeners", "--to", to, "--role", role, "--readers", str(count)]
    command += ["--seconds", str(given.seconds), "--seed", str(given.seed)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment())
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line_of(process: Process, timeout_s: float) -> str:
    """The next line that a helper prints."""
    assert process.stdout is not None
    async with asyncio.timeout(timeout_s):
        line = (await process.stdout.readline()).decode()
    if not line:
        raise common.PerfError("a helper process failed; what it said stands above")
    return line


# --------------------------------------------------------------------------- many listeners


async def crowd(client: AsyncClient, given: argparse.Namespace, stuck: int, start: int = 0) -> tuple[Row, int]:
    """All readers to their end, with ``stuck`` others beside them; a row of times and memory.

    Growth counts from ``start``: the memory before anybody came (0: now).
    """
    memory = Memory(await running.processes(client))
    before = start or memory.look()
    async with memory.watched():
        if stuck:
            async with helper(client.to, "stuck", stuck, given) as others:
                await line_of(others, START_S)
                times = await readers(client.to, given)
                held = memory.look()
            await client.cancel(all=True)
        else:
            times = await readers(client.to, given)
            held = memory.look()
        await asyncio.sleep(SETTLE_S)
    took = sorted(times["took_s"])
    row: Row = {
        "listeners": given.readers + stuck,
        "never_read": stuck,
        "speech_s": round(sum(times["speech_s"]), 1),
        "median_s": round(took[len(took) // 2], 2),
        "last_s": round(took[-1], 2),
        "before_mb": _mb(before),
        "growth_at_peak_mb": _mb(memory.peak() - before),
        "growth_at_end_mb": _mb(held - before),
        "growth_after_mb": _mb(memory.look() - before),
    }
    return row, before


async def readers(to: str, given: argparse.Namespace) -> dict[str, list[float]]:
    """What the readers' process has measured."""
    async with helper(to, "readers", given.readers, given) as process:
        found: dict[str, list[float]] = json.loads(await line_of(process, READ_S))
    return found


async def measure_crowd(client: AsyncClient, given: argparse.Namespace) -> tuple[dict[str, list[Row]], Row]:
    """The readers alone, and with those that never read."""
    alone, start = await crowd(client, given, 0)
    rows = [alone]
    for _ in range(given.rounds):
        row, _ = await crowd(client, given, given.stuck, start)
        rows.append(row)
    figures: Row = {
        "growth_at_peak_mb": max(float(row["growth_at_peak_mb"] or 0) for row in rows),
        "growth_of_last_round_mb": round(
            float(rows[-1]["growth_after_mb"] or 0) - float(rows[-2]["growth_after_mb"] or 0), 2
        ),
        "slower_with_stuck": round(float(rows[1]["last_s"] or 0) / float(rows[0]["last_s"] or 1), 3),
    }
    return {"listeners": rows}, figures


# --------------------------------------------------------------------------- one long text


async def measure_long(client: AsyncClient, given: argparse.Namespace) -> tuple[dict[str, list[Row]], Row]:
    """One long text to one listener: memory at every tenth of the text."""
    text = texts.prose(given.text_chars, random.Random(given.seed))[: given.text_chars]
    memory = Memory(await running.processes(client))
    before = memory.look()
    rows: list[Row] = []
    began_s = time.monotonic()
    speech = await client.speak(text, output="stream", seed=1)
    seconds = 0.0
    async with memory.watched():
        async for sound in speech.sounds():
            seconds += sound.count / speech.sample_rate
            while speech.made_chars * 10 >= len(text) * (len(rows) + 1) and len(rows) < 9:
                rows.append(_tenth(memory, before, speech.made_chars, seconds, began_s))
    rows.append(_tenth(memory, before, len(text), seconds, began_s))
    later = [float(row["growth_mb"] or 0) for row in rows]
    figures: Row = {
        "speech_s": round(seconds, 1),
        "times_real_time": round(seconds / (time.monotonic() - began_s), 1),
        "growth_at_first_tenth_mb": later[0],
        "growth_at_peak_mb": _mb(memory.peak() - before),
        "growth_from_first_to_last_tenth_mb": round(later[-1] - later[0], 2),
    }
    return {"memory over one long text": rows}, figures


def _tenth(memory: Memory, before: int, chars: int, seconds: float, began_s: float) -> Row:
    now = memory.look()
    of_each = {f"{name}_mb": _mb(taken) for name, taken in memory.looks[-1][1].items()}
    return {
        "chars": chars,
        "speech_s": round(seconds, 1),
        "after_s": round(time.monotonic() - began_s, 1),
        "growth_mb": _mb(now - before),
        **of_each,
    }


def _mb(count_bytes: int) -> float:
    return round(count_bytes / MIB, 2)


# --------------------------------------------------------------------------- the script


async def measure(given: argparse.Namespace) -> None:
    """Against one pipeline."""
    began = common.Began()
    asked: Row = {"model.engine": given.engine, "player.output": "none", "player.pace": "realtime"}
    with running.pipeline(given.to, asked) as place:
        async with AsyncClient(place.to) as client:
            warm = await client.speak(texts.prose_of(min(given.seconds, 20), given.seed), output="stream")
            await warm.audio()
            await asyncio.sleep(SETTLE_S)
            tables, figures = await (measure_long if given.text_chars else measure_crowd)(client, given)
    common.report("listeners", given, tables, figures, place.settings, began)


def main() -> int:
    """Read the command line and measure (or play a role in it)."""
    parser = common.arguments(__doc__)
    parser.add_argument("--readers", type=int, default=40, help="that read everything (default: %(default)s)")
    parser.add_argument("--stuck", type=int, default=10, help="that never read (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of speech for each, roughly (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="with those that never read (default: %(default)s)")
    parser.add_argument("--text-chars", type=int, default=0, help="one text of this length instead, to one listener")
    parser.add_argument("--role", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    common.at_least(parser, given, readers=1, stuck=0, seconds=1, rounds=1, text_chars=0)
    if given.role == "readers":
        print(json.dumps(asyncio.run(read_all(given.to, given.readers, given.seconds, given.seed))), flush=True)
        return 0
    if given.role == "stuck":
        return common.run(never_read(given.to, given.readers, given.seconds, given.seed))
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
