"""Ordered, exactly-once delivery between two live processes, as a pure state machine.

A `Link` belongs to one (session, epoch): one process talking to one incarnation of the dispatcher.
Both sides number what they send from 1, acknowledge cumulatively (on what they send anyway, else
after a short delay or every so many messages) and send again what stays unacknowledged. Whatever
the transport does in between (lose, duplicate, reorder), each message comes out once and in order.

On the sockets used here loss is the exception (a full pipe), so the normal cost is a few integers
in each packet; an idle link has no timer. Time is passed in, so that tests can rule it.

    send        -> Packet to put on the wire
    receive     -> messages that are now in order
    due         -> packets to put on the wire now (resends, a bare acknowledgement)
    next_due    -> when to ask `due` again (None: nothing is owed)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from msgspec import Struct

from ipc.messages import Internal

WINDOW_MESSAGES = 256
UNACKED_MESSAGES = 8192
ACK_EVERY_MESSAGES = 32
ACK_DELAY_S = 0.05
RESEND_S = 0.3
RESEND_MOST_S = 3.0
BURST_MESSAGES = 64


class Packet(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What goes over the wire between dispatcher and workers.

    ``seq`` 0 is outside the order: a bare acknowledgement, or the handshake (`Hello`, `Welcome`).
    ``ack`` is the highest number up to which everything has arrived. Epoch 0 is no link: a `Hello`,
    or (with no message) the dispatcher's answer to a session that it does not know.
    """

    session: int
    epoch: int
    seq: int
    ack: int
    message: Internal | None = None


class LinkFull(Exception):
    """The other side has acknowledged nothing for too many messages: it hangs or is gone."""


@dataclass
class LinkCounters:
    """What the transport did to this link."""

    resent: int = 0
    duplicates: int = 0
    early: int = 0
    dropped: int = 0
    strays: int = 0


class Link:
    """One side of the conversation of ``session`` with the dispatcher of ``epoch``."""

    def __init__(
        self,
        session: int,
        epoch: int,
        *,
        window_messages: int = WINDOW_MESSAGES,
        unacked_messages: int = UNACKED_MESSAGES,
        ack_every_messages: int = ACK_EVERY_MESSAGES,
        ack_delay_s: float = ACK_DELAY_S,
        resend_s: float = RESEND_S,
    ) -> None:
        self.session = session
        self.epoch = epoch
        self.counters = LinkCounters()
        self._window = window_messages
        self._limit = unacked_messages
        self._ack_every = ack_every_messages
        self._ack_delay_s = ack_delay_s
        self._first_resend_s = resend_s
        # outgoing
        self._sent = 0
        self._unacked: deque[tuple[int, Internal]] = deque()
        self._resend_s = resend_s
        self._resend_at: float | None = None
        self._burst = 1  # messages to resend next; one when nothing tells that the other side listens
        self._resent = 1  # messages that were resent last
        self._recovering_to = 0  # what had been sent when the timer ran out
        # incoming
        self._received = 0
        self._held: dict[int, Internal] = {}
        self._ack_owed = 0
        self._ack_at: float | None = None

    @property
    def unacked(self) -> int:
        """Messages sent and not yet acknowledged."""
        return len(self._unacked)

    @property
    def held(self) -> int:
        """Messages that came early and wait for those before them."""
        return len(self._held)

    def send(self, message: Internal, now: float) -> Packet:
        """Number the message and keep it until it is acknowledged.

        Raises `LinkFull` when too much is unacknowledged; the message is then not taken.
        """
        if len(self._unacked) >= self._limit:
            raise LinkFull(f"{len(self._unacked)} messages are unacknowledged (limit {self._limit})")
        self._sent += 1
        self._unacked.append((self._sent, message))
        if self._resend_at is None:
            self._resend_at = now + self._resend_s
        return self._packet(self._sent, message)

    def receive(self, packet: Packet, now: float) -> list[Internal]:
        """Take a packet from the wire; the messages that are now in order."""
        if packet.session != self.session or packet.epoch != self.epoch:
            self.counters.strays += 1
            return []
        self._acknowledged(packet.ack, now)
        if packet.message is None or packet.seq <= 0:
            return []
        return self._arrived(packet.seq, packet.message, now)

    def due(self, now: float) -> list[Packet]:
        """What has to go out now: resends when the timer ran out, an owed acknowledgement."""
        packets: list[Packet] = []
        if self._resend_at is not None and now >= self._resend_at:
            packets = self._resend(now)
        elif self._ack_at is not None and now >= self._ack_at:
            packets = [self._packet(0, None)]
        return packets

    def next_due(self) -> float | None:
        """The time at which `due` will have something; None while nothing is owed."""
        if self._resend_at is None or self._ack_at is None:
            return self._ack_at if self._resend_at is None else self._resend_at
        return min(self._resend_at, self._ack_at)

    def _packet(self, seq: int, message: Internal | None) -> Packet:
        self._ack_owed = 0
        self._ack_at = None
        return Packet(self.session, self.epoch, seq, self._received, message)

    def _acknowledged(self, ack: int, now: float) -> None:
        if not self._unacked or ack < self._unacked[0][0] or ack > self._sent:
            return
        while self._unacked and self._unacked[0][0] <= ack:
            self._unacked.popleft()
        self._resend_s = self._first_resend_s
        if not self._unacked:
            self._resend_at, self._burst, self._recovering_to = None, 1, 0
        elif ack < self._recovering_to:
            # What was resent arrived and more of the same loss is missing: go on at once, and faster.
            self._burst = min(self._resent * 2, BURST_MESSAGES)
            self._resend_at = now
        else:
            self._burst, self._recovering_to = 1, 0
            self._resend_at = now + self._resend_s

    def _resend(self, now: float) -> list[Packet]:
        """The oldest unacknowledged messages. Only one at first: the other side may just be busy,
        and its one acknowledgement will then cover everything."""
        self._recovering_to = self._sent
        count = min(self._burst, len(self._unacked))
        packets = [self._packet(*self._unacked[i]) for i in range(count)]
        self.counters.resent += count
        self._burst, self._resent = 1, count
        self._resend_s = min(self._resend_s * 2, RESEND_MOST_S)
        self._resend_at = now + self._resend_s
        return packets

    def _arrived(self, seq: int, message: Internal, now: float) -> list[Internal]:
        if seq <= self._received:
            self.counters.duplicates += 1
            self._ack_at = now  # our acknowledgement seems to be lost
            return []
        if seq > self._received + 1:
            self._hold(seq, message)
            self._ack_at = now
            return []
        ready = [message]
        self._received = seq
        while self._held and (following := self._held.pop(self._received + 1, None)) is not None:
            ready.append(following)
            self._received += 1
        self._ack_owed += len(ready)
        if self._ack_owed >= self._ack_every:
            self._ack_at = now
        elif self._ack_at is None:
            self._ack_at = now + self._ack_delay_s
        return ready

    def _hold(self, seq: int, message: Internal) -> None:
        if seq in self._held:
            self.counters.duplicates += 1
        elif seq - self._received > self._window:
            self.counters.dropped += 1  # it will be sent again
        else:
            self.counters.early += 1
            self._held[seq] = message
