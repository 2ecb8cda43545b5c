"""Credit and the ladder."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.credit import SAFETY, RenderSpeed, credit, ladder


@given(first=st.integers(1, 100), most=st.integers(1, 200), ratio=st.floats(0, 5))
def test_rungs_grow_from_the_first_to_the_largest_and_no_faster_than_they_can_be_made(
    first: int, most: int, ratio: float
) -> None:
    rungs = ladder(first, most, ratio)
    assert rungs[0] == first
    assert list(rungs) == sorted(rungs)
    assert rungs[-1] <= max(first, most)
    for before, after in itertools.pairwise(rungs):
        assert after <= max(before * 2, before + 1)
        keeps_up = ratio * 1.05 < SAFETY
        assert ratio * after <= SAFETY * before + ratio or after == before + 1 or not keeps_up


def test_rungs_double_unless_they_could_be_made_in_time_if_they_grew_less() -> None:
    assert ladder(12, 50, 0.0) == ladder(12, 50, 0.05) == (12, 24, 48, 50)
    assert ladder(12, 50, 0.6) == (12, 16, 21, 28, 37, 49, 50)
    assert ladder(12, 50, 0.9) == ladder(12, 50, 6.0) == (12, 24, 48, 50)


@given(ahead=st.floats(0, 20), made=st.floats(0, 100), share=st.floats(0, 1), limit=st.floats(0.5, 20))
def test_credit_never_lets_more_than_the_limit_stand_ahead(
    ahead: float, made: float, share: float, limit: float
) -> None:
    unrendered = made * share
    allowed = credit(ahead, unrendered, made, limit)
    may_still_make = allowed - made
    assert ahead + unrendered + may_still_make <= max(limit, ahead) + 1e-9


def test_render_speed_follows_what_is_measured() -> None:
    speed = RenderSpeed()
    speed.add(0.0, 1.0)
    speed.add(1.0, 0.0)
    assert speed.ratio == 0
    speed.add(0.5, 1.0)
    assert speed.ratio == 0.5
    for _ in range(50):
        speed.add(0.1, 1.0)
    assert abs(speed.ratio - 0.1) < 0.01
