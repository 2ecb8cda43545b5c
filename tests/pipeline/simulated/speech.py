"""What is known of an utterance outside the pipeline: what was asked for, heard, and told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ipc.messages import (
    Event,
    Speak,
)
from tests.pipeline.simulated.schedules import LETTERS


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Sound:
    """What one program got of a stream."""

    first: int
    labels: list[np.ndarray[Any, Any]] = field(default_factory=list)
    next: int = 0
    confirmed: int = 0


@dataclass
class Speech:
    """One utterance, as its program and its listener know it."""

    request: Speak
    opener: str
    program: str
    """Who listens now."""
    text: str
    ended: bool
    accepted: int | None = None
    """Its number: what was accepted later has a higher one."""
    cancelling: bool = False
    may_be_cancelled: bool = False
    may_fail: bool = False
    refused: bool = False
    before: str = ""
    """The program that listened before the present one attached."""
    ending: Event | None = None
    ending_epoch: int = 0
    silenced: bool = False
    last: int = -1
    """Character heard last."""
    failed: list[tuple[int, int]] = field(default_factory=list)
    asked: Counter[int] = field(default_factory=Counter)
    told: Counter[int] = field(default_factory=Counter)
    """Per epoch, how often it was asked for, and its ending told."""
    arrived: set[str] = field(default_factory=set)
    """Programs that got its ending."""
    sounds: dict[str, Sound] = field(default_factory=dict)
    progress: tuple[int, int] = (0, 0)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def owed(self) -> list[int]:
        """Characters that are still to be heard."""
        return [at for at in range(self.last + 1, len(self.text)) if self.text[at] in LETTERS and not self.spared(at)]

    def spared(self, at: int) -> bool:
        """Told not to be spoken."""
        return any(first <= at < last for first, last in self.failed)
