"""MPS: started and ended with the pipeline, never left behind, and asked for by name where it is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.mps import CONTROL, FOLDER, MpsError, end_left_over, multi_process_service

FAKE = f"""#!{sys.executable}
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:]) + "|" + os.environ["CUDA_MPS_LOG_DIRECTORY"] + "\\n")
if os.environ.get("FAKE_FAILS"):
    sys.exit("cannot run on this GPU")
if sys.argv[1:] == ["-d"]:
    daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "{CONTROL}"])
    (folder / "{CONTROL}.pid").write_text(str(daemon.pid))
elif sys.stdin.read() == "quit\\n":
    os.kill(int((folder / "{CONTROL}.pid").read_text()), signal.SIGKILL)
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control program on the PATH that notes how it was called and leaves a daemon behind."""
    program = tmp_path / "bin" / CONTROL
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls"))
    return tmp_path


def gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_the_daemon_lives_as_long_as_the_pipeline(control: Path) -> None:
    said: list[str] = []
    with multi_process_service(control, said.append) as env:
        folder = control / FOLDER
        assert env == {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
        pid = int((folder / f"{CONTROL}.pid").read_text())
        os.kill(pid, 0)
    assert gone(pid)
    assert not folder.exists()
    assert len(said) == 1
    assert said[0].startswith("MPS runs")
    assert (control / "calls").read_text().splitlines() == [f"-d|{folder}", f"|{folder}"]


def test_where_it_is_missing_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(MpsError, match=r"not on the PATH.*leave supervise.mps false"),
        multi_process_service(tmp_path, print),
    ):
        pass


def test_what_the_control_program_complains_of_is_passed_on(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAILS", "1")
    with (
        pytest.raises(MpsError, match="-d: cannot run on this GPU"),
        multi_process_service(control, print),
    ):
        pass
    assert not (control / FOLDER).exists()


@pytest.mark.slow
def test_a_daemon_that_does_not_answer_is_killed(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with multi_process_service(control, said.append):
        pid = int((control / FOLDER / f"{CONTROL}.pid").read_text())
        monkeypatch.setenv("FAKE_FAILS", "1")
    assert gone(pid)
    assert said[-1].endswith("killing it")


def test_the_daemon_of_a_killed_launch_is_ended_with_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", CONTROL]) as daemon:
        (folder / f"{CONTROL}.pid").write_text(str(daemon.pid))
        end_left_over(tmp_path)
        assert daemon.wait(10) == -signal.SIGKILL
    assert not folder.exists()


def test_another_process_with_that_number_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        (folder / f"{CONTROL}.pid").write_text(str(other.pid))
        end_left_over(tmp_path)
        assert other.poll() is None
        other.kill()
