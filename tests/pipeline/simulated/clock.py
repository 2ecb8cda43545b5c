"""Simulated time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Simulated time, and what is to happen when. Also stands in for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        return self.now_s

    def at(self, at_s: float, act: Callable[[], None]) -> None:
        """Do something then (not before now)."""
        heapq.heappush(self._due, (max(at_s, self.now_s), next(self._numbers), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something so much later."""
        self.at(self.now_s + seconds, act)

    def step(self) -> None:
        """Let the next thing happen."""
        self.now_s, _, act = heapq.heappop(self._due)
        act()


class Alarm:
    """Calls one thing at the earliest of the times it was asked for."""

    def __init__(self, clock: Clock, act: Callable[[], None]) -> None:
        self._clock, self._act = clock, act
        self._at_s = float("inf")

    def at(self, at_s: float) -> None:
        if at_s < self._at_s:
            self._at_s = max(at_s, self._clock.now_s)
            self._clock.at(at_s, lambda at_s=self._at_s: self._ring(at_s))  # type: ignore[misc]

    def _ring(self, at_s: float) -> None:
        if at_s == self._at_s:
            self._at_s = float("inf")
            self._act()
