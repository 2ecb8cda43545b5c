"""What measures Chatterbox runs, with small models: the comparison with the stock package, and all of `perf.gpu`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.perf.test_perf import check

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.chatterbox,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("chatterbox") is None, reason="needs chatterbox-tts: pip install '.[chatterbox]'"
    ),
]


def run(name: str, folder: Path, *arguments: str, timeout_s: float = 600) -> dict[str, Any]:
    """Run a script; its report, checked."""
    file = folder / f"{name}.json"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"perf.{name}", *arguments, "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    check(name, content)
    return content


def test_the_stock_package_and_the_other_method_are_compared_with_ours(tmp_path: Path) -> None:
    options = ["--sizes", "tiny", "--models", "chatterbox-turbo", "--tokens", "40", "--prompt-s", "1", "--repeats", "1"]
    report = run("stock", tmp_path, *options, "--threads", "1")
    (rate,) = report["rows"]["T3, steps a second"]
    assert rate["times"] == pytest.approx(rate["ours_per_s"] / rate["stock_per_s"], rel=0.01)
    assert report["figures"]["t3_times_stock_chatterbox-turbo_tiny"] == rate["times"]
    sounds = {row["method"]: row for row in report["rows"]["from the request to the sound"]}
    assert list(sounds) == ["stock", "chatterbox-streaming's method", "ours"]
    assert {row["speech_s"] for row in sounds.values()} == {1.6}
    assert sounds["stock"]["first_sound_s"] == sounds["stock"]["last_sound_s"]
    assert sounds["ours"]["first_sound_s"] < sounds["ours"]["last_sound_s"]


def test_the_stock_package_generates_beside_our_ways(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    command = [sys.executable, "-m", "perf.tiny_checkpoint", "--engine", "chatterbox-turbo", str(weights)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    options = ["--engine", "chatterbox-turbo", "--weights", str(weights), "--device", "cpu", "--texts", "standard"]
    report = run("compare", tmp_path, *options, "--ways", "independent", "stock", "--repeats", "1")
    heard = {row["way"]: row for row in report["rows"]["what is heard when"]}
    assert list(heard) == ["everything", "independent", "stock"]
    assert all(row["perceived_ms"] < row["total_ms"] for row in heard.values())
    made = {row["way"]: row for row in report["rows"]["what it is made of, and what that costs"]}
    assert made["stock"]["chunks"] == 1
    assert made["stock"]["speech_s"] > 0.1


def test_everything_that_a_gpu_is_measured_with_runs_without_one(tmp_path: Path) -> None:
    options = ["--size", "tiny", "--device", "cpu", "--models", "chatterbox-turbo", "--budget-s", "800"]
    options += ["--t3-batches", "1", "2", "--s3gen-batches", "1", "--steps", "12", "--renders", "1"]
    options += ["--patience", "10", "--start-timeout-s", "300", "--utterances", "1", "--max-batch", "2"]
    options += ["--streams", "1", "--stream-s", "1", "--stream-box-s", "20"]
    report = run("gpu", tmp_path, *options, timeout_s=880)
    rows = report["rows"]
    problems = [row for row in rows["problems"] if "MPS" not in row["part"]]
    assert problems == []
    assert [row["streams"] for row in rows["T3, tokens a second"]] == [2, 1]
    assert [row["streams"] for row in rows["S3Gen, a rung"]] == [1]
    assert {row["stage"] for row in rows["T3 alone, one stream, stage by stage"]} >= {"the stock package, float32"}
    assert {row["watermark"] for row in rows["first sound through the real processes"]} == {False, True}
    assert rows["streams at the pace of the ear"]
    assert len(rows["targets"]) == 3
    missed = [row["target"] for row in rows["targets"] if row["met"] is False]
    assert bool(missed) == any(table.startswith("profile") for table in rows)
    assert report["figures"]["busiest_stage_chatterbox-turbo"] in ("t3", "s3gen", "dispatcher")
