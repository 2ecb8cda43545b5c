"""An engine's two halves in this process, without any pipeline: what the engine itself costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ipc.messages import SAMPLE_RATE
from perf.common import PerfError
from pipeline.engines.base import AudioStep, EngineConfig, Segment, TokenStep, load_engine
from pipeline.text import TextSegment, TextSegmenter


@dataclass(frozen=True)
class Cost:
    """What one piece of a segment took: the clock's seconds of each half, and the speech that came of it.

    A piece is what one rung of the audio half is made of.
    """

    tokens_s: float
    audio_s: float
    speech_s: float


class Direct:
    """A loaded engine. Segments are cut, generated and rendered as the pipeline does with a whole text."""

    def __init__(self, engine: str, voice: str, language: str) -> None:
        loaded = load_engine(engine)
        config = EngineConfig(max_batch=16)
        self._tokens = loaded.tokens(config, lambda *_: None)
        self._audio = loaded.audio(config, lambda *_: None)
        self._voice, self._language = loaded.resolve(self._tokens.facts, voice, language)
        self._streams = 0

    def cut(self, text: str) -> list[TextSegment]:
        """The text's segments that have something to speak."""
        facts = self._tokens.facts
        cutter = TextSegmenter(self._language, facts.longest_chars, facts.shortest_chars, facts.sentence_pause_ms)
        return [piece for piece in [*cutter.feed(text), *cutter.end()] if piece.text.strip()]

    def pieces(self, cut: TextSegment) -> Iterator[Cost]:
        """Make a segment's sound, piece by piece."""
        stream = self._streams = self._streams + 1
        segment = Segment(cut.text, cut.boundary, self._voice, self._language, 1.0, stream, {})
        began_s = time.perf_counter()
        self._tokens.admit(stream, segment)
        self._audio.open(stream, replace(segment, text=""))
        try:
            yield from self._made(stream, began_s)
        finally:
            self._tokens.release(stream)
            self._audio.close_stream(stream)

    def _made(self, stream: int, began_s: float) -> Iterator[Cost]:
        upto, fed_s, final = 0, 0.0, False
        while not final:
            for step in self._tokens.step():
                if not isinstance(step, TokenStep):
                    raise PerfError(f"the engine cannot speak its text: {step.reason}")
                final, upto = step.final, upto + step.tokens
                made_s = time.perf_counter()
                if step.tokens or final:
                    self._audio.feed(stream, step.tokens, step.data, final)
                fed_s += made_s - began_s
                began_s = time.perf_counter()
                # An engine with a ladder renders all at once here, others what they are given.
                if final or (step.tokens and not self._audio.facts.ladder):
                    yield self._render(stream, upto, fed_s)
                    fed_s, began_s = 0.0, time.perf_counter()

    def _render(self, stream: int, upto: int, tokens_s: float) -> Cost:
        began_s = time.perf_counter()
        rendered = self._audio.render([(stream, upto)])[0]
        if not isinstance(rendered, AudioStep):
            raise PerfError(f"the engine cannot render: {rendered.reason}")
        return Cost(tokens_s, time.perf_counter() - began_s, len(rendered.samples) / SAMPLE_RATE)

    def close(self) -> None:
        """Free everything."""
        self._tokens.close()
        self._audio.close()
