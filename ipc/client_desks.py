"""What a client's connections are for: utterances (`Voice`), questions (`Desk`), states (`States`).

Each listens on a `Connection` of its own. Nothing here knows sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ipc.client_errors import PipelineError, RequestError
from ipc.client_speech import AsyncSpeech
from ipc.messages import Event, Rejected, Request, State, Watch

log = logging.getLogger("chatterline")

KEPT_STATES = 4


class Listener(Protocol):
    """Whoever a connection is for."""

    async def arrived(self, event: Event, pcm: memoryview | None) -> None:
        """An event; the connection is not read further until this returns."""

    def back(self) -> Coroutine[Any, Any, None]:
        """The connection was lost and is there again."""

    async def fail(self, error: Exception) -> None:
        """The connection is lost for good."""


class Connection(Protocol):
    """The way to the pipeline."""

    async def open(self) -> None: ...

    async def send(self, request: Request) -> None: ...

    async def close(self) -> None: ...


Connect = Callable[[Listener], Connection]


class Voice:
    """The connection of utterances: a stream's own, or the one of all speaker utterances.

    ``retire`` is called when it is of no use for new utterances.
    """

    def __init__(self, connect: Connect, shared: bool, retire: Callable[[Voice], object]) -> None:
        self.shared = shared
        self._retire = retire
        self._speeches: dict[str, AsyncSpeech] = {}
        self._line = connect(self)
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, once for all who wait for it."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._line.open())
        await asyncio.shield(self._opening)

    def add(self, speech: AsyncSpeech) -> None:
        """Pass events of this utterance on to it."""
        if speech.id in self._speeches:
            raise ValueError(f"id: an utterance {speech.id!r} of this client is still open")
        self._speeches[speech.id] = speech

    async def send(self, request: Request) -> None:
        """Hand a request to the connection."""
        await self._line.send(request)

    def release(self, speech: AsyncSpeech) -> None:
        """The utterance is over."""
        if self._speeches.pop(speech.id, None) is not None and not self.shared:
            self._retire(self)

    async def arrived(self, event: Event, pcm: memoryview | None) -> None:
        name = getattr(event, "id", None)
        speech = self._speeches.get(name) if name else None
        if speech is not None:
            await speech.arrived(event, pcm)
        elif isinstance(event, Rejected):
            # What was still on its way to an utterance that is over by now is no news.
            level = logging.DEBUG if event.field == "id" else logging.WARNING
            log.log(level, "%s refused: %s: %s", event.request or "a message", event.field, event.reason)

    async def back(self) -> None:
        for speech in list(self._speeches.values()):
            await speech.back()

    async def fail(self, error: Exception) -> None:
        for speech in list(self._speeches.values()):
            await speech.fail(error)
        self._retire(self)

    async def close(self) -> None:
        """Close the connection; what is still open there can't be followed any more."""
        for speech in list(self._speeches.values()):
            await speech.fail(PipelineError("the client was closed"))
        await self._line.close()
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)


class Desk:
    """A connection for questions, one at a time, each with exactly one answer (as a REQ client)."""

    def __init__(self, connect: Connect, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._line = connect(self)
        self._open = False
        self._asked: Request | None = None
        self._answer: asyncio.Future[Event] | None = None
        self.usable = True
        """No answer but that of the next question can arrive."""

    async def ask(self, request: Request) -> Event:
        """The answer; raises `RequestError` when it is a refusal."""
        self.usable = False
        if not self._open:
            await self._line.open()
            self._open = True
        answer = asyncio.get_running_loop().create_future()
        self._asked, self._answer = request, answer
        await self._line.send(request)
        try:
            async with asyncio.timeout(self._timeout_s):
                event: Event = await answer
        except TimeoutError:
            raise PipelineError(
                f"the pipeline is there but has not answered for {self._timeout_s:g} s; "
                "its engine may still be loading: see `speak --status`"
            ) from None
        self.usable = self._asked is request
        self._asked = self._answer = None
        if isinstance(event, Rejected):
            raise RequestError(event)
        return event

    async def arrived(self, event: Event, pcm: memoryview | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(event)

    async def back(self) -> None:
        request, self._asked = self._asked, None  # asked twice: there may be a second answer
        if request is not None:
            await self._line.send(request)

    async def fail(self, error: Exception) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def close(self) -> None:
        """Close the connection."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(PipelineError("the client was closed"))
        await self._line.close()


class States:
    """A connection on which states arrive. Whoever reads too slowly gets the newest."""

    def __init__(self, connect: Connect, request: Watch) -> None:
        self._request = request
        self._line = connect(self)
        self._queue: asyncio.Queue[State | Exception] = asyncio.Queue(KEPT_STATES)

    async def open(self) -> None:
        """Connect and ask."""
        await self._line.open()
        await self._line.send(self._request)

    async def next(self) -> State:
        """The next state."""
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def arrived(self, event: Event, pcm: memoryview | None) -> None:
        if isinstance(event, State):
            self._put(event)
        elif isinstance(event, Rejected):
            self._put(RequestError(event))

    async def back(self) -> None:
        await self._line.send(self._request)

    async def fail(self, error: Exception) -> None:
        self._put(error)

    async def close(self) -> None:
        """Stop the states and close."""
        await self._line.close()

    def _put(self, item: State | Exception) -> None:
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(item)
