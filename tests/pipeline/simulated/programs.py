"""Programs: what they send, and how they read."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ipc.channels import Sent
from ipc.codec import decode_event
from ipc.messages import (
    Request,
)
from tests.pipeline.simulated.clock import Alarm

if TYPE_CHECKING:
    from tests.pipeline.simulated.room import MachineRoom

PIPE_MESSAGES = 8
"""What a program's connection holds before it counts as full: what lies in the dispatcher's socket."""

LONG_PIPE_MESSAGES = 24
"""The same with what lies in the operating system's buffers, for a program that confirms what arrives."""


class Program:
    """A program's connection to the text socket."""

    def __init__(self, room: MachineRoom, name: bytes) -> None:
        self.room, self.name, self.req = room, name, False
        self.there = False
        """The present dispatcher knows the connection."""
        self.left = False
        self.reading = True
        self.slow_s = 0.0
        self.confirms = False
        """It says what has arrived; else what is on its way must fit into what is sent again."""
        self.pipe: deque[tuple[int, list[bytes]]] = deque()
        self._queued: list[Request] = []
        self._alarm = Alarm(room.clock, self._read)

    def offer(self, frames: list[bytes]) -> Sent:
        """The dispatcher sends something."""
        if not self.there:
            return "gone"
        if len(self.pipe) >= (LONG_PIPE_MESSAGES if self.confirms else PIPE_MESSAGES) and (
            not self.reading or self.slow_s
        ):
            return "full"
        self.pipe.append((self.room.epoch, frames))
        if self.reading:
            self._alarm.at(self.room.clock.now_s + (self.slow_s or self.room.setup.latency_s))
        return "sent"

    def read(self, reading: bool, slow_s: float = 0.0) -> None:
        """Begin or cease to read; ``slow_s``: time between two messages."""
        self.reading, self.slow_s = reading, slow_s
        if reading and self.pipe:
            self._alarm.at(self.room.clock.now_s)

    def _read(self) -> None:
        if not self.reading:
            return
        while self.pipe:
            epoch, frames = self.pipe.popleft()
            event, pcm = decode_event(frames)  # type: ignore[arg-type]
            self.room.received(self, epoch, event, pcm)
            if self.slow_s:
                break
        if self.pipe:
            self._alarm.at(self.room.clock.now_s + self.slow_s)

    def say(self, request: Request) -> None:
        """Send a request; while there is no connection it waits."""
        if self.there:
            self.room.carry_request(self, request)
        elif not self.left:
            self._queued.append(request)

    def connected(self) -> None:
        """The connection to the (next) dispatcher stands."""
        if self.left:
            return
        self.there = True
        queued, self._queued = self._queued, []
        for request in queued:
            self.say(request)
        self.room.reconnected(self)

    def cut(self, keep: int) -> None:
        """The connection ends; of what was on its way the first ``keep`` messages arrive."""
        self.there = False
        while len(self.pipe) > keep:
            self.pipe.pop()

    def leave(self) -> None:
        self.left, self.there = True, False
        self.pipe.clear()
        self._queued.clear()
