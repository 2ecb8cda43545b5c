"""Two groups of reports are told apart where they differ by more than noise, and only there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf import comparing, regress, turns
from perf.common import PerfError, blank
from perf.comparing import Key

ROOT = Path(__file__).parents[2]
TRUE = {"first_pcm_p50_ms": 8.0, "first_pcm_p99_ms": 12.0, "engine_p50_ms": 5.0, "overhead_%": 2.0, "mib_per_s": 90.0}
TEXTS = ("request → accepted", "accepted → first tokens", "first tokens → ring", "ring → output", "engine")


def report(rng: np.random.Generator, noise: float = 0.03, slower: float = 1.0, script: str = "made_up") -> Any:
    """A made-up report whose every number has this much noise (its spread, of the value), skewed as times are."""

    def told(value: float) -> float:
        return round(value * slower * (1 + noise * (rng.gamma(4) - 4) / 2), 3)

    rows = [
        {"what": text, "count": 100, "p50_ms": told(10.0 + place), "p90_ms": told(15.0), "max_ms": told(30.0)}
        for place, text in enumerate(TEXTS)
        for _ in range(4)
    ]
    machine = {"date": "2026-01-01", "processor": "a", "cpus": 2, "memory_bytes": 2**34, "python": "3.11"}
    return {
        "measures": script,
        "command": f"python -m perf.{script}",
        "machine": machine,
        "code": {"git": "abc", "version": "1"},
        "settings": {},
        "figures": {name: told(value) for name, value in TRUE.items()},
        "rows": {"hops": rows},
    }


def verdicts(before: Sequence[Any], after: Sequence[Any], tolerance: float = 5) -> dict[Key, str]:
    return {one.key: one.verdict for one in comparing.compare(before, after, tolerance)}


def side(rng: np.random.Generator, runs: int = 5, **how: Any) -> list[Any]:
    return [report(rng, **how) for _ in range(runs)]


def files(folder: Path, name: str, reports: Sequence[Any]) -> list[str]:
    paths = [folder / f"{name}{number}.json" for number in range(len(reports))]
    for path, content in zip(paths, reports, strict=True):
        path.write_text(json.dumps(content))
    return [str(path) for path in paths]


def called(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perf.regress", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_noise_alone_is_not_called_worse() -> None:
    wrong = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = verdicts(side(rng, noise=0.08), side(rng, noise=0.08))
        wrong += [seed] if "worse" in found.values() else []
    assert len(wrong) <= 5, wrong


@pytest.mark.slow
def test_a_slowdown_of_a_fifth_is_found() -> None:
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        said = verdicts(side(rng), side(rng, slower=1.2))
        found += [seed] if said[Key("", "", "first_pcm_p50_ms")] == "worse" else []
    assert len(found) >= 95, found


def test_more_per_second_is_better_and_more_milliseconds_are_worse() -> None:
    rng = np.random.default_rng(1)
    said = verdicts(side(rng), side(rng, slower=1.5))
    assert said[Key("", "", "mib_per_s")] == "better"
    assert said[Key("hops", TEXTS[0], "p50_ms")] == "worse"
    assert said[Key("hops", TEXTS[0], "count")] == "not judged"


def test_a_change_within_the_tolerance_is_none() -> None:
    rng = np.random.default_rng(1)
    assert "worse" not in verdicts(side(rng, noise=0), side(rng, noise=0, slower=1.04)).values()
    assert "worse" in verdicts(side(rng, noise=0), side(rng, noise=0, slower=1.04), tolerance=2).values()


def test_few_noisy_runs_are_said_to_be_too_few() -> None:
    rng = np.random.default_rng(1)
    said = verdicts(side(rng, 2, noise=0.3), side(rng, 2, noise=0.3))
    assert said[Key("", "", "first_pcm_p50_ms")] == "too few runs to tell"


@pytest.mark.parametrize(("slower", "said"), [(1.1, "too few runs to tell"), (1.6, "worse"), (0.5, "better")])
def test_one_run_on_each_side_takes_a_large_difference(slower: float, said: str) -> None:
    rng = np.random.default_rng(1)
    found = verdicts(side(rng, 1, noise=0), side(rng, 1, noise=0, slower=slower))
    assert found[Key("", "", "first_pcm_p50_ms")] == said
    assert found[Key("", "", "first_pcm_p99_ms")] == "not judged"


def test_what_was_none_and_now_is_some_is_worse() -> None:
    none, some = [0.0] * 5, [2.0, 3.0, 2.0, 3.0, 2.0]
    key = Key("", "", "underruns")
    assert comparing.compared(key, none, some, 5, 0.001).verdict == "worse"
    assert comparing.compared(key, none, none, 5, 0.001).verdict == "same"
    assert comparing.compared(key, none, some, 5, 0.001).change is None


@pytest.mark.parametrize(("free", "quantile"), [(1, 31.821), (2, 6.965), (8, 2.896), (30, 2.457)])  # of a printed table
def test_the_quantile_is_students(free: int, quantile: float) -> None:
    assert comparing.student(0.99, free) == pytest.approx(quantile, rel=1e-3)
    assert comparing.student(0.01, free) == pytest.approx(-quantile, rel=1e-3)


def test_rows_with_the_same_texts_are_told_apart_by_their_order() -> None:
    found = comparing.values(report(np.random.default_rng(1)))
    assert Key("hops", f"{TEXTS[0]} #4", "p50_ms") in found
    assert len(found) == len(TRUE) + 4 * len(TEXTS) * 4


@pytest.mark.slow
def test_the_exit_code_says_whether_anything_is_worse(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    before, same = files(tmp_path, "a", side(rng, 4)), files(tmp_path, "b", side(rng, 4))
    slower = files(tmp_path, "c", side(rng, 4, slower=1.3))
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    assert called("--before", *before, "--after", *same).returncode == 0
    done = called("--before", *before, "--after", *slower, "--json", str(out), "--png", str(picture))
    assert done.returncode == 1, done.stderr
    assert "worse: first_pcm_p50_ms" in done.stderr
    content = json.loads(out.read_text())
    assert content["figures"]["worse"] > 3
    assert content["figures"]["runs_before"] == 4
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_run_a_side_is_said_to_tell_no_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    done = called("--before", *files(tmp_path, "a", side(rng, 1)), "--after", *files(tmp_path, "b", side(rng, 1)))
    assert done.returncode == 0
    assert "one run on each side cannot tell noise from change" in done.stderr


def test_reports_of_different_scripts_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    other = files(tmp_path, "b", side(rng, 2, script="other"))
    done = called("--before", *files(tmp_path, "a", side(rng, 2)), "--after", *other)
    assert done.returncode == 2
    assert "different scripts (made_up, other)" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    done = called("--before", str(tmp_path / "a.json"), "--after", str(tmp_path / "none.json"))
    assert done.returncode == 2
    assert "a.json is no report" in done.stderr


def test_what_one_side_has_not_is_listed_and_is_not_worse(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    before, after = side(rng, 3), side(rng, 3)
    for one in after:
        del one["figures"]["engine_p50_ms"]
        one["figures"]["new_ms"] = 1.0
    out = tmp_path / "out.json"
    done = called(
        "--before", *files(tmp_path, "a", before), "--after", *files(tmp_path, "b", after), "--json", str(out)
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]["only on one side"]
    assert {(row["column"], row["side"]) for row in rows} == {("engine_p50_ms", "before"), ("new_ms", "after")}


def test_nothing_in_common_is_refused() -> None:
    rng = np.random.default_rng(1)
    before, after = side(rng, 2), side(rng, 2)
    for one in after:
        one["figures"], one["rows"] = {"other_ms": 1.0}, {}
    given = regress.argparse.Namespace(tolerance_percent=5, all=False, run="", json=None, png=None)
    with pytest.raises(PerfError, match="no number that both sides have"):
        regress.compare(given, before, after)


def test_another_processor_other_settings_and_a_busy_machine_make_it_doubtful() -> None:
    rng = np.random.default_rng(1)
    before, after = side(rng, 2), side(rng, 2)
    assert regress.check(before, after) == []
    after[0]["machine"] |= {"processor": "b", "cpus_used_by_others": 1.3}
    after[0]["settings"] = {"player.pace": "free"}
    after[0]["command"] += " --seed 2"
    doubts = "\n".join(regress.check(before, after))
    for said in ("not the same machine", "not the same settings", "not the same command", "1.3 CPUs"):
        assert said in doubts


def checkout(folder: Path, ms: float, code: int = 0) -> Path:
    """A folder with a script that measures in no time."""
    perf = folder / "perf"
    perf.mkdir(parents=True)
    (perf / "__init__.py").touch()
    content = report(np.random.default_rng(1))
    content["figures"] = {"first_ms": ms}
    (perf / "quick.py").write_text(
        f"import sys, pathlib\npathlib.Path(sys.argv[-1]).write_text({json.dumps(content)!r})\n"
        f"pathlib.Path('..', 'order').open('a').write(pathlib.Path.cwd().name + ' ')\n"
        f"print('it said')\nsys.exit({code})\n"
    )
    return folder


def test_a_script_is_run_by_turns_in_two_folders_and_compared(tmp_path: Path) -> None:
    old, new = checkout(tmp_path / "old", 5.0), checkout(tmp_path / "new", 7.0)
    asked = ("--run", "quick --option 1", "--times", "3", "--keep", str(tmp_path / "kept"))
    done = called(*asked, "--before", str(old), "--after", str(new))
    assert done.returncode == 1, done.stderr
    assert "worse: first_ms: 5 → 7" in done.stderr
    assert (tmp_path / "order").read_text().split() == ["old", "new", "new", "old", "old", "new"]
    assert len(list((tmp_path / "kept").glob("quick-*-*.json"))) == 6


def test_a_run_that_fails_ends_the_comparison_with_what_it_said(tmp_path: Path) -> None:
    old, new = checkout(tmp_path / "old", 5.0), checkout(tmp_path / "new", 7.0, code=1)
    with pytest.raises(PerfError, match=r"ended with exit code 1; it printed\n    it said"):
        turns.in_turn(old, new, "quick", [], 1, tmp_path)
    with pytest.raises(PerfError, match=r"no perf/missing\.py"):
        turns.in_turn(old, new, "missing", [], 1, tmp_path)


def test_the_picture_is_drawn_from_the_report_alone() -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(1)
    found = comparing.compare(side(rng), side(rng, slower=1.3), 5)
    figure = blank()
    content = {
        "figures": {"tolerance_%": 5, "runs_before": 5, "runs_after": 5}, "rows": regress.tables(found, [], False)
    }  # fmt: skip
    regress.draw(json.loads(json.dumps(content)), figure)
    (axes,) = figure.axes
    assert "first_pcm_p50_ms" in [label.get_text() for label in axes.get_yticklabels()]
