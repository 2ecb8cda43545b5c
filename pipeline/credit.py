"""Flow control: how far each stage may run ahead of the ear.

The unit is seconds of speech. For each output, ``ahead`` is the speech that stands between the ear
and what t3 makes next: the ring's fill plus the tokens not yet rendered. t3 gets credit up to
``flow.ahead_s``. s3gen cuts tokens on a ladder whose rungs grow from ``first_chunk_tokens`` to
``chunk_tokens``, no faster than the ring can bear.
"""

from __future__ import annotations

from collections.abc import Sequence

REGRANT_S = 0.25
"""New credit is sent in steps of at least this much: a message per block would be waste."""

SAFETY = 0.8
"""A rung may take this share of the speech that plays meanwhile."""

_GROWTH_AT_MOST, _LEAST_GROWTH = 2.0, 1.05


def ladder(first_tokens: int, most_tokens: int, render_ratio: float) -> tuple[int, ...]:
    """Token counts of the rungs, the last one repeating.

    ``render_ratio`` is measured: seconds of computing per second of speech. While a rung plays, the
    next one is made; so a rung may be ``SAFETY / render_ratio`` times as long as the one before it,
    at most doubling. An engine slower than that starves either way: its rungs double, as a longer one
    costs less for what it holds (of S3Gen on a CPU half), may even keep up, and there are fewer gaps.
    """
    growth = min(_GROWTH_AT_MOST, SAFETY / render_ratio) if render_ratio > 0 else _GROWTH_AT_MOST
    if growth <= _LEAST_GROWTH:
        growth = _GROWTH_AT_MOST
    rungs = [first_tokens]
    while rungs[-1] < most_tokens:
        rungs.append(min(most_tokens, max(rungs[-1] + 1, int(rungs[-1] * growth))))
    return tuple(rungs)


def next_cut(rungs: Sequence[int], done_tokens: int) -> int:
    """The first cut of the ladder above ``done_tokens``; the last rung repeats."""
    cut = 0
    for rung in rungs:
        cut += rung
        if cut > done_tokens:
            return cut
    return cut + ((done_tokens - cut) // rungs[-1] + 1) * rungs[-1]


def credit(ahead_before_s: float, unrendered_s: float, made_s: float, ahead_s: float) -> float:
    """Seconds that a stream may have made in all.

    ``ahead_before_s`` stands between the ear and this stream's first unrendered token;
    ``unrendered_s`` of the ``made_s`` it has made are not rendered yet.
    """
    return made_s - unrendered_s + max(0.0, ahead_s - ahead_before_s)


class RenderSpeed:
    """Measured seconds of computing per second of speech, smoothed; 0 until something was measured."""

    def __init__(self) -> None:
        self.ratio = 0.0

    def add(self, render_s: float, speech_s: float) -> None:
        """One rung took ``render_s`` for ``speech_s`` of speech."""
        if speech_s <= 0 or render_s <= 0:
            return
        ratio = render_s / speech_s
        self.ratio = ratio if self.ratio == 0 else 0.8 * self.ratio + 0.2 * ratio
