"""The life of one supervised process, as a pure state machine.

                spawned            ready
    BACKOFF ───────────► STARTING ───────► RUNNING
       ▲                    │                 │           stop() from any state
       └────────────────────┴─────────────────┘           ────────────────────► STOPPING ──► EXITED
          exited, restarts left                 exited, none left: FATAL

Events come in as calls with the time; what is to be done comes out of `due`: start it, ask it to
leave, kill it. Nothing here knows processes, pipes or clocks, so that every schedule can be tested.
All times are seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
STEADY_S = 5.0
"""A process that was RUNNING this long starts again with the shortest back-off."""


class State(StrEnum):
    """As supervisord names them."""

    BACKOFF = "BACKOFF"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    FATAL = "FATAL"
    EXITED = "EXITED"


LIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})
"""States in which there is a process."""


@dataclass(frozen=True)
class Spawn:
    """Start the process now."""


@dataclass(frozen=True)
class Terminate:
    """Ask the process to leave (SIGTERM)."""


@dataclass(frozen=True)
class Kill:
    """End the process and its children at once (SIGKILL), for this reason."""

    reason: str


Action = Spawn | Terminate | Kill


@dataclass(frozen=True)
class Limits:
    """supervise.* of pipeline.yaml, as far as one process is concerned."""

    hang_s: float
    start_timeout_s: float
    stop_timeout_s: float
    max_restarts: int
    within_s: float


@dataclass
class Lifecycle:
    """One process slot: the process changes, the slot stays."""

    limits: Limits
    state: State = State.BACKOFF
    pid: int = 0
    restarts: int = 0
    was_ready: bool = False
    doing: str = ""
    error: str = ""
    _at: float = 0.0
    _moved_at: float | None = None
    _deadline_s: float = 0.0
    _count: int = -1
    _backoff_s: float = FIRST_BACKOFF_S
    _killed: str = ""
    _asked: bool = False
    _deaths: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def live(self) -> bool:
        """Whether there is a process."""
        return self.state in LIVE

    @property
    def patience_s(self) -> float:
        """How long the process may be silent: what it declared for what it is doing, at least ``hang_s``."""
        return max(self.limits.hang_s, self._deadline_s)

    def spawned(self, pid: int, now: float) -> None:
        """The process exists."""
        self.state, self.pid, self._at = State.STARTING, pid, now
        self.doing, self.error, self._killed = "starting", "", ""
        self._count, self._moved_at, self._deadline_s = -1, None, 0.0

    def progressed(self, count: int, doing: str, deadline_s: float, now: float) -> None:
        """The process reported; only a counter that moved is a sign of life."""
        if count != self._count:
            self._count, self._moved_at = count, now
            self.doing, self._deadline_s = doing, deadline_s

    def ready(self, now: float) -> None:
        """The process is loaded and takes work."""
        if self.state is State.STARTING:
            self.state, self._at, self.was_ready = State.RUNNING, now, True
            self._moved_at = now

    def failed(self, reason: str) -> None:
        """The process said why it is about to exit."""
        self.error = reason

    def excused(self, pid: int) -> None:
        """That death does not count towards the restart limit."""
        self._deaths = deque(death for death in self._deaths if death[1] != pid)
        if not self._deaths:
            self._backoff_s = FIRST_BACKOFF_S

    def exited(self, how: str, now: float) -> str:
        """The process is gone; returns why, in words: ``how`` with what is known here."""
        reason = f"{self._killed} ({how})" if self._killed else how
        if self.error:
            reason = f"{reason}: {self.error}"
        steady = self.state is State.RUNNING and now - self._at >= STEADY_S
        if self.state is State.STOPPING:
            self.state = State.EXITED
        elif self.error and not self.was_ready:
            self.state = State.FATAL  # it said itself that it cannot start here: again would be the same
        else:
            self._retry(now, steady)
        self.pid = 0
        return reason

    def not_spawned(self, now: float) -> None:
        """The process could not even be started."""
        self._retry(now, steady=False)

    def stop(self, now: float) -> None:
        """It shall leave for good. FATAL stays FATAL."""
        if self.state in (State.STARTING, State.RUNNING):
            self.state, self._at, self._asked, self._killed = State.STOPPING, now, False, ""
        elif self.state is State.BACKOFF:
            self.state = State.EXITED

    def due(self, now: float) -> Action | None:
        """What is to be done now; each action is given once."""
        match self.state:
            case State.BACKOFF:
                return Spawn() if now >= self._at else None
            case State.STARTING if now - self._at > self.limits.start_timeout_s:
                return self._kill(f"not ready within {self.limits.start_timeout_s:g} s (supervise.start_timeout_s)")
            case State.STARTING | State.RUNNING if self._silent_s(now) > self.patience_s:
                return self._kill(f"hung for {self._silent_s(now):.1f} s while {self.doing}")
            case State.STOPPING if not self._asked:
                self._asked = True
                return Terminate()
            case State.STOPPING if now - self._at > self.limits.stop_timeout_s:
                return self._kill(f"did not leave within {self.limits.stop_timeout_s:g} s")
        return None

    def next_due(self) -> float | None:
        """When `due` is worth asking again at the latest, for the states that wait for the clock."""
        return self._at if self.state is State.BACKOFF else None

    def _silent_s(self, now: float) -> float:
        """Seconds since the counter moved; a process that never reported only has its start timeout."""
        return now - self._moved_at if self._moved_at is not None else 0.0

    def _kill(self, reason: str) -> Kill | None:
        if self._killed:
            return None
        self._killed = reason
        return Kill(reason)

    def _retry(self, now: float, steady: bool) -> None:
        """Back off, or give up when it died too often within ``within_s``."""
        self._deaths.append((now, self.pid))
        while now - self._deaths[0][0] > self.limits.within_s:
            self._deaths.popleft()
        if len(self._deaths) > self.limits.max_restarts:
            self.state = State.FATAL
            return
        if steady:
            self._backoff_s = FIRST_BACKOFF_S
        self.state, self._at = State.BACKOFF, now + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, LONGEST_BACKOFF_S)
        self.restarts += 1
