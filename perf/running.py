"""A pipeline to measure: one of our own, started by the real `launch` in a temporary folder, or one that runs
already (``--to``); and what its processes cost."""

from __future__ import annotations

import argparse
import json
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ipc.client import AsyncClient
from launch.cli import DEFAULT_FILE
from launch.table import environment
from perf.common import Cell, PerfError
from pipeline.config import Config, ConfigError, load_config

START_TIMEOUT_S = 60.0
DRAIN_S = 3.0
STOP_TIMEOUT_S = 30.0
SHOWN_LINES = 15


@dataclass(frozen=True)
class Place:
    """A pipeline to measure. Of our own one (else empty): ``settings`` as given, ``ready_s`` how long each worker
    (``t3-0``) took from its start until it was ready."""

    to: str
    settings: Mapping[str, Cell] = field(default_factory=dict)
    ready_s: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def pipeline(to: str, settings: Mapping[str, Cell], start_timeout_s: float = START_TIMEOUT_S) -> Iterator[Place]:
    """The pipeline at ``to``, or one of our own with these settings (keys of pipeline.yaml with dots).

    Raises `PerfError` when it does not start (within ``start_timeout_s``) or stop.
    """
    if to:
        yield Place(to)
        return
    with tempfile.TemporaryDirectory(prefix="cl-perf-") as name:
        folder = Path(name)
        process = _launch(folder, settings)
        try:
            _wait_ready(process, folder, start_timeout_s)
            found = re.search(r"text socket (\S+?),? ", _printed(folder))
            if found is None:
                raise PerfError(f"launch did not say where its text socket is{_last_lines(folder)}")
            yield Place(found[1], settings, _ready_s(folder))
        finally:
            _stop(process, folder)


def takes_settings(parser: argparse.ArgumentParser) -> None:
    """Add ``--set`` to a script that measures a pipeline of its own."""
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], type=_setting, metavar="KEY=VALUE",
        help="keys of pipeline.yaml for a pipeline of our own, as in flow.ahead_s=2",
    )  # fmt: skip


def _setting(word: str) -> str:
    """Said before anything is started, not after."""
    try:
        load_config(None, [word])
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return word


def asked(given: argparse.Namespace, **settings: Cell) -> dict[str, Cell]:
    """Settings of a pipeline of our own: the engine, what the script wants (``player__pace`` is ``player.pace``), and
    above these what ``--set`` says."""
    wanted = {key.replace("__", "."): value for key, value in settings.items()}
    return {"model.engine": given.engine, **wanted, **dict(word.split("=", 1) for word in given.set)}


def config_of(place: Place) -> Config | None:
    """All settings of a pipeline of our own; None: they are not known."""
    if not place.settings:
        return None
    path = DEFAULT_FILE if DEFAULT_FILE.exists() else None
    return load_config(path, [f"{key}={_yaml(value)}" for key, value in place.settings.items()])


def _yaml(value: Cell) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def free_port() -> int:
    """A TCP port of this machine that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _launch(folder: Path, settings: Mapping[str, Cell]) -> subprocess.Popen[bytes]:
    wanted: dict[str, Cell] = {
        "model.engine": "espeak",
        "player.output": "none",
        "text.bind": "tcp://127.0.0.1:0",
        "gateway.bind": "off",
        "voices.folder": str(folder / "voices"),
        "supervise.state_dir": str(folder / "state"),
        **settings,
    }
    command = [sys.executable, "-m", "launch", "--no-view"]
    for key, value in wanted.items():
        command += ["--set", f"{key}={_yaml(value)}"]
    with (folder / "launch.out").open("wb") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment(),
            start_new_session=True,
        )  # fmt: skip


def _printed(folder: Path) -> str:
    return (folder / "launch.out").read_text(encoding="utf-8", errors="replace")


def _ready_s(folder: Path) -> dict[str, float]:
    found = re.findall(r"\b(\w+) (\d+) +ready in ([\d.]+) s", _printed(folder))
    return {f"{role}-{index}": float(seconds) for role, index, seconds in found}


def _last_lines(folder: Path) -> str:
    lines = _printed(folder).splitlines()[-SHOWN_LINES:]
    return "; it printed\n" + "\n".join(f"    {line}" for line in lines) if lines else "; it printed nothing"


def _wait_ready(process: subprocess.Popen[bytes], folder: Path, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not re.search(r"supervisor +ready in ", _printed(folder)):
        if process.poll() is not None:
            raise PerfError(f"launch ended with exit code {process.returncode}{_last_lines(folder)}")
        if time.monotonic() > deadline_s:
            raise PerfError(f"the pipeline was not ready within {timeout_s:g} s{_last_lines(folder)}")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Let it finish what is being said for a moment, then stop at once."""
    for patience_s in (DRAIN_S, STOP_TIMEOUT_S):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    process.wait()
    raise PerfError(f"launch did not stop within {STOP_TIMEOUT_S:g} s{_last_lines(folder)}")


# --------------------------------------------------------------------------- its processes


async def processes(client: AsyncClient) -> dict[str, psutil.Process]:
    """The pipeline's processes by name (``dispatcher-0``, …) with the supervisor among them.

    Raises `PerfError` when they are not on this machine.
    """
    pids = {stage.worker: stage.pid for stage in (await client.status()).stages}
    try:
        found = {name: psutil.Process(pid) for name, pid in pids.items()}
        supervisor = found["dispatcher-0"].parent()
    except (psutil.NoSuchProcess, KeyError, ValueError) as error:
        raise PerfError(f"the processes of the pipeline at {client.to} are not on this machine ({error})") from error
    for name, process in found.items():
        if f"workers.{name.partition('-')[0]}" not in " ".join(process.cmdline()):
            raise PerfError(
                f"process {process.pid} is not {name} of the pipeline at {client.to}: is it on this machine?"
            )
    return {"supervisor": supervisor, **found} if supervisor is not None else found


async def engine_of(place: Place, client: AsyncClient) -> str:
    """The name under which the pipeline's engine can be loaded here."""
    return str(place.settings.get("model.engine") or (await client.status()).engine)


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process so far, all threads. Linux counts them in nanoseconds, elsewhere it is coarser."""
    if platform.system() == "Linux":
        return time.clock_gettime((~process.pid << 3) | 2)  # clock_getcpuclockid(3)
    times = process.cpu_times()
    return float(times.user + times.system)


def memory_bytes(process: psutil.Process) -> int:
    """Physical memory that the process takes: its own pages, and its fraction of the rings' (so that each counts
    once when processes are added up). Code from files is not counted: any other program may share or evict it.

    Where the system does not tell (macOS): the pages that are the process's alone.
    """
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except FileNotFoundError:
        return int(process.memory_full_info().uss)
    kilobytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return 1024 * sum(kilobytes[name] for name in ("Pss_Anon", "Pss_Shmem", "SwapPss"))
