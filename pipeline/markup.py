"""The grammar of the markup in a text: pure functions over a string and a position in it.

This is the part of Markdown, HTML and pause markers that people and language models write in
running text. It differs from CommonMark where CommonMark needs the whole document: every question
here is answered from a bounded number of characters after ``at``, because the text is still being
written. A function that cannot know yet raises `NeedMore`; with ``ended`` true the string is all
there is, and it decides.

Text that only looks like markup is left alone: 2 * 3, snake_case, a < b, [1], <your name>, #tag.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Literal

LONGEST_PAUSE_MS = 10_000
"""A longer ``[pause:…]`` is cut to this."""

_LABEL_CHARS = 400
_TARGET_CHARS = 2000
_CODE_CHARS = 300
_TAG_CHARS = 300
_RUN_CHARS = 64

TagKind = Literal["inline", "block", "comment", "address"]


class NeedMore(Exception):
    """What stands here can only be told when more of the text has arrived."""


_PAUSE = re.compile(r"\[pause:[ \t]*(\d{1,9}(?:\.\d{1,3})?)[ \t]*(ms|s)\]", re.IGNORECASE)
_LABEL_SIGN = re.compile(r"[\[\]\n]")
_LABEL_DEPTH = 5
_TARGET = re.compile(
    r"\([ \t]*(<[^<>\n]*>|[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)"
    r"(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'|\([^()\n]*\)))?[ \t]*\)"
)
_TARGET_BEGUN = re.compile(r"\([ \t]*(?:<[^<>\n]*>?|[^\s]*)(?:[ \t]+(?:[\"'(][^\n]*)?)?")
_REFERENCE = re.compile(r"\[[^\[\]\n]{0,100}\]")
_FOOTNOTE = re.compile(r"\[\^[^\[\]\s]{1,50}\]")

_TAG = re.compile(
    r"</?([A-Za-z][A-Za-z0-9]*)(?:\s*/?|(?:\s+[A-Za-z_:][\w:.-]*\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'=<>`]+))+\s*/?)>"
)
_TAG_BEGUN = re.compile(r"<(?:/|/?[A-Za-z][^<>\n]*|[\w.+-]+(?:@[\w.-]*)?)?")
"""What any tag or address is while it is being written: no other text is waited for, or taken for one."""
_ADDRESS = re.compile(r"<(?:[A-Za-z][A-Za-z0-9+.-]{1,31}:[^<>\s]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+)>")
_BLOCK_TAG = re.compile(
    r"address|article|aside|blockquote|body|br|caption|center|dd|details|dialog|dir|div|dl|dt|"
    r"fieldset|figcaption|figure|footer|form|h1|h2|h3|h4|h5|h6|head|header|hr|html|legend|li|"
    r"main|menu|nav|ol|optgroup|option|p|pre|section|summary|table|tbody|td|tfoot|th|thead|"
    r"title|tr|ul",
    re.IGNORECASE,
)
_INLINE_TAG = re.compile(
    r"a|abbr|audio|b|bdi|bdo|big|button|cite|code|data|del|dfn|em|font|i|img|input|ins|kbd|"
    r"label|mark|meta|q|rp|rt|ruby|s|samp|script|small|source|span|strike|strong|style|sub|"
    r"sup|svg|time|tt|u|var|video|wbr",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:#[xX][0-9a-fA-F]{1,6}|#\d{1,7}|[A-Za-z][A-Za-z0-9]{1,31});")
_ENTITY_BEGUN = re.compile(r"&(?:#[xX]?)?[A-Za-z0-9]{0,32}")


def pause_ms(raw: str, at: int) -> tuple[int, int] | None:
    """(milliseconds, end) of the pause marker at ``at``; a malformed one is ordinary text."""
    found = _PAUSE.match(raw, at)
    if found is None:
        return None
    length_ms = float(found[1]) * (1 if found[2].lower() == "ms" else 1000)
    return min(round(length_ms), LONGEST_PAUSE_MS), found.end()


def footnote_end(raw: str, at: int) -> int:
    """Where the footnote mark ``[^1]`` at ``at`` ends, or -1."""
    found = _FOOTNOTE.match(raw, at)
    return found.end() if found else -1


def link(raw: str, at: int, ended: bool, before: str) -> tuple[int, int] | None:
    """(end of the label, end of the link) of the link whose ``[`` is at ``at``.

    ``before`` is the character before it: a[1](x) and a[1][2] are no links.
    """
    close = _label_end(raw, at, ended)
    if close < 0:
        return None
    after = close + 1
    if after == len(raw):
        if not ended:
            raise NeedMore
        return None
    in_word = before.isascii() and (before.isalnum() or before == "_")
    if raw[after] == "(":
        found = _TARGET.match(raw, after, after + _TARGET_CHARS)
        if found:
            plain = in_word and not any(sign in found[1] for sign in "/#.:")
            return None if plain else (close, found.end())
        if not ended and len(raw) - after < _TARGET_CHARS and _TARGET_BEGUN.fullmatch(raw, after):
            raise NeedMore
    elif raw[after] == "[" and not in_word:
        found = _REFERENCE.match(raw, after)
        if found:
            return close, found.end()
        if not ended and len(raw) - after < 102 and not any(sign in raw[after + 1 :] for sign in "[]\n"):
            raise NeedMore
    return None


def link_begun(raw: str, at: int) -> int:
    """End of the label of a link that breaks off inside its target, or -1: ``[words](https://exa``."""
    close = _label_end(raw, at, ended=True)
    begun = close > 0 and raw.startswith("(", close + 1) and _TARGET_BEGUN.fullmatch(raw, close + 1)
    return close if begun else -1


def _label_end(raw: str, at: int, ended: bool) -> int:
    """Position of the ``]`` that answers the ``[`` at ``at`` on the same line, or -1."""
    depth = 0
    for found in _LABEL_SIGN.finditer(raw, at, at + _LABEL_CHARS):
        depth += {"[": 1, "]": -1}.get(found[0], _LABEL_DEPTH)
        if depth == 0:
            return found.start()
        if depth >= _LABEL_DEPTH:
            return -1
    if not ended and len(raw) - at < _LABEL_CHARS:
        raise NeedMore
    return -1


def code_span(raw: str, at: int, ended: bool) -> tuple[int, int, int] | None:
    """(start of the code, its end, end of the span) of the code span whose ticks are at ``at``."""
    start = at
    while start < len(raw) and raw[start] == "`" and start - at < _RUN_CHARS:
        start += 1
    if start == len(raw) and not ended and start - at < _RUN_CHARS:
        raise NeedMore
    stop = raw.find("\n", start, start + _CODE_CHARS)
    within = stop if stop >= 0 else min(len(raw), start + _CODE_CHARS)
    closing = re.compile(rf"(?<!`)`{{{start - at}}}(?!`)").search(raw, start, within)
    undecided = stop < 0 and len(raw) - start < _CODE_CHARS and not ended
    if undecided and (closing is None or closing.end() == len(raw)):
        raise NeedMore
    return (start, closing.start(), closing.end()) if closing else None


def tag(raw: str, at: int, ended: bool) -> tuple[TagKind, int] | None:
    """What the ``<`` at ``at`` begins, and where that ends (a comment: where its inside begins)."""
    if raw.startswith("<!--", at):
        return "comment", at + 4
    if not ended and len(raw) - at < 4 and "<!--".startswith(raw[at:]):
        raise NeedMore
    stop = raw.find(">", at, at + _TAG_CHARS)
    if stop < 0:
        if not ended and len(raw) - at < _TAG_CHARS and _TAG_BEGUN.fullmatch(raw, at):
            raise NeedMore
        return None
    if not _TAG_BEGUN.fullmatch(raw, at, stop):
        return None
    if _ADDRESS.fullmatch(raw, at, stop + 1):
        return "address", stop + 1
    found = _TAG.fullmatch(raw, at, stop + 1)
    if found is None:
        return None
    if _BLOCK_TAG.fullmatch(found[1]):
        return "block", stop + 1
    return ("inline", stop + 1) if _INLINE_TAG.fullmatch(found[1]) else None


def entity(raw: str, at: int, ended: bool) -> tuple[str, int] | None:
    """(the characters meant, end) of the entity whose ``&`` is at ``at``."""
    found = _ENTITY.match(raw, at)
    if found:
        meant = html.unescape(found[0])
        return None if meant == found[0] else (meant, found.end())
    if not ended and _ENTITY_BEGUN.fullmatch(raw, at):
        raise NeedMore
    return None


def flanks(before: str, after: str) -> tuple[bool, bool]:
    """(left-flanking, right-flanking) of a run of emphasis marks between the two characters
    ("" at the beginning and the end), by CommonMark's rules."""
    space_before, space_after = not before or before.isspace(), not after or after.isspace()
    sign_before, sign_after = _is_sign(before), _is_sign(after)
    left = not space_after and (not sign_after or space_before or sign_before)
    right = not space_before and (not sign_before or space_after or sign_after)
    return left, right


def _is_sign(char: str) -> bool:
    return bool(char) and unicodedata.category(char)[0] in "PS"
