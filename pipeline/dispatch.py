"""The dispatcher's state machine: event in, commands out; no sockets, no clock, no disk.

`Dispatcher.handle` takes one `pipeline.events.Input` with the time it happened and returns the
`Command`s to carry out, in order; journal writes that are not ``late`` come before everything else
of the same call. `Dispatcher.next_wakeup_s` says when to `Ticked` it at the latest. Everything it
decides follows from what went in, so that a test can drive it through thousands of crashes.
"""

from __future__ import annotations

import math

from ipc.messages import (
    Drain,
    Drained,
    Exited,
    Internal,
    PlayerStats,
    Probed,
    Processes,
    ProcessState,
    Ready,
    Rendered,
    Role,
    StreamClosed,
    StreamFailed,
    TokenChunk,
    WorkerStats,
)
from pipeline import cutting
from pipeline.config import Config
from pipeline.crew import Peer
from pipeline.engines.base import resolve_voice
from pipeline.events import (
    ClientBack,
    ClientGone,
    Command,
    DiscardBelow,
    DiscardOne,
    Input,
    Joined,
    Observed,
    Requested,
    Said,
    Ticked,
    ToWorker,
    VoicesFound,
    VoiceStored,
    Write,
)
from pipeline.hearing import Hearing
from pipeline.intake import Intake
from pipeline.losses import Losses
from pipeline.output import OutputState, Stint
from pipeline.production import Production
from pipeline.report import Reports
from pipeline.schedule import Scheduler
from pipeline.state import Resolve, State
from pipeline.utterance import Utterance

FOLLOW_EVERY_S = 0.2
FOLLOW_FREE_S = 0.02
FOLLOW_START_S = 0.05
"""How often cursors are looked at while something sounds, at a free pace (it sounds faster), and until what
is in the ring begins to sound. Cancels, new text and the end of an utterance do not wait for it."""

TABLES_LATE_S = 3.0
"""How old a table of processes can be that arrives: packets that are refused are sent again."""


