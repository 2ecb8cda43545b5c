"""The segmenter: segments depend on the text alone, tile it, stay short, and a restart changes nothing."""

from __future__ import annotations

import re

from pipeline.spoken import has_words
from pipeline.text import TextSegment, TextSegmenter
from tests.fuzz.script import DICTIONARY, MAX_BYTES, Script, read_script

__all__ = ["DICTIONARY", "MAX_BYTES", "check"]

LANGUAGES = ("en", "de", "fr", "zh", "hi", "el", "pt-BR", "nobody-knows")
LIMITS = ((300, 1), (300, 9), (120, 0), (40, 40), (17, 5), (5, 1), (1, 1), (1000, 30))
STATE_BYTES = 40_000
"""2500 characters of undecided markup, 1000 of decided text, and the place of each."""

_MAY_BE_MARKUP = re.compile(r"[*_~`\[\]&!|#\\<>+=^:\ud800-\udfff\u200c\u200d-]")


def check(data: bytes) -> None:
    """Cut in the script's pieces, with a restart at each, and in one."""
    script = read_script(data)
    whole = _cut(script, script.whole(), False)
    assert _cut(script, script.steps, True) == whole
    _check_map(script.text, whole, _limits(script)[0])
    if not _MAY_BE_MARKUP.search(script.text):
        assert _letters("".join(segment.text for segment in whole)) == _letters(script.text)


def _limits(script: Script) -> tuple[int, int]:
    return LIMITS[script.options[1] % len(LIMITS)]


def _cut(script: Script, steps: tuple[str | None, ...], restarts: bool) -> list[TextSegment]:
    language = LANGUAGES[script.options[0] % len(LANGUAGES)]
    segmenter, found = TextSegmenter(language, *_limits(script), sentence_pause_ms=100), list[TextSegment]()
    for step in steps:
        if restarts:
            state = segmenter.state()
            assert len(state) < STATE_BYTES
            segmenter = TextSegmenter.restore(state)
            assert segmenter.state() == state
        if step is not None:
            found += segmenter.feed(step)
        else:
            found += segmenter.flush()
            assert segmenter.pending_chars == 0
            assert segmenter.flush() == []
    return found + segmenter.end()


def _check_map(text: str, found: list[TextSegment], longest_chars: int) -> None:
    position, last = 0, 0
    for segment in found:
        assert segment.start == position
        position = segment.end
        assert len(segment.text) <= longest_chars
        assert segment.text == segment.text.strip()
        assert has_words(segment.text) or segment.text == ""
        assert len(segment.offsets) == len(segment.text) + 1
        assert 0 <= segment.pause_ms <= 10_000
        for char, offset in zip(segment.text, segment.offsets, strict=False):
            assert max(last, segment.start) <= offset < len(text)
            last = offset
            # Gaps become spaces, table bars commas; entities are the only other thing rewritten. One may mean several
            # characters, and a cut between them leaves the later ones nothing of the text.
            assert offset < segment.end or text[offset] == "&"
            assert text[offset] == char or char in " ," or text[offset] == "&"
        assert segment.start <= segment.offsets[-1] <= segment.end
    assert position == len(text)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))
