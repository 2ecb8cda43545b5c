"""`perf.gpu` looks for the limit, judges, and keeps what it found whatever fails. Nothing here needs torch or a GPU."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pytest

from perf import common, gpu, gpu_pipeline
from perf.gpu import Budget, Found, judge, part
from perf.gpu_pipeline import next_count, why_no_mps


@pytest.fixture
def found(tmp_path: Path) -> Found:
    given = argparse.Namespace(json=tmp_path / "gpu.json", models=["chatterbox"], patience=1.0)
    return Found(given, common.Began())


def searched(limit: int, first: int, most: int) -> tuple[int, list[int]]:
    """The largest number of streams that is found, and all that were tried, where ``limit`` is what can be done."""
    good, bad, tried = 0, None, []
    while (count := next_count(good, bad, first, most)) is not None:
        tried.append(count)
        good, bad = (count, bad) if count <= limit else (good, count)
    return good, tried


@pytest.mark.parametrize("limit", [1, 3, 20, 63, 64, 65, 90, 100, 400])
def test_the_most_streams_are_found_in_a_few_trials(limit: int) -> None:
    good, tried = searched(limit, 64, 384)
    assert good <= limit
    assert good >= min(limit, 384) * 0.9 - 1
    assert len(tried) <= 9


def test_none_are_found_where_one_is_too_many() -> None:
    assert searched(0, 8, 64) == (0, [8, 4, 2, 1])


def test_targets_are_judged_and_what_is_missed_is_to_be_profiled(found: Found) -> None:
    found.emit("T3, tokens a second", {"model": "chatterbox", "streams": 1, "tokens_per_s": 600.0})
    for way, milliseconds in ((True, 130.0), (False, 120.0)):
        found.emit(
            "first sound through the real processes", {"model": "chatterbox", "mps": way, "p50_ms": milliseconds}
        )
    found.emit("the most streams without a gap", {"model": "chatterbox", "streams": 40, "busiest_stage": "s3gen"})
    assert judge(found, ["chatterbox"]) == [("chatterbox", "t3"), ("chatterbox", "s3gen")]
    told = {row["target"]: (row["found"], row["met"]) for row in found.tables["targets"]}
    assert list(told.values()) == [(120.0, False), (40.0, False), (600.0, True)]


def test_what_was_not_measured_is_neither_met_nor_missed(found: Found) -> None:
    assert judge(found, ["chatterbox"]) == []
    assert [row["met"] for row in found.tables["targets"]] == [None, None, None]


def test_without_a_cuda_device_the_reason_for_no_mps_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MPS is for CUDA" in why_no_mps("cpu")
    monkeypatch.setattr(gpu_pipeline.shutil, "which", lambda name: None)
    assert "is not on the PATH" in why_no_mps("cuda:0")


SCRIPT = """
import json, sys, time
print(json.dumps({"table": "T", "row": {"a": 1}}), flush=True)
print(json.dumps({"figure": "f", "value": 2}), flush=True)
"""


def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, then: str) -> None:
    """Every part is this program instead."""
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\n{SCRIPT}{then}\n")
    program.chmod(0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(program))


@pytest.mark.slow
async def test_what_a_part_found_before_it_was_stopped_counts(
    found: Found, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child(monkeypatch, tmp_path, "time.sleep(60)")
    began_s = time.monotonic()
    await part(found, Budget(60), 1.5, "t3", "--model", "chatterbox")
    assert time.monotonic() - began_s < 20
    assert found.tables["T"] == [{"a": 1}]
    assert found.figures["f"] == 2
    assert "stopped after" in str(found.tables["problems"][0]["problem"])
    assert json.loads(found.given.json.read_text())["rows"]["T"] == [{"a": 1}]


async def test_what_a_part_found_before_it_failed_counts_and_the_reason_is_told(
    found: Found, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child(monkeypatch, tmp_path, "raise RuntimeError('CUDA error: an illegal memory access')")
    await part(found, Budget(60), 30, "s3gen", "--model", "chatterbox")
    assert found.tables["T"] == [{"a": 1}]
    assert "illegal memory access" in str(found.tables["problems"][0]["problem"])
    assert found.tables["problems"][0]["part"] == "s3gen chatterbox"


async def test_what_there_is_no_time_for_is_told(found: Found) -> None:
    await part(found, Budget(0), 30, "facts")
    assert found.tables["problems"] == [{"part": "facts", "after_s": 0.0, "problem": "not run: the time was up"}]
