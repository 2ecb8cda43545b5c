"""The HTML of `perf.report`: one page, everything in it, nothing from elsewhere.

`page` puts sections together, `section` one report. Every word of a report is escaped; pictures come as SVG for a light
and for a dark page.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from perf.common import Cell, Report, Row

MANY_ROWS = 24
"""A longer table is folded."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Chatterline: measurements</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d8dee6; --back: #ffffff; --panel: #f5f7fa;
  --accent: #1f63b8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa6b5; --line: #333c48; --back: #14181d;
  --panel: #1c2229; --accent: #7db2f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 .25rem; }
h2 { font-size: 1.4rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .25rem 0; }
a { color: var(--accent); }
.soft, dt, .note { color: var(--soft); }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.5rem; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem;
  margin: .8rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .875rem/1.45 ui-monospace, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0; font-size: .9rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 0 2rem; margin: 0;
  padding: 0; list-style: none; font-size: .875rem; font-variant-numeric: tabular-nums; }
.figures li { display: flex; justify-content: space-between; gap: 1rem; padding: .25rem 0;
  border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th { white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
td.words { min-width: 9rem; }
img { display: block; width: 100%; height: auto; margin: 1rem 0; }
summary { cursor: pointer; color: var(--accent); }
nav table td { border: 0; padding: .1rem 1.5rem .1rem 0; }
@media print { section { break-inside: avoid-page; } }
</style>
</head>
<body>
<h1>Chatterline: measurements</h1>
<p class="soft">$made</p>
<nav><table>$contents</table></nav>
$sections
</body>
</html>
""")

_SECTION = Template("""<section id="$anchor">
<h2>$name</h2>
<p>$line</p>
<pre>$command</pre>
$facts
$picture
$figures
$tables
</section>
""")


@dataclass(frozen=True)
class Picture:
    """A report drawn as SVG for a light and for a dark page; or why there is none (``note``)."""

    light: str = ""
    dark: str = ""
    note: str = ""


@dataclass(frozen=True)
class Part:
    """One report on the page. ``title`` tells it from others of the same script; ``line``: what it measures."""

    title: str
    line: str
    report: Report
    picture: Picture


def page(parts: Sequence[Part], made: str) -> str:
    """The whole page. ``made``: when and of what."""
    links = [
        f'<tr><td><a href="#part-{number}">{escape(part.title)}</a></td><td>{escape(part.line)}</td></tr>'
        for number, part in enumerate(parts)
    ]
    sections = "\n".join(section(part, f"part-{number}") for number, part in enumerate(parts))
    return _PAGE.substitute(made=escape(made), contents="".join(links), sections=sections)


def section(part: Part, anchor: str) -> str:
    """One report."""
    report = part.report
    tables = "".join(_titled(title, rows) for title, rows in report["rows"].items() if rows)
    figures = "".join(
        f'<li><span class="soft">{escape(name)}</span> {_shown(value)}</li>'
        for name, value in report["figures"].items()
    )
    return _SECTION.substitute(
        anchor=anchor,
        name=escape(part.title),
        line=escape(part.line),
        command=escape(report["command"]),
        facts=_facts(report),
        picture=_picture(part.picture, part.title),
        figures=f'<h3>figures</h3>\n<ul class="figures">{figures}</ul>' if figures else "",
        tables=tables,
    )


def _facts(report: Report) -> str:
    """Machine, code and settings, a line each."""
    machine = dict(report["machine"])
    if isinstance(memory := machine.pop("memory_bytes", None), int):
        machine["memory_gib"] = round(memory / 2**30, 1)
    said = {"machine": machine, "code": report["code"], "settings": report["settings"]}
    lines = [f"<dt>{escape(what)}</dt><dd>{_listed(values)}</dd>" for what, values in said.items() if values]
    return f"<dl>{''.join(lines)}</dl>"


def _listed(values: Mapping[str, Cell]) -> str:
    parts = (f'<span class="soft">{escape(name)}</span>&nbsp;{_shown(value)}' for name, value in values.items())
    return " · ".join(parts)


def _picture(picture: Picture, title: str) -> str:
    if not picture.light:
        return f'<p class="note">{escape(picture.note)}</p>' if picture.note else ""
    light, dark = (
        f"data:image/svg+xml;base64,{base64.b64encode(one.encode()).decode()}" for one in (picture.light, picture.dark)
    )
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(title)}: the figures below as a picture"></picture>'
    )


def _titled(title: str, rows: Sequence[Row]) -> str:
    if len(rows) <= MANY_ROWS:
        return f"<h3>{escape(title)}</h3>\n{table(rows)}\n"
    return f"<h3>{escape(title)}</h3>\n<details><summary>{len(rows)} rows</summary>{table(rows)}</details>\n"


def table(rows: Sequence[Row]) -> str:
    """A table; numbers to the right. A column has numbers where no row has anything else."""
    columns = list(rows[0])
    kinds = {
        name: "number" if all(_is_number(row.get(name)) for row in rows) else "words"
        for name in columns
    }  # fmt: skip
    head = "".join(f'<th class="{kinds[name]}">{escape(name.replace("_", " "))}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f'<td class="{kinds[name]}">{_shown(row.get(name))}</td>' for name in columns) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(value: Cell) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _shown(value: Cell) -> str:
    """As it is read: large whole numbers in groups, nothing for what is not there."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return escape(str(value))
