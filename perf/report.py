"""One HTML page of measurements: their tables, their pictures, the machine, the commands and the versions.

`python -m perf.report A.json B.json … --out report.html`; without files, of those in perf/results. The page is one
file that needs nothing from elsewhere, for light and dark screens. A picture is there where the script that measured
can draw one (`perf.common`: ``draw``), which needs matplotlib (``pip install 'chatterline[perf]'``).
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from perf.__main__ import scripts
from perf.common import ROOT, Cell, Draw, PerfError, Report, blank
from perf.page import Part, Picture, page

RESULTS = ROOT / "perf" / "results"


class Kept(msgspec.Struct, frozen=True):
    """What a report has to have (see `perf.common`)."""

    measures: str
    command: str
    machine: dict[str, Cell]
    code: dict[str, Cell]
    settings: dict[str, Cell]
    figures: dict[str, Cell]
    rows: dict[str, list[dict[str, Cell]]]


def read(path: Path) -> Report:
    """A report from its file. Raises `PerfError` when it is none, with what is wrong."""
    try:
        content = path.read_bytes()
        msgspec.json.decode(content, type=Kept)
    except OSError as error:
        raise PerfError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise PerfError(f"{path} is no report of a script of perf: {error}") from error
    report: Report = json.loads(content)
    return report


def drawing(measures: str) -> tuple[Draw | None, str]:
    """How the script draws its report, or why it does not (empty: it has no picture)."""
    if measures not in scripts():
        return None, f"there is no perf.{measures} here that could draw it"
    try:
        module = importlib.import_module(f"perf.{measures}")
    except ImportError as error:
        return None, f"no picture: perf.{measures} needs {error.name}, which is not installed"
    draw: Draw | None = getattr(module, "draw", None)
    return draw, ""


def picture(report: Report) -> Picture:
    """The report drawn twice. A report that its script cannot draw (any more) is told, the others are not lost."""
    draw, note = drawing(report["measures"])
    if draw is None:
        return Picture(note=note)
    try:
        return Picture(svg(draw, report, "default"), svg(draw, report, "dark_background"))
    except PerfError as error:
        return Picture(note=str(error))
    except Exception as error:  # noqa: BLE001 - kept files may be of an older version, or written by hand
        why = f"{type(error).__name__}: {error}"
        print(f"perf: perf.{report['measures']} cannot draw {report['command']!r}: {why}", file=sys.stderr)
        return Picture(note=f"perf.{report['measures']} cannot draw this: {why}")


def svg(draw: Draw, report: Report, style: str) -> str:
    """A report as SVG with nothing behind it, letters as outlines, the same bytes every time."""
    figure = blank()  # says what to install
    import matplotlib.style

    with matplotlib.style.context([style, {"svg.hashsalt": "chatterline", "svg.fonttype": "path"}]):
        figure = blank()
        draw(report, figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue().partition("\n")[2] if out.getvalue().startswith("<?xml") else out.getvalue()


def parts(paths: Sequence[Path]) -> list[Part]:
    """Every file's place on the page, in the order given. Two of one script are told apart by their files."""
    reports = [(path, read(path)) for path in paths]
    counts = Counter(report["measures"] for _, report in reports)
    lines = scripts()
    return [
        Part(
            report["measures"] if counts[report["measures"]] == 1 else f"{report['measures']} ({path.stem})",
            lines.get(report["measures"], ""),
            report,
            picture(report),
        )
        for path, report in reports
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="reports (default: perf/results/*.json)")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="(default: %(default)s)")
    given = parser.parse_args(argv)
    files = given.files or sorted(RESULTS.glob("*.json"))
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, of {', '.join(path.name for path in files)}"
    try:
        content = page(parts(files), made)
        given.out.write_text(content, encoding="utf-8")
    except (PerfError, OSError) as error:
        print(f"perf: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {len(files)} measurements, {len(content.encode()) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
