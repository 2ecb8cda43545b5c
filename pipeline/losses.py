"""What a worker's death (or its new session) means: what it held goes to another, or is given up."""

from __future__ import annotations

from ipc.messages import Excuse, Role
from pipeline.assign import was_worked_on
from pipeline.crew import Member
from pipeline.events import ToWorker
from pipeline.schedule import Scheduler
from pipeline.state import State
from pipeline.utterance import POISON_DEATHS, Segment, Suspicion, Utterance


class Losses:
    """Takes back what workers have lost."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self.state = state
        self.scheduler = scheduler

    def lost(self, member: Member, died: bool) -> None:
        """A worker's streams are void: its process died, or it started a new session."""
        for stream, task in list(member.streams.items()):
            utterance = self.state.utterances.get(task.uid)
            segment = utterance.segment(task.segment) if utterance else None
            if task.slot >= 0:
                self._lost_rendering(task.slot, stream)
            if utterance is None or segment is None:
                continue
            if task.slot < 0 and segment.t3_stream == stream:
                segment.t3_stream = None
            if died:
                self._suspect(member, utterance, segment, member.peer.role)
            self.state.touch(utterance)
        member.streams.clear()
        self.state.dirty |= self.state.short_of_workers
        if member.peer.role == "s3gen":
            self._release_leases(member, died)

    def _lost_rendering(self, slot: int, stream: int) -> None:
        output = self.state.by_slot(slot)
        if output is not None and output.stream == stream:
            output.stream = None

    def _release_leases(self, member: Member, died: bool) -> None:
        for output in self.state.outputs.values():
            if output.holder != member.process:
                continue
            output.closing = None
            self.state.dirty.add(output.owner)
            if died:
                output.holder, output.lease, output.settling = None, 0, False
            else:
                output.settling = True
            output.take_written()

    def _suspect(self, member: Member, utterance: Utterance, segment: Segment, role: Role) -> None:
        suspicion, progress = segment.t3_suspicion, segment.tokens
        if role == "s3gen":
            suspicion, progress = segment.s3gen_suspicion, segment.samples
        if not was_worked_on(self.state, utterance, segment, role):
            return
        convicted = suspicion.died(progress, *member.process)
        if suspicion.deaths_in_all >= POISON_DEATHS:
            self._excuse(role, suspicion)
        if not convicted:
            return
        reason = f"{role} died {suspicion.deaths} times while it spoke this; not tried again"
        self.scheduler.give_up(utterance, segment, reason)
        if role == "s3gen":
            self.scheduler.end_segment(utterance, segment)

    def _excuse(self, role: Role, suspicion: Suspicion) -> None:
        """Who dies at one segment again and again is not to blame, given up or not."""
        supervisor = self.state.crew.supervisor
        if supervisor is None:
            return
        while suspicion.dead:
            index, pid = suspicion.dead.pop()
            self.state.emit(ToWorker(supervisor, Excuse(role, index, pid)))
