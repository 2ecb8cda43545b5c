"""The s3gen stage's bookkeeping: streams of tokens become samples in ring slots.

`AudioStreams` stands between messages, an `AudioModel` and ring writers; it knows no sockets.

- A slot has one stream at a time. Streams with a rung ready are rendered together, those that have
  waited longest first, at most the model's batch in one call.
- A rung is rendered only when the one before is wholly in the ring; that bounds what a stream holds.
- What is in the ring is told by the ring alone: sample k of the stream stands at ``first_sample + k``,
  so everything below the writer's cursor is there and everything else is not. After a crash the
  rung is made again and only what is missing is written.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ipc.messages import (
    CancelStream,
    Internal,
    OpenStream,
    Rendered,
    StreamClosed,
    StreamFailed,
    Tokens,
    TokenSample,
    Welcome,
)
from ipc.ring import LeaseLost, RingError
from pipeline.credit import next_cut
from pipeline.engines.base import AudioModel, AudioStep, EngineError, Samples, Segment, StreamError

_SILENCE = np.zeros(2400, np.float32)


class Writer(Protocol):
    """What is needed of `ipc.ring.RingWriter`."""

    @property
    def written(self) -> int: ...
    def begin_span(self, epoch: int, segment: int) -> bool: ...
    def write(self, samples: Samples) -> int: ...
    def complete(self) -> None: ...


@dataclass
class _Rung:
    """What one render made: the stream's samples from ``first`` on, then ``silence`` more."""

    first: int
    samples: Samples
    silence: int
    done_tokens: int
    checkpoint: bytes
    token_samples: deque[TokenSample]
    render_s: float
    final: bool

    @property
    def end(self) -> int:
        return self.first + len(self.samples) + self.silence


@dataclass
class _Stream:
    """A segment being rendered. ``done_*``: rendered and in the ring; ``pieces``: where fed pieces end."""

    request: OpenStream
    writer: Writer
    done_tokens: int
    done_samples: int
    fed_tokens: int = 0
    final: bool = False
    opened: bool = False
    spanned: bool = False
    rung: _Rung | None = None
    turn: int = 0
    pieces: deque[int] = field(default_factory=deque)

    @property
    def in_ring(self) -> int:
        """Samples of the stream that the ring holds or has held."""
        return self.writer.written - self.request.first_sample


