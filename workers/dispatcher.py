"""The dispatcher process: sockets, journal, rings and clock around `pipeline.dispatch`.

Each turn of the loop: wait for messages, show the state machine the rings' cursors and what has
arrived, write its journal entries in one transaction, carry out the rest, send sound to listeners.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ipc.channels import DispatcherSockets, FromClient, FromWorker, Malformed
from ipc.codec import ProtocolError, decode_request
from ipc.messages import Accepted, Bye, Exited, Failed, Hello, Ready, Rejected, TokenFacts
from ipc.ring import Arena, RingControl
from pipeline.config import Config
from pipeline.dispatch import Dispatcher
from pipeline.engines.base import EngineError, check_settings, load_engine
from pipeline.events import (
    ClientBack,
    ClientGone,
    Command,
    Confirm,
    DiscardBelow,
    DiscardOne,
    GrantLease,
    HoldSpeaker,
    Joined,
    Listen,
    Observed,
    Reattach,
    Requested,
    Said,
    StoreVoice,
    ToClient,
    ToWorker,
    Unlisten,
    VoicesFound,
    VoiceStored,
    Write,
)
from pipeline.journal import Journal, Op, UtteranceRecord
from pipeline.output import RingView
from pipeline.restore import restore_utterance, settle_outputs
from pipeline.text import TextSegmenter
from pipeline.voices import VoiceError, VoiceStore
from workers.life import Life, run
from workers.listeners import Listeners
from workers.outbox import Outbox

IDLE_WAIT_S = 0.5
BLOCKED_WAIT_S = (0.0005, 0.016)
"""When a full socket is tried again: soon (a burst of events fills it for some microseconds), then ever later."""

RETRY_GONE_S = 0.1
JOURNAL_RETRY_S = 0.2
COMPLAIN_EVERY_S = 10.0


class DispatcherProcess:
    """Everything around the state machine."""

    def __init__(self, life: Life, config: Config, arena: Arena) -> None:
        self._life = life
        self._config = config
        self._arena = arena
        self._complained_s = float("-inf")
        self._journal = self._open_journal()
        epoch = arena.next_epoch()
        self._voices = VoiceStore(Path(config.voices.folder))
        engine = load_engine(config.model.engine)
        self.machine = Dispatcher(
            config,
            epoch=epoch,
            engine=engine.name,
            engine_reason=config.model.reason,
            resolve=engine.resolve,
            voices=self._voices.names(),
            now_s=time.monotonic(),
        )
        self._counts = self.machine.state.counters.counts
        self._controls: dict[int, RingControl] = {slot: arena.control(slot) for slot in range(arena.slots)}
        self.sockets = DispatcherSockets(life.endpoints.work, config.text.bind, epoch, config.text.curve, life.wake_fd)
        life.endpoints.text.write_text(self.sockets.bound_text + "\n")
        self._outbox = Outbox(self.sockets, self._counts)
        self._listeners = Listeners(arena, self._outbox.send_audio, config.text.retain_s)
        self._retry_gone_s = 0.0
        self._blocked_wait_s = BLOCKED_WAIT_S[0]
        self._kept = 0
        self._busy_s = self._starved_s = 0.0
        self._turned_s = time.monotonic()

    # ---------------------------------------------------------------- life

    def _open_journal(self) -> Journal:
        """The journal; on a full disk, once there is room for it."""
        while True:
            try:
                return Journal(self._life.endpoints.journal)
            except sqlite3.Error as error:
                self._complain(f"journal {self._life.endpoints.journal}: {error}; waiting until it can be opened")
                self._life.progress.progress("waiting for the journal", self._config.supervise.hang_s)
                time.sleep(JOURNAL_RETRY_S)
                if self._life.leaving:
                    raise

    def _suspect(self, uid: int) -> None:
        """Note on which utterance this process would have died; 0: none any more."""
        try:
            self._journal.set_fact("suspect", uid)
        except sqlite3.Error as error:
            self._journal_lost(1, error)

    def _journal_lost(self, writes: int, error: sqlite3.Error) -> None:
        """A journal that cannot be written (a full disk) costs the safety net, not the speech."""
        self._counts["journal_writes_lost"] += writes
        self._complain(f"journal {self._life.endpoints.journal}: {error}; speech goes on without it")

    def restore(self) -> None:
        """Take back what the journal knows. A record that cannot be read is set aside, and so is one
        on which a predecessor died."""
        journal, state = self._journal, self.machine.state
        orphans: list[tuple[int, str]] = []
        suspect = journal.fact("suspect")
        for uid in journal.utterances():
            try:
                if uid == suspect:
                    raise ValueError("a dispatcher died while it read this")
                self._suspect(uid)
                restore_utterance(state, uid, journal.load(uid))
            except Exception as error:  # noqa: BLE001 (whatever is wrong with it, the others go on)
                orphans.append((uid, f"{type(error).__name__}: {error}"))
        self._suspect(0)
        for uid, reason in orphans:
            self._set_aside(uid, reason)
        self._counts["restored_utterances"] += len(state.utterances)
        state.paused = self._controls[0].paused
        epochs = {slot: [span.epoch for span in control.spans()] for slot, control in self._controls.items()}
        settle_outputs(state, self._views(), epochs)
        self._carry_out(self.machine.start())
        _warm_up()

    def _set_aside(self, uid: int, reason: str) -> None:
        print(f"journal: utterance {uid} is set aside: {reason}", file=sys.stderr, flush=True)
        self._counts["set_aside"] += 1
        state = self.machine.state
        utterance = state.utterances.pop(uid, None)
        if utterance is not None:
            state.leave_lane(utterance)
            state.by_key.pop((utterance.client, utterance.id), None)
            state.owners.pop(uid, None)
        try:
            heads = [record for record in self._journal.load(uid) if isinstance(record, UtteranceRecord)]
        except msgspec.MsgspecError:
            heads = []
        for head in heads:
            failed = Failed(id=head.id, reason=f"its journal cannot be read: {reason}", chars=(0, 0), final=True)
            self._outbox.send(head.client, head.req, failed)
        try:
            self._journal.set_aside(uid, reason)
        except sqlite3.Error as error:
            self._journal_lost(1, error)

    def run(self) -> None:
        """Serve until told to leave."""
        progress, config = self._life.progress, self._config.supervise
        progress.ready(f"text socket at {self.sockets.bound_text}")
        report_s = 0.0
        while not self._life.leaving:
            now_s = time.monotonic()
            if now_s >= report_s:
                progress.progress("work", config.hang_s)
                report_s = now_s + config.progress_s
            self.turn(min(self._wait_s(now_s), report_s - now_s))

    def close(self) -> None:
        """Let go of everything."""
        self.sockets.close(linger_ms=200)
        self._journal.close()

    def _wait_s(self, now_s: float) -> float:
        wait_s = min(IDLE_WAIT_S, self.machine.next_wakeup_s - now_s)
        if self._outbox.pending or self._listeners.blocked:
            wait_s = min(wait_s, self._blocked_wait_s)
        return max(0.0, wait_s)

    # ---------------------------------------------------------------- one turn

    def turn(self, timeout_s: float) -> None:
        """Wait, handle what came, and send sound until no listener takes more."""
        asked_s = time.monotonic()
        arrived = self.sockets.poll(timeout_s)
        received_s = time.monotonic()
        self._busy_s += asked_s - self._turned_s
        self._starved_s += received_s - asked_s
        self._turned_s = received_s
        self.machine.state.crew.dispatcher_s = (self._busy_s, self._starved_s)
        if arrived and not self._outbox.pending:  # a report of sound need not be read before the sound is sent
            self._listeners.pump_new(received_s)
        commands = self.machine.handle(Observed(self._views(), more=bool(arrived)), received_s)
        for item in arrived:
            match item:
                case FromClient():
                    commands += self._request(item, received_s)
                case FromWorker():
                    commands += self._worker(item, received_s)
                case Malformed():
                    self._malformed(item)
        self._carry_out(commands, received_s)
        # Events that wait go first: while there are any, their client gets no sound.
        moved = self._flush(time.monotonic())
        if self._listeners.pump(time.monotonic()):
            moved = True
            now_s = time.monotonic()
            self._carry_out(self.machine.handle(Observed(self._views()), now_s))
        self._pace_retries(moved)

    def _pace_retries(self, moved: bool) -> None:
        """Whoever was served, or has just begun to wait, is tried again soon; who does not read, seldom."""
        kept, self._kept = self._kept, self._outbox.kept
        blocked = self._outbox.pending or self._listeners.blocked
        if moved or not blocked or kept != self._outbox.kept:
            self._blocked_wait_s = BLOCKED_WAIT_S[0]
        else:
            self._blocked_wait_s = min(2 * self._blocked_wait_s, BLOCKED_WAIT_S[1])

    def _flush(self, now_s: float) -> bool:
        """Send events that wait; whether any were taken."""
        retry = now_s >= self._retry_gone_s
        if retry:
            self._retry_gone_s = now_s + RETRY_GONE_S
        moved = self._outbox.flush(retry)
        if retry:
            self._outbox.expire(now_s, 2 * self._config.text.detach_s)
        back, self._outbox.newly_back = self._outbox.newly_back, []
        for client in back:
            self._carry_out(self.machine.handle(ClientBack(client), now_s))
        gone, self._outbox.newly_gone = self._outbox.newly_gone, []
        for client in gone:
            self._voices.forget(client)
            self._carry_out(self.machine.handle(ClientGone(client), now_s))
        return moved

    def _views(self) -> dict[int, RingView]:
        """The cursors of every slot in use."""
        views = {}
        for output in self.machine.state.outputs.values():
            slot = output.slot
            control = self._controls[slot]
            if output.owner is None:
                state = control.reader_state()
                ear_s = state.dac_ns / 1e9
                views[slot] = RingView(
                    control.written, control.read, state.dac_sample, ear_s, state.underruns, state.latency_ns / 1e9
                )
            else:
                sent, read = self._listeners.position(slot), control.read
                views[slot] = RingView(
                    control.written,
                    read,
                    read if sent is None else sent,
                    0.0,
                    oldest=self._listeners.oldest(slot),
                    resending=self._listeners.resending(slot),
                )
        return views

    # ---------------------------------------------------------------- in

    def _request(self, item: FromClient, received_s: float) -> list[Command]:
        self._outbox.back(item.client)
        try:
            request = decode_request(item.payload)
        except ProtocolError as error:
            self._counts["malformed_requests"] += 1
            rejected = Rejected(request=error.request, field=error.field, reason=error.reason, id=error.id)
            self._outbox.send(item.client, item.req, rejected)
            return []
        commands = self._look_for_voices(received_s)
        return commands + self.machine.handle(Requested(item.client, item.req, request), received_s)

    def _look_for_voices(self, now_s: float) -> list[Command]:
        """What was put into the voices' folder by hand, or taken out of it, before a request may name it."""
        if not self._voices.changed():
            return []
        return self.machine.handle(VoicesFound(self._voices.names()), now_s)

    def _malformed(self, item: Malformed) -> None:
        self._counts["malformed_requests"] += 1
        rejected = Rejected(request="", field="", reason=item.reason)
        self._outbox.send(item.client, item.req, rejected, droppable=True)

    def _worker(self, item: FromWorker, received_s: float) -> list[Command]:
        commands: list[Command] = []
        match item.message:
            case Hello():
                return self.machine.handle(Joined(item.peer), received_s)
            case Bye():
                return []
            case Exited(role=role, index=index, pid=pid):
                for peer in self.sockets.peers:
                    if (peer.role, peer.index, peer.pid) == (role, index, pid):
                        self.sockets.forget(peer)
                commands += self.machine.handle(Observed(self._views(), more=True), received_s)
            case Ready(facts=TokenFacts() as facts):
                self._check_defaults(facts)
            case _:
                pass
        return commands + self.machine.handle(Said(item.peer, item.message), received_s)

    def _check_defaults(self, facts: TokenFacts) -> None:
        """Try the configured voice and settings before a program does; this also loads what the
        engine's own rules load at their first use."""
        config = self._config
        voice = "" if config.voices.default == "builtin" else config.voices.default
        try:
            check_settings(facts, config.model.settings)
            if voice not in self._voices.names():
                self.machine.state.resolve(facts, voice, config.voices.language)
        except EngineError as error:
            print(f"pipeline.yaml: {error}; requests that rely on it are refused", file=sys.stderr, flush=True)

    # ---------------------------------------------------------------- out

    def _carry_out(self, commands: Iterable[Command], received_s: float | None = None) -> None:
        """Early journal writes in one transaction, everything else in order, late journal writes."""
        early: list[Op] = []
        late: list[Op] = []
        rest: list[Command] = []
        for command in commands:
            if isinstance(command, Write):
                (late if command.late else early).append(command.op)
            else:
                rest.append(command)
        self._write(early)
        for command in rest:
            self._do(command, received_s)
        self._write(late)

    def _write(self, ops: list[Op]) -> None:
        if not ops:
            return
        try:
            self._journal.write(ops)
        except sqlite3.Error as error:
            self._journal_lost(len(ops), error)

    def _complain(self, message: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._complained_s + COMPLAIN_EVERY_S:
            self._complained_s = now_s
            print(message, file=sys.stderr, flush=True)

    def _do(self, command: Command, received_s: float | None) -> None:
        match command:
            case ToWorker(peer, message):
                self.sockets.send_worker(peer, message)  # type: ignore[arg-type]
            case ToClient(client, req, event, droppable):
                self._outbox.send(client, req, event, droppable)
                if isinstance(event, Accepted) and received_s is not None:
                    hop = self.machine.state.counters.latencies["accepted"]
                    hop.add((time.monotonic() - received_s) * 1000)
            case GrantLease(slot, lease):
                self._controls[slot].grant(lease)
            case DiscardBelow(slot, epoch):
                self._controls[slot].discard_below(epoch)
            case DiscardOne(slot, epoch):
                self._controls[slot].discard_one(epoch)
            case HoldSpeaker(paused):
                self._controls[0].pause(paused)
            case Listen():
                self._listeners.listen(command)
            case Reattach():
                self._listeners.reattach(command)
            case Confirm():
                self._listeners.confirm(command)
            case Unlisten():
                self._listeners.unlisten(command)
            case StoreVoice():
                self._store_voice(command)
            case Write():
                self._write([command.op])

    def _store_voice(self, command: StoreVoice) -> None:
        name, client, req = command.voice, command.client, command.req
        try:
            received, complete = self._voices.add(client, name, command.offset, command.total_bytes, command.data)
        except VoiceError as error:
            stored = VoiceStored(client, req, name, 0, False, str(error), error.field)
        else:
            stored = VoiceStored(client, req, name, received, complete)
        self._carry_out(self.machine.handle(stored, time.monotonic()))


def _warm_up() -> None:
    """Have the text front end load what it loads at its first use, so that the first request need not."""
    segmenter = TextSegmenter("en", 300)
    segmenter.feed("One clause, and **another**. A second sentence: 3.5 of them! ")
    segmenter.end()


def serve(life: Life) -> None:
    """The process: restore, serve, close."""
    config = life.config()
    process = DispatcherProcess(life, config, Arena.attach(life.arguments.arena))
    try:
        process.restore()
        process.run()
    finally:
        process.close()


def main() -> int:
    """Entry point of ``python -m workers.dispatcher``."""
    return run("dispatcher", serve)


if __name__ == "__main__":
    sys.exit(main())
