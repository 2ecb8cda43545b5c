"""`launch` as a client of its own pipeline, over the public text socket like any program.

The client lives in a thread with an event loop of its own, so that nothing it waits for holds up
supervision.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from ipc.client import AsyncClient
from ipc.client_errors import ChatterlineError
from ipc.messages import State
from pipeline.config import Config
from pipeline.config_rules import reachable

EVERY_MS = 500
RETRY_S = 1.0
CLOSE_S = 1.0


class Talk:
    """A coroutine in a thread of its own, which `close` cancels."""

    def __init__(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._begun.wait(CLOSE_S)

    def close(self) -> None:
        """Cancel, and wait a little for the end."""
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            return

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._begun.set()
        await self._work()


class Watcher:
    """The pipeline's state as it changes; goes on after a dispatcher's restart."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._newest: State | None = None
        self._fresh = threading.Event()
        self._talk = Talk("watch", self._follow)

    def start(self) -> None:
        """Begin to follow."""
        self._talk.start()

    def close(self) -> None:
        """Stop."""
        self._talk.close()

    def __call__(self, timeout_s: float) -> State | None:
        """The newest state, once; None when none came in time."""
        if not self._fresh.wait(timeout_s):
            return None
        self._fresh.clear()
        return self._newest

    async def _follow(self) -> None:
        while True:
            try:
                async with _client(self._config) as client:
                    async for state in client.watch(EVERY_MS):
                        self._newest = state
                        self._fresh.set()
            except ChatterlineError:
                await asyncio.sleep(RETRY_S)  # there is no dispatcher yet, or none any more: the view says so


async def say(config: Config, text: str) -> str:
    """Speak ``text`` and wait until it has been heard; returns what went wrong (empty: nothing)."""
    try:
        async with _client(config) as client:
            speech = await client.speak(text)
            await speech.wait()
    except (ChatterlineError, OSError) as error:
        return str(error)
    return ""


def _client(config: Config) -> AsyncClient:
    return AsyncClient(reachable(config.text.bind), curve=config.text.curve or None)
