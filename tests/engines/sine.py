"""A continuous sine in place of speech: whatever a way out adds, drops or glues shows in it.

40 ms for each character, one token each; voices `sine` (440 Hz) and `low` (220 Hz). Sample n of a segment is
`SAMPLE(n)`, whatever the cuts. ``delay_ms`` of the options is how long a token takes to make.

In pipeline.yaml: ``model: {engine: "tests.engines.sine:ENGINE"}``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ipc.messages import SAMPLE_RATE, AudioFacts, TokenFacts, TokenSample, TokenSpan, Voice
from pipeline.engines.base import AudioStep, Engine, EngineConfig, Report, Samples, Segment, StreamError, TokenStep

NAME = "sine"
TOKEN_SAMPLES = 960
STEP_TOKENS = 5
PITCHES_HZ = {"sine": 440, "low": 220}
VOICES = (Voice("sine", "Sine", "en", "female"), Voice("low", "Low sine", "en", "male"), Voice("fr", "Sinus", "fr"))
AMPLITUDE = 0.5
_MAGIC = b"sine"


def samples(first: int, last: int, hz: int = 440) -> Samples:
    """Samples ``first`` … ``last`` of the sine; it begins and ends at zero, as a token has whole periods' worth."""
    at = np.arange(first, last, dtype=np.float64)
    return (AMPLITUDE * np.sin(2 * np.pi * hz * at / SAMPLE_RATE)).astype(np.float32)


def expected(chars: int, hz: int = 440) -> npt.NDArray[np.int16]:
    """What a listener gets for a text of so many characters in one segment."""
    whole = samples(0, chars * TOKEN_SAMPLES, hz)
    return np.rint(np.clip(whole, -1, 1) * np.float32(32767)).astype(np.int16)


class SineTokens:
    """A token for each character."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        report("loading sine", 5.0)
        self._max_batch = config.max_batch
        self._delay_s = float(config.options.get("delay_ms", 0)) / 1000
        self._streams: dict[int, tuple[Segment, int]] = {}
        self._paused: set[int] = set()

    @property
    def facts(self) -> TokenFacts:
        return TokenFacts(
            engine=NAME,
            voices=VOICES,
            default_voice="sine",
            languages=("en", "fr"),
            settings=(),
            shortest_chars=1,
            longest_chars=400,
            seconds_per_char=TOKEN_SAMPLES / SAMPLE_RATE,
            max_batch=self._max_batch,
            longest_chunk_s=STEP_TOKENS * TOKEN_SAMPLES / SAMPLE_RATE,
            sentence_pause_ms=0,
            cloning=False,
            device="cpu",
            load_s=0.0,
        )

    def admit(self, stream: int, segment: Segment, history: bytes = b"", history_tokens: int = 0) -> None:
        self._streams[stream] = (segment, history_tokens)

    def step(self) -> list[TokenStep | StreamError]:
        active = [stream for stream in self._streams if stream not in self._paused]
        if active and self._delay_s:
            time.sleep(self._delay_s * STEP_TOKENS)
        return [self._advance(stream) for stream in active]

    def _advance(self, stream: int) -> TokenStep:
        segment, made = self._streams[stream]
        upto = min(made + STEP_TOKENS, len(segment.text))
        final = upto == len(segment.text)
        if final:
            self.release(stream)
        else:
            self._streams[stream] = (segment, upto)
        spans = tuple(TokenSpan(at, at, at + 1, exact=True) for at in range(made, upto))
        seconds = (upto - made) * TOKEN_SAMPLES / SAMPLE_RATE
        return TokenStep(stream, upto - made, b"~" * (upto - made), seconds, spans, final)

    def pause(self, stream: int) -> None:
        self._paused.add(stream)

    def resume(self, stream: int) -> None:
        self._paused.discard(stream)

    def release(self, stream: int) -> None:
        self._streams.pop(stream, None)
        self._paused.discard(stream)

    def close(self) -> None:
        self._streams.clear()


@dataclass
class _Stream:
    hz: int
    done: int = 0
    fed: int = 0
    final: bool = field(default=False)


class SineAudio:
    """The sine itself."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        report("loading sine", 5.0)
        self._max_batch = config.max_batch
        self._streams: dict[int, _Stream] = {}

    @property
    def facts(self) -> AudioFacts:
        return AudioFacts(
            engine=NAME,
            lookahead_tokens=0,
            ladder=True,
            max_batch=self._max_batch,
            seconds_per_token=TOKEN_SAMPLES / SAMPLE_RATE,
            device="cpu",
            load_s=0.0,
        )

    def open(self, stream: int, segment: Segment, checkpoint: bytes = b"") -> None:
        done = int.from_bytes(checkpoint.removeprefix(_MAGIC), "little")
        self._streams[stream] = _Stream(PITCHES_HZ.get(segment.voice, 440), done)

    def feed(self, stream: int, tokens: int, data: bytes, final: bool) -> None:
        state = self._streams[stream]
        state.fed, state.final = state.fed + tokens, final

    def render(self, jobs: Sequence[tuple[int, int]]) -> list[AudioStep | StreamError]:
        return [self._render(stream, self._streams[stream], upto) for stream, upto in jobs]

    def _render(self, stream: int, state: _Stream, upto: int) -> AudioStep:
        first, state.done = state.done, upto
        sound = samples(first * TOKEN_SAMPLES, upto * TOKEN_SAMPLES, state.hz)
        marks = tuple(TokenSample(token, token * TOKEN_SAMPLES, True) for token in range(first, upto))
        checkpoint = _MAGIC + upto.to_bytes(4, "little")
        return AudioStep(stream, sound, upto, checkpoint, marks, state.final and upto == state.fed)

    def close_stream(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def close(self) -> None:
        self._streams.clear()


ENGINE = Engine(NAME, SineTokens, SineAudio)
