"""The cleaner: what comes out depends on the text alone, has its place in it, and little is ever held back."""

from __future__ import annotations

import unicodedata

import msgspec

from pipeline.clean import Cleaner
from pipeline.spoken import PAUSE_BASE
from tests.fuzz.script import DICTIONARY, MAX_BYTES, Script, read_script

__all__ = ["DICTIONARY", "MAX_BYTES", "check"]

HELD_CHARS = 2500
"""A link of 400 characters with a target of 2000 is the longest markup that is waited for."""
HELD_BYTES = 200
"""What the state says beside the text held back."""

Cleaned = list[tuple[str, int]]


def check(data: bytes) -> None:
    """Clean in the script's pieces, with a restart at each, and in one."""
    script = read_script(data)
    whole = _clean(script.whole(), False)
    assert _clean(script.steps, True) == whole
    _check_places(script, whole)


def _clean(steps: tuple[str | None, ...], restarts: bool) -> Cleaned:
    cleaner, found = Cleaner(), Cleaned()
    for step in steps:
        if restarts:
            state = msgspec.msgpack.encode(cleaner)
            assert len(state) < HELD_BYTES + 4 * HELD_CHARS
            cleaner = msgspec.msgpack.decode(state, type=Cleaner)
        found += zip(*cleaner.feed(step or "", "more" if step is not None else "flush"), strict=True)
        assert len(cleaner.raw) <= HELD_CHARS
    found += zip(*cleaner.feed("", "end"), strict=True)
    assert cleaner.raw == ""
    return found


def _check_places(script: Script, found: Cleaned) -> None:
    """Places never go back, lie in the text, and hold the character that was put out unless it was rewritten."""
    last = 0
    for char, place in found:
        assert last <= place <= len(script.text)
        last = place
        if unicodedata.category(char)[0] in "LN" and ord(char) < PAUSE_BASE:
            assert script.text[place] in (char, "&")
