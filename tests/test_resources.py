"""When the machine runs short or stands still: a full disk, few descriptors, no memory, clocks that jump.

Each test takes one thing away from a whole pipeline, or starts one without it, and gives it back. Speech
has to go on, or launch has to say what is missing and leave with its documented exit code.
"""

from __future__ import annotations

import ast
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import soundfile

from chatterline import Client, Speech, SpeechError
from ipc.messages import SAMPLE_RATE
from tests.harness import Pipeline, direct_sound, pcm, trimmed, until

Start = Callable[..., Pipeline]

ROOT = Path(__file__).parents[1]
SEED = 7
HANG_S = 2.5
"""With reports every 0.1 s nobody is silent for that long because the machine is busy."""

WHOLE = {"flow.flush_ms": 60_000}
"""A growing text is cut as if it had been given at once."""

TEXT = "The kettle began to sing, and the whole kitchen listened. Nobody had expected a tune from it! "
DISK_BYTES = 16 * 2**20
SOURCES = [
    ROOT / "chatterline.py",
    *(
        path
        for package in ("ipc", "pipeline", "workers", "launch", "perf")
        for path in sorted((ROOT / package).rglob("*.py"))
    ),
]


def finished(speech: Speech, engine: str, text: str) -> None:
    """It ends well, and its sound is what the engine makes of this text."""
    made = direct_sound(engine, text, SEED)
    assert np.array_equal(pcm(speech.audio()), pcm(made))


# --------------------------------------------------------------------------- a full disk


class SmallDisk:
    """A disk of `DISK_BYTES` that can be filled to the last byte and emptied again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Not a byte more fits."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert os.statvfs(self.folder).f_bfree == 0

    def free(self) -> None:
        """There is room again."""
        self._ballast.unlink()


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    """A small tmpfs of the test's own."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    folder = Path(tempfile.mkdtemp(prefix="cl-disk-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
        if mounted.returncode != 0:
            pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
        try:
            yield SmallDisk(folder)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        shutil.rmtree(folder)


def on(disk: SmallDisk) -> dict[str, object]:
    """Settings of a pipeline that keeps everything on this disk."""
    return WHOLE | {"supervise.run_dir": str(disk.folder / "run"), "supervise.state_dir": str(disk.folder / "state")}


def lost(client: Client) -> int:
    """Journal entries that the disk did not take."""
    return client.status().counters.get("journal_writes_lost", 0)


@contextmanager
def growing(client: Client, text: str, output: Literal["speaker", "stream"] = "stream") -> Iterator[Speech]:
    """A text that begins like this and still grows: something of it was made when this is entered."""
    with client.utterance(seed=SEED, output=output) as speech:
        speech.write(text)
        until(lambda: speech.made_chars > 0, "it is being spoken")
        yield speech


@pytest.mark.parametrize("engine", ["babble"])
def test_on_a_full_disk_speech_goes_on_and_what_is_not_journaled_is_counted(
    pipeline: Start, engine: str, disk: SmallDisk
) -> None:
    running = pipeline(on(disk))
    client = running.client()
    with growing(client, TEXT) as speech:
        assert lost(client) == 0
        disk.fill()
        speech.write(TEXT * 4)
    finished(speech, engine, TEXT * 5)
    finished(client.speak(TEXT, seed=SEED, output="stream"), engine, TEXT)
    assert lost(client) > 0
    assert client.status().healthy


@pytest.mark.parametrize("engine", ["babble"])
def test_when_the_disk_has_room_again_the_journal_works_again(pipeline: Start, engine: str, disk: SmallDisk) -> None:
    """What was accepted before lacks what the disk did not take: its program is told, and the rest goes on."""
    running = pipeline(on(disk))
    client, other = running.client(), running.client()
    disk.fill()
    with pytest.raises(SpeechError, match="lost it"), growing(other, TEXT) as torn:  # noqa: PT012
        torn.write(TEXT)
        disk.free()
        counted = lost(client)
        assert counted > 0
        with growing(client, TEXT) as whole:
            assert lost(client) == counted
            running.wait_replaced("dispatcher", running.kill("dispatcher"))
            whole.write(TEXT)
        finished(whole, engine, TEXT * 2)
        torn.audio()
    counters = client.status().counters
    assert (counters["restored_utterances"], counters["set_aside"]) == (1, 1)


