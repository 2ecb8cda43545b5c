"""What travels between the halves, and how phonemes are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.base import EngineError
from pipeline.engines.espeak.pieces import Piece, decode, encode
from pipeline.engines.espeak.spelling import cut_long, respell, rewrite_switches, split

PIECE = Piece("h@l'oU w'3:ld", ",", "pause", 2, 0, 0, 1, 13)


def test_pieces_survive_being_joined() -> None:
    other = Piece("'EtV", "", "end", 1, 13, 0, 2, 20)
    assert decode(encode(PIECE) + encode(other)) == [PIECE, other]
    assert decode(b"") == []


@pytest.mark.parametrize(
    "data",
    [b"garbage", b"\xff\xfe", b"[]\n", b'["a"]\n', encode(PIECE)[:-4], encode(PIECE).replace(b",2,", b",3,")],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(EngineError, match="not made by espeak's token half"):
        decode(data)


def test_a_language_switch_is_rewritten() -> None:
    assert rewrite_switches("(en)k@mpj'u:t3(ru)").split() == ["_^_en", "k@mpj'u:t3", "_^_ru"]
    assert rewrite_switches("h@l'oU") == "h@l'oU"


def test_long_phonemes_are_cut_between_words_below_the_limit() -> None:
    words = ["w'3:d"] * 300
    parts = split(" ".join(words))
    assert " ".join(parts).split() == words
    assert all(len(part.encode()) <= 600 for part in parts)
    assert len(parts) == 3


def test_a_part_that_begins_in_another_language_says_so() -> None:
    parts = split("v (en)" + " ".join(["w'3:d"] * 20) + "(ru) d'a", most_bytes=60)
    assert parts[1].startswith("(en)w'3:d")
    assert not parts[-1].startswith("(en)d'a")
    assert sum(len(part.split()) for part in parts) == 22


def test_one_giant_word_is_cut_for_the_synthesiser_and_stays_one_token() -> None:
    giant = "'Eks,Eks" * 200
    assert split(giant) == [giant]
    cuts = cut_long(giant)
    assert "".join(cuts) == giant
    assert all(len(cut) <= 600 for cut in cuts)
    assert cut_long("h@l'oU") == ["h@l'oU"]


@given(st.lists(st.text(alphabet="abAB3@',:_", min_size=1, max_size=60), max_size=60))
def test_splitting_loses_no_word(words: list[str]) -> None:
    parts = split(" ".join(words), most_bytes=120)
    assert [word for part in parts for word in part.split()] == words


def test_syllables_after_the_stress_are_diminished_where_the_language_does() -> None:
    assert respell("v·'O·l·n^·i", "pl") == "v|'O%%l%%n^%%i"
    assert respell("k·'a·s·a", "es") == "k|'a%%s%%a/"
    assert respell("h·@·l·'oU w·'3:·l·d", "en-us") == "h@l'oU w'3:ld"
    assert respell("l·a", "it") == "l|a"
