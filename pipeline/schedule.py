"""What t3 and s3gen are given to do, and how far each may run ahead.

For every output the *plan* is the order in which segments will enter its ring. t3 gets credit
along the plan; s3gen gets the first segment of it as soon as that has tokens.
"""

from __future__ import annotations

from collections import Counter

from ipc.messages import (
    SAMPLE_RATE,
    AudioFacts,
    CancelStream,
    Failed,
    Generate,
    Grant,
    History,
    OpenStream,
    Tokens,
)
from pipeline.assign import Assignment, full
from pipeline.credit import REGRANT_S, credit, ladder, next_cut
from pipeline.crew import Member, Task
from pipeline.cutting import cut
from pipeline.events import GrantLease, Listen, ToWorker
from pipeline.journal import CheckpointRecord, Drop, FailedRecord, PlacedRecord, TokensRecord
from pipeline.order import Order
from pipeline.output import OutputState, Stint
from pipeline.state import Owner, State
from pipeline.utterance import Segment, Utterance

QUICK_RATIO = 0.25
"""Seconds of rendering per second of speech below which a listener who hears nothing yet gets the first rung
before t3 goes on with the next segment: on one machine each slows the other down. (With a slower engine, or
while nothing was measured, t3 goes on: else the next segment might come too late.)"""

HISTORY_PIECE_BYTES = 256 * 1024
"""Tokens are replayed to a successor in pieces of about this size."""


LOOK_AHEAD = 2
"""Utterances of a conversation that are segmented before their turn; a long queue need not be."""