@pytest.mark.parametrize("engine", ["babble"])
def test_a_dispatcher_that_dies_while_the_disk_is_full_comes_back(
    pipeline: Start, engine: str, disk: SmallDisk
) -> None:
    running = pipeline(on(disk))
    client = running.client()
    client.speak(TEXT, seed=SEED).wait()
    disk.fill()
    running.wait_replaced("dispatcher", running.kill("dispatcher"))
    finished(client.speak(TEXT, seed=SEED, output="stream"), engine, TEXT)
    assert lost(client) > 0
    assert client.status().healthy


@pytest.mark.parametrize("engine", ["babble"])
def test_a_file_on_a_full_disk_is_waited_for_and_gets_every_sample(
    pipeline: Start, engine: str, disk: SmallDisk
) -> None:
    file = disk.folder / "speech.wav"
    running = pipeline({"player.output": f"wav:{file}"})
    client = running.client()
    client.speak(TEXT, seed=SEED).wait()
    disk.fill()
    speech = client.speak(TEXT * 2, seed=SEED)
    until(lambda: "No space left on device" in str(client.status().player["note"]), "status says what it waits for")
    said = "wav:.*cannot be written .No space left on device.; speech waits for it"
    until(lambda: re.search(said, running.log()), "so does the log")
    assert speech.ending is None
    disk.free()
    assert speech.wait().samples == len(direct_sound(engine, TEXT * 2, SEED))
    until(lambda: client.status().player["note"] == "", "status says that it goes on")
    assert running.stop() == 0
    samples, rate = soundfile.read(file, dtype="int16")
    assert rate == SAMPLE_RATE
    made = np.concatenate([direct_sound(engine, TEXT, SEED), direct_sound(engine, TEXT * 2, SEED)])
    assert np.array_equal(trimmed(samples), trimmed(pcm(made)))


# --------------------------------------------------------------------------- a start without enough


@dataclass(frozen=True)
class Ended:
    """How a launch ended that was to say one sentence."""

    code: int
    said: str
    left: list[str]


def as_user(uid: int) -> list[str]:
    """What goes before a command so that another user runs it (0: nothing), who may read what root may."""
    if not uid:
        return []
    may = "-all,+dac_override,+dac_read_search"
    return [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        f"--inh-caps={may}",
        f"--ambient-caps={may}",
    ]


def launched_with(limits: dict[int, int], *settings: str, uid: int = 0) -> Ended:
    """`launch --say` with these limits (resource.RLIMIT_*) from its first instruction on; as another user if asked."""
    folder = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
    (folder / "run").mkdir(mode=0o700)
    if uid:
        for path in (folder, folder / "run"):
            os.chown(path, uid, uid)
    wanted = ["model.engine=espeak", "text.bind=tcp://127.0.0.1:0", "player.output=none", "supervise.max_restarts=1"]
    wanted += [f"supervise.state_dir={folder}/state", *settings]
    code = f"""
        import resource, runpy
        for name, most in {limits!r}.items():
            resource.setrlimit(name, (most, most))
        runpy.run_module("launch", run_name="__main__", alter_sys=True)
    """
    command = [*as_user(uid), sys.executable, "-c", textwrap.dedent(code), "--say", "Hello."]
    env = os.environ | {"XDG_RUNTIME_DIR": str(folder / "run"), "PYTHONPATH": str(ROOT)}
    env["OPENBLAS_NUM_THREADS"] = "1"  # else numpy has as many threads as there are CPUs
    try:
        done = subprocess.run(
            [*command, *(part for setting in wanted for part in ("--set", setting))],
            cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        )  # fmt: skip
        left = [path.name for path in (folder / "run").glob("*/run-*")]
        left += [str(p.pid) for p in psutil.process_iter(["cmdline"]) if str(folder) in str(p.info["cmdline"])]
        return Ended(done.returncode, done.stdout, left)
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_without_memory_for_the_rings_nothing_starts_and_the_message_names_the_settings() -> None:
    ended = launched_with({resource.RLIMIT_FSIZE: 2**20})
    assert (ended.code, ended.left) == (1, [])
    assert re.fullmatch(r"launch: arena: [\d.]+ MiB of shared memory cannot be had: .*\n", ended.said), ended.said
    for way_out in ("ulimit -f", "text.max_streams", "flow.stream_ring_s", "flow.ring_s"):
        assert way_out in ended.said


