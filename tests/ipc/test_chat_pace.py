"""When a model's words go to the voice: whole words, early, and before the voice runs out."""

from __future__ import annotations

import random

import pytest

from ipc.chat_pace import SPARE_S, Pace, Words
from ipc.messages import SAMPLE_RATE


@pytest.mark.parametrize("seed", range(5))
def test_no_word_is_ever_cut_and_no_letter_lost(seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    text = "A sailing boat's keel, 3.5 metres long; don't you think?\nYes… and no."
    words = Words()
    given = []
    at = 0
    while at < len(text):
        step = rng.randint(1, 5)
        given.append(words.take(text[at : at + step]))
        at += step
    assert all(piece == "" or piece[-1].isspace() for piece in given)
    assert "".join(given) + words.rest() == text
    assert words.rest() == ""


def test_scripts_without_spaces_are_not_held_back():
    assert Words().take("帆船は風に") == "帆船は風に"
    assert Words().take("เรือใบ") == "เรือใบ"


def test_the_first_word_goes_at_once_and_the_second_waits_until_the_voice_would_run_out():
    pace = Pace(eager=True)
    assert pace.due_s is None
    pace.wrote("Sailing ")
    assert pace.due_s is not None
    assert pace.due_s <= 0
    pace.flushed(1.0)
    pace.wrote("boats ")
    assert pace.due_s is None  # the first word is being made
    pace.made(7, SAMPLE_RATE // 2, 1.02)
    pace.sounds(1.03)
    pace.wrote("can ")
    assert pace.due_s == pytest.approx(1.03 + 0.5 - SPARE_S - 0.02)


def test_nothing_is_hurried_before_the_voice_has_begun_where_making_sound_is_slow():
    pace = Pace(eager=False)
    pace.wrote("Sailing ")
    assert pace.due_s is None
    pace.wrote("boats, ")
    pace.made(14, SAMPLE_RATE, 3.0)
    pace.sounds(3.1)
    assert pace.due_s is None or pace.due_s > 3.5


def test_what_was_asked_for_is_not_asked_for_again_in_smaller_pieces():
    pace = Pace(eager=True)
    pace.wrote("One ")
    pace.flushed(0.0)
    pace.made(3, SAMPLE_RATE // 10, 0.01)
    pace.sounds(0.02)
    pace.wrote("two ")
    pace.flushed(0.1)
    pace.wrote("three ")
    assert pace.due_s is None
    pace.made(7, SAMPLE_RATE // 5, 0.5)
    assert pace.due_s is not None


def test_a_voice_that_ran_dry_counts_from_when_it_went_on():
    pace = Pace(eager=True)
    pace.wrote("One ")
    pace.flushed(0.0)
    pace.made(3, SAMPLE_RATE, 0.01)
    pace.sounds(0.0)
    pace.made(7, 2 * SAMPLE_RATE, 5.0)
    pace.wrote("three ")
    assert pace.due_s == pytest.approx(6.0 - SPARE_S - 0.01)


@pytest.mark.parametrize("words", ["**very ", "[see ", "`x ", "| a ", "- ", "... ", "A "])
def test_markup_is_not_torn_apart_and_marks_or_a_letter_alone_are_no_word(words):
    pace = Pace(eager=True)
    pace.wrote(words)
    assert pace.due_s is None
