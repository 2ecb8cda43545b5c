"""Whether two groups of runs differ by more than runs of one group differ among themselves.

Each number of a report is one value of a run. A group's value is the median of its runs. What noise alone could make
of the difference is Student's interval for the difference of two means with the spread of both groups together; it
is made so wide that with nothing changed, anything at all is called worse in one comparison of a hundred only
(`DOUBT`, shared out among all the values that are judged). A verdict of worse or better takes both: an interval
without zero, and medians further apart than the tolerance.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from perf.common import Report, Row

Verdict = Literal["worse", "better", "same", "too few runs to tell", "not judged"]

DOUBT = 0.01
"""How often anything may be called worse (or better) with nothing changed. One half of it goes to the figures, which
are few and mostly what one wants to know, the other to the cells of rows, of which there may be hundreds."""

LEAST_SPREAD = 0.01
"""Of a value: runs that happen to agree do not prove that there is no noise."""

ALONE_PERCENT = 30.0
"""With one run on each side nothing is known of its noise; from here on a median or a figure is called different."""

_HIGHER = re.compile(r"(?:^|_)(?:per_s|times|times_real_time)(?:_|$)")
_AMOUNT = re.compile(
    r"(?:^|_)(?:speech|wall|measured|block|chunk|sound|of_it|asked|sent_every)_(?:h|s|ms|samples)$|^(?:count|after_s)$"
)
"""How much there was of what was measured."""
_LOWER = re.compile(
    r"_(?:ns|us|ms|s|%|kb|mb|mib|bytes|samples|descriptors|threads)(?:_per_h)?$|^(?:descriptors|threads)_per_h$"
    r"|(?:^|_)(?:underruns|gaps|dry|late|lost|wrong|failed|missed)$|^slower_|^growth_",
    re.IGNORECASE,
)
_TAIL = re.compile(r"(?:^|_)(?:p9\d+|max|most|least|min)_")


class Key(NamedTuple):
    """Where a number stands: its table (empty: the figures), the row's texts, the column or the figure's name."""

    table: str
    row: str
    column: str


@dataclass(frozen=True)
class Compared:
    """A number before and after (medians of the runs). ``change``, ``low`` and ``high`` are in percent of the value
    before; None where that is 0, the interval also where no noise is known."""

    key: Key
    before: float
    after: float
    change: float | None
    low: float | None
    high: float | None
    verdict: Verdict

    def as_row(self) -> Row:
        """A row of a table."""
        return {
            "of": self.key.table or "figures",
            "what": self.key.row,
            "column": self.key.column,
            "before": _short(self.before),
            "after": _short(self.after),
            "change_%": _percent(self.change),
            "low_%": _percent(self.low),
            "high_%": _percent(self.high),
            "verdict": self.verdict,
        }


def values(report: Report) -> dict[Key, float]:
    """The numbers of a report. Rows of one table with the same texts are told apart by their order."""
    found = {Key("", "", name): float(value) for name, value in report["figures"].items() if _number(value)}
    for table, rows in report["rows"].items():
        seen: Counter[str] = Counter()
        for row in rows:
            label = ", ".join(cell if isinstance(cell, str) else name for name, cell in row.items() if _text(cell))
            seen[label] += 1
            label += f" #{seen[label]}" if seen[label] > 1 else ""
            found |= {Key(table, label, name): float(cell) for name, cell in row.items() if _number(cell)}
    return found


def direction(name: str) -> int:
    """1 where more is worse (milliseconds, percent, bytes…), -1 where more is better, 0 where nobody can say."""
    if _HIGHER.search(name):
        return -1
    return int(not _AMOUNT.search(name) and bool(_LOWER.search(name)))


def compare(before: Sequence[Report], after: Sequence[Report], tolerance: float) -> list[Compared]:
    """Every number that both sides have, in the order of the first report. ``tolerance`` is in percent."""
    old, new = _gathered(before), _gathered(after)
    common = [key for key in old if key in new]
    judged = Counter(key.table == "" for key in common if direction(key.column))
    found = []
    for key in common:
        doubt = DOUBT / 2 / max(1, judged[key.table == ""])
        found.append(compared(key, old[key], new[key], tolerance, doubt))
    return found


def one_sided(before: Sequence[Report], after: Sequence[Report]) -> list[tuple[Key, str, float]]:
    """What only one side has: where, ``before`` or ``after``, its median."""
    old, new = _gathered(before), _gathered(after)
    sides = ((old, new, "before"), (new, old, "after"))
    return [
        (key, name, float(np.median(found)))
        for one, other, name in sides
        for key, found in one.items()
        if key not in other
    ]


def compared(key: Key, before: Sequence[float], after: Sequence[float], tolerance: float, doubt: float) -> Compared:
    """One number. ``doubt`` is how often noise alone may make it worse."""
    old, new = float(np.median(before)), float(np.median(after))
    scale = 100 / abs(old) if old else 1.0
    change = scale * (new - old)
    bounds = difference(before, after, doubt)
    low, high = (scale * bounds[0], scale * bounds[1]) if bounds else (-np.inf, np.inf)
    way = direction(key.column)
    said: Verdict = "not judged"
    if way and bounds is None:
        said = "not judged" if _TAIL.search(key.column) else _alone(way * change, max(tolerance, ALONE_PERCENT))
    elif way:
        bad = (low, high) if way > 0 else (-high, -low)
        said = _judged(way * change, *bad, tolerance if old else 0.0)
    shown = old != 0
    return Compared(
        key, old, new, change if shown else None,
        low if shown and bounds else None, high if shown and bounds else None, said,
    )  # fmt: skip


def difference(before: Sequence[float], after: Sequence[float], doubt: float) -> tuple[float, float] | None:
    """Between what the difference of the means is, ``doubt`` on each side; None where each side is one run."""
    free = len(before) + len(after) - 2
    if free < 1:
        return None
    squares = sum(float(np.sum((np.asarray(side) - np.mean(side)) ** 2)) for side in (before, after))
    spread = max((squares / free) ** 0.5, LEAST_SPREAD * abs(float(np.median(before))))
    reach = student(1 - doubt, free) * spread * (1 / len(before) + 1 / len(after)) ** 0.5
    middle = float(np.mean(after) - np.mean(before))
    return middle - reach, middle + reach


@lru_cache
def student(probability: float, free: int) -> float:
    """The quantile of Student's distribution: its density over t = √free · tan θ is cos(θ) to the free - 1."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 100_001)
    weight = np.cos(angle) ** (free - 1)
    below = np.concatenate(([0.0], np.cumsum((weight[1:] + weight[:-1]) / 2)))
    return float(free**0.5 * np.tan(np.interp(probability, below / below[-1], angle)))


def _judged(change: float, low: float, high: float, tolerance: float) -> Verdict:
    """All in the direction that is worse."""
    if low > 0:
        return "worse" if change > tolerance else "same"
    if high < 0:
        return "better" if change < -tolerance else "same"
    return "same" if high <= tolerance else "too few runs to tell"


def _alone(change: float, tolerance: float) -> Verdict:
    if abs(change) <= tolerance:
        return "too few runs to tell"
    return "worse" if change > 0 else "better"


def _gathered(reports: Iterable[Report]) -> Mapping[Key, list[float]]:
    found: dict[Key, list[float]] = {}
    for report in reports:
        for key, value in values(report).items():
            found.setdefault(key, []).append(value)
    return found


def _number(cell: object) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _text(cell: object) -> bool:
    """What names a row: its texts, and what is true of it."""
    return (isinstance(cell, str) and bool(cell)) or cell is True


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _percent(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
