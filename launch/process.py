"""Real processes: started in their own session, watched, logged and ended with all their children.

A child inherits exactly three descriptors, named in its arguments: the shared memory, its progress
pipe and the death pipe, whose other end only the supervisor holds: when the supervisor dies, however
it dies, every child reads end of file there. What a child prints arrives here line by line.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from ipc.messages import Role
from ipc.progress import ProgressReader

LINE_BYTES = 8192
READ_BYTES = 65536
READS_AT_ONCE = 8
"""A child that floods its output gets this many reads in a row; then the others have their turn."""


@dataclass(frozen=True)
class Descriptors:
    """What a child inherits."""

    arena: int
    progress: int
    death: int


@dataclass(frozen=True)
class Spec:
    """One process to keep alive: who it is, how it is started, and the processors it may use (empty: all).

    ``vital``: without it nothing can be spoken. What is not starts once all that is vital is ready, and
    when it is lost the others go on.
    """

    role: Role
    index: int
    command: Callable[[Descriptors], list[str]]
    cpus: tuple[int, ...] = ()
    vital: bool = True

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.role} {self.index}"


class Lines:
    """The lines that arrive at a pipe; never blocks."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.ended = False
        self._rest = b""

    def read(self, reads: int = READS_AT_ONCE) -> list[str]:
        """What has arrived, up to ``reads`` reads of it. Endless lines are cut."""
        lines: list[str] = []
        for _ in range(reads):
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                self.ended = True
                break
            *whole, self._rest = (self._rest + data).split(b"\n")
            lines += [_text(line) for line in whole]
            if len(self._rest) > LINE_BYTES:
                lines.append(_text(self._rest))
                self._rest = b""
        return lines

    def close(self) -> list[str]:
        """Close the pipe; returns what it still held."""
        lines = self.read()
        if self._rest:
            lines.append(_text(self._rest))
        os.close(self.fd)
        return lines


class Child:
    """A started process. Raises OSError when it cannot be started."""

    def __init__(
        self, spec: Spec, arena: int, death: int, env: dict[str, str] | None = None, pidfds: bool = True
    ) -> None:
        progress_in, progress_out = os.pipe()
        try:
            lines_in, lines_out = os.pipe()
        except OSError:
            os.close(progress_in)
            os.close(progress_out)
            raise
        inherited = Descriptors(arena, progress_out, death)
        try:
            with _on_cpus(spec.cpus):
                self._process = subprocess.Popen(
                    spec.command(inherited),
                    stdin=subprocess.DEVNULL,
                    stdout=lines_out,
                    stderr=lines_out,
                    pass_fds=(arena, progress_out, death),
                    start_new_session=True,
                    env=env,
                )
        except BaseException:
            os.close(progress_in)
            os.close(lines_in)
            raise
        finally:
            os.close(progress_out)
            os.close(lines_out)
        self.pid = self._process.pid
        self.progress = ProgressReader(progress_in)
        self.output = Lines(lines_in)
        self._pidfd = _pidfd(self.pid) if pidfds else None
        self._facts: psutil.Process | None = None

    def exited(self) -> str | None:
        """How the process ended, once it has; its children end with it. None while it lives."""
        if self._process.returncode is None:
            if not _is_over(self._process):
                return None
            self._kill_group()  # its zombie still holds the number of the group
            self._process.wait()
        return _how(self._process.returncode)

    def terminate(self) -> None:
        """Ask the process to leave."""
        if self._process.returncode is None:
            os.kill(self.pid, signal.SIGTERM)  # Popen.terminate may reap, and leave its children behind

    def kill(self) -> None:
        """End the process and its children at once, stopped ones too."""
        if self._process.returncode is None:
            self._kill_group()

    def end(self, timeout_s: float = 1.0) -> None:
        """Kill and wait a little for the end."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: nothing more can be done
            self._process.wait(timeout_s)

    def descriptors(self) -> list[int]:
        """What to wait at: reports, lines and, where there is such a thing, the exit."""
        return [fd for fd in (self.progress.fd, self.output.fd, self._pidfd) if fd is not None]

    def figures(self) -> tuple[int, float]:
        """Resident bytes and CPU seconds (0, 0 when it is just gone, or they cannot be looked up)."""
        try:
            self._facts = self._facts or psutil.Process(self.pid)
            with self._facts.oneshot():
                times = self._facts.cpu_times()
                return self._facts.memory_info().rss, times.user + times.system
        except (psutil.Error, OSError):  # OSError: too many files are open
            return 0, 0.0

    def close(self) -> list[str]:
        """Free the descriptors; returns the last lines that it printed."""
        self.progress.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        return self.output.close()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            os.killpg(self.pid, signal.SIGKILL)


@contextmanager
def _on_cpus(cpus: tuple[int, ...]) -> Iterator[None]:
    """What is started within inherits these processors from its first instruction on."""
    me = psutil.Process()
    if not cpus or not hasattr(me, "cpu_affinity"):
        yield
        return
    before = me.cpu_affinity()
    me.cpu_affinity(list(cpus))
    try:
        yield
    finally:
        me.cpu_affinity(before)


def _pidfd(pid: int) -> int | None:
    """A descriptor that wakes a selector when the process ends; None where there are none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _is_over(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has ended; where possible without reaping it."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def _text(line: bytes) -> str:
    """A printed line without terminal tricks."""
    text = line[:LINE_BYTES].decode("utf-8", "replace").rstrip()
    return "".join(char if char.isprintable() or char == "\t" else "�" for char in text)
