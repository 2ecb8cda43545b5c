"""Requests of programs: checked, journaled, answered.

Every request is answered: with the event that its type promises, with `Rejected` naming the field
and the limit, or, for a REQ client that must get something, with `Ok`.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import replace

import msgspec

from ipc.messages import (
    Accepted,
    Attach,
    Cancel,
    Cancelled,
    End,
    Event,
    Flush,
    Ok,
    Pause,
    Paused,
    Ping,
    Played,
    Received,
    Rejected,
    Request,
    Resume,
    Resumed,
    Speak,
    Status,
    Text,
    VoiceAdd,
    VoiceList,
    Voices,
    Watch,
)
from pipeline import cutting
from pipeline.engines.base import EngineError, check_settings
from pipeline.events import Confirm, HoldSpeaker, Reattach, Requested, StoreVoice, ToClient, VoiceStored
from pipeline.hearing import Hearing
from pipeline.journal import Put, TextRecord, UtteranceRecord
from pipeline.report import Reports
from pipeline.state import State
from pipeline.utterance import Utterance

HELD_REQUESTS = 1000
"""Requests that wait for the engine to load."""


class RequestError(ValueError):
    """A request cannot be taken: ``field`` is at fault."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


class Intake:
    """Takes requests."""

    def __init__(self, state: State, hearing: Hearing, reports: Reports) -> None:
        self.state = state
        self.hearing = hearing
        self.reports = reports
        self._held: deque[Requested] = deque()

    def take(self, requested: Requested) -> None:
        """Handle a request now, or once the engine has loaded."""
        request = requested.request
        always = isinstance(request, Status | Watch | Ping | Pause | Resume | Cancel)
        # What concerns an utterance that is accepted (restored, perhaps) needs no engine.
        always |= (requested.client, getattr(request, "id", None)) in self.state.by_key
        if isinstance(request, Cancel) and self._cancel_held(requested.client, request):
            self._answer(requested, Ok(request="cancel", id=request.id))
        elif not always and (self._held or self.state.crew.token_facts is None):
            self._hold(requested)
        else:
            self._handle(requested)

    def _hold(self, requested: Requested) -> None:
        if len(self._held) >= HELD_REQUESTS:
            reason = f"the engine is still loading and {HELD_REQUESTS} requests wait for it; try again later"
            self._answer(requested, self._rejected(requested.request, "type", reason))
            return
        self._held.append(requested)

    def _cancel_held(self, client: bytes, request: Cancel) -> bool:
        """Cancel what is not even accepted yet; whether that was all that there is to cancel."""
        victims = {
            (held.client, held.request.id): held
            for held in self._held
            if isinstance(held.request, Speak)
            and (
                request.all
                or (held.client == client and request.id == held.request.id)
                or (held.client == client and request.conversation == held.request.conversation)
            )
        }
        self._held = deque(
            held for held in self._held if (held.client, getattr(held.request, "id", None)) not in victims
        )
        for key, held in victims.items():
            cancelled = Cancelled(id=key[1], heard="", chars=0, exact=True, seconds=0.0)
            if key in self.state.done:
                self._answer(held, self.state.done[key][1])
            else:
                self._answer(held, cancelled)
                self.state.remember_new(key, cancelled)
        known = any(self._matches(utterance, client, request) for utterance in self.state.utterances.values())
        return bool(victims) and not known

    def drop_held(self) -> None:
        """The pipeline stops before the engine has loaded: refuse what waits for it."""
        while self._held:
            held = self._held.popleft()
            reason = "the pipeline is shutting down and takes no more text"
            self._answer(held, self._rejected(held.request, "type", reason))

    def engine_ready(self) -> None:
        """Handle what waited for the engine."""
        while self._held:
            self._handle(self._held.popleft())

    def _handle(self, requested: Requested) -> None:
        try:
            answer = self._dispatch(requested)
        except RequestError as error:
            answer = self._rejected(requested.request, error.field, str(error))
        if answer is not None:
            self._answer(requested, answer)

    def _dispatch(self, requested: Requested) -> Event | None:
        """The answer, or None when it is given elsewhere (or a DEALER needs none)."""
        request, client, req = requested.request, requested.client, requested.req
        match request:
            case Speak():
                return self._speak(client, req, request)
            case Text():
                self._text(client, request)
            case Flush():
                cutting.flush(self.state, self._growing(client, request.id))
            case End():
                utterance = self._growing(client, request.id)
                _check_offset(utterance, request)
                cutting.end(self.state, utterance)
            case Cancel():
                return self._cancel(client, req, request)
            case Attach():
                self._attach(client, req, request)
                return None
            case Received():
                self._received(client, request)
            case Played():
                self._played(client, request)
            case Pause() | Resume():
                return self._pause(isinstance(request, Pause))
            case Voices():
                return self._voices()
            case VoiceAdd():
                self._voice_add(client, req, request)
                return None
            case Status():
                return self.reports.status()
            case Watch():
                self.reports.watch(client, request)
            case Ping():
                self.reports.ping(client, req)
                return None
        return Ok(request=_kind(request), id=getattr(request, "id", None)) if req else None

    def _answer(self, requested: Requested, event: Event) -> None:
        self.state.emit(ToClient(requested.client, requested.req, event))

    def _rejected(self, request: Request, field: str, reason: str) -> Rejected:
        self.state.counters.counts["rejected"] += 1
        return Rejected(request=_kind(request), field=field, reason=reason, id=getattr(request, "id", None))

    # ---------------------------------------------------------------- speak

    def _speak(self, client: bytes, req: bool, request: Speak) -> Accepted | None:
        key = (client, request.id)
        if key in self.state.by_key:
            return _accepted(self.state.utterances[self.state.by_key[key]])
        if key in self.state.done:
            return self._speak_again(client, req, request)
        if any((one.record.opened_by, one.id) == key for one in self.state.utterances.values()):
            raise RequestError("id", f"another client has attached to {request.id!r}; it speaks on there")
        self._check_speak(req, request)
        voice, language = self._resolve(request)
        state = self.state
        seed = request.seed if request.seed is not None else secrets.randbits(31)
        record = UtteranceRecord(
            state.next_uid,
            client,
            request.id,
            req,
            voice,
            language,
            1.0 if request.speed is None else request.speed,
            request.output,
            request.conversation,
            request.priority,
            seed,
            {**state.config.model.settings, **request.settings},
            state.now_s,
            request.confirms,
        )
        state.next_uid += 1
        utterance = Utterance(record, record.uid, last_text_s=state.now_s)
        state.utterances[record.uid] = utterance
        state.by_key[key] = record.uid
        owner = state.owners[record.uid] = None if request.output == "speaker" else (client, request.conversation)
        output = state.outputs.get(owner)
        utterance.prompt = request.final and not state.lanes.get(owner) and not (output and output.live_fill())
        state.write(record)
        self._add_text(utterance, request.text)
        if request.final:
            cutting.end(state, utterance)
        state.counters.counts["accepted"] += 1
        state.enter_lane(utterance)
        if request.priority == "interrupt":
            self.hearing.interrupt(utterance)
        return _accepted(utterance)

    def _speak_again(self, client: bytes, req: bool, request: Speak) -> Accepted | None:
        """The id is known and its utterance over: tell how it ended (again)."""
        _, last = self.state.done[(client, request.id)]
        ends = {"Finished": "finished", "Cancelled": "cancelled", "Failed": "failed"}
        voice, language = self._resolve(request)
        accepted = Accepted(
            id=request.id,
            voice=voice,
            language=language,
            seed=request.seed or 0,
            state=ends[type(last).__name__],  # type: ignore[arg-type]
        )
        self.state.emit(ToClient(client, req, accepted))
        if not req:
            self.state.emit(ToClient(client, req, last))
        return None

    def _check_speak(self, req: bool, request: Speak) -> None:
        state, text = self.state, self.state.config.text
        if state.draining:
            raise RequestError("type", "the pipeline is shutting down and takes no more text")
        if req and request.output == "stream":
            raise RequestError("output", "a REQ socket cannot receive audio; connect a DEALER socket for 'stream'")
        if request.final and not request.text.strip():
            raise RequestError("text", "the text is empty; give some, or set final: false and send it as it comes")
        self._check_length(len(request.text))
        if len(state.open_utterances) >= text.max_queued:
            raise RequestError("id", f"text.max_queued = {text.max_queued} utterances are waiting; try again later")

    def _check_length(self, chars: int) -> None:
        limit = self.state.config.text.max_chars
        if chars > limit:
            raise RequestError(
                "text",
                f"{chars} characters are more than text.max_chars = {limit}; send the text in pieces (final: false)",
            )

    def _resolve(self, request: Speak) -> tuple[str, str]:
        """Voice and language, checked by the engine's own rules."""
        state = self.state
        facts = state.crew.token_facts
        assert facts is not None  # requests are held until then
        voice = request.voice or ("" if request.language else _not_builtin(state.config.voices.default))
        language = request.language or ("" if request.voice else state.config.voices.language)
        try:
            check_settings(facts, {**state.config.model.settings, **request.settings})
            return state.resolve(facts, voice, language)
        except EngineError as error:
            field, _, reason = str(error).partition(": ")
            raise RequestError(field, reason or str(error)) from error

    def _add_text(self, utterance: Utterance, text: str) -> None:
        if not text:
            return
        state = self.state
        state.write_op(Put(TextRecord(utterance.uid, utterance.given_chars, text)))
        utterance.add_text(text, state.config.text.max_chars)
        utterance.last_text_s = state.now_s
        state.touch(utterance)

    # ---------------------------------------------------------------- growing texts

    def _find(self, client: bytes, id_: str) -> Utterance:
        uid = self.state.by_key.get((client, id_))
        if uid is None:
            over = " any more: it is over" if (client, id_) in self.state.done else ""
            raise RequestError("id", f"no utterance {id_!r} of this client{over}")
        return self.state.utterances[uid]

    def _growing(self, client: bytes, id_: str) -> Utterance:
        utterance = self._find(client, id_)
        if utterance.ended:
            raise RequestError("id", f"the text of {id_!r} is complete; start a new utterance with another id")
        return utterance

    def _text(self, client: bytes, request: Text) -> None:
        utterance = self._growing(client, request.id)
        self._check_length(len(request.text))
        _check_offset(utterance, request)
        known = 0 if request.offset is None else utterance.given_chars - request.offset
        text = request.text[known:]
        waiting = utterance.given_chars - utterance.fed
        limit = self.state.config.text.max_chars
        if waiting + len(text) > limit:
            raise RequestError(
                "text",
                f"{waiting} characters of {request.id!r} wait to be spoken, and {len(text)} more would pass "
                f"text.max_chars = {limit}; wait for 'progress' before sending more",
            )
        self._add_text(utterance, text)

    # ---------------------------------------------------------------- cancel, pause, listeners

    def _cancel(self, client: bytes, req: bool, request: Cancel) -> Event | None:
        named = [name for name in ("id", "conversation", "all") if getattr(request, name)]
        if len(named) != 1:
            raise RequestError("id", "name exactly one of id, conversation, all")
        found = [utterance for utterance in self.state.open_utterances if self._matches(utterance, client, request)]
        if not found and not request.all:
            field = named[0]
            raise RequestError(field, f"nothing of {getattr(request, field)!r} is waiting or being spoken")
        self.hearing.cancel(found)
        owned = any(utterance.client == client for utterance in found)
        return Ok(request="cancel", id=request.id) if req or not owned else None

    def _matches(self, utterance: Utterance, client: bytes, request: Cancel) -> bool:
        if request.all:
            return True
        if request.id is not None:
            same = [other for other in self.state.utterances.values() if other.id == request.id]
            return utterance in same and (utterance.client == client or len(same) == 1)
        mine = any(
            other.client == client and other.record.conversation == request.conversation
            for other in self.state.utterances.values()
        )
        return utterance.record.conversation == request.conversation and (utterance.client == client or not mine)

    def _pause(self, paused: bool) -> Event:
        self.state.paused = paused
        self.state.emit(HoldSpeaker(paused))
        return Paused() if paused else Resumed()

    def _attach(self, client: bytes, req: bool, request: Attach) -> None:
        if req:
            raise RequestError("type", "a REQ socket cannot receive audio; connect a DEALER socket")
        uid = self.state.by_key.get((client, request.id))
        if uid is None:
            same = [other for other in self.state.utterances.values() if other.id == request.id]
            if len(same) > 1:
                raise RequestError("id", f"{len(same)} clients have an utterance {request.id!r}")
            if not same:
                raise RequestError("id", f"no utterance {request.id!r} is open")
            uid = same[0].uid
        utterance = self.state.utterances[uid]
        if utterance.output != "stream":
            raise RequestError("id", f"{request.id!r} goes to the speaker, there is nothing to listen to")
        if request.from_sample > utterance.rendered_samples and utterance.all_rendered:
            raise RequestError(
                "from_sample", f"{request.from_sample} is past the end, sample {utterance.rendered_samples}"
            )
        output = self.state.output_of(utterance)
        oldest = output.view.oldest.get(uid, 0) if output is not None else 0
        if request.from_sample < oldest:
            raise RequestError("from_sample", f"{request.from_sample} is no longer retained; the oldest is {oldest}")
        self._hand_over(utterance, client, request.confirms)
        if output is not None:
            output.view = replace(output.view, resending=True)
        utterance.tell_again = utterance.told  # perhaps it has not got that
        self.state.emit(Reattach(uid, client, request.from_sample, request.confirms))

    def _hand_over(self, utterance: Utterance, client: bytes, confirms: bool) -> None:
        """The utterance belongs to this connection from now on."""
        record = utterance.record
        if record.client != client:
            del self.state.by_key[(record.client, record.id)]
            self.state.by_key[(client, record.id)] = record.uid
            record = msgspec.structs.replace(record, client=client, opened_by=utterance.conversation[0])
        record = msgspec.structs.replace(record, confirms=confirms)
        if record != utterance.record:
            utterance.record = record
            self.state.write(record)

    def _received(self, client: bytes, request: Received) -> None:
        """What arrives for an utterance that is over or has another listener now is late, not wrong."""
        uid = self.state.by_key.get((client, request.id))
        if uid is not None:
            self.state.emit(Confirm(uid, request.samples))

    def _played(self, client: bytes, request: Played) -> None:
        utterance = self._find(client, request.id)
        if utterance.output != "stream":
            raise RequestError("id", f"{request.id!r} goes to the speaker, whose clock says what was heard")
        utterance.played_samples = max(utterance.played_samples or 0, request.samples)

    # ---------------------------------------------------------------- voices

    def _voices(self) -> VoiceList:
        state = self.state
        facts = state.crew.token_facts
        assert facts is not None  # requests are held until then
        default = state.config.voices.default
        return VoiceList(
            engine=facts.engine,
            default=facts.default_voice if default == "builtin" else default,
            voices=facts.voices,
            languages=facts.languages,
            settings=facts.settings,
            cloning=facts.cloning,
        )

    def _voice_add(self, client: bytes, req: bool, request: VoiceAdd) -> None:
        facts = self.state.crew.token_facts
        if facts is not None and not facts.cloning:
            raise RequestError("type", f"engine {facts.engine} does not take reference recordings")
        self.state.emit(StoreVoice(client, req, request.voice, request.offset, request.total_bytes, request.data))

    def voice_stored(self, stored: VoiceStored) -> None:
        """Answer a `voice_add`."""
        event: Event
        if stored.error:
            self.state.counters.counts["rejected"] += 1
            event = Rejected(request="voice_add", field=stored.field, reason=stored.error)
        else:
            if stored.complete:
                self.state.know_voice(stored.voice)
            event = self.reports.voice_added(stored)
        self.state.emit(ToClient(stored.client, stored.req, event))


def _kind(request: Request) -> str:
    return str(request.__struct_config__.tag)


def _check_offset(utterance: Utterance, request: Text | End) -> None:
    """Text must not be missing before what a request adds."""
    if request.offset is not None and request.offset > utterance.given_chars:
        raise RequestError(
            "offset",
            f"{request.offset} leaves a gap: {utterance.given_chars} characters of {request.id!r} have arrived; "
            "send what follows them",
        )


def _not_builtin(voice: str) -> str:
    return "" if voice == "builtin" else voice


def _accepted(utterance: Utterance) -> Accepted:
    record = utterance.record
    return Accepted(
        id=record.id,
        voice=record.voice,
        language=record.language,
        seed=record.seed,
        state="speaking" if utterance.begun else "queued",
    )
