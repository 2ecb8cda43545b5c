"""Whether a change made anything slower, larger or worse: two groups of reports compared, noise taken into account.

    python -m perf.regress --before A1.json A2.json A3.json --after B1.json B2.json B3.json
    python -m perf.regress --run "first_sound --utterances 50" --times 5 --before OLD_CHECKOUT --after NEW_CHECKOUT

The second form runs the script itself, by turns in two folders with the code. Exit code 0: nothing is worse; 1:
something is, beyond its noise and beyond the tolerance; 2: nothing can be compared. How it is judged: `perf.comparing`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perf import common, comparing, turns
from perf.common import PerfError, Report, Row
from perf.comparing import Compared

COLOURS = {"worse": "#c0392b", "better": "#1e8449", "same": "#5d6d7e"}
OTHER_COLOUR = "#b2babb"
NOTABLE = ("worse", "better")
MOST_DRAWN = 40
BUSY_CPUS = 0.2
"""Other programs that use more than this make what was measured doubtful."""


def load(path: Path) -> Report:
    """A report. Raises `PerfError` for what is none."""
    try:
        content: Report = json.loads(path.read_text(encoding="utf-8"))
        if not {"measures", "machine", "code", "figures", "rows"} <= set(content):
            raise ValueError("it has no figures of a measurement")
    except (OSError, ValueError) as error:
        raise PerfError(f"{path} is no report of a script here ({error})") from error
    return content


def check(before: Sequence[Report], after: Sequence[Report]) -> list[str]:
    """What makes the comparison doubtful. Raises `PerfError` where different things were measured."""
    scripts = sorted({report["measures"] for report in (*before, *after)})
    if len(scripts) > 1:
        raise PerfError(f"these are reports of different scripts ({', '.join(scripts)}): compare those of one")
    found = []
    for part, names in (("machine", ("processor", "cpus", "memory_bytes", "python")), ("settings", None)):
        one, other = (
            {json.dumps({name: r[part].get(name) for name in names or sorted(r[part])}) for r in side}
            for side in (before, after)
        )
        if one | other != one & other:
            found.append(f"not the same {part}: {_apart(one, other)}")
    commands = {report["command"] for report in (*before, *after)}
    if len(commands) > 1:
        found.append("not the same command: " + "; ".join(sorted(commands)))
    busy = max(float(report["machine"].get("cpus_used_by_others", 0.0)) for report in (*before, *after))
    if busy > BUSY_CPUS:
        found.append(f"other programs used up to {busy} CPUs meanwhile: measure on a quiet machine")
    if len(before) == len(after) == 1:
        found.append(
            "one run on each side cannot tell noise from change: only figures and medians that differ by more than "
            f"{comparing.ALONE_PERCENT:g} % are called worse or better; give several runs"
        )
    return found


def _apart(one: set[str], other: set[str]) -> str:
    return f"{', '.join(sorted(one))} before, {', '.join(sorted(other))} after"


def tables(found: Sequence[Compared], alone: Sequence[tuple[comparing.Key, str, float]], every: bool) -> dict[str, Any]:
    """Figures, the cells of rows that changed (or all), and what only one side has."""
    figures = [one.as_row() for one in found if not one.key.table]
    cells = [one.as_row() for one in found if one.key.table and (every or one.verdict in NOTABLE)]
    missing: list[Row] = [
        {"of": key.table or "figures", "what": key.row, "column": key.column, "side": side, "median": value}
        for key, side, value in alone
    ]
    titled = {"figures": figures, "rows" if every else "rows that changed": cells, "only on one side": missing}
    return {title: rows for title, rows in titled.items() if rows}


def runs(before: Sequence[Report], after: Sequence[Report]) -> list[Row]:
    """What was compared."""
    return [
        {
            "side": side,
            "code": report["code"].get("git") or report["code"]["version"],
            "date": report["machine"]["date"],
            "processor": report["machine"]["processor"],
            "cpus": report["machine"]["cpus"],
            "cpus_used_by_others": report["machine"].get("cpus_used_by_others"),
        }
        for side, reports in (("before", before), ("after", after))
        for report in reports
    ]


def compare(given: argparse.Namespace, before: Sequence[Report], after: Sequence[Report]) -> int:
    """Compare, print, write; how many numbers are worse. Raises `PerfError` where there is nothing to compare."""
    doubts = check(before, after)
    found = comparing.compare(before, after, given.tolerance_percent)
    counts = Counter(one.verdict for one in found)
    if counts.total() == counts["not judged"]:
        raise PerfError("there is no number that both sides have and of which more or less would be worse")
    figures: Row = {
        "runs_before": len(before),
        "runs_after": len(after),
        "tolerance_%": given.tolerance_percent,
        "compared": len(found) - counts["not judged"],
        "worse": counts["worse"],
        "better": counts["better"],
        "same": counts["same"],
        "too_few_runs": counts["too few runs to tell"],
        "warnings": len(doubts),
    }
    shown = {"runs": runs(before, after), **tables(found, comparing.one_sided(before, after), given.all)}
    asked = argparse.Namespace(**vars(given) | {"run": shlex.quote(given.run) if given.run else ""})
    common.report("regress", asked, shown, figures, draw=draw)
    for doubt in doubts:
        print(f"perf: {doubt}", file=sys.stderr)
    for one in found:
        if one.verdict == "worse":
            where = " · ".join(part for part in one.key if part)
            print(f"perf: worse: {where}: {one.before:g} → {one.after:g}", file=sys.stderr)
    return counts["worse"]


def draw(report: Report, figure: Any) -> None:
    """By how many percent each figure, and each row's cell that changed, went up or down, and how sure that is."""
    shown = [row for title in ("figures", "rows that changed", "rows") for row in report["rows"].get(title, ())]
    shown = [row for row in shown if row["change_%"] is not None and row["verdict"] != "not judged"][:MOST_DRAWN]
    axes = figure.add_subplot()
    tolerance = report["figures"]["tolerance_%"]
    axes.axvspan(-tolerance, tolerance, color="#eef1f3", label=f"within the tolerance of {tolerance:g} %")
    axes.axvline(0, color="#5d6d7e", linewidth=0.8)
    for place, row in enumerate(shown):
        colour = COLOURS.get(row["verdict"], OTHER_COLOUR)
        if row["low_%"] is not None:
            axes.plot([row["low_%"], row["high_%"]], [place, place], color=colour, linewidth=2.5, alpha=0.6)
        axes.plot(row["change_%"], place, "o", color=colour)
        axes.annotate(
            f"{row['change_%']:+.1f} %  {row['verdict']}", (1, place), xycoords=("axes fraction", "data"),
            xytext=(6, 0), textcoords="offset points", va="center", fontsize=9, color=colour,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [_name(row) for row in shown], fontsize=9)
    axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    reach = 3 * max([tolerance, *(abs(row["change_%"]) for row in shown)])
    axes.set_xlim(-min(reach, _most(shown, tolerance)), min(reach, _most(shown, tolerance)))
    axes.set_xlabel("change, % of before (dot: medians; bar: what noise leaves open)")
    axes.legend(loc="lower right", fontsize=9)
    sides = " and ".join(f"{report['figures'][f'runs_{side}']} {side}" for side in ("before", "after"))
    axes.set_title(f"change of {len(shown)} values: {sides}", loc="left")


