"""Which worker gets a segment: room in its batch, suspects alone, deaf listeners in nobody's way."""

from __future__ import annotations

from collections.abc import Callable

from ipc.messages import SAMPLE_RATE, Role
from pipeline.crew import Member, Task
from pipeline.output import OutputState
from pipeline.state import State
from pipeline.utterance import Segment, Utterance

FULL_SHARE = 0.9
RESERVED_S = 0.2
"""A suspect that waits for a worker asks again with every tick."""


class Assignment:
    """Chooses workers; ``stop_tokens`` takes a segment back from t3."""

    def __init__(self, state: State, stop_tokens: Callable[[Segment], None]) -> None:
        self.state = state
        self._stop_tokens = stop_tokens
        self._waiting_alone: dict[Role, tuple[Task, float]] = {}
        """The suspect that waits for a worker to itself, and when it last asked."""

    def choose(self, role: Role, task: Task, suspect: bool, prefer: tuple[int, int] | None = None) -> Member | None:
        """The preferred process if it has room, else the least loaded that has.

        A suspect needs one that works on nothing else. While it waits for that no other output gets
        one of its kind, or it might wait for ever; the reservation lapses when it does not ask again.
        """
        first, asked_s = self._waiting_alone.get(role, (task, 0.0))
        if first != task and self.state.now_s <= asked_s + RESERVED_S and self._waits_elsewhere(first, task):
            return None
        able = [member for member in self.state.crew.of(role) if self._can_take(member, suspect)]
        if not able and role == "t3" and self._make_room():
            able = [member for member in self.state.crew.of(role) if self._can_take(member, suspect)]
        if not able and suspect:
            self._waiting_alone[role] = (task, self.state.now_s)
        elif first == task:
            self._waiting_alone.pop(role, None)
        return min(able, key=lambda member: (member.process != prefer, len(member.streams)), default=None)

    def _can_take(self, member: Member, suspect: bool) -> bool:
        return member.has_room and not (suspect and any(self._works_on(member, t) for t in member.streams.values()))

    def _works_on(self, member: Member, task: Task) -> bool:
        """Whether a worker computes for a stream: not while that waits for credit, tokens or room."""
        utterance = self.state.utterances.get(task.uid)
        segment = utterance.segment(task.segment) if utterance else None
        if utterance is None or segment is None:
            return False
        return was_worked_on(self.state, utterance, segment, member.peer.role)

    def _make_room(self) -> bool:
        """Take a place in t3's batch from a segment whose credit is used up: it goes on from its tokens
        once somebody listens again. Else deaf listeners would silence everybody."""
        for member in self.state.crew.of("t3"):
            for task in list(member.streams.values()):
                utterance = self.state.utterances.get(task.uid)
                segment = utterance.segment(task.segment) if utterance else None
                if segment is not None and not self._works_on(member, task):
                    self._stop_tokens(segment)
                    return True
        return False

    def _waits_elsewhere(self, first: Task, task: Task) -> bool:
        """``first`` still waits, at another output than that of ``task``."""
        owners = self.state.owners
        if first.uid not in owners or owners[first.uid] == owners[task.uid]:
            return False
        return self.state.utterances[first.uid].segment(first.segment) is not None


def was_worked_on(state: State, utterance: Utterance, segment: Segment, role: Role) -> bool:
    """Whether the dead worker can have been at it: not while it waited for credit or a full ring."""
    if role == "t3":
        return segment.granted_s > segment.made_s + 1e-3
    output = state.output_of(utterance)
    fed = segment.tokens > segment.done_tokens or segment.tokens_final
    return fed and (output is None or not full(state, output))


def full(state: State, output: OutputState) -> bool:
    """Whether the ring has hardly any room. Who dies while it writes there is innocent, so nobody is given a segment
    to go on with until there is more: it would be rendered before it waits, and might kill again and again."""
    flow = state.config.flow
    capacity_s = flow.ring_s if output.owner is None else flow.stream_ring_s
    return output.live_fill() / SAMPLE_RATE >= FULL_SHARE * capacity_s
