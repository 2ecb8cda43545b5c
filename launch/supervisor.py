"""The supervisor: starts, watches, restarts and stops the processes, and tells the dispatcher what it sees.

The loop is

    wait → the dispatcher's messages → pipes and exits → signals → what is due → tell the dispatcher

Its messages come before exits, so that a death that was not its process's fault is forgiven before the
next one is counted.

The dispatcher starts first and stops last; what is not vital (the gateway) starts once the rest is
ready, and may be lost for good without ending anything else. A stop drains: the dispatcher takes no more requests and
says `Drained` when all has been heard; that lasts as long as sound moves. Then each kind of process
in turn gets SIGTERM, and SIGKILL when it does not leave.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from ipc.messages import Drain, Drained, Excuse, Exited, Internal, Processes, ProcessState, Role, Welcome
from launch.lifecycle import Limits, State
from launch.process import Spec
from launch.slot import Ground, Slot
from launch.table import FIRST, STOP_ORDER
from launch.wakes import Wakes

OK, FAILED, UNFINISHED = 0, 1, 4
"""Exit codes of `Supervisor.run`; 128 + the signal that cut it short is another."""

TICK_S = 0.25
"""Reports of processes that run are read this often; exits, what they print and signals wake the loop."""

EAGER_TICK_S = 0.02
"""While something is awaited, and where exits cannot wake the loop."""

FIGURES_S = 2.0
DRAIN_LOOK_S = 0.25
PAUSE_S = 1.0
"""A loop that did not run for longer than this was stopped itself; nobody is blamed for that time."""

STUBBORN = 3
"""After this many times ``stop_timeout_s`` a process that even SIGKILL does not end is left behind."""

ENGINES: tuple[Role, ...] = ("t3", "s3gen")
"""Without these, what is already made can still be heard."""


class Channel(Protocol):
    """What the supervisor needs of `ipc.channels.WorkerChannel`."""

    @property
    def epoch(self) -> int | None: ...
    def receive(self, timeout_s: float) -> list[Internal]: ...
    def send(self, message: Internal) -> bool: ...


class Phase(StrEnum):
    """Of the whole pipeline."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    OVER = "over"


@dataclass(frozen=True)
class Outside:
    """What the supervisor is given: the channel to the dispatcher, ``say(who, text)`` for lines,
    ``moved()`` which grows while sound is made or heard, ``ready()`` to call once all are ready, the
    shared memory's descriptor, the folder for logs, the processes' environment, whether what they
    print is said too, and when (monotonic) the launch began."""

    channel: Channel
    say: Callable[[str, str], None]
    arena: int
    logs: Path
    moved: Callable[[], int] = lambda: 0
    ready: Callable[[], None] = lambda: None
    env: dict[str, str] | None = None
    pidfds: bool = True
    verbose: bool = False
    began: float | None = None


