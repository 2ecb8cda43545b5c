"""What a `launch` that is killed leaves behind: nothing but a directory that the next one sweeps.

Every launch of a test gets the same folder for temporary files, so that whatever is left can be seen,
and a word in its environment by which all its descendants are found, whoever inherited them.
`CHATTERLINE_KILLS=50 pytest tests/launch/test_leftovers.py` kills as often as it says.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from chatterline import Client
from launch.cli import ALREADY_RUNNING
from launch.supervisor import FAILED, OK
from tests.harness import direct_sound, pcm, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux tells processes' environments"),
]

ROOT = Path(__file__).parents[2]
BABBLE = "tests.engines.babble:ENGINE"
KILLS = int(os.environ.get("CHATTERLINE_KILLS", "12"))
MARK = "CHATTERLINE_TEST_RUN"
GONE_S = 1.0
"""After this long nothing may be left of a killed launch."""

START_S = 1.2
"""Within about this time a launch gets ready."""

TEXT = "The kettle began to sing, and the whole kitchen listened. Nobody had expected a tune from it! "
PAGES, PAGE = 256, 4096
OF_ESPEAK = "chatterline-espeak-"
"""Folders that killed processes of this engine leave, for any later start to sweep."""


class Place:
    """One machine for launches, as far as they can tell: temporary files, logs, and processes with a mark."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.base = self.temporary / f"chatterline-{os.getuid()}"
        self.mark = uuid.uuid4().hex
        self._shared = set(Path("/dev/shm").iterdir())
        self._launches: list[Launched] = []

    def launch(self, *settings: str, engine: str = BABBLE, runtime: Path | None = None) -> Launched:
        """Start one more, with a folder for what runs if one is given."""
        defaults = (f"model.engine={engine}", "player.output=none", "text.bind=tcp://127.0.0.1:0")
        defaults += ("gateway.bind=127.0.0.1:0",)
        changes = [part for setting in (*defaults, *settings) for part in ("--set", setting)]
        output = self.folder / f"launch-{len(self._launches)}.out"
        env = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
        env |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "XDG_STATE_HOME": str(self.folder)}
        command = [sys.executable, "-m", "launch", *changes]
        if runtime is not None:
            env["XDG_RUNTIME_DIR"] = str(runtime)
        with output.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=env | {MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._launches.append(Launched(process, output))
        return self._launches[-1]

    def processes(self) -> dict[int, str]:
        """Every process with the mark: pid and command line."""
        found = {}
        wanted = f"{MARK}={self.mark}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted in (path / "environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ").strip()
        return found

    def run_dirs(self) -> set[str]:
        return {path.name for path in self.base.glob("run-*")}

    def _locks(self) -> set[str]:
        return {"sweep.lock"} | {path.name for path in self.base.glob("text-*.lock")}

    def assert_nothing_left(self, launched: Launched) -> None:
        """Of a launch that has just ended, the last one alive here, but for what a next one would sweep."""
        launched.process.wait(5)
        until(lambda: not self.processes(), f"no process of it is left {self.processes()}", GONE_S)
        assert set(Path("/dev/shm").iterdir()) <= self._shared
        assert self.run_dirs() <= {f"run-{one.process.pid}" for one in self._launches}
        files = {path.name for path in self.temporary.iterdir() if not path.name.startswith(OF_ESPEAK)}
        assert files <= {self.base.name}
        assert {path.name for path in self.base.glob("*")} - self.run_dirs() <= self._locks()

    def close(self) -> None:
        for launched in self._launches:
            launched.process.kill()
            launched.process.wait(10)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder)


