"""The report of `perf.compare` as a picture and as a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ipc.messages import SAMPLE_RATE
from perf import texts
from perf.common import Report, Row
from perf.trials import Trial

STEP_MS = 5
COLOURS = {
    "everything": "tab:gray",
    "pseudo": "tab:brown",
    "independent": "tab:red",
    "sequential": "tab:orange",
    "pipeline": "tab:blue",
    "stock": "tab:purple",
}
HEARD = "what is heard when"
LOG_FROM = 8
"""Bars that differ by more than this have a logarithmic axis."""


def curve(trial: Trial) -> dict[str, Any]:
    """What is heard: the least and greatest sample of every `STEP_MS` from the request on, and where chunks meet."""
    step = SAMPLE_RATE * STEP_MS // 1000
    padded = np.concatenate([trial.heard, np.zeros(-len(trial.heard) % step, np.float32)]).reshape(-1, step)
    low, high = padded.min(axis=1), padded.max(axis=1)
    return {
        "step_ms": STEP_MS,
        "perceived_ms": round(trial.perceived_ms, 1),
        "total_ms": round(trial.total_ms, 1),
        "underruns": len(trial.gaps_ms),
        "gaps_ms": round(sum(trial.gaps_ms), 1),
        "joins_ms": [round(at_ms, 1) for at_ms in trial.joins_ms],
        "low": [round(float(value), 3) for value in low],
        "high": [round(float(value), 3) for value in high],
    }


def draw(report: Report, figure: Any) -> None:
    """Bars of perceived latency by text and way; below, one text as it is heard, on one time axis."""
    rows = report["rows"][HEARD]
    heard = report["curves"]["heard"]
    ways = list(heard["ways"])
    figure.set_size_inches(12, 4.6 + len(ways))
    above, below = figure.subfigures(2, 1, height_ratios=[3.8, len(ways) + 0.8])
    _bars(above.subplots(), rows, ways)
    _waves(below, heard)
    engine = report["settings"].get("model.engine", "")
    facts = report["machine"]
    figure.suptitle(f"{engine} on {facts['cpus']} processors ({facts['processor']}), {facts['date']}")


def _bars(axes: Any, rows: Sequence[Report], ways: Sequence[str]) -> None:
    names = list(dict.fromkeys(row["text"] for row in rows))
    width = 0.84 / len(ways)
    for number, way in enumerate(ways):
        values = [row["perceived_ms"] for row in rows if row["way"] == way]
        places = np.arange(len(names)) + (number - (len(ways) - 1) / 2) * width
        bars = axes.bar(places, values, width * 0.92, color=COLOURS[way], label=way)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    values = [row["perceived_ms"] for row in rows]
    if max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.15)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="ms", title="Perceived latency: request → first sample at the output (less is better)")
    axes.legend(ncols=len(ways), loc="upper left", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _waves(figure: Any, heard: Report) -> None:
    ways = heard["ways"]
    plots = figure.subplots(len(ways), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    said = texts.TEXTS[heard["text"]]
    title = f"“{said}”" if len(said) < 80 else f"The {heard['text']} text"
    figure.suptitle(f"{title} as it is heard in one of the rounds (triangles: chunks meet)", fontsize=11)
    most = max(max(curve["high"]) for curve in ways.values())
    for axes, (way, curve) in zip(plots, ways.items(), strict=True):
        at_s = np.arange(len(curve["low"])) * curve["step_ms"] / 1000
        axes.fill_between(at_s, curve["low"], curve["high"], color=COLOURS[way], linewidth=0.4, step="post")
        axes.axvspan(0, curve["perceived_ms"] / 1000, color="black", alpha=0.12, linewidth=0)
        joins_s = np.array(curve["joins_ms"]) / 1000
        axes.plot(joins_s, np.full(len(joins_s), most), "v", color="black", markersize=4)
        axes.set_ylabel(way, rotation=0, ha="right", va="center", color=COLOURS[way])
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        dry = f", {curve['underruns']} × dry, {curve['gaps_ms']:.0f} ms" if curve["underruns"] else ""
        note = f"first sample {curve['perceived_ms']:.0f} ms, last {curve['total_ms']:.0f} ms{dry}"
        axes.set_title(note, loc="right", fontsize=8, pad=1)
    plots[-1].set_xlabel("seconds from the request (shaded: silence before the first sample)")
    # One way that goes on and on (of a model that was never trained) does not make the others too small to be seen.
    totals_ms = [curve["total_ms"] for curve in ways.values()]
    plots[-1].set_xlim(0, min(max(totals_ms), 3 * float(np.median(totals_ms))) * 1.01 / 1000)


# --------------------------------------------------------------------------- the page


def markdown(content: Report, doc: str, page: Path, picture: Path | None) -> str:
    """What was compared and what the columns are, the tables, on which machine."""
    about, _, explained = doc.replace("``", "`").partition("\n\n")
    facts, version = content["machine"], content["code"]
    lines = ["# Ways to speak, compared", "", about, ""]
    lines += [explained.partition("\n\n")[2].strip(), "", f"`{content['command']}`", ""]
    lines += [
        f"{facts['date']}; {facts['processor']}, {facts['cpus']} processors, of which other programs used "
        f"{facts['cpus_used_by_others']} meanwhile; {facts['system']}, Python {facts['python']}; version "
        f"{version['git'] or version['version']}.",
        "",
    ]
    if picture is not None:
        place = _relative(picture, page)
        lines += [f"![Perceived latency by text and way, and a text as it is heard in each]({place})", ""]
    lines += [*_summary(content), ""]
    for title, rows in content["rows"].items():
        lines += [f"## {title[0].upper()}{title[1:]}", "", *table(rows), ""]
    return "\n".join(lines)


def _summary(content: Report) -> list[str]:
    """What ours gains, and what to write into pipeline.yaml."""
    rows = [row for row in content["rows"][HEARD] if row["way"] == "pipeline"]
    lines = []
    if rows:
        gains = ", ".join(f"{row['text']} {row['better_%']:+g} %" for row in rows)
        dry = sum(row["underruns"] for row in rows)
        lines.append(f"Ours is heard sooner than `everything` by: {gains}; it ran dry {dry} times.")
    if best := content["rows"].get("best setting for this machine"):
        named = ", ".join(f"`{row['pipeline.yaml']}: {row['value']}`" for row in best)
        lines.append(f"Best setting for this machine: {named}.")
    return lines


def _relative(picture: Path, page: Path) -> str:
    """How the page names the picture."""
    return Path(os.path.relpath(picture.resolve(), page.resolve().parent)).as_posix()


def table(rows: Sequence[Row]) -> list[str]:
    """In Markdown."""
    cells = [list(rows[0]), ["---"] * len(rows[0])]
    cells += [["" if one is None else str(one) for one in row.values()] for row in rows]
    return [f"| {' | '.join(row)} |" for row in cells]
