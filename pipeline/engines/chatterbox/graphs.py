"""CUDA graphs by key: captured before anybody speaks, replayed ever after; plain calls everywhere else.

A step of T3 is about a thousand small kernels: launched one by one from Python they take ten times as long as they
run. What is captured must read and write the same memory in every call; the caller sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class Graphs:
    """``active`` False (CPU, MPS, or graphs switched off): `run` only calls."""

    def __init__(self, active: bool) -> None:
        self.active = active
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool: object = None

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, key: Hashable, work: Callable[[], None]) -> None:
        """Record what ``work`` does; it is run twice before, so that nothing of it happens for the first time.

        Inactive: only run it, once, so that the memory it takes is there from now on."""
        if not self.active:
            work()
            return
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        self._pool = self._pool or graph.pool()
        self._graphs[key] = graph

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Replay, or call where there is nothing to replay."""
        graph = self._graphs.get(key)
        if graph is None:
            work()
        else:
            graph.replay()

    def give_up(self) -> None:
        """From now on only call."""
        self.active = False
        self._graphs.clear()
        self._pool = None