def _name(row: Row) -> str:
    whole = " · ".join(str(row[name]) for name in ("what", "column") if row[name])
    return whole if len(whole) <= 60 else f"…{whole[-59:]}"


def _most(rows: Sequence[Row], tolerance: float) -> float:
    """The furthest that a dot or a bar reaches, and a little more."""
    ends = [abs(float(row[name] or 0.0)) for row in rows for name in ("change_%", "low_%", "high_%")]
    return 1.05 * float(np.max([1.5 * tolerance, *ends]))


def measured(given: argparse.Namespace) -> int:
    """Run the script by turns if asked to, and compare."""
    if not given.run:
        return compare(given, [load(path) for path in given.before], [load(path) for path in given.after])
    script, *options = shlex.split(given.run)
    with tempfile.TemporaryDirectory(prefix="cl-perf-") as name:
        folder = given.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        sides = turns.in_turn(given.before[0], given.after[0], script, options, given.times, folder)
        return compare(given, *([load(path) for path in side] for side in sides))


def main() -> int:
    """Read the command line and compare."""
    parser = common.arguments(__doc__, connects=False, draws=True)
    parser.add_argument("--before", type=Path, nargs="+", required=True, metavar="FILE", help="reports, or a checkout")
    parser.add_argument("--after", type=Path, nargs="+", required=True, metavar="FILE", help="reports, or a checkout")
    parser.add_argument("--tolerance-percent", type=float, default=5, help="is no change (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="list all cells of rows, not those alone that changed")
    parser.add_argument("--run", default="", metavar="'SCRIPT OPTIONS'", help="measure, in two checkouts by turns")
    parser.add_argument("--times", type=int, default=5, help="with --run: in each (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="with --run: leave the reports here")
    given = parser.parse_args()
    common.at_least(parser, given, tolerance_percent=0, times=1)
    if given.run and (len(given.before) != 1 or len(given.after) != 1):
        parser.error("--run: --before and --after are one folder with the code each")
    try:
        return 1 if measured(given) else 0
    except PerfError as error:
        print(f"perf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
