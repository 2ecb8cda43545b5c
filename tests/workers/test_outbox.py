"""Events for programs that read slowly, not at all, or have left."""

from __future__ import annotations

import time
from collections import Counter, deque

import pytest

from ipc.messages import Audio, Progress
from workers.outbox import MOST_EVENTS, MOST_GONE, Outbox


class Sockets:
    """Answers sends by script: the last answer stays."""

    def __init__(self) -> None:
        self.answers: deque[str] = deque(["sent"])
        self.sent: list[bytes] = []

    def send_client(self, client: bytes, req: bool, frames: list[bytes]) -> str:
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        if answer == "sent":
            self.sent.append(bytes(frames[0]))
        return answer


@pytest.fixture
def sockets() -> Sockets:
    return Sockets()


@pytest.fixture
def counts() -> Counter[str]:
    return Counter()


@pytest.fixture
def outbox(sockets: Sockets, counts: Counter[str]) -> Outbox:
    return Outbox(sockets, counts)  # type: ignore[arg-type]


def progress(chars: int) -> Progress:
    return Progress(id="a", chars=chars, seconds=0.0)


def test_events_for_a_full_socket_are_kept_in_order(sockets: Sockets, outbox: Outbox) -> None:
    sockets.answers = deque(["full"])
    for chars in range(5):
        outbox.send(b"c", False, progress(chars))
    assert outbox.pending
    sockets.answers = deque(["sent"])
    outbox.flush(retry_gone=False)
    assert [f'"chars":{chars}' in frame.decode() for chars, frame in enumerate(sockets.sent)] == [True] * 5
    assert not outbox.pending


def test_droppable_events_are_dropped_and_counted(sockets: Sockets, outbox: Outbox, counts: Counter[str]) -> None:
    sockets.answers = deque(["full"])
    outbox.send(b"c", False, progress(1), droppable=True)
    assert not outbox.pending
    assert counts["events_dropped"] == 1


def test_sound_waits_behind_events(sockets: Sockets, outbox: Outbox) -> None:
    sockets.answers = deque(["full"])
    outbox.send(b"c", False, progress(1))
    sockets.answers = deque(["sent"])
    audio = Audio(id="a", first_sample=0, samples=1)
    assert outbox.send_audio(b"c", audio, b"\0\0") == "full"
    outbox.flush(retry_gone=False)
    assert outbox.send_audio(b"c", audio, b"\0\0") == "sent"


def test_a_client_that_never_reads_costs_a_bounded_number_of_events(
    sockets: Sockets, outbox: Outbox, counts: Counter[str]
) -> None:
    sockets.answers = deque(["full"])
    for chars in range(MOST_EVENTS + 10):
        outbox.send(b"c", False, progress(chars))
    assert counts["events_dropped"] == 10
    sockets.answers = deque(["sent"])
    outbox.flush(retry_gone=False)
    assert len(sockets.sent) == MOST_EVENTS


def test_who_has_left_is_reported_once_and_gets_its_events_when_it_is_back(sockets: Sockets, outbox: Outbox) -> None:
    sockets.answers = deque(["gone"])
    outbox.send(b"c", False, progress(1))
    outbox.send(b"c", False, progress(2))
    outbox.flush(retry_gone=True)
    assert outbox.newly_gone == [b"c"]
    assert not outbox.pending, "nobody is there to wait for"
    sockets.answers = deque(["sent"])
    outbox.back(b"c")
    assert len(sockets.sent) == 2


def test_who_takes_sound_again_is_back_without_a_word(sockets: Sockets, outbox: Outbox) -> None:
    audio = Audio(id="a", first_sample=0, samples=1)
    sockets.answers = deque(["gone"])
    assert outbox.send_audio(b"c", audio, b"\0\0") == "gone"
    sockets.answers = deque(["sent"])
    assert outbox.newly_back == []
    outbox.flush(retry_gone=True)
    assert outbox.send_audio(b"c", audio, b"\0\0") == "sent"
    assert outbox.newly_back == [b"c"]


def test_clients_that_never_come_back_are_forgotten(sockets: Sockets, outbox: Outbox) -> None:
    sockets.answers = deque(["gone"])
    for number in range(MOST_GONE + 20):
        outbox.send(str(number).encode(), False, progress(1))
    outbox.expire(time.monotonic(), 60.0)
    assert len(outbox._waiting) == MOST_GONE
    assert b"0" not in outbox._waiting
    outbox.expire(time.monotonic() + 61, 60.0)
    assert not outbox._waiting
    assert not outbox._absent
