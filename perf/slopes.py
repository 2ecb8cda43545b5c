"""What a quantity gains per hour, and how sure that is.

Looks are thinned to `STRETCHES` medians first, as looks that follow each other say the same (memory goes in steps);
then the Theil-Sen slope: the median of the slopes between all pairs, which outliers do not move, between the two
that Kendall's variance leaves open (Sen, 1968).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perf.common import Cell

STRETCHES = 24
LEAST = 3
"""Fewer points say nothing of a slope."""

_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Slope:
    """Per hour, and between what it is (95 %). All None where there are too few looks to tell."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    def cells(self, name: str, digits: int) -> dict[str, Cell]:
        """Columns ``name``, ``name_low`` and ``name_high``."""
        found = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {key: None if value is None else round(value, digits) for key, value in found.items()}


def stretches(hours: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `STRETCHES` points: the medians of looks that follow each other."""
    parts = np.array_split(np.arange(len(hours)), min(STRETCHES, len(hours)) or 1)
    middles = [[float(np.median(np.asarray(of)[part])) for part in parts if len(part)] for of in (hours, values)]
    return middles[0], middles[1]


def slope(hours: Sequence[float], values: Sequence[float]) -> Slope:
    """The slope of ``values`` over ``hours``, both in order of time."""
    x, y = (np.asarray(points) for points in stretches(hours, values))
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] > x[first]
    first, second = first[apart], second[apart]
    if len(x) < LEAST or not len(first):
        return Slope()
    found = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    count = len(x)
    reach = _NORMAL_95 * (count * (count - 1) * (2 * count + 5) / 18) ** 0.5
    low = max(0, int((len(found) - reach) / 2))
    return Slope(float(np.median(found)), float(found[low]), float(found[len(found) - 1 - low]))
