"""What each method makes of a chunk."""

from __future__ import annotations

import pytest

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.continuity import METHODS, Continuity, Window

pytestmark = pytest.mark.chatterbox


@pytest.mark.parametrize(
    ("method", "at_start", "early", "late"),
    [
        ("context", Window(0, 0, 0, False), Window(0, 20, 0, False), Window(75, 50, 0, False)),
        ("overlap", Window(0, 0, 0, False), Window(0, 0, 8, False), Window(75, 0, 8, False)),
        ("recompute", Window(0, 0, 0, False), Window(0, 0, 0, False), Window(0, 0, 0, False)),
        ("masked", Window(0, 0, 0, True), Window(0, 0, 0, True), Window(0, 0, 0, True)),
    ],
)
def test_a_window_slides_or_grows(method: str, at_start: Window, early: Window, late: Window) -> None:
    one = Continuity(method, 25)
    assert (one.window(0), one.window(10), one.window(100)) == (at_start, early, late)


def test_only_frames_that_are_fed_back_or_revised_are_kept_or_held() -> None:
    kept = {method: Continuity(method, 30).given_frames for method in METHODS}
    assert kept == {"context": 60, "overlap": 0, "recompute": 0, "masked": 0}
    held = {method: Continuity(method, 30).revised_frames for method in METHODS}
    assert held == {"context": 0, "overlap": 8, "recompute": 0, "masked": 0}


def test_no_more_is_blended_than_was_made() -> None:
    assert Continuity("overlap").window(2).revised_frames == 4
    assert Continuity("overlap", 3).window(50).revised_frames == 6


def test_unknown_methods_are_named() -> None:
    with pytest.raises(EngineError, match="'none' is not one of context, overlap, recompute, masked"):
        Continuity("none")
    with pytest.raises(EngineError, match="context_tokens: 201"):
        Continuity("context", 201)
