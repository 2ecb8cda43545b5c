"""The link delivers everything once and in order, whatever the transport does, and owes nothing when idle."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.link import ACK_DELAY_S, ACK_EVERY_MESSAGES, RESEND_MOST_S, RESEND_S, Link, LinkFull, Packet
from ipc.messages import Internal, Probe


def probes(messages: list[Internal]) -> list[int]:
    return [message.probe for message in messages if isinstance(message, Probe)]


@dataclass
class Wire:
    """Two links and a transport that loses, duplicates and delays (and so reorders) at random."""

    random: random.Random
    loss: float
    duplication: float
    delay_s: float
    a: Link = field(default_factory=lambda: Link(7, 3, window_messages=16))
    b: Link = field(default_factory=lambda: Link(7, 3, window_messages=16))
    now: float = 100.0
    flying: list[tuple[float, Link, Packet]] = field(default_factory=list)
    got_a: list[int] = field(default_factory=list)
    got_b: list[int] = field(default_factory=list)
    most_held: int = 0

    def fly(self, to: Link, packets: list[Packet]) -> None:
        for packet in packets:
            for _ in range(2 if self.random.random() < self.duplication else 1):
                if self.random.random() >= self.loss:
                    self.flying.append((self.now + self.random.random() * self.delay_s, to, packet))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        landed = sorted((one for one in self.flying if one[0] <= self.now), key=lambda one: one[0])
        self.flying = [one for one in self.flying if one[0] > self.now]
        for _, to, packet in landed:
            (self.got_a if to is self.a else self.got_b).extend(probes(to.receive(packet, self.now)))
            self.most_held = max(self.most_held, to.held)
        for link, other in ((self.a, self.b), (self.b, self.a)):
            self.fly(other, link.due(self.now))

    def settle(self, rounds: int = 20_000) -> None:
        while self.flying or self.a.next_due() is not None or self.b.next_due() is not None:
            dues = [due for due in (self.a.next_due(), self.b.next_due()) if due is not None]
            self.pass_time(max(0.001, min([*dues, *(at for at, _, _ in self.flying)]) - self.now))
            rounds -= 1
            assert rounds, "the links never came to rest"


@settings(deadline=None, max_examples=150, print_blob=True)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.05, 0.3, 0.6]),
    duplication=st.sampled_from([0.0, 0.3, 1.0]),
    delay_s=st.sampled_from([0.0, 0.01, 1.0]),
    to_b=st.integers(0, 80),
    to_a=st.integers(0, 80),
)
def test_everything_arrives_once_in_order_under_loss_duplication_and_reordering(
    seed: int, loss: float, duplication: float, delay_s: float, to_b: int, to_a: int
) -> None:
    wire = Wire(random.Random(seed), loss, duplication, delay_s)
    for i in range(max(to_a, to_b)):
        if i < to_b:
            wire.fly(wire.b, [wire.a.send(Probe(i), wire.now)])
        if i < to_a:
            wire.fly(wire.a, [wire.b.send(Probe(1000 + i), wire.now)])
        wire.pass_time(wire.random.choice([0.0, 0.001, 0.2]))
    wire.settle()
    assert wire.got_b == list(range(to_b))
    assert wire.got_a == list(range(1000, 1000 + to_a))
    assert wire.a.unacked == wire.b.unacked == 0
    assert wire.a.held == wire.b.held == 0
    assert wire.most_held <= 16


def test_a_lossless_wire_sends_nothing_twice_and_few_acknowledgements() -> None:
    a, b = Link(1, 1), Link(1, 1)
    bare = 0
    for i in range(1000):
        now = i * 0.0001
        assert probes(b.receive(a.send(Probe(i), now), now)) == [i]
        for packet in b.due(now):
            bare += 1
            a.receive(packet, now)
    assert a.counters.resent == 0
    assert bare <= 1000 / ACK_EVERY_MESSAGES + 1
    assert a.unacked < ACK_EVERY_MESSAGES


def test_acknowledgements_ride_on_what_is_sent_anyway() -> None:
    a, b = Link(1, 1), Link(1, 1)
    b.receive(a.send(Probe(1), 0.0), 0.0)
    a.receive(b.send(Probe(2), 0.01), 0.01)
    assert a.unacked == 0
    assert b.due(0.01 + ACK_DELAY_S) == []  # nothing is owed any more


def test_a_single_message_is_acknowledged_after_a_short_delay_and_then_the_links_rest() -> None:
    a, b = Link(1, 1), Link(1, 1)
    b.receive(a.send(Probe(1), 0.0), 0.0)
    assert b.due(ACK_DELAY_S / 2) == []
    assert b.next_due() == pytest.approx(ACK_DELAY_S)
    (ack,) = b.due(ACK_DELAY_S)
    assert (ack.seq, ack.message) == (0, None)
    assert a.receive(ack, ACK_DELAY_S) == []
    assert a.next_due() is None
    assert b.next_due() is None


def test_an_idle_link_has_no_timer() -> None:
    link = Link(1, 1)
    assert link.next_due() is None
    assert link.due(1e9) == []


def test_resends_back_off_and_probe_with_the_oldest_only() -> None:
    link = Link(1, 1)
    for i in range(50):
        link.send(Probe(i), 0.0)
    waits, now = [], 0.0
    for _ in range(8):
        due = link.next_due()
        assert due is not None
        waits.append(due - now)
        now = due
        assert [packet.seq for packet in link.due(now)] == [1]
    assert waits[0] == pytest.approx(RESEND_S) == 0.3
    assert waits[:5] == pytest.approx([0.3, 0.6, 1.2, 2.4, 3.0])
    assert waits[-1] == pytest.approx(RESEND_MOST_S)


def test_a_lost_burst_is_recovered_in_few_round_trips() -> None:
    a, b = Link(1, 1), Link(1, 1)
    for i in range(200):
        a.send(Probe(i), 0.0)  # all lost
    got: list[int] = []
    now = a.next_due()
    assert now is not None
    trips = 0
    while a.unacked:
        for packet in a.due(now):
            got += probes(b.receive(packet, now))
        for packet in b.due(now + ACK_DELAY_S):
            a.receive(packet, now)
        trips += 1
        assert trips < 12
    assert got == list(range(200))


def test_one_acknowledgement_after_a_long_step_ends_resending() -> None:
    a, b = Link(1, 1), Link(1, 1)
    wire = [a.send(Probe(i), 0.0) for i in range(10)]
    wire += a.due(RESEND_S)  # the other side was busy
    got = [probe for packet in wire for probe in probes(b.receive(packet, 1.0))]
    assert got == list(range(10))
    assert b.counters.duplicates == 1
    for packet in b.due(1.0):
        a.receive(packet, 1.0)
    assert a.unacked == 0
    assert a.next_due() is None


def test_too_much_unacknowledged_is_refused_and_not_taken() -> None:
    link = Link(1, 1, unacked_messages=3)
    for i in range(3):
        link.send(Probe(i), 0.0)
    with pytest.raises(LinkFull, match="3 messages"):
        link.send(Probe(3), 0.0)
    assert link.unacked == 3
    link.receive(Packet(1, 1, 0, 1), 0.0)
    assert link.send(Probe(3), 0.0).seq == 4


def test_what_is_far_too_early_is_dropped_and_asked_for_again() -> None:
    a, b = Link(1, 1, window_messages=4), Link(1, 1, window_messages=4)
    packets = [a.send(Probe(i), 0.0) for i in range(10)]
    assert [b.receive(packet, 0.0) for packet in packets[1:]] == [[]] * 9
    assert b.held == 3  # 2, 3 and 4 of the window above 0; 5 … 10 are dropped
    assert b.counters.dropped == 6
    assert b.counters.early == 3
    assert probes(b.receive(packets[0], 0.0)) == [0, 1, 2, 3]


def test_packets_of_another_session_or_epoch_are_strays() -> None:
    link = Link(5, 9)
    for packet in (Packet(4, 9, 1, 0, Probe(1)), Packet(5, 8, 1, 0, Probe(1))):
        assert link.receive(packet, 0.0) == []
    assert link.counters.strays == 2
    assert probes(link.receive(Packet(5, 9, 1, 0, Probe(1)), 0.0)) == [1]


@pytest.mark.parametrize("ack", [-1, 3, 2**62])
def test_an_impossible_acknowledgement_is_ignored(ack: int) -> None:
    link = Link(1, 1)
    link.send(Probe(1), 0.0)
    link.send(Probe(2), 0.0)
    link.receive(Packet(1, 1, 0, ack), 0.0)
    assert link.unacked == 2


def test_impossible_numbers_deliver_nothing() -> None:
    link = Link(1, 1)
    assert link.receive(Packet(1, 1, -5, 0, Probe(1)), 0.0) == []
    assert link.receive(Packet(1, 1, 0, 0, Probe(1)), 0.0) == []
    assert link.receive(Packet(1, 1, 2**62, 0, Probe(1)), 0.0) == []
    assert link.held == 0
