"""Hours of speech with random programs, cancels and kills: what grows, gets slower or gets lost.

Some programs speak to the speaker and some listen; each picks texts, voices, priorities and ways of giving the text at
random, and now and then changes its mind. Two parts: a calm one, in which memory, descriptors, threads and the time to
first sound are followed per process (a process that is killed forgets what it leaked), and one in which processes are
killed all the time. The same text with the same seed must always come back as the same sound, and every utterance
that is not cancelled must end as finished, sample for sample.

At a free pace an hour of speech takes some fifteen seconds. At real-time pace the loudspeaker's clock runs and each
listener takes sound as an ear does: a gap that anybody hears is an underrun, and must be explained by a kill shortly
before it.

Memory also grows up to bounds (the last 1,000 endings are kept): so its slope is told of the second half, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from perf import common, running
from perf.common import PerfError, Report, Row
from perf.slopes import slope, stretches
from perf.soak_programs import MIB, Look, Soak, Tally

WARM_SHARE = 0.1
"""Of the calm part; what is loaded at its first use is no growth."""

MEMORY, DESCRIPTORS = "memory over hours of speech", "descriptors over hours of speech"


def growth(looks: Sequence[Look]) -> dict[str, list[Row]]:
    """Per process: what it had at first and at last, and what it gains per hour of speech."""
    hours = [look.speech_s / 3600 for look in looks]
    half = len(looks) // 2
    memory: list[Row] = []
    counts: list[Row] = []
    for name in looks[0].memory_bytes:
        mib = [look.memory_bytes[name] / MIB for look in looks]
        memory.append(
            {
                "process": name,
                **_ends("mib", mib),
                **slope(hours, mib).cells("mib_per_h", 4),
                **slope(hours[half:], mib[half:]).cells("late_mib_per_h", 4),
            }
        )
        for kind in ("descriptors", "threads"):
            held = [float(getattr(look, kind)[name]) for look in looks]
            cells = slope(hours, held).cells(f"{kind}_per_h", 3)
            counts.append({"process": name, "what": kind, **_ends("held", held), "per_h": cells[f"{kind}_per_h"]})
    return {"memory while calm": memory, "descriptors and threads while calm": counts}


def _ends(name: str, values: Sequence[float]) -> Row:
    """The medians of the first and the last fifth."""
    fifth = max(1, len(values) // 5)
    first, last = (round(float(np.median(part)), 2) for part in (values[:fifth], values[-fifth:]))
    return {f"first_{name}": first, f"last_{name}": last}


def over_time(looks: Sequence[Look]) -> dict[str, list[Row]]:
    """What the picture shows: some two dozen points of each process's memory and descriptors."""
    hours = [look.speech_s / 3600 for look in looks]
    at, first_ms = stretches(hours, [look.first_sound_ms for look in looks])
    memory = {name: stretches(hours, [look.memory_bytes[name] / MIB for look in looks])[1] for name in looks[0].threads}
    held = {name: stretches(hours, [look.descriptors[name] for look in looks])[1] for name in looks[0].threads}
    return {
        MEMORY: [
            {
                "speech_h": round(hour, 3),
                "first_sound_ms": round(first_ms[place], 2),
                **{f"{name}_mib": round(values[place], 2) for name, values in memory.items()},
            }
            for place, hour in enumerate(at)
        ],
        DESCRIPTORS: [
            {"speech_h": round(hour, 3), **{f"{name}_descriptors": values[place] for name, values in held.items()}}
            for place, hour in enumerate(at)
        ],
    }


def slopes(looks: Sequence[Look]) -> Row:
    """Figures: of all processes together, and of the first sound."""
    hours, half = [look.speech_s / 3600 for look in looks], len(looks) // 2
    memory = [sum(look.memory_bytes.values()) / MIB for look in looks]
    first_ms = [look.first_sound_ms for look in looks]
    return {
        "first_sound_p50_ms": round(float(np.median(first_ms)), 2),
        **slope(hours, first_ms).cells("first_sound_ms_per_h", 3),
        **slope(hours, memory).cells("memory_mib_per_h", 4),
        **slope(hours[half:], memory[half:]).cells("late_memory_mib_per_h", 4),
    }


def underruns(tally: Tally) -> tuple[list[Row], Row]:
    """Gaps that were heard: a table and figures."""
    found = tally.underruns
    rows: list[Row] = [
        {
            "where": where,
            "underruns": found.explained[where] + found.unexplained[where],
            "explained": found.explained[where],
            "unexplained": found.unexplained[where],
        }
        for where in ("loudspeaker", "listeners")
    ]
    figures: Row = {
        "underruns": found.explained.total() + found.unexplained.total(),
        "unexplained_underruns": found.unexplained.total(),
        "underruns_told_with_finished": tally.counts["underruns told with finished"],
        "late_blocks": tally.late_blocks,
    }
    return rows, figures


