"""Chunk sizes and buffer counts, one after another, on this machine: what each does, and which setting is best.

Two things are chosen: how much sound has to be there before playing begins (so many chunks of so many samples; of a
pipeline ``player.prebuffer_ms``), and how many tokens a chunk has (``flow.first_chunk_tokens`` and
``flow.chunk_tokens``; an engine that cuts its own chunks, like espeak, does not ask). The best setting of the pipeline
is the one that is heard soonest without running dry: first the chunks, with the usual start, then the start with those.
Settings within a block of the card (21 ms) of the best are as good: of these the usual one, else the safest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipc.messages import SAMPLE_RATE
from perf import texts, trials, trials_pipeline
from perf.card import BLOCK_SAMPLES
from perf.common import Cell, Row
from perf.trials import Engine, Trial
from perf.ways import Ask
from pipeline.config import Flow, Player
from pipeline.credit import ladder

SAMPLES = (2048, 4096, 8192)
CHUNKS = (1, 2, 3, 4, 5)
TOKENS = (4, 8, 12, 25, 50)
LONGER = "medium"
"""The text that shows whether a setting runs dry."""

EQUAL_MS = 1000 * BLOCK_SAMPLES / SAMPLE_RATE

FIRST, MOST, START = "flow.first_chunk_tokens", "flow.chunk_tokens", "player.prebuffer_ms"
DEFAULTS: dict[str, Cell] = {
    FIRST: Flow().first_chunk_tokens,
    MOST: Flow().chunk_tokens,
    START: Player().prebuffer_ms,
}


@dataclass(frozen=True)
class Swept:
    """What the report gets of it."""

    tables: dict[str, list[Row]]
    figures: Row


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a sweep."""
    parser.add_argument("--sweep", action="store_true", help="try other chunk sizes and starts, and name the best")
    parser.add_argument("--sweep-samples", nargs="+", type=int, default=list(SAMPLES), help="(default: %(default)s)")
    parser.add_argument("--sweep-chunks", nargs="+", type=int, default=list(CHUNKS), help="(default: %(default)s)")
    parser.add_argument("--sweep-tokens", nargs="+", type=int, default=list(TOKENS), help="(default: %(default)s)")


def check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse what no pipeline would take."""
    for name in ("sweep_samples", "sweep_chunks", "sweep_tokens"):
        if min(getattr(given, name)) < 1:
            parser.error(f"--{name.replace('_', '-')}: {min(getattr(given, name))}: at least 1")
    most_ms = max(given.sweep_samples) * max(given.sweep_chunks) * 1000 / SAMPLE_RATE
    if most_ms > Flow().ahead_s * 1000:
        parser.error(f"--sweep-samples, --sweep-chunks: {most_ms:.0f} ms of sound would never be there at once")


async def sweep(engine: Engine, given: argparse.Namespace) -> Swept:
    """Everything that `arguments` ask for."""
    tables, has_ladder = pseudo(engine, given)
    tables |= alone(engine, given, has_ladder)
    chunks: dict[str, Cell] = {}
    if has_ladder:
        sizes = [(first, most) for first in given.sweep_tokens for most in given.sweep_tokens if first <= most]
        rows = [await pipeline_row(engine, {FIRST: first, MOST: most}, given) for first, most in sizes]
        tables["our pipeline: chunks of so many tokens"] = rows
        chunks = settings_of(best_of(rows))
    starts = {_ms(samples * count) for samples in given.sweep_samples for count in given.sweep_chunks}
    starts.add(Player().prebuffer_ms)
    rows = [await pipeline_row(engine, chunks | {START: start_ms}, given) for start_ms in sorted(starts)]
    tables["our pipeline: begins with so much sound"] = rows
    best = best_of(rows)
    tables["best setting for this machine"] = [
        {"pipeline.yaml": key, "value": value, "default": DEFAULTS[key], "perceived_ms": best["perceived_ms"]}
        for key, value in settings_of(best).items()
    ]
    figures: Row = {f"best_{key.partition('.')[2]}": value for key, value in settings_of(best).items()}
    figures |= {"best_perceived_ms": best["perceived_ms"], "best_underruns": best["underruns"]}
    return Swept(tables, figures)


def pseudo(engine: Engine, given: argparse.Namespace) -> tuple[dict[str, list[Row]], bool]:
    """Handing out what is all there: every size and start. Also whether the engine's chunks can be of any size."""
    rows: list[Row] = []
    with trials.one_process("pseudo", engine) as speaker:
        for samples in given.sweep_samples:
            asked = [Ask(text=text, chunk_samples=samples) for text in _spoken(given)]
            answers = [(*speaker.speak(ask), speaker.memory_bytes()) for ask in asked]
            for chunks in given.sweep_chunks:
                runs = [trials.trial_of(*answer, samples * chunks) for answer in answers]
                start: Row = {"chunk_samples": samples, "start_chunks": chunks}
                rows.append(start | {"start_ms": _ms(samples * chunks)} | summary(runs))
        return {"pseudo-streaming: begins with so many chunks": rows}, speaker.ready.ladder


