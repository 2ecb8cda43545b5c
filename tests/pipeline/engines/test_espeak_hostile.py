"""Texts that overran the library's buffers: each is spoken in a process of its own, which must live."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.espeak.clauses import clean, window
from pipeline.engines.espeak.spelling import LONGEST_WORD_BYTES, with_gaps

_SPEAK = """
import json, sys
from tests.pipeline.engines.espeak_speech import Halves
halves = Halves()
for line in sys.stdin:
    language, text = json.loads(line)
    print(f"{language} {text[:20]!r} x {len(text)}", flush=True)
    speech = halves.speak(text, language=language)
    for span in speech.spans:
        assert 0 <= span.first_char < span.last_char <= len(text), (span, len(text))
    assert [span.first_token for span in speech.spans] == sorted({span.first_token for span in speech.spans})
    assert len(speech.times) == sum(step.tokens for step in speech.steps)
    print(f"tokens {len(speech.times)} samples {len(speech.samples)}", flush=True)
halves.speak("Hello, world.")  # which would use what was damaged
halves.close()
"""

RUNS = [
    *("A.", "A.B.", "w.", "w.w.w. ", "1.", "a'", "s'", "'s", "a-", "ab-", "Щ.", "щ-", "中", "中-", "中.", "𝐀.", "𒀀"),
    *("abcdefghij", "x", "ness", "un", "9", "1234567890", "x\u0301", "x\u0336", "\u0336x", "क्ष", "ก", "한", "か", "ب"),
    *("😀", "👩\u200d🔬", "%", "&", "⠿", "a@b.", "http://a/", "A1.b'", "x\u00a0"),
]
SPAIN = "D./Dña. la casa grande de mi madre y la otra que esta al lado de la calle mayor donde vive mi padre con sus "
PIECES = [
    *RUNS,
    "be",
    "ing",
    "_",
    "/",
    "A./",
    "#",
    "*",
    "’",
    "\u200d",
    "(",
    "[",
    "½",
    "²",
    "™",
    "!",
    "?",
    "…",
    "\u00a0",
    " ",
]
LANGUAGES = ["", "de", "ru", "tr", "cmn", "hi", "hu", "fr", "ar", "ja", "ko", "es", "it", "pl", "ta", "vi", "fa", "am"]


def spoken(texts: list[tuple[str, str]]) -> list[str]:
    """What the process printed: two lines for each (language, text)."""
    lines = "".join(json.dumps(one) + "\n" for one in texts)
    done = subprocess.run([sys.executable, "-c", _SPEAK], input=lines, capture_output=True, text=True, timeout=60)
    printed = done.stdout.splitlines()
    assert done.returncode == 0, f"exit code {done.returncode} at {printed[-1:]}: {done.stderr[-2000:]}"
    assert len(printed) == 2 * len(texts)
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("language", ["", "hi"])
def test_long_runs_without_white_space_are_spoken_and_aligned(language: str) -> None:
    printed = spoken([(language, (unit * 420)[:420]) for unit in RUNS])
    silent = [name for name, made in zip(printed[::2], printed[1::2], strict=True) if made.endswith(" samples 0")]
    assert not silent


@pytest.mark.slow
def test_the_texts_that_were_found_to_crash_are_spoken() -> None:
    texts = [
        ("", "A." * 200),
        ("", "A.B." * 100),
        ("", "s'" * 100),
        ("", "w." * 200),
        ("", "中-" * 20),
        ("es", SPAIN * 2),
        ("es", "A./1" + SPAIN * 3),
    ]
    assert all(not made.endswith(" samples 0") for made in spoken(texts)[1::2])


@pytest.mark.slow
def test_random_runs_of_odd_characters_do_not_crash_the_library() -> None:
    seed = int(os.environ.get("ESPEAK_FUZZ_SEED", "20_240"))
    print(f"seed {seed}")
    chosen = random.Random(seed)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        texts = []
        for _ in range(20):
            unit = "".join(chosen.choices(PIECES, k=chosen.choice((1, 1, 2, 3, 5))))
            mixed = "".join(chosen.choices(PIECES, k=150))
            text = chosen.choice(((unit * 700)[: chosen.choice((100, 300, 700))], mixed))
            texts.append((chosen.choice(LANGUAGES), text))
        spoken(texts)


def test_words_of_ordinary_length_are_left_alone() -> None:
    for text in (
        "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz.",
        "https://www.example.com/a/page-of-ordinary-length.html?x=1",
        "превысокомногорассмотрительствующий",
        "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。" * 3,
    ):
        assert clean(text).text == text


def test_a_letter_with_a_dot_is_kept_apart_from_a_symbol() -> None:
    made = clean("D./Dña. y S.A.;& etc./ 5.% ...")
    assert made.text == "D. /Dña. y S.A. ;& etc./ 5.% ..."
    assert made.origin[1:5] == (1, 2, 2, 3)


def test_a_long_run_is_cut_behind_a_mark_if_there_is_one() -> None:
    text = "abcdefghi/" * 10
    made = clean(text)
    assert made.text.split() == ["abcdefghi/" * 6, "abcdefghi/" * 4]
    assert [made.origin[at] for at in (59, 60, 61)] == [59, 60, 60]


@given(st.text(alphabet="aA.'-/1щ中𝐀\u0336\u200d ，", min_size=60, max_size=400))
def test_no_run_is_longer_than_the_library_has_room_for(text: str) -> None:
    made = clean(text)
    cost = {1: 2, 2: 2, 3: 3, 4: 6}
    for run in made.text.replace("，", " ").split():
        assert sum(cost[len(character.encode())] for character in run) <= 128
    assert len(made.origin) == len(made.text) + 1
    assert made.text.replace(" ", "") == clean(text).text.replace(" ", "")


@given(st.text(alphabet="ab.,/щ中 ", max_size=1200))
def test_text_is_handed_over_whole_and_in_portions_that_fit(text: str) -> None:
    cleaned, at = clean(text).text, 0
    while at < len(cleaned):
        portion = window(cleaned, at)
        assert portion
        assert len(portion.encode()) <= 900
        assert cleaned.startswith(portion, at)
        assert at + len(portion) == len(cleaned) or portion[-1].isspace()
        at += len(portion)


@given(st.text(alphabet="aI3@',_|%é", max_size=700))
def test_long_phoneme_words_get_gaps_and_lose_nothing(word: str) -> None:
    made = with_gaps(word)
    assert made.replace(" ", "") == word
    assert all(len(part.encode()) <= LONGEST_WORD_BYTES for part in made.split())
    if len(word.encode()) <= LONGEST_WORD_BYTES:
        assert made == word
