"""What every process of ours does first and last, with real processes and real deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from ipc.progress import ProgressLine, ProgressReader
from pipeline.config import Config
from workers.life import Arguments, parse

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has PR_SET_PDEATHSIG and F_SETSIG")


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """Dead, if perhaps not yet collected by whoever inherited it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Started:
    """A worker process whose body is ``code`` (with ``life`` in reach), and our ends of its pipes."""

    def __init__(self, run_dir: Path, code: str, parent: int | None = None, before: str = "") -> None:
        progress, self._progress = os.pipe()
        self._death, self.death = os.pipe()
        self.reader = ProgressReader(progress)
        self.lines: list[ProgressLine] = []
        script = run_dir / "worker.py"
        body = "".join(f"    {line}\n" for line in code.splitlines())
        script.write_text(
            "import os, signal, subprocess, sys, time\n"
            "from pipeline.config import ConfigError\n"
            "from pipeline.engines.base import EngineError\n"
            "from workers.life import run\n"
            "def say(*words): print(*words, flush=True)\n"
            f"def body(life):\n{body}"
            f"{before}\n"
            "sys.exit(run('t3', body))\n"
        )
        parent = os.getpid() if parent is None else parent
        arguments = Arguments(0, parent, run_dir, -1, self._progress, self._death)
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments.command("t3")[3:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(self._progress, self._death),
            start_new_session=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        os.close(self._progress)
        os.close(self._death)

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ended(self) -> int:
        """Wait for the end; its exit code."""
        code = self.process.wait(DEADLINE_S)
        self.lines += self.reader.read()
        return code

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.reader.close()
        if self.death >= 0:
            os.close(self.death)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    started: list[Started] = []

    def one(code: str, **more: Any) -> Started:
        started.append(Started(tmp_path, code, **more))
        return started[-1]

    (tmp_path / "config.json").write_bytes(msgspec.json.encode(Config()))
    yield one
    for each in started:
        each.close()


def test_the_command_line_survives_its_parsing(tmp_path: Path) -> None:
    arguments = Arguments(index=3, parent=4711, run_dir=tmp_path, arena=5, progress=6, death=7)
    command = arguments.command("s3gen")
    assert command[:3] == [sys.executable, "-m", "workers.s3gen"]
    assert parse("s3gen", command[3:]) == arguments
    assert parse("s3gen", ["--run-dir", str(tmp_path)]) == Arguments(0, 0, tmp_path, -1, -1, -1)


@pytest.mark.parametrize("argv", [[], ["--run-dir", "x", "--what"], ["--run-dir", "x", "--index", "one"]])
def test_a_wrong_command_line_exits_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("t3", argv)
    assert caught.value.code == 2


def test_a_body_that_returns_is_exit_code_0(start: Callable[..., Started]) -> None:
    worker = start("assert life.config().supervise.hang_s == 5.0\nlife.progress.ready('here')")
    assert worker.ended() == 0
    assert worker.lines == [ProgressLine(ready="here")]


def test_an_error_is_told_and_is_exit_code_1(start: Callable[..., Started]) -> None:
    worker = start("raise RuntimeError('out of luck')")
    assert worker.ended() == 1
    (line,) = worker.lines
    assert line.error is not None
    assert line.error.startswith("RuntimeError: out of luck (worker.py:")
    assert worker.process.stderr is not None
    assert "Traceback" in worker.process.stderr.read()


@pytest.mark.parametrize("kind", ["ConfigError", "EngineError"])
def test_a_configuration_that_cannot_work_is_exit_code_2(start: Callable[..., Started], kind: str) -> None:
    worker = start(f"raise {kind}('stages.t3.device: no such device')")
    assert worker.ended() == 2
    assert worker.lines == [ProgressLine(error="stages.t3.device: no such device")]
    assert worker.process.stderr is not None
    assert worker.process.stderr.read() == "t3: stages.t3.device: no such device\n"


@pytest.mark.parametrize("content", [None, b"{", b'{"model":{"engin":"x"}}'])
def test_an_unusable_configuration_is_exit_code_2(
    start: Callable[..., Started], tmp_path: Path, content: bytes | None
) -> None:
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    worker = start("life.config()")
    assert worker.ended() == 2
    assert "config.json" in (worker.lines[0].error or "")


WAIT = """
import select
say("up")
while not life.leaving:
    select.select([life.wake_fd], [], [], 60)
    say("woke", life.leaving)
"""


def test_sigterm_wakes_the_loop_and_sigint_is_left_to_the_supervisor(start: Callable[..., Started]) -> None:
    worker = start(WAIT)
    assert worker.said() == "up"
    worker.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(0.2)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.said() == "woke True"
    assert worker.ended() == 0


BUSY = """
child = subprocess.Popen(["sleep", "600"])
say(child.pid)
while True: pass
"""


@LINUX
def test_the_end_of_the_death_pipe_kills_a_busy_worker_and_its_children(start: Callable[..., Started]) -> None:
    worker = start(BUSY)
    child = int(worker.said())
    assert worker.process.poll() is None
    os.close(worker.death)
    worker.death = -1
    assert worker.ended() == -signal.SIGKILL
    until(lambda: gone(child))


def test_where_the_kernel_does_not_watch_the_death_pipe_a_thread_does(start: Callable[..., Started]) -> None:
    worker = start(BUSY, before="sys.platform = 'other'")
    child = int(worker.said())
    os.close(worker.death)
    worker.death = -1
    assert worker.ended() == -signal.SIGKILL
    until(lambda: gone(child))


def test_a_supervisor_that_is_gone_before_the_worker_is_up_is_noticed(start: Callable[..., Started]) -> None:
    worker = start("time.sleep(600)")
    os.close(worker.death)
    worker.death = -1
    assert worker.ended() in (-signal.SIGKILL, 1)


@LINUX
def test_another_parent_than_expected_ends_the_worker_at_once(start: Callable[..., Started]) -> None:
    worker = start("say('never')", parent=1)
    assert worker.ended() == 1
    assert worker.said() == ""


@LINUX
def test_a_killed_parent_takes_the_worker_with_it(start: Callable[..., Started], tmp_path: Path) -> None:
    """Without a death pipe: only the kernel tells."""
    start("pass").ended()
    between = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, {str(tmp_path / 'worker.py')!r}, '--run-dir', {str(tmp_path)!r}]\n"
        "worker = subprocess.Popen([*command, '--parent', str(os.getpid())], start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    source = (tmp_path / "worker.py").read_text().replace("    pass\n", "    say(os.getpid())\n    time.sleep(600)\n")
    (tmp_path / "worker.py").write_text(source)
    command = [sys.executable, "-c", between]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
        until(lambda: gone(pid))
