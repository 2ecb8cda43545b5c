"""Random schedules for a whole pipeline, and what must hold after every event of them.

A `Schedule` is data: the setup and a list of timed actions, made from a seed by `schedule`. `run` plays
one in a `MachineRoom` and raises `Violation` where a promise is broken; `shrink` finds the few actions
of a failing schedule that are enough to break it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from tests.pipeline.simulated.room import simulated
from tests.pipeline.simulated.run import Outcome, Run
from tests.pipeline.simulated.schedules import Action, Schedule, schedule
from tests.pipeline.simulated.speech import Violation

__all__ = ["Action", "Outcome", "Schedule", "Violation", "run", "schedule", "shrink", "verdict"]


def run(plan: Schedule, trace: deque[str] | None = None) -> Outcome:
    """Play a schedule; ``trace`` gets what happens. Raises `Violation`."""
    room = Run(plan)
    room.trace = trace
    try:
        with simulated(room):
            return room.play()
    finally:
        room.arena.close()


def verdict(plan: Schedule) -> str:
    """What a schedule breaks (empty: nothing)."""
    try:
        run(plan)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return ""


def shrink(plan: Schedule, broken: Callable[[Schedule], bool] = lambda plan: bool(verdict(plan))) -> Schedule:
    """The fewest actions that are enough to break something: by halves, quarters, … and one by one."""
    actions = list(plan.actions)
    size = max(1, len(actions) // 2)
    while True:
        shrunk = False
        at = 0
        while at < len(actions):
            fewer = actions[:at] + actions[at + size :]
            if broken(replace(plan, actions=tuple(fewer))):
                actions, shrunk = fewer, True
            else:
                at += size
        if size == 1 and not shrunk:
            return replace(plan, actions=tuple(actions))
        size = size if shrunk and size == 1 else max(1, size // 2)
