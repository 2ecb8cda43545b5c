"""What grows is told from what does not, and a gap from the kill that made it."""

from __future__ import annotations

import numpy as np
import pytest

from ipc.messages import Finished
from perf import common, soak
from perf.slopes import Slope, slope
from perf.soak_programs import EXPLAINED_S, MIB, Look, Tally, Underruns

HOURS = list(np.linspace(0.5, 10, 200))


def noise(seed: int) -> np.ndarray:  # type: ignore[type-arg]
    """As memory goes: in steps that last, and now and then far off."""
    rng = np.random.default_rng(seed)
    found = np.repeat(rng.normal(0, 0.2, 40), 5)
    found[rng.integers(0, 200, 5)] += 10
    return found


def test_the_slope_of_what_grows_is_found_within_its_interval() -> None:
    inside = 0
    for seed in range(100):
        found = slope(HOURS, list(30 + 0.25 * np.array(HOURS) + noise(seed)))
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        assert found.low > 0
        inside += found.low <= 0.25 <= found.high
    assert inside >= 85


def test_what_is_flat_is_flat() -> None:
    flat = [slope(HOURS, list(30 + noise(seed))) for seed in range(100)]
    assert sum((one.low or 0) <= 0 <= (one.high or 0) for one in flat) >= 85


def test_a_few_looks_tell_no_slope() -> None:
    assert slope([1.0, 2.0], [1.0, 5.0]) == Slope()
    assert slope([1.0] * 10, [1.0] * 10) == Slope()
    assert slope([], []) == Slope()
    assert Slope().cells("x_per_h", 2) == {"x_per_h": None, "x_per_h_low": None, "x_per_h_high": None}


def test_an_underrun_is_explained_by_a_kill_shortly_before_it_and_by_no_other() -> None:
    heard = Underruns(kills_s=[100.0])
    heard.heard("loudspeaker", 2, 99.0, 100.5)
    heard.heard("listeners", 1, 100 + EXPLAINED_S - 1, 100 + EXPLAINED_S)
    heard.heard("loudspeaker", 3, 101 + EXPLAINED_S, 101.5 + EXPLAINED_S)
    heard.heard("listeners", 1, 98.0, 99.0)  # before it
    assert heard.explained == {"loudspeaker": 2, "listeners": 1}
    assert heard.unexplained == {"loudspeaker": 3, "listeners": 1}


def test_unexplained_underruns_fail_the_soak() -> None:
    tally = Tally()
    soak._judge(tally)
    tally.underruns.heard("loudspeaker", 2, 0.0, 1.0)
    with pytest.raises(common.PerfError, match="without a kill shortly before them: 2 at the loudspeaker"):
        soak._judge(tally)
    assert soak.underruns(tally)[1]["unexplained_underruns"] == 2


def test_an_utterance_that_was_cut_off_is_wrong() -> None:
    tally = Tally()
    tally.ended(Finished(id="a", seconds=2.0, samples=48_000, chars=10), cancelled=False)
    tally.ended(None, cancelled=False)
    tally.heard(1, b"sound")
    tally.heard(1, b"other")
    assert tally.speech_s == 2.0
    assert tally.wrong == ["ended as None", "text 1 sounded different"]


def test_the_picture_is_drawn_from_the_report_alone() -> None:
    pytest.importorskip("matplotlib")
    looks = [
        Look(hour * 3600, {"t3-0": round((30 + hour) * MIB)}, {"t3-0": 20}, {"t3-0": 5}, 18.0 + hour) for hour in HOURS
    ]
    figures = soak.slopes(looks)
    assert figures["memory_mib_per_h"] == pytest.approx(1, abs=0.01)
    figure = common.blank()
    soak.draw({"rows": soak.over_time(looks), "figures": figures}, figure)
    memory, _, first = figure.axes
    assert memory.get_title(loc="left").startswith("memory: +1.000 MiB per hour")
    assert first.get_title(loc="left").startswith("first sound: +1.000 ms per hour")
