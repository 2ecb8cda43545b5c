"""Text made safe, how clauses end, and which characters a word stands for."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.espeak.clauses import (
    PARAGRAPH,
    WordRange,
    clean,
    speakable,
    terminator_of,
    word_ranges,
)
from pipeline.engines.espeak.library import Word


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("one\x00two", "one two"),
        ("\x01+10S fast", " +10S fast"),
        ("a\tb\r\nc", "a b \nc"),
        ("[[h@l'oU]]", "[ h@l'oU]]"),
        ("[[[x", "[ [x"),
        ("[\x02X1]]", "[ X1]]"),
        ("[\u200b[x]]", "[ x]]"),
        ("soft\u00adhyphen", "softhyphen"),
        ("\ud800lone", "lone"),
        ("\ue000private\U000f0000", "private"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("cafe\u0301", "café"),
    ],
)
def test_what_could_be_taken_for_a_command_is_broken_up(text: str, spoken: str) -> None:
    assert clean(text).text == spoken


def test_positions_lead_back_to_the_original_characters() -> None:
    made = clean("e\u0301\u00adx\ud800y")
    assert made.text == "éxy"
    assert made.origin == (0, 3, 5, 6)


@given(st.text())
def test_cleaned_text_is_harmless_and_traceable(text: str) -> None:
    made = clean(text)
    assert "[[" not in made.text
    assert len(made.origin) == len(made.text) + 1
    assert list(made.origin) == sorted(made.origin)
    assert made.origin[-1] == len(text)
    made.text.encode()
    for character in made.text:
        assert unicodedata.category(character)[0] != "C" or character in "\n\u200c\u200d"


@pytest.mark.parametrize(
    ("clause", "mark"),
    [
        ("Hello, ", ","),
        ("Hello.", "."),
        ("What?!", "?"),
        ("No!? ", "!"),
        ('he said."', "."),
        ("(really). ", "."),
        ("Wait... ", ";"),
        ("maybe… ", ";"),
        ("yes) — ", ";"),
        ("note: ", ":"),
        ("你好，", ","),
        ("天气很好！", "!"),
        ("नमस्ते। ", "."),
        ("حالك؟ ", "?"),
        ("plain words", ""),
        ("50%. ", "."),
        ("3.5", ""),
        ("the end\n\n", PARAGRAPH),
        ("the end.\n\n", "." + PARAGRAPH),
        ("", ""),
    ],
)
def test_the_mark_a_clause_ends_with(clause: str, mark: str) -> None:
    assert terminator_of(clause) == mark


@pytest.mark.parametrize("text", ["", " ", "...", "—", "¿", '"\n', "( )", "«»", "。", "- -"])
def test_punctuation_alone_is_not_speakable(text: str) -> None:
    assert not speakable(text)


@pytest.mark.parametrize("text", ["a", "1", "%", "€", "😀", "今", "...ok", "&"])
def test_letters_digits_and_symbols_are(text: str) -> None:
    assert speakable(text)


def ranges(text: str, told: list[tuple[int, int]], spoken: int) -> list[tuple[int, str, bool]]:
    words = [Word(position, length, 0) for position, length in told]
    return [(one.first, text[one.start : one.end], one.exact) for one in word_ranges(text, 0, len(text), words, spoken)]


def test_words_are_exact_where_the_library_told_as_many_as_it_speaks() -> None:
    assert ranges("Hello big world.", [(0, 5), (6, 3), (10, 5)], 3) == [
        (0, "Hello", True),
        (1, "big", True),
        (2, "world", True),
    ]


def test_words_run_together_cover_both() -> None:
    assert ranges("of the people", [(0, 2), (7, 6)], 2) == [(0, "of the", True), (1, "people", True)]


def test_a_number_spoken_in_many_words_is_one_range() -> None:
    assert ranges("paid $1,234.56 now", [(0, 4), (5, 1), (6, 2), (7, 2), (8, 6), (15, 3)], 6) == [
        (0, "paid", True),
        (1, "$1,234.56", True),
        (5, "now", True),
    ]


def test_positions_beside_a_word_are_put_right() -> None:
    assert ranges("«Sí», que", [(0, 0), (5, 1)], 2) == [(0, "Sí", True), (1, "que", True)]


def test_another_number_of_words_is_spread_and_marked() -> None:
    found = ranges("one two three four", [(0, 3), (4, 3), (8, 5), (14, 4)], 6)
    assert [text for _, text, _ in found] == ["one", "two", "three", "four"]
    assert [first for first, _, _ in found] == [0, 1, 3, 4]
    assert not any(exact for _, _, exact in found)


@given(
    st.text(alphabet="ab 1.,é😀", min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(-3, 40), st.integers(0, 9)), max_size=8),
    st.integers(0, 10),
)
def test_ranges_stay_inside_and_in_order_whatever_is_told(text: str, told: list[tuple[int, int]], spoken: int) -> None:
    found: list[WordRange] = word_ranges(text, 0, len(text), [Word(*one, 0) for one in told], spoken)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert [one.first for one in found] == sorted({one.first for one in found})
    assert all(one.first < max(1, spoken) for one in found)
