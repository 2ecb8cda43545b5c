"""Babble: a second engine, for tests only, shaped like Chatterbox and unlike espeak in every way that matters.

25 tokens a second, 960 samples a token, a lookahead of three tokens, a ladder, large batches that
advance all streams at once, 4 kB tokens, 19 kB checkpoints with real state, an alignment that is
exact in places. Letters sound as tones, digits as runs of tones, spaces and punctuation as silence.
The sound does not depend on the ladder's cuts, so that whatever a pipeline made of a segment can be
compared sample for sample with `render_whole`. `Options` throttle it and make it fail on demand.

In pipeline.yaml: ``model: {engine: "tests.engines.babble:ENGINE"}``; the repository's root has to
be on the module path of the workers.
"""

from __future__ import annotations

import os
import time
import unicodedata
from dataclasses import dataclass, field

import numpy as np

from ipc.messages import Boundary, TokenFacts, TokenSpan
from pipeline.engines.base import (
    Engine,
    EngineConfig,
    EngineError,
    Report,
    Samples,
    Segment,
    Settings,
    StreamError,
    TokenStep,
    check_settings,
)
from tests.engines.babble_latents import (
    DEFAULT_VOICE,
    DIE_STATUS,
    FAULTS,
    LANGUAGES,
    LATENT_BYTES,
    SETTINGS,
    TOKENS_PER_SECOND,
    Latents,
    digests,
    fault_here,
    noise,
    read_latents,
    read_options,
    start_children,
    voice_pitch_hz,
    voices,
    with_defaults,
    write_latents,
)
from tests.engines.babble_sound import BabbleAudio

NAME = "babble"
LONGEST_CHARS = 300
MOST_STREAMS = 64
END_TOKENS = {"clause": 1, "sentence": 2, "paragraph": 3, "pause": 1, "end": 2}


def tokens_of(character: str) -> int:
    """How many tokens a character lasts at speed 1."""
    if character.isspace() or unicodedata.category(character).startswith("M"):
        return 1
    if character.isdigit():
        return 3
    if character.isalpha():
        return (2 if character.lower() in "aeiouäöüáéíóúàèù" else 1) if ord(character) < 0x250 else 4
    return 2


@dataclass
class _Stream:
    """One admitted segment: what each token is to be, and how far it has got.

    ``chars[i]`` is the character that token i speaks. ``made`` counts tokens made, ``sent`` those
    handed out (fewer while tokens are held back).
    """

    segment: Segment
    chars: list[int]
    spans: list[TokenSpan]
    faults: dict[int, int]
    base_hz: float
    jitter: float
    pitch_hz: float
    made: int = 0
    sent: int = 0
    held: bytearray = field(default_factory=bytearray)
    paused: bool = False


