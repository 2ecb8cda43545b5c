"""From cursors to what was heard: started, progress, finished; cancel and interruption."""

from __future__ import annotations

from ipc.messages import SAMPLE_RATE, Cancelled, Failed, Finished, Progress, Started
from pipeline.journal import (
    BegunRecord,
    CheckpointRecord,
    Drop,
    FailedRecord,
    HeardRecord,
    PlacedRecord,
    SegmentRecord,
    TokensRecord,
    ToldRecord,
)
from pipeline.output import OutputState, RingView, Stint
from pipeline.schedule import Scheduler
from pipeline.state import State
from pipeline.utterance import Utterance

PROGRESS_EVERY_S = 0.2
NUDGE_EVERY_S = 1.0
END_SLACK_S = 0.002
_PER_SEGMENT = (SegmentRecord, TokensRecord, PlacedRecord, CheckpointRecord, FailedRecord)


class Hearing:
    """Follows the read cursors."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self.state = state
        self.scheduler = scheduler

    def observe(self, views: dict[int, RingView]) -> None:
        """Take note of the rings' cursors."""
        for output in self.state.outputs.values():
            view = views.get(output.slot)
            if view is None:
                continue
            if not output.seen or view.read != output.view.read or view.written != output.view.written:
                self.state.dirty.add(output.owner)
            if view.read != output.view.read or view.ear_sample != output.view.ear_sample or not output.moved_s:
                output.moved_s = self.state.now_s
            output.view, output.seen = view, True

    def follow(self) -> None:
        """Move what was heard along the cursors, and tell it."""
        for output in self.state.outputs.values():
            if output.stints:
                self._follow(output)
        for utterance in list(self.state.utterances.values()):
            if not utterance.all_rendered:
                continue
            if utterance.heard_samples >= utterance.rendered_samples or self._abandoned(utterance):
                self._finished(utterance)

    @property
    def starts_soon(self) -> bool:
        """What stands first in the speaker's ring has not begun to sound."""
        if self.state.paused:
            return False
        for stint in self.state.outputs[None].stints:
            utterance = self.state.utterances.get(stint.uid)
            if utterance is not None and not stint.discarded:
                return utterance.started_ms is None
        return False

    def next_end_s(self) -> float | None:
        """When the ear reaches the next end of an utterance, by the device's clock."""
        output = self.state.outputs[None]
        view, now_s = output.view, self.state.now_s
        for stint in output.stints:
            utterance = self.state.utterances.get(stint.uid)
            if utterance is None or not utterance.all_rendered or stint.index + 1 < utterance.next_index:
                continue
            at_s = view.ear_s + (stint.end - view.ear_sample) / SAMPLE_RATE + END_SLACK_S
            if at_s > now_s:
                return at_s
        return None

    def _follow(self, output: OutputState) -> None:
        ear = output.ear(self.state.now_s)
        for stint in output.stints:
            if stint.discarded:
                continue
            utterance = self.state.utterances.get(stint.uid)
            if utterance is None or ear <= stint.start:
                continue
            self._started(output, stint, utterance)
            heard = output.heard_of(stint, ear)
            if utterance.played_samples is not None and output.owner is not None:
                heard = min(heard, max(utterance.played_samples, utterance.heard_samples))
            if heard > utterance.heard_samples:
                utterance.hear(heard)
                self._progress(utterance)
            self._forget_heard(output, utterance, stint)
        for _ in output.forget_played(ear):
            self.state.dirty.add(output.owner)

    def _started(self, output: OutputState, stint: Stint, utterance: Utterance) -> None:
        if utterance.started_ms is not None:
            return
        view = output.view
        started_ms = (self.state.now_s - utterance.record.received_s) * 1000
        # A worker may be held up between the ring and the word of it.
        made_ms = utterance.first_tokens_ms if utterance.first_audio_ms is None else utterance.first_audio_ms
        if output.owner is None:
            utterance.underruns_before = view.underruns
            if made_ms is not None:
                at_s = view.ear_s + (stint.start - view.ear_sample) / SAMPLE_RATE
                by_clock_ms = (at_s - utterance.record.received_s) * 1000
                # At a free pace there is no clock: not before it was made is all that can be said.
                started_ms = min(started_ms, max(by_clock_ms, made_ms))
        self.state.first_made(utterance, started_ms)
        utterance.started_ms = started_ms
        self.state.write(BegunRecord(utterance.uid, utterance.first_audio_ms, started_ms))
        if utterance.prompt:
            hop = "loudspeaker" if output.owner is None else "listener"
            self.state.counters.latencies[hop].add(utterance.started_ms)
        self.state.tell(utterance, Started(id=utterance.id, latency_ms=round(utterance.started_ms, 3)))

    def _progress(self, utterance: Utterance) -> None:
        if self.state.now_s < utterance.last_progress_s + PROGRESS_EVERY_S:
            return
        self._note_played(utterance)
        utterance.last_progress_s = self.state.now_s
        self._tell_progress(utterance)

    def _note_played(self, utterance: Utterance) -> None:
        """For those who watch: what the loudspeaker has played since this was last noted."""
        played_s = (utterance.heard_samples - utterance.noted_samples) / SAMPLE_RATE
        if self.state.owner_of(utterance) is not None or played_s <= 0:
            return
        utterance.noted_samples = utterance.heard_samples
        since_s = max(utterance.last_progress_s, self.state.now_s - played_s)
        self.state.worked("player-0", utterance, since_s, played_s)

    def _tell_progress(self, utterance: Utterance) -> None:
        seconds = round(utterance.heard_samples / SAMPLE_RATE, 4)
        event = Progress(id=utterance.id, chars=utterance.heard_chars, seconds=seconds)
        self.state.tell(utterance, event, droppable=True)
        utterance.nudged_s = self.state.now_s

    def nudge(self) -> None:
        """Say something to listeners that confirm nothing, though they have all that can be sent: that
        they are gone shows only when something is sent."""
        for utterance in self.state.open_utterances:
            output = self.state.output_of(utterance) if utterance.record.confirms else None
            if output is None or output.owner is None or output.view.read >= output.view.ear_sample:
                continue
            if self.state.now_s >= max(output.moved_s, utterance.nudged_s) + NUDGE_EVERY_S:
                self._tell_progress(utterance)

    def _forget_heard(self, output: OutputState, utterance: Utterance, stint: Stint) -> None:
        """Heard segments need not be remembered; a long text stays small. A listener's are kept until
        the ring's cursor is past them: what was sent last may die with this process."""
        if output.view.read < stint.start:  # of the stints before, those may still be needed that end later
            return
        last = utterance.forget_heard(output.heard_of(stint, output.view.read))
        if last is None:
            return
        self.state.write_op(Drop(utterance.uid, _PER_SEGMENT, 0, last))
        self.state.write(self._heard_record(utterance, last + 1, stint.epoch))
        self.state.touch(utterance)

    def _heard_record(self, utterance: Utterance, index: int, epoch: int) -> HeardRecord:
        return HeardRecord(
            utterance.uid,
            index,
            utterance.heard_samples if not utterance.segments else self._base_after_heard(utterance),
            utterance.heard_chars,
            utterance.heard_exact,
            utterance.failed_segments - sum(bool(segment.failed) for segment in utterance.segments),
            epoch,
        )

    def _base_after_heard(self, utterance: Utterance) -> int:
        """Where the first remembered segment begins on the utterance's axis."""
        first = utterance.segments[0]
        return first.base if first.ring_start is not None else utterance.rendered_samples

    def _finished(self, utterance: Utterance) -> None:
        if utterance.failed_segments and not utterance.rendered_samples:
            chars = (0, utterance.given_chars)
            failed = Failed(id=utterance.id, reason=utterance.last_failure, chars=chars, final=True)
            self.state.finish(utterance, failed)
            return
        output = self.state.output_of(utterance)
        if output is not None and output.view.resending and not self._abandoned(utterance):
            return
        self._note_played(utterance)
        event = self._finished_event(utterance, output)
        if not utterance.told or utterance.tell_again:
            self.state.tell(utterance, event)
            utterance.told, utterance.tell_again = True, False
            self.state.write(ToldRecord(utterance.uid))
        if output is not None and self.state.now_s < output.moved_s + self.state.config.text.detach_s:
            mine = [stint for stint in output.stints if stint.uid == utterance.uid and not stint.discarded]
            if any(stint.end > output.view.read for stint in mine):
                return
        self.state.finish(utterance, event)

    def _abandoned(self, utterance: Utterance) -> bool:
        """A former dispatcher has said that it was heard to its end, and nobody takes it once more from this one."""
        output = self.state.output_of(utterance)
        waited = output is None or self.state.now_s >= output.moved_s + self.state.config.text.detach_s
        return utterance.told_before and waited

    def _finished_event(self, utterance: Utterance, output: OutputState | None) -> Finished:
        underruns = 0
        if output is not None and output.owner is None and utterance.started_ms is not None:
            underruns = output.view.underruns - utterance.underruns_before
        first_ms, started_ms = utterance.first_audio_ms, utterance.started_ms
        return Finished(
            id=utterance.id,
            seconds=round(utterance.rendered_samples / SAMPLE_RATE, 4),
            samples=utterance.rendered_samples,
            chars=utterance.given_chars,
            first_audio_ms=None if first_ms is None else round(first_ms, 3),
            started_ms=None if started_ms is None else round(started_ms, 3),
            failed_segments=utterance.failed_segments,
            underruns=underruns,
        )

    # ---------------------------------------------------------------- cancel

    def cancel(self, utterances: list[Utterance]) -> None:
        """Silence these for good, at once, and tell each owner what was heard."""
        for utterance in utterances:
            output = self.state.output_of(utterance)
            if output is not None:
                self._withdraw(output, utterance)
            for segment in utterance.unrendered():
                self.scheduler.stop_tokens(segment)
            self._note_played(utterance)
            if utterance.told or utterance.told_before:  # and is only kept until its listener has it all
                event: Finished | Cancelled = self._finished_event(utterance, output)
            else:
                event = self._cancelled(utterance)
                self.state.counters.counts["cancelled"] += 1
            self.state.finish(utterance, event, at_once=True)

    def _withdraw(self, output: OutputState, utterance: Utterance) -> None:
        """Take what is not heard of an utterance out of the ring."""
        if output.stints and output.stints[-1].uid == utterance.uid:
            self.scheduler.stop_rendering(output)
        mine = [stint for stint in output.unplayed() if stint.uid == utterance.uid and not stint.discarded]
        self.state.discard(output, mine)

    def _cancelled(self, utterance: Utterance) -> Cancelled:
        return Cancelled(
            id=utterance.id,
            heard=utterance.slice(utterance.text_start, utterance.heard_chars),
            chars=utterance.heard_chars,
            exact=utterance.heard_exact,
            seconds=round(utterance.heard_samples / SAMPLE_RATE, 4),
        )

    def interrupt(self, newcomer: Utterance) -> None:
        """Make way at once: cancel what plays and what the newcomer's conversation still had to
        say (else it would be overtaken), take back what was only made ahead."""
        output = self.state.output_of(newcomer)
        victims = [
            other
            for other in self.state.open_utterances
            if other is not newcomer
            and self.state.owner_of(other) == self.state.owner_of(newcomer)
            and other.conversation == newcomer.conversation
        ]
        if output is not None:
            live = [stint for stint in output.unplayed() if not stint.discarded]
            playing = self.state.utterances.get(live[0].uid) if live else None
            if playing is not None and playing not in victims:
                victims.append(playing)
        if output is not None:  # before the cancel, which lets the reader jump to what stands behind
            self.scheduler.make_way(output, newcomer.level)
        self.cancel(victims)
