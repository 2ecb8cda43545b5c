"""The same texts and engine through every way to speak, in one run: what is heard when, how it joins, what it costs.

    python -m perf.compare --sweep --json perf/results/compare.json --png docs/compare.png --markdown docs/compare.md

``everything`` (generate all, then play), ``pseudo`` (generate all, hand out chunks of 4096 samples, start after 3),
``independent`` (chunks that know nothing of each other, crossfaded), ``sequential`` (one process, tokens and sound in
turn), ``pipeline`` (ours), and of Chatterbox ``stock`` (`generate` of its package): `perf.ways` says what each does.
Weights, voice, seed and texts are the same. Ways take turns, each in fresh processes that are warm when it is
measured and alone on the machine; medians of ``--repeats`` rounds count.

- ``perceived_ms``: request → first sample at the output. ``total_ms``: request → last sample heard. ``better_%``: how
  much less than ``everything`` takes. ``spread_ms``: greatest less least of the rounds.
- ``first_made_ms``: request → first sample made (of ours: in the ring); what comes on top until it is heard is the
  wait for enough sound and for the card, up to a block of it by chance.
- ``underruns``: how often the output ran dry; ``gaps_ms``, ``longest_gap_ms``: the silence that this was.
- ``join_step``: the largest step from sample to sample where chunks meet, 1: as large as the largest thousandth
  elsewhere. ``join_flux``: how much the spectrum changes there, 1: as much as elsewhere on average (where clauses
  meet, it changes more).
- ``cpu_ms`` of all processes, as ``cpu_%`` of the speech. ``memory_mib``: of all processes, as in `perf.running`.

Every way plays at the pace of a sound card that takes blocks of 512 samples (21 ms). Ours has a player of its own for
that, into a WAV file, and pays for it. For the others the card is worked out from the moments at which pieces were
made (`perf.card`), and costs nothing. ``independent``, ``sequential`` and ours begin with 120 ms of sound, ours also
with a complete segment. Hops of the request and its answer count against ours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import soundfile

from ipc.messages import SAMPLE_RATE
from perf import common, compare_views, direct, sweeping, texts, trials, trials_pipeline
from perf.common import Row
from perf.compare_views import draw
from perf.trials import Engine, Trial
from perf.ways import ONE_PROCESS, PIPELINE, STOCK, Ask
from pipeline.config import Player

__all__ = ["draw", "main"]

BASE = "everything"
MIB = 2**20

Trials = dict[tuple[str, str], list[Trial]]
"""By text and way."""


def least_samples(way: str, given: argparse.Namespace) -> int:
    """How much sound has to be there before playing begins."""
    if way == "pseudo":
        return int(given.chunk_samples * given.start_chunks)
    return Player().prebuffer_ms * SAMPLE_RATE // 1000


async def run_way(way: str, engine: Engine, given: argparse.Namespace) -> dict[str, Trial]:
    """All texts once, in one way, in processes of its own."""
    names = list(given.texts)
    if way == PIPELINE:
        found = await trials_pipeline.tried_pipeline(engine, {}, [texts.TEXTS[name] for name in names])
        return dict(zip(names, found, strict=True))
    with trials.one_process(way, engine) as speaker:
        asked = {
            name: Ask(
                text=texts.TEXTS[name],
                chunk_samples=given.chunk_samples,
                chunk_tokens=given.chunk_tokens,
                fade_ms=given.fade_ms,
            )
            for name in names
        }
        return {name: trials.tried(speaker, ask, least_samples(way, given)) for name, ask in asked.items()}


async def run_all(ways: Sequence[str], engine: Engine, given: argparse.Namespace) -> Trials:
    """Round by round, so that whatever disturbs disturbs all."""
    found: Trials = {(text, way): [] for text in given.texts for way in ways}
    for number in range(given.repeats):
        for way in ways:
            print(f"round {number + 1} of {given.repeats}: {way} …", file=sys.stderr, flush=True)
            for text, trial in (await run_way(way, engine, given)).items():
                found[text, way].append(trial)
    return found


# --------------------------------------------------------------------------- the tables


def heard_row(text: str, way: str, runs: Sequence[Trial], base: Sequence[Trial]) -> Row:
    """When it is heard, and what breaks off."""
    perceived = [run.perceived_ms for run in runs]
    total = statistics.median(run.total_ms for run in runs)
    return {
        "text": text,
        "way": way,
        "perceived_ms": round(statistics.median(perceived), 1),
        "better_%": better(statistics.median(perceived), statistics.median(run.perceived_ms for run in base)),
        "spread_ms": round(max(perceived) - min(perceived), 1),
        "total_ms": round(total, 1),
        "total_better_%": better(total, statistics.median(run.total_ms for run in base)),
        "underruns": statistics.median_high(len(run.gaps_ms) for run in runs),
        "gaps_ms": round(statistics.median(sum(run.gaps_ms) for run in runs), 1),
        "longest_gap_ms": round(statistics.median(max(run.gaps_ms, default=0.0) for run in runs), 1),
    }


def made_row(text: str, way: str, runs: Sequence[Trial]) -> Row:
    """What it is made of, and what that costs."""
    last = runs[-1]
    cpu_ms = statistics.median(run.cpu_ms for run in runs)
    return {
        "text": text,
        "way": way,
        "first_made_ms": round(statistics.median(run.first_made_ms for run in runs), 1),
        "speech_s": round(last.speech_s, 2),
        "chunks": last.chunks,
        "join_step": None if last.join_step is None else round(last.join_step, 3),
        "join_flux": None if last.join_flux is None else round(last.join_flux, 2),
        "cpu_ms": round(cpu_ms, 1),
        "cpu_%": round(cpu_ms / 10 / last.speech_s, 2),
        "memory_mib": round(statistics.median(run.memory_bytes for run in runs) / MIB, 1),
    }


def better(value: float, base: float) -> float:
    """How much less than the base, in percent of the base."""
    return round(100 * (base - value) / base, 1)


def figures_of(heard: Sequence[Row]) -> Row:
    """One number a way and text, and what ours gains."""
    figures: Row = {f"perceived_{row['way']}_{row['text']}_ms": row["perceived_ms"] for row in heard}
    for row in heard:
        if row["way"] == PIPELINE:
            figures[f"better_{row['text']}_%"] = row["better_%"]
            figures[f"underruns_{row['text']}"] = row["underruns"]
    return figures


def save_wavs(folder: Path, found: Trials) -> None:
    """Side by side: what came out, from the request on, so that waits and gaps can be heard."""
    folder.mkdir(parents=True, exist_ok=True)
    for (text, way), runs in found.items():
        soundfile.write(folder / f"{text}-{way}.wav", runs[-1].heard, SAMPLE_RATE, subtype="PCM_16")


async def measure(given: argparse.Namespace, engine: Engine) -> None:
    """All ways on all texts, then the sweep."""
    began = common.Began()
    ways = [BASE, *(way for way in given.ways if way != BASE)]
    found = await run_all(ways, engine, given)
    heard = [heard_row(text, way, runs, found[text, BASE]) for (text, way), runs in found.items()]
    made = [made_row(text, way, runs) for (text, way), runs in found.items()]
    tables = {"what is heard when": heard, "what it is made of, and what that costs": made}
    figures = figures_of(heard)
    if given.sweep:
        swept = await sweeping.sweep(engine, given)
        tables |= swept.tables
        figures |= swept.figures
    if given.wav is not None:
        save_wavs(given.wav, found)
    shown = given.texts[0]
    curves = {"text": shown, "ways": {way: compare_views.curve(found[shown, way][-1]) for way in ways}}
    content = common.report(
        "compare", given, tables, figures, engine.settings(), began, draw=draw, curves={"heard": curves}
    )
    if given.markdown is not None:
        page = compare_views.markdown(content, __doc__ or "", given.markdown, given.png)
        given.markdown.write_text(page, encoding="utf-8")


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__, connects=False, draws=True)
    direct.arguments(parser)
    parser.add_argument(
        "--texts", nargs="+", choices=list(texts.TEXTS), default=list(texts.TEXTS), help="(default: all)"
    )
    parser.add_argument("--ways", nargs="+", choices=[*ONE_PROCESS, PIPELINE, STOCK], help="(default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--chunk-samples", type=int, default=4096, help="of pseudo (default: %(default)s)")
    parser.add_argument("--start-chunks", type=int, default=3, help="of pseudo (default: %(default)s)")
    parser.add_argument("--chunk-tokens", type=int, default=0, help="of independent (default: what suits the engine)")
    parser.add_argument("--fade-ms", type=float, default=20, help="of independent (default: %(default)s)")
    parser.add_argument("--wav", type=Path, metavar="FOLDER", help="save what is heard of each way and text there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report as a page here")
    sweeping.arguments(parser)
    given = parser.parse_args()
    common.at_least(parser, given, repeats=1, chunk_samples=1, start_chunks=1, chunk_tokens=0, fade_ms=0)
    sweeping.check(parser, given)
    if given.ways is None:
        given.ways = [*ONE_PROCESS, PIPELINE, *([STOCK] if given.engine.startswith("chatterbox") else [])]
    elif STOCK in given.ways and not given.engine.startswith("chatterbox"):
        parser.error(f"--ways {STOCK}: only for Chatterbox; --engine is {given.engine}")
    engine = Engine(given.engine, given.weights, given.device, direct.options_of(parser, given))
    return common.run(measure(given, engine))


if __name__ == "__main__":
    sys.exit(main())