class AudioStreams:
    """Everything s3gen holds. ``writer_of(slot, lease)`` gives the writing end of a slot."""

    def __init__(
        self,
        model: AudioModel,
        writer_of: Callable[[int, int], Writer],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._facts = model.facts
        self._writer_of = writer_of
        self._clock = clock
        self._streams: dict[int, _Stream] = {}
        self._finished: list[int] = []
        self._turn = 0
        self.moved = 0
        self.counters = {"rungs": 0, "renders": 0, "samples": 0, "failed": 0, "lease_lost": 0}

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def ready(self) -> bool:
        """Whether a step would render something."""
        return any(self._job(stream) is not None for stream in self._streams.values())

    @property
    def blocked(self) -> bool:
        """Whether sound waits for room in a ring."""
        return any(stream.rung is not None for stream in self._streams.values())

    def handle(self, message: Internal) -> list[Internal]:
        """Take one message of the dispatcher; what to answer."""
        match message:
            case Welcome():
                for number in list(self._streams):
                    self._drop(number)
                return []
            case OpenStream():
                return self._open(message)
            case Tokens():
                return self._feed(message)
            case CancelStream(number):
                self._drop(number)
                return [StreamClosed(number)]
            case _:
                return []

    def step(self) -> list[Internal]:
        """Write what rings take, render what is ready (one call), write that; what to report.

        ``moved`` is afterwards the most samples that one stream's ring took.
        """
        self.moved = 0
        reports: list[Internal] = []
        for number, stream in list(self._streams.items()):
            reports += self._push(number, stream)
        jobs = self._jobs()
        for number, upto in [job for job in jobs if not self._streams[job[0]].opened]:
            jobs.remove((number, upto))  # no token at all: only its pause, for which no engine is needed
            reports += self._take(AudioStep(number, _SILENCE[:0], upto, b""), 0.0)
        if jobs:
            began = self._clock()
            steps = self._model.render(jobs)
            reports += self._rendered(dict(jobs), steps, self._clock() - began)
        return reports

    @property
    def finished(self) -> bool:
        """Something is over that the engine has not closed yet."""
        return bool(self._finished)

    def close_finished(self) -> None:
        """Close what is over in the engine. Best done when there is nothing else to do: it takes time."""
        while self._finished:
            self._model.close_stream(self._finished.pop())

    def _open(self, request: OpenStream) -> list[Internal]:
        number = request.stream
        if number in self._streams:
            return self._fail(number, f"stream {number} is already open")
        if any(stream.request.slot == request.slot for stream in self._streams.values()):
            return self._fail(number, f"slot {request.slot} still has an open stream")
        if self._facts.ladder and (not request.rungs or min(request.rungs) < 1):
            return self._fail(number, f"rungs {request.rungs}: at least one, each of 1 token or more")
        try:
            writer = self._writer_of(request.slot, request.lease)
        except LeaseLost:
            self.counters["lease_lost"] += 1
            return []
        except RingError as error:
            return self._fail(number, str(error))
        self._streams[number] = _Stream(request, writer, request.done_tokens, request.done_samples)
        return []

    def _feed(self, piece: Tokens) -> list[Internal]:
        stream = self._streams.get(piece.stream)
        if stream is None:
            return []
        if stream.final or piece.first_token != stream.fed_tokens:
            return self._fail(piece.stream, f"tokens from {piece.first_token} on, {stream.fed_tokens} were the next")
        try:
            if piece.tokens and not stream.opened:
                self.close_finished()
                self._model.open(piece.stream, _segment(stream.request), stream.request.checkpoint)
                stream.opened = True
            if stream.opened:
                self._model.feed(piece.stream, piece.tokens, piece.data, piece.final)
        except EngineError as error:
            return self._fail(piece.stream, str(error))
        stream.fed_tokens += piece.tokens
        stream.final = piece.final
        if stream.final and stream.fed_tokens < stream.done_tokens:
            return self._fail(
                piece.stream, f"{stream.done_tokens} tokens are said to be done, but there are {stream.fed_tokens}"
            )
        if piece.tokens:
            stream.pieces.append(stream.fed_tokens)
        return []

    def _job(self, stream: _Stream) -> int | None:
        """Up to which token the stream can be rendered now."""
        if stream.rung is not None:
            return None
        fed, done = stream.fed_tokens, stream.done_tokens
        if stream.final and done >= fed:
            return fed  # what the engine held back, the pause
        if self._facts.ladder:
            cut = next_cut(stream.request.rungs, done)
        else:
            while stream.pieces and stream.pieces[0] <= done:
                stream.pieces.popleft()
            if not stream.pieces:
                return None
            cut = stream.pieces[0]
        if stream.final:
            return min(cut, fed)
        return cut if fed >= cut + self._facts.lookahead_tokens else None

    def _jobs(self) -> list[tuple[int, int]]:
        """The streams to render now: those that have waited longest, as many as the model takes."""
        ready = [
            (stream.turn, number, upto)
            for number, stream in self._streams.items()
            if (upto := self._job(stream)) is not None
        ]
        jobs = []
        for _, number, upto in sorted(ready)[: max(1, self._facts.max_batch)]:
            self._turn += 1
            self._streams[number].turn = self._turn
            jobs.append((number, upto))
        return jobs

    def _rendered(
        self, jobs: dict[int, int], steps: Sequence[AudioStep | StreamError], render_s: float
    ) -> list[Internal]:
        """Take what the model made of the jobs; each must have its answer."""
        self.counters["renders"] += 1
        reports: list[Internal] = []
        for one in steps:
            upto = jobs.pop(one.stream, None)
            if upto is None:
                continue
            if isinstance(one, StreamError):
                reports += self._fail(one.stream, one.reason)
            elif flaw := _flaw(one, upto):
                reports += self._fail(one.stream, flaw)
            else:
                reports += self._take(one, render_s)
        for number, upto in jobs.items():
            reports += self._fail(number, f"the engine returned nothing for the rung up to token {upto}")
        return reports

    def _take(self, step: AudioStep, render_s: float) -> list[Internal]:
        stream = self._streams[step.stream]
        final = stream.final and step.done_tokens >= stream.fed_tokens
        self.counters["rungs"] += 1
        stream.rung = _Rung(
            first=stream.done_samples,
            samples=step.samples,
            silence=stream.request.pause_samples if final else 0,
            done_tokens=step.done_tokens,
            checkpoint=step.checkpoint,
            token_samples=deque(step.token_samples),
            render_s=render_s,
            final=final,
        )
        return self._push(step.stream, stream)

    def _push(self, number: int, stream: _Stream) -> list[Internal]:
        """Write what the ring takes of the stream's rung, and report it."""
        if stream.rung is None:
            return []
        try:
            accepted = self._write(stream, stream.rung)
            whole = stream.in_ring >= stream.rung.end
            if whole and stream.rung.final:
                stream.writer.complete()
        except LeaseLost:
            self.counters["lease_lost"] += 1
            self._drop(number)
            return []
        except RingError as error:
            return self._fail(number, str(error))
        self.moved = max(self.moved, accepted)
        self.counters["samples"] += accepted
        if whole:
            return self._finish_rung(number, stream, stream.rung)
        return [self._report(number, stream, stream.rung, stream.in_ring)] if accepted else []

    def _write(self, stream: _Stream, rung: _Rung) -> int:
        """How many samples the ring took. What it already holds is left out."""
        at = stream.in_ring
        if at < rung.first:
            raise RingError(f"the ring holds {at} samples of the stream, but {rung.first} are said to be done")
        if at >= rung.end:
            return 0
        if not stream.spanned:
            stream.spanned = stream.writer.begin_span(stream.request.epoch, stream.request.segment)
            if not stream.spanned:
                return 0
        accepted = 0
        if at < (sound_end := rung.first + len(rung.samples)):
            accepted = stream.writer.write(rung.samples[at - rung.first :])
            if at + accepted < sound_end:
                return accepted
        while (left := rung.end - stream.in_ring) > 0:
            silent = stream.writer.write(_SILENCE[:left])
            accepted += silent
            if silent < min(left, len(_SILENCE)):
                break
        return accepted

    def _finish_rung(self, number: int, stream: _Stream, rung: _Rung) -> list[Internal]:
        stream.rung = None
        stream.done_tokens, stream.done_samples = rung.done_tokens, rung.end
        if rung.final:
            del self._streams[number]
            self._finished += [number] if stream.opened else []
        return [self._report(number, stream, rung, rung.end, whole=True)]

    def _report(self, number: int, stream: _Stream, rung: _Rung, samples: int, *, whole: bool = False) -> Rendered:
        """What is new in the ring. Tokens are reported once heard, the rung's cost once."""
        heard: list[TokenSample] = []
        while rung.token_samples and (whole or rung.token_samples[0].sample < samples):
            heard.append(rung.token_samples.popleft())
        render_s, rung.render_s = rung.render_s, 0.0
        return Rendered(
            stream=number,
            samples=samples,
            done_tokens=stream.done_tokens,
            checkpoint=rung.checkpoint if whole else None,
            token_samples=tuple(heard),
            render_s=render_s,
            final=whole and rung.final,
        )

    def _fail(self, number: int, reason: str) -> list[Internal]:
        self._drop(number)
        self.counters["failed"] += 1
        return [StreamFailed(number, reason)]

    def _drop(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None and stream.opened:
            self._model.close_stream(number)


def _segment(request: OpenStream) -> Segment:
    return Segment(
        text="",
        boundary=request.boundary,
        voice=request.voice,
        language=request.language,
        speed=request.speed,
        seed=request.seed,
        settings=dict(request.settings),
    )


def _flaw(step: AudioStep, upto: int) -> str:
    """What is wrong with a rung (empty: nothing): nothing but finite sound may reach a ring."""
    if step.done_tokens != upto:
        return f"the engine rendered up to token {step.done_tokens}, asked was {upto}"
    if step.samples.ndim != 1 or step.samples.dtype != np.float32:
        return f"the engine made {step.samples.ndim} dimensions of {step.samples.dtype}, needed is one of float32"
    return "" if np.isfinite(step.samples).all() else "the engine made samples that are no finite numbers"