def alone(engine: Engine, given: argparse.Namespace, has_ladder: bool) -> dict[str, list[Row]]:
    """Chunks of so many tokens in one process: independent, and (where the engine has a choice) in turn."""
    least = Player().prebuffer_ms * SAMPLE_RATE // 1000
    tables: dict[str, list[Row]] = {}
    for way in ("independent", *(("sequential",) if has_ladder else ())):
        rows: list[Row] = []
        with trials.one_process(way, engine) as speaker:
            for tokens in given.sweep_tokens:
                rungs = ladder(tokens, max(tokens, Flow().chunk_tokens), 0.0)
                asked = [
                    Ask(text=text, chunk_tokens=tokens, rungs=rungs, fade_ms=given.fade_ms) for text in _spoken(given)
                ]
                runs = [trials.tried(speaker, ask, least) for ask in asked]
                step, flux = runs[-1].join_step, runs[-1].join_flux
                joined: Row = {
                    "chunks": runs[-1].chunks,
                    "join_step": None if step is None else round(step, 3),
                    "join_flux": None if flux is None else round(flux, 2),
                }
                rows.append({"tokens": tokens} | summary(runs) | joined)
        tables[f"{way}: {'chunks' if way == 'independent' else 'the first chunk'} of so many tokens"] = rows
    return tables


async def pipeline_row(engine: Engine, settings: Mapping[str, Cell], given: argparse.Namespace) -> Row:
    """Our pipeline with these settings."""
    print(f"sweep: {', '.join(f'{key} {value}' for key, value in settings.items())} …", file=sys.stderr, flush=True)
    return dict(settings) | summary(await trials_pipeline.tried_pipeline(engine, settings, _spoken(given)))


def summary(runs: Sequence[Trial]) -> Row:
    """Of all texts: perceived latency of the middle one; every underrun counts."""
    return {
        "perceived_ms": round(statistics.median(run.perceived_ms for run in runs), 1),
        "underruns": sum(len(run.gaps_ms) for run in runs),
        "gaps_ms": round(sum(sum(run.gaps_ms) for run in runs), 1),
    }


def best_of(rows: Sequence[Row]) -> Row:
    """The best row. Without any that never ran dry: those that did least."""
    least_ms = min(_number(row, "gaps_ms") for row in rows)
    whole = [row for row in rows if _number(row, "gaps_ms") == least_ms]
    soonest_ms = min(_number(row, "perceived_ms") for row in whole)
    equal = [row for row in whole if _number(row, "perceived_ms") <= soonest_ms + EQUAL_MS]
    usual = [row for row in equal if all(DEFAULTS[key] == value for key, value in settings_of(row).items())]
    # Of those that are as soon, larger chunks cost less and more sound at the start is safer.
    return usual[0] if usual else max(equal, key=lambda row: [_number(row, key) for key in settings_of(row)])


def settings_of(row: Row) -> dict[str, Cell]:
    """What a row of the pipeline was measured with."""
    return {key: row[key] for key in DEFAULTS if key in row}


def _number(row: Row, column: str) -> float:
    return float(row[column] or 0)


def _ms(samples: int) -> int:
    return samples * 1000 // SAMPLE_RATE


def _spoken(given: argparse.Namespace) -> list[str]:
    """The first text, as often as there are rounds, and one that lasts."""
    longer = LONGER if LONGER in given.texts else given.texts[-1]
    return [texts.TEXTS[given.texts[0]]] * given.repeats + [texts.TEXTS[longer]]
