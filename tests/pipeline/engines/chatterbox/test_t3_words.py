"""From tokens to what is handed out: words, guards, bytes. No tensors."""

from __future__ import annotations

import pytest

pytest.importorskip("chatterbox")

from ipc.messages import TokenSpan
from pipeline.engines.base import StreamError, TokenStep
from pipeline.engines.chatterbox import wire
from pipeline.engines.chatterbox.alignment import Words, words_of
from pipeline.engines.chatterbox.guards import NO_LIMITS, SILENT, Guard, Limits
from pipeline.engines.chatterbox.speaking import NOT_A_NUMBER, NOTHING_LEFT, Stream, Told
from pipeline.engines.chatterbox.variants import (
    CHATTERBOX,
    SILENCE_TOKEN,
    STOP_SPEECH,
    TURBO,
    Variant,
)

pytestmark = pytest.mark.chatterbox


def cut(text: str) -> list[str]:
    return [text[first:last] for first, last in words_of(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello there, you.", ["Hello", "there,", "you."]),
        ("  odd   spaces ", ["odd", "spaces"]),
        ("你好，世界。", ["你", "好，", "世", "界。"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("GPU上で動く", ["GPU", "上", "で", "動", "く"]),
        ("", []),
        ("   ", ["   "]),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert cut(text) == words


def test_attention_gives_each_word_the_token_at_which_it_begins() -> None:
    text = "one two three"
    words = Words(text, list(range(len(text))), 0.066)
    places = [0, 1, 2, 1, 5, 6, 4, 9, 10, 14]
    spans = [span for token, place in enumerate(places) if (span := words.at(token, place, certain=True))]
    assert spans == [TokenSpan(0, 0, 3, True), TokenSpan(4, 4, 7, True), TokenSpan(7, 8, 13, True)]


def test_skipped_words_and_vague_attention_are_no_exact_times() -> None:
    text = "one two three four"
    words = Words(text, list(range(len(text))), 0.066)
    assert words.at(0, 1, certain=True) == TokenSpan(0, 0, 3, True)
    assert words.at(1, 10, certain=True) == TokenSpan(1, 4, 13, False)
    assert words.at(2, 16, certain=False) == TokenSpan(2, 14, 18, False)
    assert words.at(3, 2, certain=True) is None


def test_without_attention_words_follow_the_usual_pace_as_a_guess() -> None:
    text = "one two three"
    words = Words(text, None, 0.04)
    spans = [span for token in range(20) if (span := words.at(token, 0, certain=True))]
    assert spans == [TokenSpan(0, 0, 3, False), TokenSpan(4, 4, 7, False), TokenSpan(8, 8, 13, False)]


# --------------------------------------------------------------------------- guards


def looked(guard: Guard, tokens: list[int]) -> tuple[int, str]:
    for count, token in enumerate(tokens, start=1):
        if note := guard.look(token):
            return count, note
    return 0, ""


def test_length_is_limited_by_the_text() -> None:
    limits = Limits(start_s=1.0, char_s=0.1, wide_char_s=0.4)
    assert limits.tokens_for("abcde") == round(1.5 * 25)
    assert limits.tokens_for("12345") == round(3.0 * 25)
    assert limits.tokens_for("你好") == round(1.8 * 25)
    assert limits.tokens_for("a" * 5000) == 1000
    assert looked(Guard(limits, "abcde"), list(range(100, 400)))[0] == 38
    assert NO_LIMITS.tokens_for("a") == 1000


@pytest.mark.parametrize(("cycle", "count"), [([5], 20), ([5, 9], 42), (list(range(8)), 48), (list(range(9)), 0)])
def test_loops_are_noticed(cycle: list[int], count: int) -> None:
    found, note = looked(Guard(Limits(char_s=0), "text"), [700, 701, *cycle * 100])
    assert found == (count + 2 if count else 0)
    assert ("over and over" in note) == bool(count)


def test_silence_may_last_but_not_for_ever() -> None:
    silent = sorted(SILENT)
    assert SILENCE_TOKEN in SILENT
    assert len(SILENT) == 17
    quiet = [silent[place % 17] for place in range(200)]
    found, note = looked(Guard(Limits(char_s=0), "text"), [*quiet[:59], 1, *quiet])
    assert (found, "of silence" in note) == (60 + 60, True)


# --------------------------------------------------------------------------- what is handed out


def stream(variant: Variant = CHATTERBOX, limits: Limits = NO_LIMITS) -> Stream:
    return Stream(1, variant, Words("some text", None, 0.066), Guard(limits, "some text"))


def handed(of: Stream, *rounds: list[int]) -> list[TokenStep]:
    steps = []
    for ids in rounds:
        of.take([Told(token) for token in ids])
        step = of.step()
        assert isinstance(step, TokenStep)
        steps.append(step)
    return steps


def ids(step: TokenStep) -> list[int]:
    return list(memoryview(step.data).cast("H"))


def test_what_comes_after_the_stop_is_dropped() -> None:
    first, last = handed(stream(), [1, 2, 3, 4], [5, STOP_SPEECH, 6, 7])
    assert (ids(first), first.final, ids(last), last.final) == ([1, 2, 3, 4], False, [5], True)


def test_no_sounds_wait_for_a_sound() -> None:
    steps = handed(stream(), [1, 7000, 8000], [7001], [2, 7002], [STOP_SPEECH])
    assert [ids(step) for step in steps] == [[1], [], [7000, 8000, 7001, 2], []]
    assert [step.tokens for step in steps] == [1, 0, 1, 0]
    assert steps[-1].final


def test_turbo_ends_with_silence_and_does_not_end_at_once() -> None:
    steps = handed(stream(TURBO), [STOP_SPEECH, 1], [2, STOP_SPEECH])
    assert [ids(step) for step in steps] == [[STOP_SPEECH, 1], [2] + [SILENCE_TOKEN] * 3]
    assert [step.tokens for step in steps] == [1, 4]


def test_history_is_not_handed_out_again_and_counts_for_guards() -> None:
    limits = Limits(tokens=5, char_s=0, cycle_s=0, silence_s=0)
    whole = handed(stream(limits=limits), [1, 7000], [2, 3], [4, 5])
    resumed = stream(limits=limits)
    resumed.recall([Told(token) for token in ids(whole[0]) + ids(whole[1])])
    (rest,) = handed(resumed, [4])
    assert rest.final
    assert ids(rest) == [4]
    assert "limit of 5 tokens" in rest.note
    ended = stream(limits=limits)
    ended.recall([Told(token) for token in (1, 2, 3, 4, 5)])
    (nothing,) = handed(ended, [])
    assert (nothing.final, nothing.tokens) == (True, 0)


def test_speechless_and_broken_streams_say_so() -> None:
    (step,) = handed(stream(), [STOP_SPEECH])
    assert step.note == "the model said nothing to this text"
    (step,) = handed(stream(), [1, NOTHING_LEFT])
    assert step.note == "stopped after 1 tokens: no token was left to choose"
    broken = stream()
    broken.take([Told(1), Told(NOT_A_NUMBER)])
    assert broken.step() == StreamError(1, "T3's output is no number at token 1")


def test_bytes_are_two_for_each_id() -> None:
    assert wire.encode([1, 256, 7000]) == b"\x01\x00\x00\x01\x58\x1b"
    assert wire.decode(b"\x01\x00\x00\x01\x58\x1b", 2) == [1, 256, 7000]
    assert wire.decode(b"", 0) == []
