"""T3, the token half of Chatterbox: text segments to speech tokens, many at once (`ChatterboxTokens`).

    ChatterboxTokens(
        variant,          # variants.Variant
        t3,               # the stock module (modules.build_t3, weights loaded): float32, on the CPU; it is not changed.
                          # For float32 on the CPU most weights are used where they lie, else they are copied.
        encoder,          # .encode(text, language) -> .ids, .chars          (spelling.TextEncoder)
        voices,           # .conditionals(voice) -> Conditionals             (voices.VoiceBook)
        profile,          # Profile: voices, settings and figures for `facts`
        read,             # settings (checked against profile.settings) -> Asked
        *,
        device,           # torch.device or its name
        dtype,            # torch.float32 | bfloat16 | float16
        max_batch,        # streams at once; fewer if the GPU's memory does not hold as many
        report,           # base.Report
        tuning=None,      # build.Tuning: steps per check, limits, graphs, bounds
        convert=None,     # nn.Module -> nn.Module: what quantises the backbone (int8)
    )

What a stream makes depends on its segment alone: on no other stream, no cut, no pause. `TokenStep.data` has every id
that T3 made (see `wire`), including those that are no sound, as a successor needs them; such ids travel with the next
sounding token, so that a step without tokens has no bytes. The last token of `Variant.drops_last_token` is handed out
like any other: it is the audio half that leaves out its sound.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from chatterbox.models.t3 import T3

from ipc.messages import Setting, TokenFacts, Voice
from pipeline.engines.base import EngineError, Report, Segment, Settings, StreamError, TokenStep, check_settings
from pipeline.engines.chatterbox import wire
from pipeline.engines.chatterbox.alignment import Words
from pipeline.engines.chatterbox.build import Convert, Tuning, build, limits_of
from pipeline.engines.chatterbox.conditionals import Conditionals, T3Conditionals
from pipeline.engines.chatterbox.guards import Guard
from pipeline.engines.chatterbox.rounds import Round
from pipeline.engines.chatterbox.sampling import Sampling
from pipeline.engines.chatterbox.seats import Seat
from pipeline.engines.chatterbox.speaking import Stream, Told
from pipeline.engines.chatterbox.variants import START_TEXT, STOP_TEXT, TOKENS_PER_S, Variant

SLOW_DEADLINE_S = 60.0
"""How long reading a text, or a round of decoding, may take without a GPU: other programs need the processors too."""


class Encoded(Protocol):
    """``ids`` without start and stop of text; ``chars[i]``: the character of the text at which id i begins."""

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def chars(self) -> tuple[int, ...]: ...


class Encoder(Protocol):
    def encode(self, text: str, language: str) -> Encoded: ...


class VoiceBook(Protocol):
    def conditionals(self, voice: str) -> Conditionals:
        """Raises `EngineError` for a voice that does not exist."""
        ...


class Asked(Protocol):
    """A request's settings, all of them."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def cfg_weight(self) -> float: ...
    @property
    def exaggeration(self) -> float: ...


@dataclass(frozen=True)
class Profile:
    """What `facts` says that T3 itself does not know. ``voices`` is called each time: they come and go.

    ``longest_chars`` 300: the published models wander and invent beyond. Below about ``shortest_chars`` they tend to
    add sounds; the pipeline joins such short pieces with their neighbours where it can.
    """

    voices: Callable[[], tuple[Voice, ...]]
    default_voice: str
    settings: tuple[Setting, ...]
    shortest_chars: int = 12
    longest_chars: int = 300
    seconds_per_char: float = 0.066
    sentence_pause_ms: int = 150
    cloning: bool = True
    load_s: float = 0.0


@dataclass(frozen=True)
class _Plan:
    """What seating a stream takes."""

    voice: T3Conditionals
    exaggeration: float
    text: list[int]
    history: list[int]
    sampling: Sampling


@dataclass(eq=False)
class _Place:
    """A stream with its seat (None: it waits for memory). ``arrived``: what was made and not handed out yet."""

    stream: Stream
    plan: _Plan
    seat: Seat | None
    arrived: list[Told]
    paused: bool = False


