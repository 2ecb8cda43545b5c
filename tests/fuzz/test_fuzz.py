"""Every input that was worth keeping still passes, and a little fuzzing finds nothing new."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.__main__ import CORPUS, TARGETS, kept, load

ROOT = Path(__file__).parents[2]
MOST_FILES, MOST_BYTES = 200, 300_000


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_found_once_passes(target: str) -> None:
    check = load(target).check
    for path in kept(target):
        try:
            check(path.read_bytes())
        except BaseException as error:  # a panic of a Rust library is no Exception
            raise AssertionError(f"{target} fails with corpus/{target}/{path.name}: {error!r}") from error


def test_the_corpus_is_small_and_every_target_has_one() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(TARGETS)
    assert len(files) < MOST_FILES
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="needs atheris, which has packages for Linux on x86-64")
@pytest.mark.parametrize("target", TARGETS)
def test_five_seconds_of_fuzzing_find_nothing(target: str) -> None:
    # Always the same inputs: no change is held up by what it did not break. `make fuzz` looks further.
    command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", "5", "--seed", "1"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=200)
    assert ran.returncode == 0, ran.stdout[-1000:] + ran.stderr[-4000:]
    assert "DONE" in ran.stderr
