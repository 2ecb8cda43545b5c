"""What has come over a live connection and was not handed to the pipeline yet.

Text waits here, up to a bound; beyond it the connection is not read. What ends an utterance from outside, a
cancel or the client's leaving, overtakes the text.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from enum import Enum

from starlette.websockets import WebSocket


class Mark(Enum):
    """What is no text."""

    END = "the text is complete"
    FLUSH = "speak what there is"
    CANCEL = "silence it"
    GONE = "the client has left"


class Inbox:
    """Text and orders, in order. ``most_chars`` may wait."""

    def __init__(self, most_chars: int) -> None:
        self._most_chars = most_chars
        self._items: deque[str | Mark] = deque()
        self._chars = 0
        self._changed = asyncio.Condition()
        self.stopped: Mark | None = None
        """CANCEL or GONE, once that has come."""

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self.stopped is Mark.GONE

    async def fill(self, socket: WebSocket) -> None:
        """Read frames until the client has left."""
        while (message := await socket.receive())["type"] == "websocket.receive":
            if (text := message.get("text")) is not None:
                await self._put(text)
        async with self._changed:
            self.stopped = Mark.GONE
            self._changed.notify_all()

    async def _put(self, text: str) -> None:
        """A frame; waits while there is no room."""
        order = order_in(text)
        async with self._changed:
            if order is Mark.CANCEL:
                self.stopped = Mark.CANCEL
                self._items.clear()
                self._chars = 0
            elif order is not None:
                self._items.append(order)
            else:
                await self._changed.wait_for(lambda: self._chars < self._most_chars)
                self._items.append(text)
                self._chars += len(text)
            self._changed.notify_all()

    async def begin(self) -> Mark | None:
        """Wait until there is something to say (None), or until there is a reason why not."""
        async with self._changed:
            while True:
                await self._changed.wait_for(lambda: bool(self._items) or self.stopped is not None)
                if self.stopped is not None:
                    mark, self.stopped = self.stopped, Mark.GONE if self.gone else None
                    return mark
                first = self._items[0]
                if isinstance(first, str) and not first.isspace():
                    return None
                self._take()
                if first is Mark.END:
                    return Mark.END

    async def take(self) -> str | Mark:
        """All text that waits, or else the order that comes next."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._items))
            item = self._take()
            while isinstance(item, str) and self._items and isinstance(self._items[0], str):
                item += str(self._take())
            self._changed.notify_all()
            return item

    async def stop(self) -> Mark:
        """Wait for what ends an utterance before its time."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.stopped is not None)
            assert self.stopped is not None
            return self.stopped

    def next_utterance(self) -> None:
        """The one that a cancel was meant for is over."""
        if not self.gone:
            self.stopped = None

    def _take(self) -> str | Mark:
        item = self._items.popleft()
        self._chars -= len(item) if isinstance(item, str) else 0
        return item


def order_in(text: str) -> Mark | None:
    """The order that a frame is, if it is one: nothing but exactly ``{"type": "cancel"}`` or flush, or empty."""
    if not text:
        return Mark.END
    if len(text) > 64 or not text.lstrip().startswith("{"):
        return None
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return {"cancel": Mark.CANCEL, "flush": Mark.FLUSH}.get(str(told["type"])) if set(told) == {"type"} else None
