"""NVIDIA's Multi-Process Service, so that processes use one GPU at the same time instead of taking turns.

`launch` starts the control daemon in the run directory when ``supervise.mps`` says so, hands its address to the
processes in their environment, and ends it when they are gone. A daemon of somebody else is left alone: this one
has folders of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

CONTROL = "nvidia-cuda-mps-control"
TIMEOUT_S = 10.0
POLL_S = 0.02
FOLDER = "mps"


class MpsError(Exception):
    """MPS is asked for and cannot be had; the message says what to do."""


@contextlib.contextmanager
def multi_process_service(run_dir: Path, say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """While this is open the daemon runs; gives the environment that its clients need. Raises `MpsError`."""
    if shutil.which(CONTROL) is None:
        raise MpsError(
            f"supervise.mps: {CONTROL} is not on the PATH; it comes with NVIDIA's driver for Linux "
            "(Debian, Ubuntu: nvidia-compute-utils); leave supervise.mps false to run without"
        )
    folder = run_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        _ask(folder, ["-d"])
    except MpsError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    say(f"MPS runs ({CONTROL}, {folder})")
    try:
        yield _address(folder)
    finally:
        _end(folder, say)
        shutil.rmtree(folder, ignore_errors=True)


def end_left_over(run_dir: Path) -> None:
    """Kill the daemon of a `launch` that was killed itself; does nothing where there is none."""
    pid = _pid(run_dir / FOLDER)
    with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
        if pid and any(CONTROL in part for part in psutil.Process(pid).cmdline()):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


def _address(folder: Path) -> dict[str, str]:
    return {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}


def _ask(folder: Path, arguments: list[str], text: str = "") -> None:
    """One call of the control program. Raises `MpsError` with what it said.

    What it prints goes into a file: a pipe would be held open by the daemon that it leaves behind.
    """
    output = folder / "control.out"
    try:
        with output.open("w+b") as file:
            asked = subprocess.run(
                [CONTROL, *arguments],
                input=text.encode(),
                stdout=file,
                stderr=file,
                timeout=TIMEOUT_S,
                env=os.environ | _address(folder),
                start_new_session=True,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MpsError(f"supervise.mps: {CONTROL} could not be run: {error}") from error
    if asked.returncode:
        said = output.read_text(errors="replace").strip() or f"exit code {asked.returncode}"
        raise MpsError(f"supervise.mps: {' '.join([CONTROL, *arguments])}: {said}")


def _end(folder: Path, say: Callable[[str], None]) -> None:
    """Ask the daemon to leave; where it does not listen, kill it."""
    pid = _pid(folder)
    try:
        _ask(folder, [], "quit\n")
    except MpsError as error:
        say(f"{error}; killing it")
        if pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + TIMEOUT_S
    while pid and _alive(pid) and time.monotonic() < until:
        time.sleep(POLL_S)


def _pid(folder: Path) -> int:
    """The daemon's process, as it notes it itself (0: unknown)."""
    with contextlib.suppress(OSError, ValueError):
        return int((folder / f"{CONTROL}.pid").read_text())
    return 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
