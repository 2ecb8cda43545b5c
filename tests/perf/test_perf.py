"""The measuring scripts run, and their reports hold what they say; not that the figures are good."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from perf.__main__ import WIDTH, scripts
from tests.harness import until

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "perf" / "results"
PROCESSES = 4
"""Of a pipeline, at least: dispatcher, t3, s3gen and player."""

SMALL = {
    "first_sound": ["--utterances", "1", "--gap-ms", "5", "--token-ms", "1"],
    "overhead": ["--seconds", "2", "--idle-s", "0.2"],
    "measuring": ["--seconds", "1", "--turns", "1"],
    "listeners": ["--readers", "2", "--stuck", "1", "--seconds", "4", "--rounds", "1"],
    "barge_in": ["--trials", "2"],
    "chat": ["--answers", "2", "--first-ms", "5", "--token-ms", "5"],
    "gateway": ["--requests", "1"],
    "queues": ["--workload", "steady", "listeners", "--seconds", "1", "--listeners", "2"],
    "compare": ["--texts", "standard", "--ways", "pseudo", "sequential", "pipeline", "--repeats", "1"],
    "ring": ["--blocks", "20"],
    "stages": ["--seconds", "0.02", "--batches", "1", "3", "--rungs", "4", "--options", "{}"],
    "soak": ["--speech-h", "0.03", "--look-every-s", "0.3", "--kill-every-s", "1"],
}
ELSEWHERE = {"regress", "report", "timeline"}
"""Run small in a test file of their own."""

CHATTERBOX = {"continuity", "gpu", "precision", "stock", "tiny_checkpoint"}
"""Tested where torch is."""

FIGURES = {
    "first_sound": {"first_pcm_p50_ms", "first_pcm_p99_ms", "engine_p50_ms"},
    "overhead": {"overhead_%", "engine_%", "all_%", "speech_s"},
    "measuring": {"measuring_%", "measuring_of_cpu_%", "slower_%"},
    "listeners": {"growth_at_peak_mb", "slower_with_stuck"},
    "barge_in": {"most_blocks_after_cancel", "block_samples"},
    "chat": {"word_to_sound_p50_ms", "word_to_sound_p99_ms", "question_to_sound_p50_ms", "question_to_sound_p99_ms"},
    "gateway": {"slowest_door_p50_ms"},
    "queues": {"steady_t3_busy_%", "steady_s3gen_busy_%", "steady_player_busy_%", "listeners_ahead_s"},
    "ring": set(),
    "soak": {"speech_h", "finished", "wrong", "kills", "memory_mib_per_h", "first_sound_ms_per_h"},
    "compare": {"perceived_everything_standard_ms"},
    "stages": {"t3_1_tokens_per_s"},
    "continuity": set(),
    "gpu": {"torch", "device", "seconds"},
    "precision": set(),
    "stock": {"threads"},
    "timeline": {"total_ms", "sum_of_stages_ms", "total_of_sum_%", "two_or_more_at_once_%", "first_sound_ms"},
    "regress": {"compared", "worse", "better", "too_few_runs", "tolerance_%"},
}


def run(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a script; its report, checked."""
    file = folder / f"{name}.json"
    command = [sys.executable, "-m", f"perf.{name}", *arguments, "--json", str(file)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    check(name, content)
    assert all(title in done.stdout for title in content["rows"])
    return content


def check(name: str, report: dict[str, Any]) -> None:
    """What every report has."""
    assert report["measures"] == name
    assert report["command"].startswith(f"python -m perf.{name}")
    assert {"date", "system", "processor", "cpus", "memory_bytes", "load_1min", "python"} <= set(report["machine"])
    assert report["code"]["version"]
    assert set(report["figures"]) >= FIGURES[name] or "text_chars" in report["command"].replace("-", "_")
    assert report["rows"]
    for rows in report["rows"].values():
        assert rows
        assert all(set(row) == set(rows[0]) for row in rows)
        numbers = [value for row in rows for value in row.values() if isinstance(value, int | float)]
        assert numbers
        assert all(math.isfinite(number) for number in numbers), rows


def test_there_is_a_test_of_every_script() -> None:
    assert set(scripts()) == set(SMALL) | ELSEWHERE | CHATTERBOX == set(FIGURES) | {"report", "tiny_checkpoint"}
    assert all(line.endswith(".") for line in scripts().values())


def test_the_list_of_scripts_names_each_with_a_line() -> None:
    done = subprocess.run([sys.executable, "-m", "perf"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name, line in scripts().items():
        assert f"  {name:<{WIDTH}}{line}" in done.stdout.splitlines()


def test_the_ring_is_measured(tmp_path: Path) -> None:
    run("ring", tmp_path, *SMALL["ring"])


@pytest.mark.slow
def test_each_half_is_measured_by_streams_and_rungs(tmp_path: Path) -> None:
    picture = tmp_path / "stages.png"
    rows = run("stages", tmp_path, *SMALL["stages"], "--png", str(picture))["rows"]
    assert [row["streams"] for row in rows["T3: tokens"]] == [1, 3]
    assert [(row["streams"], row["rung_tokens"], row["tokens"]) for row in rows["S3Gen: sound"]] == [
        (1, 4, 4),
        (3, 4, 4),
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_ways_are_compared_and_can_be_seen_and_heard(tmp_path: Path) -> None:
    files = ["--wav", str(tmp_path), "--png", str(tmp_path / "compare.png"), "--markdown", str(tmp_path / "compare.md")]
    report = run("compare", tmp_path, *SMALL["compare"], *files)
    assert {"perceived_pipeline_standard_ms", "better_standard_%", "underruns_standard"} <= set(report["figures"])
    ways = ["everything", "pseudo", "sequential", "pipeline"]
    assert all([row["way"] for row in rows] == ways for rows in report["rows"].values())
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.stem for path in tmp_path.glob("*.wav")) == sorted(f"standard-{way}" for way in ways)
    page = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert "](compare.png)" in page
    assert all(f"| standard | {way} |" in page for way in ways)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["barge_in", "chat", "gateway", "queues"])
def test_a_script_measures_a_pipeline_of_its_own(name: str, tmp_path: Path) -> None:
    if name == "barge_in" and sys.platform != "linux":
        pytest.skip("it looks into another process's memory, which only Linux lets it do")
    report = run(name, tmp_path, *SMALL[name])
    assert report["settings"]["model.engine"] == "espeak"
    assert report["machine"]["cpus_used_by_others"] >= 0


@pytest.mark.slow
def test_the_hops_of_an_utterance_add_up_to_its_first_sound(tmp_path: Path) -> None:
    picture = tmp_path / "first_sound.png"
    report = run("first_sound", tmp_path, *SMALL["first_sound"], "--png", str(picture))
    rows = report["rows"]
    for figure in ("accepted", "ring_to_dac", "text_to_sound", "clause_to_sound", "word_to_sound", "token_late"):
        assert f"{figure}_p50_ms" in report["figures"]
    since = {(row["text"], row["what"]): row["p50_ms"] for row in rows["to the speaker, since the request"]}
    for length in ("short", "medium", "long"):
        hops = [row["p50_ms"] for row in rows["to the speaker, hop by hop"] if row["text"] == length]
        assert len(hops) == 4
        assert sum(hops) == pytest.approx(since[length, "request → first sample at the loudspeaker"], abs=0.01)
    growing = next(found for title, found in rows.items() if "from the first word on" in title)
    told = {row["what"]: row["p50_ms"] for row in growing if row["text"] == "medium"}
    assert told["first token → first word"] + told["first word complete → first sound"] == pytest.approx(
        told["first token → first sound"], abs=0.01
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_engines_share_is_part_of_what_all_processes_spent(tmp_path: Path) -> None:
    figures = run("overhead", tmp_path, *SMALL["overhead"])["figures"]
    assert 0 < figures["engine_%"] < figures["all_%"]
    assert figures["overhead_%"] == pytest.approx(figures["all_%"] - figures["engine_%"], abs=0.01)


@pytest.mark.slow
def test_measuring_is_measured(tmp_path: Path) -> None:
    picture = tmp_path / "measuring.png"
    report = run("measuring", tmp_path, *SMALL["measuring"], "--png", str(picture))
    assert [row["side"] for row in report["rows"]["turns"]] == ["unwatched", "watched"]
    assert report["figures"]["answers_to_watchers"] >= 5
    assert report["figures"]["slower_%_low"] is None  # one turn of each kind tells no noise
    processes = [row["what"] for row in report["rows"]["CPU while speaking, % of the speech's duration"]]
    assert {"dispatcher-0", "t3-0", "s3gen-0", "player-0", "all processes"} <= set(processes)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_soak_loses_nothing(tmp_path: Path) -> None:
    figures = run("soak", tmp_path, *SMALL["soak"])["figures"]
    assert figures["wrong"] == 0
    assert figures["finished"] > 5


@pytest.mark.slow
def test_a_soak_at_real_time_fails_for_gaps_that_no_kill_explains(tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    options = ["--pace", "realtime", "--speech-h", "0.002", "--kill-share", "0", "--chars", "20", "--speakers", "1"]
    options += ["--listeners", "2", "--look-every-s", "0.5", "--json", str(file)]
    command = [sys.executable, "-m", "perf.soak", *options]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    report = json.loads(file.read_text(encoding="utf-8"))
    check("soak", report)
    figures = report["figures"]
    assert figures["wrong"] == 0
    assert figures["underruns"] == sum(row["underruns"] for row in report["rows"]["underruns"])
    assert done.returncode == int(figures["unexplained_underruns"] > 0), done.stderr
    (calm, _) = report["rows"]["parts"]
    assert calm["times_real_time"] < 4  # three outputs, each at its own pace of speech


@pytest.mark.slow
def test_listeners_that_never_read_are_there_and_the_others_get_everything(tmp_path: Path) -> None:
    rows = run("listeners", tmp_path, *SMALL["listeners"])["rows"]["listeners"]
    assert [(row["listeners"], row["never_read"]) for row in rows] == [(2, 0), (3, 1)]
    assert all(row["speech_s"] > 4 for row in rows)


@pytest.mark.slow
def test_one_long_text_is_followed_to_its_end(tmp_path: Path) -> None:
    rows = run("listeners", tmp_path, "--text-chars", "2000")["rows"]["memory over one long text"]
    assert [row["chars"] for row in rows] == sorted(row["chars"] for row in rows)
    assert rows[-1]["chars"] == 2000
    assert rows[-1]["speech_s"] > 60


@pytest.mark.slow
def test_a_pipeline_that_runs_already_is_measured_where_it_is(tmp_path: Path) -> None:
    from perf.running import pipeline

    with pipeline("", {}) as place:
        report = run("first_sound", tmp_path, "--to", place.to, *SMALL["first_sound"])
    assert report["settings"] == {}
    assert "cpus_used_by_others" not in report["machine"]


@pytest.mark.slow
def test_nobody_at_the_address_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perf.overhead", "--to", "tcp://127.0.0.1:9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "tcp://127.0.0.1:9" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_is_told_to_end_takes_its_pipeline_with_it(how: signal.Signals) -> None:
    with started("overhead", "--seconds", "60") as script:
        pipeline = until(lambda: all_of(script, PROCESSES), "its pipeline runs", 30)
        script.send_signal(how)
        code = script.wait(20)
    _, left = psutil.wait_procs(pipeline, 5)
    for one in left:
        one.kill()
    assert (code, left) == (130, [])


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_computes_ends_when_it_is_told_to(how: signal.Signals) -> None:
    with started("stages", "--engine", "tests.engines.babble:ENGINE", "--seconds", "60") as script:
        until(lambda: script.cpu_times().user > 2, "it computes", 30)
        script.send_signal(how)
        assert script.wait(10) == 130


@contextmanager
def started(name: str, *arguments: str) -> Iterator[psutil.Popen]:
    """A script that runs and, if it still does, is killed."""
    command = [sys.executable, "-m", f"perf.{name}", *arguments]
    script = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield script
    finally:
        if script.poll() is None:
            script.kill()
            script.wait()


def all_of(script: psutil.Popen, count: int) -> list[psutil.Process]:
    """The processes below a script; none before there are that many."""
    found = script.children(recursive=True)
    return found if len(found) >= count else []


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--seconds=0", "--idle-s=-1"])
def test_an_impossible_number_is_refused_with_its_option(option: str) -> None:
    command = [sys.executable, "-m", "perf.overhead", option]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert option.partition("=")[0] in done.stderr


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_kept_result_is_a_report(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    check(report["measures"], report)
    assert path.stem.startswith(report["measures"])
