"""What a line of a text is, told from its beginning: heading, list item, quote, code fence, table row, rule.

Pure functions over a string and the place of the line's first visible character, in the manner of
`pipeline.markup`: a bounded number of characters decides, `NeedMore` asks for them, and ``ended``
says that there are none.
"""

from __future__ import annotations

import re
from typing import Literal

from pipeline.markup import NeedMore

_LINE_CHARS = 600
_RULE_CHARS = 300

LineKind = Literal[
    "text", "quote", "heading", "rule", "bullet", "ordered", "fence", "row", "delimiter", "definition", "drop"
]

_PAUSE_BEGUN = re.compile(r"\[(p(a(u(s(e(:[ \t]*[\d.]{0,13}[ \t]*(ms?|s)?)?)?)?)?)?)?", re.IGNORECASE)
_FENCE_BEGUN = re.compile(r"`{3,}[^`\n]{0,200}|~{3,}[^\n]{0,200}")
_BARE_MARKS = re.compile(r"[*_~`\[#>|+=\s-]*")

_RULE_RUN = re.compile(rf"[-*_=+|: \t]{{1,{_RULE_CHARS}}}")
_THEMATIC = re.compile(r"([-*_])[ \t]*(?:\1[ \t]*){2,}")
_SETEXT = re.compile(r"=+|-+")
_DELIMITER = re.compile(r"\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?")
_FENCE = re.compile(r"(`{3,64}|~{3,64})([^\n]{0,200})(\n?)")
_DEFINED = re.compile(r"\[([^\[\]\n]{1,100})\]:")
_TARGET_LINE = re.compile(r"[ \t]*(?:<[^<>\n]*>|\S+)(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'|\([^()\n]*\)))?[ \t]*\r?")
_TASK = re.compile(r"\[[ xX]\](?=\s)")


def _open_ended(found: re.Match[str] | None, raw: str, ended: bool) -> bool:
    """True if the match reaches the end of what has been written and more may change it."""
    return found is not None and found.end() == len(raw) and not ended


def held_by_flush(raw: str, at: int, line_start: bool) -> bool:
    """True if what stands from ``at`` to the end is only the beginning of markup: nothing that a
    flush would have to speak."""
    if _BARE_MARKS.fullmatch(raw, at) or _PAUSE_BEGUN.fullmatch(raw, at):
        return True
    return line_start and _FENCE_BEGUN.fullmatch(raw, at) is not None


def line_kind(raw: str, at: int, ended: bool, paragraph: bool, table: bool, item: bool) -> tuple[LineKind, int]:
    """What the line whose first visible character is ``raw[at]`` is, and where its prefix ends.

    ``paragraph``: the line before was running text. ``table``: a table's delimiter row came
    before. ``item``: a list marker stands before ``at`` on this line.
    """
    mark = raw[at]
    if mark == ">":
        return "quote", at + 1
    if mark == "#":
        return _heading(raw, at, ended)
    if mark in "`~":
        return _fence(raw, at, ended)
    if mark == "[":
        return _definition(raw, at, ended, item)
    if mark in "-*_=+|:":
        return _rule(raw, at, ended, paragraph, table)
    if mark.isdecimal() and mark.isascii():
        return _ordered(raw, at, ended, paragraph)
    return "text", at


def _heading(raw: str, at: int, ended: bool) -> tuple[LineKind, int]:
    end = at
    while end < len(raw) and raw[end] == "#" and end - at <= 6:
        end += 1
    if end - at > 6:
        return "text", at
    if end == len(raw):
        if not ended:
            raise NeedMore
        return "heading", end
    return ("heading", end) if raw[end] in " \t\r\n" else ("text", at)


def _fence(raw: str, at: int, ended: bool) -> tuple[LineKind, int]:
    run = re.compile(re.escape(raw[at]) + r"{1,3}").match(raw, at)
    if _open_ended(run, raw, ended):
        raise NeedMore
    found = _FENCE.match(raw, at)
    if found is None or (raw[at] == "`" and "`" in found[2]) or len(found[2]) >= 200:
        return "text", at
    if not found[3] and not ended:
        raise NeedMore
    return "fence", found.end(1)


