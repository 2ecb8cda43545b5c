"""How full every queue is, what every stage does with its time, and where the bottleneck is.

Over workloads of some seconds each:

- ``steady``: one utterance after another to the speaker, the next one always waiting;
- ``bursts``: three at once to the speaker, and when they have been heard two seconds of silence;
- ``long``: one long text to a listener who takes it as fast as it comes;
- ``listeners``: many, at the pace of the ear, in processes of their own;

the time-weighted mean and the greatest fill of every queue, the shares of its time in which every stage was busy,
starved (waiting for input) and blocked (waiting for room downstream), who is waited for (`perf.bottleneck` says how
that is told) and which one setting would move it. ``--watch`` shows the same, live, of a pipeline that runs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ipc.client import AsyncClient
from ipc.client_speech import AsyncSpeech
from perf import common, listening, live, running, texts
from perf.bottleneck import Verdict, verdict
from perf.common import Report, Row
from perf.window import Window, observe

WARM_TEXT = "This comes first, so that nothing is cold."
BURST = 3
SILENCE_S = 2.0
LONG_S = 3600.0
"""Of speech in one text: faster than that many times real time it is followed by another."""

PER_OUTPUT = ("credit_in_flight", "tokens_waiting")
COLORS = {"busy": "#2a9d60", "blocked": "#e0a030", "starved": "#9aa4b2"}
QUEUE_COLOR = "#3b7dd8"

Workload = Callable[[AsyncClient, argparse.Namespace], Awaitable[None]]


async def steady(client: AsyncClient, given: argparse.Namespace) -> None:
    """One utterance after another, the next one always waiting."""
    rng = random.Random(given.seed)
    waiting = [await client.speak(_text(rng)), await client.speak(_text(rng))]
    try:
        while True:
            await waiting[0].wait()
            del waiting[0]
            waiting.append(await client.speak(_text(rng)))
    finally:
        await _silence(waiting)


async def bursts(client: AsyncClient, given: argparse.Namespace) -> None:
    """Several at once, then silence."""
    rng = random.Random(given.seed)
    begun: list[AsyncSpeech] = []
    try:
        while True:
            begun[:] = [await client.speak(_text(rng)) for _ in range(BURST)]
            for speech in begun:
                await speech.wait()
            await asyncio.sleep(SILENCE_S)
    finally:
        await _silence(begun)


async def long(client: AsyncClient, given: argparse.Namespace) -> None:
    """One long text after another to a listener at free pace."""
    for number in range(sys.maxsize):
        speech = await client.speak(texts.prose_of(LONG_S, given.seed + number), output="stream")
        try:
            async for _ in speech.sounds():
                continue
        finally:
            await _silence([speech])


async def listeners(client: AsyncClient, given: argparse.Namespace) -> None:
    """Many listeners at the pace of the ear; they leave after as many seconds of speech."""
    spread_s = min(2.0, given.seconds / 4)
    await listening.crowd(client.to, given.listeners, given.seconds + spread_s, given.seed, spread_s)


WORKLOADS: dict[str, Workload] = {"steady": steady, "bursts": bursts, "long": long, "listeners": listeners}


def _text(rng: random.Random) -> str:
    """Two sentences."""
    return f"{texts.sentence(rng)} {texts.sentence(rng)}"


async def _silence(speeches: Sequence[AsyncSpeech]) -> None:
    """End what was begun here, and nothing of anybody else's."""
    for speech in speeches:
        if speech.ending is None:
            await speech.cancel()


# --------------------------------------------------------------------------- the report


def stage_rows(window: Window) -> list[Row]:
    """What every worker did with its time. ``told_s``: of how many seconds it has said so."""
    return [
        {
            "stage": worker,
            "busy_%": _percent(spent.busy),
            "starved_%": _percent(spent.starved),
            "blocked_%": _percent(spent.blocked),
            "told_s": round(spent.over_s, 2),
        }
        for worker, spent in window.stages.items()
    ]


def queue_rows(window: Window) -> list[Row]:
    """The fill of every queue, in its own ``unit``. What each output may have (on its way through T3 and before S3Gen)
    is bounded for as many as there were on average."""
    rows: list[Row] = []
    for name, fill in window.queues.items():
        bound = fill.bound
        if bound and name in PER_OUTPUT:
            bound = round(bound * max(1.0, window.mean(lambda look: look.outputs)), 1)
        row: Row = {"queue": name, "unit": fill.unit, "mean": round(fill.mean, 4), "most": round(fill.most, 4)}
        rows.append(row | {"bound": bound, "mean_of_bound_%": _percent(fill.mean / bound) if bound else None})
    return rows


