"""What T3, S3Gen and playback did when, for each chunk of one text: the overlap as a picture and as a number.

The dispatcher notes every piece of work (`watch` with ``timeline``); times are the dispatcher's, so a stage's include
the way there and back. Playback of a chunk is when its samples are heard: at the loudspeaker (``player.output: none``
at real-time pace), or with ``--output stream`` by a listener at the pace of the ear. ``--trace`` writes a file that
https://ui.perfetto.dev opens, the queues' fill included. All times count from the request.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ipc.client import AsyncClient
from ipc.client_speech import AsyncSpeech
from ipc.messages import Finished, State, Work
from perf import common, running, trace
from perf.common import PerfError, Report, Row
from perf.listening import IN_ADVANCE_S, Ear

TEXT = (
    "The lighthouse keeper wrote a letter every evening, and nobody ever answered. "
    "On Sundays he read the oldest ones aloud, to the gulls and to the sea. "
    "One winter a ship came close enough to hear him. "
    "Its captain waited until the last word, and then the whole crew applauded."
)
STAGES = ("T3", "S3Gen", "playback")
COLORS = {"T3": ("#3b7dd8", "#8db5ea"), "S3Gen": ("#d9822b", "#f0b77e"), "playback": ("#2a9d60", "#84cfa6")}
WATCH_MS = 20
PREBUFFER_S = 0.12
NEAR = 2.5
"""The beginning: so many times as long as until the first sound."""

LABELLED_SHARE = 0.02
"""A bar that wide, of the picture, has room for its number."""


@dataclass(frozen=True)
class Chunk:
    """What one stage did with one chunk; seconds from the request, ``until_s`` the speech made or heard by its end."""

    stage: str
    worker: str
    number: int
    from_s: float
    to_s: float
    speech_s: float
    until_s: float


ROUNDED_S = 0.002
"""Speech in the timeline is rounded: sums that differ no more are the same."""

Curve = list[tuple[float, float]]
"""Points (time from the request, speech until then), both in seconds and growing."""


# --------------------------------------------------------------------------- from pieces of work to chunks


def chunks_of(stage: str, pieces: Sequence[Work], zero_s: float) -> list[Chunk]:
    """A stage's pieces as chunks, in order and without overlap in one worker.

    What S3Gen reports of a rung after the first part (the ring had no room for all of it) took no work and belongs to
    the chunk before.
    """
    chunks: list[Chunk] = []
    ends: dict[str, float] = {}
    until_s = 0.0
    for one in pieces:
        until_s += one.speech_s
        to_s = one.to_s - zero_s
        if stage == "S3Gen" and one.from_s == one.to_s and chunks:
            chunks[-1] = replace(chunks[-1], speech_s=chunks[-1].speech_s + one.speech_s, until_s=until_s)
            continue
        from_s = min(to_s, max(0.0, one.from_s - zero_s, ends.get(one.worker, 0.0)))
        ends[one.worker] = to_s
        if one.speech_s > 0 or stage != "T3":
            chunks.append(Chunk(stage, one.worker, len(chunks) + 1, from_s, to_s, one.speech_s, until_s))
    return chunks


def heard_curve(pieces: Sequence[Work], zero_s: float) -> Curve:
    """How much had been heard when, by the player's pieces."""
    curve: Curve = []
    until_s = 0.0
    for one in pieces:
        if not curve or one.from_s - zero_s > curve[-1][0]:
            curve.append((one.from_s - zero_s, until_s))
        until_s += one.speech_s
        curve.append((max(one.to_s - zero_s, curve[-1][0]), until_s))
    return curve


def playback_of(rendered: Sequence[Chunk], curve: Curve, worker: str) -> list[Chunk]:
    """When each rendered chunk was heard."""
    chunks = []
    for chunk in rendered if curve else ():
        begins_s, ends_s = (min(at_s, curve[-1][1]) for at_s in (chunk.until_s - chunk.speech_s, chunk.until_s))
        from_s = _when(curve, begins_s)[1]
        to_s = max(from_s, _when(curve, ends_s)[0])
        chunks.append(Chunk("playback", worker, chunk.number, from_s, to_s, ends_s - begins_s, ends_s))
    return chunks


def _when(curve: Curve, speech_s: float) -> tuple[float, float]:
    """When so much had been heard: from when on, and until when (no longer, unless it was silent then)."""
    times, speech = np.array(curve).T
    first = min(int(np.searchsorted(speech, speech_s - ROUNDED_S)), len(speech) - 1)
    last = max(0, int(np.searchsorted(speech, speech_s + ROUNDED_S, side="right")) - 1)
    if last > first:
        return float(times[first]), float(times[last])
    at_s = float(np.interp(speech_s, speech, times))
    return at_s, at_s


