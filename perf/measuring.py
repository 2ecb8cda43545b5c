"""What it costs the pipeline to be measured: its processes' CPU time and pace, watched and unwatched by turns.

Unwatched, nobody asks for anything but speech. Watched, a program has the pipeline's state sent with the timeline of
every stage (``watch`` every --every-ms, as the page in the browser and the view do), and another asks for its status
twice a second, as the scripts here do. What the dispatcher counts, it counts in either case.

Each turn speaks the same text twice: to the speaker at real-time pace, for the CPU time of all processes; and to a
listener that takes sound as fast as it is made, for the time that takes, which is what being slowed down means. The
intervals are those of `perf.comparing`: Student's, 95 %.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ipc.client import AsyncClient
from ipc.messages import Finished
from perf import common, running, texts
from perf.common import PerfError, Report, Row
from perf.comparing import difference
from perf.overhead import WARM_TEXT, spent
from perf.turns import order
from perf.window import LOOK_MS

STATUS_EVERY_S = 0.5
FAST_TIMES = 40
"""The text to the listener is longer by this, as it takes a hundredth of the time."""

DOUBT = 0.025
KINDS = ("unwatched", "watched")


@dataclass(frozen=True)
class Turn:
    """One turn: CPU time per second of speech in percent, by process and in all, and how fast the listener got
    its sound."""

    by_process: dict[str, float]
    milliseconds_per_s: float

    @property
    def cpu_percent(self) -> float:
        """Of all processes."""
        return sum(self.by_process.values())


@asynccontextmanager
async def watchers(client: AsyncClient, every_ms: int) -> AsyncIterator[list[int]]:
    """Programs that want to know everything all the time; how many answers they got."""
    seen = [0]

    async def watch() -> None:
        async for _ in client.watch(every_ms, timeline=True):
            seen[0] += 1

    async def poll() -> None:
        while True:
            await client.status()
            seen[0] += 1
            await asyncio.sleep(STATUS_EVERY_S)

    tasks = [asyncio.create_task(watch()), asyncio.create_task(poll())]
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        for done in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(done, Exception):
                raise done


async def speak(client: AsyncClient, text: str, long_text: str) -> Turn:
    """Both texts, and what that took."""
    cpu_s, _, finished = await spent(client, text)
    if finished is None or finished.underruns:
        raise PerfError("the loudspeaker ran dry: the machine is too busy to measure on")
    began_s = time.perf_counter()
    speech = await client.speak(long_text, output="stream", seed=1)
    async for _ in speech.sounds():
        continue
    took_s = time.perf_counter() - began_s
    if not isinstance(speech.ending, Finished):
        raise PerfError(f"the listener did not hear all: {speech.ending}")
    shares = {name: 100 * used_s / finished.seconds for name, used_s in cpu_s.items()}
    return Turn(shares, 1000 * took_s / speech.ending.seconds)


def compared(name: str, before: Sequence[float], after: Sequence[float], digits: int = 3) -> Row:
    """``name`` watched and unwatched (medians), and by how much it differs, with the interval."""
    bounds = difference(before, after, DOUBT)
    old, new = float(np.median(before)), float(np.median(after))
    return {
        "what": name,
        "unwatched": round(old, digits),
        "watched": round(new, digits),
        "more": round(float(np.mean(after) - np.mean(before)), digits),
        "more_low": None if bounds is None else round(bounds[0], digits),
        "more_high": None if bounds is None else round(bounds[1], digits),
        "more_%": round(100 * float(np.mean(after) / np.mean(before) - 1), 2),
    }


async def measure(given: argparse.Namespace) -> None:
    """Turns against one pipeline."""
    began = common.Began()
    asked: Row = {"model.engine": given.engine, "player.output": "none", "player.pace": "realtime"}
    text = texts.prose_of(given.seconds, given.seed)
    long_text = texts.prose_of(FAST_TIMES * given.seconds, given.seed)
    turns: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
    answers = 0
    with running.pipeline(given.to, asked) as place:
        async with AsyncClient(place.to) as client:
            await (await client.speak(WARM_TEXT)).wait()
            for number in range(given.turns):
                for side in order(number):
                    kind = KINDS[side == "after"]
                    if kind == "unwatched":
                        turns[kind].append(await speak(client, text, long_text))
                        continue
                    async with watchers(client, given.every_ms) as seen:
                        turns[kind].append(await speak(client, text, long_text))
                    answers += seen[0]
    _report(given, turns, answers, place.settings, began)


def _report(
    given: argparse.Namespace, turns: dict[str, list[Turn]], answers: int, settings: Any, began: common.Began
) -> None:
    before, after = turns["unwatched"], turns["watched"]
    cpu = compared("all processes", [turn.cpu_percent for turn in before], [turn.cpu_percent for turn in after])
    rows = [
        compared(name, [turn.by_process[name] for turn in before], [turn.by_process[name] for turn in after])
        for name in before[0].by_process
    ]
    slow, slower = ([turn.milliseconds_per_s for turn in side] for side in (before, after))
    pace = compared("a second of speech to a listener, ms", slow, slower)
    bounds = difference(slow, slower, DOUBT)
    figures: Row = {
        "turns": given.turns,
        "answers_to_watchers": answers,
        "measuring_%": cpu["more"],
        "measuring_%_low": cpu["more_low"],
        "measuring_%_high": cpu["more_high"],
        "measuring_of_cpu_%": cpu["more_%"],
        "slower_%": pace["more_%"],
        "slower_%_low": None if bounds is None else round(100 * bounds[0] / float(np.mean(slow)), 2),
        "slower_%_high": None if bounds is None else round(100 * bounds[1] / float(np.mean(slow)), 2),
    }
    each: list[Row] = [
        {
            "turn": number,
            "side": kind,
            "cpu_%": round(turn.cpu_percent, 3),
            "ms_per_speech_s": round(turn.milliseconds_per_s, 3),
        }
        for kind, found in turns.items()
        for number, turn in enumerate(found)
    ]
    tables = {"CPU while speaking, % of the speech's duration": [*rows, cpu], "pace": [pace], "turns": each}
    common.report("measuring", given, tables, figures, settings, began, draw)


def draw(report: Report, figure: Any) -> None:
    """Every turn of both kinds: CPU time, and the pace of sound to a listener."""
    for axes, column, what in zip(
        figure.subplots(1, 2),
        ("cpu_%", "ms_per_speech_s"),
        ("CPU of all processes, % of the speech's duration", "a second of speech to a listener, ms"),
        strict=True,
    ):
        for place, kind in enumerate(KINDS):
            found = [float(row[column]) for row in report["rows"]["turns"] if row["side"] == kind]
            spread = np.linspace(-0.12, 0.12, len(found)) if len(found) > 1 else [0.0]
            axes.plot([place + shift for shift in spread], found, "o", alpha=0.7)
            axes.plot([place - 0.2, place + 0.2], [float(np.median(found))] * 2, color="#2c3e50")
        axes.set_xticks(range(len(KINDS)), KINDS)
        axes.set_xlim(-0.6, len(KINDS) - 0.4)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(what)
        axes.grid(axis="y", alpha=0.3)
    cpu, slower = (_said(report["figures"], name) for name in ("measuring_%", "slower_%"))
    figure.suptitle(
        f"what being watched adds: CPU time of {cpu} of the speech's duration; time to a listener's sound {slower}\n"
        "(dots: turns, lines: medians, in brackets: 95 % of what noise leaves open)",
        fontsize=11,
    )


def _said(figures: Row, name: str) -> str:
    value, low, high = (figures[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.2f} %" if low is None else f"{value:+.2f} % ({low:+.2f} to {high:+.2f})"


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__, draws=True)
    parser.add_argument("--seconds", type=float, default=10, help="of speech in a turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=6, help="of each kind (default: %(default)s)")
    parser.add_argument("--every-ms", type=int, default=LOOK_MS, help="between two states (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, seconds=1, turns=1, every_ms=1)
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
