"""Sound on its way to remote listeners."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ipc.messages import Audio, Event
from ipc.ring import Arena
from pipeline.events import Confirm, Listen, Reattach, Unlisten
from workers.listeners import PIECE_SAMPLES, SETTLE_S, Listeners, to_s16

CAPACITY = 48_000


class Client:
    """Collects what is sent, or refuses it."""

    def __init__(self) -> None:
        self.audio: dict[int, bytes] = {}
        self.order: list[int] = []
        self.answer = "sent"

    def __call__(self, client: bytes, event: Event, pcm: bytes) -> str:
        if self.answer == "sent":
            assert isinstance(event, Audio)
            assert event.samples * 2 == len(pcm)
            self.audio[event.first_sample] = pcm
            self.order.append(event.first_sample)
        return self.answer

    def joined(self) -> bytes:
        return b"".join(self.audio[at] for at in sorted(self.audio))


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(240_000, CAPACITY, 2)
    yield arena
    arena.close()


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def listeners(arena: Arena, client: Client) -> Listeners:
    return Listeners(arena, client, retain_s=1.0)  # type: ignore[arg-type]


def write(arena: Arena, samples: np.ndarray, epoch: int = 1) -> int:
    arena.control(1).grant(1)
    writer = arena.writer(1, 1)
    writer.begin_span(epoch, 0)
    return writer.write(samples.astype(np.float32))


def ramp(count: int, first: int = 0) -> np.ndarray:
    return ((np.arange(first, first + count) % 2000) / 2000).astype(np.float32)


def test_pieces_are_short_numbered_and_add_up(arena: Arena, client: Client, listeners: Listeners) -> None:
    write(arena, ramp(10_000))
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 500))
    assert listeners.pump(0.0)
    assert client.order[0] == 500
    assert all(len(pcm) // 2 <= PIECE_SAMPLES for pcm in client.audio.values())
    assert client.joined() == to_s16(ramp(10_000))


def test_a_full_socket_holds_the_slot_and_nothing_is_lost(arena: Arena, client: Client, listeners: Listeners) -> None:
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0))
    client.answer = "full"
    total = write(arena, ramp(CAPACITY + 5000))
    assert total == CAPACITY
    assert not listeners.pump(0.0)
    assert listeners.blocked
    assert arena.control(1).read == 0
    client.answer = "sent"
    listeners.pump(1.0)
    total += write(arena, ramp(5000, total))
    listeners.pump(1.1)
    assert client.joined() == to_s16(ramp(total))


def test_the_read_cursor_trails_until_all_has_left_the_process(
    arena: Arena, client: Client, listeners: Listeners
) -> None:
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0))
    write(arena, ramp(40_000))
    listeners.pump(0.0)
    assert arena.control(1).read == 40_000 - CAPACITY // 2
    assert listeners.position(1) == 40_000
    listeners.pump(SETTLE_S + 0.01)
    assert arena.control(1).read == 40_000


def test_a_successor_sends_again_what_may_not_have_left(arena: Arena, client: Client, listeners: Listeners) -> None:
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0))
    write(arena, ramp(40_000))
    listeners.pump(0.0)
    second = Client()
    successor = Listeners(arena, second, retain_s=1.0)  # type: ignore[arg-type]
    successor.listen(Listen(1, 1, 7, b"c", "a", 0, 0))
    successor.pump(0.0)
    assert second.order[0] == 40_000 - CAPACITY // 2
    assert second.joined() == to_s16(ramp(40_000))[2 * second.order[0] :]


def test_what_a_confirming_listener_has_not_confirmed_stays_in_the_ring(
    arena: Arena, client: Client, listeners: Listeners
) -> None:
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0, True))
    assert write(arena, ramp(CAPACITY)) == CAPACITY
    listeners.pump(0.0)
    listeners.pump(100.0)
    assert (listeners.position(1), arena.control(1).read) == (CAPACITY, 0)
    listeners.confirm(Confirm(7, 10_000))
    listeners.pump(100.1)
    kept_from = arena.control(1).read
    assert 10_000 - PIECE_SAMPLES < kept_from <= 10_000
    second = Client()
    successor = Listeners(arena, second, retain_s=1.0)  # type: ignore[arg-type]
    successor.listen(Listen(1, 1, 7, b"c", "a", 0, 0, True))
    assert successor.oldest(1) == {7: kept_from}
    successor.reattach(Reattach(7, b"c", 20_000, True))
    successor.pump(100.2)
    assert second.joined() == to_s16(ramp(CAPACITY))[2 * 20_000 :]
    assert 20_000 - PIECE_SAMPLES < arena.control(1).read <= 20_000


def test_confirming_one_utterance_keeps_the_next(arena: Arena, client: Client, listeners: Listeners) -> None:
    write(arena, ramp(3000), epoch=1)
    write(arena, ramp(1000), epoch=2)
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0, True))
    listeners.listen(Listen(1, 2, 8, b"c", "b", 3000, 0, True))
    listeners.pump(0.0)
    listeners.confirm(Confirm(7, 3000))
    listeners.pump(100.0)
    assert arena.control(1).read == 3000
    listeners.unlisten(Unlisten(1, 7))
    listeners.confirm(Confirm(8, 1000))
    listeners.pump(100.1)
    assert arena.control(1).read == 4000


def test_discarded_sound_is_not_sent(arena: Arena, client: Client, listeners: Listeners) -> None:
    write(arena, ramp(3000), epoch=1)
    write(arena, ramp(1000), epoch=2)
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0))
    listeners.listen(Listen(1, 2, 8, b"c", "b", 3000, 0))
    arena.control(1).discard_below(2)
    listeners.unlisten(Unlisten(1, 7))
    listeners.pump(0.0)
    assert client.joined() == to_s16(ramp(1000))


def test_attaching_sends_again_from_the_sample_asked_for(arena: Arena, client: Client, listeners: Listeners) -> None:
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0))
    write(arena, ramp(20_000))
    listeners.pump(0.0)
    client.audio.clear()
    listeners.reattach(Reattach(7, b"d", 5_123))
    listeners.pump(0.1)
    assert min(client.audio) == 5_123
    assert client.joined() == to_s16(ramp(20_000))[2 * 5_123 :]


def test_what_can_be_had_again_is_told(arena: Arena, client: Client, listeners: Listeners) -> None:
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0))
    for round_ in range(3):
        write(arena, ramp(24_000, 24_000 * round_))
        listeners.pump(float(round_))
        listeners.pump(round_ + 0.5)
    assert listeners.oldest(1) == {7: 48_000}


def test_attaching_ahead_skips_what_comes_before(arena: Arena, client: Client, listeners: Listeners) -> None:
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0))
    listeners.reattach(Reattach(7, b"c", 3_000))
    write(arena, ramp(5_000))
    listeners.pump(0.0)
    assert min(client.audio) == 3_000
    assert client.joined() == to_s16(ramp(5_000))[2 * 3_000 :]


def test_a_slot_that_is_given_back_is_empty_for_the_next_listener(
    arena: Arena, client: Client, listeners: Listeners
) -> None:
    listeners.listen(Listen(1, 1, 7, b"c", "a", 0, 0))
    write(arena, ramp(5_000))
    listeners.unlisten(Unlisten(1, 7))
    assert listeners.slots == []
    assert arena.control(1).read == 5_000