def _definition(raw: str, at: int, ended: bool, item: bool) -> tuple[LineKind, int]:
    """A link definition's line has nothing to say; a footnote is spoken without its label."""
    if item and (task := _TASK.match(raw, at)):
        return "drop", task.end()
    close = raw.find("]", at, at + 102)
    if close < 0 or "\n" in raw[at:close]:
        if close < 0 and not ended and len(raw) - at < 102 and "\n" not in raw[at:]:
            raise NeedMore
        return "text", at
    if close + 1 == len(raw) and not ended:
        raise NeedMore
    found = _DEFINED.match(raw, at)
    if found is None:
        return "text", at
    if found[1].startswith("^"):
        return "drop", found.end()
    stop = raw.find("\n", at, at + _LINE_CHARS)
    if stop < 0:
        if not ended and len(raw) - at < _LINE_CHARS:
            raise NeedMore
        stop = len(raw)
    return ("definition", stop) if _TARGET_LINE.fullmatch(raw, found.end(), stop) else ("text", at)


def _rule(raw: str, at: int, ended: bool, paragraph: bool, table: bool) -> tuple[LineKind, int]:
    run = _RULE_RUN.match(raw, at)
    if run is None:
        return "text", at
    if run.end() - at >= _RULE_CHARS:
        return "rule", run.end()
    if _open_ended(run, raw, ended):
        raise NeedMore
    if run.end() == len(raw) or raw[run.end()] in "\r\n":
        marks = run[0].strip()
        if _THEMATIC.fullmatch(marks) or (paragraph and _SETEXT.fullmatch(marks)):
            return "rule", run.end()
        if "|" in marks and _DELIMITER.fullmatch(marks):
            return "delimiter", run.end()
        if marks in ("-", "*", "+"):
            return "bullet", at + 1
    if raw[at] in "-*+" and raw[at + 1 : at + 2] in (" ", "\t"):
        return "bullet", at + 1
    return _row(raw, at, ended, table) if raw[at] == "|" else ("text", at)


def _row(raw: str, at: int, ended: bool, table: bool) -> tuple[LineKind, int]:
    stop = raw.find("\n", at, at + _LINE_CHARS)
    if stop < 0 and not ended and len(raw) - at < _LINE_CHARS:
        raise NeedMore
    line = raw[at:stop].rstrip() if stop >= 0 else raw[at : at + _LINE_CHARS].rstrip()
    return ("row", at + 1) if table or (len(line) > 1 and line.endswith("|")) else ("text", at)


def _ordered(raw: str, at: int, ended: bool, paragraph: bool) -> tuple[LineKind, int]:
    """The number of a list item stays: it is spoken. ``end`` is where it ends."""
    end = at
    while end < len(raw) and raw[end].isdecimal() and end - at < 10:
        end += 1
    if end - at > 9:
        return "text", at
    if not ended and (end == len(raw) or (raw[end] in ".)" and end + 1 == len(raw))):
        raise NeedMore
    if raw[end : end + 1] not in (".", ")") or raw[end + 1 : end + 2] not in ("", " ", "\t", "\r", "\n"):
        return "text", at
    if paragraph and int(raw[at:end]) != 1:
        return "text", at
    return "ordered", end + 1


def closes_fence(raw: str, at: int, ended: bool, fence: str) -> int:
    """Where the line at ``at`` ends if it closes the fence, else -1."""
    end = at
    while end < len(raw) and raw[end] in " \t>" and end - at < 100:
        end += 1
    first = end
    while end < len(raw) and raw[end] == fence[0] and end - first < 200:
        end += 1
    closing = end - first >= len(fence)
    while closing and end < len(raw) and raw[end] in " \t\r" and end - at < 400:
        end += 1
    if end == len(raw) and not ended and end - at < 400:
        raise NeedMore
    return end if closing and (end == len(raw) or raw[end] == "\n") else -1
