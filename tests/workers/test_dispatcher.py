"""The dispatcher's shell: sockets, journal and rings around the state machine, in this process."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import zmq

from ipc.endpoints import Endpoints
from ipc.progress import ProgressWriter
from ipc.ring import Arena
from pipeline.config import Config, load_config
from pipeline.journal import Journal, Put, TextRecord, UtteranceRecord
from workers.dispatcher import BLOCKED_WAIT_S, DispatcherProcess


def utterance_record(uid: int, id: str) -> UtteranceRecord:
    return UtteranceRecord(uid, b"me", id, False, "v", "en", 1.0, "speaker", "default", "normal", 0, {}, 0.0)


class Bench:
    """A dispatcher without workers, and one client."""

    def __init__(self, run_dir: Path, arena: Arena) -> None:
        self.endpoints = Endpoints(run_dir)
        self.arena = arena
        self.config: Config = load_config(None, ["model.engine=espeak", "text.bind=tcp://127.0.0.1:0"])
        self.context = zmq.Context()
        self.client = self.context.socket(zmq.DEALER)
        self.client.setsockopt(zmq.LINGER, 0)
        self.client.setsockopt(zmq.IDENTITY, b"me")
        self.process: DispatcherProcess
        self.address = ""

    def start(self) -> DispatcherProcess:
        life = SimpleNamespace(endpoints=self.endpoints, wake_fd=None, progress=ProgressWriter(-1), leaving=False)
        self.process = DispatcherProcess(life, self.config, self.arena)  # type: ignore[arg-type]
        if self.address:
            self.client.disconnect(self.address)
        self.address = self.process.sockets.bound_text
        self.client.connect(self.address)
        self.process.restore()
        return self.process

    def until(self, done: Callable[[], object], limit_s: float = 5.0) -> None:
        deadline = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < deadline, "it did not happen"
            self.process.turn(0.01)

    def ask(self, payload: bytes) -> dict[str, object]:
        self.client.send(payload)
        self.until(lambda: self.client.poll(0))
        answer: dict[str, object] = json.loads(self.client.recv_multipart()[0])
        return answer

    def close(self) -> None:
        self.process.close()
        self.client.close()
        self.context.term()


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    arena = Arena.create(48_000, 48_000, 64)
    bench = Bench(tmp_path_factory.mktemp("r"), arena)
    yield bench
    bench.close()
    arena.close()


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b"\xff\xfe", ""),
        (b"{}", "type"),
        (b'{"type": "sing", "id": "a"}', "type"),
        (b'{"type": "speak", "id": "a", "texd": "x"}', "texd"),
        (b'{"type": "speak", "id": "a", "speed": 9}', "speed"),
        (b'{"type": "speak", "id": 3}', "id"),
        (b"[" * 5000, ""),
    ],
)
def test_bad_frames_are_answered_by_field_and_hurt_nobody(bench: Bench, payload: bytes, field: str) -> None:
    bench.start()
    answer = bench.ask(payload)
    assert answer["type"] == "rejected"
    assert answer["field"] == field
    assert bench.ask(b'{"type": "status"}')["type"] == "status"


def test_requests_wait_for_the_engine_and_status_does_not(bench: Bench) -> None:
    process = bench.start()
    bench.client.send(b'{"type": "speak", "id": "a", "text": "Hello."}')
    assert bench.ask(b'{"type": "status"}')["healthy"] is False
    assert not process.machine.state.utterances


def test_a_record_that_cannot_be_read_is_set_aside_and_its_owner_told(bench: Bench) -> None:
    journal = Journal(bench.endpoints.journal)
    journal.write([Put(utterance_record(1, "good")), Put(TextRecord(1, 0, "Fine."))])
    journal.write([Put(utterance_record(2, "bad")), Put(TextRecord(2, 5, "not from the start"))])
    journal.close()
    process = bench.start()
    bench.until(lambda: bench.client.poll(0))
    event = json.loads(bench.client.recv())
    assert (event["type"], event["id"], event["final"]) == ("failed", "bad", True)
    assert [utterance.id for utterance in process.machine.state.utterances.values()] == ["good"]
    assert process.machine.state.counters.counts["set_aside"] == 1


def test_a_record_on_which_a_dispatcher_died_is_not_read_again(bench: Bench) -> None:
    journal = Journal(bench.endpoints.journal)
    for uid in (1, 2):
        journal.write([Put(utterance_record(uid, str(uid))), Put(TextRecord(uid, 0, "Text."))])
    journal.set_fact("suspect", 1)
    journal.close()
    process = bench.start()
    assert [utterance.id for utterance in process.machine.state.utterances.values()] == ["2"]
    assert Journal(bench.endpoints.journal).utterances() == [2]


def test_every_start_is_a_new_epoch(bench: Bench) -> None:
    assert bench.start().machine.state.epoch == 1
    bench.process.close()
    assert bench.start().machine.state.epoch == 2


def test_a_journal_that_cannot_be_written_costs_only_the_safety_net(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    process = bench.start()

    def full(ops: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(process._journal, "write", full)
    process._write([Put(TextRecord(1, 0, "x"))])
    process._write([Put(TextRecord(1, 1, "y"))])
    assert process.machine.state.counters.counts["journal_writes_lost"] == 2
    assert capfd.readouterr().err.count("disk is full") == 1


def test_the_state_of_a_pause_outlives_the_dispatcher(bench: Bench) -> None:
    bench.start()
    assert bench.ask(b'{"type": "pause"}')["type"] == "paused"
    bench.process.close()
    assert bench.start().machine.state.paused
    assert msgspec.json.encode(bench.ask(b'{"type": "resume"}')) == b'{"type":"resumed"}'


def test_a_full_socket_is_tried_again_soon_and_then_ever_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    process = bench.start()
    with monkeypatch.context() as full:
        full.setattr(process.sockets, "send_client", lambda *_: "full")
        bench.client.send(b'{"type": "sing"}')
        bench.until(lambda: process._outbox.pending)
        waits_s = []
        for _ in range(10):
            waits_s.append(process._wait_s(time.monotonic()))
            process.turn(0)
    assert waits_s[0] == BLOCKED_WAIT_S[0]
    assert waits_s == sorted(waits_s)
    assert waits_s[-1] == BLOCKED_WAIT_S[1]
    process.turn(0)
    assert not process._outbox.pending
    assert process._blocked_wait_s == BLOCKED_WAIT_S[0]
