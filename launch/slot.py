"""One process to keep alive: its life cycle (what should happen), its child (what does) and its log."""

from __future__ import annotations

import selectors
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipc.messages import ProcessState
from launch.lifecycle import Kill, Lifecycle, Limits, Spawn, State, Terminate
from launch.logs import Log
from launch.process import Child, Spec

EXPECTED_ENDS = ("exit code 0", "killed by SIGTERM")
"""How a process that was asked to leave may end without a word."""


@dataclass(frozen=True)
class Ground:
    """What all processes share. ``say(who, text)`` prints a line, ``arena`` and ``death`` are the
    descriptors that every process inherits, ``logs`` is the folder for what they print; with ``verbose``
    it is said as well."""

    selector: selectors.BaseSelector
    say: Callable[[str, str], None]
    arena: int
    death: int
    logs: Path
    limits: Limits
    env: dict[str, str] | None = None
    pidfds: bool = True
    verbose: bool = False


@dataclass(frozen=True)
class Death:
    """A process is gone for certain."""

    pid: int
    reason: str


class Slot:
    """The process changes, the slot stays."""

    def __init__(self, spec: Spec, ground: Ground) -> None:
        self.spec = spec
        self.life = Lifecycle(ground.limits)
        self.log = Log(ground.logs / f"{spec.role}-{spec.index}.log")
        self._ground = ground
        self._child: Child | None = None
        self._spawned_at = 0.0
        self._rss_bytes, self._cpu_s = 0, 0.0

    def act(self, now: float, may_spawn: bool) -> None:
        """Do what is due. Where nothing may start any more, a start that is due is called off."""
        match self.life.due(now):
            case Spawn() if not may_spawn:
                self.life.stop(now)
            case Spawn():
                self._spawn(now)
            case Terminate() if self._child is not None:
                self._child.terminate()
            case Kill(reason) if self._child is not None:
                self._say(f"{reason}; killed")
                self._child.kill()

    def read(self, now: float) -> Death | None:
        """Take in what the process reports and prints, and whether it is over."""
        child = self._child
        if child is None:
            return None
        over = child.exited()  # asked before reading: what it said before it died is read below
        self._read_progress(child, now)
        self._take(child.output.read())
        if over is not None:
            return self._bury(child, over, now)
        if child.progress.closed:
            self._unwatch(child.progress.fd)
        if child.output.ended:
            self._unwatch(child.output.fd)
        return None

    def kill(self, now: float) -> None:
        """End the process at once and for good."""
        self.life.stop(now)
        if self._child is not None:
            self._child.kill()

    def measure(self) -> None:
        """Look up memory and CPU time."""
        self._rss_bytes, self._cpu_s = self._child.figures() if self._child is not None else (0, 0.0)

    def described(self) -> ProcessState:
        """The process as the dispatcher and the view are told."""
        life, spec = self.life, self.spec
        return ProcessState(
            spec.role, spec.index, life.pid, str(life.state), life.restarts, self._rss_bytes, self._cpu_s
        )

    def close(self) -> None:
        """Leave nothing behind."""
        if self._child is not None:
            self._child.end()
            self.log.write(self._child.close())
        self.log.close()

    def _spawn(self, now: float) -> None:
        ground = self._ground
        try:
            child = Child(self.spec, ground.arena, ground.death, ground.env, ground.pidfds)
        except OSError as error:
            self.life.not_spawned(now)
            self._say(f"cannot be started: {error}; {self._next(now)}")
            return
        self._child, self._spawned_at = child, now
        self.life.spawned(child.pid, now)
        self.log.mark(f"{self.spec.name} started, pid {child.pid}")
        for fd in child.descriptors():
            ground.selector.register(fd, selectors.EVENT_READ)

    def _read_progress(self, child: Child, now: float) -> None:
        for line in child.progress.read():
            if line.progress is not None:
                self.life.progressed(line.progress, line.doing, line.deadline_s, now)
            if line.error is not None:
                self.life.failed(line.error)
            if line.ready is not None and self.life.state is State.STARTING:
                self.life.ready(now)
                self._unwatch(child.progress.fd)  # from now on it says nothing that could not wait for a tick
                self._say(f"ready in {now - self._spawned_at:.1f} s: {line.ready}")

    def _bury(self, child: Child, how: str, now: float) -> Death:
        """Free what is left of the process, and say how it died."""
        for fd in child.descriptors():
            self._unwatch(fd)
        self._take(child.close())
        self._child = None
        wanted = self.life.state is State.STOPPING
        reason = self.life.exited(how, now)
        last = self.log.last()
        self.log.mark(f"{self.spec.name} ended, pid {child.pid}: {reason}")
        if not (wanted and how in EXPECTED_ENDS):
            self._say(f"died (pid {child.pid}): {reason}; {self._next(now)}")
            for line in last if not self._ground.verbose else ():
                self._say(f"| {line}")
        self._say_news()
        return Death(child.pid, reason)

    def _take(self, lines: list[str]) -> None:
        self.log.write(lines)
        self._say_news()
        for line in lines if self._ground.verbose else ():
            self._say(f"| {line}")

    def _say_news(self) -> None:
        if news := self.log.news():
            self._say(news)

    def _next(self, now: float) -> str:
        limits = self._ground.limits
        match self.life.state:
            case State.BACKOFF:
                wait_s = max(0.0, (self.life.next_due() or now) - now)
                return f"restart {self.life.restarts} in {wait_s:.1f} s"
            case State.FATAL if self.life.error and not self.life.was_ready:
                return "it cannot start here"
            case State.FATAL:
                return f"given up after {limits.max_restarts} restarts within {limits.within_s:g} s"
        return "not restarted"

    def _unwatch(self, fd: int) -> None:
        if fd in self._ground.selector.get_map():
            self._ground.selector.unregister(fd)

    def _say(self, text: str) -> None:
        self._ground.say(self.spec.name, text)
