"""What each stage did when, for those who watch: the last pieces of work, in constant memory."""

from __future__ import annotations

from collections import deque

from ipc.messages import Work

KEPT = 256


class Timeline:
    """The last `KEPT` pieces of work; each watcher remembers how far it has read."""

    def __init__(self) -> None:
        self._last: deque[Work] = deque(maxlen=KEPT)
        self.count = 0
        """Pieces of work so far, forgotten ones included."""

    def add(self, work: Work) -> None:
        """A piece of work is done."""
        self._last.append(work)
        self.count += 1

    def since(self, count: int) -> tuple[Work, ...]:
        """What was added after the first ``count`` pieces and is still known."""
        missed = min(self.count - count, len(self._last))
        return tuple(self._last)[len(self._last) - missed :]
