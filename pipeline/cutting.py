"""From text as given to segments: when to feed, flush and end an utterance's segmenter.

Text is fed in slices and only as far as it is needed soon: a book handed over at once costs its
first sentence before the first sound, not a pass over all of it.
"""

from __future__ import annotations

from array import array

from pipeline.journal import CutRecord, EndRecord, SegmentRecord
from pipeline.state import State
from pipeline.text import TextSegment, TextSegmenter
from pipeline.utterance import Segment, Utterance

SLICE_CHARS = 400
"""Text fed to a segmenter at a time."""

SEGMENTS_READY = 4
"""Segments without tokens that are kept ready for t3."""


def segmenter_for(state: State, utterance: Utterance) -> TextSegmenter:
    """The utterance's segmenter, made at its first use."""
    found = state.segmenters.get(utterance.uid)
    if found is None:
        facts = state.crew.token_facts
        longest = facts.longest_chars if facts else 300
        shortest = facts.shortest_chars if facts else 1
        pause_ms = facts.sentence_pause_ms if facts else 0
        found = TextSegmenter(utterance.record.language, longest, shortest, pause_ms)
        state.segmenters[utterance.uid] = found
    return found


def cut(state: State, utterance: Utterance) -> None:
    """Feed as much as is needed; journal and append the segments that come out."""
    if utterance.cut_done or state.crew.token_facts is None:
        return
    segmenter = segmenter_for(state, utterance)
    fed_before, done_before = utterance.fed, utterance.cut_done
    while not utterance.cut_done and _waiting(utterance) < SEGMENTS_READY:
        flush_next = utterance.fed < utterance.flush_at <= utterance.given_chars
        until = min(utterance.fed + SLICE_CHARS, utterance.flush_at if flush_next else utterance.given_chars)
        if until > utterance.fed:
            piece = utterance.slice(utterance.fed, until)
            utterance.fed = until
            _append(state, utterance, segmenter.feed(piece))
        elif not utterance.ended:
            break
        if utterance.fed == utterance.flush_at:
            utterance.flush_at = -1
            _append(state, utterance, segmenter.flush())
        if utterance.ended and utterance.fed >= utterance.given_chars:
            utterance.cut_done = True
            _append(state, utterance, segmenter.end())
    if (utterance.fed, utterance.cut_done) != (fed_before, done_before):
        state.write(CutRecord(utterance.uid, utterance.fed, segmenter.state(), utterance.cut_done))
        state.touch(utterance)


def _waiting(utterance: Utterance) -> int:
    return sum(not segment.tokens_final for segment in utterance.unrendered())


def _append(state: State, utterance: Utterance, pieces: list[TextSegment]) -> None:
    for piece in pieces:
        record = SegmentRecord(
            utterance.uid,
            utterance.next_index,
            piece.text,
            array("I", [offset - piece.start for offset in piece.offsets]).tobytes(),
            piece.start,
            piece.end,
            piece.boundary,
            piece.pause_ms,
        )
        state.write(record)
        segment = Segment.from_record(record)
        segment.tokens_final = not segment.speakable
        utterance.segments.append(segment)
        utterance.next_index += 1
        state.touch(utterance)


def end(state: State, utterance: Utterance) -> None:
    """No more text will come."""
    if not utterance.ended:
        utterance.ended = True
        state.write(EndRecord(utterance.uid))
        state.touch(utterance)


def flush(state: State, utterance: Utterance) -> None:
    """Speak everything given so far, complete clause or not."""
    segmenter = segmenter_for(state, utterance)
    if utterance.fed < utterance.given_chars:
        utterance.flush_at = utterance.given_chars
        cut(state, utterance)
    elif segmenter.pending_chars:
        _append(state, utterance, segmenter.flush())
        state.write(CutRecord(utterance.uid, utterance.fed, segmenter.state(), utterance.cut_done))


def check_writer(state: State, utterance: Utterance) -> float | None:
    """Flush or end a growing text whose writer is silent; when to look again (None: no need)."""
    if utterance.ended or state.crew.token_facts is None:
        return None
    flow, text = state.config.flow, state.config.text
    silent_since_s = utterance.last_text_s
    idle_since_s = state.now_s if _busy(utterance) else max(silent_since_s, utterance.last_progress_s)
    if state.now_s >= idle_since_s + text.idle_s and state.more_arrived:
        return state.now_s  # this process may have been stopped, and text be waiting
    if state.now_s >= idle_since_s + text.idle_s:
        state.counters.counts["idle_texts_ended"] += 1
        end(state, utterance)
        return None
    flush_s = silent_since_s + flow.flush_ms / 1000
    pending = utterance.uid in state.segmenters and state.segmenters[utterance.uid].pending_chars > 0
    if pending and utterance.fed >= utterance.given_chars:
        if state.now_s >= flush_s:
            flush(state, utterance)
        else:
            return flush_s
    return idle_since_s + text.idle_s


def _busy(utterance: Utterance) -> bool:
    """It still has something to say, so its writer keeps nobody waiting."""
    unsaid = utterance.fed < utterance.given_chars or utterance.heard_samples < utterance.rendered_samples
    return unsaid or bool(utterance.unrendered())
