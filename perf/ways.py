"""Ways to make a text sound in one process, each the same engine on the same text: pieces of sound as they are made.

- ``everything``: all tokens and all sound of the whole text, handed over in one piece.
- ``pseudo``: the same, then handed out in chunks of a fixed size as if it was a stream.
- ``independent``: a chunk of tokens at a time is rendered by itself, knowing nothing of what was before it, and
  faded into the one before. Of an engine whose tokens have no fixed length (espeak's are words, made a clause at a
  time) that means: the text is cut after every so many words, and each cut is spoken as a text of its own.
- ``sequential``: tokens for one chunk, its sound, tokens for the next, in turn; the streaming state is kept, and the
  chunks are those that the pipeline makes (of a ladder, or what the engine makes in one step).
- ``stock``: Chatterbox alone: `generate` of the stock package on the same weights, in one piece.

`python -m perf.ways --way WAY` is a process that does one of them, again and again: a line of JSON that asks (`Ask`)
comes in, a line (`Answer`) goes out, the sound goes into a file. `perf.trials` asks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ipc.messages import SAMPLE_RATE
from perf import texts
from perf.common import PerfError
from perf.direct import Direct
from perf.joins import Sound
from pipeline.engines.base import EngineConfig, EngineError, TokenStep


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Speak this. ``sound``: where the samples go (.npy). ``chunk_tokens`` of ``independent``: 0 takes what suits the
    engine. ``rungs`` of ``sequential``, in tokens."""

    text: str
    sound: str = ""
    seed: int = 1
    chunk_samples: int = 4096
    chunk_tokens: int = 0
    fade_ms: float = 20.0
    rungs: tuple[int, ...] = (12, 24, 48, 50)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. ``handed``: each piece's moment (monotonic) and samples; ``joins``: samples where one chunk's
    sound goes over into the next one's; ``cpu_s`` of the process; ``error``: why there is nothing (empty: there is)."""

    asked_s: float = 0.0
    handed: tuple[tuple[float, int], ...] = ()
    joins: tuple[int, ...] = ()
    cpu_s: float = 0.0
    error: str = ""


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: the engine is loaded. ``ladder``: its chunks can be of any size."""

    ladder: bool = True
    error: str = ""


@dataclass(frozen=True)
class Made:
    """A piece of sound. ``join``: after how many of its samples it is the new chunk's; None: it goes on with the
    chunk before it, or there is none."""

    samples: Sound
    join: int | None = None


Way = Callable[[Ask], Iterator[Made]]

ONE_PROCESS = ("everything", "pseudo", "independent", "sequential")
STOCK = "stock"
PIPELINE = "pipeline"
"""Ours, which is no way of one process."""

LADDER_CHUNK_TOKENS = 25
WORD_CHUNK_TOKENS = 4
"""Of ``independent``, when nobody says: a second of speech, about."""


class Ways:
    """The ways of one loaded engine."""

    def __init__(self, direct: Direct) -> None:
        self._direct = direct
        self.ladder = direct.audio_half.facts.ladder

    def everything(self, ask: Ask) -> Iterator[Made]:
        """All of it in one piece."""
        yield Made(np.concatenate([made.samples for made in self._in_turn(ask, ())]))

    def pseudo(self, ask: Ask) -> Iterator[Made]:
        """All of it, then in chunks."""
        (whole,) = self.everything(ask)
        for at in range(0, len(whole.samples), ask.chunk_samples):
            yield Made(whole.samples[at : at + ask.chunk_samples].copy(), 0 if at else None)

    def sequential(self, ask: Ask) -> Iterator[Made]:
        """Chunk by chunk, one stream a segment."""
        yield from self._in_turn(ask, ask.rungs)

    def independent(self, ask: Ask) -> Iterator[Made]:
        """Chunk by chunk, each of them a stream of its own. The end of a chunk waits for the next one's beginning."""
        fade = round(ask.fade_ms / 1000 * SAMPLE_RATE)
        tail = np.zeros(0, np.float32)
        for number, sound in enumerate(self._alone(ask)):
            sound, tail = crossfaded(tail, sound, fade)
            yield Made(sound, fade // 2 if number else None)
        yield Made(tail)

    def _in_turn(self, ask: Ask, rungs: tuple[int, ...]) -> Iterator[Made]:
        first = True
        for cut in self._direct.cut(ask.text):
            pause = np.zeros(cut.pause_ms * SAMPLE_RATE // 1000, np.float32)
            for piece in self._direct.pieces(cut, rungs, ask.seed):
                if len(piece.samples):
                    yield Made(piece.samples, None if first else 0)
                    first = False
            if len(pause):
                yield Made(pause)

    def _alone(self, ask: Ask) -> Iterator[Sound]:
        """Each chunk's sound without the others."""
        return self._alone_by_tokens(ask) if self.ladder else self._alone_by_words(ask)

    def _alone_by_tokens(self, ask: Ask) -> Iterator[Sound]:
        size = ask.chunk_tokens or LADDER_CHUNK_TOKENS
        for cut in self._direct.cut(ask.text):
            pause = np.zeros(cut.pause_ms * SAMPLE_RATE // 1000, np.float32)
            waiting: list[TokenStep] = []
            for step in self._direct.tokens(cut, ask.seed):
                if sum(one.tokens for one in waiting) >= size:
                    yield self._direct.sound(cut, waiting, ask.seed)
                    waiting = []
                waiting.append(step)
            yield np.concatenate([self._direct.sound(cut, waiting, ask.seed), pause])

    def _alone_by_words(self, ask: Ask) -> Iterator[Sound]:
        words, size = texts.words_of(ask.text), ask.chunk_tokens or WORD_CHUNK_TOKENS
        for at in range(0, len(words), size):
            alone = msgspec.structs.replace(ask, text="".join(words[at : at + size]).strip())
            if sounds := [made.samples for made in self._in_turn(alone, ())]:
                yield np.concatenate(sounds)


def crossfaded(tail: Sound, sound: Sound, fade: int) -> tuple[Sound, Sound]:
    """A chunk whose beginning is mixed with the ``tail`` of the one before, and the ``fade`` samples at its own end,
    which are held back for the next."""
    mixed = min(len(tail), len(sound))
    rise = (np.arange(mixed, dtype=np.float32) + np.float32(0.5)) / np.float32(max(1, mixed))
    sound = sound.copy()
    sound[:mixed] = sound[:mixed] * rise + tail[:mixed] * rise[::-1]
    held = min(fade, len(sound) - mixed)
    return sound[: len(sound) - held], sound[len(sound) - held :]


# --------------------------------------------------------------------------- the process


def answer(way: Way, ask: Ask) -> Answer:
    """Speak as asked; each piece's moment is taken when it is handed over."""
    sounds: list[Sound] = []
    handed: list[tuple[float, int]] = []
    joins: list[int] = []
    at = 0
    asked_s, began_cpu_s = time.monotonic(), time.process_time()
    try:
        for made in way(ask):
            if not len(made.samples):
                continue
            handed.append((time.monotonic(), len(made.samples)))
            sounds.append(made.samples)
            if made.join is not None and at:
                joins.append(at + min(made.join, len(made.samples) - 1))
            at += len(made.samples)
    except (PerfError, EngineError) as error:
        return Answer(error=str(error))
    cpu_s = time.process_time() - began_cpu_s
    if not at:
        return Answer(error=f"there is nothing to hear in {ask.text!r}")
    np.save(Path(ask.sound), np.concatenate(sounds))
    return Answer(asked_s=asked_s, handed=tuple(handed), joins=tuple(joins), cpu_s=cpu_s)


def load(given: argparse.Namespace) -> tuple[Way, Ready]:
    """The way that was asked for. Raises `EngineError`."""
    config = EngineConfig(
        device=given.device, weights=given.weights, voices_folder=given.voices, options=json.loads(given.options)
    )
    if given.way == STOCK:
        from perf.chatterbox_generate import Stock

        stock = Stock(given.engine, config)
        return lambda ask: iter([Made(stock.generate(ask.text, ask.seed))]), Ready()
    ways = Ways(Direct(given.engine, config=config))
    way: Way = getattr(ways, given.way)
    return way, Ready(ladder=ways.ladder)


def main() -> int:
    """Load, then answer until nobody asks any more."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--way", required=True, choices=(*ONE_PROCESS, STOCK))
    parser.add_argument("--engine", required=True)
    parser.add_argument("--weights", default="hub")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--voices", default="voices", metavar="FOLDER")
    parser.add_argument("--options", default="{}", metavar="JSON")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of the packages underneath
    # What packages print to the standard output must not come between the lines of this one.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        way, ready = load(given)
    except EngineError as error:
        out.write(msgspec.json.encode(Ready(error=str(error))) + b"\n")
        return 1
    out.write(msgspec.json.encode(ready) + b"\n")
    for line in sys.stdin.buffer:
        out.write(msgspec.json.encode(answer(way, msgspec.json.decode(line, type=Ask))) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