class BabbleTokens:
    """The token half."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        self._options = read_options(config.options)
        self._folder = config.voices_folder
        self._device = config.device
        self._max_batch = min(config.max_batch, MOST_STREAMS)
        self._streams: dict[int, _Stream] = {}
        report("loading babble", self._options.load_s + 5.0)
        time.sleep(self._options.load_s)
        if self._options.die_loading:
            os._exit(DIE_STATUS)
        start_children(self._options)

    @property
    def facts(self) -> TokenFacts:
        return TokenFacts(
            engine=NAME,
            voices=voices(self._folder),
            default_voice=DEFAULT_VOICE,
            languages=LANGUAGES,
            settings=SETTINGS,
            shortest_chars=5,
            longest_chars=LONGEST_CHARS,
            seconds_per_char=1.4 / TOKENS_PER_SECOND,
            max_batch=self._max_batch,
            longest_chunk_s=(self._options.tokens_per_step + self._options.hold_back_tokens) / TOKENS_PER_SECOND,
            sentence_pause_ms=80,
            cloning=True,
            device=self._device,
            load_s=self._options.load_s,
        )

    def admit(self, stream: int, segment: Segment, history: bytes = b"", history_tokens: int = 0) -> None:
        if stream in self._streams:
            raise RuntimeError(f"stream {stream} is already admitted")
        if len(self._streams) >= self._max_batch:
            raise RuntimeError(f"stream {stream}: all {self._max_batch} places of the batch are taken")
        state = self._plan(segment)
        if history_tokens:
            latents, _ = read_latents(history, history_tokens, 0, *digests(segment))
            if history_tokens > len(state.chars):
                raise EngineError(f"history of {history_tokens} tokens for a segment of {len(state.chars)}")
            state.pitch_hz = float(latents.pitch_hz[-1])
            state.made = state.sent = history_tokens
        self._streams[stream] = state

    def step(self) -> list[TokenStep | StreamError]:
        active = [(stream, state) for stream, state in self._streams.items() if not state.paused]
        steps = [self._advance(stream, state) for stream, state in active]
        if active and self._options.token_delay_ms:
            time.sleep(self._options.token_delay_ms / 1000 * self._options.tokens_per_step)
        for step in steps:
            if isinstance(step, StreamError) or step.final:
                del self._streams[step.stream]
        return steps

    def pause(self, stream: int) -> None:
        if stream in self._streams:
            self._streams[stream].paused = True

    def resume(self, stream: int) -> None:
        if stream in self._streams:
            self._streams[stream].paused = False

    def release(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def close(self) -> None:
        self._streams.clear()

    def _plan(self, segment: Segment) -> _Stream:
        """Lay a segment's characters out over tokens. Raises `EngineError` if it cannot be spoken."""
        text, options = segment.text, self._options
        if not text or len(text) > LONGEST_CHARS:
            raise EngineError(f"text: {len(text)} characters; babble speaks 1 … {LONGEST_CHARS} at once")
        if segment.language not in LANGUAGES:
            raise EngineError(f"language: {segment.language!r} is not one of {', '.join(LANGUAGES)}")
        if options.refuse_text and options.refuse_text in text:
            raise EngineError(f"text: contains {options.refuse_text!r}, which babble refuses")
        check_settings(self.facts, segment.settings)
        settings = with_defaults(segment.settings)
        base_hz = voice_pitch_hz(segment.voice, self._folder) * float(settings["pitch"])
        chars = _lay_out(text, segment.boundary, segment.speed)
        return _Stream(
            segment=segment,
            chars=chars,
            spans=_spans(text, chars),
            faults=self._faults(text, chars),
            base_hz=base_hz,
            jitter=float(settings["jitter"]),
            pitch_hz=base_hz,
        )

    def _faults(self, text: str, chars: list[int]) -> dict[int, int]:
        """Which tokens strike: token → place in `FAULTS`; negative: in the audio half."""
        found = {}
        for code, kind in enumerate(FAULTS[1:], start=1):
            for name, sign in ((f"{kind}_text", 1), (f"audio_{kind}_text", -1)):
                marker = getattr(self._options, name)
                if marker and marker in text:
                    at = text.index(marker)
                    found[next((i for i, char in enumerate(chars) if char >= at), len(chars) - 1)] = sign * code
        return found

    def _advance(self, stream: int, state: _Stream) -> TokenStep | StreamError:
        first, total = state.made, min(len(state.chars), self._options.longest_tokens)
        wanted = self._options.tokens_per_step
        last = min(first + wanted, total)
        for position in range(first, last):
            kind = FAULTS[max(0, state.faults.get(position, 0))]
            if kind and fault_here(self._options, kind):
                return StreamError(stream, f"babble broke at token {position}, as it was told to")
        state.held += self._make(state, first, last)
        state.made = last
        # The end shows only when there was room to sample it: a full last step is followed by an empty one.
        final = last - first < wanted
        count = last - state.sent if final else max(0, last - self._options.hold_back_tokens - state.sent)
        data = bytes(state.held[: count * LATENT_BYTES])
        del state.held[: count * LATENT_BYTES]
        sent, state.sent = state.sent, state.sent + count
        cut = final and total < len(state.chars)
        return TokenStep(
            stream=stream,
            tokens=count,
            data=data,
            seconds=count / TOKENS_PER_SECOND,
            alignment=tuple(span for span in state.spans if sent <= span.first_token < sent + count),
            final=final,
            note=f"stopped after {total} tokens of {len(state.chars)}: the text runs away" if cut else "",
        )

    def _make(self, state: _Stream, first: int, last: int) -> bytes:
        """Tokens ``first`` … ``last``: the pitch walks from that of the token before, by chance and by character."""
        text, seed = state.segment.text, state.segment.seed
        chance = noise(seed, np.arange(first, last, dtype=np.uint64))
        codes = [ord(text[char]) if char < len(text) else 32 for char in state.chars[first:last]]
        pitch = []
        for code, push in zip(codes, chance.tolist(), strict=True):
            target = state.base_hz * (0.8 + 0.4 * (code * 7 % 12) / 12)
            walked = 0.6 * state.pitch_hz + 0.4 * target + state.base_hz * state.jitter * push
            # Rounded to what the token can carry, so that a successor walks on from the same place.
            state.pitch_hz = float(np.float32(min(max(walked, 60.0), 400.0)))
            pitch.append(state.pitch_hz)
        audio_faults = [float(max(0, -state.faults.get(position, 0))) for position in range(first, last)]
        latents = Latents(
            pitch_hz=np.array(pitch, np.float64),
            loudness=np.array([float(chr(code).isalnum()) for code in codes], np.float64),
            timbre=np.array([float(code % 16) for code in codes], np.float64),
            fault=np.array(audio_faults, np.float64),
        )
        return write_latents(first, *digests(state.segment), latents)


