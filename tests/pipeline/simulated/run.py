"""One schedule played in a machine room, and what must hold after every event of it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from ipc.messages import (
    SAMPLE_RATE,
    Accepted,
    Aligned,
    Attach,
    Audio,
    Cancel,
    Cancelled,
    End,
    Event,
    Failed,
    Finished,
    Flush,
    Generate,
    Grant,
    Pause,
    Priority,
    Progress,
    Received,
    Rejected,
    Request,
    Resume,
    Speak,
    Started,
    Text,
)
from pipeline.credit import next_cut
from pipeline.events import Command, GrantLease, Requested, ToClient, ToWorker
from pipeline.journal import Op, PlacedRecord, Put, TokensRecord
from pipeline.state import State
from pipeline.utterance import Utterance
from tests.pipeline.simulated import books
from tests.pipeline.simulated.processes import T3, Process, S3gen
from tests.pipeline.simulated.programs import Program
from tests.pipeline.simulated.room import MachineRoom
from tests.pipeline.simulated.schedules import LETTERS, Action, Schedule
from tests.pipeline.simulated.setup import FULL_SCALE, TOKEN_S, TOKEN_SAMPLES
from tests.pipeline.simulated.speech import Sound, Speech, Violation

CONFIRMING = "rst"
"""Programs that say what has arrived."""

WHOLE_TRAIL_S = 2.0
"""Smaller rings keep less for programs that do not."""

CONFIRM_SAMPLES = SAMPLE_RATE // 4

ATTENTION_S = 0.3
"""A dispatcher that lives and is not held up has carried out a cancel by then."""

STALL_S = 8.0
"""After the last fault nothing may stand still for so long."""

QUIET_S = 120.0
"""After the last action everything is over by then."""

SETTLE_S = 3.5
RESTORE_EVERY = 16
"""After every so many turns the journal is compared with what the dispatcher knows."""


@dataclass
class Outcome:
    """What a run saw."""

    seed: int
    turns: int = 0
    commands: int = 0
    utterances: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    simulated_s: float = 0.0


class Run(MachineRoom):
    """Plays one schedule and looks after every event whether all is well."""

    def __init__(self, plan: Schedule) -> None:
        super().__init__(plan.setup)
        self.plan = plan
        self.speeches: dict[str, Speech] = {}
        self.letters: dict[str, tuple[Speech, int]] = {}
        self.token = (0, 0)
        """Label that sounds, and for how many samples it has."""
        self.playing: Speech | None = None
        self.moved_s = 0.0
        """When something was last heard, received or over."""
        self.tokens_since: dict[int, int] = {}
        """Per utterance, the turn in which its first tokens came."""
        self.recent_cancels: list[tuple[float, Callable[[Speech], bool]]] = []
        """What was asked to be cancelled lately, and until when that may concern what comes."""
        self.killed: Counter[tuple[str, str]] = Counter()
        """How often a text has killed a worker of a role."""
        self.flushed: dict[int, int] = {}
        """Utterances flushed in this turn, and how long their texts were."""
        self.unreliable: set[str] = set()
        """Programs that have not always read, or have left: their streams may be given up."""
        self.pending_since_s: dict[int, float] = {}
        """Utterances whose last words wait for more, and since when."""
        self.disturbed_s = 0.0
        """When something was last done to the dispatcher, or to a worker."""
        self.ended_early = False
        """The dispatcher ended a growing text by itself."""
        self.trace: deque[str] | None = None

    def fault(self) -> None:
        self.disturbed_s = self.clock.now_s + self.setup.load_s + self.setup.restart_s

    def fail(self, promise: str) -> None:
        raise Violation(f"at {self.clock.now_s - 100:.3f} s: {promise}")

    def play(self) -> Outcome:
        """Everything, to the end."""
        setup = self.setup
        self.start_dispatcher()
        self.connect(self.supervisor.dealer)
        for index in range(setup.t3):
            self.start("t3", index)
        for index in range(setup.s3gen):
            self.start("s3gen", index)
        self.start("player", 0)
        for name in "pqrst":
            program = self.programs[name.encode()] = Program(self, name.encode())
            program.confirms = name in CONFIRMING or setup.stream_ring_s < WHOLE_TRAIL_S
            program.connected()
        for action in self.plan.actions:
            self.clock.at(100 + action.at_s, lambda action=action: self._act(action))  # type: ignore[misc]
        last_s = 100 + (self.plan.actions[-1].at_s if self.plan.actions else 0.0) + 1.2
        while self.clock.now_s < last_s:
            self.clock.step()
        self._calm_down()
        until_s = self.clock.now_s + QUIET_S
        while not self._all_over():
            if self.clock.now_s > max(self.moved_s, last_s) + STALL_S or self.clock.now_s > until_s:
                self.fail(f"nothing moves any more; open: {self._open()}")
            self.clock.step()
        settled_s = self.clock.now_s + SETTLE_S
        while self.clock.now_s < settled_s:
            self.clock.step()
        self._nothing_left()
        endings = Counter(type(s.ending).__name__ if s.ending else "refused" for s in self.speeches.values())
        deaths = Counter(self.deaths)
        return Outcome(
            setup.seed, self.turns, self.commands, len(self.speeches), deaths, endings, self.clock.now_s - 100
        )

    def _open(self) -> str:
        return ", ".join(
            f"{s.id} (accepted {s.accepted is not None})" for s in self.speeches.values() if not self._over(s)
        )

    def _over(self, speech: Speech) -> bool:
        if self.programs[speech.program.encode()].left and speech.accepted is None:
            return True
        return speech.refused or (speech.ending is not None and self._reached(speech))

    def _reached(self, speech: Speech) -> bool:
        """Its ending has reached its program, unless that has left."""
        return bool(speech.arrived) or self.programs[speech.program.encode()].left

    def _all_over(self) -> bool:
        return (
            self.dispatcher is not None
            and not self.dispatcher.machine.state.utterances
            and all(self._over(speech) for speech in self.speeches.values())
        )

    def _calm_down(self) -> None:
        """No more faults: programs read or have left, the speaker plays."""
        self._die_after = -1
        self.poison = {"t3": "", "s3gen": ""}
        self.moved_s = self.clock.now_s
        for program in self.programs.values():
            if not program.left:
                program.read(True)
        self._say("p" if not self.programs[b"p"].left else "q", Resume())

    # ---------------------------------------------------------------- actions

    def _act(self, action: Action) -> None:
        self.note(action)
        who, more = action.who, action.more
        match action.what:
            case "speak":
                self._speak(who, *more)
            case "text":
                self._text(*more)
            case "flush" if self._live(more[0]):
                self._say(self.speeches[more[0]].program, Flush(id=more[0]))
            case "end" if self._live(more[0]):
                speech = self.speeches[more[0]]
                speech.ended = True
                self._say(speech.program, End(id=more[0], offset=len(speech.text)))
            case "cancel":
                self._cancel(who, *more)
            case "pause":
                self._say(who, Pause())
            case "resume":
                self._say(who, Resume())
            case "attach":
                self._attach(who, *more)
            case "deaf":
                self.unreliable.add(who)
                self.programs[who.encode()].read(False)
            case "listen":
                self.programs[who.encode()].read(True, *more)
            case "leave":
                self._leave(self.programs[who.encode()])
            case "return":
                program = self.programs[who.encode()]
                if program.left:
                    program.left = False
                    program.connected()
            case "drain":
                self.supervisor.drain()
            case "kill" if who == "dispatcher":
                self.kill_dispatcher(*more)
            case "poison":
                self.poison[who] += more[0]
                self._may_fail(more[0])
            case "bad":
                self.bad[who] += more[0]
                self._may_fail(more[0])
            case "refuse":
                self.refusing[who] = self.clock.now_s + more[0]
            case "slow":
                self.slow[who] = (self.clock.now_s + more[0], more[1])
            case "stall" if who == "dispatcher":
                self.stall_dispatcher(*more)
                self.disturbed_s = self.clock.now_s + more[0]
            case _:
                self._strike(action)

    def _strike(self, action: Action) -> None:
        role, _, index = action.who.partition("-")
        process: Process | None = self.supervisor if role == "supervisor" else self.find(role, int(index or 0))
        if process is None:
            return
        match action.what:
            case "kill" if action.more[0] in ("now", "kept"):
                self.died(process, action.more[0] == "kept", self.setup.restart_s + action.more[1])
            case "kill":
                process.die_at = action.more[0]
            case "cut" if process.dealer.line is not None:
                self.cut(process)
            case "stall":
                process.stalled_s = self.clock.now_s + action.more[0]
            case _:
                return

    def _live(self, id_: str) -> bool:
        speech = self.speeches.get(id_)
        return speech is not None and not speech.ended and speech.ending is None and not speech.refused

    def _say(self, program: str, request: Request) -> None:
        self.programs[program.encode()].say(request)

    def _speak(
        self, who: str, id_: str, text: str, output: Any, conversation: str, priority: Priority, final: bool
    ) -> None:
        if self.programs[who.encode()].left or (final and not text.strip()):
            return
        confirms = output == "stream" and self.programs[who.encode()].confirms
        fields = {"output": output, "conversation": conversation, "priority": priority, "final": final}
        request = Speak(id=id_, text=text, seed=1, confirms=confirms, **fields)
        speech = Speech(request, who, who, "", final)
        self.speeches[id_] = speech
        self._grow(speech, text)
        self._send_speak(speech)
        speech.may_be_cancelled = any(
            self.clock.now_s < until_s and concerns(speech) for until_s, concerns in self.recent_cancels
        )
        if priority == "interrupt":
            self._expect_cancels(lambda other: other is not speech and other.request.output == output, [])

    def _send_speak(self, speech: Speech) -> None:
        self._say(speech.program, speech.request)

    def _grow(self, speech: Speech, text: str) -> None:
        for at, letter in enumerate(text, len(speech.text)):
            if letter in LETTERS:
                self.letters[letter] = (speech, at)
        speech.text += text
        for mood in (self.bad, self.poison):
            speech.may_fail |= any(letter in text for letters in mood.values() for letter in letters)

    def _text(self, id_: str, text: str) -> None:
        if self._live(id_) and not self.programs[self.speeches[id_].program.encode()].left:
            speech = self.speeches[id_]
            offset = len(speech.text)
            self._grow(speech, text)
            self._say(speech.program, Text(id=id_, text=text, offset=offset))

    def _cancel(self, who: str, what: str, name: str = "") -> None:
        if self.programs[who.encode()].left:
            return

        def concerns(speech: Speech) -> bool:
            if what == "id":
                return speech.id == name
            return what == "all" or speech.request.conversation == name

        mine = [s for s in self.speeches.values() if s.program == who and concerns(s)]
        if what == "id":
            for speech in mine:
                speech.cancelling = True
        surely = mine if what != "all" else [s for s in self.speeches.values() if s.accepted is not None]
        self._expect_cancels(concerns, [s for s in surely if s.accepted is not None])
        self._say(who, Cancel(**{what: True if what == "all" else name}))  # type: ignore[arg-type]

    def _expect_cancels(self, concerns: Callable[[Speech], bool], surely: list[Speech]) -> None:
        """What may be cancelled from now on, and what must be soon."""
        self.recent_cancels.append((self.clock.now_s + 2.0, concerns))
        for speech in self.speeches.values():
            speech.may_be_cancelled = speech.may_be_cancelled or concerns(speech)
        self._expect_ends(surely)

    def _expect_ends(self, surely: list[Speech]) -> None:
        """These are over soon, unless the dispatcher dies or is held up."""
        there, asked_s = self.dispatcher, self.clock.now_s

        def check() -> None:
            undisturbed = self.dispatcher is there is not None and self._dispatcher_stalled_s < asked_s
            left = [s.id for s in surely if s.ending is None and not s.refused and not self._told_before(s)]
            if undisturbed and left:
                self.fail(f"{', '.join(left)} should be cancelled by now")

        if surely:
            self.clock.after(ATTENTION_S + self.setup.latency_s, check)

    def _told_before(self, speech: Speech) -> bool:
        """A dispatcher that died had already decided that it was heard to its end: there is nothing to cancel."""
        utterances = self.dispatcher.machine.state.utterances if self.dispatcher is not None else {}
        utterance = utterances.get(speech.accepted or 0)
        return utterance is not None and utterance.told_before

    def _attach(self, who: str, id_: str) -> None:
        speech = self.speeches.get(id_)
        program = self.programs[who.encode()]
        if speech is None or speech.ending is not None or speech.accepted is None or program.left:
            return
        if speech.program == who or any(s.id == id_ for s in self.speeches.values() if s is not speech):
            return
        old = speech.sounds.get(speech.program)
        first = old.next if old else 0
        program.say(Attach(id=id_, from_sample=first, confirms=program.confirms))
        speech.before, speech.program = speech.program, who
        speech.sounds[who] = Sound(first, [], first, first)

    def _leave(self, program: Program) -> None:
        program.leave()
        self.unreliable.add(program.name.decode())

    def _may_fail(self, letter: str) -> None:
        for speech in self.speeches.values():
            speech.may_fail |= letter in speech.text

    # ---------------------------------------------------------------- programs

    def happened(self, event: object) -> None:
        if isinstance(event, Requested) and isinstance(event.request, Speak | Attach):
            speech = self.speeches.get(event.request.id)  # whoever attaches late is told the end again
            if speech is not None:
                speech.asked[self.epoch] += 1
        if isinstance(event, Requested) and isinstance(event.request, Flush):
            state = self.state
            uid = state.by_key.get((event.client, event.request.id))
            if uid is not None and state.crew.token_facts is not None and not state.utterances[uid].ended:
                self.flushed[uid] = state.utterances[uid].given_chars
        self.note(f"    {event!s:.200}")

    def reconnected(self, program: Program) -> None:
        """As `ipc.client` does: say again what may have been lost."""
        for speech in self.speeches.values():
            if speech.program != program.name.decode() or speech.arrived or speech.refused:
                continue
            if speech.opener == speech.program:
                program.say(speech.request)
            if speech.cancelling:
                program.say(Cancel(id=speech.id))
                continue
            if speech.request.output == "stream" and speech.accepted is not None:
                sound = speech.sounds.get(speech.program)
                first = sound.next if sound else 0
                program.say(Attach(id=speech.id, from_sample=first, confirms=program.confirms))
                if sound is not None:
                    sound.confirmed = first
            if not speech.request.final:
                at = len(speech.request.text)
                if speech.text[at:]:
                    program.say(Text(id=speech.id, text=speech.text[at:], offset=at))
                if speech.ended:
                    program.say(End(id=speech.id, offset=len(speech.text)))

    def received(self, program: Program, epoch: int, event: Event, pcm: memoryview | None) -> None:
        speech = self.speeches.get(getattr(event, "id", None) or "")
        if speech is None:
            return
        name = program.name.decode()
        self.moved_s = self.clock.now_s
        match event:
            case Audio():
                assert pcm is not None
                self._got_sound(speech, program, event, bytes(pcm))
                self._confirm(speech, program, CONFIRM_SAMPLES)
            case Rejected(request="speak"):
                if not self.supervisor.draining:
                    self.fail(f"{speech.id} is refused: {event.field}: {event.reason}")
                speech.refused = True
            case Rejected(request="attach"):
                if speech.ending is not None:
                    speech.arrived.add(name)
                elif speech.before and speech.program == name:
                    speech.program, speech.before = speech.before, ""
                elif speech.program == name and not self._may_lose(program):
                    self.fail(f"the sound of {speech.id} is lost: {event.reason}")
            case Finished() | Cancelled() | Failed(final=True):
                speech.arrived.add(name)
                self._confirm(speech, program, 1)
                if isinstance(event, Finished):
                    self._made_before_heard(speech, event)
                if isinstance(event, Finished) and speech.request.output == "stream" and name == speech.program:
                    self._whole_stream(speech, name, event)
            case _:
                pass

    def _confirm(self, speech: Speech, program: Program, at_least: int) -> None:
        sound = speech.sounds.get(program.name.decode())
        if program.confirms and sound is not None and sound.next - sound.confirmed >= at_least:
            sound.confirmed = sound.next
            program.say(Received(id=speech.id, samples=sound.next))

    def _may_lose(self, program: Program) -> bool:
        """It has not read for a while and confirms nothing: more may have been on its way when a dispatcher
        died than its successor sends again."""
        return self.epoch > 1 and program.name.decode() in self.unreliable and not program.confirms

    def _got_sound(self, speech: Speech, program: Program, event: Audio, pcm: bytes) -> None:
        name = program.name.decode()
        labels = np.frombuffer(pcm, "<i2")
        sound = speech.sounds.get(name)
        if sound is None:
            sound = speech.sounds[name] = Sound(0)
        if event.first_sample > sound.next and self._may_lose(program):
            sound = speech.sounds[name] = Sound(event.first_sample, [], event.first_sample, event.first_sample)
        if event.first_sample > sound.next and name in self.unreliable:
            return  # it has just come back, and its `attach` is on the way
        if event.first_sample > sound.next:
            self.fail(f"{name} misses samples {sound.next} to {event.first_sample} of {speech.id}")
        known = sound.next - event.first_sample
        if known:
            had = np.concatenate(sound.labels) if sound.labels else labels[:0]
            at = event.first_sample - sound.first
            again = had[max(at, 0) : at + len(labels)] if at >= 0 else labels[:0]
            if at >= 0 and not np.array_equal(again, labels[: len(again)]):
                self.fail(f"{speech.id} sounds different when it is sent again, from sample {event.first_sample}")
        if known < len(labels):
            sound.labels.append(labels[known:])
            sound.next += len(labels) - known

    def _whole_stream(self, speech: Speech, name: str, event: Finished) -> None:
        sound = speech.sounds.get(name) or Sound(0)
        if name in self.unreliable:
            return
        if sound.next != event.samples:
            self.fail(f"{name} has {sound.next} of {event.samples} samples of {speech.id} at its end")
        if sound.first:
            return
        speech.last = -1
        labels = np.concatenate(sound.labels) if sound.labels else np.zeros(0, np.int16)
        for code, count in runs(labels):
            if code:
                self._token(speech, code)
                if count != TOKEN_SAMPLES and not speech.failed:
                    self.fail(f"{speech.id}: {count} samples of {chr(code // 8)!r}")
        self._nothing_owed(speech, event, "sent")

    def _made_before_heard(self, speech: Speech, event: Finished) -> None:
        if event.started_ms is None:
            return
        if event.first_audio_ms is None or not 0 < event.first_audio_ms <= event.started_ms:
            self.fail(
                f"{speech.id} was heard after {event.started_ms} ms, but its first sample made after "
                f"{event.first_audio_ms}"
            )

    def _nothing_owed(self, speech: Speech, event: Finished, how: str) -> None:
        """All of the text was heard. (A writer who was silent for too long has more than was taken.)"""
        self._look_for_early_ends()
        owed = [at for at in speech.owed if at < event.chars or not self.ended_early]
        if owed and not self._failure_untold(speech):
            self.fail(f"{speech.id} is finished, but {speech.text[owed[0]]!r} was not {how}")

    def _look_for_early_ends(self) -> None:
        if self.dispatcher is not None:
            self.ended_early |= self.supervisor.draining or self.state.counters.counts["idle_texts_ended"] > 0

    def _failure_untold(self, speech: Speech) -> bool:
        """A dispatcher died when it had given up a segment, and before it could say so."""
        may_have = speech.may_fail or self.deaths.get("t3", 0) >= 2 or self.deaths.get("s3gen", 0) >= 2
        return self.epoch > 1 and may_have

    # ---------------------------------------------------------------- the ear

    def heard(self, samples: Any) -> None:
        self.moved_s = self.clock.now_s
        for code, count in runs(np.rint(samples * FULL_SCALE).astype(np.int64)):
            before, had = self.token
            if code == before:
                self.token = (code, had + count)
                if code and had + count > TOKEN_SAMPLES:
                    self.fail(f"{self._name(code)} sounds for {had + count} samples")
                continue
            if before and had != TOKEN_SAMPLES:
                speech = self.letters[chr(before // 8)][0]
                if not speech.may_be_cancelled and not speech.failed:
                    self.fail(f"{self._name(before)} breaks off after {had} samples")
            self.token = (code, count)
            if code:
                self._sounds(code)

    def _name(self, code: int) -> str:
        speech, at = self.letters[chr(code // 8)]
        return f"{speech.text[at : at + 1 + code % 8]!r} of {speech.id}"

    def _sounds(self, code: int) -> None:
        """A token begins to sound."""
        speech = self.letters[chr(code // 8)][0]
        if speech.request.output != "speaker":
            self.fail(f"{self._name(code)} is not for the speaker")
        if speech.silenced:
            self.fail(f"{self._name(code)} is heard after it was cancelled")
        if self.playing is not speech:
            self._next_in_turn(speech)
            self.playing = speech
        self._token(speech, code)

    def _token(self, speech: Speech, code: int) -> None:
        """The next token of an utterance: none twice, none left out."""
        other, at = self.letters[chr(code // 8)]
        at += code % 8
        if other is not speech:
            self.fail(f"{self._name(code)} is heard as {speech.id}")
        if at <= speech.last:
            self.fail(f"{self._name(code)} is heard again, after {speech.text[: speech.last + 1][-8:]!r}")
        missing = [speech.text[k] for k in speech.owed if k < at]
        # Some of what is cancelled may be discarded already when the dispatcher dies, and the rest not yet.
        cancelled_in_part = self.dispatcher is None and speech.may_be_cancelled
        if missing and not cancelled_in_part and not self._failure_untold(speech):
            self.fail(f"{self._name(code)} is heard before {''.join(missing)!r}")
        speech.last = at

    def _next_in_turn(self, speech: Speech) -> None:
        """What its conversation said before has been heard."""
        for other in self.speeches.values():
            if (
                other is not speech
                and other.accepted is not None
                and speech.accepted is not None
                and other.accepted < speech.accepted
                and (other.program, other.request.conversation, other.request.output)
                == (speech.program, speech.request.conversation, "speaker")
                and other.ending is None
                and not other.may_be_cancelled
                and (other.owed if other.ended else True)
                and not self._ended_by_itself(other)
            ):
                self.fail(f"{speech.id} is heard before {other.id} of its conversation is over")

    def _ended_by_itself(self, speech: Speech) -> bool:
        """The dispatcher has ended a text whose writer was silent, or everything, and it was heard."""
        if self.dispatcher is None:
            return True
        state = self.dispatcher.machine.state
        uid = state.by_key.get((speech.program.encode(), speech.id))
        if uid is None:
            return True
        utterance = state.utterances[uid]
        return utterance.ended and not [at for at in speech.owed if at < utterance.given_chars]

    # ---------------------------------------------------------------- commands

    def note(self, what: object) -> None:
        """For whoever wants to see what led to a violation."""
        if self.trace is not None:
            self.trace.append(f"{self.clock.now_s - 100:8.4f}  {what!s:.220}")

    def commanded(self, command: Command) -> None:
        self.note(command)
        match command:
            case ToClient(event=event):
                speech = self.speeches.get(getattr(event, "id", None) or "")
                if speech is not None:
                    self._told(speech, event)
            case GrantLease(slot, lease) if lease:
                self._lease_passes(slot)
            case ToWorker(message=Generate() | Grant() as message):
                self._credit_given(message)
            case _:
                pass

    def _told(self, speech: Speech, event: Event) -> None:
        epoch = self.epoch
        match event:
            case Accepted():
                self._accepted(speech)
            case Finished() | Cancelled() | Failed(final=True):
                self._ends(speech, event)
            case Failed():
                self._may_have_failed(speech, event)
                speech.failed.append(event.chars)
            case Started() | Progress() | Aligned() if speech.ending is not None and speech.ending_epoch == epoch:
                self.fail(f"{type(event).__name__} of {speech.id} comes after its ending")
            case Progress(chars=chars):
                known, last = speech.progress
                if known == epoch and chars < last:
                    self.fail(f"{speech.id} was heard up to {last}, now to {chars}")
                speech.progress = (epoch, chars)
                if not any(self.deaths.values()):  # else it may be a guess
                    self._not_more_than_heard(speech, chars)
            case _:
                pass

    def _accepted(self, speech: Speech) -> None:
        assert self.dispatcher is not None
        state = self.dispatcher.machine.state
        uid = state.by_key.get((speech.program.encode(), speech.id))
        if speech.accepted is None:
            speech.accepted = uid or 0
            code, had = self.token
            utterance = state.utterances.get(uid or 0)
            # Accepted once before, in a message that was lost, it has silenced others then and not now.
            new = utterance is not None and utterance.record.received_s >= state.now_s
            urgent = speech.request.priority == "interrupt" and speech.request.output == "speaker"
            if new and urgent and had < TOKEN_SAMPLES:
                self._expect_ends([self.letters[chr(code // 8)][0]] if code else [])
        if uid is not None and (uid, "UtteranceRecord", 0, 0) not in self.pages.records:
            self.fail(f"{speech.id} is accepted and not in the journal")

    def _ends(self, speech: Speech, event: Event) -> None:
        epoch = self.epoch
        speech.told[epoch] += 1
        if speech.told[epoch] > max(1, speech.asked[epoch] + (epoch > 1)):
            self.fail(f"{speech.id} ends {speech.told[epoch]} times, now with {type(event).__name__}")
        before, speech.ending = speech.ending, event
        if before is not None:
            if type(before) is not type(event):
                self.fail(f"{speech.id} ends with {type(before).__name__} and with {type(event).__name__}")
            return
        speech.ending_epoch = epoch
        self.moved_s = self.clock.now_s
        if isinstance(event, Cancelled):
            lost = speech.request.output == "stream" and speech.program in self.unreliable
            if not speech.may_be_cancelled and not lost:
                self.fail(f"{speech.id} is cancelled, and nobody asked for it")
            speech.silenced = True
            if not speech.text.startswith(event.heard):
                self.fail(f"{speech.id}: {event.heard!r} is told to be heard, which is not its beginning")
            if event.exact:
                self._not_more_than_heard(speech, event.chars)
        elif isinstance(event, Failed):
            self._may_have_failed(speech, event)
        elif speech.request.output == "speaker":
            self._nothing_owed(speech, event, "heard")

    def _may_have_failed(self, speech: Speech, event: Failed) -> None:
        if not speech.may_fail and self.deaths.get("t3", 0) < 2 and self.deaths.get("s3gen", 0) < 2:
            self.fail(f"{speech.id} fails without a reason: {event.reason}")

    def _not_more_than_heard(self, speech: Speech, chars: int) -> None:
        if speech.request.output != "speaker" or self.setup.guess < 1:
            return
        early = [at for at in speech.owed if at < chars - 1]
        if (early and speech.last >= 0) or len(early) > 1:
            self.fail(f"{speech.id} is told to be heard up to {chars}, it was up to {speech.last + 1}")

    def _lease_passes(self, slot: int) -> None:
        """No other process may write to the slot any more."""
        state = self.state
        output = state.by_slot(slot)
        for process in self.processes:
            if not isinstance(process, S3gen) or not process.alive or slot not in process.writes_to:
                continue
            if output is None or output.holder != (process.index, process.pid):
                self.fail(f"{process.name} still writes to slot {slot}, and the lease passes to another")

    def _credit_given(self, message: Generate | Grant) -> None:
        state = self.state
        found = next((m.streams[message.stream] for m in state.crew.of("t3") if message.stream in m.streams), None)
        utterance = state.utterances.get(found.uid) if found else None
        segment = utterance.segment(found.segment) if utterance and found else None
        if utterance is None or segment is None:
            return
        output = state.output_of(utterance)
        fill_s = 0.0
        owner = state.owner_of(utterance)
        levels = {other.level for other in state.utterances.values() if state.owner_of(other) == owner}
        if output is not None and len(levels) == 1:
            others = [
                s for s in output.stints if (s.uid, s.index) != (utterance.uid, segment.index) and not s.discarded
            ]
            gone = output.view.read if owner is None else max(output.view.read, output.view.ear_sample)
            fill_s = sum(max(0, s.end - max(s.start, gone)) for s in others) / SAMPLE_RATE
        rendered_s = segment.made_s - segment.unrendered_s
        most_s = max(0.0, state.config.flow.ahead_s - fill_s)
        if self.setup.guess < 1:
            return  # what is not rendered yet is longer than t3 believed
        # But not so little that t3 and s3gen wait for each other.
        rung = 3 * self.setup.t3_tokens
        if self.setup.ladder:
            rung = next_cut(segment.rungs or (self.setup.first_chunk,), segment.done_tokens) - segment.done_tokens
        most_s = max(most_s, (rung + self.setup.lookahead) * TOKEN_S * max(1.0, self.setup.guess))
        if message.credit_s - rendered_s > most_s + 1e-6:
            self.fail(
                f"{utterance.id} may be made {message.credit_s - rendered_s:.2f} s ahead of the ring, "
                f"{most_s:.2f} s are left of flow.ahead_s"
            )

    def journaled(self, ops: list[Op]) -> None:
        for op in ops:
            self.note(op)
            if isinstance(op, Put) and isinstance(op.record, TokensRecord):
                self.tokens_since.setdefault(op.record.uid, self.turns)
            elif isinstance(op, Put) and isinstance(op.record, PlacedRecord):
                self._placed(op.record)

    def _placed(self, record: PlacedRecord) -> None:
        """Nothing more urgent that could be rendered waits for its turn."""
        state = self.state
        utterance = state.utterances.get(record.uid)
        if utterance is None:
            return
        lane = [u for u in state.lanes.get(state.owner_of(utterance), []) if u.order != utterance.order]
        levels: dict[Any, int] = {}
        heads: dict[Any, Utterance] = {}
        for other in [*lane, utterance]:
            levels[other.conversation] = max(levels.get(other.conversation, 0), other.level)
        for other in sorted(lane, key=lambda other: other.order):
            heads.setdefault(other.conversation, other)
        for head in heads.values():
            waiting = head.unrendered()
            if head.conversation == utterance.conversation:
                if head.order < utterance.order:
                    self.fail(f"{utterance.id} gets its place before {head.id} of its conversation")
            elif (
                levels[head.conversation] > levels[utterance.conversation]
                and waiting
                and waiting[0].chunks
                and self.tokens_since.get(head.uid, self.turns) < self.turns
            ):
                self.fail(f"{utterance.id} gets its place before {head.id}, which is more urgent")

    # ---------------------------------------------------------------- after every event

    @property
    def state(self) -> State:
        assert self.dispatcher is not None
        return self.dispatcher.machine.state

    def turned(self) -> None:
        state = self.state
        self._look_for_early_ends()
        assert self.dispatcher is not None
        journal = self.dispatcher._journal
        known = books.journal_knows(state, journal.load) if self.turns % RESTORE_EVERY == 0 else ()
        found = chain(books.agree(state), books.streams_agree(state), books.bounded(state), known)
        for flaw in chain(found, books.journal_is_pruned(state, self.pages.records)):
            self.fail(flaw)
        self._nothing_held_back(state)
        for process in self.processes:
            if isinstance(process, T3) and len(process.streams) > 2 * self.setup.t3_batch:
                self.fail(f"{process.name} holds {len(process.streams)} streams")

    def deadly(self, role: str, text: str) -> bool:
        """Whether a worker that speaks this dies: no more than so often."""
        if not super().deadly(role, text):
            return False
        self.killed[role, text] += 1
        if self.killed[role, text] > 3 * (1 + self.deaths.get("dispatcher", 0)) + 2:
            self.fail(f"{text!r} has killed {self.killed[role, text]} workers")
        return True

    def _nothing_held_back(self, state: State) -> None:
        """A growing text waits for its next words no longer than ``flow.flush_ms``, and not at all when it
        is flushed."""
        late_s = self.setup.flush_ms / 1000 + ATTENTION_S
        for uid, chars in self.flushed.items():
            utterance = state.utterances.get(uid)
            if utterance is None or utterance.given_chars > chars or utterance.fed < chars:
                continue
            if utterance.flush_at < chars and self._pending(state, uid):
                self.fail(f"{utterance.id} is flushed, and some of it is held back")
        self.flushed.clear()
        for uid, utterance in state.utterances.items():
            waits = not utterance.ended and utterance.fed == utterance.given_chars and self._pending(state, uid)
            if not waits or state.crew.token_facts is None:
                self.pending_since_s.pop(uid, None)
            elif state.now_s > late_s + max(
                self.pending_since_s.setdefault(uid, state.now_s), utterance.last_text_s, self.disturbed_s
            ):
                self.fail(f"{utterance.id} holds back its last words")

    @staticmethod
    def _pending(state: State, uid: int) -> bool:
        return uid in state.segmenters and state.segmenters[uid].pending_chars > 0

    # ---------------------------------------------------------------- at the end

    def _nothing_left(self) -> None:
        state = self.state
        if set(state.outputs) != {None} or not state.outputs[None].free:
            self.fail(f"outputs are left: {list(state.outputs)}, or the speaker is not free")
        if any(lane for lane in state.lanes.values()):
            self.fail(f"lanes are left: {state.lanes}")
        for process in self.processes:
            if isinstance(process, T3 | S3gen) and len(process.streams):
                self.fail(f"{process.name} still holds {len(process.streams)} streams")
        if self.dispatcher is not None and self.dispatcher._listeners._slots:
            self.fail(f"listeners' slots are left: {self.dispatcher._listeners.slots}")
        kinds = {kind for _, kind, _, _ in self.pages.records}
        if not kinds <= {"DoneRecord"}:
            self.fail(f"the journal keeps {sorted(kinds)}")
        if len(self.pages.records) > len(self.speeches):
            self.fail("the journal remembers more endings than there were utterances")
        reader = self.arena.reader(0)
        reader.skip_discarded()
        if reader.read != reader.written:
            self.fail(f"{reader.written - reader.read} samples are left in the speaker's ring")
        if self.supervisor.draining and not self.supervisor.drained:
            self.fail("the supervisor was never told that everything is over")


def runs(labels: Any) -> Iterator[tuple[int, int]]:
    """Stretches of equal labels, and how long each is."""
    if not len(labels):
        return
    ends = [*(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    first = 0
    for end in ends:
        yield int(labels[first]), end - first
        first = end
