"""The work socket without a network: the real links (`ipc.channels`, `ipc.link`) over connections that are
late, refuse packets, and end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import zmq

from ipc.channels import ChannelCounters, DispatcherSockets, FromClient, Sent, WorkerChannel
from ipc.codec import encode_request
from ipc.messages import (
    Hello,
)

if TYPE_CHECKING:
    from tests.pipeline.simulated.room import MachineRoom


@dataclass(eq=False)
class Line:
    """One connection of a process with one dispatcher."""

    route: bytes
    dealer: Dealer
    router: Router
    open: bool = True
    last_s: list[float] = field(default_factory=lambda: [0.0, 0.0])


class Dealer:
    """A worker's end, as `WorkerChannel` uses it: socket and monitor in one."""

    def __init__(self, room: MachineRoom, name: str, arrived: Callable[[], None]) -> None:
        self.room, self.name, self._arrived = room, name, arrived
        self.inbox: deque[bytes] = deque()
        self.happened: deque[int] = deque()
        self.line: Line | None = None

    def recv_multipart(self, _flags: int) -> list[bytes]:
        if not self.inbox:
            raise zmq.Again
        return [self.inbox.popleft()]

    def send(self, data: bytes, _flags: int) -> None:
        if self.line is None or self.room.refuses(self.name):
            raise zmq.Again
        self.room.carry(self.line, 0, data)

    def poll(self, _ms: int) -> bool:
        return bool(self.happened)

    def connect(self, line: Line) -> None:
        self.line = line
        self._note(zmq.EVENT_HANDSHAKE_SUCCEEDED)

    def disconnect(self) -> None:
        if self.line is not None:
            self.line.open, self.line = False, None
            self._note(zmq.EVENT_DISCONNECTED)

    def take(self, data: bytes) -> None:
        self.inbox.append(data)
        self._arrived()

    def _note(self, event: int) -> None:
        self.happened.append(event)
        self._arrived()


class DealerPoller:
    """What `WorkerChannel` waits with; it never waits."""

    def __init__(self, dealer: Dealer, monitor: object) -> None:
        self._dealer, self._monitor = dealer, monitor

    def poll(self, _ms: int) -> list[tuple[object, int]]:
        ready: list[tuple[object, int]] = [(self._dealer, 1)] if self._dealer.inbox else []
        return [*ready, (self._monitor, 1)] if self._dealer.happened else ready


class Monitor:
    """The events of a dealer's connection."""

    def __init__(self, dealer: Dealer) -> None:
        self.dealer = dealer

    def poll(self, _ms: int) -> bool:
        return bool(self.dealer.happened)


class Channel(WorkerChannel):
    """The real worker's channel over a simulated socket."""

    def __init__(self, dealer: Dealer, hello: Hello) -> None:
        self._hello, self._wake_fd = hello, None
        self._link, self._session, self._hello_at = None, 0, None
        self.counters = ChannelCounters()
        self._socket: Any = dealer
        self._monitor: Any = Monitor(dealer)
        self._poller: Any = DealerPoller(dealer, self._monitor)

    def due_s(self) -> float:
        """When it has to be called again."""
        link_s = self._link.next_due() if self._link else None
        return min((at for at in (self._hello_at, link_s) if at is not None), default=float("inf"))


class Router:
    """The dispatcher's end of all connections."""

    def __init__(self, room: MachineRoom) -> None:
        self.room = room
        self.inbox: deque[tuple[bytes, bytes]] = deque()
        self.lines: dict[bytes, Line] = {}

    def recv_multipart(self, _flags: int) -> tuple[bytes, bytes]:
        if not self.inbox:
            raise zmq.Again
        return self.inbox.popleft()

    def send_multipart(self, parts: tuple[bytes, bytes], _flags: int) -> None:
        line = self.lines.get(parts[0])
        if line is None or not line.open:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        if self.room.refuses(line.dealer.name):
            raise zmq.Again
        self.room.carry(line, 1, parts[1])


class Sockets(DispatcherSockets):
    """The real dispatcher's sockets over simulated ones."""

    room: MachineRoom

    def __post_init__(self) -> None:
        self._routes, self._peers = {}, {}
        self._authenticator = None
        self._work: Any = self.room.router
        self._text: Any = None
        self._poller: Any = SimpleNamespace(poll=lambda _ms: [(self._work, 1), (self._text, 1)])
        self.bound_text = "simulated"

    def _drain_text(self) -> list[Any]:
        waiting, self.room.requests = self.room.requests, []
        return [FromClient(client.name, client.req, encode_request(request)) for client, request in waiting]

    def send_client(self, client: bytes, req: bool, frames: Sequence[bytes | memoryview]) -> Sent:
        found = self.room.programs.get(client)
        return "gone" if found is None else found.offer([bytes(frame) for frame in frames])

    def next_due_s(self) -> float:
        return self._send_due(self.room.clock.now_s)
