"""How the parts of `perf.gpu` tell what they find: a line of JSON each, a row of a table or a figure.

They go out by the process's own output as it was at the start; what the packages underneath print later goes elsewhere.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from perf import texts
from perf.common import Cell

TEXT_CHARS = 200
MIB = 2**20

_OUT = os.fdopen(os.dup(1), "w")


def row(table: str, **cells: Cell) -> None:
    """Tell a row of a table."""
    print(json.dumps({"table": table, "row": cells}), file=_OUT, flush=True)


def figure(name: str, value: Cell) -> None:
    """Tell a figure."""
    print(json.dumps({"figure": name, "value": value}), file=_OUT, flush=True)


def shipped_dtype(device: str) -> Any:
    """What ``precision: auto`` comes to."""
    import torch

    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def text(seed: int) -> str:
    return texts.prose(TEXT_CHARS, random.Random(seed))[:TEXT_CHARS]


def forget_peak(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def peak_mib(device: str) -> int:
    """Of the device's memory; on the CPU of this process's."""
    import psutil
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_reserved()) // MIB
    return int(psutil.Process().memory_info().rss) // MIB


@contextmanager
def attempt(what: str) -> Iterator[None]:
    """One thing of several: if it fails, the others still count."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - told, and the part goes on
        row("problems", part=what, after_s=0.0, problem=said(error))


def said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
