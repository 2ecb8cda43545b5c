"""What every script here has in common: its options, quantiles, and the report as tables, as JSON, as a picture.

A report is one JSON object: ``measures`` (the script), ``command``, ``machine`` (with how busy others kept it),
``code`` (which version), ``settings`` (of the pipeline measured), ``figures`` (name → number), ``rows`` (tables);
where a picture needs them also ``curves``.

A script whose report says more as a picture has ``draw(report, figure)``, which draws such an object into an empty
matplotlib figure: `report` calls it for ``--png``, `perf.report` for its page. matplotlib is there with the extra
``[perf]``; nothing else needs it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from ipc.client_errors import ChatterlineError
from ipc.messages import PROTOCOL_VERSION

ROOT = Path(__file__).resolve().parents[1]

LIBRARIES = ("pyzmq", "msgspec", "numpy", "espeakng-loader")
MODEL_LIBRARIES = ("torch", "transformers", "chatterbox-tts")
"""Named where they are installed."""

Cell = str | int | float | bool | None
Row = dict[str, Cell]
Report = Mapping[str, Any]
"""The JSON object of a measurement."""

Draw = Callable[[Report, Any], None]
"""Draws a report into an empty ``matplotlib.figure.Figure``."""


class PerfError(Exception):
    """The measurement cannot be made; the message says why and what to do."""


# --------------------------------------------------------------------------- the report


def quantiles(name: str, values: Sequence[float], unit: str = "ms") -> Row:
    """A row with count, p50, p90, p99 and the greatest."""
    p50, p90, p99, most = np.percentile(np.asarray(values, np.float64), (50, 90, 99, 100)) if values else [np.nan] * 4
    return {
        "what": name,
        "count": len(values),
        f"p50_{unit}": round(float(p50), 3),
        f"p90_{unit}": round(float(p90), 3),
        f"p99_{unit}": round(float(p99), 3),
        f"max_{unit}": round(float(most), 3),
    }


def arguments(doc: str | None, *, connects: bool = True, draws: bool = False) -> argparse.ArgumentParser:
    """A parser with what all scripts have in common; of a script with a picture (``draws``) also ``--png``."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n\n")[0], allow_abbrev=False)
    if connects:
        parser.add_argument("--to", default="", metavar="ADDRESS", help="measure the pipeline that runs there")
        parser.add_argument("--engine", default="espeak", help="of a pipeline of our own (default: %(default)s)")
        parser.add_argument("--seed", type=int, default=1, help="of the texts (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine facts and figures here")
    if draws:
        parser.add_argument("--png", type=_picture, metavar="FILE", help="draw a picture of them here")
    return parser


def _picture(name: str) -> Path:
    """Said before anything is measured, not after."""
    try:
        blank()
    except PerfError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(name)


def at_least(parser: argparse.ArgumentParser, given: argparse.Namespace, **least: float) -> None:
    """Refuse numbers below their least with the option's name."""
    for name, limit in least.items():
        if getattr(given, name) < limit:
            parser.error(f"--{name.replace('_', '-')}: {getattr(given, name)}: at least {limit:g}")


class Began:
    """The start of a measurement: what it runs on, and how busy others keep the machine meanwhile.

    Other programs' CPU time is what the whole machine spent less what this process and its children did, the
    pipeline of our own among them; it is known once that has stopped.
    """

    def __init__(self) -> None:
        self.facts = machine()
        self._wall_s = time.monotonic()
        self._others_s = _machine_cpu_s() - _our_cpu_s()

    def machine(self, ours: bool) -> dict[str, Cell]:
        """The facts; with ``ours`` (the pipeline measured was our own) how many CPUs others used on average."""
        if not ours:
            return self.facts
        used_s = _machine_cpu_s() - _our_cpu_s() - self._others_s
        wall_s = time.monotonic() - self._wall_s
        return self.facts | {"measured_s": round(wall_s, 1), "cpus_used_by_others": round(max(0, used_s) / wall_s, 2)}


