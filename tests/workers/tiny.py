"""The smallest engine that can show what the stages do wrong: one token a character, 40 ms each.

A token's sound depends on its neighbour to the right (lookahead 1, used up to 3), on its position
and on the seed, and the last 100 samples are held back until the stream is final. So sound made
from other tokens, at another place, without lookahead or without its tail differs from `sound`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ipc.messages import AudioFacts, TokenFacts, TokenSample, TokenSpan, Voice
from pipeline.engines.base import (
    AudioStep,
    Engine,
    EngineConfig,
    EngineError,
    Report,
    Samples,
    Segment,
    StreamError,
    TokenStep,
)

TOKEN_SAMPLES = 960
HELD_SAMPLES = 100
LOOKAHEAD = 3
CHUNK_TOKENS = 4
TOKEN_S = 0.04
REFUSED, BROKEN, POISON = "§", "¶", "☠"


def encode(text: str) -> bytes:
    return text.encode("utf-32-le")


def sound(tokens: bytes, seed: int) -> Samples:
    """All of a stream's sound at once."""
    codes = np.append(np.frombuffer(tokens, "<u4").astype(np.int64), 0)
    parts = [
        ((codes[i] * 31 + codes[i + 1] * 17 + i * 7 + seed) % 997 + np.arange(TOKEN_SAMPLES)) / 4000
        for i in range(len(codes) - 1)
    ]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float32)


@dataclass
class _Text:
    segment: Segment
    done: int
    paused: bool = False


class TinyTokens:
    """The token half."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        report("loading", 60.0)
        self.streams: dict[int, _Text] = {}
        self.released: list[int] = []
        self.closed = False
        self.facts = TokenFacts(
            engine="tiny",
            voices=(Voice("tiny", "Tiny", "en"),),
            default_voice="tiny",
            languages=("en",),
            settings=(),
            shortest_chars=0,
            longest_chars=1000,
            seconds_per_char=TOKEN_S,
            max_batch=config.max_batch,
            longest_chunk_s=CHUNK_TOKENS * TOKEN_S,
            sentence_pause_ms=0,
        )

    def admit(self, stream: int, segment: Segment, history: bytes = b"", history_tokens: int = 0) -> None:
        if REFUSED in segment.text:
            raise EngineError(f"text: {REFUSED} cannot be spoken")
        assert stream not in self.streams
        assert len(self.streams) < self.facts.max_batch
        assert history == encode(segment.text[:history_tokens])
        self.streams[stream] = _Text(segment, history_tokens)

    def step(self) -> list[TokenStep | StreamError]:
        steps = [self._one(number, text) for number, text in self.streams.items() if not text.paused]
        for step in steps:
            if isinstance(step, StreamError) or step.final:
                del self.streams[step.stream]
        return steps

    def _one(self, number: int, text: _Text) -> TokenStep | StreamError:
        first, piece = text.done, text.segment.text[text.done : text.done + CHUNK_TOKENS]
        if POISON in piece:
            raise RuntimeError("poison")
        if BROKEN in piece:
            return StreamError(number, "broken")
        text.done += len(piece)
        spans = tuple(TokenSpan(first + i, first + i, first + i + 1, True) for i in range(len(piece)))
        final = text.done >= len(text.segment.text)
        return TokenStep(number, len(piece), encode(piece), len(piece) * TOKEN_S, spans, final)

    def pause(self, stream: int) -> None:
        if stream in self.streams:
            self.streams[stream].paused = True

    def resume(self, stream: int) -> None:
        if stream in self.streams:
            self.streams[stream].paused = False

    def release(self, stream: int) -> None:
        self.released.append(stream)
        self.streams.pop(stream, None)

    def close(self) -> None:
        self.closed = True


@dataclass
class _Sound:
    segment: Segment
    done_tokens: int
    done_samples: int
    tokens: bytes = b""
    fed: int = 0
    final: bool = False
    pieces: list[int] = field(default_factory=list)


class TinyAudio:
    """The audio half. ``calls`` holds the jobs of every render."""

    def __init__(self, config: EngineConfig, report: Report, *, ladder: bool = True) -> None:
        report("loading", 60.0)
        self.streams: dict[int, _Sound] = {}
        self.calls: list[list[tuple[int, int]]] = []
        self.closed = False
        self.facts = AudioFacts("tiny", LOOKAHEAD if ladder else 0, ladder, config.max_batch, TOKEN_S)

    def open(self, stream: int, segment: Segment, checkpoint: bytes = b"") -> None:
        if segment.voice == REFUSED:
            raise EngineError(f"voice: {REFUSED} does not exist")
        assert stream not in self.streams
        state: dict[str, Any] = json.loads(checkpoint or b'{"tokens":0,"samples":0}')
        self.streams[stream] = _Sound(segment, state["tokens"], state["samples"])

    def feed(self, stream: int, tokens: int, data: bytes, final: bool) -> None:
        one = self.streams[stream]
        assert not one.final
        if encode(REFUSED) in data:
            raise EngineError("tokens: none of ours")
        one.tokens += data
        one.fed += tokens
        one.final = final
        if tokens:
            one.pieces.append(one.fed)

    def render(self, jobs: Sequence[tuple[int, int]]) -> list[AudioStep | StreamError]:
        assert 0 < len(jobs) <= self.facts.max_batch
        assert len({stream for stream, _ in jobs}) == len(jobs)
        self.calls.append(list(jobs))
        return [self._one(number, upto, self.streams[number]) for number, upto in jobs]

    def _one(self, number: int, upto: int, one: _Sound) -> AudioStep | StreamError:
        assert one.final or one.fed >= upto + self.facts.lookahead_tokens
        assert self.facts.ladder or upto in one.pieces
        known = one.tokens if one.final else one.tokens[: 4 * (upto + self.facts.lookahead_tokens)]
        if encode(BROKEN) in known[4 * one.done_tokens : 4 * upto]:
            return StreamError(number, "broken")
        if encode(POISON) in known[4 * one.done_tokens : 4 * upto]:
            raise RuntimeError("poison")
        everything = sound(known, one.segment.seed)
        last = one.final and upto == one.fed
        # Without lookahead the last token's neighbour is unknown: hold that token back as well.
        held = 0 if last else HELD_SAMPLES if self.facts.lookahead_tokens else TOKEN_SAMPLES
        end = max(upto * TOKEN_SAMPLES - held, one.done_samples)
        samples = everything[one.done_samples : end]
        marks = tuple(TokenSample(i, i * TOKEN_SAMPLES, True) for i in range(one.done_tokens, upto))
        one.done_tokens, one.done_samples = upto, end
        state = json.dumps({"tokens": upto, "samples": end}).encode()
        return AudioStep(number, samples, upto, state, marks, last)

    def close_stream(self, stream: int) -> None:
        self.streams.pop(stream, None)

    def close(self) -> None:
        self.closed = True


ENGINE = Engine("tiny", TinyTokens, TinyAudio)
