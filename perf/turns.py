"""One measuring script by turns with two versions of the code, so that what changes on the machine meanwhile (other
programs, heat, the clock) meets both alike: A B B A A B …"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from perf.common import PerfError

SHOWN_LINES = 8


def in_turn(
    before: Path, after: Path, script: str, options: Sequence[str], times: int, folder: Path
) -> tuple[list[Path], list[Path]]:
    """Run ``script`` ``times`` times in each of two folders with the code; the reports, written to ``folder``.

    Raises `PerfError` where a folder has no such script or a run fails.
    """
    sides = {"before": before.resolve(), "after": after.resolve()}
    for checkout in sides.values():
        if not (checkout / "perf" / f"{script}.py").is_file():
            raise PerfError(f"{checkout} has no perf/{script}.py: is it a folder with the code of Chatterline?")
    files: dict[str, list[Path]] = {name: [] for name in sides}
    for number in range(times):
        for name in order(number):
            file = folder / f"{script}-{name}-{number + 1}.json"
            print(f"{script}: run {number + 1} of {times}, {name}", file=sys.stderr, flush=True)
            _run(sides[name], script, options, file)
            files[name].append(file)
    return files["before"], files["after"]


def order(number: int) -> tuple[str, str]:
    """Which side comes first changes with every turn."""
    return ("before", "after") if number % 2 == 0 else ("after", "before")


def _run(checkout: Path, script: str, options: Sequence[str], file: Path) -> None:
    command = [sys.executable, "-m", f"perf.{script}", *options, "--json", str(file)]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        last = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).splitlines()[-SHOWN_LINES:])
        raise PerfError(f"perf.{script} in {checkout} ended with exit code {done.returncode}; it printed\n{last}")
