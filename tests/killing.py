"""What the tests share that kill processes while these speak: how often and when, and who listens meanwhile.

`CHATTERLINE_KILLS=25 pytest tests/test_kills.py` kills as often as it says.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from chatterline import Client, Speech
from ipc.messages import SAMPLE_RATE, Finished
from launch.lifecycle import FIRST_BACKOFF_S, LONGEST_BACKOFF_S
from pipeline.engines.base import Samples
from tests.harness import Pcm, Pipeline, pcm, until

_Sound = TypeVar("_Sound", bound=npt.NDArray[Any])

MANY = int(os.environ.get("CHATTERLINE_KILLS", "0"))
"""Kills of each role, alone; 0: a few, of all roles in turn, in one run."""

KILLS = MANY or 6
SEED = 7
UNLIMITED = {"supervise.max_restarts": 1000}
TEXT = "The kettle began to sing, and the whole kitchen listened. Nobody had expected a tune from it! "
SIXTY = " ".join(f"Sentence number {number} is read to somebody who listens." for number in range(60))

IN_TURN = 1 if MANY else 2
"""At least so many roles share the kills."""

BACKOFFS_S = [min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (number // IN_TURN)) for number in range(KILLS)]
KILLING_S = sum(BACKOFFS_S) + 2.0 * KILLS
"""About how long so many kills take: each is waited for longer than the one before, then there is a start."""

FASTEST_CHARS_PER_S = 20
"""Of the engines here."""

AHEAD_S = 5 * (BACKOFFS_S[-1] + 2)
"""So much made ahead outlasts a process that is killed again while it starts, and once more."""

PACE = KILLING_S / 100
"""For a listener to whom `SIXTY` (some 200 s of it) lasts twice as long as that."""

PATIENCE_S = 60 + KILLING_S
"""How long a client is to wait for a pipeline that is hardly ever there."""

NO_GAPS = UNLIMITED | {
    "flow.flush_ms": 60_000,
    "text.idle_s": 600,
    "player.pace": "realtime",
    "player.prebuffer_ms": 1000,
    "flow.ahead_s": AHEAD_S,
    "flow.ring_s": AHEAD_S + 5,
}
"""Settings with which the speaker does not run dry, though processes die all the time, and with which a text
that grows is cut as if it had been given at once."""


def voiced(sound: _Sound) -> _Sound:
    """Without silence, which lasts longer between sentences while nobody decides."""
    kept: _Sound = sound[sound != 0]
    return kept


class Listener:
    """Takes the sound of a speech as it comes, and when each piece came.

    ``pace``: seconds to wait for each second of sound (0: read at once, 1: as the ear would); it may change.
    """

    def __init__(self, speech: Speech, pace: float = 0.0) -> None:
        self.arrived_s: list[float] = []
        self.speech = speech
        self.pace = pace
        self._parts: list[Samples] = []
        self.trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for part in self.speech:
                self._parts.append(np.asarray(part))
                self.arrived_s.append(time.monotonic())
                time.sleep(self.pace * len(part) / SAMPLE_RATE)
        except BaseException as error:  # noqa: BLE001 - `sound` raises it
            self.trouble = error

    @property
    def listening(self) -> bool:
        return self._thread.is_alive()

    def sound(self, timeout_s: float = 60.0) -> Pcm:
        """All of it, when it has ended."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "it did not end"
        if self.trouble is not None:
            raise self.trouble
        assert isinstance(self.speech.ending, Finished)
        assert self.speech.ending.failed_segments == 0
        return pcm(np.concatenate(self._parts))


class Growing:
    """A text for the speaker that is `TEXT` again and again: it goes on as long as it is to be disturbed."""

    def __init__(self, client: Client, speech: Speech) -> None:
        self.speech = speech
        self.text = ""
        self._client = client

    def wait_made_ahead(self) -> None:
        """The speaker could go on for a while, whatever dies."""
        self.grow()
        until(lambda: self._client.status().queues["ring"].now > 0.7 * AHEAD_S, "sound is made ahead", timeout_s=60)

    def grow(self) -> None:
        """There is more to say than is made ahead, and some to make."""
        while (len(self.text) - self.speech.heard_chars) / FASTEST_CHARS_PER_S < AHEAD_S + 10:
            self.text += TEXT
            self.speech.write(TEXT)


def in_turn(*roles: str) -> list[tuple[str, ...]]:
    """Whom the kills of one run each strike: all of these in turn, or each alone where there are many."""
    return [(role,) for role in roles] if MANY else [roles]


def kill_often(running: Pipeline, roles: tuple[str, ...], listener: Listener, speaking: Growing) -> None:
    """Kill whoever has one of these roles, in turn, `KILLS` times: mostly while it works, now and then while it starts.

    One that works has made something for both outputs by then: a segment at which two processes die without
    any progress between them is given up, and rightly so. Most must have died while both were heard.
    """
    ready = {role: re.compile(rf"^.*\b{role} 0 +ready in ", re.MULTILINE) for role in roles}
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    at_work = disturbed = 0
    started = dict.fromkeys(roles, 0)
    for number in range(KILLS):
        role = roles[number % len(roles)]
        speaking.grow()
        works = number < len(roles) or rng.random() < 0.7
        if works:
            until(lambda who=role: len(ready[who].findall(running.printed())) > started[who], f"{role} is ready again")
            for speech in (listener.speech, speaking.speech):
                made = speech.made_chars
                until(lambda one=speech, had=made: one.made_chars > had or one.ending, "it goes on", timeout_s=60)
        time.sleep(rng.uniform(0, 0.8 if works else 0.15))
        at_work += works
        disturbed += listener.listening and speaking.speech.ending is None
        print(f"kill {number}, {role} {'works' if works else 'starts'}")
        pid = running.kill(role)
        started[role] = len(ready[role].findall(running.printed()))
        running.wait_replaced(role, pid)
    listener.pace = 0.0
    print(f"{at_work} of {KILLS} kills at work, {disturbed} while both were heard; seed {seed}")
    assert disturbed >= 0.8 * KILLS, f"{listener.trouble!r} {speaking.speech.ending}"