class SteadyClock:
    """Monotonic seconds in which this loop ran: while the machine or the loop itself was stopped
    (Ctrl-Z, a frozen container), nobody could report, so nobody's time passes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen = now()
        self._lost_s = 0.0

    def read(self) -> float:
        """The time; to be asked several times a second."""
        now = self._now()
        if now - self._seen > PAUSE_S:
            self._lost_s += now - self._seen
        self._seen = now
        return now - self._lost_s


class Supervisor:
    """Keeps a table of processes alive until it is told to stop."""

    def __init__(self, specs: Sequence[Spec], limits: Limits, outside: Outside) -> None:
        self.phase = Phase.STARTING
        self.table: tuple[ProcessState, ...] = ()
        self._outside = outside
        self._limits = limits
        self._selector = selectors.DefaultSelector()
        self._death_in, self._death_out = os.pipe()
        self._wakes = Wakes()
        self._selector.register(self._wakes.fd, selectors.EVENT_READ)
        ground = Ground(
            selector=self._selector,
            say=outside.say,
            arena=outside.arena,
            death=self._death_in,
            logs=outside.logs,
            limits=limits,
            env=outside.env,
            pidfds=outside.pidfds,
            verbose=outside.verbose,
        )
        self._slots = [Slot(spec, ground) for spec in specs]
        self._first = [slot for slot in self._slots if slot.spec.role == FIRST]
        self._vital = [slot for slot in self._slots if slot.spec.vital]
        self._clock = SteadyClock()
        self._now = self._clock.read()
        self._began = self._now if outside.began is None else outside.began
        self._code = OK
        self._told: tuple[ProcessState, ...] | None = None
        self._figures_at = 0.0
        self._moved, self._moved_at, self._looked_at = 0, 0.0, 0.0
        self._stop_order: list[Role] = []
        self._stop_since = 0.0

    def run(self) -> int:
        """Until everything has stopped; returns the exit code. From the main thread only: processes
        die with the thread that started them."""
        with self._wakes.handling():
            try:
                while self.phase is not Phase.OVER:
                    self._wait()
                    self._hear_dispatcher()
                    self._read_processes()
                    self._heed_wakes()
                    self._act()
                    self._tell_dispatcher()
            finally:
                self._close()
        return self._code

    def ask_drain(self, code: int = OK) -> None:
        """Stop when all has been heard, with this exit code. From any thread."""
        self._wakes.ask_drain(code)

    # ---- one turn of the loop

    def _wait(self) -> None:
        """For anything to happen, but not longer than until something is due."""
        steady = self.phase is Phase.RUNNING and self._outside.channel.epoch is not None and self._outside.pidfds
        timeout_s = TICK_S if steady else EAGER_TICK_S
        starts = [at for slot in self._startable() if (at := slot.life.next_due()) is not None]
        timeout_s = min([timeout_s, *(max(0.0, at - self._now) for at in starts)])
        self._selector.select(timeout_s)
        self._now = self._clock.read()

    def _read_processes(self) -> None:
        for slot in self._slots:
            if (death := slot.read(self._now)) is not None:
                self._outside.channel.send(Exited(slot.spec.role, slot.spec.index, death.pid, death.reason))

    def _heed_wakes(self) -> None:
        """The first Ctrl-C or SIGTERM drains, the second stops, the third kills; SIGHUP stops."""
        for code in self._wakes.drains():
            self._code = self._code or code
            self._drain("finishing what has been asked for")
        for number in self._wakes.signals():
            if self.phase is Phase.STOPPING:
                self._say(f"{number.name}: killing what is left")
                for slot in self._slots:
                    slot.kill(self._now)
            elif number is signal.SIGHUP or self.phase is not Phase.RUNNING:
                self._code = 128 + number
                self._stop(f"{number.name}: stopping at once")
            else:
                self._drain(f"{number.name}: finishing what has been asked for; once more stops at once")

    def _hear_dispatcher(self) -> None:
        for message in self._outside.channel.receive(0.0):
            match message:
                case Welcome():
                    self._told = None
                    self._tell_dispatcher()
                    if self.phase is Phase.DRAINING:
                        self._outside.channel.send(Drain())
                case Drained() if self.phase is Phase.DRAINING:
                    self._stop("all has been heard; stopping")
                case Excuse(role, index, pid):
                    for slot in self._slots:
                        if (slot.spec.role, slot.spec.index) == (role, index):
                            slot.life.excused(pid)
                case _:
                    pass

    def _act(self) -> None:
        """Do what the life cycles ask for, then move the whole pipeline on."""
        for slot in self._startable():
            slot.act(self._now, may_spawn=self.phase is not Phase.STOPPING)
        lost = [slot for slot in self._vital if slot.life.state is State.FATAL]
        match self.phase:
            case Phase.STARTING | Phase.RUNNING | Phase.DRAINING if lost and self._gave_up(lost):
                pass
            case Phase.STARTING if all(slot.life.state is State.RUNNING for slot in self._vital):
                self.phase = Phase.RUNNING
                self._say(f"ready in {self._now - self._began:.1f} s")
                self._outside.ready()
            case Phase.DRAINING:
                self._watch_drain()
            case Phase.STOPPING:
                self._go_on_stopping()

    def _tell_dispatcher(self) -> None:
        """The table at every change, and with fresh figures now and then."""
        if self._now >= self._figures_at:
            self._figures_at = self._now + FIGURES_S
            for slot in self._slots:
                slot.measure()
        self.table = tuple(slot.described() for slot in self._slots)
        if self.table != self._told and self._outside.channel.send(Processes(self.table)):
            self._told = self.table

    # ---- the whole pipeline

    def _startable(self) -> list[Slot]:
        """Those whose turn has come: the dispatcher, then what is vital, then the rest."""
        if not all(slot.life.was_ready for slot in self._first):
            return self._first
        if not all(slot.life.was_ready for slot in self._vital):
            return self._vital
        return self._slots

    def _gave_up(self, lost: Sequence[Slot]) -> bool:
        """Processes are lost for good: let be heard what still can, then stop. False when that is
        already on its way."""
        bare = all(slot.spec.role in ENGINES for slot in lost)
        if bare and self.phase is Phase.DRAINING and self._code == FAILED:
            return False
        self._code = FAILED
        what = "; ".join(f"{slot.spec.name} is lost, see {slot.log.path}" for slot in lost)
        if bare and self.phase is not Phase.STARTING:
            self._drain(what)
        else:
            self._stop(what)
        return True

    def _drain(self, why: str) -> None:
        if self.phase not in (Phase.STARTING, Phase.RUNNING):
            return
        self._say(why)
        self.phase = Phase.DRAINING
        self._moved, self._moved_at = self._outside.moved(), self._now
        self._outside.channel.send(Drain())

    def _watch_drain(self) -> None:
        """Draining may take minutes, as long as sound moves; without, it has ``stop_timeout_s`` or what
        the engines declared for what they are doing."""
        if self._now < self._looked_at + DRAIN_LOOK_S:
            return
        self._looked_at = self._now
        if (moved := self._outside.moved()) != self._moved:
            self._moved, self._moved_at = moved, self._now
        engines = [slot.life for slot in self._slots if slot.spec.role in ENGINES and slot.life.live]
        patience_s = max([self._limits.stop_timeout_s, *(life.patience_s for life in engines)])
        if self._now - self._moved_at > patience_s:
            self._code = self._code or UNFINISHED
            self._stop(f"no sound has moved for {patience_s:g} s, so what is left stays unheard; stopping")

    def _stop(self, why: str) -> None:
        if self.phase is Phase.STOPPING:
            return
        self._say(why)
        self.phase = Phase.STOPPING
        self._stop_order = list(STOP_ORDER)
        self._stop_since = self._now

    def _go_on_stopping(self) -> None:
        """One kind of process after the other, each together."""
        while self._stop_order:
            group = [slot for slot in self._slots if slot.spec.role == self._stop_order[0]]
            for slot in group:
                slot.life.stop(self._now)
                slot.act(self._now, may_spawn=False)
            left = [slot.spec.name for slot in group if slot.life.live]
            if left and self._now - self._stop_since <= STUBBORN * self._limits.stop_timeout_s:
                return
            if left:
                self._say(f"{', '.join(left)}: not even SIGKILL ends it; left behind")
            self._stop_order.pop(0)
            self._stop_since = self._now
        self.phase = Phase.OVER
        self._say(f"stopped, exit code {self._code}")

    def _say(self, text: str) -> None:
        self._outside.say("supervisor", text)

    def _close(self) -> None:
        """Whatever happened, nothing outlives this."""
        for slot in self._slots:
            slot.close()
        self._wakes.close()
        self._selector.close()
        os.close(self._death_in)
        os.close(self._death_out)
