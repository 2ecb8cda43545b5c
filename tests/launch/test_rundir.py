"""Run directories and locks: private, one owner each, swept when the owner is gone."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import rundir
from launch.rundir import AlreadyRunning, Lock, RunDirError, log_dir, open_run_dir, state_dir

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short place for run directories (socket paths have a limit)."""
    short = Path(f"/tmp/cl-{os.getpid()}-{tmp_path.name[-8:]}")
    short.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    yield short / "chatterline"
    subprocess.run(["rm", "-rf", str(short)], check=True)


def test_a_fresh_directory_is_private_named_and_removed(base: Path) -> None:
    run = open_run_dir("", "tcp://127.0.0.1:5570")
    path = run.endpoints.run_dir
    assert path == base / f"run-{os.getpid()}"
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "lock").read_text() == f"{os.getpid()}\ntcp://127.0.0.1:5570\n"
    (path / "journal.sqlite").touch()
    run.close()
    assert not path.exists()


def test_a_second_pipeline_at_the_same_address_names_the_first(base: Path) -> None:
    run = open_run_dir("", "tcp://127.0.0.1:5570")
    with pytest.raises(AlreadyRunning, match=rf"5570 is in use by the pipeline with pid {os.getpid()}"):
        open_run_dir("", "tcp://127.0.0.1:5570")
    other = open_run_dir("", "tcp://127.0.0.1:5571")
    assert other.endpoints.run_dir != run.endpoints.run_dir
    other.close()
    run.close()
    open_run_dir("", "tcp://127.0.0.1:5570").close()


def test_a_second_pipeline_in_the_same_directory_names_the_first_and_its_address(base: Path) -> None:
    place = base.parent / "mine"
    run = open_run_dir(str(place), "tcp://127.0.0.1:5570")
    with pytest.raises(AlreadyRunning, match=rf"pid {os.getpid()}, which serves tcp://127.0.0.1:5570"):
        open_run_dir(str(place), "tcp://127.0.0.1:5571")
    # the address of the refused one is free again
    open_run_dir("", "tcp://127.0.0.1:5571").close()
    run.close()


def test_a_configured_directory_stays_and_loses_only_what_is_ours(base: Path) -> None:
    place = base.parent / "mine"
    run = open_run_dir(str(place), "tcp://127.0.0.1:5570")
    for name in ("journal.sqlite", "journal.sqlite-wal", "work.sock", "config.json", "diary.txt"):
        (place / name).touch()
    run.close()
    assert {path.name for path in place.iterdir()} == {"lock", "diary.txt"}


def test_what_a_killed_pipeline_left_in_its_directory_is_not_taken_up(base: Path) -> None:
    place = base.parent / "mine"
    place.mkdir(mode=0o700)
    for name in ("journal.sqlite", "player-output"):
        (place / name).touch()
    run = open_run_dir(str(place), "tcp://127.0.0.1:5570")
    assert {path.name for path in place.iterdir()} == {"lock"}
    run.close()


def test_directories_of_killed_pipelines_are_swept_and_those_of_living_ones_are_not(base: Path) -> None:
    code = """
import os, sys, time
from launch.rundir import open_run_dir
print(open_run_dir("", sys.argv[1]).endpoints.run_dir, flush=True)
time.sleep(60)
"""
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"tcp://127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for port in (6001, 6002)
    ]
    try:
        paths = [Path(other.stdout.readline().strip()) for other in others if other.stdout]
        assert all(path.is_dir() for path in paths)
        os.kill(others[0].pid, signal.SIGKILL)
        others[0].wait()
        run = open_run_dir("", "tcp://127.0.0.1:6003")
        assert not paths[0].exists()
        assert paths[1].is_dir()
        assert not (base / "text-127.0.0.1-6001.lock").exists()
        assert (base / "text-127.0.0.1-6002.lock").exists()
        run.close()
    finally:
        for other in others:
            other.kill()
            other.wait()
            if other.stdout:
                other.stdout.close()


def test_a_directory_that_is_open_to_others_is_refused(base: Path) -> None:
    place = base.parent / "open"
    place.mkdir()
    place.chmod(0o755)
    with pytest.raises(RunDirError, match="chmod 700"):
        open_run_dir(str(place), "tcp://127.0.0.1:5570")


def test_a_path_that_is_too_long_for_a_socket_says_so(base: Path) -> None:
    with pytest.raises(RunDirError, match=r"too long for the sockets in it.*set supervise\.run_dir to a shorter path"):
        open_run_dir(str(base.parent / ("x" * 90)), "tcp://127.0.0.1:5570")


def test_a_runtime_folder_that_cannot_be_used_gives_way_to_the_temporary_one(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "x" * 90)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(base.parent))
    run = open_run_dir("", "tcp://127.0.0.1:5570")
    assert run.endpoints.run_dir.parent == base.parent / f"chatterline-{os.getuid()}"
    run.close()


def test_a_link_in_place_of_our_folder_is_refused(base: Path) -> None:
    base.symlink_to(base.parent)
    with pytest.raises(RunDirError, match="is not a directory of this user"):
        rundir._check_private(base)


def test_a_lock_ends_with_its_holder_and_its_file_tells_the_holder(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock", "tcp://x", "it")
    with pytest.raises(
        AlreadyRunning, match=f"it is in use by the pipeline with pid {os.getpid()}, which serves tcp://x"
    ):
        Lock(tmp_path / "lock", "", "it")
    lock.release()
    Lock(tmp_path / "lock", "", "it").release()


def test_logs_go_to_the_state_folder_one_place_for_each_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_dir("") == tmp_path / "chatterline"
    assert state_dir("/elsewhere") == Path("/elsewhere")
    monkeypatch.setenv("XDG_STATE_HOME", "relative is ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_dir("") == tmp_path / ".local" / "state" / "chatterline"
    folders = {
        log_dir(tmp_path, address) for address in ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "ipc:///" + "y" * 99)
    }
    assert len(folders) == 3
    assert all(folder.parent == tmp_path and len(folder.name) <= 64 for folder in folders)