async def measure(given: argparse.Namespace) -> None:
    """The calm part, then the one with kills. Raises `PerfError` when anything went wrong."""
    began = common.Began()
    asked: Row = {"model.engine": given.engine, "player.pace": given.pace, "supervise.max_restarts": 1_000_000}
    with running.pipeline("", asked) as place:
        soak = Soak(place.to, given)
        beside = [soak.follow_player] if given.pace == "realtime" else []
        calm_s = await soak.part(given.speech_h * (1 - given.kill_share), soak.look, *beside)
        calm_speech_s = soak.tally.speech_s
        killed_s = 0.0
        if given.kill_share > 0:
            killed_s = await soak.part(given.speech_h * given.kill_share, soak.kill, *beside)
    tally = soak.tally
    looks = soak.looks[round(len(soak.looks) * WARM_SHARE) :]
    if not looks:
        raise PerfError("the calm part was over before the first look: raise --speech-h or lower --look-every-s")
    parts: list[Row] = [
        {
            "part": name,
            "speech_h": round(speech_s / 3600, 2),
            "took_s": round(took_s, 1),
            "times_real_time": round(speech_s / took_s, 1) if took_s else 0.0,
            "kills": kills,
        }
        for name, speech_s, took_s, kills in (
            ("calm", calm_speech_s, calm_s, 0),
            ("kills", tally.speech_s - calm_speech_s, killed_s, soak.kills.total()),
        )
    ]
    figures: Row = {
        "speech_h": round(tally.speech_s / 3600, 2),
        "finished": tally.counts["finished"],
        "cancelled": tally.counts["cancelled"],
        "wrong": len(tally.wrong),
        "kills": soak.kills.total(),
        "looks": len(looks),
        **slopes(looks),
    }
    tables = {"parts": parts, **growth(looks), **over_time(looks)}
    if given.pace == "realtime":
        tables["underruns"], heard = underruns(tally)
        figures |= heard
    common.report("soak", given, tables, figures, asked, began, draw)
    _judge(tally)


def _judge(tally: Tally) -> None:
    if tally.wrong:
        raise PerfError(f"{len(tally.wrong)} utterances went wrong; the first: {tally.wrong[0]}")
    if tally.underruns.unexplained:
        heard = ", ".join(f"{count} at the {where}" for where, count in tally.underruns.unexplained.items())
        raise PerfError(f"underruns without a kill shortly before them: {heard}")


def draw(report: Report, figure: Any) -> None:
    """Memory (above its start) and descriptors of each process and the time to first sound, over hours of speech."""
    memory, descriptors, first = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    rows, held, figures = report["rows"][MEMORY], report["rows"][DESCRIPTORS], report["figures"]
    hours = [row["speech_h"] for row in rows]
    for column in [name for name in rows[0] if name.endswith("_mib")]:
        values = [row[column] - rows[0][column] for row in rows]
        name = column.removesuffix("_mib")
        memory.plot(hours, values, marker=".", label=f"{name} (from {rows[0][column]:.1f} MiB)")
        descriptors.plot(hours, [row[f"{name}_descriptors"] for row in held], marker=".", label=name)
    memory.set_ylabel("MiB more than at first")
    said = [_said("memory", "MiB", figures, "memory_mib_per_h")]
    said.append(_said("its second half", "MiB", figures, "late_memory_mib_per_h"))
    memory.set_title("; ".join(said), loc="left", fontsize=11)
    memory.legend(fontsize=8, loc="upper left")
    descriptors.set_ylabel("descriptors")
    descriptors.set_ylim(bottom=0)
    first.plot(hours, [row["first_sound_ms"] for row in rows], marker=".", color="#2c3e50")
    first.set_ylabel("first sound, ms")
    first.set_ylim(bottom=0)
    first.set_title(_said("first sound", "ms", figures, "first_sound_ms_per_h"), loc="left", fontsize=11)
    first.set_xlabel("hours of speech (calm part)")
    for axes in (memory, descriptors, first):
        axes.grid(alpha=0.3)


def _said(what: str, unit: str, figures: Row, name: str) -> str:
    """A slope in words."""
    value, low, high = (figures[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return f"{what}: too few looks to tell a slope"
    return f"{what}: {value:+.3f} {unit} per hour of speech (95 %: {low:+.3f} to {high:+.3f})"


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__, connects=False, draws=True)
    parser.add_argument("--engine", default="espeak", help="of the pipeline (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    parser.add_argument("--pace", choices=("free", "realtime"), default="free", help="of all sound (default: free)")
    parser.add_argument("--speech-h", type=float, default=10, help="hours of speech in all (default: %(default)s)")
    parser.add_argument("--kill-share", type=float, default=0.3, help="of it with kills (default: %(default)s)")
    parser.add_argument("--kill-every-s", type=float, default=4, help="on average (default: %(default)s)")
    parser.add_argument("--look-every-s", type=float, default=3, help="at memory and so on (default: %(default)s)")
    parser.add_argument("--speakers", type=int, default=2, help="programs that speak (default: %(default)s)")
    parser.add_argument("--listeners", type=int, default=3, help="programs that listen (default: %(default)s)")
    parser.add_argument("--chars", type=int, default=600, help="of the longest text (default: %(default)s)")
    given = parser.parse_args()
    least = {"kill_share": 0, "kill_every_s": 0.1, "look_every_s": 0.05, "speakers": 0, "listeners": 1, "chars": 20}
    common.at_least(parser, given, speech_h=0.001, **least)
    if given.kill_share >= 1:
        parser.error(f"--kill-share: {given.kill_share}: less than 1, the calm part comes first")
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
