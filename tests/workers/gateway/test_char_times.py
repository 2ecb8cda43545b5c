"""When each character sounds: every character once, in order, from words."""

from __future__ import annotations

import random

from ipc.messages import Aligned
from workers.gateway.char_times import CharTimes, Span


def word(chars: tuple[int, int], samples: tuple[int, int]) -> Aligned:
    return Aligned(id="a", chars=chars, samples=samples, exact=True)


def test_characters_share_the_time_of_their_word() -> None:
    times = CharTimes()
    times.wrote("Hi you.")
    times.aligned(word((0, 2), (0, 2400)))
    times.aligned(word((3, 6), (4800, 12_000)))
    assert times.take(12_000).milliseconds(0) == {
        "chars": list("Hi you"),
        "charStartTimesMs": [0, 50, 100, 200, 300, 400],
        "charDurationsMs": [50, 50, 100, 100, 100, 100],
    }
    assert times.rest(12_000).seconds() == {
        "characters": ["."],
        "character_start_times_seconds": [0.5],
        "character_end_times_seconds": [0.5],
    }


def test_a_piece_of_sound_has_the_characters_that_begin_in_it_counted_from_its_beginning() -> None:
    times = CharTimes()
    times.wrote("abcd")
    times.aligned(word((0, 4), (0, 9600)))
    assert times.take(4800).chars == ["a", "b"]
    assert times.take(9600).milliseconds(4800)["charStartTimesMs"] == [0, 100]


def test_what_is_told_twice_is_no_news() -> None:
    times = CharTimes()
    times.wrote("ab")
    for _ in range(2):
        times.aligned(word((0, 1), (0, 2400)))
    times.aligned(word((1, 2), (2400, 4800)))
    assert times.rest(4800).starts == [0.0, 2400.0]


def test_whatever_the_pieces_all_that_was_told_is_the_text() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(200):
        text = "".join(rng.choice("ab é😀.") for _ in range(rng.randint(0, 60)))
        times, told, at, sample = CharTimes(), Span(), 0, 0
        while at < len(text):
            if rng.random() < 0.5:
                times.wrote(text[at : (at := at + rng.randint(1, 9))])
            begin = rng.randint(0, at)
            end = min(at, begin + rng.randint(1, 6))
            if end > begin:
                times.aligned(word((begin, end), (sample, sample := sample + rng.randint(0, 5000))))
            told.extend(times.take(rng.randint(0, sample + 1)))
        told.extend(times.rest(sample))
        assert "".join(told.chars) == text, f"seed {seed}"
        assert told.starts == sorted(told.starts), f"seed {seed}"
        assert len(told.chars) == len(told.starts) == len(told.lengths)
