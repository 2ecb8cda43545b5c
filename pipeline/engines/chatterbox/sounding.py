"""One stream of the audio half: its tokens, what the next rung is to make of them, and what that leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from pipeline.engines.base import Samples
from pipeline.engines.chatterbox import wire
from pipeline.engines.chatterbox.checkpoint import State
from pipeline.engines.chatterbox.continuity import Continuity, Window
from pipeline.engines.chatterbox.flow import FlowJob, Tokens
from pipeline.engines.chatterbox.hift import BEFORE_FRAMES, HELD_FRAMES, LEFT_FRAMES, HiftJob
from pipeline.engines.chatterbox.position_noise import seed_words
from pipeline.engines.chatterbox.reference import Reference
from pipeline.engines.chatterbox.variants import (
    FRAMES_PER_TOKEN,
    LOOKAHEAD_TOKENS,
    SAMPLES_PER_FRAME,
    SAMPLES_PER_TOKEN,
)

FADE_SAMPLES = 240
"""Of a join: 10 ms in which one window's sound goes over into the next one's."""

_TRIM_SAMPLES = 480
"""A stream begins with as much silence, and fades in for as long: what spills over from the reference."""


class Post(Protocol):
    """A post-processor of one stream's sound: deterministic, with a bounded state."""

    def process(self, samples: Samples, final: bool) -> Samples: ...
    def state(self) -> bytes: ...


PostFactory = Callable[[bytes], Post]


@dataclass(frozen=True)
class Rules:
    """What all streams have in common. ``drops_last_token``: the last token of a stream is not heard."""

    continuity: Continuity
    drops_last_token: bool = False

    @property
    def held_frames(self) -> int:
        """Frames behind the sound that are made but cannot sound yet."""
        return HELD_FRAMES + self.continuity.revised_frames

    @property
    def kept_frames(self) -> int:
        """Frames that a state keeps."""
        return max(self.continuity.given_frames, BEFORE_FRAMES + self.held_frames)


@dataclass
class Stream:
    """``tokens``: those that may still be needed, from number ``first_token`` on; ``fed`` in all."""

    rules: Rules
    reference: Reference
    seed: int
    steps: int
    digest: bytes
    state: State
    posts: list[Post]
    tokens: Tokens = field(default_factory=lambda: np.zeros(0, np.int64))
    first_token: int = 0
    fed: int = 0
    final: bool = False

    def feed(self, data: bytes, count: int, final: bool) -> None:
        """Take what T3 made; ids among it that are no sound are passed over (see `wire`). Raises `EngineError` unless
        ``count`` are left."""
        tokens = np.array(wire.sound(wire.decode(data, count)), np.int64)
        first = self.rules.continuity.window(self.state.done_tokens).first_token
        joined = np.concatenate([self.tokens, tokens])
        drop = max(0, min(first - self.first_token, len(joined)))
        self.tokens, self.first_token = joined[drop:], self.first_token + drop
        self.fed, self.final = self.fed + count, final

    def work(self, upto: int) -> Work:
        """What a rung up to token ``upto`` is. Raises `RuntimeError` when the tokens for it are not there."""
        done, fed = self.state.done_tokens, self.fed
        if not done <= upto <= (fed if self.final else fed - LOOKAHEAD_TOKENS):
            raise RuntimeError(
                f"asked for token {upto}, done {done}, fed {fed}"
                f"{' (final)' if self.final else f', lookahead {LOOKAHEAD_TOKENS}'}"
            )
        return Work(self, upto, self.final and upto == fed, self.rules.continuity.window(done))

    @property
    def length_samples(self) -> int:
        """Of the whole stream before post-processing, once it is final."""
        unheard = SAMPLES_PER_TOKEN if self.rules.drops_last_token and self.fed > 1 else 0
        return self.fed * SAMPLES_PER_TOKEN - unheard