@pytest.mark.slow
def test_rings_beyond_all_bounds_are_refused_with_the_bounds() -> None:
    ended = launched_with({}, "flow.ring_s=1e9", "text.max_streams=1000000000")
    assert (ended.code, ended.left) == (2, [])
    assert re.search(r"flow\.ring_s: .*allowed: a number from 1 to 120", ended.said)
    assert re.search(r"text\.max_streams: .*allowed: a whole number from 1 to 1024", ended.said)


@pytest.mark.slow
@pytest.mark.parametrize("files", [10, 20, 64, 127, 128])
def test_with_few_descriptors_it_works_or_says_so(files: int) -> None:
    ended = launched_with({resource.RLIMIT_NOFILE: files})
    assert ended.left == []
    assert ended.code in (0, 1), ended.said
    assert "Traceback" not in ended.said
    if ended.code:
        assert re.search("open files", ended.said), ended.said


NOBODY_ELSE = 54_321
"""A user who has no process: a limit of processes counts all that a user has."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to be root and to become another user")
@pytest.mark.parametrize("most", [4, 30, 400])
def test_with_few_processes_it_works_or_says_so(most: int) -> None:
    """Root has no such limit, hence another user."""
    if shutil.which("setpriv") is None or subprocess.run([*as_user(NOBODY_ELSE), "true"], check=False).returncode:
        pytest.skip("nobody can become another user here")
    ended = launched_with({resource.RLIMIT_NPROC: most}, uid=NOBODY_ELSE)
    assert ended.left == []
    assert ended.code == (1 if most < 100 else 0), ended.said
    if ended.code:
        assert re.fullmatch(r"launch: no more than \d+ processes and threads .*ulimit -u.*\n", ended.said), ended.said


CROWD = 100


@pytest.mark.parametrize("engine", ["babble"])
def test_programs_that_use_up_the_descriptors_harm_nobody_who_is_there(pipeline: Start, engine: str) -> None:
    """Who comes then is not served until somebody leaves. Nothing dies, nobody loses a sample."""
    running = pipeline(WHOLE)
    client = running.client()
    dispatcher = psutil.Process(running.pid("dispatcher"))
    port = int(running.to.rpartition(":")[2])
    with growing(client, TEXT) as speech:
        files = dispatcher.num_fds()
        _, hard = resource.prlimit(dispatcher.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(dispatcher.pid, resource.RLIMIT_NOFILE, (files + 5, hard))
        with ExitStack() as crowd:
            for _ in range(CROWD):
                crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
            until(lambda: dispatcher.num_fds() >= files + 4, "no descriptor is left")
            speech.write(TEXT)
            speech.end()
            finished(speech, engine, TEXT * 2)
    running.client().ping()
    assert dispatcher.pid == running.pid("dispatcher")


# --------------------------------------------------------------------------- clocks

CLOCKS = re.compile(
    r"time\.(time|time_ns|localtime|gmtime|ctime|strftime|mktime)|(datetime|date)\.(now|utcnow|today)|CLOCK_REALTIME"
)
MAY_KNOW_THE_DATE = {
    "launch/console.py": "stamps of printed lines",
    "launch/logs.py": "stamps of logged lines",
    "perf/common.py": "the date of a measurement",
    "perf/report.py": "when the page was made",
    "pipeline/engines/espeak/folder.py": "age of a folder against its modification time, which is a date",
    "pipeline/voices.py": "age of a folder against its modification time, which is a date",
    "workers/gateway/openai_api.py": "since when a model is there, as OpenAI's clients want to know",
}


def dates(source: str) -> list[str]:
    """What in this source asks for the wall clock."""
    tree = ast.parse(source)
    asked = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)]
    asked += [
        f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    ]
    return [one for one in asked if CLOCKS.search(one)]


@pytest.mark.slow
def test_nothing_that_waits_or_measures_asks_for_the_date() -> None:
    asking = {path.relative_to(ROOT).as_posix() for path in SOURCES if dates(path.read_text(encoding="utf-8"))}
    assert asking == set(MAY_KNOW_THE_DATE)


@pytest.mark.parametrize(
    "source",
    ["time.time()", "from time import time", "now = time.time_ns", "datetime.datetime.now()", "datetime.now(UTC)",
     "time.clock_gettime(time.CLOCK_REALTIME)"],
)  # fmt: skip
def test_a_source_that_asks_for_the_date_would_be_noticed(source: str) -> None:
    assert dates(source)


SHIFTED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The wall clock is wrong by so many seconds as the file $CLOCK_SHIFT says, from moment to moment. */
static long shift(void) {
    char text[32] = {0};
    const char *path = getenv("CLOCK_SHIFT");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return 0;
    if (read(fd, text, sizeof text - 1) < 0) text[0] = 0;
    close(fd);
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture
def shift(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which the wall clock is wrong by the seconds in this file."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the wall clock of processes is changed by a preloaded library: Linux with a C compiler")
    source, library, seconds = tmp_path / "shifted.c", tmp_path / "shifted.so", tmp_path / "seconds"
    source.write_text(SHIFTED)
    subprocess.run([compiler, "-shared", "-fPIC", "-O", "-o", library, source, "-ldl"], check=True)
    seconds.write_text("0")
    return {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(seconds)}, seconds


def pids(running: Pipeline) -> dict[str, list[int]]:
    """Who holds which place."""
    return {role: [process.pid for process in some] for role, some in running.children().items()}


def further(speech: Speech, chars: int) -> bool:
    """More than so much of it has been heard."""
    return speech.heard_chars > chars


def assert_undisturbed(running: Pipeline, before: dict[str, list[int]]) -> None:
    """The same processes as before, none of them restarted or complained of."""
    assert pids(running) == before
    assert not any(stage.restarts for stage in running.client().status().stages)
    assert "died" not in running.printed()
    assert "killed" not in running.printed()


@pytest.mark.parametrize("engine", ["babble"])
def test_a_wall_clock_that_jumps_by_an_hour_disturbs_nothing(
    pipeline: Start, engine: str, shift: tuple[dict[str, str], Path]
) -> None:
    environment, seconds = shift
    patience = {"supervise.hang_s": HANG_S, "supervise.progress_s": 0.1}
    running = pipeline(WHOLE | patience | {"player.pace": "realtime"}, output="wav", environment=environment)
    before = pids(running)
    client = running.client()
    speech = client.speak(TEXT, seed=SEED)
    for hours in (1, -2):
        heard = speech.heard_chars
        seconds.write_text(str(3600 * hours))
        until(partial(further, speech, heard), "speech goes on")
        with growing(client, TEXT) as streamed:
            streamed.write(TEXT)
        finished(streamed, engine, TEXT * 2)
    speech.wait()
    assert_undisturbed(running, before)
    running.stop()
    first, *_, last = running.printed().splitlines()
    assert first[:2] != last[:2], "the hour in the log has jumped"
    assert np.array_equal(running.sound(), trimmed(pcm(direct_sound(engine, TEXT, SEED))))


@pytest.mark.parametrize("engine", ["babble"])
def test_a_machine_that_was_suspended_goes_on_where_it_was(pipeline: Start, engine: str) -> None:
    """For longer than a process may be silent. Those who wake up first find the others still asleep."""
    patience = {"supervise.hang_s": HANG_S, "supervise.progress_s": 0.1}
    running = pipeline(WHOLE | patience | {"player.pace": "realtime"}, output="wav")
    before = pids(running)
    client = running.client()
    speech = client.speak(TEXT, seed=SEED)
    until(lambda: speech.heard_chars > 0, "it is heard")
    with growing(client, TEXT) as streamed:
        everybody = [running.process.pid, *(pid for some in before.values() for pid in some)]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5 * HANG_S)  # what is tested is that time passes
        heard = speech.heard_chars
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        streamed.write(TEXT)
    finished(streamed, engine, TEXT * 2)
    assert heard < len(TEXT)
    speech.wait()
    time.sleep(1.2 * HANG_S)  # nor is anybody found to have hung within the deadline
    assert_undisturbed(running, before)
    running.stop()
    assert np.array_equal(running.sound(), trimmed(pcm(direct_sound(engine, TEXT, SEED))))
