"""An utterance and its segments, as the dispatcher knows them.

Three axes, never to be mixed: characters of the text *as given*; samples of the *utterance* (0 is
its first); samples of the *ring* (absolute, see `pipeline.output`). A segment's samples start at
`Segment.base` on the utterance's axis.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from ipc.messages import SAMPLE_RATE, Boundary, Output, Priority, TokenSample, TokenSpan
from pipeline.journal import CheckpointRecord, MarkRecord, SegmentRecord, TokensRecord, UtteranceRecord

PRIORITIES: dict[Priority, int] = {"low": 0, "normal": 1, "high": 2, "interrupt": 3}

POISON_DEATHS = 2
"""Deaths without progress between them after which a segment is not tried again."""

POISON_DEATHS_IN_ALL = 12
"""Deaths in one segment, progress or not, after which it is not tried again."""


@dataclass
class Suspicion:
    """Workers that died while they held a segment."""

    deaths: int = 0
    deaths_in_all: int = 0
    progress: int = -1
    dead: list[tuple[int, int]] = field(default_factory=list)
    """(index, pid) of the dead, for the supervisor to excuse."""

    def died(self, progress: int, index: int, pid: int) -> bool:
        """One more died, at this much progress; True when the segment is to be given up."""
        self.deaths = self.deaths + 1 if progress == self.progress else 1
        self.deaths_in_all += 1
        self.progress = progress
        self.dead.append((index, pid))
        return self.deaths >= POISON_DEATHS or self.deaths_in_all >= POISON_DEATHS_IN_ALL


@dataclass
class Segment:
    """A piece of an utterance that t3 gets at once, and how far it is."""

    index: int
    text: str
    offsets: array[int]
    """Position in the text as given, relative to ``start``, of each cleaned character and the end."""
    start: int
    end: int
    boundary: Boundary
    pause_ms: int

    # tokens
    chunks: list[TokensRecord] = field(default_factory=list)
    tokens: int = 0
    made_s: float = 0.0
    tokens_final: bool = False
    granted_s: float = 0.0
    working_since_s: float = 0.0
    """When t3 last began, or went on, to have something to do here."""
    t3_stream: int | None = None
    t3_suspicion: Suspicion = field(default_factory=Suspicion)

    # sound
    ring_start: int | None = None
    base: int = 0
    rungs: tuple[int, ...] = ()
    samples: int = 0
    """In the ring so far."""
    done_tokens: int = 0
    done_samples: int = 0
    checkpoint: bytes = b""
    rendered: bool = False
    s3gen_suspicion: Suspicion = field(default_factory=Suspicion)

    failed: str = ""
    marks: list[MarkRecord] = field(default_factory=list)
    _spans: list[TokenSpan] = field(default_factory=list)
    _spans_marked: int = 0
    _points: list[TokenSample] = field(default_factory=list)
    aligned: int = 0
    """Marks already sent as `Aligned`."""

    @classmethod
    def from_record(cls, record: SegmentRecord) -> Segment:
        """The segment as it was journaled."""
        offsets = array("I")
        offsets.frombytes(record.offsets)
        return cls(record.index, record.text, offsets, record.start, record.end, record.boundary, record.pause_ms)

    @property
    def pause_samples(self) -> int:
        """Silence after the last token."""
        return self.pause_ms * SAMPLE_RATE // 1000

    @property
    def speakable(self) -> bool:
        """There is something for t3 to say."""
        return bool(self.text.strip()) and not self.failed

    @property
    def unrendered_s(self) -> float:
        """Seconds of tokens made and not yet in the ring. What t3 estimates too long or too short does not
        add up: it counts for the tokens that are not rendered only."""
        if self.rendered or not self.tokens:
            return 0.0
        waiting_s = self.made_s * max(0, self.tokens - self.done_tokens) / self.tokens
        return max(0.0, waiting_s - (self.samples - self.done_samples) / SAMPLE_RATE)

    def add_chunk(self, chunk: TokensRecord) -> None:
        """Tokens from t3 (or from the journal), in order."""
        self.chunks.append(chunk)
        self.tokens += chunk.tokens
        self.made_s += chunk.seconds
        self.tokens_final = self.tokens_final or chunk.final
        self._spans.extend(chunk.alignment)

    def add_points(self, points: tuple[TokenSample, ...]) -> None:
        """Where tokens begin to sound; repeated reports after a resume are dropped."""
        last = self._points[-1].token if self._points else -1
        self._points.extend(point for point in points if point.token > last)
        self._place_marks()

    def _place_marks(self) -> None:
        """Compose token → characters with token → sample into characters → sample."""
        sample_of = {point.token: point for point in self._points}
        last = self._points[-1].token if self._points else -1
        while self._spans_marked < len(self._spans):
            span = self._spans[self._spans_marked]
            if span.first_token > last:
                return
            point = sample_of.get(span.first_token)
            if point is None:
                point = self._between(span.first_token)
            first, end = self.given(span.first_char), self.given_end(span.last_char)
            self.marks.append(MarkRecord(point.sample, first, end, span.exact and point.exact))
            self._spans_marked += 1

    def _between(self, token: int) -> TokenSample:
        """A token without a point of its own, interpolated between its neighbours."""
        before = TokenSample(0, 0, False)
        for point in self._points:
            if point.token > token:
                share = (token - before.token) / (point.token - before.token)
                return TokenSample(token, round(before.sample + share * (point.sample - before.sample)), False)
            before = point
        return before

    def given(self, char: int) -> int:
        """Position in the text as given of cleaned character ``char``."""
        return self.start + self.offsets[min(max(char, 0), len(self.offsets) - 1)]

    def given_end(self, char: int) -> int:
        """Position in the text as given just after cleaned character ``char - 1``."""
        return self.given(char - 1) + 1 if char > 0 else self.given(0)

    def restore_progress(self, record: CheckpointRecord) -> None:
        """How far it was rendered, from the journal."""
        self.samples = self.done_samples = record.samples
        self.done_tokens, self.checkpoint = record.done_tokens, record.checkpoint
        self.marks = list(record.marks)
        self.aligned = len(self.marks) if record.final else max(0, len(self.marks) - 1)
        self._spans_marked = len(self.marks)
        self.rendered = record.final

    def reset_rendering(self) -> None:
        """Forget what was rendered: it was taken back from the ring before anybody heard it."""
        self.ring_start = None
        self.samples = self.done_tokens = self.done_samples = 0
        self.checkpoint = b""
        self.rendered = False

    def forget_tokens(self) -> None:
        """Nothing of it will sound but its pause."""
        self.chunks.clear()
        self.tokens, self.made_s = 0, 0.0
        self.marks.clear()
        self._spans.clear()
        self._points.clear()
        self._spans_marked = self.aligned = 0

    def heard_chars(self, sample: int) -> tuple[int, bool]:
        """How far the text as given was heard when this many of the segment's samples were, and
        whether that is known or guessed. A word counts once more than half of it was heard."""
        if self.rendered and sample >= self.samples - self.pause_samples:
            return self.end, True
        if not self.marks:
            whole = max(self.samples, round(self.made_s * SAMPLE_RATE), 1)
            made = self.end if self.tokens_final or not self._spans else self.given_end(self._spans[-1].last_char)
            guess = self.start + round((made - self.start) * min(1.0, sample / whole))
            return guess, sample <= 0
        chars, exact = self.start, True
        for mark, following in zip(self.marks, [*self.marks[1:], None], strict=True):
            until = following.sample if following else max(self.samples - self.pause_samples, mark.sample)
            if sample * 2 < mark.sample + until or sample <= mark.sample:
                break
            chars, exact = max(chars, mark.last_char), mark.exact
        return chars, exact


@dataclass
class Utterance:
    """One `speak`, from acceptance to its last event."""

    record: UtteranceRecord
    order: int
    text: str = ""
    """The text as given, from ``text_start`` on (what lies further back than the limit is dropped)."""
    text_start: int = 0
    fed: int = 0
    ended: bool = False
    segments: deque[Segment] = field(default_factory=deque)
    next_index: int = 0
    render_index: int = 0
    """Index of the first segment not wholly in the ring."""
    rendered_samples: int = 0
    heard_samples: int = 0
    heard_chars: int = 0
    heard_exact: bool = True
    noted_samples: int = 0
    """How much of what was heard stands in the timeline."""
    played_samples: int | None = None
    failed_segments: int = 0
    last_failure: str = ""
    prompt: bool = False
    """It was given whole when nobody was before it: how soon it sounds is the pipeline's doing alone."""
    told: bool = False
    """Its last event was sent; it is kept until its sound has left this process for certain."""
    tell_again: bool = False
    """Its listener has attached again since."""
    told_before: bool = False
    """By a dispatcher that has died since; perhaps in vain, so it is told again."""
    spoken_s: float = 0.0
    """Seconds of tokens made so far, for the limit on a request's length."""
    last_text_s: float = 0.0
    last_progress_s: float = 0.0
    """When it was last told that more was heard."""
    nudged_s: float = 0.0
    """When its program was last told how far it is, news or not."""
    flush_at: int = -1
    """Speak everything up to this character of the text as given, complete clause or not."""
    cut_done: bool = False
    """The whole text is in segments."""
    first_audio_ms: float | None = None
    started_ms: float | None = None
    first_tokens_ms: float | None = None
    """None also after a dispatcher's death."""
    first_tokens_seen: bool = False
    underruns_before: int = 0

    @property
    def uid(self) -> int:
        return self.record.uid

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def client(self) -> bytes:
        return self.record.client

    @property
    def conversation(self) -> tuple[bytes, str]:
        """Conversations of different clients are different ones; attaching changes nothing."""
        return self.record.opened_by or self.record.client, self.record.conversation

    @property
    def output(self) -> Output:
        return self.record.output

    @property
    def level(self) -> int:
        """Priority as a number."""
        return PRIORITIES[self.record.priority]

    @property
    def given_chars(self) -> int:
        """Characters given so far."""
        return self.text_start + len(self.text)

    @property
    def all_rendered(self) -> bool:
        """The whole utterance is in the ring."""
        return self.cut_done and self.render_index >= self.next_index

    @property
    def begun(self) -> bool:
        """It has a place in the ring; perhaps more of it was heard than is known here."""
        return self.rendered_samples > 0 or any(
            segment.ring_start is not None and segment.ring_start >= 0 for segment in self.segments
        )

    def segment(self, index: int) -> Segment | None:
        """The segment of this index, unless it is over."""
        if not self.segments or not 0 <= index - self.segments[0].index < len(self.segments):
            return None
        return self.segments[index - self.segments[0].index]

    def unrendered(self) -> list[Segment]:
        """Segments not wholly in the ring, in order."""
        if not self.segments:
            return []
        return list(islice(self.segments, max(0, self.render_index - self.segments[0].index), None))

    def add_text(self, text: str, keep_chars: int) -> None:
        """More of the text; what was fed and lies further back than ``keep_chars`` is dropped."""
        self.text += text
        excess = min(len(self.text) - keep_chars, self.fed - self.text_start)
        if excess > keep_chars // 4:
            self.text = self.text[excess:]
            self.text_start += excess

    def slice(self, start: int, end: int) -> str:
        """Characters of the text as given, as far as they are kept."""
        return self.text[max(0, start - self.text_start) : max(0, end - self.text_start)]

    def hear(self, samples: int) -> None:
        """The first ``samples`` samples have been heard (never fewer than before)."""
        if samples < self.heard_samples:
            return
        self.heard_samples = samples
        for segment in self.segments:
            if segment.ring_start is None or segment.base > samples:
                break
            if samples == segment.base and not (segment.rendered and segment.samples == 0):
                break
            chars, exact = segment.heard_chars(samples - segment.base)
            if chars >= self.heard_chars:
                self.heard_chars, self.heard_exact = chars, exact

    def forget_heard(self, read_samples: int) -> int | None:
        """Drop segments that have been heard and of which the ring's reader has taken all (it has
        taken ``read_samples``); the index of the last dropped, or None."""
        last = None
        until = min(self.heard_samples, read_samples)
        while self.segments:
            segment = self.segments[0]
            if not segment.rendered or until < segment.base + segment.samples:
                break
            last = segment.index
            self.segments.popleft()
        return last
