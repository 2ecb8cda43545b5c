"""When T3 does not stop by itself: after so much speech for so little text, in a loop, or in silence.

The model was trained to end; with odd texts, voices or settings it sometimes does not, and would speak noise for 40 s.
A guard looks at the tokens in order, whatever rounds they came in, so that it decides the same after a resume. What it
decides is told in `TokenStep.note`.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

from pipeline.engines.chatterbox.variants import SILENCE_TOKEN, TOKENS_PER_S

_DIGITS = 8
_LEVELS = 3


def _near_silence() -> frozenset[int]:
    """Silence and its neighbours. A token is eight levels of 0 … 2 (finite scalar quantisation, 3⁸ = 6561), so that ids
    that differ in one of them stand for sounds that differ little."""
    near = {SILENCE_TOKEN}
    for digit in range(_DIGITS):
        unit = _LEVELS**digit
        level = SILENCE_TOKEN // unit % _LEVELS
        near |= {SILENCE_TOKEN + (other - level) * unit for other in range(_LEVELS)}
    return frozenset(near)


SILENT = _near_silence()


@dataclass(frozen=True)
class Limits:
    """What is too much; 0 switches a guard off. ``tokens``: the stock package's own limit.

    A segment may last ``start_s`` plus ``char_s`` for each character, ``wide_char_s`` for each that stands for more
    than a letter (digits, Chinese, Japanese, Korean): three times what slow speech takes. ``cycle_s`` of one token, or
    of a pattern of up to ``longest_cycle`` tokens over and over twice as long, are a loop.
    """

    tokens: int = 1000
    start_s: float = 4.0
    char_s: float = 0.25
    wide_char_s: float = 0.9
    cycle_s: float = 0.8
    longest_cycle: int = 8
    silence_s: float = 2.4

    def tokens_for(self, text: str) -> int:
        """The most tokens that a text may take."""
        if not self.char_s:
            return self.tokens
        wide = sum(char.isdigit() or unicodedata.east_asian_width(char) in "WF" for char in text)
        seconds = self.start_s + self.char_s * (len(text) - wide) + self.wide_char_s * wide
        return min(self.tokens, round(seconds * TOKENS_PER_S))


LIMITS = Limits()
NO_LIMITS = Limits(char_s=0, cycle_s=0, silence_s=0)
"""Those of the stock package alone."""


@dataclass
class Guard:
    """Watches one stream, token by token, from its first."""

    limits: Limits
    text: str
    _ids: list[int] = field(default_factory=list)
    _repeats: list[int] = field(default_factory=list)
    _silence: int = 0

    def __post_init__(self) -> None:
        self._most = self.limits.tokens_for(self.text)
        self._repeats = [0] * (self.limits.longest_cycle + 1)

    def look(self, token: int) -> str:
        """Take the next token; why the stream is to end with it (empty: it goes on)."""
        self._ids.append(token)
        self._silence = self._silence + 1 if token in SILENT else 0
        return self._too_long() or self._silent() or self._loops(token)

    def _too_long(self) -> str:
        made = len(self._ids)
        if made < self._most:
            return ""
        if made >= self.limits.tokens:
            return f"stopped at the model's limit of {made} tokens ({made / TOKENS_PER_S:g} s)"
        return f"stopped after {made / TOKENS_PER_S:g} s: too long for {len(self.text)} characters"

    def _silent(self) -> str:
        limit = self.limits.silence_s
        if not limit or self._silence < limit * TOKENS_PER_S:
            return ""
        return f"stopped after {self._silence / TOKENS_PER_S:g} s of silence"

    def _loops(self, token: int) -> str:
        limit = self.limits.cycle_s * TOKENS_PER_S
        if not limit or token in SILENT:
            self._repeats = [0] * len(self._repeats)
            return ""
        for cycle in range(1, len(self._repeats)):
            same = len(self._ids) > cycle and self._ids[-1 - cycle] == token
            self._repeats[cycle] = self._repeats[cycle] + 1 if same else 0
            if self._repeats[cycle] >= (limit - 1 if cycle == 1 else 2 * limit):
                seconds = (self._repeats[cycle] + cycle) / TOKENS_PER_S
                return f"stopped after {seconds:g} s of the same {cycle} token{'s' * (cycle > 1)} over and over"
        return ""
