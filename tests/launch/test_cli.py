"""The command itself, with the real processes: what it prints, what it leaves, how it exits."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import soundfile

from launch import cli

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class Launched:
    """A running `launch`, its lines as they come."""

    def __init__(self, folder: Path, *args: str) -> None:
        env = os.environ | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder)}
        command = [sys.executable, "-m", "launch", *args]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=env
        )
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line

    def until(self, wanted: str) -> re.Match[str]:
        until = time.monotonic() + DEADLINE_S
        while not (found := re.search(wanted, self.text)):
            assert time.monotonic() < until, f"{wanted!r} never came:\n{self.text}"
            assert self.process.poll() is None or self._reader.is_alive(), f"{wanted!r} never came:\n{self.text}"
            time.sleep(0.01)
        return found

    def ready(self) -> list[psutil.Process]:
        """Wait until it runs; its workers. (What these run for a moment while they load, as ldconfig, is none.)"""
        self.until(r"supervisor +ready in")
        workers = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(part.startswith("workers.") for part in process.cmdline()):
                    workers.append(process)
        return workers

    def ended(self) -> int:
        """Wait for the exit code."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code

    def close(self) -> None:
        self.process.kill()
        self.ended()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short private folder to run in (socket paths have a limit)."""
    place = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def launched(folder: Path) -> Iterator[list[Launched]]:
    """Launches to be ended with the test."""
    running: list[Launched] = []
    yield running
    for one in running:
        one.close()


QUIET = ("--set", "player.output=none", "--set", "text.bind=tcp://127.0.0.1:0", "--set", "gateway.bind=off")


def wait_gone(processes: list[psutil.Process]) -> None:
    _gone, left = psutil.wait_procs(processes, DEADLINE_S)
    assert left == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n    {code} " in text for code in (0, 1, 2, 3, 4, 129, 130))


def test_a_wrong_configuration_is_refused_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(folder / "none.yaml")]) == cli.BAD_CONFIG
    assert cli.main(["--set", "stages.t3.cpus=[4000]"]) == cli.BAD_CONFIG
    assert cli.main(["--set", "model.engine=whisper"]) == cli.BAD_CONFIG
    text = capsys.readouterr().err
    assert "no such file" in text
    assert "stages.t3.cpus: [4000]" in text
    assert "'whisper' is not installed" in text


def test_the_file_in_the_current_folder_is_read_without_being_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pipeline.yaml").write_text("flow: {ring: 3}\n")
    monkeypatch.chdir(folder)
    assert cli.main(["--check"]) == cli.BAD_CONFIG
    assert "flow.ring: no such key; did you mean 'ring_s'?" in capsys.readouterr().err


@pytest.mark.slow
def test_check_lists_everything_and_exits_by_whether_it_would_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert cli.main(["--check", *QUIET]) == 0
    text = capsys.readouterr().out
    for what in (
        "engine",
        "t3",
        "s3gen",
        "player",
        "dispatcher",
        "voice",
        "sound",
        "text socket",
        "run folder",
        "memory",
    ):
        assert f"ok    {what} " in text
    assert cli.main(["--check", *QUIET, "--set", "stages.t3.cpus=[4000]"]) == cli.BAD_CONFIG
    assert "MISS  processors" in capsys.readouterr().out


@pytest.mark.slow
def test_say_speaks_into_a_complete_file_and_exits(folder: Path, launched: list[Launched]) -> None:
    args = ("--set", "player.output=wav:out.wav", "--set", "player.pace=free", "--set", "text.bind=tcp://127.0.0.1:0")
    launched.append(Launched(folder, *args, "--say", "Hello. This is a test."))
    assert launched[0].ended() == 0, launched[0].text
    samples, rate = soundfile.read(folder / "out.wav", dtype="float32")
    assert rate == 24_000
    assert 1.0 < len(samples) / rate < 5.0
    assert abs(samples).max() > 0.1
    lines = launched[0].text.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d  \S", line) for line in lines)
    for wanted in (
        "supervisor +engine ",
        "supervisor +text socket tcp://127.0.0.1:",
        r"supervisor +ready in \d+\.\d s",
    ):
        assert len([line for line in lines if re.search(wanted, line)]) == 1
    assert list(folder.glob("chatterline/run-*")) == []


@pytest.mark.slow
def test_say_that_is_refused_exits_with_1_and_the_reason(folder: Path, launched: list[Launched]) -> None:
    launched.append(Launched(folder, *QUIET, "--set", "text.max_chars=5", "--say", "Much too long."))
    assert launched[0].ended() == 1, launched[0].text
    assert re.search(r"say +text: ", launched[0].text)


@pytest.mark.slow
def test_an_interrupt_ends_it_in_order_and_leaves_nothing(folder: Path, launched: list[Launched]) -> None:
    launched.append(Launched(folder, *QUIET))
    processes = launched[0].ready()
    assert {process.cmdline()[2] for process in processes} == {
        f"workers.{role}" for role in ("dispatcher", "player", "s3gen", "t3")
    }
    launched[0].process.send_signal(signal.SIGINT)
    assert launched[0].ended() == 0, launched[0].text
    wait_gone(processes)
    assert "died" not in launched[0].text
    assert list(folder.glob("chatterline/run-*")) == []
    names = {path.name for path in folder.glob("chatterline/127*/*.log")}
    assert names == {"dispatcher-0.log", "player-0.log", "s3gen-0.log", "supervisor.log", "t3-0.log"}


@pytest.mark.slow
def test_a_killed_launch_takes_everything_with_it_and_the_next_one_sweeps(
    folder: Path, launched: list[Launched]
) -> None:
    launched.append(Launched(folder, *QUIET))
    processes = launched[0].ready()
    launched[0].process.kill()
    wait_gone(processes)
    left = list(folder.glob("chatterline/run-*"))
    assert len(left) == 1
    launched.append(Launched(folder, *QUIET))
    launched[1].ready()
    assert not left[0].exists()


@pytest.mark.slow
def test_any_killed_process_is_replaced_and_the_pipeline_still_speaks(folder: Path, launched: list[Launched]) -> None:
    port = free_port()
    launched.append(Launched(folder, "--set", "player.output=none", "--set", f"text.bind=tcp://127.0.0.1:{port}"))
    one = launched[0]
    for process in one.ready():
        role = process.cmdline()[2].removeprefix("workers.")
        before = one.text.count(f"{role} 0")
        process.kill()
        one.until(rf"{role} 0 +died \(pid {process.pid}\): killed by SIGKILL; restart 1")
        one.until(rf"(?s){role} 0 +died.*{role} 0 +ready in")
        assert one.text.count(f"{role} 0") > before
    spoken = subprocess.run(
        [sys.executable, "-c", _SPEAK, f"tcp://127.0.0.1:{port}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert spoken.stdout.strip() == "finished", spoken.stderr
    one.process.send_signal(signal.SIGTERM)
    assert one.ended() == 0, one.text


_SPEAK = """
import asyncio, sys
from ipc.client import AsyncClient
async def main():
    async with AsyncClient(sys.argv[1]) as client:
        speech = await client.speak("Still here.")
        await speech.wait()
        print("finished")
asyncio.run(main())
"""


@pytest.mark.slow
def test_a_second_launch_at_the_same_port_says_who_has_it(folder: Path, launched: list[Launched]) -> None:
    bind = f"text.bind=tcp://127.0.0.1:{free_port()}"
    args = ("--set", "player.output=none", "--set", bind)
    launched.append(Launched(folder, *args))
    launched[0].ready()
    launched.append(Launched(folder, *args))
    assert launched[1].ended() == cli.ALREADY_RUNNING
    assert f"pid {launched[0].process.pid}" in launched[1].text
    launched.append(Launched(folder, *args, "--check"))
    assert launched[2].ended() == cli.BAD_CONFIG
    assert "MISS  text socket" in launched[2].text


@pytest.mark.slow
def test_a_port_of_another_program_is_named_with_its_holder(folder: Path, launched: list[Launched]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        bind = f"text.bind=tcp://127.0.0.1:{other.getsockname()[1]}"
        launched.append(Launched(folder, "--set", "player.output=none", "--set", bind))
        assert launched[0].ended() == cli.ALREADY_RUNNING
    assert f"pid {os.getpid()}" in launched[0].text
