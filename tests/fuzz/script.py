"""How the bytes of an input become a growing text: what is fed, where it is cut, where its writer pauses.

The first two bytes choose the options. The rest is the text in UTF-8, in which three control characters
(as never spoken as all the others) are instructions: cut here, flush here, cut between all characters from here to
the next cut. Bytes that are no UTF-8 become lone surrogates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CUT, FLUSH, CHARS = "\x1f", "\x1e", "\x1d"
MAX_BYTES = 1500
DICTIONARY = (
    *("\x1f", "\x1e", "\x1d", "[pause:500ms]", "[pause:", "```", "~~~\n", "](http://a", "![", "[^1]", "<!--", "-->"),
    *("<br>", "</b>", "<http://a.b>", "&amp;", "&#x41;", "|---|---|\n", "| a |\n", "\n\n", "\r\n", "# ", "> ", "- "),
    *("1. ", "12) ", "===\n", "***", "__", "~~", "\\", "Dr. ", "e.g. ", "3.14", "...", "。", "、", "»", "„", "“"),
    *("\u00a0", "\u200d", "\u2028", "\u2029", "\u0301", "😀", "👍🏽", "1️⃣", "https://", "www.", "हिं", "สวัสดี", "؟"),
)


@dataclass(frozen=True)
class Script:
    """A text with ``steps``: pieces to feed, and None where the writer falls silent."""

    options: tuple[int, int]
    text: str
    steps: tuple[str | None, ...]

    def whole(self) -> tuple[str | None, ...]:
        """The same text and the same silences, in as few pieces as possible."""
        joined: list[str | None] = []
        for step in self.steps:
            if step is not None and joined and joined[-1] is not None:
                joined[-1] += step
            else:
                joined.append(step)
        return tuple(joined)


def read_script(data: bytes) -> Script:
    """Any bytes as a script."""
    padded = data[:2].ljust(2, b"\0")
    steps: list[str | None] = []
    by_char = False
    for part in re.split(f"([{CUT}{FLUSH}{CHARS}])", data[2:].decode("utf-8", "surrogateescape")):
        if part in (CUT, FLUSH, CHARS):
            by_char = part == CHARS
            steps += [None] if part == FLUSH else []
        else:
            steps += part if by_char else [part]
    text = "".join(step for step in steps if step is not None)
    return Script((padded[0], padded[1]), text, tuple(steps))
