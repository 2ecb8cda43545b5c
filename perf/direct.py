"""An engine's two halves in this process, without any pipeline: what the engine itself makes, and what that costs."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ipc.messages import SAMPLE_RATE
from perf.common import PerfError
from pipeline.credit import next_cut
from pipeline.engines.base import AudioStep, EngineConfig, Samples, Segment, StreamError, TokenStep, choose_engine
from pipeline.text import TextSegment, TextSegmenter


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which engine."""
    parser.add_argument("--engine", default="espeak", help="(default: %(default)s)")
    parser.add_argument("--weights", default="hub", help="hub, or a folder with a checkpoint (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, mps (default: %(default)s)")
    parser.add_argument("--options", default="", metavar="JSON", help="of the engine, as in model.options")


def options_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> dict[str, bool | int | float | str]:
    """What ``--options`` say."""
    try:
        options = json.loads(given.options or "{}")
    except ValueError as error:
        parser.error(f"--options: {given.options!r} is no JSON: {error}")
    if not isinstance(options, dict):
        parser.error(f"--options: {given.options!r}: a JSON object is needed, as in '{{\"watermark\": false}}'")
    return options


@dataclass(frozen=True)
class Piece:
    """A piece of a segment's sound (what one rung of the audio half is made of), and the clock's seconds that each
    half took for it."""

    tokens_s: float
    audio_s: float
    samples: Samples

    @property
    def speech_s(self) -> float:
        """How long it sounds."""
        return len(self.samples) / SAMPLE_RATE


class Direct:
    """A loaded engine. Segments are cut, generated and rendered as the pipeline does with a whole text.

    Raises `pipeline.engines.base.EngineError` for an engine, a voice or weights that are not here.
    """

    def __init__(self, engine: str, voice: str = "", language: str = "", config: EngineConfig | None = None) -> None:
        config = config or EngineConfig(max_batch=16)
        loaded, _ = choose_engine(engine, config)
        self.token_half = loaded.tokens(config, lambda *_: None)
        self.audio_half = loaded.audio(config, lambda *_: None)
        self._voice, self._language = loaded.resolve(self.token_half.facts, voice, language)
        self._streams = 0
        self._over: list[int] = []

    def cut(self, text: str) -> list[TextSegment]:
        """The text's segments that have something to speak."""
        facts = self.token_half.facts
        cutter = TextSegmenter(self._language, facts.longest_chars, facts.shortest_chars, facts.sentence_pause_ms)
        return [piece for piece in [*cutter.feed(text), *cutter.end()] if piece.text.strip()]

    def segment(self, cut: TextSegment, seed: int) -> Segment:
        """What a half is asked to speak."""
        return Segment(cut.text, cut.boundary, self._voice, self._language, 1.0, seed, {})

    def next_stream(self) -> int:
        """A number that no stream had yet."""
        self._streams += 1
        return self._streams

    def pieces(self, cut: TextSegment, rungs: Sequence[int] = (), seed: int | None = None) -> Iterator[Piece]:
        """Make a segment's sound, piece by piece: tokens for one, its sound, tokens for the next, as one stream.

        An engine with a ladder renders on these rungs (tokens; none: all at once), another one what it makes in one
        step. Without ``seed`` every segment has another one.
        """
        stream = self.next_stream()
        segment = self.segment(cut, stream if seed is None else seed)
        began_s = time.perf_counter()
        self.token_half.admit(stream, segment)
        self._open(stream, segment)
        try:
            yield from self._made(stream, rungs, began_s)
        finally:
            self.token_half.release(stream)

    def _made(self, stream: int, rungs: Sequence[int], began_s: float) -> Iterator[Piece]:
        fed = done = 0
        final = over = False
        while not over:
            cut = self._next_cut(fed, done, final, rungs)
            while cut is None:
                step = self._step()
                final, fed = step.final, fed + step.tokens
                if step.tokens or final:
                    self.audio_half.feed(stream, step.tokens, step.data, final)
                cut = self._next_cut(fed, done, final, rungs)
            made_s = time.perf_counter()
            samples = self._render(stream, cut)
            ended_s = time.perf_counter()
            done, over = cut, final and cut >= fed
            yield Piece(made_s - began_s, ended_s - made_s, samples)
            began_s = time.perf_counter()

    def _next_cut(self, fed: int, done: int, final: bool, rungs: Sequence[int]) -> int | None:
        """Up to which token there can be sound now (None: more tokens are needed first)."""
        facts = self.audio_half.facts
        if not facts.ladder or not rungs:
            return fed if final or (fed > done and not facts.ladder) else None
        cut = next_cut(rungs, done)
        if final:
            return min(cut, fed)
        return cut if fed >= cut + facts.lookahead_tokens else None

    # ---------------------------------------------------------------- each half alone

    def tokens(self, cut: TextSegment, seed: int) -> Iterator[TokenStep]:
        """A segment's tokens, step by step, without any sound."""
        stream = self.next_stream()
        self.token_half.admit(stream, self.segment(cut, seed))
        try:
            final = False
            while not final:
                step = self._step()
                final = step.final
                if step.tokens:
                    yield step
        finally:
            self.token_half.release(stream)

    def sound(self, cut: TextSegment, steps: Sequence[TokenStep], seed: int) -> Samples:
        """Sound of these tokens as if nothing was before or after them."""
        stream = self.next_stream()
        self._open(stream, self.segment(cut, seed))
        made, upto = [], 0
        for number, step in enumerate(steps, start=1):
            self.audio_half.feed(stream, step.tokens, step.data, number == len(steps))
            upto += step.tokens
            if number == len(steps) or not self.audio_half.facts.ladder:
                made.append(self._render(stream, upto))
        return np.concatenate(made) if made else np.zeros(0, np.float32)

    def _open(self, stream: int, segment: Segment) -> None:
        """Begin a stream. What is over is closed now and not before, as in the pipeline: nobody waits for that."""
        while self._over:
            self.audio_half.close_stream(self._over.pop())
        self.audio_half.open(stream, replace(segment, text=""))
        self._over.append(stream)

    def _step(self) -> TokenStep:
        """One step of the only stream."""
        while not (steps := self.token_half.step()):
            continue
        step = steps[0]
        if isinstance(step, StreamError):
            raise PerfError(f"the engine cannot speak its text: {step.reason}")
        return step

    def _render(self, stream: int, upto: int) -> Samples:
        rendered = self.audio_half.render([(stream, upto)])[0]
        if not isinstance(rendered, AudioStep):
            raise PerfError(f"the engine cannot render: {rendered.reason}")
        return rendered.samples

    def close(self) -> None:
        """Free everything."""
        self.token_half.close()
        self.audio_half.close()
