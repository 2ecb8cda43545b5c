"""CUDA graphs of functions of tensors, one for each set of shapes; without them the same functions, called.

A graph is captured only while `Replay.recording` is set, at warm-up. A call whose shapes were captured copies its
arguments into the graph's own tensors and replays it; any other call runs the function as it is. So nothing is ever
captured in the middle of an utterance, and a machine without CUDA runs the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Function = Callable[..., torch.Tensor]
_Shapes = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    arguments: tuple[torch.Tensor | None, ...]
    result: torch.Tensor


class Replay:
    """``function`` of tensors (or None) that gives one tensor, without Python branches on what they contain."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self.recording = False
        self._captured: dict[_Shapes, _Captured] = {}
        self._pool: object | None = None

    def __len__(self) -> int:
        return len(self._captured)

    def __call__(self, *arguments: torch.Tensor | None) -> torch.Tensor:
        """The function's result. It may be the graph's own tensor, which the next call of the same shapes changes."""
        shapes = _shapes(arguments)
        if self.recording and shapes not in self._captured:
            self._captured[shapes] = self._capture(arguments)
        captured = self._captured.get(shapes)
        if captured is None:
            return self._function(*arguments)
        for own, given in zip(captured.arguments, arguments, strict=True):
            if own is not None and given is not own:
                own.copy_(given, non_blocking=True)
        captured.graph.replay()
        return captured.result

    def _capture(self, arguments: tuple[torch.Tensor | None, ...]) -> _Captured:
        """Record the function for arguments like these, which must be on a CUDA device."""
        own = tuple(None if one is None else one.clone() for one in arguments)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what libraries set up at first use must not be recorded
            for _ in range(2):
                self._function(*own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = self._function(*own)
        self._pool = self._pool or graph.pool()
        return _Captured(graph, own, result)


def _shapes(arguments: tuple[torch.Tensor | None, ...]) -> _Shapes:
    return tuple(None if one is None else tuple(one.shape) for one in arguments)
