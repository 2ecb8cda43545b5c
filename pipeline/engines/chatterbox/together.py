"""Jobs of equal shape through a network together, in as many rows as memory bears."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch

Job = TypeVar("Job")
Made = TypeVar("Made")

_log = logging.getLogger(__name__)


class OutOfMemory(Exception):
    """Not even one row fits."""


class Memory:
    """How many rows go through at once. ``powers``: fill up to a power of two with copies, for graphs' sake."""

    def __init__(self, rows: int, *, powers: bool = False) -> None:
        self.rows = max(1, rows)
        self.powers = powers
        self.splits = 0

    def halve(self, rows: int) -> None:
        """After ``rows`` rows did not fit. Raises `OutOfMemory` when that was one."""
        if rows == 1:
            raise OutOfMemory
        self.rows = max(1, rows // 2)
        self.splits += 1
        _log.warning("out of GPU memory with %d streams at once; from here on at most %d", rows, self.rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def together(
    jobs: Sequence[Job], key: Callable[[Job], Hashable], call: Callable[[Sequence[Job]], Sequence[Made]], memory: Memory
) -> list[Made | OutOfMemory]:
    """``call`` of all jobs, in groups of equal ``key``; results in the order of the jobs.

    A group that does not fit into memory is split, and so is every later one.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault(key(job), []).append(index)
    made: dict[int, Made | OutOfMemory] = {}
    for members in groups.values():
        waiting = list(members)
        while waiting:
            now = waiting[: memory.rows]
            try:
                made |= zip(now, call(_filled([jobs[index] for index in now], memory)), strict=False)
            except RuntimeError as error:
                if not is_memory(error):
                    raise
                try:
                    memory.halve(len(now))
                except OutOfMemory as nothing:
                    made[now[0]] = nothing
                    waiting = waiting[1:]
                continue
            waiting = waiting[len(now) :]
    return [made[index] for index in range(len(jobs))]


def is_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: the device is well otherwise. (Other CUDA errors stick to the process.)"""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def _filled(jobs: list[Job], memory: Memory) -> list[Job]:
    """With as many rows as a graph has."""
    if not memory.powers:
        return jobs
    rows = min(1 << (len(jobs) - 1).bit_length(), max(memory.rows, len(jobs)))
    return jobs + [jobs[-1]] * (rows - len(jobs))