def verdict_row(name: str, window: Window, found: Verdict) -> Row:
    """Who is waited for in one workload."""
    return {
        "workload": name,
        "took_s": round(window.seconds, 2),
        "times_real_time": round(window.made_s / window.seconds, 2),
        "idle_%": _percent(window.idle),
        "ahead_s": round(window.mean(lambda look: look.ahead_s), 2),
        "bottleneck": found.who or "nobody",
        "share_%": _percent(found.share),
        "what would move it": found.advice,
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _figures(name: str, window: Window, found: Verdict) -> Row:
    shares: Row = {
        f"{name}_{role}_busy_%": _percent(spent.busy)
        for role in ("dispatcher", "t3", "s3gen", "player")
        if (spent := window.spent(role)) is not None
    }
    return {**shares, f"{name}_ahead_s": round(window.mean(lambda look: look.ahead_s), 2)}


async def measure(given: argparse.Namespace) -> None:
    """Every workload against one pipeline."""
    began = common.Began()
    asked = running.asked(given, player__output="none", player__pace="realtime")
    verdicts: list[Row] = []
    tables: dict[str, list[Row]] = {"who is waited for": verdicts}
    figures: Row = {}
    with running.pipeline(given.to, asked) as place:
        config = running.config_of(place)
        async with AsyncClient(place.to) as client:
            await (await client.speak(WARM_TEXT)).wait()
            for name in given.workload:
                window = await observe(client, WORKLOADS[name](client, given), given.seconds)
                found = verdict(window, config)
                verdicts.append(verdict_row(name, window, found))
                tables |= {f"{name}: stages": stage_rows(window), f"{name}: queues": queue_rows(window)}
                figures |= _figures(name, window, found)
    common.report("queues", given, tables, figures, place.settings, began, draw)


def draw(report: Report, figure: Any) -> None:
    """A row of two panels a workload: shares of every stage, and the queues that are counted in seconds."""
    tables = report["rows"]
    verdicts = tables["who is waited for"]
    panels = figure.subplots(len(verdicts), 2, squeeze=False)
    for (left, right), found in zip(panels, verdicts, strict=True):
        name = found["workload"]
        _draw_stages(left, tables[f"{name}: stages"])
        _draw_queues(right, tables[f"{name}: queues"])
        left.set_title(f"{name}: the bottleneck is {found['bottleneck']}", loc="left", fontsize=11, fontweight="bold")
        right.set_title(f"{found['ahead_s']:g} s ahead on average", loc="left", fontsize=10)
    panels[-1][0].set_xlabel("% of the time")
    panels[-1][1].set_xlabel("seconds of speech: bar mean, ◆ most, │ bound")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)


def _draw_stages(axes: Any, rows: Sequence[Row]) -> None:
    names = [str(row["stage"]) for row in rows]
    left = [0.0] * len(rows)
    for doing, color in COLORS.items():
        values = [float(row[f"{doing}_%"] or 0) for row in rows]
        axes.barh(names, values, left=left, color=color, label=doing, height=0.7)
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.set_xlim(0, 100)
    axes.invert_yaxis()


def _draw_queues(axes: Any, rows: Sequence[Row]) -> None:
    timed = [row for row in rows if row["unit"] == "s"]
    names = [str(row["queue"]).replace("_", " ") for row in timed]
    most = [float(row["most"] or 0) for row in timed]
    axes.barh(names, [float(row["mean"] or 0) for row in timed], color=QUEUE_COLOR, height=0.6)
    axes.plot(most, names, linestyle="", marker="D", markersize=4, color=COLORS["blocked"])
    bounded = [(float(row["bound"]), name) for row, name in zip(timed, names, strict=True) if row["bound"]]
    axes.plot(*zip(*bounded, strict=True), linestyle="", marker="|", markersize=12, markeredgewidth=2, color="#c0392b")
    axes.set_xlim(0, max([1.0, *most, *(bound for bound, _ in bounded)]) * 1.05)
    axes.invert_yaxis()


def main() -> int:
    """Read the command line and measure, or watch."""
    parser = common.arguments(__doc__, draws=True)
    running.takes_settings(parser)
    parser.add_argument(
        "--workload", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), help="(default: all)"
    )
    parser.add_argument("--seconds", type=float, default=20, help="of each (default: %(default)s)")
    parser.add_argument("--listeners", type=int, default=20, help="of that workload (default: %(default)s)")
    parser.add_argument("--watch", action="store_true", help="show a running pipeline (--to) until Ctrl-C")
    given = parser.parse_args()
    common.at_least(parser, given, seconds=0.5, listeners=1)
    if given.watch and (given.json or given.png or given.set):
        parser.error("--watch: shows a running pipeline and measures nothing; without --json, --png and --set")
    return common.run(live.watch(given.to) if given.watch else measure(given))


if __name__ == "__main__":
    sys.exit(main())
