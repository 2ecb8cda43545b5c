"""The audio half of the Chatterbox engines: speech tokens in, 24 kHz sound out, many streams at once.

    ChatterboxAudio(
        variant, s3gen, voices, *, device, dtype, max_batch, report,
        continuity="context", context_tokens=25, cfm_steps=None, prompt_s=None, posts=None,
        rows_at_once=None, rungs=(7, 12, 25, 50), load_s=0.0,
    )

- ``variant``: `variants.Variant`. ``s3gen``: the stock module with its weights; it is taken over (cast, moved, folded).
- ``voices``: anything with ``conditionals(name) -> Conditionals`` that raises `EngineError`.
- ``device``: cpu, cuda:0, mps. ``dtype``: torch.float32, bfloat16 or float16, of the estimator alone.
- ``cfm_steps``: None takes the variant's; a request's setting of that name comes before it, unless it is 0.
- ``prompt_s``: how much of the reference S3Gen sees; None all that the voice has.
- ``posts``: for a segment the post-processors of its sound, each made from its state (b"": a fresh one).
- ``rows_at_once``: streams that go through the networks together (default: up to 16 on CUDA, elsewhere 1,
  where more would bring nothing). A stream's sound does not depend on its neighbours: exactly with one row, to 1e-5 in
  float32 with more, because matrix products of another size add up in another order.
- ``rungs``: the sizes, in tokens, that graphs are captured for; others run without a graph. None: no graphs.

Per rung: `continuity` says what to make, `flow` makes mel frames, `hift` sounds them all but the last ones, which
the next rung's frames may still change; `checkpoint` keeps what the next rung needs. All of a call's results come
from the device in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from chatterbox.models.s3gen import S3Gen

from ipc.messages import AudioFacts, TokenSample
from pipeline.engines.base import AudioStep, EngineError, Report, Samples, Segment, StreamError
from pipeline.engines.chatterbox.checkpoint import State, pack, request_digest, unpack
from pipeline.engines.chatterbox.continuity import CONTEXT_TOKENS, Continuity
from pipeline.engines.chatterbox.flow import Flow
from pipeline.engines.chatterbox.hift import Hift
from pipeline.engines.chatterbox.reference import References, Voices
from pipeline.engines.chatterbox.sounding import PostFactory, Rules, Stream, Work, restored
from pipeline.engines.chatterbox.together import Memory, OutOfMemory, together
from pipeline.engines.chatterbox.variants import (
    LOOKAHEAD_TOKENS,
    SAMPLES_PER_TOKEN,
    TOKENS_PER_S,
    Variant,
)
from pipeline.engines.chatterbox.warm_up import warm_up

Posts = Callable[[Segment], Sequence[PostFactory]]

MOST_STEPS = 50
SLOW_DEADLINE_S = 60.0
"""How long one call may take without a GPU: a rung of the full models takes several seconds there."""

_CUDA_BUCKET_TOKENS = 32
_CUDA_BUCKET_FRAMES = 16
_CUDA_ROWS = 16
"""More streams at once than this bring no more: the GPU is busy."""


class ChatterboxAudio:
    """The audio half; see the module."""

    def __init__(
        self,
        variant: Variant,
        s3gen: S3Gen,
        voices: Voices,
        *,
        device: str,
        dtype: torch.dtype,
        max_batch: int,
        report: Report,
        continuity: str = "context",
        context_tokens: int = CONTEXT_TOKENS,
        cfm_steps: int | None = None,
        prompt_s: float | None = None,
        posts: Posts | None = None,
        rows_at_once: int | None = None,
        rungs: Sequence[int] = (7, 12, 25, 50),
        load_s: float = 0.0,
    ) -> None:
        """Raises `EngineError` naming the option that is out of range."""
        self._variant, self._max_batch, self._load_s = variant, max_batch, load_s
        self._device = torch.device(device)
        self._steps = _steps(variant.cfm_steps if cfm_steps is None else cfm_steps)
        self._rules = Rules(Continuity(continuity, context_tokens), variant.drops_last_token)
        self._posts: Posts = posts or (lambda segment: ())
        cuda = self._device.type == "cuda"
        self._flow = Flow(s3gen, self._device, dtype, _CUDA_BUCKET_TOKENS if cuda else 1)
        self._hift = Hift(s3gen, self._device, _CUDA_BUCKET_FRAMES if cuda else 1)
        self._references = References(voices, self._flow, prompt_s)
        self._memory = Memory(rows_at_once or (min(max_batch, _CUDA_ROWS) if cuda else 1), powers=cuda)
        self._engine = f"{variant.name} {continuity} {context_tokens} {prompt_s}"
        self._streams: dict[int, Stream] = {}
        self._report = report
        report("preparing S3Gen", 60.0)
        if cuda:
            longest_s = variant.s3gen_reference_s if prompt_s is None else prompt_s
            warm_up(self._flow, self._hift, self._memory, self._rules, self._steps, longest_s, rungs, report)

    @property
    def facts(self) -> AudioFacts:
        return AudioFacts(
            engine=self._variant.name,
            lookahead_tokens=LOOKAHEAD_TOKENS,
            ladder=True,
            max_batch=self._max_batch,
            seconds_per_token=1 / TOKENS_PER_S,
            device=str(self._device),
            load_s=self._load_s,
        )

    def open(self, stream: int, segment: Segment, checkpoint: bytes = b"") -> None:
        """See `AudioModel`. Raises `EngineError` for a voice that does not exist or a foreign checkpoint."""
        if stream in self._streams:
            raise RuntimeError(f"stream {stream} is already open")
        steps = _steps(int(segment.settings.get("cfm_steps", 0)) or self._steps)
        digest = request_digest(segment, f"{self._engine} {steps}")
        state = unpack(checkpoint, digest) if checkpoint else State()
        posts = self._posts(segment)
        if checkpoint and len(posts) != len(state.posts):
            raise EngineError(f"checkpoint: made with {len(state.posts)} post-processors, not {len(posts)}")
        self._streams[stream] = Stream(
            rules=self._rules,
            reference=self._references.get(segment.voice),
            seed=segment.seed,
            steps=steps,
            digest=digest,
            state=state,
            posts=restored(posts, state.posts),
        )

    def feed(self, stream: int, tokens: int, data: bytes, final: bool) -> None:
        """Little-endian uint16 per token. Raises `EngineError` when they are no speech tokens."""
        state = self._streams[stream]
        if state.final:
            raise RuntimeError(f"stream {stream}: {tokens} more tokens after the final ones")
        state.feed(data, tokens, final)

    def render(self, jobs: Sequence[tuple[int, int]]) -> list[AudioStep | StreamError]:
        """See `AudioModel`. A stream for which there is not enough memory breaks alone; CUDA errors are raised."""
        if len({stream for stream, _ in jobs}) != len(jobs) or len(jobs) > self._max_batch:
            raise RuntimeError(f"render: {len(jobs)} jobs; at most {self._max_batch}, each stream once")
        works = [self._streams[stream].work(upto) for stream, upto in jobs]
        if self._device.type != "cuda":
            self._report("rendering", SLOW_DEADLINE_S)
        with torch.inference_mode(), self._convolutions():
            sounds = self._sounds(works, self._frames(works))
            fetched = iter(_fetched([one for one in sounds if one is not None]))
        return [
            StreamError(stream, "out of GPU memory, even for this stream alone")
            if sound is None
            else self._step(stream, work, *next(fetched))
            for (stream, _), work, sound in zip(jobs, works, sounds, strict=True)
        ]

    def close_stream(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def close(self) -> None:
        self._streams.clear()
        self._references.clear()

    def _convolutions(self) -> AbstractContextManager[None]:
        """On the CPU without oneDNN: it compiles each convolution anew for each new length, seconds for a rung that
        then runs in tenths."""
        if self._device.type == "cpu" and self._flow.dtype == torch.float32:
            return torch.backends.mkldnn.flags(enabled=False)
        return nullcontext()

    def _frames(self, works: Sequence[Work]) -> list[torch.Tensor | None]:
        """For each rung the frames (80, F) up to its last token; None: out of memory."""
        making = [work for work in works if work.new_frames]
        jobs = [work.flow_job(self._device) for work in making]
        made = dict(zip(map(id, making), together(jobs, self._flow.key, self._flow.mels, self._memory), strict=True))
        frames: list[torch.Tensor | None] = []
        for work in works:
            mel = made.get(id(work))
            frames.append(None if isinstance(mel, OutOfMemory) else work.frames(mel, self._device))
        return frames

    def _sounds(
        self, works: Sequence[Work], frames: Sequence[torch.Tensor | None]
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None]:
        """For each rung its samples, the phase's bits and the frames to keep, on the device; None: out of memory."""
        sounding = [
            (index, work.hift_job(mel))
            for index, (work, mel) in enumerate(zip(works, frames, strict=True))
            if mel is not None and work.sounds
        ]
        made = together(
            [job for _, job in sounding],
            self._hift.key,
            lambda jobs: list(zip(*self._hift.sounds(jobs), strict=True)),
            self._memory,
        )
        by_index = {index: one for (index, _), one in zip(sounding, made, strict=True)}
        sounds: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None] = []
        for index, (work, mel) in enumerate(zip(works, frames, strict=True)):
            one = by_index.get(index)
            if mel is None or isinstance(one, OutOfMemory):
                sounds.append(None)
            elif one is None:
                sounds.append((mel.new_zeros(0), mel.new_zeros(0), work.kept(mel)))
            else:
                sounds.append((work.heard(one[0]), one[1], work.kept(mel)))
        return sounds

    def _step(self, stream: int, work: Work, sound: Samples, bits: Samples, mel: Samples) -> AudioStep:
        state = work.stream
        first = state.state.done_tokens
        if state.state.finished:
            samples = sound
        else:
            phase = float(bits.view(np.float64)[0]) if len(bits) else state.state.phase
            samples = work.finish(sound, phase, mel)
        scale = 1.0
        for post in state.posts:
            scale *= float(getattr(post, "scale", 1.0))
        return AudioStep(
            stream=stream,
            samples=samples,
            done_tokens=work.upto,
            checkpoint=pack(state.state, state.digest),
            token_samples=tuple(
                TokenSample(token, int(token * SAMPLES_PER_TOKEN * scale), True) for token in range(first, work.upto)
            ),
            final=work.final,
        )


def _steps(steps: int) -> int:
    if not 1 <= steps <= MOST_STEPS:
        raise EngineError(f"cfm_steps: {steps} is not between 1 and {MOST_STEPS}")
    return steps


def _fetched(made: Sequence[tuple[torch.Tensor, ...]]) -> list[tuple[Samples, ...]]:
    """Everything to the host, in one copy: the only place where anybody waits for the device."""
    if not made:
        return []
    pieces = [piece for one in made for piece in one]
    flat = torch.cat([piece.reshape(-1) for piece in pieces]).cpu().numpy()
    ends = np.cumsum([piece.numel() for piece in pieces])[:-1]
    shaped = [part.reshape(tuple(piece.shape)).copy() for part, piece in zip(np.split(flat, ends), pieces, strict=True)]
    size = len(made[0])
    return [tuple(shaped[at : at + size]) for at in range(0, len(shaped), size)]