class ChatterboxTokens:
    """The token half. See the top of this module for what it is made from."""

    def __init__(
        self,
        variant: Variant,
        t3: T3,
        encoder: Encoder,
        voices: VoiceBook,
        profile: Profile,
        read: Callable[[Settings], Asked],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        max_batch: int,
        report: Report,
        tuning: Tuning | None = None,
        convert: Convert | None = None,
    ) -> None:
        self._variant, self._encoder, self._voices = variant, encoder, voices
        self._profile, self._read, self._report = profile, read, report
        self._tuning, self._device = tuning or Tuning(), torch.device(device)
        self._limits = limits_of(variant, self._tuning.limits)
        self._decoder = build(
            variant,
            t3,
            self._tuning,
            device=self._device,
            dtype=dtype,
            streams=max(1, max_batch),
            report=report,
            convert=convert,
        )
        cuda = self._device.type == "cuda"
        self._ahead = int(cuda) if self._tuning.ahead is None else self._tuning.ahead
        self._places: dict[int, _Place] = {}
        self._seated: dict[Seat, _Place] = {}
        self._rounds: deque[Round] = deque()

    @property
    def facts(self) -> TokenFacts:
        profile, variant = self._profile, self._variant
        # What was made while a stream paused and the silence at the end may come together.
        chunk = self._tuning.steps_per_check * (1 + self._ahead)
        return TokenFacts(
            engine=variant.name,
            voices=profile.voices(),
            default_voice=profile.default_voice,
            languages=tuple(variant.languages),
            settings=profile.settings,
            shortest_chars=profile.shortest_chars,
            longest_chars=profile.longest_chars,
            seconds_per_char=profile.seconds_per_char,
            max_batch=self._decoder.sizes.streams,
            longest_chunk_s=(chunk + variant.end_silence_tokens) / TOKENS_PER_S,
            sentence_pause_ms=profile.sentence_pause_ms,
            cloning=profile.cloning,
            device=str(self._device),
            load_s=profile.load_s,
        )

    # ----------------------------------------------------------------------- admission

    def admit(self, stream: int, segment: Segment, history: bytes = b"", history_tokens: int = 0) -> None:
        if stream in self._places:
            raise RuntimeError(f"stream {stream} is already admitted")
        if len(self._places) >= self._decoder.sizes.streams:
            raise RuntimeError(f"stream {stream}: all {self._decoder.sizes.streams} places are taken")
        if segment.language not in self._variant.languages:
            raise EngineError(
                f"language: {segment.language!r} is not spoken by {self._variant.name}; "
                f"languages: {', '.join(self._variant.languages)}"
            )
        if self._device.type != "cuda":
            self._report("reading a text", SLOW_DEADLINE_S)
        settings = dict(segment.settings)
        check_settings(self.facts, settings)
        asked = self._read(settings)
        voice = self._voices.conditionals(segment.voice).t3
        encoded = self._encoder.encode(segment.text, segment.language)
        sampling = Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            min_p=asked.min_p,
            top_k=asked.top_k,
            repetition_penalty=asked.repetition_penalty,
            cfg_weight=asked.cfg_weight,
            seed=segment.seed,
        )
        plan = _Plan(voice, asked.exaggeration, self._text(encoded), wire.decode(history, history_tokens), sampling)
        chars = encoded.chars if self._decoder.kind.heads else None
        words = Words(segment.text, chars, self._profile.seconds_per_char)
        guard = Guard(self._limits, segment.text)
        place = _Place(Stream(stream, self._variant, words, guard, segment.speed), plan, None, [])
        self._sit(place)
        self._places[stream] = place

    def _text(self, encoded: Encoded) -> list[int]:
        """What T3 reads. Raises `EngineError` for a text that it cannot read."""
        ids = list(encoded.ids)
        if not ids:
            raise EngineError("text: nothing in it can be spoken")
        if not self._variant.turbo:
            ids = [START_TEXT, *ids, STOP_TEXT]
        if len(ids) > (most := self._decoder.sizes.text_tokens):
            raise EngineError(
                f"text: {len(ids)} text tokens, {most} are the most at once: send it in shorter sentences"
            )
        return ids

    def _sit(self, place: _Place) -> None:
        """Give a stream its seat; if the GPU's memory does not hold one more just now, it waits for another to end."""
        plan = place.plan
        for attempt in range(2):
            try:
                seat, told = self._decoder.admit(plan.voice, plan.exaggeration, plan.text, plan.history, plan.sampling)
            except torch.OutOfMemoryError as error:
                if attempt == 0:
                    self._decoder.prefixes.clear()
                    torch.cuda.empty_cache()
                elif not self._seated:
                    raise EngineError(f"text: {self._device} has not enough memory for it: {error}") from error
            else:
                place.stream.recall(told)
                place.seat = seat
                self._seated[seat] = place
                return
        print(
            f"t3: out of memory on {self._device}: stream {place.stream.number} waits for one of {len(self._seated)}",
            file=sys.stderr,
            flush=True,
        )

    # ----------------------------------------------------------------------- steps

    def step(self) -> list[TokenStep | StreamError]:
        made: list[TokenStep | StreamError] = self._seat_waiting()
        while not made and (speaking := [place for place in self._seated.values() if not place.paused]):
            self._launch()
            self._collect()
            made = [self._hand_out(place) for place in speaking if place.arrived or place.stream.ended]
        return made

    def _seat_waiting(self) -> list[TokenStep | StreamError]:
        failed: list[TokenStep | StreamError] = []
        for number, place in list(self._places.items()):
            if place.seat is None:
                try:
                    self._sit(place)
                except EngineError as error:
                    failed.append(StreamError(number, str(error)))
                    self.release(number)
        return failed

    def _launch(self) -> None:
        """Queue rounds until one more than is waited for is under way."""
        speaking = [seat for seat, place in self._seated.items() if not (place.paused or place.stream.ended)]
        if speaking and self._device.type != "cuda":
            self._report("decoding", SLOW_DEADLINE_S)
        while speaking and len(self._rounds) <= self._ahead:
            self._rounds.append(self._decoder.launch(speaking))

    def _collect(self) -> None:
        """Wait for the oldest round. What it has for streams that are gone is dropped."""
        if not self._rounds:
            return
        for seat, told in self._rounds.popleft().wait():
            if place := self._seated.get(seat):
                place.arrived += told

    def _hand_out(self, place: _Place) -> TokenStep | StreamError:
        place.stream.take(place.arrived)
        place.arrived.clear()
        step = place.stream.step()
        if isinstance(step, StreamError) or step.final:
            self.release(step.stream)
        return step

    def pause(self, stream: int) -> None:
        if stream in self._places:
            self._places[stream].paused = True

    def resume(self, stream: int) -> None:
        if stream in self._places:
            self._places[stream].paused = False

    def release(self, stream: int) -> None:
        place = self._places.pop(stream, None)
        if place is not None and place.seat is not None:
            del self._seated[place.seat]
            self._decoder.leave(place.seat)

    def close(self) -> None:
        for stream in list(self._places):
            self.release(stream)
        self._rounds.clear()
        self._decoder.prefixes.clear()
