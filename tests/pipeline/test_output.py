"""One output: what reaches the ear, and when."""

from __future__ import annotations

import pytest

from ipc.messages import SAMPLE_RATE
from pipeline.output import OutputState, RingView

TAKEN = RingView(written=90_000, read=48_512, ear_sample=48_000, ear_s=100.0)
"""The block 48000 … 48512 was taken; its first sample reaches the ear at second 100."""


@pytest.mark.parametrize(
    ("now_s", "ear"),
    [
        (99.9, 48_000 - SAMPLE_RATE // 10),  # still in the device, with what was taken before it
        (100.0, 48_000),
        (100.01, 48_240),
        (105.0, 48_512),  # not further than what was taken
    ],
)
def test_the_ear_is_where_the_device_says_and_not_where_it_was_read(now_s: float, ear: int) -> None:
    assert OutputState(0, None, TAKEN).ear(now_s) == pytest.approx(ear, abs=1)


def test_a_remote_listeners_ear_is_what_was_sent() -> None:
    assert OutputState(1, (b"client", ""), TAKEN).ear(105.0) == 48_000
