"""An engine whose tokens and sound are labels, so that what was heard can be compared with what was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ipc.messages import (
    AudioFacts,
    TokenFacts,
    TokenSample,
    TokenSpan,
    Voice,
)
from pipeline.engines.base import AudioStep, EngineError, Segment, StreamError, TokenStep
from tests.pipeline.simulated.setup import FULL_SCALE, TOKEN_S, TOKEN_SAMPLES, Died

if TYPE_CHECKING:
    from tests.pipeline.simulated.room import MachineRoom


def label(text: str, at: int) -> int:
    """The code of a character. Letters are used once in a run, so that a letter names its place; anything
    else is told by the letter before it and the distance from that."""
    for distance in range(min(at, 7) + 1):
        if text[at - distance].isalpha():
            return ord(text[at - distance]) * 8 + distance
    return 1


@dataclass
class _Tokens:
    text: str
    made: int
    paused: bool = False


class LabelTokens:
    """A token half: one token a character, which is its label."""

    def __init__(self, room: MachineRoom) -> None:
        self.room, setup = room, room.setup
        self.facts = TokenFacts(
            engine="labels",
            voices=(Voice("anna", "Anna", "en"),),
            default_voice="anna",
            languages=("en",),
            settings=(),
            shortest_chars=1,
            longest_chars=200,
            seconds_per_char=TOKEN_S,
            max_batch=setup.t3_batch,
            longest_chunk_s=setup.t3_tokens * TOKEN_S,
            sentence_pause_ms=setup.pause_ms,
        )
        self._streams: dict[int, _Tokens] = {}

    def admit(self, stream: int, segment: Segment, history: bytes = b"", history_tokens: int = 0) -> None:
        if self.room.refused("t3", segment.text):
            raise EngineError("text: this engine will not say that")
        assert history == self._data(segment.text, 0, history_tokens), "t3 was given a wrong history"
        self._streams[stream] = _Tokens(segment.text, history_tokens)

    def step(self) -> list[TokenStep | StreamError]:
        return [self._advance(number, one) for number, one in list(self._streams.items()) if not one.paused]

    def _advance(self, number: int, one: _Tokens) -> TokenStep | StreamError:
        setup, first = self.room.setup, one.made
        if self.room.deadly("t3", one.text):
            raise Died
        count = min(setup.t3_tokens, len(one.text) - first)
        one.made += count
        final = one.made >= len(one.text) and not (setup.empty_final and count)
        if final:
            del self._streams[number]
        spans = tuple(TokenSpan(at, at, at + 1, True) for at in range(first, one.made))
        data = self._data(one.text, first, count)
        return TokenStep(number, count, data, count * TOKEN_S * setup.guess, spans, final)

    @staticmethod
    def _data(text: str, first: int, count: int) -> bytes:
        return b"".join(label(text, at).to_bytes(2, "little") for at in range(first, first + count))

    def pause(self, stream: int) -> None:
        self._streams[stream].paused = True

    def resume(self, stream: int) -> None:
        self._streams[stream].paused = False

    def release(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def close(self) -> None:
        pass


@dataclass
class _Sound:
    done: int
    labels: list[int] = field(default_factory=list)


class LabelSound:
    """An audio half: `TOKEN_SAMPLES` samples of its label for every token."""

    def __init__(self, room: MachineRoom) -> None:
        setup = room.setup
        self.room = room
        self.facts = AudioFacts("labels", setup.lookahead, setup.ladder, 8, TOKEN_S)
        self.spent_s = 0.0
        self._streams: dict[int, _Sound] = {}

    def open(self, stream: int, segment: Segment, checkpoint: bytes = b"") -> None:
        self._streams[stream] = _Sound(int(checkpoint or b"0"))

    def feed(self, stream: int, tokens: int, data: bytes, final: bool) -> None:
        labels = [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 2)]
        assert len(labels) == tokens
        self._streams[stream].labels += labels

    def render(self, jobs: Sequence[tuple[int, int]]) -> list[AudioStep | StreamError]:
        return [self._render(number, upto) for number, upto in jobs]

    def _render(self, number: int, upto: int) -> AudioStep | StreamError:
        one = self._streams[number]
        labels = one.labels[one.done : upto]
        letters = "".join(chr(code // 8) for code in one.labels if code % 8 == 0)
        if self.room.deadly("s3gen", letters):
            raise Died
        if self.room.refused("s3gen", letters):
            return StreamError(number, "this engine will not say that")
        self.spent_s += len(labels) * TOKEN_S * self.room.setup.render_ratio
        samples = np.repeat(np.array(labels, np.float32) / np.float32(FULL_SCALE), TOKEN_SAMPLES)
        points = tuple(TokenSample(one.done + k, (one.done + k) * TOKEN_SAMPLES, True) for k in range(len(labels)))
        one.done = upto
        return AudioStep(number, samples, upto, b"%d" % upto, points)

    def close_stream(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def close(self) -> None:
        pass
