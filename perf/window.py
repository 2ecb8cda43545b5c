"""What a running pipeline did between two moments: how full its queues were, what its stages did with their time.

The dispatcher keeps all that is needed. Means and shares come from two reports and what each covers, so they are exact
whatever happens in between; the greatest fills, and what stood where, from looks every `LOOK_MS` in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TypeVar

from ipc.client import AsyncClient
from ipc.messages import QueueFill, StageShare, State, StatusReport
from perf.common import PerfError

LOOK_MS = 200
"""Looking every 100 ms costs the pipeline 1 % of the speech's duration in CPU time, every 200 ms half of that."""
Report = State | StatusReport
_Many = TypeVar("_Many")


@dataclass(frozen=True)
class Spent:
    """What a worker did with its time, in shares of 1, and of how many seconds that is known."""

    busy: float
    starved: float
    blocked: float
    over_s: float


@dataclass(frozen=True)
class Fill:
    """Time-weighted mean of a queue, and its greatest fill: exact where it is a record, else that at any look."""

    mean: float
    most: float
    bound: float | None
    unit: str


@dataclass(frozen=True)
class Standing:
    """What stood where at one look, for ``weight`` of the window. Per output (the speaker, each listener)."""

    weight: float
    outputs: int
    listeners: int
    text_chars: float
    tokens_s: float
    sound_s: float

    @property
    def ahead_s(self) -> float:
        """Speech between the ear and what T3 makes next."""
        return self.tokens_s + self.sound_s


@dataclass(frozen=True)
class Window:
    """Everything between two reports. ``idle``: the share of it in which nobody wanted speech; ``made_s``: speech that
    was rendered meanwhile."""

    seconds: float
    stages: dict[str, Spent]
    queues: dict[str, Fill]
    looks: tuple[Standing, ...]
    idle: float
    ahead_limit_s: float
    made_s: float

    def spent(self, role: str) -> Spent | None:
        """Of the role's busiest worker: what one text or listener has to do with is one worker at a time."""
        mine = [spent for worker, spent in self.stages.items() if worker.rpartition("-")[0] == role]
        return max(mine, key=lambda spent: spent.busy, default=None)

    def workers(self, role: str) -> int:
        """How many of a role there are."""
        return sum(worker.rpartition("-")[0] == role for worker in self.stages)

    def mean(self, of: Callable[[Standing], float]) -> float:
        """Of something that stood there, over the time in which somebody wanted speech."""
        return sum(look.weight * of(look) for look in self.looks) / max(sum(look.weight for look in self.looks), 1e-9)


def spent(before: StageShare | None, after: StageShare) -> Spent:
    """What a worker did between two reports; ``before`` counts only of the same process."""
    if before is None or before.pid != after.pid or before.over_s > after.over_s:
        before = None
    over_s = after.over_s - (before.over_s if before else 0.0)
    if over_s <= 0:
        return Spent(0.0, 0.0, 0.0, 0.0)

    def share(name: str) -> float:
        first_s = getattr(before, name) * before.over_s if before else 0.0
        return min(1.0, max(0.0, (getattr(after, name) * after.over_s - first_s) / over_s))

    return Spent(share("busy"), share("starved"), share("blocked"), over_s)


def mean(before: QueueFill | None, after: QueueFill) -> float:
    """The time-weighted mean between two reports."""
    if before is None or before.over_s >= after.over_s:
        return after.mean
    area = after.mean * after.over_s - before.mean * before.over_s
    return max(0.0, area / (after.over_s - before.over_s))


def between(before: Report, after: Report, states: Sequence[State]) -> Window:
    """The window between two reports of one dispatcher. Raises `PerfError` when another has taken over."""
    seconds = after.uptime_s - before.uptime_s
    if seconds <= 0:
        raise PerfError("the dispatcher was restarted meanwhile; see its log")
    known = {stage.worker: stage for stage in before.stages}
    stages = {
        stage.worker: spent(known.get(stage.worker), stage)
        for stage in after.stages
        if stage.over_s > 0 and stage.state == "RUNNING"
    }
    stages |= _players(before, after, states)
    everything = [*states, after]
    queues = {name: _fill(name, before, after, everything) for name in after.queues}
    looks = tuple(_standings(everything, before.uptime_s))
    idle = max(0.0, 1.0 - sum(look.weight for look in looks))
    made_s = sum(work.speech_s for state in states for work in state.timeline if work.worker.startswith("s3gen-"))
    return Window(seconds, stages, queues, looks, idle, after.queues["tokens_waiting"].bound or 0.0, made_s)


def _fill(name: str, before: Report, after: Report, states: Sequence[Report]) -> Fill:
    fill, former = after.queues[name], before.queues.get(name)
    average = mean(former, fill)
    record = fill.most if former is None or fill.most > former.most else 0.0
    return Fill(average, max(average, record, *(state.queues[name].now for state in states)), fill.bound, fill.unit)


def _players(before: Report, after: Report, states: Sequence[State]) -> dict[str, Spent]:
    """The player keeps no account of its time: it is busy while it plays, and the rest it waits for sound."""
    seconds = after.uptime_s - before.uptime_s
    found = {}
    for worker in (stage.worker for stage in after.stages if stage.worker.startswith("player-")):
        pieces = [work for state in states for work in state.timeline if work.worker == worker]
        played_s = sum(max(0.0, min(one.to_s, after.uptime_s) - max(one.from_s, before.uptime_s)) for one in pieces)
        busy = min(1.0, played_s / seconds)
        found[worker] = Spent(busy, 1.0 - busy, 0.0, seconds)
    return found


def _standings(states: Sequence[Report], since_s: float) -> Iterator[Standing]:
    """Each look stands for the time since the one before; those when nobody wanted speech are left out."""
    whole_s = states[-1].uptime_s - since_s
    for state in states:
        weight = max(0.0, state.uptime_s - since_s) / whole_s
        since_s = max(since_s, state.uptime_s)
        if not state.queued or not weight:
            continue
        listeners = sum(one.output == "stream" for one in state.speaking)
        if listeners:  # only the first few are listed; those of one speaker come one after another
            listeners += state.queued - len(state.speaking)
        outputs = max(1, listeners + any(one.output == "speaker" for one in state.speaking))
        queues = state.queues
        sound_s = queues["ring"].now + queues["stream_rings"].now
        yield Standing(
            weight,
            outputs,
            listeners,
            queues["text_waiting"].now / outputs,
            queues["tokens_waiting"].now / outputs,
            sound_s / outputs,
        )


async def report(client: AsyncClient) -> StatusReport:
    """A report with what every worker did until now."""
    await client.ping()
    return await client.status()


async def observe(client: AsyncClient, workload: Awaitable[None], seconds: float) -> Window:
    """Let the pipeline work for so long; what it did. The workload is ended then, and says itself how (a
    `asyncio.CancelledError`). Raises what it raises; it may not end sooner."""
    working = asyncio.ensure_future(workload)
    states: list[State] = []
    watching = asyncio.create_task(_watch(client, states))
    try:
        before = await report(client)
        await asyncio.wait([working, watching], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        after = await report(client)
        for task in (working, watching):
            if task.done():
                task.result()
                raise PerfError("the workload was over too soon")
    finally:
        await _end(watching)
        await _end(working)
    within = [state for state in states if before.uptime_s < state.uptime_s < after.uptime_s]
    return between(before, after, within)


async def _watch(client: AsyncClient, states: list[State]) -> None:
    async with aclosing(client.watch(LOOK_MS, timeline=True)) as coming:
        async for state in coming:
            states += [state]


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
