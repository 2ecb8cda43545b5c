"""When the words of a model that is still writing are handed to the voice. Nothing here knows sockets or clocks.

The pipeline speaks the first clause once it is complete, and then whole sentences: what sounds best, and
too late while a model of 20 words a second has just begun. So whoever speaks for a model asks for what
is there (`flush`) when the first word is, and whenever the voice would fall silent before more comes. Words
are never cut: the last one waits here until something follows it.
"""

from __future__ import annotations

import re

from ipc.messages import SAMPLE_RATE

SPARE_S = 0.06
"""How long before the voice runs out it is given more, besides what making sound takes."""

MOST_MAKING_S = 2.0

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\ua960-\uabff\uf900-\uffef\U00020000-\U0003ffff"
_LAST_WORD = re.compile(f"[^\\s{_UNSPACED}]*\\Z")
"""What may still grow; scripts that put no spaces between words are cut by the pipeline alone."""

_WORD = re.compile(r"[^\W_]{2}")
"""A letter alone would be read out as one ("A sailing boat"): it waits for the next word."""

_MARKUP = re.compile(r"[*_`~\[\]<>|#=$]")
"""Where a flush could tear markup apart, and have it read out, the pipeline decides."""


def has_word(text: str) -> bool:
    """Whether there is a word in it that may be spoken without knowing the next."""
    return _WORD.search(text) is not None


class Words:
    """Text in any pieces, given out in whole words."""

    def __init__(self) -> None:
        self._held = ""

    def take(self, text: str) -> str:
        """What of it, and of what was held back, may go."""
        self._held += text
        at = _LAST_WORD.search(self._held)
        assert at is not None
        whole, self._held = self._held[: at.start()], self._held[at.start() :]
        return whole

    def rest(self) -> str:
        """What is held back; nothing comes any more."""
        held, self._held = self._held, ""
        return held


class Pace:
    """When to flush. Times are seconds on any one clock.

    ``eager``: the first word goes at once, alone if it must; otherwise nothing is hurried before the voice
    has begun.
    """

    def __init__(self, eager: bool) -> None:
        self._eager = eager
        self._pending = ""
        self._written_chars = 0
        self._asked_chars = 0
        self._asked_s: float | None = None
        self._making_s = 0.0
        self._made_chars = 0
        self._made_samples = 0
        self._ahead_s = 0.0
        self._until_s: float | None = None

    def wrote(self, words: str) -> None:
        """These were handed over."""
        self._pending += words
        self._written_chars += len(words)

    def flushed(self, now_s: float) -> None:
        """What was pending was asked for."""
        last = max((at for at, char in enumerate(self._pending) if char.isalnum()), default=-1)
        self._asked_chars = self._written_chars - len(self._pending) + last + 1
        self._asked_s = now_s
        self._pending = ""

    def made(self, chars: int, samples: int, now_s: float) -> None:
        """The text up to ``chars`` is sound up to ``samples``."""
        more_s = max(0, samples - self._made_samples) / SAMPLE_RATE
        self._made_samples = max(self._made_samples, samples)
        self._made_chars = max(self._made_chars, chars)
        if self._until_s is None:
            self._ahead_s += more_s
        else:
            self._until_s = max(self._until_s, now_s) + more_s
        if self._asked_s is not None:
            self._making_s = min(now_s - self._asked_s, MOST_MAKING_S)
            self._asked_s = None

    def sounds(self, now_s: float) -> None:
        """The voice has begun."""
        if self._until_s is None:
            self._until_s = now_s + self._ahead_s

    @property
    def due_s(self) -> float | None:
        """When to flush, if nothing else happens before; None: not at all."""
        if not has_word(self._pending) or _MARKUP.search(self._pending):
            return None
        if self._until_s is None:
            return 0.0 if self._eager and not self._asked_chars else None
        if self._made_chars < self._asked_chars:
            return None  # what was asked for is still being made; more pieces would not make it quicker
        return self._until_s - SPARE_S - self._making_s
