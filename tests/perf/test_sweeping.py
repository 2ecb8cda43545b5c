"""The best setting is heard soonest without running dry; what makes no difference is left as it usually is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from perf import sweeping
from perf.common import Cell, Row
from perf.sweeping import FIRST, MOST, START, arguments, best_of, settings_of
from perf.trials import Engine, Trial


def start(prebuffer_ms: int, perceived_ms: float, gaps_ms: float = 0.0) -> Row:
    return {START: prebuffer_ms, "perceived_ms": perceived_ms, "underruns": int(gaps_ms > 0), "gaps_ms": gaps_ms}


def test_the_soonest_that_never_runs_dry_is_best() -> None:
    assert best_of([start(85, 100, gaps_ms=40), start(170, 200), start(341, 400)])[START] == 170


def test_where_all_run_dry_the_least_silence_is_best() -> None:
    assert best_of([start(85, 100, gaps_ms=40), start(170, 200, gaps_ms=10)])[START] == 170


def test_the_usual_setting_stays_where_another_is_no_block_better() -> None:
    assert best_of([start(85, 100), start(120, 115), start(170, 110)])[START] == 120


def test_of_equal_ones_the_safest_is_taken() -> None:
    assert best_of([start(85, 100), start(170, 110), start(341, 200)])[START] == 170


@pytest.mark.parametrize(("first", "most"), [(8, 50), (12, 25)])
def test_the_chunks_of_the_best_row_are_told(first: int, most: int) -> None:
    rows: list[Row] = [
        {FIRST: first, MOST: most, "perceived_ms": 100.0, "underruns": 0, "gaps_ms": 0.0},
        {FIRST: 50, MOST: 50, "perceived_ms": 300.0, "underruns": 0, "gaps_ms": 0.0},
    ]
    assert settings_of(best_of(rows)) == {FIRST: first, MOST: most}


def trial(perceived_ms: float, gap_ms: float = 0.0) -> Trial:
    sound = np.ones(240, np.float32)
    gaps = (gap_ms,) if gap_ms else ()
    return Trial(perceived_ms, perceived_ms, perceived_ms + 10, 1, gaps, 1.0, 1, sound, (), sound)


def given(**changed: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments(parser)
    asked = parser.parse_args(["--sweep", "--sweep-samples", "2400", "--sweep-chunks", "1", "4", "--sweep-tokens", "3"])
    return argparse.Namespace(**{**vars(asked), "texts": ["standard"], "repeats": 2, "fade_ms": 5.0, **changed})


@pytest.mark.slow
async def test_a_sweep_tries_every_start_and_names_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tried(engine: Engine, settings: Mapping[str, Cell], spoken: Sequence[str]) -> list[Trial]:
        prebuffer_ms = float(settings[START] or 0)
        return [trial(prebuffer_ms, gap_ms=50 if prebuffer_ms < 120 else 0) for _ in spoken]

    monkeypatch.setattr(sweeping.trials_pipeline, "tried_pipeline", tried)
    swept = await sweeping.sweep(Engine("espeak"), given())
    handed, alone, ours, best = swept.tables.values()
    assert [(row["chunk_samples"], row["start_chunks"], row["start_ms"]) for row in handed] == [
        (2400, 1, 100), (2400, 4, 400),
    ]  # fmt: skip
    assert [(row["tokens"], row["chunks"]) for row in alone] == [(3, 2)]
    assert [(row[START], row["underruns"]) for row in ours] == [(100, 3), (120, 0), (400, 0)]
    assert [(row["pipeline.yaml"], row["value"]) for row in best] == [(START, 120)]
    assert swept.figures == {"best_prebuffer_ms": 120, "best_perceived_ms": 120.0, "best_underruns": 0}


async def test_where_chunks_can_be_of_any_size_the_best_are_found_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tried(engine: Engine, settings: Mapping[str, Cell], spoken: Sequence[str]) -> list[Trial]:
        return [trial(100.0 * float(settings[FIRST] or 0) + float(settings.get(START) or 0)) for _ in spoken]

    monkeypatch.setattr(sweeping.trials_pipeline, "tried_pipeline", tried)
    monkeypatch.setattr(sweeping, "pseudo", lambda *_: ({}, True))
    monkeypatch.setattr(sweeping, "alone", lambda *_: {})
    swept = await sweeping.sweep(Engine("babble"), given(sweep_tokens=[4, 8, 50]))
    chunks, ours, best = swept.tables.values()
    assert [(row[FIRST], row[MOST]) for row in chunks] == [(4, 4), (4, 8), (4, 50), (8, 8), (8, 50), (50, 50)]
    assert all((row[FIRST], row[MOST]) == (4, 50) for row in ours)
    assert {row["pipeline.yaml"]: row["value"] for row in best} == {FIRST: 4, MOST: 50, START: 120}
