"""Rebuilding what the dispatcher knew from its journal and the rings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ipc.messages import SAMPLE_RATE, Cancelled, Event, Failed, Finished
from pipeline.events import DiscardBelow, DiscardOne, GrantLease, Listen, ToClient
from pipeline.journal import (
    AnyRecord,
    BegunRecord,
    CheckpointRecord,
    CutRecord,
    DoneRecord,
    EndRecord,
    FailedRecord,
    HeardRecord,
    PlacedRecord,
    Put,
    SegmentRecord,
    TextRecord,
    TokensRecord,
    ToldRecord,
    UtteranceRecord,
)
from pipeline.output import OutputState, RingView, Stint
from pipeline.state import State
from pipeline.text import TextSegmenter
from pipeline.utterance import Segment, Utterance

_LAST_EVENT: msgspec.json.Decoder[Finished | Cancelled | Failed] = msgspec.json.Decoder(Finished | Cancelled | Failed)


class JournalError(ValueError):
    """An utterance's records do not make sense."""


def restore_utterance(state: State, uid: int, records: Sequence[AnyRecord]) -> None:
    """Take one utterance (or the memory of an ended one) back. Raises `JournalError`."""
    state.next_uid = max(state.next_uid, uid + 1)
    done = [record for record in records if isinstance(record, DoneRecord)]
    if done:
        event: Event = _LAST_EVENT.decode(done[0].event)
        state.done[(done[0].client, done[0].id)] = (uid, event)
        if not done[0].told:
            state.emit(ToClient(done[0].client, False, event))
            state.write_op(Put(msgspec.structs.replace(done[0], told=True)), late=True)
        return
    heads = [record for record in records if isinstance(record, UtteranceRecord)]
    if not heads:
        raise JournalError(f"utterance {uid}: its first record is missing")
    utterance = Utterance(heads[0], uid, last_text_s=state.now_s)
    _texts(utterance, records)
    _segments(state, utterance, records)
    state.utterances[uid] = utterance
    state.by_key[(utterance.client, utterance.id)] = uid
    record = utterance.record
    state.owners[uid] = None if record.output == "speaker" else utterance.conversation
    _outputs(state, utterance, [record for record in records if isinstance(record, PlacedRecord)])
    if not utterance.all_rendered:
        state.enter_lane(utterance)


def _texts(utterance: Utterance, records: Iterable[AnyRecord]) -> None:
    texts = [record for record in records if isinstance(record, TextRecord)]
    for text in sorted(texts, key=lambda record: record.first_char):
        if text.first_char != utterance.given_chars:
            raise JournalError(f"utterance {utterance.uid}: text is missing before character {text.first_char}")
        utterance.text += text.text
    utterance.ended = any(isinstance(record, EndRecord) for record in records)


def _segments(state: State, utterance: Utterance, records: Iterable[AnyRecord]) -> None:
    by_index: dict[int, Segment] = {}
    heard_index = 0
    for record in records:
        match record:
            case SegmentRecord():
                by_index[record.index] = Segment.from_record(record)
            case HeardRecord():
                heard_index = record.index
                utterance.rendered_samples = utterance.heard_samples = record.samples
                utterance.heard_chars, utterance.heard_exact = record.chars, record.exact
                utterance.failed_segments = record.failed_segments
            case BegunRecord():
                utterance.first_audio_ms, utterance.started_ms = record.first_audio_ms, record.started_ms
            case CutRecord():
                utterance.fed, utterance.cut_done = record.fed_chars, record.done
                if not record.done:
                    state.segmenters[utterance.uid] = TextSegmenter.restore(record.segmenter)
            case ToldRecord():
                utterance.told_before = True
            case _:
                pass
    indices = sorted(by_index)
    utterance.segments.extend(by_index[index] for index in indices)
    utterance.next_index = indices[-1] + 1 if indices else heard_index
    utterance.render_index = indices[0] if indices else heard_index
    for record in sorted((r for r in records if isinstance(r, TokensRecord)), key=lambda chunk: chunk.first_token):
        if record.index in by_index:
            by_index[record.index].add_chunk(record)
            utterance.first_tokens_seen = True
    for record in records:
        if isinstance(record, PlacedRecord | CheckpointRecord | FailedRecord) and record.index in by_index:
            _progress(by_index[record.index], record)
        if isinstance(record, FailedRecord) and record.index in by_index:
            utterance.failed_segments += 1
            utterance.last_failure = record.reason
            segment = by_index[record.index]
            failed = Failed(id=utterance.id, reason=record.reason, chars=(segment.start, segment.end), final=False)
            state.tell(utterance, failed)  # perhaps for the second time; better than never
    utterance.spoken_s = utterance.rendered_samples / SAMPLE_RATE + sum(one.made_s for one in utterance.segments)
    for segment in utterance.segments:
        segment.tokens_final = segment.tokens_final or not segment.speakable
        if not segment.rendered:
            break
        utterance.render_index = segment.index + 1
        utterance.rendered_samples = segment.base + segment.samples


def _progress(segment: Segment, record: PlacedRecord | CheckpointRecord | FailedRecord) -> None:
    match record:
        case PlacedRecord():
            segment.ring_start, segment.base, segment.rungs = record.ring_start, record.base, record.rungs
        case CheckpointRecord():
            segment.restore_progress(record)
        case FailedRecord():
            segment.failed, segment.tokens_final = record.reason, True


def _outputs(state: State, utterance: Utterance, places: Sequence[PlacedRecord]) -> None:
    """The output and its stints, as far as segments of them are remembered."""
    owner = state.owners[utterance.uid]
    for place in sorted(places, key=lambda place: place.index):
        segment = utterance.segment(place.index)
        if segment is None:
            continue
        output = state.outputs.get(owner)
        if output is None:
            output = state.outputs[owner] = OutputState(place.slot, owner)
            state.free_slots.remove(place.slot)
        end = place.ring_start + segment.samples
        output.stints.append(Stint(place.epoch, utterance.uid, place.ring_start, end, place.base, place.index))


def settle_outputs(state: State, views: dict[int, RingView], epochs: dict[int, list[int]]) -> None:
    """Bring the outputs in line with the rings: what is written counts, whoever wrote it, and what
    the journal does not know (``epochs`` are those that a ring's spans name) was taken back or
    cancelled by a dispatcher that did not live to have it discarded."""
    for output in state.outputs.values():
        output.stints = type(output.stints)(sorted(output.stints, key=lambda stint: stint.epoch))
        output.view = views.get(output.slot, output.view)
        output.moved_s = state.now_s  # nobody could read while nobody sent
        output.next_epoch, output.seen = state.first_stint, output.slot in views
        output.settling = state.epoch > 1
        live = {stint.epoch for stint in output.stints}
        for epoch in sorted(set(epochs.get(output.slot, ())) - live):
            state.emit(DiscardOne(output.slot, epoch))
        for stint in output.stints:
            utterance = state.utterances[stint.uid]
            if output.owner is not None:
                state.emit(
                    Listen(
                        output.slot,
                        stint.epoch,
                        stint.uid,
                        utterance.client,
                        utterance.id,
                        stint.start,
                        stint.base,
                        utterance.record.confirms,
                    )
                )
        state.dirty.add(output.owner)
    for slot in state.free_slots:
        if epochs.get(slot):
            state.emit(DiscardBelow(slot, state.first_stint))
    if state.epoch > 1:
        for slot in range(state.config.text.max_streams + 1):
            state.emit(GrantLease(slot, 0))  # what a former writer begins from now on is nobody's
    state.old_writers = None if any(output.settling for output in state.outputs.values()) else set()
