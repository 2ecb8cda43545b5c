"""The workers as the dispatcher sees them: who is there, what they hold, whom to give work to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ipc.messages import AudioFacts, PlayerFacts, PlayerStats, ProcessState, Role, StageShare, TokenFacts, WorkerStats
from pipeline.counters import EXACT_DIGITS


class Peer(Protocol):
    """A worker's connection; a new session is a new peer."""

    @property
    def role(self) -> Role: ...
    @property
    def index(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def session(self) -> int: ...


class Task(NamedTuple):
    """What a stream is: a segment of an utterance, rendered into a slot (-1: its tokens)."""

    uid: int
    segment: int
    slot: int = -1


@dataclass
class Member:
    """One connected worker."""

    peer: Peer
    facts: TokenFacts | AudioFacts | PlayerFacts | None = None
    ready_s: float = 0.0
    streams: dict[int, Task] = field(default_factory=dict)
    alone: int | None = None
    """A suspect stream that must not share this worker."""
    stats: WorkerStats = field(default_factory=lambda: WorkerStats(0.0, 0.0, 0.0, 0))

    @property
    def process(self) -> tuple[int, int]:
        """(index, pid): what the supervisor calls it."""
        return self.peer.index, self.peer.pid

    @property
    def capacity(self) -> int:
        """Streams it can hold at once."""
        return self.facts.max_batch if isinstance(self.facts, TokenFacts | AudioFacts) else 0

    @property
    def has_room(self) -> bool:
        """Whether it may be given one more stream. s3gen renders its open streams in turns, and the
        slots bound them; t3 holds every stream in its batch."""
        return self.alone is None and (self.peer.role == "s3gen" or len(self.streams) < self.capacity)


class Crew:
    """All connected workers, and the processes that the supervisor reports."""

    def __init__(self) -> None:
        self.members: dict[tuple[Role, int, int], Member] = {}
        self.supervisor: Peer | None = None
        self.processes: dict[tuple[Role, int], ProcessState] = {}
        self.player_stats: PlayerStats | None = None
        self.dispatcher_s = (0.0, 0.0)
        """Seconds that the dispatcher itself was busy and starved."""

    def join(self, peer: Peer) -> Member | None:
        """A peer said hello; the member it replaces (an earlier session of the same process)."""
        if peer.role == "supervisor":
            self.supervisor = peer
            return None
        key = (peer.role, peer.index, peer.pid)
        former = self.members.get(key)
        self.members[key] = Member(peer)
        return former

    def member(self, peer: Peer) -> Member | None:
        """The member of this very session."""
        found = self.members.get((peer.role, peer.index, peer.pid))
        return found if found and found.peer.session == peer.session else None

    def leave(self, role: Role, index: int, pid: int) -> Member | None:
        """A process is gone; what it was."""
        return self.members.pop((role, index, pid), None)

    def of(self, role: Role) -> list[Member]:
        """Ready members of a role, lowest index first."""
        ready = [member for member in self.members.values() if member.peer.role == role and member.facts is not None]
        return sorted(ready, key=lambda member: member.peer.index)

    @property
    def token_facts(self) -> TokenFacts | None:
        """What the token half declares, once one is ready."""
        return next((member.facts for member in self.of("t3") if isinstance(member.facts, TokenFacts)), None)

    @property
    def player_facts(self) -> PlayerFacts | None:
        """Where sound goes, once the player is ready."""
        return next((member.facts for member in self.of("player") if isinstance(member.facts, PlayerFacts)), None)

    def stream(self, peer: Peer, stream: int) -> Task | None:
        """The task of a live stream of this very peer; None for what is stale."""
        member = self.member(peer)
        return member.streams.get(stream) if member else None

    def cleared(self, peer: Peer, stream: int) -> None:
        """A suspect has come further than its predecessor: others may share its worker again."""
        member = self.member(peer)
        if member is not None and member.alone == stream:
            member.alone = None

    def end_stream(self, stream: int) -> Member | None:
        """The stream is over; the member that had it."""
        for member in self.members.values():
            if stream in member.streams:
                del member.streams[stream]
                if member.alone == stream:
                    member.alone = None
                return member
        return None

    def shares(self, now_s: float) -> tuple[StageShare, ...]:
        """How every process spends its time, as reported last."""
        rows = []
        seen = set()
        for member in self.members.values():
            peer, stats = member.peer, member.stats
            seen.add((peer.role, peer.index))
            process = self.processes.get((peer.role, peer.index))
            spent_s = (stats.busy_s, stats.starved_s, stats.blocked_s)
            state = process.state if process else ("RUNNING" if member.facts else "STARTING")
            streams = len(member.streams) or stats.streams
            rows.append(_share(f"{peer.role}-{peer.index}", state, peer.pid, spent_s, streams, process))
        for (role, index), process in self.processes.items():
            if (role, index) not in seen:
                spent_s = (*self.dispatcher_s, 0.0) if role == "dispatcher" else (0.0, 0.0, 0.0)
                rows.append(_share(f"{role}-{index}", process.state, process.pid, spent_s, 0, process))
        order = {"dispatcher": 0, "t3": 1, "s3gen": 2, "player": 3, "gateway": 4}
        rows.sort(key=lambda row: (order.get(row.worker.rsplit("-", 1)[0], 9), row.worker))
        return tuple(rows)


def _share(
    worker: str, state: str, pid: int, spent_s: tuple[float, float, float], streams: int, process: ProcessState | None
) -> StageShare:
    """``spent_s``: busy, starved and blocked since READY, or in all the time so far."""
    total_s = sum(spent_s)
    busy, starved, blocked = (round(seconds / max(total_s, 1e-9), EXACT_DIGITS) for seconds in spent_s)
    return StageShare(
        worker=worker,
        state=state,
        busy=busy,
        starved=starved,
        blocked=blocked,
        streams=streams,
        restarts=process.restarts if process else 0,
        pid=pid,
        rss_bytes=process.rss_bytes if process else 0,
        cpu_s=process.cpu_s if process else 0.0,
        over_s=round(total_s, 4),
    )
