"""Outputs without a sound card: into a WAV file or nowhere, at the pace of a clock or freely.

One thread takes the blocks. At real-time pace they follow the monotonic clock, one block a wake-up
(at least 20 ms of sound); a delay of more than a fifth of a second is not made up for, as with a
sound card, but counted. At free pace everything is taken as soon as it is there, without silence.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Protocol

import numpy as np

from ipc.messages import SAMPLE_RATE, PlayerFacts
from ipc.ring import Samples
from workers.playback import Playback
from workers.sound import Intervals, OutputStatus

_LEAST_WAKE_SAMPLES = SAMPLE_RATE // 50
_LATE_NS = 200_000_000
_RETRY_S = 1.0
_IDLE_S = (0.002, 0.02)
_END_S = 2.0


class Sink(Protocol):
    """Where the blocks of a paced output go."""

    def write(self, samples: Samples, sounding: int) -> None:
        """Take one block whose first ``sounding`` samples were made by somebody. Raises OSError."""

    def close(self) -> None:
        """Let go of everything."""


class Nowhere:
    """The sink of ``player.output: none``."""

    def write(self, samples: Samples, sounding: int) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing is held."""


class PacedOutput:
    """Takes blocks from a playback into a sink. ``free``: not at the pace of real time."""

    def __init__(self, playback: Playback, sink: Sink, facts: PlayerFacts, free: bool) -> None:
        self._facts = facts
        self._playback = playback
        self._sink = sink
        self._block = np.zeros(facts.block_samples, np.float32)
        self._blocks_a_wake = -(-_LEAST_WAKE_SAMPLES // facts.block_samples)
        self._intervals = Intervals()
        self._stop = threading.Event()
        self._underflows = 0
        self._trouble = ""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(free,), name="output", daemon=True)
        self._thread.start()

    @property
    def facts(self) -> PlayerFacts:
        """Where sound goes."""
        return self._facts

    def tend(self) -> None:
        """Raises what ended the output's thread."""
        if self._error is not None:
            raise self._error

    def status(self) -> OutputStatus:
        """How it stands."""
        return OutputStatus(
            available=not self._trouble,
            device=self._facts.device,
            underflows=self._underflows,
            callback_p99_ms=self._intervals.p99_ms(),
            note=self._trouble or self._facts.note,
        )

    def close(self) -> None:
        """Fade what is playing, then end."""
        self._playback.closing = True
        self._stop.set()
        self._thread.join(_END_S)
        self._sink.close()

    def _run(self, free: bool) -> None:
        try:
            if free:
                self._run_free()
            else:
                self._run_paced()
                self._put_paced(time.monotonic_ns())  # the fade
        except BaseException as error:  # noqa: BLE001 - `tend` raises it in the player's loop
            self._error = error

    def _run_paced(self) -> None:
        period_ns = self._blocks_a_wake * len(self._block) * 1_000_000_000 // SAMPLE_RATE
        due_ns = time.monotonic_ns()
        while not self._stop.is_set():
            # Not the event's wait: it takes twice the CPU time, 47 times a second.
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            now_ns = time.monotonic_ns()
            self._intervals.note(now_ns)
            if now_ns - due_ns > _LATE_NS:
                self._underflows += 1
                due_ns = now_ns
            self._put_paced(due_ns)
            due_ns += period_ns

    def _put_paced(self, due_ns: int) -> None:
        block_ns = len(self._block) * 1_000_000_000 // SAMPLE_RATE
        for number in range(self._blocks_a_wake):
            self._playback.fill(self._block)
            if not self._put(self._block, self._playback.sounding_samples):
                return
            self._playback.commit(time.monotonic_ns(), due_ns + number * block_ns, 0)

    def _run_free(self) -> None:
        idle_s = _IDLE_S[0]
        while not self._stop.wait(idle_s):
            self._intervals.note(time.monotonic_ns())
            idle_s = min(idle_s * 2, _IDLE_S[1])
            while taken := self._playback.drain(self._block):
                idle_s = _IDLE_S[0]
                if not self._put(self._block[:taken], taken):
                    return
                now_ns = time.monotonic_ns()
                self._playback.commit(now_ns, now_ns, 0)
            now_ns = time.monotonic_ns()
            self._playback.commit(now_ns, now_ns, 0)

    def _put(self, block: Samples, sounding: int) -> bool:
        """Into the sink; what cannot be written (a full disk) is tried again, nothing is taken meanwhile.

        False: it could not be written until the end.
        """
        while True:
            try:
                self._sink.write(block, sounding)
            except OSError as error:
                self._trouble = f"{self._facts.output} cannot be written ({error.strerror}); speech waits for it"
                if self._stop.wait(_RETRY_S):
                    return False
            else:
                self._trouble = ""
                return True


def wav_facts(path: Path, block: int, note: str = "") -> PlayerFacts:
    """What a player tells that writes this file."""
    return PlayerFacts(f"wav:{path}", str(path), SAMPLE_RATE, block, 0.0, note)
