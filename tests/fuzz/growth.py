"""The text front end's time: a pattern repeated four times as often may take four times as long, not sixteen."""

from __future__ import annotations

import time

from pipeline.cutting import SLICE_CHARS
from pipeline.text import TextSegmenter
from tests.fuzz.script import CHARS, CUT, DICTIONARY, FLUSH

__all__ = ["DICTIONARY", "MAX_BYTES", "check"]

MAX_BYTES = 64
CHARS_SHORT, CHARS_LONG = 4_000, 16_000
"""The shorter is longer than all markup that is waited for: within that, time may grow with the square."""
WORST = 9.0
"""Times as long for four times the text: half way between linear and quadratic."""
NOTHING_S = 0.1
"""Nobody minds so much for CHARS_SHORT characters."""


def check(data: bytes) -> None:
    """Repeat the pattern, fed by the character where the first byte is odd."""
    pattern = data[1:].decode("utf-8", "surrogateescape").translate({ord(sign): None for sign in (CUT, FLUSH, CHARS)})
    if not pattern:
        return
    step = 1 if data[0] % 2 else SLICE_CHARS
    prefix, pattern = ("", pattern) if data[0] & 2 else (pattern[: len(pattern) // 2], pattern[len(pattern) // 2 :])
    text = prefix + pattern * (CHARS_LONG // len(pattern) + 1)
    short_s = _time(text[:CHARS_SHORT], step)
    if short_s > NOTHING_S:
        long_s = _time(text[:CHARS_LONG], step)
        assert long_s < WORST * short_s, f"{short_s:.3f} s, then {long_s:.3f} s"


def _time(text: str, step: int) -> float:
    """Seconds of this thread's time to cut the text."""
    started_s = time.thread_time()
    segmenter = TextSegmenter("en", 300)
    for at in range(0, len(text), step):
        segmenter.feed(text[at : at + step])
        if step == 1:
            assert segmenter.pending_chars >= 0
    segmenter.end()
    return time.thread_time() - started_s
