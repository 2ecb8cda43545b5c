"""A pipeline without processes, sockets, disk or clock: everything else of it is the real code.

The dispatcher (`workers.dispatcher`), its state machine, links (`ipc.channels`, `ipc.link`), rings
(`ipc.ring`), listeners and the bookkeeping of t3 and s3gen run as they are. Simulated are the engine,
the loudspeaker, the supervisor, the operating system's part of the sockets, the journal's file, and time.

What a simulated connection may do is what a local socket may do: bytes come late; a full pipe refuses a
packet (`ipc.link` sends it again); a connection that ends loses what was on its way, in both directions;
of what a killed process had sent, a beginning may still arrive, even after the report of its death, which
comes over another connection.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import ipc.channels
import workers.dispatcher
import workers.outbox
from ipc.messages import (
    SAMPLE_RATE,
    Event,
    Request,
    Role,
)
from ipc.ring import Arena
from pipeline.engines.base import resolve_voice
from pipeline.events import Command, Input
from pipeline.journal import Op
from tests.pipeline.simulated.clock import Alarm, Clock
from tests.pipeline.simulated.journal import MemoryJournal, Pages
from tests.pipeline.simulated.processes import T3, Player, Process, S3gen, Supervisor
from tests.pipeline.simulated.programs import Program
from tests.pipeline.simulated.setup import Died, Setup
from tests.pipeline.simulated.sockets import Dealer, Line, Router, Sockets
from workers.dispatcher import DispatcherProcess


class MortalDispatcher(DispatcherProcess):
    """The real process, which may die between any two of its commands."""

    def __init__(self, room: MachineRoom, life: Any) -> None:
        self.room = room
        super().__init__(life, room.config, room.arena)
        handle = self.machine.handle

        def told(event: Input, now_s: float) -> list[Command]:
            room.happened(event)
            return handle(event, now_s)

        self.machine.handle = told  # type: ignore[method-assign]

    def _write(self, ops: list[Op]) -> None:
        if ops:
            self.room.command()
            self.room.journaled(ops)
            super()._write(ops)

    def _do(self, command: Command, received_s: float | None) -> None:
        self.room.command()
        self.room.commanded(command)
        super()._do(command, received_s)


class MachineRoom:
    """All of it. What happens is told by the methods that a run overrides (at the foot)."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.clock = setup, Clock()
        self.rng = random.Random(setup.seed)
        self.turns = 0
        self.commands = 0
        self.deaths: dict[str, int] = {}
        self._pids = itertools.count(1000)
        self._routes = itertools.count(1)
        self.pages = Pages()
        self.config = setup.config()
        ring, stream = round(setup.ring_s * SAMPLE_RATE), round(setup.stream_ring_s * SAMPLE_RATE)
        self.arena = Arena.create(ring, stream, setup.streams)
        self.router = Router(self)
        self.requests: list[tuple[Program, Request]] = []
        self.programs: dict[bytes, Program] = {}
        self.processes: list[Process] = []
        self._all_dealers: list[Dealer] = []
        self.dispatcher: MortalDispatcher | None = None
        self.epoch = 0
        self._die_after = -1
        self._kept = 0
        self._dispatcher_stalled_s = 0.0
        self._alarm = Alarm(self.clock, self._turn)
        self.refusing: dict[str, float] = {}
        """Connections that refuse packets, and until when."""
        self.slow: dict[str, tuple[float, float]] = {}
        """Connections that are slow: until when, by how much."""
        self.poison: dict[str, str] = {"t3": "", "s3gen": ""}
        """Letters that kill a worker of this role."""
        self.bad: dict[str, str] = {"t3": "", "s3gen": ""}
        """Letters that an engine refuses."""
        self.supervisor = Supervisor(self)

    # ---------------------------------------------------------------- wires

    def new_pid(self) -> int:
        return next(self._pids)

    def refuses(self, name: str) -> bool:
        return self.clock.now_s < self.refusing.get(name, 0.0) and self.rng.random() < 0.5

    def carry(self, line: Line, direction: int, data: bytes) -> None:
        """Bytes on their way, in order."""
        until_s, by_s = self.slow.get(line.dealer.name, (0.0, 0.0))
        late_s = by_s if self.clock.now_s < until_s else 0.0
        at_s = max(line.last_s[direction], self.clock.now_s + self.setup.latency_s + late_s)
        line.last_s[direction] = at_s

        def arrive() -> None:
            if not line.open or line.router is not self.router:
                return
            if direction:
                line.dealer.take(data)
            else:
                self.router.inbox.append((line.route, data))
                self._arrived()

        self.clock.at(at_s, arrive)

    def carry_request(self, program: Program, request: Request) -> None:
        epoch = self.epoch

        def arrive() -> None:
            if self.epoch == epoch and self.dispatcher is not None:
                self.requests.append((program, request))
                self._arrived()

        self.clock.after(self.setup.latency_s, arrive)

    def connect(self, dealer: Dealer, after_s: float = 0.01) -> None:
        """The process's socket connects as soon as there is a dispatcher."""
        if dealer not in self._all_dealers:
            self._all_dealers.append(dealer)

        def connected() -> None:
            if dealer.line is None and self.dispatcher is not None and dealer in self._all_dealers:
                line = Line(next(self._routes).to_bytes(4, "big"), dealer, self.router)
                self.router.lines[line.route] = line
                dealer.connect(line)

        self.clock.after(after_s, connected)

    def cut(self, process: Process) -> None:
        """A connection breaks and is made again."""
        process.dealer.disconnect()
        self.connect(process.dealer)

    # ---------------------------------------------------------------- processes

    def start(self, role: Role, index: int) -> None:
        process = T3(self, index) if role == "t3" else S3gen(self, index) if role == "s3gen" else Player(self)
        self.processes.append(process)
        self.supervisor.turn_soon()

    def find(self, role: str, index: int) -> Process | None:
        return next((p for p in self.processes if (p.role, p.index) == (role, index)), None)

    def died(self, process: Process, kept: bool = False, down_s: float | None = None) -> None:
        """A process is gone. With ``kept`` what it had sent still arrives."""
        if not process.alive:
            return
        process.alive = False
        self.deaths[process.role] = self.deaths.get(process.role, 0) + 1
        self._all_dealers.remove(process.dealer)
        if not kept and process.dealer.line is not None:
            process.dealer.line.open = False
        self.fault()
        down_s = self.setup.restart_s if down_s is None else down_s

        def seen() -> None:
            self.processes.remove(process)
            self.supervisor.exited(process)
            self.clock.after(down_s, lambda: self.start(process.role, process.index))

        self.clock.after(0.002, seen)

    def start_dispatcher(self) -> None:
        """A new dispatcher, from what the journal has."""
        self.router = Router(self)
        self.requests = []
        self.epoch += 1
        text = SimpleNamespace(write_text=lambda _text: None)
        life = SimpleNamespace(endpoints=SimpleNamespace(journal=self.pages, work="", text=text), wake_fd=None)
        try:
            self.dispatcher = MortalDispatcher(self, life)
            self.dispatcher.restore()
        except Died:
            self._dispatcher_died(0)
            return
        self._alarm.at(self.clock.now_s)
        for dealer in self._all_dealers:
            self.connect(dealer)
        for program in self.programs.values():
            self.clock.after(0.02, program.connected)

    def kill_dispatcher(self, after: int = 0, kept: int = 0) -> None:
        """The dispatcher dies after so many more commands; programs still get ``kept`` messages each."""
        self._kept = kept
        if after:
            self._die_after = after
        elif self.dispatcher is not None:
            self._dispatcher_died(kept)

    def _dispatcher_died(self, kept: int) -> None:
        self.dispatcher = None
        self._die_after = -1
        self.deaths["dispatcher"] = self.deaths.get("dispatcher", 0) + 1
        for dealer in self._all_dealers:
            dealer.disconnect()
        for program in self.programs.values():
            program.cut(kept)
        self.fault()
        self.clock.after(self.setup.restart_s, self.start_dispatcher)

    def stall_dispatcher(self, seconds: float) -> None:
        self._dispatcher_stalled_s = self.clock.now_s + seconds

    def command(self) -> None:
        """A command is about to be carried out."""
        self.commands += 1
        if self._die_after >= 0:
            self._die_after -= 1
            if self._die_after < 0:
                raise Died

    def _arrived(self) -> None:
        self._alarm.at(self.clock.now_s + 2e-4)

    def _turn(self) -> None:
        dispatcher = self.dispatcher
        if dispatcher is None:
            return
        if self.clock.now_s < self._dispatcher_stalled_s:
            self._alarm.at(self._dispatcher_stalled_s)
            return
        try:
            dispatcher.turn(0.0)
        except Died:
            self._dispatcher_died(self._kept)
            return
        self.turns += 1
        self.turned()
        wait_s = max(5e-4, dispatcher._wait_s(self.clock.now_s))
        self._alarm.at(min(self.clock.now_s + wait_s, dispatcher.sockets.next_due_s()))

    def sound_written(self, slot: int) -> None:
        if slot == 0:
            player = self.find("player", 0)
            if player is not None:
                player.turn_soon()

    # ---------------------------------------------------------------- the engine's moods

    def deadly(self, role: str, text: str) -> bool:
        return any(letter in text for letter in self.poison[role])

    def refused(self, role: str, text: str) -> bool:
        return any(letter in text for letter in self.bad[role])

    # ---------------------------------------------------------------- what a run wants to know

    def fault(self) -> None:
        """Something died."""

    def happened(self, event: Input) -> None:
        """The state machine is about to be told this."""

    def turned(self) -> None:
        """The dispatcher has finished a turn."""

    def commanded(self, command: Command) -> None:
        """The dispatcher is about to do this."""

    def journaled(self, ops: list[Op]) -> None:
        """The dispatcher is about to write this into its journal."""

    def heard(self, samples: Any) -> None:
        """The loudspeaker plays this."""

    def received(self, program: Program, epoch: int, event: Event, pcm: memoryview | None) -> None:
        """A program got an event that the dispatcher of ``epoch`` sent."""

    def reconnected(self, program: Program) -> None:
        """A program is connected to the (next) dispatcher."""


