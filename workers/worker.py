"""The life cycle that engine workers share: HELLO, READY with facts, work loop, drain, bye.

A worker's loop is

    while not worker.leaving:
        for message in worker.receive(wait_s, waiting):
            worker.send(logic.handle(message))
        worker.send(logic.step())

`receive` does what has to come from the work loop, because it proves that the loop works: progress
reports to the supervisor, answers to `Probe`, statistics. After a `Welcome` (a new dispatcher) the
loop's logic drops what it has; `Ready` goes out when the loop comes back for more, so that it
proves that nothing older is being made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ipc.channels import WorkerChannel
from ipc.messages import (
    AudioFacts,
    Bye,
    Hello,
    Internal,
    PlayerFacts,
    Probe,
    Probed,
    Ready,
    Role,
    Stop,
    TokenFacts,
    Welcome,
    WorkerStats,
)
from pipeline.config import Config, Stage
from pipeline.engines.base import EngineConfig
from workers.life import Life

Facts = TokenFacts | AudioFacts | PlayerFacts
Doing = Literal["busy", "starved", "blocked"]

STATS_S = 0.5
STATS_HEARTBEAT_S = 5.0
BYE_LINGER_MS = 200


class StageClock:
    """Cumulative seconds of one worker: working, waiting for input, waiting for output."""

    def __init__(self, now: float) -> None:
        self.seconds: dict[Doing, float] = {"busy": 0.0, "starved": 0.0, "blocked": 0.0}
        self._doing: Doing = "busy"
        self._since = now

    def mark(self, doing: Doing, now: float) -> None:
        """From now on the worker is ``doing`` this."""
        self.seconds[self._doing] += now - self._since
        self._doing, self._since = doing, now


class Worker:
    """An engine worker's connection to supervisor and dispatcher. Closed by `leave`."""

    def __init__(self, life: Life, role: Role, config: Config) -> None:
        self._life = life
        self._progress_s = config.supervise.progress_s
        self._hang_s = config.supervise.hang_s
        hello = Hello(role, life.arguments.index, os.getpid(), 0)
        self._channel = WorkerChannel(life.endpoints.work, hello, life.wake_fd)
        self._facts: Facts | None = None
        self._announce = False
        self._stopped = False
        now = time.monotonic()
        self._clock = StageClock(now)
        self._progress_at = now
        self._stats_at = now
        self._stats_sent = (now, WorkerStats(0.0, 0.0, 0.0, 0))
        self._streams = 0
        self._counters: dict[str, int] = {}

    @property
    def leaving(self) -> bool:
        """Whether the process was told to leave (SIGTERM or `Stop`)."""
        return self._stopped or self._life.leaving

    def report(self, doing: str, deadline_s: float) -> None:
        """Declare an operation that may take longer than ``supervise.hang_s``, up to ``deadline_s``,
        before the loop (or this) reports again."""
        self._life.progress.progress(doing, max(deadline_s, self._hang_s))
        self._progress_at = 0.0  # the loop takes the long deadline back as soon as it is reached

    def ready(self, facts: Facts) -> None:
        """Loaded: tell supervisor and, at every `Welcome`, dispatcher. Statistics start here."""
        self._facts = facts
        self._clock = StageClock(time.monotonic())
        engine = facts.output if isinstance(facts, PlayerFacts) else facts.engine
        device = facts.device or "default device"
        note = f"; {facts.note}" if isinstance(facts, PlayerFacts) and facts.note else ""
        self._life.progress.ready(f"{engine} on {device}{note}")

    def receive(self, timeout_s: float, waiting: Doing = "starved") -> list[Internal]:
        """What the dispatcher sent, waiting up to ``timeout_s``, which counts as ``waiting``.

        A `Welcome` comes first: drop everything before handling the rest. Returns early at a signal.
        """
        now = time.monotonic()
        self._send_ready()
        self._tell(now)
        if timeout_s > 0:
            self._clock.mark(waiting, now)
            timeout_s = 0.0 if self.leaving else min(timeout_s, self._progress_at - now)
        messages = self._channel.receive(timeout_s)
        if timeout_s > 0:
            self._clock.mark("busy", time.monotonic())
        return [message for message in messages if not self._handled(message)]

    def send(self, messages: Iterable[Internal]) -> None:
        """Send each, in order."""
        for message in messages:
            self._channel.send(message)

    def load(self, streams: int, counters: dict[str, int]) -> None:
        """What the next statistics say: streams held, and the stage's own counters."""
        self._streams = streams
        self._counters = counters

    def leave(self) -> None:
        """Say the last statistics and goodbye, and close."""
        now = time.monotonic()
        self._clock.mark("busy", now)
        self._life.progress.progress("leaving", self._hang_s)
        self._channel.send(self._stats())
        self._channel.send(Bye())
        self._channel.close(BYE_LINGER_MS)

    def _handled(self, message: Internal) -> bool:
        match message:
            case Probe(probe):
                self._tell_stats(time.monotonic())  # who pings and then asks for the status gets shares up to now
                self._channel.send(Probed(probe))
            case Stop():
                self._stopped = True
            case Welcome():
                self._announce = True
                return False
            case _:
                return False
        return True

    def _send_ready(self) -> None:
        if self._announce and self._facts is not None:
            self._announce = False
            self._channel.send(Ready(self._facts))
            self._stats_sent = (0.0, self._stats_sent[1])  # the new dispatcher has none yet

    def _tell(self, now: float) -> None:
        if now >= self._progress_at:
            self._progress_at = now + self._progress_s
            self._life.progress.progress("work", self._hang_s)
        if now >= self._stats_at and self._facts is not None:
            self._stats_at = now + STATS_S
            self._clock.mark("busy", now)
            sent_at, sent = self._stats_sent
            if now - sent_at >= STATS_HEARTBEAT_S or _changed(sent, self._stats()):
                self._tell_stats(now)

    def _tell_stats(self, now: float) -> None:
        self._clock.mark("busy", now)
        self._stats_sent = (now, self._stats())
        self._channel.send(self._stats_sent[1])

    def _stats(self) -> WorkerStats:
        seconds = self._clock.seconds
        return WorkerStats(seconds["busy"], seconds["starved"], seconds["blocked"], self._streams, dict(self._counters))


def _changed(sent: WorkerStats, stats: WorkerStats) -> bool:
    """Whether something happened: an idle worker only grows starved, and its loop costs next to nothing."""
    worked = stats.busy_s - sent.busy_s > 0.01 or stats.blocked_s - sent.blocked_s > 0.01
    return worked or stats.streams != sent.streams or stats.counters != sent.counters


def engine_config(config: Config, stage: Stage) -> EngineConfig:
    """What an engine half is built from, according to pipeline.yaml."""
    model = config.model
    return EngineConfig(
        device=stage.device,
        weights=model.weights,
        precision=model.precision,
        voices_folder=config.voices.folder,
        max_batch=stage.max_batch,
        prompt_s=config.voices.prompt_s,
        cache_folder=str(Path(config.supervise.state_dir) / "cache") if config.supervise.state_dir else "",
        options=dict(model.options),
    )
