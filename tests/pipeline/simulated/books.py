"""What must hold of the dispatcher's books after every turn of it. Each function yields what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.journal import AnyRecord
from pipeline.output import MAX_UNPLAYED_STINTS
from pipeline.restore import restore_utterance
from pipeline.state import State
from pipeline.utterance import Utterance

MOST_RECORDS = 120
"""Of one utterance, however long its program lets it grow: what was heard is forgotten."""


def agree(state: State) -> Iterator[str]:
    """Everything that is kept of an utterance is kept of the same ones, and no slot is lost."""
    live = set(state.utterances)
    if set(state.by_key.values()) != live or set(state.owners) != live or not set(state.segmenters) <= live:
        yield "utterances, keys, owners and segmenters do not agree"
    if state.commands:
        yield f"{len(state.commands)} commands were left"
    waiting = {utterance.uid for lane in state.lanes.values() for utterance in lane}
    unrendered = {uid for uid, utterance in state.utterances.items() if not utterance.all_rendered}
    if not unrendered <= waiting <= live:
        yield f"utterances {sorted(unrendered - waiting)} wait in no lane, {sorted(waiting - live)} are over and do"
    slots = sorted([*state.free_slots, *(output.slot for output in state.outputs.values())])
    if slots != list(range(state.config.text.max_streams + 1)):
        yield f"slots are lost or doubled: {slots}"


def streams_agree(state: State) -> Iterator[str]:
    """No worker is believed to hold what nobody waits for, and the other way round."""
    held: dict[int, Any] = {}
    for member in state.crew.members.values():
        held |= dict.fromkeys(member.streams, member)
        for stream, task in member.streams.items():
            utterance = state.utterances.get(task.uid)
            segment = utterance.segment(task.segment) if utterance else None
            output = state.by_slot(task.slot) if task.slot >= 0 else None
            wanted = output.stream if output else segment.t3_stream if segment and task.slot < 0 else None
            if wanted != stream:
                yield f"{member.peer.role}-{member.peer.index} holds {task}, and nobody waits for it"
        if member.alone is not None and member.alone not in member.streams:
            yield f"{member.peer.role}-{member.peer.index} is kept for a stream that it does not have"
    for utterance in state.utterances.values():
        for segment in utterance.segments:
            if segment.t3_stream is not None and segment.t3_stream not in held:
                yield f"{utterance.id}: segment {segment.index} waits for a stream that nobody has"
    for output in state.outputs.values():
        if output.stream is not None and output.stream not in held:
            yield f"slot {output.slot} waits for a stream that nobody has"


def bounded(state: State) -> Iterator[str]:
    """What is remembered of the rings has a bound."""
    for output in state.outputs.values():
        waiting = sum(stint.end > output.view.read for stint in output.stints)
        if waiting > MAX_UNPLAYED_STINTS + 1 or len(output.stints) > 4 * MAX_UNPLAYED_STINTS:
            yield f"slot {output.slot} remembers {len(output.stints)} stints, {waiting} unplayed"


def journal_is_pruned(state: State, records: Iterable[tuple[int, str, int, int]]) -> Iterator[str]:
    """What is over leaves nothing but its last event."""
    live = set(state.utterances)
    left = {kind for uid, kind, _, _ in records if uid not in live and kind != "DoneRecord"}
    if left:
        yield f"the journal keeps {sorted(left)} of utterances that are over"

    kept = Counter(uid for uid, _, _, _ in records)
    for uid, count in kept.items():
        if count > MOST_RECORDS:
            yield f"the journal has {count} records of utterance {uid}"


def journal_knows(state: State, load: Callable[[int], list[AnyRecord]]) -> Iterator[str]:
    """A successor would know what this dispatcher knows."""
    shadow = State(state.config, state.epoch + 1, now_s=state.now_s)
    for uid in state.utterances:
        try:
            restore_utterance(shadow, uid, load(uid))
        except Exception as error:  # noqa: BLE001
            yield f"the journal of utterance {uid} cannot be read: {type(error).__name__}: {error}"
    for uid, utterance in state.utterances.items():
        known = shadow.utterances.get(uid)
        mine, theirs = essence(utterance), essence(known) if known else {}
        wrong = [name for name in mine if mine[name] != theirs.get(name)]
        if wrong:
            name = wrong[0]
            here, there = mine[name], theirs.get(name)
            if name == "segments" and there is not None:
                here = [one for one in mine[name] if one not in there]
                there = [one for one in there if one not in mine[name]]
            yield f"the journal tells {there!r} of {utterance.id}, {name} is {here!r}"


def essence(utterance: Utterance) -> dict[str, Any]:
    """What of an utterance must survive the dispatcher."""
    segments = [
        (
            segment.index,
            segment.text,
            segment.tokens,
            segment.tokens_final,
            segment.ring_start,
            segment.rendered,
            segment.failed,
            segment.done_tokens,
            segment.samples if segment.rendered else segment.done_samples,
            segment.checkpoint if not segment.rendered else b"",
        )
        for segment in utterance.segments
        if segment.tokens or segment.pause_samples or (not segment.tokens_final and segment.speakable)
    ]
    return {
        "text": utterance.text,
        "client": utterance.client,
        "ended": utterance.ended,
        "fed": utterance.fed,
        "cut_done": utterance.cut_done,
        "next_index": utterance.next_index,
        "failed": utterance.failed_segments,
        "segments": segments,
    }
