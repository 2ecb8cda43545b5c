"""A growing text into the segments that are spoken, each mapped to its place in the text as given.

Where cuts are made depends on the text (and on where its writer paused: `flush`), never on how it
arrived in pieces: a cut is made only when the text after it cannot change it. So a journal that
holds the text can be played again, and a program that sends characters is spoken like one that
sends a book.

- The first segment is one clause, so that speech begins early: at a comma once it says something (two words,
  eight letters), or at a space near character 80 if there is none. Everything later is cut at sentence ends.
- Paragraphs, headings, list items and table rows end a segment without a mark.
- ``[pause:500ms]``, ``[pause:1.5s]`` end a segment and add that silence, at most 10 s. A malformed marker is text and
  is spoken: part of a growing text may be heard already, so refusing it would come too late.
- Nothing is longer than ``longest_chars``: cut after a clause mark, else at a space, else between letters.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import msgspec

from ipc.messages import Boundary
from pipeline.clean import Cleaner, Mode
from pipeline.sentences import CLAUSE_MARKS, SENTENCE_MARKS, Sentences, Verdict
from pipeline.spoken import LINE, NO_BREAK, PARAGRAPH, PAUSE_BASE, first_word, has_words

PARAGRAPH_PAUSE_MS = 500
"""Silence after a paragraph, on top of what follows a sentence."""
FIRST_CHARS = 80
"""A first sentence this long without a clause mark is cut at a space: a mid-phrase joint that few hear, against a
second or more of silence while a slow writer finishes the sentence."""
FIRST_SLACK_CHARS = 20
"""… unless it ends within so many characters more."""

_MARKS = re.escape(LINE + PARAGRAPH) + f"{chr(PAUSE_BASE)}-{chr(0x10FFFF)}"
_HARD = re.compile(f"[{_MARKS}]")
_EVENT = re.compile(f"[{_MARKS}{re.escape(SENTENCE_MARKS)};\u037e]")
_EVENT_OR_CLAUSE = re.compile(f"[{_MARKS}{re.escape(SENTENCE_MARKS + CLAUSE_MARKS)}\u037e]")
_CLAUSE_BREAK = re.compile(f"(?<=[{re.escape('.,;:—–!?…')}]) |(?<=[、，；：。！？])(?=.)")
_SPACES = " " + NO_BREAK
_PIECE_CHARS = 4096


@dataclass(frozen=True)
class TextSegment:
    """A piece of text to speak at once, or (``text`` empty) only a stretch of the text as given.

    ``offsets``: the place in the text as given of each character of ``text``, and at last the
    place after the last one. ``start`` to ``end`` is all of the text as given that the segment stands for: segments
    tile it. ``pause_ms`` of silence follow the segment.
    """

    text: str
    offsets: tuple[int, ...]
    start: int
    end: int
    boundary: Boundary
    pause_ms: int


class _State(msgspec.Struct, array_like=True):
    """A segmenter between two calls. ``offsets`` are runs (first, count) of consecutive numbers."""

    language: str
    longest_chars: int
    shortest_chars: int
    sentence_pause_ms: int
    cleaner: Cleaner
    text: str
    offsets: list[tuple[int, int]]
    scanned: int
    start: int
    first: bool
    paragraph_due: bool


class TextSegmenter:
    """Takes a text in pieces, gives out segments as soon as the text decides them.

    A segment shorter than ``shortest_chars`` is joined to the next, across a paragraph too (but not
    across a pause marker, a flush or the end). ``sentence_pause_ms`` of silence follow each
    sentence, PARAGRAPH_PAUSE_MS more each paragraph, none a clause and the end.
    """

    def __init__(self, language: str, longest_chars: int, shortest_chars: int = 1, sentence_pause_ms: int = 0) -> None:
        if longest_chars < 1:
            raise ValueError(f"longest_chars is {longest_chars}: a segment needs at least 1 character")
        if not 0 <= shortest_chars <= longest_chars:
            raise ValueError(f"shortest_chars is {shortest_chars}: give 0 to longest_chars ({longest_chars})")
        if sentence_pause_ms < 0:
            raise ValueError(f"sentence_pause_ms is {sentence_pause_ms}: give 0 or more")
        self._language = language
        self._longest_chars, self._shortest_chars = longest_chars, shortest_chars
        self._sentence_pause_ms = sentence_pause_ms
        self._sentences = Sentences(language)
        self._cleaner = Cleaner()
        self._text = ""
        self._offsets: list[int] = []
        self._scanned = 0
        self._word_at, self._wordless = -1, 0
        self._start = 0
        self._first = True
        self._paragraph_due = False

    def feed(self, text: str) -> list[TextSegment]:
        """Take more text; return what it completes."""
        return self._advance(text, "more")

    def flush(self) -> list[TextSegment]:
        """Return all that is speakable now, also half a sentence and half a word: the writer is silent."""
        segments = self._advance("", "flush")
        if self._speakable(len(self._text)):
            own: Boundary = "sentence" if self._sentences.is_sentence(self._text) else "clause"
            boundary = self._cleaner.spoken.close_gap() or own
            segments.append(self._cut_rest(boundary))
            self._paragraph_due = boundary != "paragraph"
        return segments

    def end(self) -> list[TextSegment]:
        """Return the rest: the text is complete. The last segment reaches to its very end."""
        segments = self._advance("", "end")
        if self._text or self._start < self._cleaner.position:
            segments.append(self._cut_rest("end"))
        return segments

    @property
    def pending_chars(self) -> int:
        """Characters held back that a flush would speak; 0 if there are none."""
        undecided = self._cleaner.pending_words()
        speakable = self._speakable(len(self._text)) or has_words(undecided)
        return len(self._text) + len(undecided) if speakable else 0

    def state(self) -> bytes:
        """All that is needed to go on elsewhere: what is held back and what it stands in, not what was given out."""
        runs: list[tuple[int, int]] = []
        for offset in self._offsets:
            if runs and runs[-1][0] + runs[-1][1] == offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((offset, 1))
        return msgspec.msgpack.encode(
            _State(
                self._language,
                self._longest_chars,
                self._shortest_chars,
                self._sentence_pause_ms,
                self._cleaner,
                self._text,
                runs,
                self._scanned,
                self._start,
                self._first,
                self._paragraph_due,
            )
        )

    @classmethod
    def restore(cls, state: bytes) -> TextSegmenter:
        """The segmenter that `state` was taken from. Raises `msgspec.DecodeError` for other bytes."""
        saved = msgspec.msgpack.decode(state, type=_State)
        self = cls(saved.language, saved.longest_chars, saved.shortest_chars, saved.sentence_pause_ms)
        self._cleaner = saved.cleaner
        self._text, self._scanned, self._start = saved.text, saved.scanned, saved.start
        self._offsets = [offset for first, count in saved.offsets for offset in range(first, first + count)]
        self._first, self._paragraph_due = saved.first, saved.paragraph_due
        return self

    # ------------------------------------------------------------------ cutting

    def _advance(self, text: str, mode: Mode) -> list[TextSegment]:
        """Clean the text and cut what can be cut. A long text is taken in pieces: only pending text is held."""
        segments: list[TextSegment] = []
        for at in range(0, max(len(text), 1), _PIECE_CHARS):
            cleaned, offsets = self._cleaner.feed(text[at : at + _PIECE_CHARS], mode)
            self._text += cleaned
            self._offsets += offsets
            if self._text.startswith(tuple(_SPACES)):  # after a flush
                self._discard(0)
            while (segment := self._next(mode != "more")) is not None:
                segments.append(segment)
        return segments

    def _next(self, ended: bool) -> TextSegment | None:
        """The next segment, if the text decides where it ends; earlier marks are decided before later ones."""
        while True:
            found = (_EVENT_OR_CLAUSE if self._first else _EVENT).search(self._text, self._scanned)
            at = found.start() if found else len(self._text)
            if (limit := self._limit_before(at)) > 0:
                cut = self._split(limit)
                if self._speakable(cut):
                    return self._cut(cut, "clause")
                self._discard(cut)
            elif found is None:
                self._scanned = at
                return None
            elif _HARD.match(found[0]):
                if (segment := self._hard_boundary(at, found[0])) is not None:
                    return segment
            else:
                verdict, end, boundary = self._judge(at)
                if verdict == "cut" and end <= self._longest_chars and self._fits_alone(end):
                    return self._cut(end, boundary)
                if verdict == "wait" and end <= self._longest_chars and not ended:
                    self._scanned = at
                    return None
                self._scanned = end

    def _judge(self, at: int) -> tuple[Verdict, int, Boundary]:
        char = self._text[at]
        if self._sentences.is_sentence_mark(char):
            return *self._sentences.sentence_end(self._text, at), "sentence"
        if self._first and char in CLAUSE_MARKS and self._speakable(at):
            return *self._sentences.clause_end(self._text, at), "clause"
        return "go on", at + 1, "clause"

    def _fits_alone(self, end: int) -> bool:
        return end >= self._shortest_chars and self._speakable(end)

    def _speakable(self, end: int) -> bool:
        """True if the pending text before ``end`` has something to say. What was looked at is not looked at again."""
        if self._word_at < 0:
            self._word_at = first_word(self._text, self._wordless)
            self._wordless = len(self._text)
        return 0 <= self._word_at < end

    def _limit_before(self, at: int) -> int:
        """The limit that the text has passed if it cannot be cut before ``at``, else 0."""
        length, longest, early = len(self._text), self._longest_chars, FIRST_CHARS + FIRST_SLACK_CHARS
        if self._first and early < longest and length > early and at > early:
            worth = max(FIRST_CHARS // 2, self._shortest_chars)
            if self._text.rfind(" ", worth, FIRST_CHARS + 1) > 0 and self._speakable(worth):
                return FIRST_CHARS
        if length <= longest or at < longest:
            return 0
        return 0 if at == longest and _HARD.match(self._text[at]) else longest

    def _split(self, limit: int) -> int:
        """Where to cut so that at most ``limit`` characters come before: a clause mark in the second half, a space
        that leaves the rest some length, any space, else between two letters."""
        half = limit // 2
        clauses = [found.start() for found in _CLAUSE_BREAK.finditer(self._text, half, limit + 1)]
        if clauses and clauses[-1] > 0:
            return clauses[-1]
        for first, last in ((half, limit - limit // 8), (0, limit)):
            if (space := self._text.rfind(" ", max(first, 1), last + 1)) > 0:
                return space
        cut = limit
        while cut > max(half, 1) and _sticks_together(self._text[cut - 1], self._text[cut]):
            cut -= 1
        return cut if cut > half else limit

    def _hard_boundary(self, at: int, mark: str) -> TextSegment | None:
        """End a segment at a paragraph, line or pause mark, unless there is nothing in it that could be spoken."""
        if ord(mark) >= PAUSE_BASE:
            return self._cut(at, "pause", ord(mark) - PAUSE_BASE)
        boundary: Boundary = "paragraph" if mark == PARAGRAPH else "sentence"
        if not self._speakable(at):
            if boundary == "paragraph" and self._paragraph_due:
                return self._cut(at, boundary, PARAGRAPH_PAUSE_MS)
            self._discard(at + 1)
            return None
        if at >= self._shortest_chars:
            return self._cut(at, boundary)
        self._text = f"{self._text[:at]} {self._text[at + 1 :]}"
        self._offsets[at] = self._offsets[at - 1] + 1
        self._scanned = at + 1
        return None

    def _cut(self, cut: int, boundary: Boundary, pause_ms: int | None = None) -> TextSegment:
        """Give out the text before ``cut``. What comes next decides where the segment ends in the text as given."""
        following = cut
        while self._text[following] in _SPACES:
            following += 1
        end = self._offsets[following]
        hard = _HARD.match(self._text[following]) is not None and following == cut
        segment = self._segment(cut, end, boundary, pause_ms)
        self._discard(following + hard)
        return segment

    def _cut_rest(self, boundary: Boundary) -> TextSegment:
        segment = self._segment(len(self._text), self._cleaner.position, boundary, None)
        self._discard(len(self._text))
        return segment

    def _segment(self, length: int, end: int, boundary: Boundary, pause_ms: int | None) -> TextSegment:
        text = self._text[:length].rstrip(_SPACES)
        offsets = self._offsets[: len(text)]
        if not has_words(text):
            text, offsets = "", []
        after = max(min(offsets[-1] + 1, end), self._start) if offsets else self._start
        if pause_ms is None:
            sentence_ms = 0 if boundary in ("clause", "end") else self._sentence_pause_ms
            pause_ms = sentence_ms + (PARAGRAPH_PAUSE_MS if boundary == "paragraph" else 0)
        segment = TextSegment(text.replace(NO_BREAK, " "), (*offsets, after), self._start, end, boundary, pause_ms)
        self._start, self._paragraph_due = end, False
        self._first = self._first and not text
        return segment

    def _discard(self, count: int) -> None:
        """Forget the first characters, and spaces after them."""
        while count < len(self._text) and self._text[count] in _SPACES:
            count += 1
        self._text, self._offsets, self._scanned = self._text[count:], self._offsets[count:], 0
        if self._word_at >= 0:
            known = self._word_at >= count
            self._word_at, self._wordless = (self._word_at - count, 0) if known else (-1, 0)
        else:
            self._wordless = max(0, self._wordless - count)


def _sticks_together(left: str, right: str) -> bool:
    """True between a letter and its combining marks, around joiners and inside Hangul syllables."""
    joined = left in "\u200c\u200d" or right in "\u200c\u200d"
    return joined or unicodedata.category(right)[0] == "M" or 0x1160 <= ord(right) <= 0x11FF
