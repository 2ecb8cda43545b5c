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
from pathlib import Path
from typing import Any

from ipc.client import AsyncClient
from ipc.client_speech import AsyncSpeech
from ipc.messages import Finished, State, Work
from perf import common, running, trace
from perf.chunks import STAGES, Chunk, Curve, chunks_of, heard_curve, overlap, playback_of, rows_of
from perf.common import PerfError, Report, Row
from perf.listening import IN_ADVANCE_S, Ear
from perf.window import LOOK_MS

TEXT = (
    "The lighthouse keeper wrote a letter every evening, and nobody ever answered. "
    "On Sundays he read the oldest ones aloud, to the gulls and to the sea. "
    "One winter a ship came close enough to hear him. "
    "Its captain waited until the last word, and then the whole crew applauded."
)
COLORS = {"T3": ("#3b7dd8", "#8db5ea"), "S3Gen": ("#d9822b", "#f0b77e"), "playback": ("#2a9d60", "#84cfa6")}
PREBUFFER_S = 0.12
NEAR = 2.5
"""The beginning: so many times as long as until the first sound."""

LABELLED_SHARE = 0.02
"""A bar that wide, of the picture, has room for its number."""


# --------------------------------------------------------------------------- measuring


async def spoken(client: AsyncClient, text: str, output: str) -> tuple[list[Chunk], list[State], float]:
    """Speak; the chunks, the states seen meanwhile, and when on the dispatcher's clock the request was sent."""
    states: list[State] = []
    offsets: list[float] = []
    watching = asyncio.create_task(_watch(client, states, offsets))
    try:
        while not states:
            await asyncio.sleep(LOOK_MS / 1000)
        sent_s = time.monotonic()
        speech = await client.speak(text, output="stream" if output == "stream" else "speaker", seed=1)
        heard = await _listen(speech) if output == "stream" else []
        finished = await speech.wait()
        seen = len(states)
        while len(states) < seen + 2:  # the last pieces come with the next state
            await asyncio.sleep(LOOK_MS / 1000)
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
    async with aclosing(client.watch(LOOK_MS, timeline=True)) as coming:
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