class Dispatcher:
    """Order, segmentation, credits, cancellation, replay."""

    def __init__(
        self,
        config: Config,
        *,
        epoch: int = 1,
        engine: str = "",
        engine_reason: str = "",
        resolve: Resolve = resolve_voice,
        voices: tuple[str, ...] = (),
        now_s: float = 0.0,
    ) -> None:
        self.state = State(config, epoch, engine, engine_reason, resolve, started_s=now_s, now_s=now_s)
        self.state.know_voices(voices)
        self.scheduler = Scheduler(self.state)
        self.losses = Losses(self.state, self.scheduler)
        self.hearing = Hearing(self.state, self.scheduler)
        self.production = Production(self.state, self.scheduler)
        self.reports = Reports(self.state)
        self.intake = Intake(self.state, self.hearing, self.reports)
        self._gone: dict[bytes, float] = {}
        self._wakeup_s = math.inf
        self._listeners_due_s: float | None = None
        self._drained = False
        self._listed: set[tuple[Role, int, int]] = set()
        """Members that a table of processes has named."""
        self._missing: dict[tuple[Role, int, int], float] = {}
        """Members that the last table did not name, and since when."""

    # ---------------------------------------------------------------- in and out

    def handle(self, event: Input, now_s: float) -> list[Command]:
        """What to do about ``event``, which happened at ``now_s`` (monotonic)."""
        state = self.state
        state.now_s = max(state.now_s, now_s)
        match event:
            case Requested():
                self._gone.pop(event.client, None)
                self.intake.take(event)
            case Said():
                self._said(event.peer, event.message)
            case Observed():
                state.more_arrived = event.more
                self.hearing.observe(event.views)
            case Joined():
                self._joined(event.peer)
            case ClientBack():
                self._gone.pop(event.client, None)
            case ClientGone():
                self._gone.setdefault(event.client, state.now_s)
                self.reports.forget(event.client)
            case VoiceStored():
                self.intake.voice_stored(event)
            case VoicesFound():
                state.know_voices(event.voices)
            case Ticked():
                pass
        self._settle(timely=isinstance(event, Observed | Ticked))
        return self._take_commands()

    def _take_commands(self) -> list[Command]:
        """Early journal writes, the rest, late journal writes."""
        commands, self.state.commands = self.state.commands, []
        if not any(isinstance(command, Write) for command in commands):
            return commands
        early = [command for command in commands if isinstance(command, Write) and not command.late]
        rest = [command for command in commands if not isinstance(command, Write)]
        late = [command for command in commands if isinstance(command, Write) and command.late]
        return [*early, *rest, *late]

    def start(self) -> list[Command]:
        """What a restored state has to have done first. What is said to be cancelled must be silent by then,
        should this process die in between."""
        self._settle(timely=True)
        return sorted(self._take_commands(), key=lambda command: not isinstance(command, DiscardBelow | DiscardOne))

    @property
    def next_wakeup_s(self) -> float:
        """When to come again, at the latest (infinity: on the next event)."""
        return self._wakeup_s

    @property
    def active(self) -> bool:
        """Something is waiting or sounding."""
        return bool(self.state.utterances)

    # ---------------------------------------------------------------- after every event

    def _settle(self, timely: bool) -> None:
        """Follow the cursors, give out work, say what is due, until nothing changes.

        What only depends on time is looked at when the event is about time (``timely``).
        """
        state = self.state
        due = [self._check_writers()]
        if timely:
            self._listeners_due_s = self._check_listeners()
            self.hearing.nudge()
        due.append(self._listeners_due_s)
        self.hearing.follow()
        state.claim_slots()
        if timely:
            state.dirty |= state.short_of_workers
            state.short_of_workers.clear()
        for _ in range(8):
            if not state.dirty:
                break
            dirty, state.dirty = state.dirty, set()
            for owner in [owner for owner in state.outputs if owner in dirty]:
                self.scheduler.advance(owner)
            self.hearing.follow()
        state.release_slots()
        if timely:
            self.reports.measure()
        due.append(self.reports.tick())
        self._report_drained()
        if state.utterances or state.dirty:
            due += [state.now_s + self._follow_every_s(), self.hearing.next_end_s()]
        self._wakeup_s = min((at_s for at_s in due if at_s is not None), default=math.inf)

    def _follow_every_s(self) -> float:
        if self.state.config.player.pace == "free":
            return FOLLOW_FREE_S
        return FOLLOW_START_S if self.hearing.starts_soon else FOLLOW_EVERY_S

    def _check_writers(self) -> float | None:
        """Growing texts whose writers are silent."""
        due = [
            cutting.check_writer(self.state, utterance)
            for utterance in list(self.state.utterances.values())
            if not utterance.ended
        ]
        return min((at_s for at_s in due if at_s is not None), default=None)

    def _check_listeners(self) -> float | None:
        """Streamed utterances whose listener has gone, or blocks a slot that others wait for."""
        state = self.state
        detach_s = state.config.text.detach_s
        late = [
            utterance
            for utterance in state.open_utterances
            if utterance.output == "stream"
            and utterance.client in self._gone
            and state.now_s >= self._gone[utterance.client] + detach_s
        ]
        late.extend(utterance for utterance in self._blocking_listeners(detach_s) if utterance not in late)
        if late:
            state.counters.counts["abandoned_streams"] += len(late)
            self.hearing.cancel(late)
        waiting = [since_s + detach_s for since_s in self._gone.values()]
        self._gone = {client: at_s for client, at_s in self._gone.items() if state.now_s < at_s + 2 * detach_s}
        return min((at_s for at_s in waiting if at_s > state.now_s), default=None)

    def _blocking_listeners(self, detach_s: float) -> list[Utterance]:
        """What goes to listeners that take nothing, while others wait for a slot."""
        state = self.state
        if all(owner in state.outputs for owner, lane in state.lanes.items() if lane):
            return []
        stalled = {
            output.owner
            for output in state.outputs.values()
            if output.owner is not None and output.unsent and state.now_s >= output.moved_s + detach_s
        }
        return [utterance for utterance in state.open_utterances if state.owner_of(utterance) in stalled]

    # ---------------------------------------------------------------- workers and supervisor

    def _joined(self, peer: Peer) -> None:
        former = self.state.crew.join(peer)
        if former is not None:
            self.losses.lost(former, died=False)

    def _said(self, peer: Peer, message: Internal) -> None:
        match message:
            case TokenChunk():
                self.production.tokens_made(peer, message)
            case Rendered():
                self.production.rendered(peer, message)
            case StreamFailed():
                self.production.stream_failed(peer, message)
            case StreamClosed():
                self.production.stream_closed(peer, message)
            case Ready():
                self._ready(peer, message)
            case Probed():
                self.reports.probed(peer.role, peer.index, message.probe)
            case WorkerStats():
                member = self.state.crew.member(peer)
                if member is not None:
                    member.stats = message
            case PlayerStats():
                self.state.crew.player_stats = message
            case Processes():
                self._processes(message.processes)
            case Exited():
                self._exited(message)
            case Drain():
                self._drain()
            case _:
                self.state.counters.counts["unexpected_messages"] += 1

    def _ready(self, peer: Peer, message: Ready) -> None:
        state = self.state
        member = state.crew.member(peer)
        if member is None:
            state.counters.counts["stale_messages"] += 1
            return
        member.facts, member.ready_s = state.with_added_voices(message.facts), state.now_s
        if peer.role == "s3gen":
            self._writer_settled(member.process)
        if peer.role == "t3":
            self.intake.engine_ready()
        state.dirty.update(state.outputs)

    def _writer_settled(self, process: tuple[int, int]) -> None:
        """This process writes nothing older than its present session."""
        state = self.state
        if state.old_writers is not None:
            state.old_writers.discard(process)
        for output in state.outputs.values():
            if output.settling and output.holder == process:
                self._free(output)
        self._old_writers_settled()

    def _old_writers_settled(self) -> None:
        """Outputs restored from the journal are free once no writer of an earlier epoch is left."""
        if self.state.old_writers is None or self.state.old_writers:
            return
        for output in self.state.outputs.values():
            if output.settling and output.holder is None:
                self._free(output)

    def _free(self, output: OutputState) -> None:
        output.settling = False
        if output.stints and not self._complete(output.stints[-1]):
            output.take_written()
        self.state.dirty.add(output.owner)

    def _complete(self, stint: Stint) -> bool:
        """Whether all of it was reported. What stands behind it in the ring comes from a later stint then, which a
        former dispatcher took back and which is not remembered."""
        if stint.discarded:
            return False
        utterance = self.state.utterances.get(stint.uid)
        segment = utterance.segment(stint.index) if utterance is not None else None
        return segment is None or (segment.rendered and not segment.failed)

    def _processes(self, processes: tuple[ProcessState, ...]) -> None:
        state = self.state
        state.crew.processes = {(process.role, process.index): process for process in processes}
        self._missing_died({(process.role, process.index, process.pid) for process in processes})
        alive = {(process.index, process.pid) for process in processes if process.role == "s3gen" and process.pid}
        if state.old_writers is None:
            state.old_writers = alive - {member.process for member in state.crew.of("s3gen")}
        state.old_writers &= alive
        self._old_writers_settled()

    def _missing_died(self, listed: set[tuple[Role, int, int]]) -> None:
        """A member that a table had and the next has not has died, and the report of it was lost with a
        connection. One that none ever had may be younger than all of them: they may come late."""
        members, now_s = set(self.state.crew.members), self.state.now_s
        self._listed = (self._listed | listed) & members
        self._missing = {key: self._missing.get(key, now_s) for key in sorted(members - listed)}
        for key, since_s in self._missing.items():
            if key in self._listed or now_s >= since_s + TABLES_LATE_S:
                self._exited(Exited(*key, "not in the table of processes"))

    def _exited(self, message: Exited) -> None:
        state = self.state
        member = state.crew.leave(message.role, message.index, message.pid)
        if member is not None:
            state.counters.counts[f"{message.role}_exits"] += 1
            self.losses.lost(member, died=True)
        if message.role == "s3gen":
            self._writer_settled((message.index, message.pid))

    def _drain(self) -> None:
        self.state.draining = True
        self.intake.drop_held()
        for utterance in list(self.state.utterances.values()):
            cutting.end(self.state, utterance)

    def _report_drained(self) -> None:
        supervisor = self.state.crew.supervisor
        if self.state.draining and not self.state.utterances and not self._drained and supervisor is not None:
            self._drained = True
            self.state.emit(ToWorker(supervisor, Drained()))