@contextmanager
def simulated(room: MachineRoom) -> Iterator[None]:
    """Have the modules that look at clock, sockets and disk look at the machine room."""
    time = SimpleNamespace(monotonic=room.clock.monotonic, perf_counter=room.clock.monotonic)
    sessions = itertools.count(1)
    secrets = SimpleNamespace(randbits=lambda _bits: 2 * next(sessions))
    engine = SimpleNamespace(name="labels", resolve=resolve_voice)
    voices = SimpleNamespace(names=lambda: (), changed=lambda: False, forget=lambda _client: None)

    def sockets(*arguments: Any) -> Sockets:
        made = Sockets.__new__(Sockets)
        made.room = room
        made.__init__(*arguments)  # type: ignore[misc]
        return made

    stand_ins: dict[ModuleType, dict[str, Any]] = {
        ipc.channels: {
            "time": time,
            "secrets": secrets,
            "recv_monitor_message": lambda monitor: {"event": monitor.dealer.happened.popleft()},
        },
        workers.outbox: {"time": time},
        workers.dispatcher: {
            "time": time,
            "Journal": MemoryJournal,
            "DispatcherSockets": sockets,
            "VoiceStore": lambda _path: voices,
            "load_engine": lambda _name: engine,
            "_warm_up": lambda: None,
        },
    }
    with ExitStack() as stack:
        for module, names in stand_ins.items():
            for name, value in names.items():
                stack.enter_context(patch.object(module, name, value))
        yield