# --------------------------------------------------------------------------- overlap


def overlap(chunks: Sequence[Chunk]) -> Row:
    """Total time from the request to the last sound, the sum of what the stages worked, and how much was at once."""
    spans = {stage: _union([(one.from_s, one.to_s) for one in chunks if one.stage == stage]) for stage in STAGES}
    worked = {stage: sum(to - since for since, to in found) for stage, found in spans.items()}
    total_s = max(one.to_s for one in chunks)
    edges = sorted({edge for found in spans.values() for span in found for edge in span})
    at_once_s = 0.0
    for since, to in pairwise(edges):
        at_work = sum(any(a <= since and to <= b for a, b in found) for found in spans.values())
        at_once_s += (to - since) * (at_work >= 2)
    return {
        "total_ms": _ms(total_s),
        "t3_ms": _ms(worked["T3"]),
        "s3gen_ms": _ms(worked["S3Gen"]),
        "playback_ms": _ms(worked["playback"]),
        "sum_of_stages_ms": _ms(sum(worked.values())),
        "saved_by_overlap_ms": _ms(sum(worked.values()) - total_s),
        "total_of_sum_%": round(100 * total_s / max(sum(worked.values()), 1e-9), 2),
        "two_or_more_at_once_%": round(100 * at_once_s / max(total_s, 1e-9), 2),
        "first_sound_ms": _ms(min(one.from_s for one in chunks if one.stage == "playback")),
    }


def _union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for since, to in sorted(spans):
        if joined and since <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], to))
        else:
            joined.append((since, to))
    return joined


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def rows_of(chunks: Sequence[Chunk]) -> list[Row]:
    """One row a chunk and stage."""
    return [
        {
            "stage": one.stage,
            "worker": one.worker,
            "chunk": one.number,
            "from_ms": _ms(one.from_s),
            "to_ms": _ms(one.to_s),
            "speech_ms": _ms(one.speech_s),
            "speech_until_ms": _ms(one.until_s),
        }
        for one in chunks
    ]


# --------------------------------------------------------------------------- measuring


async def spoken(client: AsyncClient, text: str, output: str) -> tuple[list[Chunk], list[State], float]:
    """Speak; the chunks, the states seen meanwhile, and when on the dispatcher's clock the request was sent."""
    states: list[State] = []
    offsets: list[float] = []
    watching = asyncio.create_task(_watch(client, states, offsets))
    try:
        while not states:
            await asyncio.sleep(WATCH_MS / 1000)
        sent_s = time.monotonic()
        speech = await client.speak(text, output="stream" if output == "stream" else "speaker", seed=1)
        heard = await _listen(speech) if output == "stream" else []
        finished = await speech.wait()
        seen = len(states)
        while len(states) < seen + 2:  # the last pieces come with the next state
            await asyncio.sleep(WATCH_MS / 1000)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    zero_s = sent_s - min(offsets)
    mine = [one for state in states for one in state.timeline if one.id == speech.id]
    heard = [(at_s - sent_s, speech_s) for at_s, speech_s in heard]
    return _chunks(mine, heard, zero_s, finished), states, zero_s


def _chunks(pieces: Sequence[Work], heard: Curve, zero_s: float, finished: Finished) -> list[Chunk]:
    of = {role: [one for one in pieces if one.worker.startswith(f"{role}-")] for role in ("t3", "s3gen", "player")}
    made = chunks_of("T3", of["t3"], zero_s)
    rendered = chunks_of("S3Gen", of["s3gen"], zero_s)
    noted_s = sum(one.speech_s for one in rendered)
    if noted_s < 0.99 * finished.seconds:
        raise PerfError(
            f"of {finished.seconds:.2f} s of speech the timeline has {noted_s:.2f}: was a worker restarted?"
        )
    curve = heard or heard_curve(of["player"], zero_s)
    return [*made, *rendered, *playback_of(rendered, curve, "listener" if heard else "player-0")]


async def _watch(client: AsyncClient, states: list[State], offsets: list[float]) -> None:
    """``offsets``: this process's clock less the dispatcher's, and how long the state was on its way."""
    async with aclosing(client.watch(WATCH_MS, timeline=True)) as coming:
        async for state in coming:
            states.append(state)
            offsets.append(time.monotonic() - state.uptime_s)


async def _listen(speech: AsyncSpeech) -> Curve:
    """Play as the ear would: when (on this process's clock) how much has been heard."""
    ear = Ear(PREBUFFER_S, time.monotonic())
    curve: Curve = []
    async for sound in speech.sounds():
        before_s = ear.speech_s
        ear.hear(sound.count, time.monotonic())
        due_s = time.monotonic() + ear.wait_s(time.monotonic()) + IN_ADVANCE_S
        curve += [(due_s - (ear.speech_s - before_s), before_s), (due_s, ear.speech_s)]
        await asyncio.sleep(max(0.0, ear.wait_s(time.monotonic())))
    return curve


