"""Segments and utterances: alignment and what was heard."""

from __future__ import annotations

from array import array

import pytest

from ipc.messages import TokenSample, TokenSpan
from pipeline.journal import TokensRecord, UtteranceRecord
from pipeline.utterance import Segment, Suspicion, Utterance

WORDS = "one two three"


def make_segment(exact: bool = True) -> Segment:
    """Three words of 100, 200 and 300 samples in "one two three", which begins at character 10."""
    offsets = array("I", range(len(WORDS) + 1))
    segment = Segment(0, WORDS, offsets, 10, 10 + len(WORDS), "end", 0)
    spans = (TokenSpan(0, 0, 3, exact), TokenSpan(1, 4, 7, exact), TokenSpan(2, 8, 13, exact))
    segment.add_chunk(TokensRecord(1, 0, 0, 3, b"", 0.025, spans, True))
    segment.ring_start = 0
    segment.samples = 600
    segment.add_points((TokenSample(0, 0, True), TokenSample(1, 100, True), TokenSample(2, 300, True)))
    segment.rendered = True
    return segment


def make_utterance(segment: Segment) -> Utterance:
    record = UtteranceRecord(1, b"c", "a", False, "v", "en", 1.0, "speaker", "default", "normal", 0, {}, 0.0)
    utterance = Utterance(record, 1, text=" " * 10 + WORDS, ended=True, cut_done=True)
    utterance.segments.append(segment)
    utterance.next_index, utterance.render_index, utterance.rendered_samples = 1, 1, 600
    return utterance


@pytest.mark.parametrize(
    ("sample", "chars"),
    [(0, 10), (40, 10), (60, 13), (100, 13), (190, 13), (210, 17), (440, 17), (460, 23), (600, 23)],
)
def test_a_word_is_heard_once_more_than_half_of_it_was(sample: int, chars: int) -> None:
    assert make_segment().heard_chars(sample) == (chars, True)


def test_inexact_alignment_is_flagged() -> None:
    assert make_segment(exact=False).heard_chars(250) == (17, False)


def test_without_alignment_the_position_is_interpolated_and_flagged() -> None:
    segment = make_segment()
    segment.marks.clear()
    assert segment.heard_chars(300) == (10 + round(13 / 2), False)
    assert segment.heard_chars(600) == (23, True)


def test_a_token_without_a_point_is_interpolated_between_its_neighbours() -> None:
    segment = make_segment()
    fresh = Segment(0, WORDS, segment.offsets, 10, 23, "end", 0)
    fresh.add_chunk(segment.chunks[0])
    fresh.add_points((TokenSample(0, 0, True), TokenSample(2, 300, True)))
    assert [(mark.sample, mark.exact) for mark in fresh.marks] == [(0, True), (150, False), (300, True)]


def test_points_reported_again_after_a_resume_are_not_taken_twice() -> None:
    segment = make_segment()
    segment.add_points((TokenSample(1, 100, True), TokenSample(2, 300, True)))
    assert len(segment.marks) == 3


def test_hearing_never_goes_back_and_drops_what_is_over() -> None:
    utterance = make_utterance(make_segment())
    utterance.hear(250)
    assert utterance.heard_chars == 17
    utterance.hear(100)
    assert utterance.heard_chars == 17
    assert utterance.forget_heard(600) is None
    utterance.hear(600)
    assert utterance.forget_heard(599) is None
    assert utterance.heard_chars == 23
    assert utterance.forget_heard(600) == 0
    assert not utterance.segments


def test_a_long_growing_text_is_not_kept_for_ever() -> None:
    utterance = make_utterance(make_segment())
    utterance.fed = utterance.given_chars
    for _ in range(1000):
        utterance.add_text("x" * 10, keep_chars=100)
        utterance.fed = utterance.given_chars
    assert len(utterance.text) < 200
    assert utterance.given_chars == 23 + 10_000
    assert utterance.slice(utterance.given_chars - 5, utterance.given_chars) == "xxxxx"


def test_deaths_with_progress_between_them_are_not_held_against_a_segment() -> None:
    suspicion = Suspicion()
    assert not any(suspicion.died(progress, 0, pid) for pid, progress in enumerate(range(8)))
    assert suspicion.died(7, 0, 99)
    assert suspicion.dead[-1] == (0, 99)
