"""Speech tokens to mel frames: the stock encoder and CFM estimator with forwards of our own.

The weights and submodules are those of `chatterbox-tts`; what is not are the ways between them. The package's own
ways ask the device for numbers some 140 times a chunk (masks, ranges, progress bars), cannot be given noise, and trim
what they made without trimming its mask. Here nothing leaves the device, masks are made from lengths that the host
knows, and several streams go through together: what a mask hides is exactly zero wherever a neighbour could see it,
so that a row's result is the same whatever stands beside it or behind its end.

Encoder and sums are float32; the estimator runs in the precision asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from chatterbox.models.s3gen import S3Gen

from pipeline.engines.chatterbox.position_noise import normals
from pipeline.engines.chatterbox.replay import Replay
from pipeline.engines.chatterbox.variants import FRAMES_PER_TOKEN

MEL_CHANNELS = 80
NOISE_OF_MEL = 1
MASK_TOKENS = 25
"""Of a chunk of the experimental chunk masks: one second."""

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FlowJob:
    """One stream's window. Times run on the stream's clock, whose zero is its first token.

    ``tokens``: reference, then stream, ``lookahead`` of them at the end only to be looked at. ``given``: mel frames
    (80, G) on the device that are known, from the first; the result is meant to continue them. ``prompt_frames`` of
    the sequence are the reference; the frame after them is number ``first_frame`` of the stream. ``speaker``: (80,).
    ``chunked``: hide from each second what comes after it.
    """

    tokens: Tokens
    lookahead: int
    given: tuple[torch.Tensor, ...]
    prompt_frames: int
    first_frame: int
    speaker: torch.Tensor
    noise_words: tuple[int, int]
    steps: int
    chunked: bool = False

    @property
    def frames(self) -> int:
        """Mel frames that come out, those of the reference among them."""
        return FRAMES_PER_TOKEN * (len(self.tokens) - self.lookahead)


class Flow:
    """Takes ``s3gen.flow`` over: the estimator is cast to ``dtype`` where it stands, the rest to float32.

    ``bucket_tokens``: lengths are rounded up to a multiple of it (1: not at all).
    """

    def __init__(self, s3gen: S3Gen, device: torch.device, dtype: torch.dtype, bucket_tokens: int = 1) -> None:
        flow = s3gen.flow.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self._embedding = flow.input_embedding
        self._speaker = flow.spk_embed_affine_layer
        self._encoder = flow.encoder
        self._projection = flow.encoder_proj
        self._guidance = float(flow.decoder.inference_cfg_rate)
        self._cosine = flow.decoder.t_scheduler == "cosine"
        self._estimator = flow.decoder.estimator
        self.meanflow = bool(self._estimator.meanflow)
        self.device, self.dtype, self.bucket_tokens = device, dtype, bucket_tokens
        self._schedules: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._time = self._time_embedder()
        self._estimator.to(dtype)
        self._hidden = max(-1.0e10, torch.finfo(dtype).min / 2)
        self.encoder, self.step = Replay(self._encoded), Replay(self._step)

    def speaker(self, embedding: torch.Tensor) -> torch.Tensor:
        """What the estimator is told of a voice, (80,), from its x-vector (1, 192)."""
        return self._speaker(torch.nn.functional.normalize(embedding.to(self.device).float(), dim=1))[0]

    def key(self, job: FlowJob) -> tuple[int, int, int, bool]:
        """Jobs with the same key may be computed together: tokens and frames in their buckets, steps, masks."""
        bucket = self.bucket_tokens
        tokens = math.ceil(len(job.tokens) / bucket) * bucket
        frames = job.frames if bucket == 1 else FRAMES_PER_TOKEN * tokens
        return tokens, frames, job.steps, job.chunked

    @torch.inference_mode()
    def mels(self, jobs: Sequence[FlowJob]) -> list[torch.Tensor]:
        """Mel frames (80, ``frames``) of each job, those of the reference first. All jobs must have the same key."""
        length, frames, steps, chunked = self.key(jobs[0])
        padded = any(len(job.tokens) != length or job.frames != frames for job in jobs) or self.bucket_tokens > 1
        mu = self._encode(jobs, length, frames, chunked)
        known = torch.zeros(len(jobs), MEL_CHANNELS, frames, device=self.device)
        for row, job in zip(known, jobs, strict=True):
            at = 0
            for piece in job.given:
                row[:, at : at + piece.shape[1]] = piece
                at += piece.shape[1]
        speaker = torch.stack([job.speaker for job in jobs])[:, :, None].expand(-1, -1, frames)
        fixed = torch.cat([mu, speaker, known], dim=1)
        x = self._solve(self.noise(jobs, frames), fixed, jobs, frames, steps, padded, chunked)
        return [row[:, : job.frames] for row, job in zip(x, jobs, strict=True)]

    def noise(self, jobs: Sequence[FlowJob], frames: int) -> torch.Tensor:
        """Where each row's frames begin to be made from, (B, 80, frames). Frames of the reference count back from 0."""
        host = torch.tensor([(*job.noise_words, job.prompt_frames, job.first_frame) for job in jobs], dtype=torch.int64)
        facts = self._up(host)
        at = torch.arange(frames, device=self.device)[None] - facts[:, 2:3]
        positions = torch.where(at < 0, at, at + facts[:, 3:4])
        return normals(facts[:, :2], positions, MEL_CHANNELS, NOISE_OF_MEL)

    def _encode(self, jobs: Sequence[FlowJob], length: int, frames: int, chunked: bool) -> torch.Tensor:
        """(B, 80, frames): zero beyond a row's own end."""
        host = torch.zeros(len(jobs), length, dtype=torch.int64)
        for row, job in zip(host, jobs, strict=True):
            row[: len(job.tokens)] = torch.from_numpy(job.tokens)
        lengths = [len(job.tokens) for job in jobs]
        inside = self._inside(lengths, length)
        doubled = self._inside([FRAMES_PER_TOKEN * one for one in lengths], FRAMES_PER_TOKEN * length)
        chunk = MASK_TOKENS if chunked else 0
        return self.encoder(
            self._up(host),
            inside,
            self._visible(inside, chunk),
            doubled,
            self._visible(doubled, FRAMES_PER_TOKEN * chunk),
            self._inside([job.frames for job in jobs], frames),
        )

    def _encoded(
        self,
        tokens: torch.Tensor,
        inside: torch.Tensor,
        visible: torch.Tensor,
        doubled: torch.Tensor,
        doubled_visible: torch.Tensor,
        ends: torch.Tensor,
    ) -> torch.Tensor:
        """The encoder: int64 (B, T) to (B, 80, F). The masks are bool; nothing hidden leaves a trace in the result."""
        encoder = self._encoder
        keep = inside[:, :, None].float()
        x, places, _ = encoder.embed(self._embedding(tokens) * keep, inside[:, None])
        x = encoder.pre_lookahead_layer(x * keep)
        for layer in encoder.encoders:
            x = layer(x, visible, places, inside[:, None])[0]
        x, places, _ = encoder.up_embed(self._doubled(x), doubled[:, None])
        for layer in encoder.up_encoders:
            x = layer(x, doubled_visible, places, doubled[:, None])[0]
        x = self._projection(encoder.after_norm(x[:, : ends.shape[1]])).transpose(1, 2)
        return x * ends[:, None].float()

    def _doubled(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, 512) to (B, 2T, 512)."""
        up = self._encoder.up_layer
        x = x.transpose(1, 2).repeat_interleave(up.stride, dim=2)
        return up.conv(torch.nn.functional.pad(x, (2 * up.stride, 0))).transpose(1, 2)

    def _solve(
        self,
        x: torch.Tensor,
        fixed: torch.Tensor,
        jobs: Sequence[FlowJob],
        frames: int,
        steps: int,
        padded: bool,
        chunked: bool,
    ) -> torch.Tensor:
        """Euler steps from noise to mel."""
        rows = len(jobs)
        if not self.meanflow:  # the second half goes without conditions, for the guidance
            fixed = torch.cat([fixed, torch.zeros_like(fixed)])
        fixed = fixed.to(self.dtype)
        keep = bias = None
        if padded or chunked:
            inside = self._inside([job.frames for job in jobs], frames)
            visible = self._visible(inside, FRAMES_PER_TOKEN * MASK_TOKENS if chunked else 0)
            bias = torch.zeros(visible.shape, device=self.device, dtype=self.dtype).masked_fill_(~visible, self._hidden)
            keep = inside[:, None].to(self.dtype)
            if not self.meanflow:
                keep, bias = keep.repeat(2, 1, 1), bias.repeat(2, 1, 1)
        times, widths = self._schedule(steps)
        for step in range(steps):
            x = self.step(x, fixed, times[step].expand(len(fixed), -1), widths[step], keep, bias).clone()
        return x[:rows]

    def _step(
        self,
        x: torch.Tensor,
        fixed: torch.Tensor,
        time: torch.Tensor,
        width: torch.Tensor,
        keep: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """One Euler step: ``x`` float32 (B, 80, F); the rest for B rows, or 2B with guidance."""
        twice = x if self.meanflow else torch.cat([x, x])
        slope = self._slope(torch.cat([twice.to(self.dtype), fixed], dim=1), time, keep, bias).float()
        if not self.meanflow:
            with_conditions, without = slope.chunk(2)
            slope = (1.0 + self._guidance) * with_conditions - self._guidance * without
        return x + width * slope

    def _slope(
        self, x: torch.Tensor, time: torch.Tensor, keep: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The estimator: (B, 320, F) to (B, 80, F). ``keep`` (B, 1, F) zeroes, ``bias`` (B, 1 or F, F) hides."""
        estimator = self._estimator
        if keep is None:
            keep = x.new_ones(1)
        (resnet, blocks, down), (last_resnet, last_blocks, up) = estimator.down_blocks[0], estimator.up_blocks[0]
        x = skip = self._blocks(resnet, blocks, x, time, keep, bias)
        x = down(x * keep)
        for mid_resnet, mid_blocks in estimator.mid_blocks:
            x = self._blocks(mid_resnet, mid_blocks, x, time, keep, bias)
        x = self._blocks(last_resnet, last_blocks, torch.cat([x, skip], dim=1), time, keep, bias)
        x = estimator.final_block(up(x * keep), keep)
        return estimator.final_proj(x * keep) * keep

    @staticmethod
    def _blocks(
        resnet: torch.nn.Module,
        blocks: torch.nn.ModuleList,
        x: torch.Tensor,
        time: torch.Tensor,
        keep: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        x = resnet(x, keep, time).transpose(1, 2).contiguous()
        for block in blocks:
            x = block(hidden_states=x, attention_mask=bias)
        return x.transpose(1, 2).contiguous()

    def _time_embedder(self) -> dict[str, torch.nn.Module | None]:
        """The estimator's modules for the time, kept in float32: in bfloat16 the last steps could not be told apart."""
        estimator = self._estimator
        mixer = estimator.time_embed_mixer
        return {
            "waves": deepcopy(estimator.time_embeddings),
            "net": deepcopy(estimator.time_mlp),
            "mixer": None if mixer is None else deepcopy(mixer),
        }

    def _schedule(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For each step its time embedding (steps, 1, 4 · width) and its width (steps,); made once."""
        if steps not in self._schedules:
            grid = torch.linspace(0, 1, steps + 1)
            if self._cosine and not self.meanflow:
                grid = 1 - torch.cos(grid * 0.5 * torch.pi)
            grid = grid.to(self.device)
            waves, net, mixer = self._time["waves"], self._time["net"], self._time["mixer"]
            assert waves is not None
            assert net is not None
            times = net(waves(grid[:-1]))
            if mixer is not None:
                times = mixer(torch.cat([times, net(waves(grid[1:]))], dim=1))
            self._schedules[steps] = times.to(self.dtype)[:, None], grid[1:] - grid[:-1]
        return self._schedules[steps]

    def _inside(self, lengths: Sequence[int], most: int) -> torch.Tensor:
        """bool (B, most): which places are a row's own."""
        own = self._up(torch.tensor(lengths, dtype=torch.int64))
        return torch.arange(most, device=self.device)[None] < own[:, None]

    def _visible(self, inside: torch.Tensor, chunk: int) -> torch.Tensor:
        """bool (B, 1, N) or with chunks (B, N, N): what each place may look at."""
        if not chunk:
            return inside[:, None]
        at = torch.arange(inside.shape[1], device=self.device)
        return inside[:, None] & (at[None, :] < (at[:, None] // chunk + 1) * chunk)[None]

    def _up(self, host: torch.Tensor) -> torch.Tensor:
        """To the device without waiting for it."""
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)
