"""What interrupts the supervisor's wait: signals and requests from other threads. Both only record."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Iterator
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Wakes:
    """Signals and drain requests in the order in which they came, and a descriptor to wait at."""

    def __init__(self) -> None:
        self.fd, self._out = os.pipe()
        for end in (self.fd, self._out):
            os.set_blocking(end, False)
        self._signals: deque[signal.Signals] = deque()
        self._drains: deque[int] = deque()

    def signals(self) -> list[signal.Signals]:
        """Signals since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
        return [self._signals.popleft() for _ in range(len(self._signals))]

    def drains(self) -> list[int]:
        """Exit codes of drain requests since the last call."""
        return [self._drains.popleft() for _ in range(len(self._drains))]

    def ask_drain(self, code: int) -> None:
        """From any thread: stop when all has been heard, with this exit code."""
        self._drains.append(code)
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._out, b"\0")

    @contextlib.contextmanager
    def handling(self) -> Iterator[None]:
        """Handlers are ours within; those of before come back."""
        before_fd = signal.set_wakeup_fd(self._out, warn_on_full_buffer=False)
        before = {number: signal.signal(number, self._record) for number in HANDLED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.fd)
        os.close(self._out)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(signal.Signals(number))