class Launched:
    """One launch, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    def printed(self) -> str:
        return self._output.read_text(errors="replace")

    def says(self, wanted: str, timeout_s: float = 30.0) -> str:
        """What it says that fits, and the group in it if there is one."""

        def found() -> re.Match[str] | None:
            seen = re.search(wanted, self.printed())
            assert seen or self.process.poll() is None, f"it ended without {wanted!r}:\n{self.printed()}"
            return seen

        match = until(found, f"launch says {wanted!r}", timeout_s)
        assert match is not None
        return match[match.re.groups]

    def ready(self) -> Launched:
        self.says("supervisor +ready in")
        self.says("gateway 0 +ready in")
        return self

    @property
    def to(self) -> str:
        return self.says(r"text socket (\S+?),? ")

    def ended(self, timeout_s: float = 20.0) -> int:
        """Its exit code."""
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        self.process.kill()


@pytest.fixture
def place() -> Iterator[Place]:
    there = Place()
    try:
        yield there
    finally:
        there.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_at(place: Place, moment: str, delay_s: float, engine: str = BABBLE) -> Launched:
    """Start a launch, and kill it so long after this moment of its life."""
    settings = ["model.options={children: 1}"] if engine == BABBLE else []
    launched = place.launch(*settings, engine=engine)
    with ExitStack() as stack:
        if moment != "start":
            launched.ready()
            assert place.run_dirs() == {f"run-{launched.process.pid}"}, "those of the dead are swept"
            client = stack.enter_context(Client(launched.to))
            speech = [client.speak(TEXT * 3), client.speak(TEXT * 3, output="stream")]
            until(lambda: all(one.made_chars for one in speech), "it speaks")
            if engine == BABBLE:
                assert sum(command == "sleep 1000" for command in place.processes().values()) == 2
        if moment in ("drain", "stop", "sigterm"):
            launched.process.send_signal(signal.SIGTERM if moment == "sigterm" else signal.SIGINT)
        if moment == "stop":
            launched.says("finishing what has been asked for")
            launched.process.send_signal(signal.SIGINT)
        time.sleep(delay_s)
        if moment == "frozen":
            launched.process.send_signal(signal.SIGSTOP)
        if moment == "all frozen":
            for pid in place.processes():
                os.kill(pid, signal.SIGSTOP)
        launched.kill()
        launched.process.wait(5)
    return launched


def test_a_launch_killed_at_any_moment_leaves_no_process_no_memory_and_what_the_next_one_sweeps(place: Place) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    moments = ["start", "speech", "start", "drain", "start", "stop", "start", "sigterm", "frozen", "all frozen"]
    for number in range(KILLS):
        moment = moments[number % len(moments)]
        delay_s = rng.uniform(0, START_S if moment == "start" else 0.4) if number else 0.0
        print(f"seed {seed}, kill {number}: {delay_s * 1000:.0f} ms after {moment}")
        dead = kill_at(place, moment, delay_s)
        place.assert_nothing_left(dead)
    dead = kill_at(place, "speech", 0.0)
    assert place.run_dirs() == {f"run-{dead.process.pid}"}, "there is something to sweep"
    last = place.launch().ready()
    assert place.run_dirs() == {f"run-{last.process.pid}"}
    last.process.send_signal(signal.SIGINT)
    assert last.ended() == OK
    place.assert_nothing_left(last)
    assert place.run_dirs() == set()


def test_folders_of_a_killed_espeak_are_swept_by_a_later_start(place: Place) -> None:
    dead = kill_at(place, "speech", 0.0, engine="espeak")
    place.assert_nothing_left(dead)
    left = list(place.temporary.glob(f"{OF_ESPEAK}*"))
    assert left, "one for each half"
    for folder in left:
        os.utime(folder, (0, 0))
    later = place.launch(engine="espeak").ready()
    assert not any(folder.exists() for folder in left)
    later.process.send_signal(signal.SIGINT)
    assert later.ended() == OK
    assert [path.name for path in place.temporary.iterdir()] == [place.base.name]


@pytest.mark.parametrize("shared", ["port", "run directory"])
def test_a_second_launch_in_the_same_place_says_so_and_the_first_goes_on_undisturbed(place: Place, shared: str) -> None:
    port, run_dir = free_port(), place.folder / "run"
    both = f"text.bind=tcp://127.0.0.1:{port}" if shared == "port" else f"supervise.run_dir={run_dir}"
    first = place.launch(both).ready()
    before = place.processes()
    with Client(first.to) as client, client.utterance(seed=7, output="stream") as growing:
        growing.write(TEXT)
        speaking = client.speak("The kettle sings.", seed=7)
        seconds = [place.launch(both), place.launch(both, "player.pace=free")]
        for second in seconds:
            assert second.ended() == ALREADY_RUNNING
            told = second.printed().strip()
            assert told.count("\n") == 0
            assert f"pid {first.process.pid}" in told
            assert (str(port) if shared == "port" else str(run_dir)) in told
        growing.write(TEXT)
        growing.end()
        assert np.array_equal(pcm(growing.audio()), pcm(direct_sound("babble", TEXT * 2, 7)))
        assert speaking.wait().samples == len(direct_sound("babble", "The kettle sings.", 7))
    assert place.processes() == before
    first.process.send_signal(signal.SIGINT)
    assert first.ended() == OK


def test_a_second_launch_waits_in_vain_for_a_frozen_one_and_says_who_it_is(place: Place) -> None:
    bind = f"text.bind=tcp://127.0.0.1:{free_port()}"
    first = place.launch(bind).ready()
    first.process.send_signal(signal.SIGSTOP)
    second = place.launch(bind)
    assert second.ended() == ALREADY_RUNNING
    assert f"pid {first.process.pid}" in second.printed()
    first.kill()
    place.assert_nothing_left(first)
    third = place.launch(bind).ready()
    third.process.send_signal(signal.SIGINT)
    assert third.ended() == OK


@pytest.fixture
def disk() -> Iterator[Path]:
    """A disk of one megabyte."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a disk")
    folder = Path(tempfile.mkdtemp(prefix="cl-disk-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={PAGES * PAGE},mode=700", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
        if mounted.returncode != 0:
            pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        folder.rmdir()


def fill(disk: Path, free_pages: int) -> None:
    """Leave room for so many pages only."""
    (disk / "ballast").write_bytes(bytes((PAGES - free_pages) * PAGE))
    assert os.statvfs(disk).f_bfree == free_pages


@pytest.mark.parametrize("free_pages", [0, 1])
@pytest.mark.parametrize("setting", ["supervise.run_dir", "XDG_RUNTIME_DIR"])
def test_a_full_disk_under_the_run_directory_is_named_in_one_line_and_nothing_starts(
    place: Place, disk: Path, setting: str, free_pages: int
) -> None:
    """The lock takes one page, the configuration the next."""
    fill(disk, free_pages)
    launched = place.launch(runtime=disk) if setting == "XDG_RUNTIME_DIR" else place.launch(f"{setting}={disk / 'run'}")
    assert launched.ended() == FAILED
    assert re.fullmatch(rf"launch: {disk}/\S+ cannot be written: No space left on device; .+\n", launched.printed())
    assert place.processes() == {}


def test_a_read_only_run_directory_is_named_in_one_line_and_nothing_starts(place: Place, disk: Path) -> None:
    (disk / "run").mkdir(mode=0o700)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for run_dir in (disk / "run", disk / "new"):
        launched = place.launch(f"supervise.run_dir={run_dir}")
        assert launched.ended() == FAILED
        assert re.fullmatch(rf"launch: .*{run_dir}.*\n", launched.printed())
        assert place.processes() == {}