def _lay_out(text: str, boundary: Boundary, speed: float) -> list[int]:
    """The character of each token; tokens after the last character stand at len(text)."""
    lasts = [tokens_of(character) for character in text] + [END_TOKENS[boundary]]
    chars: list[int] = []
    passed = 0
    for char, count in enumerate(lasts):
        passed += count
        chars += [char] * (int(passed / speed + 0.5) - len(chars))
    return chars or [0]


def _spans(text: str, chars: list[int]) -> list[TokenSpan]:
    """One span a character that has a token; those too short for one belong to the next.

    The tokens after the last character belong to its span.
    """
    spans: list[TokenSpan] = []
    end = 0
    for token, char in enumerate(chars):
        upto = min(char + 1, len(text))
        if upto == end:
            continue
        exact = all(c.isspace() or (c.isalpha() and ord(c) < 0x250) for c in text[end:upto])
        spans.append(TokenSpan(token, end, upto, exact))
        end = upto
    if end < len(text):
        last = spans[-1]
        spans[-1] = TokenSpan(last.first_token, last.first_char, len(text), exact=False)
    return spans


ENGINE = Engine(NAME, BabbleTokens, BabbleAudio, lambda config: read_options(config.options).missing)


def render_whole(
    text: str,
    voice: str = DEFAULT_VOICE,
    *,
    language: str = "en",
    speed: float = 1.0,
    seed: int = 0,
    settings: Settings | None = None,
    boundary: Boundary = "end",
    config: EngineConfig | None = None,
) -> Samples:
    """The sound of one segment, made in one piece: what any chunking, kill or resumption must come to as well.

    Raises `EngineError` as the halves would.
    """
    config = config or EngineConfig()
    segment = Segment(text, boundary, voice, language, speed, seed, settings or {})
    tokens, audio = BabbleTokens(config, lambda *_: None), BabbleAudio(config, lambda *_: None)
    tokens.admit(1, segment)
    audio.open(1, segment)
    made, final = 0, False
    while not final:
        for step in tokens.step():
            if isinstance(step, StreamError):
                raise EngineError(step.reason)
            audio.feed(1, step.tokens, step.data, step.final)
            made, final = made + step.tokens, step.final
    rendered = audio.render([(1, made)])[0]
    if isinstance(rendered, StreamError):
        raise EngineError(rendered.reason)
    return rendered.samples
