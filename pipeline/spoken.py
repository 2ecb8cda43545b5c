"""Clean text as it is put together: characters with their places, the gaps between them, and what is never spoken.

Emoji and category C (control, format, surrogate, private, unassigned) are never spoken; ZWJ and
ZWNJ stay inside words. White space becomes a gap, and gaps that meet become the widest of them.
"""

from __future__ import annotations

import re
import unicodedata
from enum import IntEnum
from typing import Literal

import emoji
from msgspec import Struct, field

LINE = "\n"
"""In clean text: a list item, table row or hard line break ends here."""
PARAGRAPH = "\x0c"
"""In clean text: a paragraph, heading or code block ends here."""
PAUSE_BASE = 0x100000
"""In clean text ``chr(PAUSE_BASE + ms)`` is a pause marker (private use: never in spoken text)."""
NO_BREAK = "\u00a0"
"""In clean text: the only no-break space, however it was written."""

_JOINERS = "\u200c\u200d"
_NO_SPACE_BEFORE = frozenset(".,;:!?…)]}»”’。，、！？；：）」』")
_WRITTEN_AS_WORDS = frozenset("©®™ℹ‼⁉〰〽Ⓜ㊗㊙")
_EMOJI = frozenset("".join(emoji.EMOJI_DATA)) - _WRITTEN_AS_WORDS - frozenset(map(chr, range(0x80))) - {*_JOINERS}
_SELECTORS = frozenset("\ufe0e\ufe0f\u20e3")
_NOT_SPOKEN = re.compile("[" + "".join(sorted(_EMOJI | _SELECTORS)) + "]")
_ASCII_TAIL = re.compile(r"[\x00-\x7f]*\Z")


class Gap(IntEnum):
    """What stands between two characters that are spoken."""

    NONE = 0
    GLUE = 1
    SPACE = 2
    LINE = 3
    PARAGRAPH = 4


_GAP_CHARS = {Gap.GLUE: NO_BREAK, Gap.SPACE: " ", Gap.LINE: LINE, Gap.PARAGRAPH: PARAGRAPH}
_GAPS = {"\u00a0": Gap.GLUE, "\u2007": Gap.GLUE, "\u202f": Gap.GLUE, "\u2028": Gap.LINE, "\u2029": Gap.PARAGRAPH}


def gap_of(space: str) -> Gap:
    """The gap that a white space character makes (a line end is the caller's to judge)."""
    return _GAPS.get(space, Gap.SPACE)


def first_word(text: str, start: int = 0) -> int:
    """Where something begins that a voice can say: a letter, a digit, a symbol such as % or €; -1 if nowhere."""
    for at in range(start, len(text)):
        char = text[at]
        if char.isalnum() or char in "%&@#" or unicodedata.category(char) in ("Sc", "Sm", "So"):
            return at
    return -1


def has_words(text: str) -> bool:
    """True if there is something in ``text`` that a voice can say."""
    return first_word(text) >= 0


def runs_words_together(char: str) -> bool:
    """True for letters of scripts that put no space where English does (CJK, Thai, Khmer, …)."""
    code = ord(char) if char else 0
    return (
        0x0E00 <= code <= 0x0EFF
        or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
        or 0x2E80 <= code <= 0xD7AF
        or 0xF900 <= code <= 0xFAFF
        or 0xFF00 <= code <= 0xFFEF
        or 0x20000 <= code <= 0x3FFFF
    )


