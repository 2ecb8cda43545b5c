"""The processes around the dispatcher: the real bookkeeping of t3 and s3gen, a loudspeaker, a supervisor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ipc.messages import (
    SAMPLE_RATE,
    Drain,
    Drained,
    Exited,
    Hello,
    Internal,
    PlayerFacts,
    Probe,
    Probed,
    Processes,
    ProcessState,
    Ready,
    Role,
    Welcome,
)
from ipc.ring import ReaderState, RingReader, RingWriter
from tests.pipeline.simulated.clock import Alarm
from tests.pipeline.simulated.engine import LabelSound, LabelTokens
from tests.pipeline.simulated.setup import TOKEN_S, Died
from tests.pipeline.simulated.sockets import Channel, Dealer
from workers.rendering import AudioStreams
from workers.t3 import TokenStreams

if TYPE_CHECKING:
    from tests.pipeline.simulated.room import MachineRoom

FIGURES_S = 1.0
BLOCKED_LOOK_S = 0.05


class Process:
    """A worker process: its channel, and when its loop runs."""

    def __init__(self, room: MachineRoom, role: Role, index: int, facts: Any) -> None:
        self.room, self.role, self.index, self.facts = room, role, index, facts
        self.pid = room.new_pid()
        self.alive, self.busy = True, False
        self.loaded_s = room.clock.now_s + room.setup.load_s
        self.stalled_s = 0.0
        self.die_at: str = ""
        self.announce = False
        self.alarm = Alarm(room.clock, self._woken)
        self.dealer = Dealer(room, f"{role}-{index}", self.arrived)
        self.channel = Channel(self.dealer, Hello(role, index, self.pid, 0))
        self.alarm.at(self.loaded_s)
        room.connect(self.dealer)

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    def arrived(self) -> None:
        """Something is in its sockets."""
        if self.alive:
            self.alarm.at(self.room.clock.now_s)

    def _woken(self) -> None:
        now_s = self.room.clock.now_s
        if not self.alive or self.busy:
            return
        if now_s < max(self.loaded_s, self.stalled_s):
            self.alarm.at(max(self.loaded_s, self.stalled_s))
            return
        try:
            self.turn()
        except Died:
            self.room.died(self)

    def turn(self) -> None:
        """One turn of its loop."""
        if self.announce:
            self.announce = False
            self.channel.send(Ready(self.facts))
        for message in self.channel.receive(0.0):
            self.take(message)
        self.work()
        if self.announce:
            self.alarm.at(self.room.clock.now_s)
        self.alarm.at(self.channel.due_s())

    def take(self, message: Internal) -> None:
        match message:
            case Welcome():
                self.announce = True
                self.handle(message)
            case Probe(probe):
                self.channel.send(Probed(probe))
            case _:
                self.handle(message)

    def handle(self, message: Internal) -> None:
        """A message for the stage's logic."""

    def work(self) -> None:
        """What the loop does after it has received."""

    def send(self, messages: Iterable[Internal]) -> None:
        for message in messages:
            self.channel.send(message)

    def compute(self, cost_s: float, act: Callable[[], list[Internal]]) -> None:
        """Be busy for so long, then act, and report a moment later: it may die in between."""
        self.busy = True

        def done() -> None:
            if not self.alive:
                return
            if self.stalled_s > self.room.clock.now_s:
                self.room.clock.at(self.stalled_s, done)
                return
            try:
                made = act()
                if self.die_at == "step":
                    raise Died
            except Died:
                self.room.died(self)
                return
            self.room.clock.after(1e-4, lambda: report(made))

        def report(made: list[Internal]) -> None:
            if self.alive:
                self.send(made)
                self.busy = False
                self.turn_soon()

        self.room.clock.after(cost_s, done)

    def turn_soon(self) -> None:
        self.alarm.at(self.room.clock.now_s)


class T3(Process):
    def __init__(self, room: MachineRoom, index: int) -> None:
        model = LabelTokens(room)
        self.streams = TokenStreams(model)
        super().__init__(room, "t3", index, model.facts)

    def handle(self, message: Internal) -> None:
        self.send(self.streams.handle(message))

    def work(self) -> None:
        if self.streams.runnable:
            self.compute(self.room.setup.t3_step_s, self.streams.step)


