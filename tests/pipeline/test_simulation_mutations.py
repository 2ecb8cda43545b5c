"""Whether the simulation would notice: the machine is broken on purpose, and a schedule has to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from ipc.messages import SAMPLE_RATE, Finished, Generate, Text, Welcome
from pipeline import cutting, dispatch, hearing, intake, losses, production, restore, schedule, state
from pipeline.crew import Crew, Member
from pipeline.events import DiscardBelow, DiscardOne, Listen, ToWorker, Write
from pipeline.journal import CheckpointRecord, Drop, EndRecord, HeardRecord, PlacedRecord, Put, Record, TokensRecord
from pipeline.order import Order
from pipeline.output import OutputState
from pipeline.utterance import Suspicion, Utterance
from tests.pipeline import simulation
from workers.rendering import AudioStreams

SCHEDULES = 400
"""Within so many one has to fail."""

TELLING = (45, 63, 73, 88, 132, 152, 236)
"""Seeds whose schedules have shown what many others did not: they come first, which saves most of the search."""

Mutate = Callable[[pytest.MonkeyPatch], None]
MUTATIONS: dict[str, Mutate] = {}


def mutation(mutate: Mutate) -> Mutate:
    MUTATIONS[mutate.__name__] = mutate
    return mutate


def ignore(*_arguments: object, **_named: object) -> None:
    return None


def unjournaled(patch: pytest.MonkeyPatch, kind: type[Record]) -> None:
    """Records of one kind are not written."""
    write = state.State.write

    def forgetful(self: state.State, record: Record) -> None:
        if not isinstance(record, kind):
            write(self, record)

    patch.setattr(state.State, "write", forgetful)


def censored(patch: pytest.MonkeyPatch, unwanted: Callable[[Any], bool]) -> None:
    """Some commands are not carried out."""
    emit = state.State.emit

    def silent(self: state.State, command: Any) -> None:
        if not unwanted(command):
            emit(self, command)

    patch.setattr(state.State, "emit", silent)


# ---------------------------------------------------------------- acknowledgements, leases, epochs


@mutation
def drop_the_acknowledgement_of_a_cancelled_stream(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(production.Production, "stream_closed", ignore)


@mutation
def do_not_wait_for_that_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OutputState, "idle", property(lambda self: self.stream is None))


@mutation
def hand_a_lease_over_before_the_exit_is_reported(patch: pytest.MonkeyPatch) -> None:
    release = losses.Losses._release_leases
    patch.setattr(losses.Losses, "_release_leases", lambda self, member, died: release(self, member, True))


@mutation
def trust_the_writers_of_an_earlier_dispatcher(patch: pytest.MonkeyPatch) -> None:
    settle = restore.settle_outputs

    def hasty(found: state.State, *more: Any) -> None:
        settle(found, *more)
        found.old_writers = set()
        for output in found.outputs.values():
            output.settling = False

    patch.setattr("workers.dispatcher.settle_outputs", hasty)


@mutation
def number_stints_from_the_beginning_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(state.State, "first_stint", property(lambda self: 1))


@mutation
def let_workers_go_on_for_an_earlier_dispatcher(patch: pytest.MonkeyPatch) -> None:
    handle = AudioStreams.handle

    def stubborn(self: AudioStreams, message: Any) -> list[Any]:
        return [] if isinstance(message, Welcome) else handle(self, message)

    patch.setattr(AudioStreams, "handle", stubborn)


@mutation
def believe_messages_of_an_earlier_session(patch: pytest.MonkeyPatch) -> None:
    def keep(self: Crew, peer: Any) -> Member | None:
        if peer.role == "supervisor":
            self.supervisor = peer
            return None
        key = (peer.role, peer.index, peer.pid)
        former = self.members.get(key)
        if former is None:
            self.members[key] = Member(peer)
        else:
            former.peer = peer
        return None

    patch.setattr(Crew, "join", keep)


# ---------------------------------------------------------------- credit and streams


@mutation
def leak_credit_by_never_granting_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(schedule.Scheduler, "_grant", ignore)


@mutation
def give_credit_without_looking_at_the_ring(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(schedule, "credit", lambda _before, unrendered, made, ahead: made - unrendered + ahead)


@mutation
def forget_the_streams_of_a_dead_worker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(losses.Losses, "lost", ignore)


@mutation
def believe_only_reports_of_deaths_and_not_the_table(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatch.Dispatcher, "_missing_died", ignore)


@mutation
def try_what_kills_its_worker_for_ever(patch: pytest.MonkeyPatch) -> None:
    def harmless(self: Suspicion, *_arguments: object) -> bool:
        return False

    patch.setattr(Suspicion, "died", harmless)


@mutation
def do_not_free_a_suspect_s_worker(patch: pytest.MonkeyPatch) -> None:
    def end_stream(self: Crew, stream: int) -> Member | None:
        for member in self.members.values():
            if stream in member.streams:
                del member.streams[stream]
                return member
        return None

    patch.setattr(Crew, "end_stream", end_stream)


@mutation
def keep_the_slots_of_listeners(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(state.State, "release_slots", ignore)


# ---------------------------------------------------------------- resuming


@mutation
def resume_t3_without_its_history(patch: pytest.MonkeyPatch) -> None:
    def forgetful(command: Any) -> Any:
        if isinstance(command, ToWorker) and isinstance(command.message, Generate):
            message = msgspec.structs.replace(command.message, history_tokens=0)
            return ToWorker(command.peer, message)
        return command

    emit = state.State.emit
    patch.setattr(state.State, "emit", lambda self, command: emit(self, forgetful(command)))
    patch.setattr(schedule.Scheduler, "_replay", ignore)


@mutation
def resume_s3gen_a_token_too_far(patch: pytest.MonkeyPatch) -> None:
    def off_by_one(segment: Any, record: CheckpointRecord) -> None:
        restored(segment, record)
        segment.done_tokens += not record.final

    restored = restore.Segment.restore_progress
    patch.setattr(restore.Segment, "restore_progress", off_by_one)


@mutation
def do_not_tell_a_successor_who_listens(patch: pytest.MonkeyPatch) -> None:
    settle = restore.settle_outputs

    def deaf(found: state.State, *more: Any) -> None:
        settle(found, *more)
        found.commands = [command for command in found.commands if not isinstance(command, Listen)]

    patch.setattr("workers.dispatcher.settle_outputs", deaf)


@mutation
def do_not_discard_what_the_journal_does_not_know(patch: pytest.MonkeyPatch) -> None:
    settle = restore.settle_outputs

    def lenient(found: state.State, *more: Any) -> None:
        settle(found, *more)
        found.commands = [c for c in found.commands if not isinstance(c, DiscardOne | DiscardBelow)]

    patch.setattr("workers.dispatcher.settle_outputs", lenient)


# ---------------------------------------------------------------- the journal


@pytest.mark.parametrize("kind", [TokensRecord, PlacedRecord, CheckpointRecord, EndRecord, HeardRecord])
def test_a_record_that_is_never_written_is_noticed(kind: type[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    unjournaled(monkeypatch, kind)
    assert noticed()


@mutation
def write_the_journal_after_everything_else(patch: pytest.MonkeyPatch) -> None:
    def late(self: state.State, record: Any) -> None:
        self.commands.append(Write(Put(record), late=True))

    patch.setattr(state.State, "write", late)


@mutation
def never_prune_the_journal(patch: pytest.MonkeyPatch) -> None:
    write_op = state.State.write_op

    def hoard(self: state.State, op: Any, late: bool = False) -> None:
        if not isinstance(op, Drop):
            write_op(self, op, late)

    patch.setattr(state.State, "write_op", hoard)


# ---------------------------------------------------------------- cancels and order


@mutation
def ignore_discards(patch: pytest.MonkeyPatch) -> None:
    censored(patch, lambda command: isinstance(command, DiscardBelow | DiscardOne))


@mutation
def forget_a_cancel(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hearing.Hearing, "cancel", ignore)


@mutation
def cancel_one_too_many(patch: pytest.MonkeyPatch) -> None:
    cancel = hearing.Hearing.cancel

    def eager(self: hearing.Hearing, victims: list[Utterance]) -> None:
        cancel(self, victims)
        cancel(self, self.state.open_utterances[:1])

    patch.setattr(hearing.Hearing, "cancel", eager)


@mutation
def let_what_plays_go_on_at_an_interrupt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hearing.Hearing, "interrupt", ignore)


@mutation
def take_back_without_a_discard(patch: pytest.MonkeyPatch) -> None:
    take_back = schedule.Scheduler.take_back

    def careless(self: schedule.Scheduler, output: Any, stint: Any) -> None:
        before = len(self.state.commands)
        take_back(self, output, stint)
        self.state.commands[before:] = [
            command for command in self.state.commands[before:] if not isinstance(command, DiscardBelow | DiscardOne)
        ]

    patch.setattr(schedule.Scheduler, "take_back", careless)


@mutation
def swap_the_order_of_a_conversation(patch: pytest.MonkeyPatch) -> None:
    utterances = Order.utterances

    def backwards(self: Order, owner: Any) -> Iterator[Utterance]:
        lanes, self.state.lanes = self.state.lanes, {key: lane[::-1] for key, lane in self.state.lanes.items()}
        try:
            yield from list(utterances(self, owner))
        finally:
            self.state.lanes = lanes

    patch.setattr(Order, "utterances", backwards)


@mutation
def let_the_less_urgent_go_first(patch: pytest.MonkeyPatch) -> None:
    levels = Order.levels
    patch.setattr(Order, "levels", lambda self, owner: {key: -level for key, level in levels(self, owner).items()})


# ---------------------------------------------------------------- endings and texts


@mutation
def finish_twice(patch: pytest.MonkeyPatch) -> None:
    finished = hearing.Hearing._finished

    def twice(self: hearing.Hearing, utterance: Utterance) -> None:
        if not utterance.told:
            event = self._finished_event(utterance, self.state.output_of(utterance))
            self.state.tell(utterance, event)
        finished(self, utterance)

    patch.setattr(hearing.Hearing, "_finished", twice)


@mutation
def never_finish(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hearing.Hearing, "_finished", ignore)


@mutation
def finish_before_the_end_was_heard(patch: pytest.MonkeyPatch) -> None:
    follow = hearing.Hearing.follow

    def hasty(self: hearing.Hearing) -> None:
        for utterance in self.state.utterances.values():
            if utterance.all_rendered and utterance.heard_samples + SAMPLE_RATE // 5 >= utterance.rendered_samples:
                utterance.hear(utterance.rendered_samples)
        follow(self)

    patch.setattr(hearing.Hearing, "follow", hasty)


@mutation
def forget_an_ending_that_was_not_sent(patch: pytest.MonkeyPatch) -> None:
    censored(patch, lambda command: isinstance(getattr(command, "event", None), Finished))


@mutation
def call_a_sound_made_only_when_its_worker_says_so(patch: pytest.MonkeyPatch) -> None:
    first_made = state.State.first_made

    def late(self: state.State, utterance: Utterance, first_audio_ms: float) -> None:
        if utterance.segments[0].samples:
            first_made(self, utterance, first_audio_ms)

    patch.setattr(state.State, "first_made", late)


@mutation
def lose_a_flush(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cutting, "flush", ignore)


@mutation
def take_a_repeated_text_twice(patch: pytest.MonkeyPatch) -> None:
    text = intake.Intake._text

    def again(self: intake.Intake, client: bytes, request: Text) -> None:
        text(self, client, msgspec.structs.replace(request, offset=None))

    patch.setattr(intake.Intake, "_text", again)


@mutation
def never_end_a_text_whose_writer_has_gone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cutting, "check_writer", ignore)


def noticed() -> str:
    """The first violation in `SCHEDULES` schedules."""
    for seed in sorted(range(SCHEDULES), key=lambda seed: seed not in TELLING):
        verdict = simulation.verdict(simulation.schedule(seed))
        if verdict:
            return f"seed {seed}: {verdict}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_machine_breaks_a_promise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    assert noticed(), f"nothing was noticed in {SCHEDULES} schedules"