class Scheduler:
    """Gives work to t3 and s3gen."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.order = Order(state)
        self._assignment = Assignment(state, self.stop_tokens)

    def make_way(self, output: OutputState, level: int) -> None:
        """Take back what was made ahead of its turn: it will be rendered again after what is more
        urgent, from the same tokens."""
        for stint in self.order.yielding(output, level):
            self.take_back(output, stint)

    def take_back(self, output: OutputState, stint: Stint) -> None:
        """Have the reader drop a stint that nobody heard yet, and its segment rendered again."""
        utterance = self.state.utterances[stint.uid]
        if stint is output.stints[-1]:
            self.stop_rendering(output)
        self.state.discard(output, [stint])
        segment = utterance.segment(stint.index)
        if segment is not None:
            segment.reset_rendering()
            if segment.failed:  # what was made of it may be what broke its worker
                segment.forget_tokens()
                self.state.write_op(Drop(utterance.uid, (TokensRecord,), stint.index, stint.index))
        self.state.write_op(Drop(utterance.uid, (PlacedRecord, CheckpointRecord), stint.index, stint.index))
        utterance.render_index = stint.index
        utterance.rendered_samples = stint.base
        self.state.counters.counts["taken_back"] += 1
        self.state.enter_lane(utterance)

    # ---------------------------------------------------------------- giving work

    def advance(self, owner: Owner) -> None:
        """Give the workers of one output what they may do now."""
        output = self.state.outputs.get(owner)
        if output is None:
            return
        for utterance in self._soon(owner):
            self._cut(utterance)
        self._skip_empty(owner)
        self._generate(owner, output)
        self._render(owner, output)

    def _soon(self, owner: Owner) -> list[Utterance]:
        """The utterances whose turn may come next."""
        seen: Counter[tuple[bytes, str]] = Counter()
        soon = []
        for utterance in self.state.lanes.get(owner, ()):
            seen[utterance.conversation] += 1
            if seen[utterance.conversation] <= LOOK_AHEAD:
                soon.append(utterance)
        return soon

    def _cut(self, utterance: Utterance) -> None:
        """Segment as much as is needed. A text that breaks the segmenter is given up, and nothing else:
        left to itself it would break every successor of this process, too."""
        try:
            cut(self.state, utterance)
        except Exception as error:  # noqa: BLE001
            self.state.counters.counts["text_errors"] += 1
            utterance.ended = utterance.cut_done = True
            reason = f"the text cannot be segmented: {type(error).__name__}: {error}"
            chars = (min(utterance.fed, utterance.given_chars), utterance.given_chars)
            self.state.tell(utterance, Failed(id=utterance.id, reason=reason, chars=chars, final=False))
            utterance.failed_segments += 1
            utterance.last_failure = reason

    def _skip_empty(self, owner: Owner) -> None:
        """Take segments that have nothing to sound out of the way, in order."""
        for utterance in list(self.order.utterances(owner)):
            for segment in utterance.unrendered():
                if segment.ring_start not in (None, -1) or not _silent(segment):
                    break
                segment.base = utterance.rendered_samples
                segment.ring_start = -1
                segment.rendered = True
                utterance.render_index = segment.index + 1
                self._cut(utterance)
            if not utterance.all_rendered:
                return
            self.state.leave_lane(utterance)

    def _generate(self, owner: Owner, output: OutputState) -> None:
        """Credit along the plan, up to the first segment that is still being made."""
        ahead_s = 0.0
        levels = self.order.levels(owner)
        for utterance, segment in self.order.plan(owner):
            fill_s = self._fill_before(output, levels[utterance.conversation]) / SAMPLE_RATE
            if not segment.tokens_final:
                limit_s = self.state.config.flow.ahead_s
                least = self._rung_s(segment) if fill_s + ahead_s < limit_s / 2 else 0.0
                most = max(least, credit(fill_s + ahead_s, segment.unrendered_s, segment.made_s, limit_s))
                if segment.t3_stream is None:
                    first_sound_pending = ahead_s > 0 and not fill_s and 0 < self.state.speed.ratio < QUICK_RATIO
                    if most > segment.made_s and not first_sound_pending:
                        self._start_tokens(utterance, segment, most)
                elif most >= segment.granted_s + REGRANT_S or segment.granted_s < least:
                    self._grant(segment, most)
                return
            ahead_s += segment.unrendered_s + segment.pause_ms / 1000
            if fill_s + ahead_s >= self.state.config.flow.ahead_s:
                return

    def _rung_s(self, segment: Segment) -> float:
        """Seconds of tokens that a segment must have so that its next rung can be rendered: with less
        credit t3 and s3gen would wait for each other."""
        facts = next((member.facts for member in self.state.crew.of("s3gen")), None)
        if not isinstance(facts, AudioFacts):
            return 0.0
        token_s = segment.made_s / segment.tokens if segment.tokens else facts.seconds_per_token
        if facts.ladder:
            cut = next_cut(segment.rungs or (self.state.config.flow.first_chunk_tokens,), segment.done_tokens)
        else:
            ends = (chunk.first_token + chunk.tokens for chunk in segment.chunks)
            cut = next((end for end in ends if end > segment.done_tokens), segment.tokens + 1)
        return (cut + facts.lookahead_tokens) * token_s

    def _fill_before(self, output: OutputState, level: int) -> int:
        """Samples in the ring that an utterance of this priority has to wait for."""
        return output.unheard_fill() - sum(stint.end - stint.start for stint in self.order.yielding(output, level))

    def _grant(self, segment: Segment, credit_s: float) -> None:
        assert segment.t3_stream is not None
        for member in self.state.crew.of("t3"):
            if segment.t3_stream in member.streams:
                if segment.made_s >= segment.granted_s:
                    segment.working_since_s = self.state.now_s
                segment.granted_s = credit_s
                self.state.emit(ToWorker(member.peer, Grant(segment.t3_stream, credit_s)))

    def _start_tokens(self, utterance: Utterance, segment: Segment, credit_s: float) -> None:
        suspect = segment.t3_suspicion.deaths > 0
        member = self._assignment.choose("t3", Task(utterance.uid, segment.index), suspect)
        if member is None:
            self.state.short_of_workers.add(self.state.owner_of(utterance))
            return
        stream = self.state.new_stream()
        member.streams[stream] = Task(utterance.uid, segment.index)
        member.alone = stream if suspect else None
        segment.t3_stream, segment.granted_s, segment.working_since_s = stream, credit_s, self.state.now_s
        record = utterance.record
        self.state.emit(
            ToWorker(
                member.peer,
                Generate(
                    stream,
                    segment.text,
                    segment.boundary,
                    record.voice,
                    record.language,
                    record.speed,
                    record.seed,
                    record.settings,
                    credit_s,
                    segment.tokens,
                    segment.made_s,
                ),
            )
        )
        self._replay(member, stream, segment)

    def _replay(self, member: Member, stream: int, segment: Segment) -> None:
        """Send the tokens made so far, joined into pieces."""
        first, tokens, data = 0, 0, b""
        for chunk in segment.chunks:
            tokens += chunk.tokens
            data += chunk.data
            if len(data) >= HISTORY_PIECE_BYTES:
                self.state.emit(ToWorker(member.peer, History(stream, first, tokens, data)))
                first, tokens, data = first + tokens, 0, b""
        if tokens:
            self.state.emit(ToWorker(member.peer, History(stream, first, tokens, data)))

    def _render(self, owner: Owner, output: OutputState) -> None:
        """Open the first segment of the plan, once it has something to sound."""
        if not output.free:
            return
        for utterance, segment in self.order.plan(owner):
            if not segment.chunks and not segment.tokens_final:
                return
            if segment.ring_start is None:
                self.make_way(output, self.order.levels(owner)[utterance.conversation])
                if not output.free or not output.may_open_stint():
                    return
            elif full(self.state, output):
                return
            suspect = segment.s3gen_suspicion.deaths > 0
            member = self._assignment.choose("s3gen", Task(utterance.uid, segment.index), suspect, output.holder)
            if member is not None:
                self._open(output, utterance, segment, member)
            else:
                self.state.short_of_workers.add(owner)
            return

    def _open(self, output: OutputState, utterance: Utterance, segment: Segment, member: Member) -> None:
        state = self.state
        if segment.ring_start is None:
            self._place(output, utterance, segment)
        if output.holder != member.process or output.lease == 0:
            output.holder = member.process
            output.lease = state.new_stream()
            state.emit(GrantLease(output.slot, output.lease))
        stream = state.new_stream()
        member.streams[stream] = Task(utterance.uid, segment.index, output.slot)
        member.alone = stream if segment.s3gen_suspicion.deaths > 0 else None
        output.stream = stream
        stint = output.stints[-1]
        record = utterance.record
        assert segment.ring_start is not None
        state.emit(
            ToWorker(
                member.peer,
                OpenStream(
                    stream,
                    output.slot,
                    output.lease,
                    stint.epoch,
                    segment.index,
                    segment.ring_start,
                    record.voice,
                    record.language,
                    record.speed,
                    record.seed,
                    record.settings,
                    segment.boundary,
                    segment.pause_samples,
                    segment.rungs,
                    segment.done_tokens,
                    segment.done_samples,
                    segment.checkpoint,
                ),
            )
        )
        for chunk in segment.chunks:
            state.emit(ToWorker(member.peer, tokens_message(stream, chunk)))
        if segment.tokens_final and not (segment.chunks and segment.chunks[-1].final):
            state.emit(ToWorker(member.peer, Tokens(stream, segment.tokens, 0, b"", True)))

    def _place(self, output: OutputState, utterance: Utterance, segment: Segment) -> None:
        """Give the segment its place at the ring's end."""
        state = self.state
        segment.base = utterance.rendered_samples
        segment.ring_start = output.view.written
        stint = output.open_stint(utterance.uid, segment.base, segment.index)
        if output.owner is not None:
            record = utterance.record
            whose = (utterance.uid, record.client, record.id)
            state.emit(Listen(output.slot, stint.epoch, *whose, stint.start, stint.base, record.confirms))
        flow = state.config.flow
        segment.rungs = ladder(flow.first_chunk_tokens, flow.chunk_tokens, state.speed.ratio)
        state.write(
            PlacedRecord(
                utterance.uid,
                segment.index,
                output.slot,
                segment.ring_start,
                segment.base,
                stint.epoch,
                segment.rungs,
            )
        )

    # ---------------------------------------------------------------- taking work back

    def stop_tokens(self, segment: Segment) -> None:
        """Have t3 forget a segment."""
        if segment.t3_stream is None:
            return
        member = self.state.end_stream(segment.t3_stream)
        if member is not None:
            self.state.emit(ToWorker(member.peer, CancelStream(segment.t3_stream)))
        segment.t3_stream = None

    def stop_rendering(self, output: OutputState) -> None:
        """Have s3gen forget what it renders for an output; the output is free again once it says so."""
        if output.stream is None:
            return
        member = self.state.end_stream(output.stream)
        if member is not None:
            self.state.emit(ToWorker(member.peer, CancelStream(output.stream)))
            output.closing = output.stream
        output.stream = None

    def give_up(self, utterance: Utterance, segment: Segment, reason: str) -> None:
        """The segment cannot be spoken (further): say so and go on with the next one."""
        state = self.state
        self.stop_tokens(segment)
        segment.failed = reason
        segment.tokens_final = True
        utterance.failed_segments += 1
        utterance.last_failure = reason
        state.counters.counts["failed_segments"] += 1
        state.write(FailedRecord(utterance.uid, segment.index, reason))
        state.tell(utterance, Failed(id=utterance.id, reason=reason, chars=(segment.start, segment.end), final=False))
        output = state.output_of(utterance)
        if output is None or output.stream is None:
            return
        for member in state.crew.of("s3gen"):
            if member.streams.get(output.stream) == Task(utterance.uid, segment.index, output.slot):
                state.emit(ToWorker(member.peer, Tokens(output.stream, segment.tokens, 0, b"", True)))

    def end_segment(self, utterance: Utterance, segment: Segment) -> None:
        """The segment ends where it stands in the ring; the next one follows."""
        output = self.state.output_of(utterance)
        if output is not None and segment.ring_start is not None and segment.ring_start >= 0:
            segment.samples = max(segment.samples, output.view.written - segment.ring_start)
        segment.rendered = True
        utterance.render_index = segment.index + 1
        utterance.rendered_samples = segment.base + segment.samples
        self.checkpoint(utterance, segment)
        if utterance.all_rendered:
            self.state.leave_lane(utterance)
        self.state.touch(utterance)

    def checkpoint(self, utterance: Utterance, segment: Segment) -> None:
        """Journal how far a segment is rendered."""
        self.state.write(
            CheckpointRecord(
                utterance.uid,
                segment.index,
                segment.samples if segment.rendered else segment.done_samples,
                segment.done_tokens,
                b"" if segment.rendered else segment.checkpoint,
                tuple(segment.marks),
                segment.rendered,
            )
        )


def _silent(segment: Segment) -> bool:
    """Nothing of the segment will ever sound."""
    return segment.tokens_final and segment.tokens == 0 and segment.pause_samples == 0


def tokens_message(stream: int, chunk: TokensRecord) -> Tokens:
    """A journaled chunk as s3gen gets it."""
    return Tokens(stream, chunk.first_token, chunk.tokens, chunk.data, chunk.final)
