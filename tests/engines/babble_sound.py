"""Babble's audio half: latents to sound, with state that a wrong resumption would make audible.

Each token is a grain of 960 samples whose last 480 reach over into the next token's time, on a
phase that runs through the whole stream; all of it passes an echo that never forgets. So a
checkpoint is three things, each of them audible when it is wrong: the phase, the overhanging tail
and the echo's memory.

    edge pitch  f[j] = mean pitch of tokens j-2 … j+1, so grain i (edges i … i+2) needs tokens … i+3
    phase       advances from edge to edge by the mean of their pitches, wrapped at every token
    x           sum of grains, each 480 rise, 480 full, 480 fall over into the next one's rise
    y[n]        x[n] + ECHO * y[n - 4320]

Sums, products and comparisons only (the sine is a polynomial): the same bits whatever the cuts and
whatever the processor.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ipc.messages import SAMPLE_RATE, AudioFacts, TokenSample
from pipeline.engines.base import AudioStep, EngineConfig, EngineError, Report, Samples, Segment, Settings, StreamError
from tests.engines.babble_latents import (
    FAULTS,
    TOKENS_PER_SECOND,
    Latents,
    digests,
    fault_here,
    noise,
    read_latents,
    read_options,
    start_children,
    voice_pitch_hz,
    with_defaults,
)

TOKEN_SAMPLES = SAMPLE_RATE // TOKENS_PER_SECOND
LOOKAHEAD_TOKENS = 3
TAIL_SAMPLES = 480
LARGEST_STEP = 0.12
"""No two neighbouring samples differ by more (at volume 1): whatever does is a click."""

_ECHO_SAMPLES = 4320
_ECHO = np.float32(0.25)
_KNOT_SAMPLES = 24
_MOODS = {"plain": (0.30, 0.10, 0.05), "bright": (0.22, 0.14, 0.09), "dark": (0.38, 0.04, 0.01)}
_BREATH = 0.02
_HEAD = struct.Struct("<8sIIidQ?7x")
_MAGIC = b"babble-1"
_Grid = npt.NDArray[np.float64]


@dataclass
class _Stream:
    """One open stream: its latents so far, and the state after ``done`` tokens."""

    segment: Segment
    settings: Settings
    request: int
    pieces: list[Latents] = field(default_factory=list)
    piece: int = -1
    fed: int = 0
    final: bool = False
    fault: str = ""
    done: int = 0
    finished: bool = False
    phase: float = 0.0
    tail: Samples = field(default_factory=lambda: np.zeros(TAIL_SAMPLES, np.float32))
    echo: Samples = field(default_factory=lambda: np.zeros(_ECHO_SAMPLES, np.float32))


class BabbleAudio:
    """The audio half."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        self._options = read_options(config.options)
        self._folder = config.voices_folder
        self._device = config.device
        self._max_batch = config.max_batch
        self._streams: dict[int, _Stream] = {}
        report("loading babble", self._options.audio_load_s + 5.0)
        time.sleep(self._options.audio_load_s)
        start_children(self._options)

    @property
    def facts(self) -> AudioFacts:
        return AudioFacts(
            engine="babble",
            lookahead_tokens=LOOKAHEAD_TOKENS,
            ladder=True,
            max_batch=self._max_batch,
            seconds_per_token=1 / TOKENS_PER_SECOND,
            device=self._device,
            load_s=self._options.audio_load_s,
        )

    def open(self, stream: int, segment: Segment, checkpoint: bytes = b"") -> None:
        if stream in self._streams:
            raise RuntimeError(f"stream {stream} is already open")
        voice_pitch_hz(segment.voice, self._folder)  # the voice must exist here too
        state = _Stream(segment, with_defaults(segment.settings), digests(segment)[1])
        if checkpoint:
            _restore(state, checkpoint)
        self._streams[stream] = state

    def feed(self, stream: int, tokens: int, data: bytes, final: bool) -> None:
        state = self._streams[stream]
        if state.final:
            raise RuntimeError(f"stream {stream}: {tokens} more tokens after the final ones")
        state.final = final
        if state.fault:
            return
        try:
            latents, state.piece = read_latents(data, tokens, state.fed, state.piece, state.request)
        except EngineError as error:
            state.fault = str(error)
        else:
            state.pieces.append(latents)
            state.fed += tokens

    def render(self, jobs: Sequence[tuple[int, int]]) -> list[AudioStep | StreamError]:
        if len({stream for stream, _ in jobs}) != len(jobs) or len(jobs) > self._max_batch:
            raise RuntimeError(f"render: {len(jobs)} jobs; at most {self._max_batch}, each stream once")
        longest = max((upto - self._streams[stream].done for stream, upto in jobs), default=0)
        if self._options.render_delay_ms:
            time.sleep(self._options.render_delay_ms / 1000 * max(0, longest))
        return [self._render_one(stream, self._streams[stream], upto) for stream, upto in jobs]

    def close_stream(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def close(self) -> None:
        self._streams.clear()

    def _render_one(self, stream: int, state: _Stream, upto: int) -> AudioStep | StreamError:
        if state.fault:
            return StreamError(stream, state.fault)
        first = state.done
        last_sensible = state.fed if state.final else state.fed - LOOKAHEAD_TOKENS
        if not first <= upto <= last_sensible:
            raise RuntimeError(
                f"stream {stream}: asked for token {upto}, done {first}, fed {state.fed}"
                f"{' (final)' if state.final else f', lookahead {LOOKAHEAD_TOKENS}'}"
            )
        latents = _joined(state)
        for position in range(first, upto):
            kind = FAULTS[int(latents.fault[position])]
            if kind and fault_here(self._options, kind):
                return StreamError(stream, f"babble's sound broke at token {position}, as it was told to")
        final = state.final and upto == state.fed
        samples = _sound(state, latents, upto) if upto > first else np.zeros(0, np.float32)
        if final and not state.finished:
            samples = np.concatenate([samples, _ending(state)])
            state.finished = True
        return AudioStep(
            stream=stream,
            samples=np.clip(samples * np.float32(state.settings["volume"]), -1.0, 1.0),
            done_tokens=upto,
            checkpoint=_save(state),
            token_samples=tuple(TokenSample(token, token * TOKEN_SAMPLES, True) for token in range(first, upto)),
            final=final,
        )


# --------------------------------------------------------------------------- sound

_RISE = np.square(np.linspace(0.0, 1.0, TAIL_SAMPLES, endpoint=False))
_RISE = _RISE * (3.0 - 2.0 * np.linspace(0.0, 1.0, TAIL_SAMPLES, endpoint=False))
_FALL = 1.0 - _RISE
_BODY = np.concatenate([_RISE, np.ones(TOKEN_SAMPLES - TAIL_SAMPLES)])
_WITHIN = np.arange(TOKEN_SAMPLES) / TOKEN_SAMPLES


def _joined(state: _Stream) -> Latents:
    """All latents of the stream in one; the pieces are joined once."""
    if len(state.pieces) != 1:
        names = ("pitch_hz", "loudness", "timbre", "fault")
        empty = np.zeros(0, np.float64)
        state.pieces = [Latents(*(np.concatenate([empty, *(getattr(p, n) for p in state.pieces)]) for n in names))]
    return state.pieces[0]


def _sound(state: _Stream, latents: Latents, upto: int) -> Samples:
    """Render tokens ``done`` … ``upto`` and move the state there."""
    first = state.done
    tone, phases = _tone(state, latents, first, upto)
    weights = _weights(latents, str(state.settings["mood"]), first, upto)
    grains = (_mixed(tone[:, :-1], weights) * _BODY).astype(np.float32)
    tails = (_mixed(tone[:, 1:, :TAIL_SAMPLES], weights) * _FALL).astype(np.float32)
    grains[:, :TAIL_SAMPLES] += np.concatenate([state.tail[None], tails[:-1]])
    state.tail, state.phase, state.done = tails[-1].copy(), phases[upto - first], upto
    return _echoed(state, grains.reshape(-1))


def _tone(state: _Stream, latents: Latents, first: int, upto: int) -> tuple[_Grid, list[float]]:
    """Three harmonics and breath, [4, tokens + 1, 960]: of each token's time and the one after; phases at the edges."""
    last_known = len(latents) - 1
    around = np.arange(first, upto + 2)[:, None] + np.arange(-2, 2)[None, :]
    near = latents.pitch_hz[np.clip(around, 0, last_known)]
    edge_hz = (near[:, 0] + near[:, 1] + near[:, 2] + near[:, 3]) * 0.25
    phases = [state.phase]
    for here, there in zip(edge_hz[:-1].tolist(), edge_hz[1:].tolist(), strict=True):
        phases.append((phases[-1] + (here + there) * (0.5 / TOKENS_PER_SECOND)) % 1.0)
    slope = edge_hz[1:] - edge_hz[:-1]
    run = edge_hz[:-1, None] * _WITHIN + slope[:, None] * (0.5 * _WITHIN * _WITHIN)
    turns = np.array(phases[:-1])[:, None] + run / TOKENS_PER_SECOND
    knots = np.arange(first * TOKEN_SAMPLES, (upto + 1) * TOKEN_SAMPLES, dtype=np.uint64)
    at = knots // np.uint64(_KNOT_SAMPLES)
    share = (knots % np.uint64(_KNOT_SAMPLES)).astype(np.float64) / _KNOT_SAMPLES
    seed = state.segment.seed ^ 0x5EED
    breath = noise(seed, at) * (1.0 - share) + noise(seed, at + np.uint64(1)) * share
    return np.stack([_sine(turns), _sine(2 * turns), _sine(3 * turns), breath.reshape(turns.shape)]), phases


def _mixed(tone: _Grid, weights: _Grid) -> _Grid:
    """Sum of the four, in a fixed order (a numpy sum has none to rely on)."""
    one, two, three, breath = tone * weights[:, :, None]
    return np.asarray(one + two + three + breath)


def _sine(turns: _Grid) -> _Grid:
    """Near enough sin(2π·turns): two parabolas, refined."""
    x = turns - np.floor(turns + 0.5)
    y = 8.0 * x - 16.0 * x * np.abs(x)
    return 0.225 * (y * np.abs(y) - y) + y


def _weights(latents: Latents, mood: str, first: int, upto: int) -> _Grid:
    """How loud each of the four is in each token, [4, tokens]."""
    colour = 0.7 + 0.3 * latents.timbre[first:upto] / 15
    loudness = latents.loudness[first:upto]
    one, two, three = _MOODS[mood]
    return np.stack([one * loudness, two * colour * loudness, three * colour * loudness, _BREATH * loudness])


def _echoed(state: _Stream, x: Samples) -> Samples:
    """Add the echo; its memory moves on."""
    if not state.settings["echo"]:
        return x
    parts = []
    for start in range(0, len(x), _ECHO_SAMPLES):
        block = x[start : start + _ECHO_SAMPLES]
        parts.append(block + _ECHO * state.echo[: len(block)])
        state.echo = np.concatenate([state.echo[len(block) :], parts[-1]])
    return np.concatenate(parts)


def _ending(state: _Stream) -> Samples:
    """What was held back: the last grain's tail, faded to nothing with its echo."""
    fade = np.linspace(1.0, 0.0, TAIL_SAMPLES, dtype=np.float32)
    return _echoed(state, state.tail) * fade


# --------------------------------------------------------------------------- checkpoints


def _save(state: _Stream) -> bytes:
    head = _HEAD.pack(
        _MAGIC, state.done, state.request, state.piece, state.phase, state.segment.seed & 0xFFFFFFFFFFFFFFFF,
        state.finished,
    )  # fmt: skip
    body = head + state.tail.tobytes() + state.echo.tobytes()
    return body + zlib.crc32(body).to_bytes(4, "little")


def _restore(state: _Stream, checkpoint: bytes) -> None:
    """Put a fresh stream where the checkpoint was taken. Raises `EngineError` if it is not this stream's."""
    body, check = checkpoint[:-4], checkpoint[-4:]
    if len(body) != _HEAD.size + 4 * (TAIL_SAMPLES + _ECHO_SAMPLES):
        raise EngineError(f"checkpoint: {len(checkpoint)} bytes is not a checkpoint of babble")
    if zlib.crc32(body).to_bytes(4, "little") != check:
        raise EngineError("checkpoint: was changed on the way (checksum)")
    magic, state.done, request, state.piece, state.phase, seed, state.finished = _HEAD.unpack_from(body)
    if magic != _MAGIC or request != state.request or seed != state.segment.seed:
        raise EngineError("checkpoint: belongs to another request")
    numbers = np.frombuffer(body, np.float32, offset=_HEAD.size)
    state.tail, state.echo = numbers[:TAIL_SAMPLES].copy(), numbers[TAIL_SAMPLES:].copy()