class S3gen(Process):
    def __init__(self, room: MachineRoom, index: int) -> None:
        self.model = LabelSound(room)
        self.streams = AudioStreams(self.model, self._writer, lambda: self.model.spent_s)
        super().__init__(room, "s3gen", index, self.model.facts)

    def _writer(self, slot: int, lease: int) -> Writer:
        return Writer(self, slot, self.room.arena.writer(slot, lease))

    def handle(self, message: Internal) -> None:
        self.send(self.streams.handle(message))

    def work(self) -> None:
        setup = self.room.setup
        if self.streams.ready:
            self.compute(setup.first_chunk * TOKEN_S * setup.render_ratio, self.streams.step)
            return
        self.send(self.streams.step())
        if self.streams.ready:
            self.turn_soon()
        elif self.streams.blocked:
            self.alarm.at(self.room.clock.now_s + BLOCKED_LOOK_S)

    @property
    def writes_to(self) -> set[int]:
        """Slots that it may still write to."""
        return {stream.request.slot for stream in self.streams._streams.values()}


class Writer:
    """A ring's writing end in the hands of one process; it may die between any two calls."""

    def __init__(self, process: S3gen, slot: int, writer: RingWriter) -> None:
        self._process, self._slot, self._writer = process, slot, writer

    @property
    def written(self) -> int:
        return self._writer.written

    def _mortal(self, call: str) -> None:
        if self._process.die_at == call:
            raise Died

    def begin_span(self, epoch: int, segment: int) -> bool:
        begun = self._writer.begin_span(epoch, segment)
        self._mortal("span")
        return begun

    def write(self, samples: Any) -> int:
        accepted = self._writer.write(samples)
        if accepted:
            self._process.room.sound_written(self._slot)
            self._mortal("write")
        return accepted

    def complete(self) -> None:
        self._writer.complete()


class Player(Process):
    """The loudspeaker: takes a block every so often, tells when it will be heard."""

    def __init__(self, room: MachineRoom) -> None:
        self._reader: RingReader = room.arena.reader(0)
        self._next_s = 0.0
        super().__init__(room, "player", 0, PlayerFacts("none", "none", SAMPLE_RATE, 512, 0.0))

    def work(self) -> None:
        now_s, setup = self.room.clock.now_s, self.room.setup
        reader = self._reader
        if now_s < self._next_s:
            self.alarm.at(self._next_s)
            return
        if reader.read == reader.written:
            return
        self._next_s = now_s + (setup.block_s / 5 if setup.free_pace else setup.block_s)
        self.alarm.at(self._next_s)
        reader.skip_discarded()
        if reader.paused:
            return
        first, second = reader.regions(round(setup.block_s * SAMPLE_RATE))
        count = len(first) + len(second)
        if count:
            read = reader.read
            self.room.heard(np.concatenate((first, second)))
            reader.advance(count)
            reader.publish(ReaderState(0, 0, round(now_s * 1e9), read, round((now_s + setup.device_s) * 1e9), 1))


class Supervisor(Process):
    """Sees every death, tells it, and starts a successor."""

    def __init__(self, room: MachineRoom) -> None:
        super().__init__(room, "supervisor", 0, None)
        self.loaded_s = 0.0
        self._told: object = None
        self.draining = self.drained = False

    def turn(self) -> None:
        for message in self.channel.receive(0.0):
            match message:
                case Welcome():
                    self._told = None
                    if self.draining:
                        self.channel.send(Drain())
                case Drained():
                    self.drained = True
        self.tell()
        self.alarm.at(self.channel.due_s())
        self.alarm.at(self.room.clock.now_s + FIGURES_S)

    def tell(self) -> None:
        now_s = self.room.clock.now_s
        figures = (int(now_s / FIGURES_S), tuple(p.pid for p in self.room.processes))
        if figures != self._told:
            rows = [ProcessState(p.role, p.index, p.pid, "RUNNING") for p in self.room.processes]
            if self.channel.send(Processes(tuple(rows))):
                self._told = figures

    def exited(self, process: Process) -> None:
        self.channel.send(Exited(process.role, process.index, process.pid, "killed"))
        self.tell()
        self.turn_soon()

    def drain(self) -> None:
        self.draining = True
        self.channel.send(Drain())
        self.turn_soon()
