"""Time-weighted queue fills and latency distributions, in constant memory."""

from __future__ import annotations

from collections import Counter, deque

from ipc.messages import Latency, QueueFill

EXACT_DIGITS = 9
"""Of a mean or a share over all the time so far: after months, a difference of two is still good for milliseconds."""


class Gauge:
    """Fill of one queue over time: each level counts for as long as it stood."""

    def __init__(self, unit: str, bound: float | None = None) -> None:
        self.unit = unit
        self.bound = bound
        self._level = 0.0
        self._most = 0.0
        self._area = 0.0
        self._since_s: float | None = None
        self._start_s = 0.0

    def set(self, level: float, now_s: float) -> None:
        """The fill is ``level`` from ``now_s`` on."""
        if self._since_s is None:
            self._start_s = now_s
        else:
            self._area += self._level * (now_s - self._since_s)
        self._since_s = now_s
        self._level = level
        self._most = max(self._most, level)

    def fill(self, now_s: float) -> QueueFill:
        """Level now, mean and maximum since the first `set`."""
        if self._since_s is None:
            return QueueFill(0.0, 0.0, 0.0, self.bound, self.unit)
        elapsed_s = now_s - self._start_s
        area = self._area + self._level * (now_s - self._since_s)
        mean = area / elapsed_s if elapsed_s > 0 else self._level
        level, most = round(self._level, 4), round(self._most, 4)
        return QueueFill(level, round(mean, EXACT_DIGITS), most, self.bound, self.unit, round(elapsed_s, 4))


class LatencyWindow:
    """Percentiles over the last ``size`` measurements."""

    def __init__(self, size: int = 512) -> None:
        self._values_ms: deque[float] = deque(maxlen=size)
        self._count = 0
        self._summary = Latency(0, 0.0, 0.0, 0.0, 0.0)

    def add(self, value_ms: float) -> None:
        """One measurement."""
        self._values_ms.append(value_ms)
        self._count += 1

    def summary(self) -> Latency:
        """Percentiles by nearest rank; zeros when nothing was measured. Those who watch ask for it more often than
        anything is measured, so it is made anew only then."""
        if self._summary.count != self._count:
            self._summary = self._made()
        return self._summary

    def _made(self) -> Latency:
        ordered = sorted(self._values_ms)

        def rank(share: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

        return Latency(self._count, rank(0.5), rank(0.9), rank(0.99), round(self._values_ms[-1], 3))


class Counters:
    """Everything the dispatcher counts, by name."""

    HOPS = ("accepted", "first_tokens", "first_pcm", "loudspeaker", "listener")

    def __init__(self, bounds: dict[str, float | None]) -> None:
        self.queues = {
            "text_waiting": Gauge("characters", bounds.get("text_waiting")),
            "utterances": Gauge("utterances", bounds.get("utterances")),
            "credit_in_flight": Gauge("s", bounds.get("ahead")),
            "tokens_waiting": Gauge("s", bounds.get("ahead")),
            "ring": Gauge("s", bounds.get("ring")),
            "stream_rings": Gauge("s", bounds.get("stream_rings")),
            "device": Gauge("s"),
        }
        self.latencies = {hop: LatencyWindow() for hop in self.HOPS}
        self.counts: Counter[str] = Counter()
