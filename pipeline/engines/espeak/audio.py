"""The audio half: phonemes → espeak-ng → 24 kHz.

Each piece is spoken by a library that has just been loaded and resampled on its own: it depends on
nothing before it. Pieces begin and end in (nearly) silence, so nothing clicks where they meet.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import soxr

from ipc.messages import SAMPLE_RATE, AudioFacts, TokenSample
from pipeline.engines.base import (
    AudioStep,
    EngineConfig,
    EngineError,
    Report,
    Samples,
    Segment,
    StreamError,
    check_settings,
)
from pipeline.engines.espeak.catalogue import bundled
from pipeline.engines.espeak.folder import mute_voice
from pipeline.engines.espeak.library import RATE_HZ, EspeakError, Pcm, Spoken, Word
from pipeline.engines.espeak.pieces import Ending, Piece, decode
from pipeline.engines.espeak.spelling import cut_long, rewrite_switches, with_gaps
from pipeline.engines.espeak.style import Style, amplify, style_of
from pipeline.engines.espeak.tokens import LOAD_DEADLINE_S, facts_of, open_library, seed_of

_FADE_SAMPLES = 110

_Chosen = tuple[str, dict[str, int]]
"""A voice and its parameters."""


class _Checkpoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How far a stream is rendered."""

    pieces: int
    tokens: int
    samples: int


@dataclass
class _Stream:
    """An open stream. ``ends[i]``: tokens up to and with ``pieces[i]``."""

    voice: str
    style: Style
    seed: int
    done: _Checkpoint
    pieces: list[Piece | None] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    final: bool = False


class EspeakAudio:
    """`pipeline.engines.base.AudioModel` of espeak. A rung is what the token half made in one piece."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        report("loading espeak-ng", LOAD_DEADLINE_S)
        began = time.monotonic()
        self._library = open_library(mute_voice, dictionaries=False)
        self._token_facts = facts_of(config.max_batch, 0.0)
        self._streams: dict[int, _Stream] = {}
        self._fresh: _Chosen | None = None
        self._next: _Chosen = ("en-us", style_of({}, 1.0).parameters)
        self._speak(Piece("r'Edi", ".", "pause", 1, 0, 0, 1, 0), "en-us", style_of({}, 1.0), 0)
        self._facts = AudioFacts(
            engine="espeak",
            lookahead_tokens=0,
            ladder=False,
            max_batch=max(1, config.max_batch),
            seconds_per_token=0.35,
            load_s=time.monotonic() - began,
        )

    @property
    def facts(self) -> AudioFacts:
        return self._facts

    def open(self, stream: int, segment: Segment, checkpoint: bytes = b"") -> None:
        if stream in self._streams:
            raise EngineError(f"stream {stream} is already open")
        check_settings(self._token_facts, segment.settings)
        chosen = bundled().choose(segment.voice, segment.language)
        style = style_of(segment.settings, segment.speed)
        self._streams[stream] = _Stream(chosen.id, style, segment.seed, _read_checkpoint(checkpoint))

    def feed(self, stream: int, tokens: int, data: bytes, final: bool) -> None:
        one = self._streams.get(stream)
        if one is None:
            raise EngineError(f"stream {stream} is not open")
        pieces = decode(data)
        if sum(piece.words for piece in pieces) != tokens:
            raise EngineError(f"tokens: {tokens} are announced, the pieces hold {sum(p.words for p in pieces)}")
        for piece in pieces:
            one.ends.append((one.ends[-1] if one.ends else 0) + piece.words)
            one.pieces.append(piece if len(one.pieces) >= one.done.pieces else None)
        one.final = final

    def render(self, jobs: Sequence[tuple[int, int]]) -> list[AudioStep | StreamError]:
        made: list[AudioStep | StreamError] = []
        for number, upto in jobs:
            stream = self._streams.get(number)
            try:
                made.append(StreamError(number, "is not open") if stream is None else self._rung(number, stream, upto))
            except EspeakError as error:
                made.append(StreamError(number, str(error)))
        return made

    def close_stream(self, stream: int) -> None:
        if self._streams.pop(stream, None) is not None and not self._streams:
            self._renew(self._next)  # nothing waits now, and most probably the same voice goes on

    def close(self) -> None:
        self._streams.clear()
        self._library.close()

    def _rung(self, number: int, stream: _Stream, upto: int) -> AudioStep | StreamError:
        done = stream.done
        last = bisect.bisect_right(stream.ends, upto)
        if upto < done.tokens or (stream.ends[last - 1] if last else 0) != upto:
            return StreamError(number, f"token {upto} is not the end of a piece; pieces end at {stream.ends[-8:]}")
        sounds: list[Samples] = []
        times: list[TokenSample] = []
        for index in range(done.pieces, last):
            piece = stream.pieces[index]
            if piece is None:
                continue
            sound, starts, exact = self._speak(piece, stream.voice, stream.style, seed_of(stream.seed, done.tokens))
            times += [
                TokenSample(done.tokens + word, done.samples + start, exact and told)
                for word, (start, told) in enumerate(starts)
            ]
            sounds.append(sound)
            done = _Checkpoint(index + 1, done.tokens + piece.words, done.samples + len(sound))
            stream.pieces[index] = None  # spoken: never needed again
        stream.done = done
        samples = np.concatenate(sounds) if sounds else np.zeros(0, np.float32)
        final = stream.final and upto == (stream.ends[-1] if stream.ends else 0)
        return AudioStep(number, samples, upto, msgspec.json.encode(done), tuple(times), final)

    def _speak(self, piece: Piece, voice: str, style: Style, seed: int) -> tuple[Samples, list[tuple[int, bool]], bool]:
        """A piece's samples, where its words begin in them and whether that was told, and whether to trust it."""
        pcm, starts = self._pcm(piece, voice, style, seed)
        before = len(pcm)
        if style.stretch < 1.0:
            pcm = self._library.stretch(pcm, style.stretch)
        sound = soxr.resample(pcm.astype(np.float32) / 32768, RATE_HZ, SAMPLE_RATE, quality="HQ")
        scale = len(sound) / before if before else 1.0
        most = max(0, len(sound) - 1)
        placed = [(min(round(start * scale), most), told) for start, told in starts]
        return amplify(sound, style.volume), placed, style.exact

    def _renew(self, chosen: _Chosen) -> None:
        """A library that has just been loaded and has this voice (0.7 ms)."""
        self._library.renew()
        self._library.use(*chosen)
        self._fresh = self._next = chosen

    def _pcm(self, piece: Piece, voice: str, style: Style, seed: int) -> tuple[Pcm, list[tuple[int, bool]]]:
        sounds: list[Pcm] = []
        starts: list[tuple[int, bool]] = []
        parts = cut_long(piece.phonemes)
        for index, part in enumerate(parts):
            last = index + 1 == len(parts)
            if self._fresh != (voice, style.parameters):
                self._renew((voice, style.parameters))
            self._fresh = None
            phonemes, ranges = _written(part)
            spoken = self._library.speak(
                f"[[{phonemes}]]{piece.terminator if last else ''}",
                phonemes=True,
                pause=piece.ending == "pause" and last,
                seed=seed + index,
            )
            if index == 0:
                starts = _starts(ranges, spoken.words, len(spoken.pcm))
            sounds.append(_cut(spoken, piece.ending if last else "join"))
        return np.concatenate(sounds), starts


