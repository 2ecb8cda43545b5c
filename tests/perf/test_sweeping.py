"""The best setting is heard soonest without running dry; what makes no difference is left as it usually is."""

from __future__ import annotations

import pytest

from perf.common import Row
from perf.sweeping import FIRST, MOST, START, best_of, settings_of


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
