"""Where the speaker's sound goes: what every output has in common.

An output calls a `workers.playback.Playback` at its own pace: a sound card's callback
(`workers.sound_device`), a clock, or as fast as samples come (`workers.sound_paced`, into a file or
nowhere). The player's loop calls `Output.tend` several times a second; everything that takes time or
may fail happens there, never in a callback.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ipc.messages import PlayerFacts

_MEASURED = 512


class SoundError(Exception):
    """Sound can't go where it was asked to; the message names the setting and the fix."""


@dataclass(frozen=True)
class OutputStatus:
    """What an output saw since it was opened. ``available``: it takes samples now."""

    available: bool
    device: str
    underflows: int = 0
    reopens: int = 0
    callback_p99_ms: float = 0.0
    note: str = ""


class Output(Protocol):
    """One open output."""

    @property
    def facts(self) -> PlayerFacts:
        """Where sound goes, as of now."""

    def tend(self) -> None:
        """Look after it. Raises what broke it for good."""

    def status(self) -> OutputStatus:
        """How it stands."""

    def close(self) -> None:
        """End in silence, not in mid-sound, and let go of everything."""


class Intervals:
    """The times between the last callbacks. `note` keeps nothing that grows."""

    def __init__(self) -> None:
        self._ns = np.zeros(_MEASURED, np.int64)
        self._count = 0
        self.last_ns = 0

    def note(self, now_ns: int) -> None:
        """A callback began."""
        if self.last_ns:
            self._ns[self._count % _MEASURED] = now_ns - self.last_ns
            self._count += 1
        self.last_ns = now_ns

    def p99_ms(self) -> float:
        """99 of 100 callbacks came within this time after the one before."""
        known = self._ns[: min(self._count, _MEASURED)]
        return float(np.quantile(known, 0.99)) / 1e6 if len(known) else 0.0
