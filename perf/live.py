"""`python -m perf.queues --watch`: the live view of `launch`, with means and shares of the last seconds, and who is
waited for."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import aclosing

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live

from ipc.client import AsyncClient
from ipc.messages import ProcessState, QueueFill, Role, StageShare, State
from launch.view import Picture, draw
from perf.bottleneck import verdict
from perf.window import LOOK_MS, Window, between

WINDOW_S = 10.0
FRAME_S = 0.5
LINE_S = 2.0
"""Where standard output is no terminal: a line that often."""


class Seen:
    """The states of the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._states: deque[State] = deque()

    def add(self, state: State) -> None:
        """One more; those of a dispatcher before this one count no more."""
        if self._states and state.uptime_s < self._states[-1].uptime_s:
            self._states.clear()
        self._states.append(state)
        while state.uptime_s - self._states[1 if len(self._states) > 1 else 0].uptime_s >= WINDOW_S:
            self._states.popleft()

    @property
    def window(self) -> Window | None:
        """What happened meanwhile; None as long as there is but one state."""
        if len(self._states) < 2 or self._states[-1].uptime_s <= self._states[0].uptime_s:
            return None
        first, *rest = self._states
        return between(first, rest[-1], rest)

    @property
    def last(self) -> State | None:
        """The newest."""
        return self._states[-1] if self._states else None


def picture(seen: Seen, to: str) -> Picture:
    """What the view of `launch` shows, with the figures of these seconds instead of those since the start."""
    state, window = seen.last, seen.window
    if state is None or window is None:
        return Picture("waiting", to, "", 0.0)
    processes = tuple(_process(stage) for stage in state.stages)
    found = verdict(window, None)
    lines = (
        f"of the last {window.seconds:.0f} s, {window.idle:.0%} idle",
        f"{found.who or 'nobody'} is waited for ({found.share:.0%}): {found.advice}",
    )
    shown = msgspec.structs.replace(
        state,
        stages=tuple(_recent(stage, window) for stage in state.stages),
        queues={name: _recent_fill(name, fill, window) for name, fill in state.queues.items()},
    )
    return Picture("watched", to, state.engine, state.uptime_s, processes, shown, lines)


def _process(stage: StageShare) -> ProcessState:
    name, _, index = stage.worker.rpartition("-")
    role: Role = msgspec.convert(name, Role)
    return ProcessState(role, int(index), stage.pid, stage.state, stage.restarts, stage.rss_bytes, stage.cpu_s)


def _recent(stage: StageShare, window: Window) -> StageShare:
    spent = window.stages.get(stage.worker)
    if spent is None:
        return stage
    return msgspec.structs.replace(stage, busy=spent.busy, starved=spent.starved, blocked=spent.blocked)


def _recent_fill(name: str, fill: QueueFill, window: Window) -> QueueFill:
    return msgspec.structs.replace(fill, mean=window.queues[name].mean, most=window.queues[name].most)


async def watch(to: str) -> None:
    """Show a running pipeline until Ctrl-C: on a terminal the view, else a line every now and then."""
    seen = Seen()
    async with AsyncClient(to) as client:
        await client.status()  # says in one line that nobody is there
        shown = _show(seen, client.to) if sys.stdout.isatty() else _print(seen, client.to)
        tasks = [asyncio.ensure_future(work) for work in (_see(client, seen), _keep_fresh(client), shown)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _see(client: AsyncClient, seen: Seen) -> None:
    async with aclosing(client.watch(LOOK_MS, timeline=True)) as states:
        async for state in states:
            seen.add(state)


async def _keep_fresh(client: AsyncClient) -> None:
    """Workers that wait say so seldom; a ping has them say it."""
    while True:
        await client.ping()
        await asyncio.sleep(FRAME_S)


async def _show(seen: Seen, to: str) -> None:
    terminal = Console()

    def frame() -> RenderableType:
        return draw(picture(seen, to), terminal.size.width, terminal.size.height)

    with Live(frame(), console=terminal, screen=True, auto_refresh=False) as shown:
        while True:
            await asyncio.sleep(FRAME_S)
            shown.update(frame(), refresh=True)


async def _print(seen: Seen, to: str) -> None:
    while True:
        await asyncio.sleep(LINE_S)
        print("; ".join(picture(seen, to).lines), flush=True)
