"""Events on their way to programs: in order, never blocking, bounded for those who do not read."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from ipc.channels import DispatcherSockets, Sent
from ipc.codec import encode_event
from ipc.messages import Event

MOST_EVENTS = 1000
"""Events kept for one client that does not read; the oldest go first, counted."""

MOST_GONE = 500
"""Clients that have left of whom something is kept, in case they come back."""

Frames = list[bytes | memoryview]


@dataclass
class _Waiting:
    frames: deque[tuple[bool, Frames]] = field(default_factory=deque)
    gone: bool = False


class Outbox:
    """What could not be sent yet, per client."""

    def __init__(self, sockets: DispatcherSockets, counts: Counter[str]) -> None:
        self._sockets = sockets
        self._counts = counts
        self._waiting: dict[bytes, _Waiting] = {}
        self._absent: dict[bytes, float] = {}
        """Clients that could not be reached, and since when; oldest first."""
        self.newly_gone: list[bytes] = []
        """Clients that could not be reached since this was last emptied."""
        self.newly_back: list[bytes] = []
        """Clients that were gone and took something since this was last emptied."""
        self.kept = 0
        """Events that could not be sent at once, ever."""

    @property
    def pending(self) -> bool:
        """Something waits for a client that is there."""
        return any(not waiting.gone for waiting in self._waiting.values())

    def send(self, client: bytes, req: bool, event: Event, droppable: bool = False) -> None:
        """Send an event, or keep it until the client takes it (or drop it, if it may be)."""
        frames = encode_event(event)
        sent: Sent = "full"
        if client not in self._waiting:
            sent = self._sockets.send_client(client, req, frames)
            if sent == "sent":
                self._arrived(client)
                return
        if droppable:
            self._counts["events_dropped"] += 1
        else:
            self._keep(client, req, frames)
        if sent == "gone":
            self._mark_gone(client)

    def send_audio(self, client: bytes, event: Event, pcm: bytes) -> Sent:
        """Send sound now or not at all: what is not sent stays in its ring."""
        if client in self._waiting:
            return "gone" if self._waiting[client].gone else "full"
        sent = self._sockets.send_client(client, False, encode_event(event, pcm))
        if sent == "gone":
            self._mark_gone(client)
        elif sent == "sent":
            self._arrived(client)
        return sent

    def expire(self, now_s: float, after_s: float) -> None:
        """Drop everything for clients that have been gone for so long, and for the longest gone of
        too many."""
        for position, client in enumerate(reversed(list(self._absent))):
            if now_s >= self._absent[client] + after_s or position >= MOST_GONE:
                del self._absent[client]
                waiting = self._waiting.pop(client, None)
                self._counts["events_dropped"] += len(waiting.frames) if waiting else 0

    def back(self, client: bytes) -> None:
        """The client has said something: it is there (again)."""
        if client in self._waiting:
            self._arrived(client)
            self._flush(client)

    def flush(self, retry_gone: bool) -> bool:
        """Send what is taken now; with ``retry_gone`` also try those who were not there.

        Whether anything was taken.
        """
        moved = False
        for client, waiting in list(self._waiting.items()):
            if retry_gone or not waiting.gone:
                moved |= self._flush(client)
        return moved

    def _flush(self, client: bytes) -> bool:
        waiting = self._waiting[client]
        moved = False
        while waiting.frames:
            req, frames = waiting.frames[0]
            sent = self._sockets.send_client(client, req, frames)
            if sent == "gone":
                self._mark_gone(client)
            if sent != "sent":
                return moved
            moved = True
            self._arrived(client)
            waiting.frames.popleft()
        del self._waiting[client]
        return moved

    def _keep(self, client: bytes, req: bool, frames: Frames) -> None:
        self.kept += 1
        waiting = self._waiting.setdefault(client, _Waiting())
        waiting.frames.append((req, frames))
        while len(waiting.frames) > MOST_EVENTS:
            waiting.frames.popleft()
            self._counts["events_dropped"] += 1

    def _mark_gone(self, client: bytes) -> None:
        waiting = self._waiting.setdefault(client, _Waiting())
        if not waiting.gone:
            waiting.gone = True
            self._absent[client] = time.monotonic()
            self.newly_gone.append(client)

    def _arrived(self, client: bytes) -> None:
        """Something reached the client."""
        if client in self._waiting:
            self._waiting[client].gone = False
        if self._absent.pop(client, None) is not None:
            self.newly_back.append(client)