@dataclass(frozen=True)
class Work:
    """A rung in the making: from the stream's state to the mel frames up to ``upto``, then to their sound."""

    stream: Stream
    upto: int
    final: bool
    window: Window

    @property
    def new_frames(self) -> int:
        """Mel frames to make (0: only what was held back is to be sounded)."""
        return FRAMES_PER_TOKEN * (self.upto - self.stream.state.done_tokens)

    def flow_job(self, device: torch.device) -> FlowJob:
        """The mel frames to make."""
        stream, window = self.stream, self.window
        lookahead = min(LOOKAHEAD_TOKENS, stream.fed - self.upto)
        own = stream.tokens[window.first_token - stream.first_token : self.upto + lookahead - stream.first_token]
        given = [stream.reference.mel]
        if window.given_frames:
            given.append(_up(stream.state.mel[:, -window.given_frames :], device))
        return FlowJob(
            tokens=np.concatenate([stream.reference.tokens, own]),
            lookahead=lookahead,
            given=tuple(given),
            prompt_frames=FRAMES_PER_TOKEN * len(stream.reference.tokens),
            first_frame=FRAMES_PER_TOKEN * window.first_token,
            speaker=stream.reference.speaker,
            noise_words=seed_words(stream.seed),
            steps=stream.steps,
            chunked=window.chunked,
        )

    def frames(self, made: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """(80, F): the frames kept in the state, then the new ones of what flow ``made``, blended where both are."""
        kept = _up(self.stream.state.mel, device)
        if made is None:
            return kept
        revised = self.window.revised_frames
        new = made[:, made.shape[1] - self.new_frames - revised :]
        if not revised:
            return torch.cat([kept, new], dim=1)
        share = torch.linspace(0, 1, revised + 2, device=device)[1:-1]
        blended = kept[:, -revised:] * (1 - share) + new[:, :revised] * share
        return torch.cat([kept[:, :-revised], blended, new[:, revised:]], dim=1)

    # ------------------------------------------------------------------ sound

    @property
    def sounded_frames(self) -> int:
        """Frames whose sound is out after this rung."""
        made = FRAMES_PER_TOKEN * self.upto
        return made if self.final else max(self.stream.state.sounded_frames, made - self.stream.rules.held_frames)

    @property
    def sounds(self) -> bool:
        return self.sounded_frames > self.stream.state.sounded_frames

    def hift_job(self, frames: torch.Tensor) -> HiftJob:
        """The sound to make of ``frames``, the last of which is the one before token ``upto``."""
        state, begin = self.stream.state, self._begin
        return HiftJob(
            mel=frames[:, frames.shape[1] - (FRAMES_PER_TOKEN * self.upto - begin) :],
            first_frame=begin,
            anchor=max(0, state.sounded_frames - LEFT_FRAMES) - begin,
            next_anchor=max(0, self.sounded_frames - LEFT_FRAMES) - begin,
            phase=state.phase,
            seed=self.stream.seed,
            final=self.final,
        )

    @property
    def _begin(self) -> int:
        """The first frame of the vocoder's window."""
        return max(0, self.stream.state.sounded_frames - BEFORE_FRAMES)

    def heard(self, sound: torch.Tensor) -> torch.Tensor:
        """Of the window's samples those that go out, and behind them those that the next join fades from."""
        first = (self.stream.state.sounded_frames - self._begin) * SAMPLES_PER_FRAME
        last = (self.sounded_frames - self._begin) * SAMPLES_PER_FRAME
        return sound[first : last if self.final else last + FADE_SAMPLES]

    def kept(self, frames: torch.Tensor) -> torch.Tensor:
        """The frames that the next rung needs (80, K)."""
        return frames[:, frames.shape[1] if self.final else -self.stream.rules.kept_frames :]

    def finish(self, sound: Samples, phase: float, mel: Samples) -> Samples:
        """Take what was made of `heard` and `kept`: the state moves on. The samples that go out."""
        stream, before = self.stream, self.stream.state
        samples, tail = sound, before.tail
        if self.sounds:
            samples, tail = np.split(sound, [len(sound) - (0 if self.final else FADE_SAMPLES)])
            first = before.sounded_frames * SAMPLES_PER_FRAME
            samples = _faded_in(_joined(before.tail, samples), first)
            if self.final:
                samples = samples[: max(0, stream.length_samples - first)]
        for post in stream.posts:
            samples = post.process(samples, self.final)
        stream.state = State(
            done_tokens=self.upto,
            sounded_frames=self.sounded_frames,
            phase=phase,
            finished=self.final,
            mel=mel,
            tail=tail,
            posts=tuple(post.state() for post in stream.posts),
        )
        return np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)


def restored(posts: Sequence[PostFactory], states: Sequence[bytes]) -> list[Post]:
    """The post-processors of a stream, fresh or from their states."""
    return [make(state) for make, state in zip(posts, states or [b""] * len(posts), strict=True)]


def _up(host: Samples, device: torch.device) -> torch.Tensor:
    """To the device without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(host))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _joined(tail: Samples, samples: Samples) -> Samples:
    """Go over from what the last window made of the beginning to what this one makes of it."""
    if not len(tail):
        return samples
    share = np.linspace(0, 1, len(tail) + 2, dtype=np.float32)[1:-1]
    return np.concatenate([tail * (1 - share) + samples[: len(tail)] * share, samples[len(tail) :]])


def _faded_in(samples: Samples, first: int) -> Samples:
    """Silence and fade where a stream begins; ``first`` is the number of the first sample."""
    count = min(len(samples), max(0, 2 * _TRIM_SAMPLES - first))
    if not count:
        return samples
    ramp = (np.cos(np.linspace(np.pi, 0, _TRIM_SAMPLES, dtype=np.float32)) + 1) / 2
    gain = np.concatenate([np.zeros(_TRIM_SAMPLES, np.float32), ramp])[first : first + count]
    return np.concatenate([samples[:count] * gain, samples[count:]])
