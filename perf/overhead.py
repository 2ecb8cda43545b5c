"""What the pipeline costs beside its engine: CPU time of every process for a text at the pace of speech.

The text goes to the speaker (``player.output: none``, the pace of a sound card). Every process's CPU time is read
before and after, and over an idle stretch first. The engine's own work is measured apart: its two halves make the
same segments in this process, and that CPU time is taken off. What is left, idle cost included, is overhead, given
as a share of the speech's duration.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import psutil

from ipc.client import AsyncClient
from ipc.messages import Finished
from perf import common, running, texts
from perf.common import Row
from perf.direct import Direct

WARM_TEXT = "This sentence comes first, so that nothing is cold. It is not counted."
ENGINE_RUNS = 3


async def spent(client: AsyncClient, seconds_or_text: float | str) -> tuple[dict[str, float], float, Finished | None]:
    """CPU seconds by process while idle for so long, or while speaking; the clock's seconds; how speech ended."""
    found = await running.processes(client)
    before = {name: running.cpu_s(process) for name, process in found.items()}
    began_s = time.monotonic()
    finished = None
    if isinstance(seconds_or_text, str):
        speech = await client.speak(seconds_or_text, seed=1)
        finished = await speech.wait()
    else:
        await asyncio.sleep(seconds_or_text)
    wall_s = time.monotonic() - began_s
    try:
        return {name: running.cpu_s(process) - before[name] for name, process in found.items()}, wall_s, finished
    except (OSError, psutil.NoSuchProcess) as error:
        raise common.PerfError("a process of the pipeline was restarted meanwhile; see its log") from error


def engine_cpu_s(engine: str, voice: str, language: str, text: str) -> float:
    """CPU seconds of the engine alone for this text, warm: the least of some runs."""
    direct = Direct(engine, voice, language)
    runs = []
    for _ in range(ENGINE_RUNS + 1):
        began_s = time.process_time()
        for segment in direct.cut(text):
            for _piece in direct.pieces(segment):
                continue
        runs.append(time.process_time() - began_s)
    direct.close()
    return min(runs[1:])


async def measure(given: argparse.Namespace) -> None:
    """Idle, then the text, then the engine alone."""
    began = common.Began()
    asked: Row = {"model.engine": given.engine, "player.output": "none", "player.pace": "realtime"}
    text = texts.prose_of(given.seconds, given.seed)
    with running.pipeline(given.to, asked) as place:
        async with AsyncClient(place.to) as client:
            warm = await client.speak(WARM_TEXT)
            await warm.wait()
            assert warm.accepted is not None
            engine = await running.engine_of(place, client)
            await asyncio.sleep(min(1.0, given.idle_s))
            idle, idle_s, _ = await spent(client, given.idle_s)
            busy, wall_s, finished = await spent(client, text)
    assert finished is not None
    engine_s = engine_cpu_s(engine, warm.accepted.voice, warm.accepted.language, text)
    speech_s = finished.seconds
    total_s = sum(busy.values())
    rows: list[Row] = [
        {
            "process": name,
            "idle_share_%": _percent(idle[name], idle_s),
            "speaking_cpu_s": round(used_s, 3),
            "speaking_share_%": _percent(used_s, speech_s),
        }
        for name, used_s in busy.items()
    ]
    figures: Row = {
        "speech_s": round(speech_s, 2),
        "wall_s": round(wall_s, 2),
        "idle_all_%": _percent(sum(idle.values()), idle_s),
        "all_cpu_s": round(total_s, 3),
        "all_%": _percent(total_s, speech_s),
        "engine_cpu_s": round(engine_s, 3),
        "engine_%": _percent(engine_s, speech_s),
        "overhead_%": _percent(total_s - engine_s, speech_s),
        "underruns": finished.underruns,
    }
    common.report("overhead", given, {"CPU by process": rows}, figures, place.settings, began)


def _percent(part_s: float, whole_s: float) -> float:
    return round(100 * part_s / whole_s, 3)


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of speech, roughly (default: %(default)s)")
    parser.add_argument("--idle-s", type=float, default=10, help="idle stretch before it (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, seconds=1, idle_s=0.1)
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
