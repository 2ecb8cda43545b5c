"""A private PulseAudio server with a null sink: a paced, recordable sound device without hardware.

`PulseServer` starts the server in its own runtime directory, records the sink's monitor sample for
sample, and can do to it what happens to real ones: hang (SIGSTOP), die (SIGKILL), come back, lose
the device (unload the sink) and get it again. Nothing of the user's own sound setup is touched.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest

RATE_HZ = 24_000
_PERIOD = 1 << 22
_SINK = "chatterline"


def pulse_missing() -> str:
    """Why no server can be started here (empty: it can)."""
    for program in ("pulseaudio", "pactl", "parec", "pacat"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt install pulseaudio pulseaudio-utils libasound2-plugins)"
    return ""


needs_pulse = pytest.mark.skipif(bool(pulse_missing()), reason=pulse_missing() or "pulseaudio is here")


def counter_signal(first: int, count: int) -> npt.NDArray[np.float32]:
    """Sample k is ((k mod 2²²) + 1) / 2²³: exact in float32, never 0, tells its own position."""
    return ((np.arange(first, first + count, dtype=np.int64) % _PERIOD + 1) / (2 * _PERIOD)).astype(np.float32)


def counters(sound: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The position k of each counter-coded sample; -1 for silence, a fraction for anything altered."""
    return sound.astype(np.float64) * (2 * _PERIOD) - 1


def until(condition: Callable[[], object], what: str, within_s: float = 10.0) -> None:
    """Wait for a condition; fail naming it when the deadline passes."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.02)


class PulseServer:
    """One server with the sink ``chatterline`` (24 kHz float32 mono). Use as a context manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pulse-"))
        self._server: subprocess.Popen[bytes] | None = None
        self._keepalive: subprocess.Popen[bytes] | None = None
        self._recorders: list[Recorder] = []
        self._sink_module = ""

    @property
    def env(self) -> Mapping[str, str]:
        """The environment in which a program's sound goes to this server."""
        inherited = {k: v for k, v in os.environ.items() if k not in ("DBUS_SESSION_BUS_ADDRESS", "DISPLAY")}
        return inherited | {
            "PULSE_RUNTIME_PATH": str(self._folder),
            "PULSE_SERVER": f"unix:{self._folder}/native",
            "PULSE_COOKIE": str(self._folder / "cookie"),
        }

    def __enter__(self) -> PulseServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for recorder in self._recorders:
            recorder.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start (or start again) the server and load the sink."""
        (self._folder / "native").unlink(missing_ok=True)
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
        command += ["--disable-shm=yes", "--realtime=no", "--high-priority=no", f"--log-target=file:{self._folder}/log"]
        command += ["-L", f"module-native-protocol-unix auth-anonymous=1 socket={self._folder}/native"]
        self._server = subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: self._pactl("info").returncode == 0, "the server answers")
        self.load_sink()

    def load_sink(self) -> None:
        """Plug the device in."""
        loaded = self._pactl(
            "load-module", "module-null-sink", f"sink_name={_SINK}", f"rate={RATE_HZ}", "channels=1", "format=float32le"
        )
        assert loaded.returncode == 0, loaded.stderr
        self._sink_module = loaded.stdout.strip()
        self._hasten()
        self._keep_awake()

    def _hasten(self) -> None:
        """Give the server real-time priority, if that is allowed: on a busy machine it is the server that
        stutters otherwise, not what plays into it. (It takes from its start only what rtkit grants.)"""
        assert self._server is not None
        threads = psutil.Process(self._server.pid).threads()
        with suppress(PermissionError, AttributeError):
            for thread in threads:
                os.sched_setscheduler(thread.id, os.SCHED_FIFO, os.sched_param(5))

    def unload_sink(self) -> None:
        """Pull the device out."""
        assert self._pactl("unload-module", self._sink_module).returncode == 0

    def _keep_awake(self) -> None:
        """A null sink that has been idle works in blocks of 2 s; a silent stream keeps it at small ones."""
        self._end(self._keepalive)
        command = ["pacat", "-d", _SINK, "--raw", "--format=float32le", f"--rate={RATE_HZ}", "--channels=1"]
        self._keepalive = subprocess.Popen(
            [*command, "--latency-msec=10", "/dev/zero"], env=self.env, stderr=subprocess.DEVNULL
        )
        recorder = self.record()
        until(recorder.flows, "the sink works in small blocks", within_s=15)
        recorder.stop()

    def _pactl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["pactl", *words], env=self.env, capture_output=True, text=True, check=False, timeout=20)

    def hang(self) -> None:
        """The server stops answering, its connections stay open."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of `hang`."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """The server dies; every connection breaks."""
        self._end(self._server)
        self._end(self._keepalive)
        self._server = self._keepalive = None

    @staticmethod
    def _end(process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            process.kill()
            process.wait()

    def record(self) -> Recorder:
        """Record what the sink plays, from now on."""
        recorder = Recorder(self._folder / f"recording-{len(self._recorders)}", self.env)
        self._recorders.append(recorder)
        return recorder


class Recorder:
    """What a sink played, as float32 samples."""

    def __init__(self, path: Path, env: Mapping[str, str]) -> None:
        self._path = path
        self._began_s = math.inf
        command = ["parec", "-d", f"{_SINK}.monitor", "--raw", "--format=float32le", f"--rate={RATE_HZ}"]
        with path.open("wb") as into:
            self._process = subprocess.Popen(
                [*command, "--channels=1", "--latency-msec=10"], env=env, stdout=into, stderr=subprocess.DEVNULL
            )
        until(lambda: path.stat().st_size > 0, "the recording runs")

    def count(self) -> int:
        """Samples recorded so far. Asked often, it tells when they were: see `second_of`."""
        count = self._path.stat().st_size // 4
        self._began_s = min(self._began_s, time.monotonic() - count / RATE_HZ)
        return count

    def second_of(self, sample: int) -> float:
        """When this sample was recorded (monotonic), as far as it came late least of all."""
        return self._began_s + sample / RATE_HZ

    def sound(self, first: int = 0) -> npt.NDArray[np.float32]:
        """Everything from sample ``first`` on, so far."""
        return np.fromfile(self._path, dtype=np.float32, count=self.count() - first, offset=4 * first)

    def heard(self) -> npt.NDArray[np.float32]:
        """Everything but silence, so far."""
        sound = self.sound()
        heard: npt.NDArray[np.float32] = sound[sound != 0]
        return heard

    def flows(self) -> bool:
        """The recording has grown steadily for a fifth of a second."""
        grown = []
        for _ in range(4):
            before = self._path.stat().st_size
            time.sleep(0.05)
            grown.append(self._path.stat().st_size > before)
        return all(grown)

    def stop(self) -> None:
        """End the recording."""
        self._process.kill()
        self._process.wait()