def _cut(spoken: Spoken, ending: Ending) -> Pcm:
    """The sound up to where the next piece begins: an echo that goes on beyond is faded out before.
    At the end it may die away."""
    end = spoken.clauses[-1].sample if spoken.clauses and ending != "end" else len(spoken.pcm)
    pcm = spoken.pcm[:end].copy()
    fade = min(len(pcm), _FADE_SAMPLES)
    pcm[len(pcm) - fade :] = pcm[len(pcm) - fade :] * np.linspace(1, 0, fade)
    return pcm


def _written(phonemes: str) -> tuple[str, list[tuple[int, int]]]:
    """The phonemes as the synthesiser reads them, and where each word's characters then stand."""
    words = [with_gaps(rewrite_switches(word)) for word in phonemes.split()]
    ranges, at = [], len("[[")
    for word in words:
        ranges.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), ranges


def _starts(ranges: list[tuple[int, int]], told: Sequence[Word], samples: int) -> list[tuple[int, bool]]:
    """Where each word begins, and whether the library told; else half-way between its neighbours."""
    found: dict[int, int] = {}
    begins = [begin for begin, _ in ranges]
    for word in told:
        index = bisect.bisect_right(begins, word.position) - 1
        if index >= 0 and word.position < ranges[index][1]:
            found.setdefault(index, word.sample)
    found.setdefault(0, 0)
    known = sorted(found)
    places = np.interp(range(len(ranges)), [*known, len(ranges)], [*(found[index] for index in known), samples])
    ordered = np.maximum.accumulate(places)  # sped-up sound is told with some disorder
    return [(int(place), index in found) for index, place in enumerate(ordered)]


def _read_checkpoint(data: bytes) -> _Checkpoint:
    if not data:
        return _Checkpoint(0, 0, 0)
    try:
        return msgspec.json.decode(data, type=_Checkpoint)
    except msgspec.DecodeError as error:
        raise EngineError(f"checkpoint: not one of espeak's: {error}") from error
