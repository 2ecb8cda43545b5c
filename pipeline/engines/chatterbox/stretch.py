"""Speech at another speed with its pitch kept: Signalsmith Stretch (package python-stretch), in a stream that another
process can take up.

The library keeps its state to itself, so every call stretches a window of its own: the new samples with some that
came before and after. A window is moved to where it agrees best with the end of the one before, and crossfaded. What
that takes from call to call is the last input, a short piece of output and two counts: the same calls make the same
samples, in whatever process.

Above twice as long the library draws random phases; there it goes over a window twice, half the way each time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import numpy as np

from pipeline.engines.base import EngineError, Samples

RATE = 24_000
SLOWEST, FASTEST = 0.25, 4.0
CLEAN_SLOWEST = 0.5
"""Slower than this is done in two passes."""

BEFORE = 3 * RATE // 20
"""Input that a window has before what is new, for the library to warm up on."""

EDGE = RATE // 16
"""The end of a window that is not to be heard: half a block of the library's analysis."""

SEARCH = RATE // 80
"""How far a window may be moved, either way: a period of the lowest voices."""

MATCH, FADE = RATE // 50, RATE // 100
"""How much of two windows is compared, and crossfaded."""

_COUNTS = struct.Struct("<QQI")


class Stretcher:
    """One stream. ``speed`` 2: half as long. ``state``: of a predecessor, after any call but the final one."""

    def __init__(self, speed: float, state: bytes = b"") -> None:
        self._speed = speed
        self._after = EDGE + math.ceil((SEARCH + MATCH) * speed)
        self._taken = self._made = 0
        self._recent = self._tail = np.zeros(0, np.float32)
        if state:
            self._taken, self._made, tail = _COUNTS.unpack_from(state)
            rest = np.frombuffer(state, np.float32, offset=_COUNTS.size)
            self._tail, self._recent = rest[:tail], rest[tail:]

    @property
    def scale(self) -> float:
        """Samples that come out for one that goes in."""
        return 1.0 / self._speed

    @property
    def held_s(self) -> float:
        """Seconds of input that are waited for before a sample comes out."""
        return self._after / RATE

    def state(self) -> bytes:
        """What a successor goes on from."""
        counts = _COUNTS.pack(self._taken, self._made, len(self._tail))
        return counts + self._tail.tobytes() + self._recent.tobytes()

    def process(self, samples: Samples, final: bool) -> Samples:
        """The next samples in, those that are ready out; with ``final`` all the rest."""
        self._taken += len(samples)
        self._recent = np.concatenate([self._recent, samples.astype(np.float32, copy=False)])
        known = self._taken if final else self._taken - self._after
        upto = round(known / self._speed) if final else math.floor(known / self._speed)
        if upto <= self._made or (not final and upto < self._made + MATCH):
            return np.zeros(0, np.float32)
        made = self._window(upto, final)
        self._made = upto
        self._forget()
        return made

    def _window(self, upto: int, final: bool) -> Samples:
        """Output from where the last window ended up to ``upto``, from a fresh window over the recent input."""
        first = self._taken - len(self._recent)
        window = np.concatenate([stretched(self._recent, self._speed), np.zeros(SEARCH + MATCH, np.float32)])
        begin = self._made - round(first / self._speed)
        if len(self._tail):
            begin = _best(window, self._tail, begin)
        made = window[begin : begin + upto - self._made].copy()
        fade = min(FADE, len(self._tail), len(made))
        if fade:
            rising = np.linspace(0.0, 1.0, fade, dtype=np.float32)
            made[:fade] = made[:fade] * rising + self._tail[:fade] * (1 - rising)
        end = begin + upto - self._made
        self._tail = np.zeros(0, np.float32) if final else window[end : end + MATCH].copy()
        return made

    def _forget(self) -> None:
        """Keep the input that the next window begins with."""
        keep_from = max(0, math.floor(self._made * self._speed) - BEFORE)
        first = self._taken - len(self._recent)
        self._recent = self._recent[max(0, keep_from - first) :].copy()


def _best(window: Samples, tail: Samples, begin: int) -> int:
    """Where in the window, near ``begin``, it agrees best with the end of the one before."""
    low = max(0, begin - SEARCH)
    part = window[low : begin + SEARCH + len(tail)].astype(np.float64)
    likeness = np.correlate(part, tail.astype(np.float64), mode="valid")
    sums = np.concatenate([[0.0], np.cumsum(part * part)])
    energy = sums[len(tail) :] - sums[: -len(tail)]
    score = likeness / np.sqrt(energy + 1e-9)
    if score.max() <= 0:
        return begin
    return low + int(np.argmax(score))


def stretched(sound: Samples, speed: float) -> Samples:
    """A whole piece of sound at another speed, aligned with it at both ends."""
    from python_stretch import Signalsmith

    passes = 1 if speed >= CLEAN_SLOWEST else 2
    made = np.ascontiguousarray(sound, np.float32)[None]
    for _ in range(passes):
        stretch = Signalsmith.Stretch()
        stretch.preset(1, RATE)
        stretch.setTimeFactor(speed ** (1 / passes))
        made = np.ascontiguousarray(stretch.process(made), np.float32)
    length = round(len(sound) / speed)
    return np.pad(made[0][:length], (0, max(0, length - made.shape[1])))


def stretchers(speed: float) -> tuple[Callable[[bytes], Stretcher], ...]:
    """What a stream at that speed needs (nothing at 1). Raises `EngineError` for a speed that is out of range."""
    if not SLOWEST <= speed <= FASTEST:
        raise EngineError(f"speed: {speed:g} is not between {SLOWEST:g} and {FASTEST:g}")
    return () if speed == 1.0 else (lambda state: Stretcher(speed, state),)