async def measure(given: argparse.Namespace) -> None:
    """One text, after a first one so that nothing is cold."""
    began = common.Began()
    asked = running.asked(given, player__output="none", player__pace="realtime")
    with running.pipeline(given.to, asked) as place:
        async with AsyncClient(place.to) as client:
            await (await client.speak("This comes first.")).wait()
            chunks, states, zero_s = await spoken(client, given.text, given.output)
    if given.trace is not None:
        trace.write(given.trace, trace.events(rows_of(chunks), states, zero_s), given.text)
    common.report("timeline", given, {"chunks": rows_of(chunks)}, overlap(chunks), place.settings, began, draw)


# --------------------------------------------------------------------------- the picture


def draw(report: Report, figure: Any) -> None:
    """Lanes of the stages with a bar a chunk, the beginning larger, and how much speech there was when."""
    rows, figures = report["rows"]["chunks"], report["figures"]
    whole, near, curves = figure.subplots(3, 1, height_ratios=(2, 2, 3))
    total_ms, first_ms = figures["total_ms"], figures["first_sound_ms"]
    _lanes(whole, rows, total_ms, 1000)
    title = (
        f"{total_ms / 1000:.2f} s in all, the stages one after another {figures['sum_of_stages_ms'] / 1000:.2f} s; "
        f"two or more at work {figures['two_or_more_at_once_%']:.1f} % of the time"
    )
    whole.set_title(title, loc="left", fontsize=11, fontweight="bold")
    _lanes(near, rows, min(total_ms, NEAR * first_ms), 1)
    near.set_title(f"the beginning, in milliseconds: first sound after {first_ms:.0f}", loc="left", fontsize=11)
    for stage, width in zip(STAGES, (4, 2, 2), strict=True):
        _curve(curves, stage, [row for row in rows if row["stage"] == stage], total_ms, width)
    curves.set(xlim=(0, total_ms / 1000), ylim=(0, None), xlabel="seconds since the request", ylabel="s of speech")
    title = "speech made (T3, without the pauses), rendered (S3Gen) and heard"
    curves.set_title(title, loc="left", fontsize=11)
    curves.legend(loc="lower right", frameon=False)
    curves.grid(alpha=0.3)


def _curve(axes: Any, stage: str, rows: Sequence[Row], total_ms: float, width: float) -> None:
    """Speech over time. What is made is there at once when its chunk is done, what is heard comes bit by bit."""
    times, speech = [0.0], [0.0]
    for row in rows:
        until_ms = float(row["speech_until_ms"] or 0)
        times += [float(row["from_ms"] or 0) / 1000, float(row["to_ms"] or 0) / 1000]
        speech += [(until_ms - float(row["speech_ms"] or 0)) / 1000, until_ms / 1000]
    drawn = "default" if stage == "playback" else "steps-post"
    points = ([*times, total_ms / 1000], [*speech, speech[-1]])
    axes.plot(*points, color=COLORS[stage][0], label=stage, linewidth=width, drawstyle=drawn)


def _lanes(axes: Any, rows: Sequence[Row], until_ms: float, unit_ms: float) -> None:
    """A lane a stage, up to ``until_ms``, in units of ``unit_ms``. Bars too narrow to be seen are a line wide."""
    for row in rows:
        stage, number = str(row["stage"]), int(row["chunk"] or 0)
        lane, color = STAGES.index(stage), COLORS[stage][number % 2]
        from_ms, to_ms = float(row["from_ms"] or 0), float(row["to_ms"] or 0)
        bar = (from_ms / unit_ms, (to_ms - from_ms) / unit_ms)
        axes.broken_barh([bar], (lane - 0.38, 0.76), color=color, edgecolor=color, linewidth=0.8)
        shown_ms = min(to_ms, until_ms) - from_ms
        if shown_ms > LABELLED_SHARE * until_ms:
            at = (from_ms + shown_ms / 2) / unit_ms
            axes.text(at, lane, str(number), ha="center", va="center", fontsize=8, color="black")
    axes.set(xlim=(0, until_ms / unit_ms), ylim=(len(STAGES) - 0.5, -0.5), yticks=range(len(STAGES)))
    axes.set_yticklabels(STAGES)


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__, draws=True)
    running.takes_settings(parser)
    parser.add_argument("--text", default=TEXT, help="what to speak (default: four sentences)")
    parser.add_argument("--output", choices=("speaker", "stream"), default="speaker", help="(default: %(default)s)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a trace for ui.perfetto.dev here")
    return common.run(measure(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
