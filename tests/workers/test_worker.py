"""The life cycle of engine workers against a real dispatcher's sockets, in one thread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ipc.channels import DispatcherSockets, FromWorker
from ipc.endpoints import Endpoints
from ipc.messages import (
    AudioFacts,
    Bye,
    Grant,
    Hello,
    Internal,
    Probe,
    Probed,
    Ready,
    Stop,
    Welcome,
    WorkerStats,
)
from ipc.progress import ProgressReader, ProgressWriter
from pipeline.config import Config, Model, Stage, Supervise
from workers import worker as module
from workers.life import Arguments, Life
from workers.worker import StageClock, Worker, engine_config

DEADLINE_S = 10.0
FACTS = AudioFacts("tiny", 3, True, 16, 0.04, "cuda:0")


class QuietLife:
    """A `Life` without its effects on the process that it runs in."""

    def __init__(self, run_dir: Path, progress: int) -> None:
        self.arguments = Arguments(2, 0, run_dir, -1, progress, -1)
        self.endpoints = Endpoints(run_dir)
        self.progress = ProgressWriter(progress)
        self.leaving = False
        self.wake_fd, self._wakes = os.pipe2(os.O_NONBLOCK)

    def close(self) -> None:
        self.progress.close()
        os.close(self.wake_fd)
        os.close(self._wakes)


class Pair:
    """A worker and its dispatcher; `until` pumps both."""

    def __init__(self, run_dir: Path, **supervise: float) -> None:
        read, write = os.pipe()
        self.life = QuietLife(run_dir, write)
        self.reader = ProgressReader(read)
        self.worker = Worker(cast(Life, self.life), "s3gen", Config(supervise=Supervise(**supervise)))  # type: ignore[arg-type]
        self.sockets = self.dispatcher(1)
        self.heard: list[Internal] = []
        self.got: list[Internal] = []
        self.left = False

    def dispatcher(self, epoch: int) -> DispatcherSockets:
        self.sockets = DispatcherSockets(self.life.endpoints.work, "tcp://127.0.0.1:0", epoch)
        return self.sockets

    def pump(self, wait_s: float = 0.002) -> list[Internal]:
        got = [] if self.left else self.worker.receive(wait_s)
        self.got += got
        self.heard += [one.message for one in self.sockets.poll(wait_s) if isinstance(one, FromWorker)]
        return got

    def until(self, done: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < end, f"{self.heard} {self.got}"
            self.pump()

    def ready(self) -> None:
        self.worker.ready(FACTS)
        self.until(lambda: Ready(FACTS) in self.heard)

    def send(self, message: Internal) -> None:
        (peer,) = self.sockets.peers
        self.sockets.send_worker(peer, message)

    def stats(self) -> list[WorkerStats]:
        return [one for one in self.heard if isinstance(one, WorkerStats)]

    def leave(self) -> None:
        self.worker.leave()
        self.left = True

    def close(self) -> None:
        if not self.left:
            self.leave()
        self.sockets.close()
        self.life.close()
        self.reader.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path, progress_s=0.05)
    yield pair
    pair.close()


def test_a_worker_says_hello_then_ready_with_its_facts(pair: Pair) -> None:
    pair.ready()
    hello, ready = pair.heard[:2]
    assert isinstance(hello, Hello)
    assert (hello.role, hello.index, hello.pid) == ("s3gen", 2, os.getpid())
    assert ready == Ready(FACTS)
    assert [type(one) for one in pair.got] == [Welcome]
    ready_lines = [line.ready for line in pair.reader.read() if line.ready]
    assert ready_lines == ["tiny on cuda:0"]


def test_ready_goes_out_only_when_the_loop_has_handled_the_welcome(pair: Pair) -> None:
    pair.worker.ready(FACTS)
    for epoch in (1, 2):
        end = time.monotonic() + DEADLINE_S
        while not any(isinstance(one, Welcome) for one in pair.pump()):
            assert time.monotonic() < end
        for _ in range(20):  # the loop is still dropping what it has
            pair.heard += [one.message for one in pair.sockets.poll(0.002) if isinstance(one, FromWorker)]
        assert pair.heard.count(Ready(FACTS)) == epoch - 1
        pair.until(lambda epoch=epoch: pair.heard.count(Ready(FACTS)) == epoch)  # type: ignore[misc]
        if epoch == 1:
            pair.sockets.close()
            pair.dispatcher(2)


def test_nothing_is_ready_before_the_engine_is_loaded(pair: Pair) -> None:
    pair.until(lambda: pair.got)
    for _ in range(20):
        pair.pump()
    assert [type(one) for one in pair.heard] == [Hello]


def test_probes_are_answered_from_the_loop_and_kept_from_the_logic(pair: Pair) -> None:
    pair.ready()
    pair.send(Probe(17))
    pair.send(Grant(1, 2.0))
    for _ in range(20):
        assert pair.sockets.poll(0.002) == [] or not any(
            isinstance(one, Probed) for one in pair.heard
        )  # nobody looked yet
    pair.until(lambda: Probed(17) in pair.heard and Grant(1, 2.0) in pair.got)
    assert Probe(17) not in pair.got


def test_a_probe_is_answered_with_how_the_time_was_spent_until_then(pair: Pair) -> None:
    pair.ready()
    began = time.monotonic()
    pair.send(Probe(17))
    pair.until(lambda: Probed(17) in pair.heard)
    told = pair.heard[pair.heard.index(Probed(17)) - 1]
    assert isinstance(told, WorkerStats)
    assert told.busy_s + told.starved_s + told.blocked_s > 0
    pair.send(Probe(18))
    pair.until(lambda: Probed(18) in pair.heard)
    again = pair.heard[pair.heard.index(Probed(18)) - 1]
    assert isinstance(again, WorkerStats)
    spent_s = (again.busy_s + again.starved_s) - (told.busy_s + told.starved_s)
    assert 0 < spent_s <= time.monotonic() - began


def test_a_stop_and_a_signal_end_the_loop(pair: Pair) -> None:
    pair.ready()
    assert not pair.worker.leaving
    pair.life.leaving = True
    assert pair.worker.leaving
    pair.life.leaving = False
    pair.send(Stop())
    pair.until(lambda: pair.worker.leaving)
    began = time.monotonic()
    pair.worker.receive(60.0)
    assert time.monotonic() - began < 30.0


def test_a_worker_that_leaves_says_bye_after_all_else(pair: Pair) -> None:
    pair.ready()
    pair.worker.send([Probed(1), Probed(2)])
    pair.worker.load(3, {"rungs": 5})
    pair.leave()
    pair.until(lambda: Bye() in pair.heard)
    last = pair.heard[-4:]
    assert last[:2] == [Probed(1), Probed(2)]
    assert isinstance(last[2], WorkerStats)
    assert (last[2].streams, last[2].counters) == (3, {"rungs": 5})


def test_the_loop_reports_progress_with_its_deadline(pair: Pair) -> None:
    pair.ready()
    lines = pair.reader.read()
    pair.until(lambda: lines.extend(pair.reader.read()) or len([one for one in lines if one.progress]) > 3)
    work = [one for one in lines if one.progress]
    assert {(one.doing, one.deadline_s) for one in work} == {("work", 5.0)}
    counts = [one.progress for one in work]
    assert counts == sorted(set(counts))  # type: ignore[type-var]


def test_progress_stops_when_the_loop_stops(pair: Pair) -> None:
    pair.ready()
    pair.reader.read()
    for _ in range(20):
        pair.sockets.poll(0.01)
    assert pair.reader.read() == []


def test_a_long_operation_declares_its_deadline_and_the_loop_takes_it_back(pair: Pair) -> None:
    pair.ready()
    pair.reader.read()
    pair.worker.report("capturing graphs", 90.0)
    pair.worker.report("short", 0.1)
    pair.worker.receive(0.0)
    assert [(one.doing, one.deadline_s) for one in pair.reader.read()][:3] == [
        ("capturing graphs", 90.0),
        ("short", 5.0),  # never below what the supervisor waits anyway
        ("work", 5.0),
    ]


def test_a_long_wait_is_cut_short_by_the_next_report(pair: Pair) -> None:
    pair.ready()
    began = time.monotonic()
    pair.worker.receive(60.0)
    assert time.monotonic() - began < 30.0


def test_statistics_go_out_when_something_changed_and_rarely_otherwise(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STATS_S", 0.01)
    pair.ready()
    monkeypatch.setattr(pair.worker._clock, "mark", lambda *_: None)  # this thread is busy for the dispatcher, too
    pair.until(pair.stats)  # the first after ready, for the dispatcher to have some
    sent = len(pair.stats())
    for _ in range(50):
        pair.pump()
    assert len(pair.stats()) <= sent + 1
    pair.worker.load(2, {"rungs": 1})
    pair.until(lambda: pair.stats()[-1].streams == 2)
    pair.worker.load(2, {"rungs": 2})
    pair.until(lambda: pair.stats()[-1].counters == {"rungs": 2})
    monkeypatch.setattr(module, "STATS_HEARTBEAT_S", 0.02)
    sent = len(pair.stats())
    pair.until(lambda: len(pair.stats()) > sent + 3)


def test_seconds_are_counted_by_what_the_worker_was_doing() -> None:
    clock = StageClock(100.0)
    for doing, at in (("starved", 101.0), ("busy", 103.0), ("blocked", 103.5), ("busy", 107.5), ("busy", 108.5)):
        clock.mark(cast(Any, doing), at)
    assert clock.seconds == {"busy": 2.5, "starved": 2.0, "blocked": 4.0}


def test_waiting_counts_as_starved_or_blocked_and_the_rest_as_busy(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.ready()
    now = [time.monotonic()]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    pair.worker._clock = StageClock(now[0])

    def receive(timeout_s: float) -> list[Internal]:
        now[0] += 2.0 if timeout_s else 0.25
        return []

    monkeypatch.setattr(pair.worker._channel, "receive", receive)
    pair.worker._stats_at = pair.worker._progress_at = now[0] + 1000.0
    pair.worker.receive(60.0, "starved")
    now[0] += 1.0
    pair.worker.receive(60.0, "blocked")
    pair.worker.receive(60.0, "blocked")
    pair.worker.receive(0.0, "blocked")
    pair.worker._clock.mark("busy", now[0])
    assert pair.worker._clock.seconds == pytest.approx({"busy": 1.25, "starved": 2.0, "blocked": 4.0})
    monkeypatch.undo()


def test_the_engine_s_configuration_comes_from_the_stage() -> None:
    config = Config(model=Model(weights="/w", precision="float16", options={"a": 1}))
    built = engine_config(config, Stage(device="cuda:1", max_batch=9))
    assert (built.device, built.weights, built.precision, built.max_batch) == ("cuda:1", "/w", "float16", 9)
    assert (built.options, built.voices_folder) == ({"a": 1}, "voices")
