"""The engine workers as processes: `python -m workers.t3`, `python -m workers.s3gen`, killed and started again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ipc.channels import DispatcherSockets, FromWorker, Peer
from ipc.endpoints import Endpoints
from ipc.messages import (
    Bye,
    CancelStream,
    Generate,
    Hello,
    Internal,
    OpenStream,
    Probe,
    Probed,
    Ready,
    Rendered,
    Role,
    Stop,
    StreamClosed,
    TokenChunk,
    Tokens,
    WorkerStats,
)
from ipc.progress import ProgressLine, ProgressReader
from ipc.ring import Arena
from pipeline.config import Config, Model, Stage, Stages
from pipeline.engines.base import Samples
from tests.workers.tiny import POISON, encode, sound
from workers.life import Arguments
from workers.s3gen import LOOK_LATE_S, LOOK_SOON_S, MUCH_SAMPLES, Patience

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0
TEXT = "Every sample is heard exactly once, whoever is killed, whenever. " * 4
WHOLE = sound(encode(TEXT), 7)


class Rig:
    """A dispatcher's sockets, an arena and one worker process; `until` pumps."""

    def __init__(self, run_dir: Path, role: Role, engine: str = "tests.workers.tiny:ENGINE") -> None:
        self.role = role
        self.endpoints = Endpoints(run_dir)
        stages = Stages(t3=Stage(max_batch=4), s3gen=Stage(max_batch=4))
        self.endpoints.config.write_bytes(msgspec.json.encode(Config(model=Model(engine=engine), stages=stages)))
        self.arena = Arena.create(48_000, 4_800, 2)
        self.reader = self.arena.reader(1)
        self.heard: list[Samples] = []
        self.sockets = DispatcherSockets(self.endpoints.work, "tcp://127.0.0.1:0", 1)
        self.death = os.pipe()
        self.process: subprocess.Popen[str] | None = None
        self.progress: ProgressReader | None = None
        self.lines: list[ProgressLine] = []
        self.got: list[Internal] = []
        self.lease = 0

    def start(self) -> Peer:
        """Start the worker and wait until it is ready."""
        read, write = os.pipe()
        self.progress = ProgressReader(read)
        arguments = Arguments(0, os.getpid(), self.endpoints.run_dir, self.arena.fd, write, self.death[0])
        self.process = subprocess.Popen(
            arguments.command(self.role),
            pass_fds=(write, self.death[0], self.arena.fd),
            start_new_session=True,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(write)
        self.lease += 1
        self.arena.control(1).grant(self.lease)
        seen = len(self.got)
        self.until(lambda: any(isinstance(one, Ready) for one in self.got[seen:]))
        return self.sockets.peers[-1]

    def end(self) -> int:
        """Collect the worker's last words and its exit code."""
        assert self.process is not None
        assert self.progress is not None
        self.process.communicate(timeout=DEADLINE_S)
        self.pump()
        self.lines = self.progress.read()
        self.progress.close()
        for peer in self.sockets.peers:
            self.sockets.forget(peer)
        code = self.process.returncode
        self.process = self.progress = None
        return code

    def pump(self) -> None:
        self.got += [one.message for one in self.sockets.poll(0.005) if isinstance(one, FromWorker)]

    def until(self, done: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < end, self.got[-5:]
            self.pump()

    def hear(self, limit: int) -> None:
        for part in self.reader.regions(limit):
            self.heard.append(part.copy())
        self.reader.advance(sum(len(part) for part in self.heard[-2:]))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.end()
        self.sockets.close()
        self.arena.close()
        os.close(self.death[0])
        os.close(self.death[1])


@pytest.fixture
def s3gen(tmp_path: Path) -> Iterator[Rig]:
    stage = Rig(tmp_path, "s3gen")
    yield stage
    stage.close()


@pytest.fixture
def t3(tmp_path: Path) -> Iterator[Rig]:
    stage = Rig(tmp_path, "t3")
    yield stage
    stage.close()


def open_stream(stage: Rig, stream: int, known: Rendered | None = None) -> OpenStream:
    return OpenStream(
        stream=stream,
        slot=1,
        lease=stage.lease,
        epoch=1,
        segment=0,
        first_sample=0,
        voice="tiny",
        language="en",
        speed=1.0,
        seed=7,
        settings={},
        boundary="end",
        pause_samples=1000,
        rungs=(3, 6, 12),
        done_tokens=known.done_tokens if known else 0,
        done_samples=known.samples if known else 0,
        checkpoint=(known.checkpoint or b"") if known else b"",
    )


def send_tokens(stage: Rig, peer: Peer, stream: int) -> None:
    for first in range(0, len(TEXT), 10):
        piece = TEXT[first : first + 10]
        stage.sockets.send_worker(
            peer, Tokens(stream, first, len(piece), encode(piece), first + len(piece) == len(TEXT))
        )


@pytest.mark.slow
def test_the_s3gen_process_renders_into_the_ring_and_leaves_when_told(s3gen: Rig) -> None:
    peer = s3gen.start()
    s3gen.sockets.send_worker(peer, open_stream(s3gen, 1))
    send_tokens(s3gen, peer, 1)
    s3gen.sockets.send_worker(peer, Probe(5))

    def final() -> bool:
        s3gen.hear(10_000)
        return any(isinstance(one, Rendered) and one.final for one in s3gen.got)

    s3gen.until(final)
    s3gen.hear(10_000)
    np.testing.assert_array_equal(np.concatenate(s3gen.heard), np.concatenate([WHOLE, np.zeros(1000, np.float32)]))
    assert Probed(5) in s3gen.got
    s3gen.sockets.send_worker(peer, Stop())
    s3gen.until(lambda: Bye() in s3gen.got)
    stats = [one for one in s3gen.got if isinstance(one, WorkerStats)][-1]
    assert stats.blocked_s > 0
    assert stats.counters["samples"] == len(WHOLE) + 1000
    assert s3gen.end() == 0
    assert [line.ready for line in s3gen.lines if line.ready] == ["tiny on cpu"]


@pytest.mark.slow
def test_killed_s3gen_workers_repeat_and_lose_no_sample(s3gen: Rig) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    whole = len(WHOLE) + 1000
    known: Rendered | None = None
    kills = 0
    for stream in range(1, 100):
        peer = s3gen.start()
        s3gen.sockets.send_worker(peer, open_stream(s3gen, stream, known))
        send_tokens(s3gen, peer, stream)
        stop_at = 0 if kills > 8 else s3gen.reader.read + chance.randrange(2_000, whole // 8)

        def reached(stop_at: int = stop_at) -> bool:
            s3gen.hear(chance.randrange(1, 3000))
            return bool(stop_at and s3gen.reader.read >= stop_at) or s3gen.reader.read == whole

        s3gen.until(reached)
        assert s3gen.process is not None
        s3gen.process.send_signal(signal.SIGKILL)
        assert s3gen.end() == -signal.SIGKILL
        kills += 1
        checkpoints = [one for one in s3gen.got if isinstance(one, Rendered) and one.checkpoint and not one.final]
        known = checkpoints[-1] if checkpoints else None
        if s3gen.reader.read == whole:
            break
    assert kills > 3
    np.testing.assert_array_equal(np.concatenate(s3gen.heard), np.concatenate([WHOLE, np.zeros(1000, np.float32)]))


def test_a_cancelled_stream_is_closed_while_its_ring_is_full(s3gen: Rig) -> None:
    peer = s3gen.start()
    s3gen.sockets.send_worker(peer, open_stream(s3gen, 1))
    send_tokens(s3gen, peer, 1)
    s3gen.until(lambda: s3gen.arena.control(1).written == 4_800)
    s3gen.sockets.send_worker(peer, CancelStream(1))
    s3gen.until(lambda: StreamClosed(1) in s3gen.got)
    at = s3gen.arena.control(1).written
    s3gen.hear(10_000)
    s3gen.sockets.send_worker(peer, Probe(1))
    s3gen.until(lambda: Probed(1) in s3gen.got)
    assert s3gen.arena.control(1).written == at


def test_a_new_dispatcher_is_met_with_no_stream_left(s3gen: Rig) -> None:
    peer = s3gen.start()
    s3gen.sockets.send_worker(peer, open_stream(s3gen, 1))
    send_tokens(s3gen, peer, 1)
    s3gen.until(lambda: s3gen.arena.control(1).written == 4_800)
    s3gen.sockets.close()
    s3gen.got.clear()
    s3gen.sockets = DispatcherSockets(s3gen.endpoints.work, "tcp://127.0.0.1:0", 2)
    s3gen.until(lambda: any(isinstance(one, Ready) for one in s3gen.got))
    at = s3gen.arena.control(1).written
    assert isinstance(s3gen.got[0], Hello)
    (peer,) = s3gen.sockets.peers
    s3gen.hear(10_000)
    s3gen.sockets.send_worker(peer, Probe(1))
    s3gen.until(lambda: Probed(1) in s3gen.got)
    assert s3gen.arena.control(1).written == at
    assert not any(isinstance(one, Rendered) for one in s3gen.got)


def test_the_t3_process_generates_and_leaves_at_sigterm(t3: Rig) -> None:
    peer = t3.start()
    t3.sockets.send_worker(peer, Generate(1, TEXT, "end", "tiny", "en", 1.0, 7, {}, 1000.0))
    t3.until(lambda: any(isinstance(one, TokenChunk) and one.final for one in t3.got))
    assert b"".join(one.data for one in t3.got if isinstance(one, TokenChunk)) == encode(TEXT)
    assert t3.process is not None
    t3.process.terminate()
    t3.until(lambda: Bye() in t3.got)
    assert t3.end() == 0


def test_a_poisonous_text_kills_the_process_which_says_why(t3: Rig) -> None:
    peer = t3.start()
    t3.sockets.send_worker(peer, Generate(1, POISON, "end", "tiny", "en", 1.0, 7, {}, 1000.0))
    assert t3.process is not None
    process = t3.process
    t3.until(lambda: process.poll() is not None)
    assert t3.end() == 1
    errors = [line.error for line in t3.lines if line.error]
    assert len(errors) == 1
    assert errors[0].startswith("RuntimeError: poison (tiny.py:")


@pytest.mark.parametrize("role", ["t3", "s3gen"])
def test_an_engine_that_does_not_exist_is_exit_code_2(tmp_path: Path, role: Role) -> None:
    stage = Rig(tmp_path, role, engine="nope")
    try:
        read, write = os.pipe()
        stage.progress = ProgressReader(read)
        arguments = Arguments(0, os.getpid(), tmp_path, stage.arena.fd, write, -1)
        stage.process = subprocess.Popen(
            arguments.command(role), pass_fds=(write, stage.arena.fd), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        os.close(write)
        assert stage.end() == 2
        assert "nope" in next(line.error for line in stage.lines if line.error)
    finally:
        stage.close()


def test_a_worker_without_shared_memory_says_so(tmp_path: Path) -> None:
    command = Arguments(0, 0, tmp_path, -1, -1, -1).command("s3gen")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert "--arena is needed" in done.stderr


def test_full_rings_are_looked_at_less_often_unless_their_reader_is_fast() -> None:
    patience = Patience()
    for moved_samples in (0, MUCH_SAMPLES - 1):
        waits = [patience.next(True, moved_samples) for _ in range(10)]
        assert waits == sorted(waits)
        assert waits[-1] == LOOK_LATE_S
    waits = [patience.next(True, MUCH_SAMPLES) for _ in range(10)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] == LOOK_SOON_S
    assert patience.next(True, 0) == 2 * LOOK_SOON_S
    assert patience.next(False, 0) > 0.5
    assert patience.next(True, MUCH_SAMPLES) == LOOK_SOON_S
