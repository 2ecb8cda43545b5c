"""A simulated pipeline around the real state machine: workers, rings, listeners, journal and clock.

Tokens and sound are labels, so that what was heard can be compared with what was said: token k of a
segment is its k-th character, and each of its samples carries the label ``(character, k)``.
Everything is deterministic; time moves only by `World.run`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ipc.messages import (
    SAMPLE_RATE,
    AudioFacts,
    CancelStream,
    Event,
    Exited,
    Generate,
    Grant,
    History,
    Internal,
    OpenStream,
    PlayerFacts,
    Probe,
    Probed,
    Processes,
    ProcessState,
    Ready,
    Rendered,
    Request,
    Speak,
    StreamClosed,
    TokenChunk,
    TokenFacts,
    Tokens,
    TokenSample,
    TokenSpan,
    Voice,
)
from pipeline.config import Config
from pipeline.dispatch import Dispatcher
from pipeline.events import (
    Command,
    DiscardBelow,
    DiscardOne,
    GrantLease,
    HoldSpeaker,
    Joined,
    Listen,
    Observed,
    Requested,
    Said,
    Ticked,
    ToClient,
    ToWorker,
    Unlisten,
    Write,
)
from pipeline.journal import AnyRecord, Op, Put, _key
from pipeline.output import RingView
from pipeline.restore import restore_utterance, settle_outputs

TOKEN_SAMPLES = 960
TOKEN_S = TOKEN_SAMPLES / SAMPLE_RATE
STEP_S = 0.01
Label = tuple[str, int]

TOKEN_FACTS = TokenFacts(
    engine="labels",
    voices=(Voice("anna", "Anna", "en"), Voice("otto", "Otto", "de")),
    default_voice="anna",
    languages=("en", "de"),
    settings=(),
    shortest_chars=1,
    longest_chars=200,
    seconds_per_char=TOKEN_S,
    max_batch=8,
    longest_chunk_s=0.4,
    sentence_pause_ms=0,
)
AUDIO_FACTS = AudioFacts("labels", 0, True, 8, TOKEN_S)
PLAYER_FACTS = PlayerFacts("none", "none", SAMPLE_RATE, 512, 0.0)


@dataclass(frozen=True)
class SimPeer:
    role: str
    index: int
    pid: int
    session: int


@dataclass
class SimRing:
    """What the shared memory keeps of one slot."""

    capacity: int
    written: int = 0
    read: int = 0
    lease: int = 0
    below: int = 0
    ones: set[int] = field(default_factory=set)
    paused: bool = False
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    sound: deque[tuple[int, int, Label | None]] = field(default_factory=deque)
    """(first sample, epoch, label) per block of `TOKEN_SAMPLES`, not yet read."""
    heard: list[Label | None] = field(default_factory=list)

    def discarded(self, epoch: int) -> bool:
        return epoch < self.below or epoch in self.ones

    def write(self, epoch: int, segment: int, label: Label | None) -> bool:
        if self.written + TOKEN_SAMPLES - self.read > self.capacity:
            return False
        assert not self.spans or epoch >= self.spans[-1][1], "stints of a slot are numbered upwards"
        if not self.spans or self.spans[-1][1:] != (epoch, segment):
            self.spans.append((self.written, epoch, segment))
        self.sound.append((self.written, epoch, label))
        self.written += TOKEN_SAMPLES
        return True

    def play(self, blocks: int) -> None:
        """The reader takes this many live blocks, skipping what is discarded."""
        while self.sound and self.discarded(self.sound[0][1]):
            self.read = self.sound.popleft()[0] + TOKEN_SAMPLES
        for _ in range(blocks):
            while self.sound and self.discarded(self.sound[0][1]):
                self.read = self.sound.popleft()[0] + TOKEN_SAMPLES
            if self.paused or not self.sound:
                return
            first, _, label = self.sound.popleft()
            self.heard.append(label)
            self.read = first + TOKEN_SAMPLES


@dataclass
class SimWorker:
    """A worker process: an inbox, streams, and what a step does."""

    peer: SimPeer
    inbox: deque[Internal] = field(default_factory=deque)
    ready: bool = False
    outbox: list[Internal] = field(default_factory=list)


@dataclass
class _TokenStream:
    generate: Generate
    made: int
    credit_s: float


@dataclass
class SimT3(SimWorker):
    streams: dict[int, _TokenStream] = field(default_factory=dict)
    chunk: int = 5
    poison: str = "\x00"
    killed_by: str = ""

    def handle(self, message: Internal) -> None:
        match message:
            case Generate():
                self.streams[message.stream] = _TokenStream(message, 0, message.credit_s)
            case History():
                stream = self.streams[message.stream]
                assert stream.made == message.first_token
                assert message.data.decode() == _letters(stream.generate.text, stream.made, message.tokens)
                stream.made += message.tokens
            case Grant():
                if message.stream in self.streams:
                    assert message.credit_s >= self.streams[message.stream].credit_s
                    self.streams[message.stream].credit_s = message.credit_s
            case CancelStream():
                self.streams.pop(message.stream, None)
            case Probe():
                self.outbox.append(Probed(message.probe))

    def step(self) -> None:
        for number, stream in list(self.streams.items()):
            text = stream.generate.text
            if stream.made < stream.generate.history_tokens:
                continue
            if self.poison in text:
                self.killed_by = text
                return
            if stream.made * TOKEN_S >= stream.credit_s and stream.made < len(text):
                continue
            count = min(self.chunk, len(text) - stream.made)
            final = stream.made + count >= len(text)
            spans = tuple(TokenSpan(stream.made + k, stream.made + k, stream.made + k + 1, True) for k in range(count))
            data = _letters(text, stream.made, count).encode()
            self.outbox.append(TokenChunk(number, stream.made, count, data, count * TOKEN_S, spans, final))
            stream.made += count
            if final:
                del self.streams[number]


def _letters(text: str, first: int, count: int) -> str:
    return "".join(char if ord(char) < 128 else "?" for char in text[first : first + count])


@dataclass
class _AudioStream:
    opened: OpenStream
    tokens: str = ""
    final: bool = False
    position: int = 0
    reported: int = 0


@dataclass
class SimS3gen(SimWorker):
    rings: list[SimRing] = field(default_factory=list)
    streams: dict[int, _AudioStream] = field(default_factory=dict)
    poison: str = "\x00"
    killed_by: str = ""
    blocks: int = 3

    def handle(self, message: Internal) -> None:
        match message:
            case OpenStream():
                ring = self.rings[message.slot]
                assert ring.lease == message.lease, "opened without the lease"
                assert not any(stream.opened.slot == message.slot for stream in self.streams.values())
                assert message.first_sample + message.done_samples <= ring.written
                stream = _AudioStream(message, position=message.done_samples // TOKEN_SAMPLES)
                assert message.done_tokens >= min(stream.position, message.done_tokens)
                self.streams[message.stream] = stream
            case Tokens():
                stream = self.streams[message.stream]
                assert len(stream.tokens) == message.first_token
                stream.tokens += message.data.decode()
                stream.final = stream.final or message.final
            case CancelStream():
                self.streams.pop(message.stream, None)
                self.outbox.append(StreamClosed(message.stream))
            case Probe():
                self.outbox.append(Probed(message.probe))

    def step(self) -> None:
        for number, stream in list(self.streams.items()):
            self._render(number, stream)

    def _render(self, number: int, stream: _AudioStream) -> None:
        opened = stream.opened
        ring = self.rings[opened.slot]
        assert ring.lease == opened.lease, "wrote after losing the lease"
        pause = -(-opened.pause_samples // TOKEN_SAMPLES)
        points = []
        for _ in range(self.blocks):
            speech = stream.position < len(stream.tokens)
            if not speech and (not stream.final or stream.position >= len(stream.tokens) + pause):
                break
            label = (stream.tokens[stream.position], stream.position) if speech else None
            if speech and self.poison in stream.tokens:
                self.killed_by = stream.tokens
                return
            at = opened.first_sample + stream.position * TOKEN_SAMPLES
            if at >= ring.written:  # else a dead writer had committed it already
                assert at == ring.written, "left a hole in the ring"
                if not ring.write(opened.epoch, opened.segment, label):
                    break
            if speech:
                points.append(TokenSample(stream.position, stream.position * TOKEN_SAMPLES, True))
            stream.position += 1
        done = stream.final and stream.position >= len(stream.tokens) + pause
        if stream.position > stream.reported or done:
            stream.reported = stream.position
            tokens = min(stream.position, len(stream.tokens))
            samples = stream.position * TOKEN_SAMPLES
            self.outbox.append(Rendered(number, samples, tokens, b"c", tuple(points), 0.001, done))
        if done:
            del self.streams[number]


class World:
    """The whole pipeline, simulated."""

    def __init__(self, config: Config | None = None, workers: int = 1, poison: dict[str, str] | None = None) -> None:
        self.config = config or Config()
        self.now_s = 100.0
        flow = self.config.flow
        speaker, stream = round(flow.ring_s * SAMPLE_RATE), round(flow.stream_ring_s * SAMPLE_RATE)
        streams = self.config.text.max_streams
        self.rings = [SimRing(speaker)] + [SimRing(stream) for _ in range(streams)]
        self.records: dict[tuple[str, int, int, int], AnyRecord] = {}
        self.events: list[tuple[bytes, Event]] = []
        self.pids = itertools.count(1000)
        self.sessions = itertools.count(1)
        self.epoch = 0
        self.workers: list[SimWorker] = []
        self.supervisor = SimPeer("supervisor", 0, 1, 1)
        self.listening: dict[int, dict[int, Listen]] = {}
        self.streamed: dict[str, list[Label | None]] = {}
        self.play_blocks = 1
        self.stuck_clients: set[bytes] = set()
        self.silent: set[str] = set()
        """Workers of these roles work, but what they say stays on its way."""
        self.ear_behind_s = 0.0
        """The player's clock tells of its last block as so much longer ago."""
        self.poison = {"t3": "\x00", "s3gen": "\x00"} | (poison or {})
        """A text that kills the worker of this role which handles it."""
        self._carry = 0.0
        self.machine: Dispatcher
        self.start_dispatcher()
        for index in range(workers):
            self.start_worker("t3", index)
            self.start_worker("s3gen", index)
        self.start_worker("player", 0)

    # ------------------------------------------------------------ processes

    def start_dispatcher(self) -> None:
        """A new dispatcher, from what the journal has."""
        self.epoch += 1
        self.machine = Dispatcher(self.config, epoch=self.epoch, engine="labels", now_s=self.now_s)
        self.listening = {}
        by_uid: dict[int, list[AnyRecord]] = {}
        encoder = msgspec.msgpack.Encoder()
        decoder = msgspec.msgpack.Decoder(AnyRecord)
        for key in sorted(self.records, key=lambda key: (key[1], key[0], key[2], key[3])):
            by_uid.setdefault(key[1], []).append(decoder.decode(encoder.encode(self.records[key])))
        for uid, records in sorted(by_uid.items()):
            restore_utterance(self.machine.state, uid, records)
        epochs = {slot: [span[1] for span in ring.spans] for slot, ring in enumerate(self.rings)}
        settle_outputs(self.machine.state, self._views(), epochs)
        self._do(self.machine.start())
        for worker in self.workers:
            worker.peer = SimPeer(worker.peer.role, worker.peer.index, worker.peer.pid, next(self.sessions))
            self._join(worker)
        self._say(self.supervisor, None)

    def kill_dispatcher(self) -> None:
        """The dispatcher dies and is started again; what was on its way is lost."""
        for worker in self.workers:
            worker.inbox.clear()
            worker.outbox.clear()
            if isinstance(worker, SimT3 | SimS3gen):
                worker.streams.clear()
        self.start_dispatcher()

    def start_worker(self, role: str, index: int) -> SimWorker:
        """A fresh worker says hello and is ready."""
        peer = SimPeer(role, index, next(self.pids), next(self.sessions))
        worker: SimWorker
        if role == "t3":
            worker = SimT3(peer, poison=self.poison[role])
        elif role == "s3gen":
            worker = SimS3gen(peer, rings=self.rings, poison=self.poison[role])
        else:
            worker = SimWorker(peer)
        self.workers.append(worker)
        self._join(worker)
        self._say(self.supervisor, None)
        return worker

    def _join(self, worker: SimWorker) -> None:
        facts = {"t3": TOKEN_FACTS, "s3gen": AUDIO_FACTS, "player": PLAYER_FACTS}[worker.peer.role]
        self._do(self.machine.handle(Joined(worker.peer), self.now_s))
        self._do(self.machine.handle(Observed(self._views()), self.now_s))
        self._do(self.machine.handle(Said(worker.peer, Ready(facts)), self.now_s))

    def _say(self, peer: SimPeer, message: Internal | None) -> None:
        """The supervisor reports the process table, or something else."""
        self._do(self.machine.handle(Joined(self.supervisor), self.now_s))
        if message is None:
            table = (ProcessState(w.peer.role, w.peer.index, w.peer.pid, "RUNNING") for w in self.workers)
            message = Processes(tuple(table))
        self._do(self.machine.handle(Observed(self._views()), self.now_s))
        self._do(self.machine.handle(Said(peer, message), self.now_s))

    def worker(self, role: str) -> SimWorker:
        return next(worker for worker in self.workers if worker.peer.role == role)

    def kill(self, role: str, restart: bool = True) -> None:
        """SIGKILL one worker; what it had sent but was not received is lost."""
        worker = self.worker(role)
        self.workers.remove(worker)
        peer = worker.peer
        self._say(self.supervisor, Exited(peer.role, peer.index, peer.pid, "killed"))  # type: ignore[arg-type]
        if restart:
            self.start_worker(role, peer.index)

    # ------------------------------------------------------------ programs

    def request(self, request: Request, client: bytes = b"me", req: bool = False) -> None:
        """A program sends a request."""
        self._do(self.machine.handle(Observed(self._views()), self.now_s))
        self._do(self.machine.handle(Requested(client, req, request), self.now_s))

    def speak(self, text: str, id: str = "a", client: bytes = b"me", **fields: object) -> None:
        """A program speaks."""
        self.request(Speak(id=id, text=text, **fields), client)  # type: ignore[arg-type]

    def events_of(self, kind: type, id: str | None = None) -> list[Event]:
        """Events of one type, of one utterance."""
        return [e for _, e in self.events if isinstance(e, kind) and (id is None or getattr(e, "id", None) == id)]

    # ------------------------------------------------------------ time

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now_s + seconds
        while self.now_s < until:
            self.step()

    def run_until(self, done: Callable[[], bool], limit_s: float = 600.0) -> None:
        """Let time pass until something is true (looked at ten times a second)."""
        until = self.now_s + limit_s
        while not done():
            assert self.now_s < until, f"nothing happened in {limit_s} simulated seconds"
            self.run(0.1)

    def step(self) -> None:
        """A hundredth of a second: workers, reader, listeners, dispatcher."""
        self.now_s += STEP_S
        for worker in list(self.workers):
            while worker.inbox:
                self._handle(worker, worker.inbox.popleft())
            if isinstance(worker, SimT3 | SimS3gen):
                worker.step()
                if worker.killed_by:
                    self.kill(worker.peer.role)
                    continue
            if worker.peer.role in self.silent:
                continue
            for message in worker.outbox:
                self._do(self.machine.handle(Observed(self._views()), self.now_s))
                self._do(self.machine.handle(Said(worker.peer, message), self.now_s))
            worker.outbox.clear()
        self._carry += STEP_S * SAMPLE_RATE / TOKEN_SAMPLES * self.play_blocks
        blocks = int(self._carry)
        self._carry -= blocks
        self.rings[0].play(blocks)
        for slot in list(self.listening):
            self._listen(slot, self.rings[slot])
        self._do(self.machine.handle(Observed(self._views()), self.now_s))
        self._do(self.machine.handle(Ticked(), self.now_s))

    def _handle(self, worker: SimWorker, message: Internal) -> None:
        if isinstance(worker, SimT3 | SimS3gen):
            worker.handle(message)

    def _listen(self, slot: int, ring: SimRing) -> None:
        listens = self.listening.get(slot, {})
        while ring.sound and not ring.discarded(ring.sound[0][1]):
            listen = listens.get(ring.sound[0][1])
            if listen is None or listen.client in self.stuck_clients:
                return
            before = len(ring.heard)
            ring.play(1)
            self.streamed.setdefault(listen.id, []).extend(ring.heard[before:])
        ring.play(0)

    # ------------------------------------------------------------ what the shell does

    def _views(self) -> dict[int, RingView]:
        views = {}
        for output in self.machine.state.outputs.values() if hasattr(self, "machine") else ():
            ring = self.rings[output.slot]
            views[output.slot] = RingView(ring.written, ring.read, ring.read, self.now_s - self.ear_behind_s)
        return views

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Write():
                    self._write(command.op)
                case ToWorker(peer, message):
                    for worker in self.workers:
                        if worker.peer == peer:
                            worker.inbox.append(message)
                case ToClient(client, _, event):
                    self.events.append((client, event))
                case GrantLease(slot, lease):
                    self.rings[slot].lease = lease
                case DiscardBelow(slot, epoch):
                    self.rings[slot].below = max(self.rings[slot].below, epoch)
                case DiscardOne(slot, epoch):
                    self.rings[slot].ones.add(epoch)
                case HoldSpeaker(paused):
                    self.rings[0].paused = paused
                case Listen():
                    self.listening.setdefault(command.slot, {})[command.epoch] = command
                case Unlisten():
                    places = self.listening.get(command.slot, {})
                    self.listening[command.slot] = {e: p for e, p in places.items() if p.uid != command.uid}

    def _write(self, op: Op) -> None:
        if isinstance(op, Put):
            self.records[_key(op.record)] = op.record
            return
        kinds = {kind.__name__ for kind in op.kinds}
        for key in list(self.records):
            kind, uid, segment, _ = key
            if uid == op.uid and (not kinds or (kind in kinds and op.first <= segment <= op.last)):
                del self.records[key]

    def heard(self, slot: int = 0) -> str:
        """The characters that were heard, in order."""
        return "".join(label[0] for label in self.rings[slot].heard if label is not None)
