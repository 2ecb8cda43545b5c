"""What the dispatcher knows, shared by the parts of its state machine.

The parts (`intake`, `cutting`, `schedule`, `hearing`, `report`, `restore`) read and change this and
say what is to be done by `emit`; `pipeline.dispatch` calls them in turn. Time comes in with every
event (`now_s`, monotonic); nothing here looks at a clock.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from ipc.messages import SAMPLE_RATE, AudioFacts, Event, PlayerFacts, TokenFacts, Voice, Work
from pipeline.config import Config
from pipeline.counters import Counters
from pipeline.credit import RenderSpeed
from pipeline.crew import Crew, Member
from pipeline.engines.base import resolve_voice
from pipeline.events import Command, DiscardBelow, DiscardOne, ToClient, Unlisten, Write
from pipeline.journal import BegunRecord, DoneRecord, Drop, Op, Put, Record
from pipeline.output import OutputState, Stint
from pipeline.text import TextSegmenter
from pipeline.timeline import Timeline
from pipeline.utterance import Utterance

Owner = tuple[bytes, str] | None
"""Whose output it is: (client, conversation) of a remote listener, None for the speaker."""

DONE_KEPT = 1000
"""Ended utterances whose last event is kept for those who send the same id again."""

Facts = TokenFacts | AudioFacts | PlayerFacts
Resolve = Callable[[TokenFacts, str, str], tuple[str, str]]
_EVENTS = msgspec.json.Encoder()


@dataclass
class State:
    """Everything the dispatcher knows."""

    config: Config
    epoch: int
    engine: str = ""
    engine_reason: str = ""
    resolve: Resolve = resolve_voice
    started_s: float = 0.0
    now_s: float = 0.0
    crew: Crew = field(default_factory=Crew)
    speed: RenderSpeed = field(default_factory=RenderSpeed)
    utterances: dict[int, Utterance] = field(default_factory=dict)
    by_key: dict[tuple[bytes, str], int] = field(default_factory=dict)
    done: OrderedDict[tuple[bytes, str], tuple[int, Event]] = field(default_factory=OrderedDict)
    segmenters: dict[int, TextSegmenter] = field(default_factory=dict)
    lanes: dict[Owner, list[Utterance]] = field(default_factory=lambda: {None: []})
    """Per output, in order of arrival, the utterances that are not wholly in its ring."""
    outputs: dict[Owner, OutputState] = field(default_factory=lambda: {None: OutputState(0, None)})
    owners: dict[int, Owner] = field(default_factory=dict)
    """Per utterance, the output it goes to; stays when another client attaches to it."""
    free_slots: list[int] = field(default_factory=list)
    slot_epochs: dict[int, int] = field(default_factory=dict)
    """Where the stints of a slot that is free go on counting: a ring outlives its listeners."""
    dirty: set[Owner] = field(default_factory=set)
    short_of_workers: set[Owner] = field(default_factory=set)
    """Outputs that could go on if a worker had room (a suspect needs one for itself alone)."""
    old_writers: set[tuple[int, int]] | None = field(default_factory=set)
    """s3gen processes of an earlier epoch that may still write; None: not known yet."""
    added_voices: list[str] = field(default_factory=list)
    """Reference recordings in the voices' folder."""
    gone_voices: set[str] = field(default_factory=set)
    """Recordings that have been there."""
    more_arrived: bool = False
    """Messages came with the last look at the rings: perhaps not all of them are handled yet."""
    paused: bool = False
    draining: bool = False
    next_uid: int = 1
    next_stream: int = 1
    commands: list[Command] = field(default_factory=list)
    counters: Counters = field(init=False)
    timeline: Timeline = field(default_factory=Timeline)

    def __post_init__(self) -> None:
        flow, text = self.config.flow, self.config.text
        self.counters = Counters(
            {
                "text_waiting": None,
                "utterances": text.max_queued,
                "ahead": flow.ahead_s,
                "ring": flow.ring_s,
                "stream_rings": None,
            }
        )
        self.free_slots = list(range(text.max_streams, 0, -1))
        self.outputs[None].next_epoch = self.first_stint

    # ---------------------------------------------------------------- saying what to do

    def emit(self, command: Command) -> None:
        """Have something done, after what was emitted before."""
        self.commands.append(command)

    def write(self, record: Record) -> None:
        """Journal a record."""
        self.commands.append(Write(Put(record)))  # type: ignore[arg-type]

    def write_op(self, op: Op, late: bool = False) -> None:
        """Journal or forget."""
        self.commands.append(Write(op, late))

    def tell(self, utterance: Utterance, event: Event, droppable: bool = False) -> None:
        """Send an event of an utterance to whoever it belongs to. A REQ client, which gets one
        answer per request, is told nothing on its own."""
        if not utterance.record.req:
            self.emit(ToClient(utterance.client, False, event, droppable))

    def worked(self, worker: str, utterance: Utterance, since_s: float, speech_s: float) -> None:
        """Note for those who watch that a worker was at this utterance until now."""
        to_s = round(self.now_s - self.started_s, 4)
        from_s = round(min(max(since_s - self.started_s, 0.0), to_s), 4)
        self.timeline.add(Work(worker, utterance.id, from_s, to_s, round(speech_s, 4)))

    # ---------------------------------------------------------------- outputs and lanes

    def first_made(self, utterance: Utterance, first_audio_ms: float) -> None:
        """The utterance's first sample is in the ring, so long after the request came."""
        if utterance.first_audio_ms is not None:
            return
        utterance.first_audio_ms = first_audio_ms
        if utterance.prompt:
            self.counters.latencies["first_pcm"].add(first_audio_ms)
        self.write(BegunRecord(utterance.uid, first_audio_ms, None))

    def owner_of(self, utterance: Utterance) -> Owner:
        """Which output an utterance goes to."""
        return self.owners.get(utterance.uid)

    def output_of(self, utterance: Utterance) -> OutputState | None:
        """The output an utterance goes to, if it has a slot."""
        return self.outputs.get(self.owner_of(utterance))

    def by_slot(self, slot: int) -> OutputState | None:
        """The output that has this slot."""
        return next((output for output in self.outputs.values() if output.slot == slot), None)

    def enter_lane(self, utterance: Utterance) -> None:
        """The utterance waits (again) for its place in the ring."""
        owner = self.owner_of(utterance)
        lane = self.lanes.setdefault(owner, [])
        if utterance not in lane:
            bisect.insort(lane, utterance, key=lambda other: other.order)
        self.touch(utterance)

    def leave_lane(self, utterance: Utterance) -> None:
        """The utterance is wholly in the ring, or over."""
        owner = self.owner_of(utterance)
        lane = self.lanes.get(owner, [])
        if utterance in lane:
            lane.remove(utterance)
        if owner is not None and not lane and owner not in self.outputs:
            self.lanes.pop(owner, None)

    def touch(self, utterance: Utterance) -> None:
        """The utterance's output may have something to do."""
        self.dirty.add(self.owner_of(utterance))

    def claim_slots(self) -> None:
        """Give free slots to the listeners that have waited longest."""
        waiting = [owner for owner, lane in self.lanes.items() if lane and owner not in self.outputs]
        waiting.sort(key=lambda owner: self.lanes[owner][0].order)
        for owner in waiting:
            if not self.free_slots:
                self.counters.counts["waits_for_slot"] += 1
                return
            slot = self.free_slots.pop()
            output = OutputState(slot, owner, next_epoch=self.slot_epochs.get(slot, self.first_stint))
            output.settling = self.old_writers is None or bool(self.old_writers)
            self.outputs[owner] = output
            self.dirty.add(owner)

    def release_slots(self) -> None:
        """Take back the slots of listeners for whom nothing is left to do."""
        busy = set(self.owners.values())
        for owner, output in list(self.outputs.items()):
            if owner is None or owner in busy or not output.idle:
                continue
            del self.outputs[owner]
            self.lanes.pop(owner, None)
            self.slot_epochs[output.slot] = output.next_epoch
            self.free_slots.append(output.slot)

    @property
    def open_utterances(self) -> list[Utterance]:
        """Those whose last event is still to come (the others only wait to be forgotten)."""
        return [utterance for utterance in self.utterances.values() if not (utterance.told or utterance.told_before)]

    # ---------------------------------------------------------------- the end of an utterance

    def finish(self, utterance: Utterance, event: Event, at_once: bool = False) -> None:
        """The utterance is over: say so, and forget it.

        What was heard to its end is forgotten after it was said: a successor says it again rather
        than never. With ``at_once`` (a cancel) it is forgotten first: a successor must not speak on.
        """
        if not utterance.told:
            self.tell(utterance, event)
        self.remember_done(utterance.uid, (utterance.client, utterance.id), event)
        output = self.output_of(utterance)
        if output is not None and output.owner is not None:
            self.emit(Unlisten(output.slot, utterance.uid))
        self.leave_lane(utterance)
        self.touch(utterance)
        self.by_key.pop((utterance.client, utterance.id), None)
        self.segmenters.pop(utterance.uid, None)
        del self.utterances[utterance.uid]
        del self.owners[utterance.uid]
        done = DoneRecord(utterance.uid, utterance.client, utterance.id, _EVENTS.encode(event), told=False)
        if at_once:
            self.write_op(Drop(utterance.uid))
            self.write(done)
        else:
            self.write_op(Drop(utterance.uid), late=True)
        self.write_op(Put(msgspec.structs.replace(done, told=True)), late=True)

    def remember_new(self, key: tuple[bytes, str], event: Event) -> None:
        """An utterance was over before it was accepted; its program may ask for it again."""
        uid = self.next_uid
        self.next_uid += 1
        self.remember_done(uid, key, event)
        self.write(DoneRecord(uid, *key, _EVENTS.encode(event), told=True))

    def remember_done(self, uid: int, key: tuple[bytes, str], event: Event) -> None:
        """Keep an ended utterance's last event for those who send its id again."""
        self.done[key] = (uid, event)
        self.done.move_to_end(key)
        while len(self.done) > DONE_KEPT:
            _, (oldest, _) = self.done.popitem(last=False)
            self.write_op(Drop(oldest, (DoneRecord,)), late=True)

    # ---------------------------------------------------------------- voices

    def know_voice(self, name: str) -> None:
        """A reference recording of this name can be spoken with."""
        self.know_voices((*self.added_voices, name))

    def know_voices(self, names: Sequence[str]) -> None:
        """These are the reference recordings; others that there were are gone."""
        before = set(self.added_voices)
        self.added_voices = list(dict.fromkeys(names))
        self.gone_voices = (self.gone_voices | before) - set(names)
        for member in self.crew.of("t3"):
            member.facts = self.with_added_voices(member.facts)

    def with_added_voices(self, facts: Facts | None) -> Facts | None:
        """A token half's facts with the recordings it can clone."""
        if not isinstance(facts, TokenFacts) or not facts.cloning:
            return facts
        own = tuple(v for v in facts.voices if v.id not in self.gone_voices or v.id == facts.default_voice)
        known = {voice.id for voice in own}
        language = next((voice.language for voice in facts.voices if voice.id == facts.default_voice), "")
        added = tuple(Voice(name, name, language) for name in self.added_voices if name not in known)
        return msgspec.structs.replace(facts, voices=own + added)

    # ---------------------------------------------------------------- discards

    def discard(self, output: OutputState, stints: list[Stint]) -> None:
        """Have the reader drop these stints; the others stay (see `pipeline.output`)."""
        if not stints:
            return
        highest = max(stint.epoch for stint in stints)
        for stint in stints:
            stint.discarded = True
        below = [stint for stint in output.unplayed() if stint.epoch <= highest]
        if all(stint.discarded for stint in below):
            self.emit(DiscardBelow(output.slot, highest + 1))
        else:
            for stint in stints:
                self.emit(DiscardOne(output.slot, stint.epoch))

    def end_stream(self, stream: int) -> Member | None:
        """The stream is over; the worker that had it has room for those who wait for one."""
        self.dirty |= self.short_of_workers
        self.short_of_workers.clear()
        return self.crew.end_stream(stream)

    def new_stream(self) -> int:
        """A number for one attempt at one segment, never used before."""
        self.next_stream += 1
        return (self.epoch << 32) | self.next_stream

    @property
    def first_stint(self) -> int:
        """Stints of this incarnation are numbered from here: above whatever an earlier one wrote, opened
        or discarded. (A stint in which nothing was written leaves no trace but its discard.)"""
        return (self.epoch << 32) + 1

    @property
    def text_waiting_chars(self) -> int:
        """Characters given and not yet made into tokens."""
        total = 0
        for utterance in self.utterances.values():
            total += utterance.given_chars - utterance.fed
            total += sum(len(segment.text) for segment in utterance.unrendered() if not segment.tokens_final)
        return total

    def seconds(self, samples: int) -> float:
        """Samples as seconds."""
        return samples / SAMPLE_RATE
