"""What t3 and s3gen report: tokens made, sound rendered, streams that failed."""

from __future__ import annotations

from ipc.messages import SAMPLE_RATE, Aligned, Rendered, StreamClosed, StreamFailed, TokenChunk
from pipeline.crew import Peer, Task
from pipeline.events import ToWorker
from pipeline.journal import TokensRecord
from pipeline.schedule import Scheduler, tokens_message
from pipeline.state import State
from pipeline.utterance import Segment, Utterance


class Production:
    """Takes what the workers made into the books."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self.state = state
        self.scheduler = scheduler

    def _find(self, peer: Peer, stream: int) -> tuple[Utterance, Segment, Task] | None:
        """The live segment of a stream; None for stale messages (counted)."""
        task = self.state.crew.stream(peer, stream)
        utterance = self.state.utterances.get(task.uid) if task else None
        segment = utterance.segment(task.segment) if utterance and task else None
        if task is None or utterance is None or segment is None:
            self.state.counters.counts["stale_messages"] += 1
            return None
        return utterance, segment, task

    def tokens_made(self, peer: Peer, message: TokenChunk) -> None:
        """Journal a chunk and hand it to the worker that renders its segment."""
        found = self._find(peer, message.stream)
        if found is None:
            return
        utterance, segment, _ = found
        state = self.state
        if message.first_token != segment.tokens:
            self._stream_broke(
                utterance, segment, f"t3 sent token {message.first_token} where {segment.tokens} was due"
            )
            return
        chunk = TokensRecord(
            utterance.uid,
            segment.index,
            message.first_token,
            message.tokens,
            message.data,
            message.seconds,
            message.alignment,
            message.final,
        )
        state.write(chunk)
        segment.add_chunk(chunk)
        state.worked(f"t3-{peer.index}", utterance, segment.working_since_s, message.seconds)
        segment.working_since_s = state.now_s
        utterance.spoken_s += message.seconds
        if message.tokens:
            state.crew.cleared(peer, message.stream)
        if not utterance.first_tokens_seen:
            utterance.first_tokens_seen = True
            utterance.first_tokens_ms = (state.now_s - utterance.record.received_s) * 1000
            if utterance.prompt:
                state.counters.latencies["first_tokens"].add(utterance.first_tokens_ms)
        if message.note:
            state.counters.counts["token_guards"] += 1
        if message.final:
            state.end_stream(message.stream)
            segment.t3_stream = None
        self._forward(utterance, segment, chunk)
        if utterance.spoken_s > state.config.text.max_audio_s:
            self._too_long(utterance, segment)
        state.touch(utterance)

    def _forward(self, utterance: Utterance, segment: Segment, chunk: TokensRecord) -> None:
        output = self.state.output_of(utterance)
        if output is None or output.stream is None:
            return
        for member in self.state.crew.of("s3gen"):
            task = member.streams.get(output.stream)
            if task == Task(utterance.uid, segment.index, output.slot):
                self.state.emit(ToWorker(member.peer, tokens_message(output.stream, chunk)))

    def _too_long(self, utterance: Utterance, segment: Segment) -> None:
        """The request's limit of speech is reached: what was made is spoken, the rest is not."""
        state = self.state
        limit_s = state.config.text.max_audio_s
        reason = f"the text makes more than text.max_audio_s = {limit_s:g} s of speech; split it"
        for later in utterance.unrendered():
            if later.index > segment.index or not later.tokens_final:
                self.scheduler.give_up(utterance, later, reason)
        utterance.ended = utterance.cut_done = True
        utterance.fed = utterance.given_chars
        state.segmenters.pop(utterance.uid, None)

    def rendered(self, peer: Peer, message: Rendered) -> None:
        """Samples are in the ring; perhaps a checkpoint, perhaps the segment's end."""
        found = self._find(peer, message.stream)
        if found is None:
            return
        utterance, segment, task = found
        state = self.state
        output = state.by_slot(task.slot)
        if output is None or segment.ring_start is None or not output.stints:
            return
        new_samples = message.samples - segment.samples
        segment.samples = max(segment.samples, message.samples)
        if new_samples > 0 or message.render_s:
            state.worked(
                f"s3gen-{peer.index}", utterance, state.now_s - message.render_s, max(0, new_samples) / SAMPLE_RATE
            )
        if new_samples > 0:
            state.crew.cleared(peer, message.stream)
        output.stints[-1].end = max(output.stints[-1].end, segment.ring_start + segment.samples)
        segment.add_points(message.token_samples)
        if segment.samples > 0:
            state.first_made(utterance, (state.now_s - utterance.record.received_s) * 1000)
        if message.checkpoint is not None:
            state.speed.add(message.render_s, (message.samples - segment.done_samples) / SAMPLE_RATE)
            segment.done_tokens, segment.done_samples = message.done_tokens, message.samples
            segment.checkpoint = message.checkpoint
            if not message.final:
                self.scheduler.checkpoint(utterance, segment)
        if message.final:
            state.end_stream(message.stream)
            output.stream = None
            self.scheduler.end_segment(utterance, segment)
        if new_samples > 0 or message.final:
            self.align(utterance, segment)
        state.touch(utterance)

    def align(self, utterance: Utterance, segment: Segment) -> None:
        """Tell the client which characters sound where, as soon as both ends are known."""
        marks = segment.marks
        while segment.aligned < len(marks):
            mark = marks[segment.aligned]
            if segment.aligned + 1 < len(marks):
                until = marks[segment.aligned + 1].sample
            elif segment.rendered:
                until = max(mark.sample, segment.samples - segment.pause_samples)
            else:
                return
            segment.aligned += 1
            if mark.last_char <= mark.first_char:
                continue
            self.state.tell(
                utterance,
                Aligned(
                    id=utterance.id,
                    chars=(mark.first_char, mark.last_char),
                    samples=(segment.base + mark.sample, segment.base + until),
                    exact=mark.exact,
                ),
            )

    def stream_failed(self, peer: Peer, message: StreamFailed) -> None:
        """The engine refused or broke one stream; its worker is well."""
        found = self._find(peer, message.stream)
        if found is None:
            return
        utterance, segment, task = found
        self.state.end_stream(message.stream)
        if task.slot < 0:
            segment.t3_stream = None
            self._stream_broke(utterance, segment, message.reason)
            return
        output = self.state.by_slot(task.slot)
        if output is not None:
            output.stream = None
            output.take_written()
        self._stream_broke(utterance, segment, message.reason)
        self.scheduler.end_segment(utterance, segment)

    def _stream_broke(self, utterance: Utterance, segment: Segment, reason: str) -> None:
        self.scheduler.give_up(utterance, segment, reason)
        self.state.touch(utterance)

    def stream_closed(self, peer: Peer, message: StreamClosed) -> None:
        """A cancelled stream writes no more: its output is free."""
        for output in self.state.outputs.values():
            if output.closing == message.stream and output.holder == (peer.index, peer.pid):
                output.closing = None
                output.take_written()
                self.state.dirty.add(output.owner)
