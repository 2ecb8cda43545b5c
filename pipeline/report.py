"""What the dispatcher tells of itself: status, watch, ping, the queues' fill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ipc.messages import SAMPLE_RATE, Pong, Probe, StatusReport, UtteranceStatus, VoiceAdded, Watch, Work
from ipc.messages import State as StateEvent
from pipeline.events import ToClient, ToWorker, VoiceStored
from pipeline.state import State
from pipeline.utterance import Utterance

PING_TIMEOUT_S = 2.0
MEASURE_EVERY_S = 0.01
"""How often queue fills are looked at, at most: under load events come more often than that."""

SPEAKING_LISTED = 8
TEXT_LISTED_CHARS = 160


@dataclass
class _Watcher:
    """A client that wants states. ``read``: how much of the timeline it was told; None: it did not ask."""

    every_s: float
    at_s: float
    read: int | None


@dataclass
class _Probing:
    """A ping on its way through the workers."""

    client: bytes
    req: bool
    sent_s: float
    waiting: set[tuple[str, int]]
    workers_ms: dict[str, float] = field(default_factory=dict)


class Reports:
    """Answers questions about the pipeline."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._watchers: dict[bytes, _Watcher] = {}
        self._probes: dict[int, _Probing] = {}
        self._next_probe = 0
        self._measured_s = float("-inf")

    # ---------------------------------------------------------------- status

    def status(self) -> StatusReport:
        """Everything, once."""
        return StatusReport(**self._fields())

    def _fields(self) -> dict[str, Any]:
        state = self.state
        now_s = state.now_s
        facts = state.crew.player_facts
        stats = state.crew.player_stats
        player: dict[str, str | int | float | bool] = {}
        if facts is not None:
            player |= {
                "output": facts.output,
                "device": facts.device,
                "device_rate_hz": facts.device_rate_hz,
                "latency_ms": round(facts.latency_ms, 2),
                "note": facts.note,
            }
        if stats is not None:
            player |= {
                "state": stats.state,
                "output": stats.output,
                "device": stats.device,
                "starvations": stats.starvations,
                "output_underflows": stats.output_underflows,
                "reopens": stats.reopens,
                "callback_p99_ms": round(stats.callback_p99_ms, 2),
                "note": stats.note,
            }
        return {
            "engine": state.engine,
            "engine_reason": state.engine_reason,
            "uptime_s": round(now_s - state.started_s, 3),
            "paused": state.paused,
            "healthy": self._healthy(),
            "stages": state.crew.shares(now_s),
            "queues": {name: gauge.fill(now_s) for name, gauge in state.counters.queues.items()},
            "latencies": {name: window.summary() for name, window in state.counters.latencies.items()},
            "counters": dict(state.counters.counts),
            "speaking": tuple(self._speaking()),
            "queued": len(state.open_utterances),
            "player": player,
        }

    def _healthy(self) -> bool:
        crew = self.state.crew
        fatal = any(process.state == "FATAL" for process in crew.processes.values())
        return not fatal and bool(crew.of("t3")) and bool(crew.of("s3gen")) and bool(crew.of("player"))

    def _speaking(self) -> list[UtteranceStatus]:
        ordered = sorted(self.state.open_utterances, key=lambda utterance: (not utterance.begun, utterance.order))
        return [_utterance_status(utterance) for utterance in ordered[:SPEAKING_LISTED]]

    # ---------------------------------------------------------------- watch

    def watch(self, client: bytes, request: Watch) -> None:
        """Send states to a client from now on, or no more."""
        if request.every_ms == 0:
            self._watchers.pop(client, None)
        else:
            read = self.state.timeline.count if request.timeline else None
            self._watchers[client] = _Watcher(request.every_ms / 1000, self.state.now_s, read)

    def forget(self, client: bytes) -> None:
        """The client is gone."""
        self._watchers.pop(client, None)

    # ---------------------------------------------------------------- ping

    def ping(self, client: bytes, req: bool) -> None:
        """Probe every engine worker's loop."""
        members = [member for role in ("t3", "s3gen") for member in self.state.crew.of(role)]
        self._next_probe += 1
        probe = (self.state.epoch << 32) | self._next_probe
        waiting: set[tuple[str, int]] = {(member.peer.role, member.peer.index) for member in members}
        self._probes[probe] = _Probing(client, req, self.state.now_s, waiting)
        for member in members:
            self.state.emit(ToWorker(member.peer, Probe(probe)))

    def probed(self, role: str, index: int, probe: int) -> None:
        """A worker answered."""
        probing = self._probes.get(probe)
        if probing is None or (role, index) not in probing.waiting:
            return
        probing.waiting.discard((role, index))
        probing.workers_ms[f"{role}-{index}"] = round((self.state.now_s - probing.sent_s) * 1000, 3)

    def voice_added(self, stored: VoiceStored) -> VoiceAdded:
        """The answer to a piece of a new voice."""
        return VoiceAdded(voice=stored.voice, received_bytes=stored.received_bytes, complete=stored.complete)

    # ---------------------------------------------------------------- time

    def tick(self) -> float | None:
        """Send what is due; when to come again (None: no need)."""
        state = self.state
        due: list[float] = []
        for client, watcher in self._watchers.items():
            if state.now_s >= watcher.at_s:
                news = StateEvent(**self._fields(), timeline=self._timeline_for(watcher))
                state.emit(ToClient(client, False, news, droppable=True))
                watcher.at_s = max(watcher.at_s + watcher.every_s, state.now_s)
            due.append(watcher.at_s)
        for probe, probing in list(self._probes.items()):
            until_s = probing.sent_s + PING_TIMEOUT_S
            if not probing.waiting or state.now_s >= until_s:
                del self._probes[probe]
                state.emit(ToClient(probing.client, probing.req, Pong(workers_ms=probing.workers_ms)))
            else:
                due.append(until_s)
        return min(due, default=None)

    def _timeline_for(self, watcher: _Watcher) -> tuple[Work, ...]:
        if watcher.read is None:
            return ()
        told, watcher.read = watcher.read, self.state.timeline.count
        return self.state.timeline.since(told)

    def measure(self) -> None:
        """Set the gauges to what stands now."""
        state = self.state
        if state.now_s < self._measured_s + MEASURE_EVERY_S:
            return
        self._measured_s = state.now_s
        queues, now_s = state.counters.queues, state.now_s
        granted_s = tokens_s = 0.0
        for utterance in state.utterances.values():
            for segment in utterance.unrendered():
                tokens_s += segment.unrendered_s
                if segment.t3_stream is not None:
                    granted_s += max(0.0, segment.granted_s - segment.made_s)
        queues["text_waiting"].set(state.text_waiting_chars, now_s)
        queues["utterances"].set(len(state.open_utterances), now_s)
        queues["credit_in_flight"].set(granted_s, now_s)
        queues["tokens_waiting"].set(tokens_s, now_s)
        listeners = 0
        for output in state.outputs.values():
            if output.owner is None:
                queues["ring"].set(output.live_fill() / SAMPLE_RATE, now_s)
                queues["device"].set(output.view.device_s, now_s)
            else:
                listeners += output.live_fill()
        queues["stream_rings"].set(listeners / SAMPLE_RATE, now_s)


def _utterance_status(utterance: Utterance) -> UtteranceStatus:
    heard = utterance.heard_chars
    start = max(utterance.text_start, heard - TEXT_LISTED_CHARS // 2)
    return UtteranceStatus(
        id=utterance.id,
        conversation=utterance.record.conversation,
        output=utterance.output,
        priority=utterance.record.priority,
        state="speaking" if utterance.begun else "queued",
        chars=utterance.given_chars,
        heard_chars=heard,
        text=utterance.slice(start, start + TEXT_LISTED_CHARS),
        text_from=start,
    )