class Spoken(Struct):
    """What has been cleaned and not been taken yet, and what the next character needs to know.

    ``last``: the last characters of the word being put out. ``address``: that word is an address
    (https://…), in which marks are no markup. ``spaces``: white space characters since ``last``.
    """

    out: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    gap: int = Gap.NONE
    gap_at: int = 0
    gap_emoji: bool = False
    spaces: int = 0
    started: bool = False
    last: str = ""
    address: bool = False
    comma_at: int = -1

    def take(self) -> tuple[str, list[int]]:
        """All characters put out since the last call, and the place of each in the text as given."""
        text, offsets = "".join(self.out), self.offsets
        self.out, self.offsets = [], []
        return text, offsets

    def widen_gap(self, gap: Gap, offset: int, emoji_here: bool = False) -> None:
        """What is put out next stands apart from what was last, by the widest gap given since."""
        if self.gap == Gap.NONE:
            self.gap_at, self.gap_emoji = offset, False
        self.gap = max(self.gap, gap)
        self.gap_emoji |= emoji_here

    def close_gap(self) -> Literal["", "sentence", "paragraph"]:
        """Forget the gap at the end, and tell what it meant."""
        gap, self.gap, self.comma_at = self.gap, Gap.NONE, -1
        if gap < Gap.LINE:
            return ""
        return "paragraph" if gap == Gap.PARAGRAPH else "sentence"

    def put(self, text: str, offset: int, one_place: bool = False) -> None:
        """Speak ``text``, which stands at ``offset`` in the text as given, but for what is never spoken.

        ``one_place``: all of it comes from the one character at ``offset``.
        """
        if text.isprintable() and " " not in text and (text.isascii() or not _NOT_SPOKEN.search(text)):
            self._emit(text, offset, one_place)
            return
        for count, char in enumerate(text):
            here = offset if one_place else offset + count
            if char in _EMOJI:
                self.widen_gap(Gap.SPACE, here, emoji_here=True)
            elif char.isspace():
                self.widen_gap(gap_of(char), here)
            elif char not in _SELECTORS and (char.isprintable() or self._joins(char)):
                self._emit(char, here, one_place)

    def comma(self, offset: int) -> None:
        """Put a comma, written as the bar at ``offset``, before what is put out next on the same line."""
        if self.last and self.last[-1] not in ",.;:!?":
            self.comma_at = offset
        self.widen_gap(Gap.SPACE, offset)

    def pause(self, length_ms: int, after: int) -> None:
        """A pause marker that ends at ``after``; the gap before it is part of it."""
        self.close_gap()
        self.out.append(chr(PAUSE_BASE + length_ms))
        self.offsets.append(after)
        self.started, self.last, self.address = True, "", False

    def _joins(self, char: str) -> bool:
        inside_word = self.gap == Gap.NONE and self.last and unicodedata.category(self.last[-1])[0] in "LM"
        return char in _JOINERS and bool(inside_word)

    def _emit(self, text: str, offset: int, one_place: bool) -> None:
        if not text:
            return
        if self.comma_at >= 0:
            self._emit_comma()
        if self.gap != Gap.NONE:
            self._emit_gap(text[0], offset)
        recent = self.last + text
        # Judged from the last letters alone, so that it does not matter in which pieces a word comes.
        tail = recent if recent.isascii() else _ASCII_TAIL.findall(recent)[0]
        self.address = (self.address and text.isascii()) or "://" in tail or "www." in tail
        self.out.append(text)
        self.offsets.extend([offset] * len(text) if one_place else range(offset, offset + len(text)))
        self.last = recent[-3:]
        self.spaces, self.started = 0, True

    def _emit_comma(self) -> None:
        at, self.comma_at = self.comma_at, -1
        if self.gap == Gap.SPACE and self.started:
            self.out.append(",")
            self.offsets.append(at)
            self.gap_at = at

    def _emit_gap(self, following: str, offset: int) -> None:
        """Gaps that end a segment carry the place of what follows; spaces their own."""
        gap, self.gap, self.address, self.last = Gap(self.gap), Gap.NONE, False, ""
        if not self.started or (gap == Gap.SPACE and self.gap_emoji and following in _NO_SPACE_BEFORE):
            return
        self.out.append(_GAP_CHARS[gap])
        self.offsets.append(self.gap_at if gap <= Gap.SPACE else offset)
