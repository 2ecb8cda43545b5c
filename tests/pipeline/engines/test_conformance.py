"""Every engine passes every check of `conformance`. A new engine is one more entry of ``SUBJECTS``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.engines.espeak import ENGINE as ESPEAK
from tests.engines.babble import ENGINE as BABBLE
from tests.pipeline.engines.conformance import CHECKS, Subject

SUBJECTS = [
    Subject(
        name="espeak",
        engine=ESPEAK,
        texts=(
            "Hello, big world. This costs $1,234.56, i.e. 50% more; doesn't it?",
            "Der Regen fiel, und der Wind blies: es war Nacht. Am 3. Mai um 14:30 Uhr.",
            "Это английское слово computer, в русском тексте, с числом 21.",
            "and so it went on and on " * 30,
            "... (Wait!) — what?! «Sí», no… 😀 [[h@l'oU]] \x01 end.",
            "今天天气很好，我在2021年3月5日买了3本书。",
        ),
        voices=(("", ""), ("", "de"), ("+f3", "ru"), ("en-us+whisper", ""), ("es+klatt", ""), ("", "zh")),
    ),
    Subject(
        name="babble",
        engine=BABBLE,
        texts=(
            "Hello, big world. This costs 1,234, doesn't it?",
            "The quick brown fox jumps over the lazy dog.",
            "One two three four five six seven eight nine ten.",
            "And so it went on, and on, and on, until it ended.",
        ),
    ),
]
SLOW = {"espeak"}
"""Those that take seconds."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "subject",
    [pytest.param(one, id=one.name, marks=[pytest.mark.slow] if one.name in SLOW else []) for one in SUBJECTS],
)
def test_engine_conforms(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)