def _machine_cpu_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _our_cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def machine() -> dict[str, Cell]:
    """What the figures were measured on."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "system": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def code() -> dict[str, Cell]:
    """Which version of Chatterline was measured."""
    described = ""
    if (ROOT / ".git").exists():
        command = ["git", "describe", "--always", "--tags", "--dirty"]
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        described = asked.stdout.strip()
    libraries: dict[str, Cell] = {name: _version(name) for name in LIBRARIES}
    models: dict[str, Cell] = {name: found for name in MODEL_LIBRARIES if (found := _version(name))}
    return {"version": _version("chatterline"), "git": described, "protocol": PROTOCOL_VERSION, **libraries, **models}


def report(
    name: str,
    given: argparse.Namespace,
    tables: Mapping[str, Sequence[Row]],
    figures: Mapping[str, Cell] | None = None,
    settings: Mapping[str, Cell] | None = None,
    began: Began | None = None,
    draw: Draw | None = None,
    curves: Mapping[str, Any] | None = None,
) -> Report:
    """Print each table, and write everything to ``--json`` and as a picture to ``--png``; what was written.

    ``settings``: those of a pipeline of our own, empty for one that ran already, None without any. ``curves``: what
    a picture shows and no table says; not printed.
    """
    facts = began.machine(ours=settings is None or bool(settings)) if began else machine()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for title, rows in tables.items():
        console.print(_table(title, rows))
    for figure, value in (figures or {}).items():
        console.print(f"{figure}: {value}")
    if "cpus_used_by_others" in facts:
        console.print(f"other programs used {facts['cpus_used_by_others']} of {facts['cpus']} CPUs meanwhile")
    content = contents(name, given, tables, figures or {}, settings or {}, facts)
    content = {**content, "curves": dict(curves)} if curves else content
    write(given, content)
    if draw is not None and given.png is not None:
        picture = blank()
        draw(content, picture)
        picture.savefig(given.png)
    return content


def contents(
    name: str,
    given: argparse.Namespace,
    tables: Mapping[str, Sequence[Row]],
    figures: Mapping[str, Cell],
    settings: Mapping[str, Cell],
    facts: Mapping[str, Cell],
) -> Report:
    """A measurement as one JSON object."""
    asked = {key: value for key, value in vars(given).items() if key not in ("json", "png", "trace")}
    return {
        "measures": name,
        "command": f"python -m perf.{name} {' '.join(_options(asked))}".strip(),
        "machine": dict(facts),
        "code": code(),
        "settings": dict(settings),
        "figures": dict(figures),
        "rows": {title: list(rows) for title, rows in tables.items()},
    }


def write(given: argparse.Namespace, content: Report) -> None:
    """Write a report to ``--json``, if that is asked for."""
    if given.json is not None:
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def blank() -> Any:
    """An empty matplotlib figure with constrained layout. Raises `PerfError` where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PerfError("a picture needs matplotlib: pip install 'chatterline[perf]'") from error
    return Figure(figsize=(12, 7), dpi=100, layout="constrained")


def run(main: Coroutine[Any, Any, None]) -> int:
    """A script's last line: run, and say what went wrong in one line. Ctrl-C and SIGTERM end it at once, also while it
    computes (asyncio's own way would wait for its next ``await``), and no pipeline of its own is left running. One that
    comes while C code calls Python, as espeak-ng does, is lost: it takes a second."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        asyncio.run(main)
    except (PerfError, ChatterlineError) as error:
        print(f"perf: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    return table


def _options(asked: Mapping[str, object]) -> Iterator[str]:
    for key, value in asked.items():
        if value not in ("", None, False, []):
            name = f"--{key.replace('_', '-')}"
            given = " ".join(shlex.quote(str(one)) for one in (value if isinstance(value, list) else [value]))
            yield name if value is True else f"{name} {given}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """The processor's model where the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
