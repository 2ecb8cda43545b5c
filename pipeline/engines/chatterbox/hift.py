"""Mel frames to sound: the stock HiFT vocoder on windows, with a source whose phase runs through the whole stream.

The vocoder is fed a source: nine sines on multiples of the pitch, and noise. The package draws their phases anew for
each call, which is a jump at each join. Here the phases belong to the stream's seed, the noise to (seed, sample), and
the pitch's own phase (in turns, modulo 1, double precision) is carried from window to window. What the weights make
of nine independent noises of one size is one noise of the size of the weights' norm, so one is drawn.

A window of frames gives what the whole stream would, to 1e-4, as soon as there are `LEFT_FRAMES` before and
`HELD_FRAMES` behind; the pitch of a frame needs `PITCH_FRAMES` either side. The short Fourier transforms are
convolutions with constant kernels: the library's inverse asks the device whether its window is sound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from chatterbox.models.s3gen import S3Gen
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from pipeline.engines.chatterbox.position_noise import normals, seed_words, uniforms
from pipeline.engines.chatterbox.replay import Replay
from pipeline.engines.chatterbox.variants import SAMPLES_PER_FRAME

LEFT_FRAMES = 14
HELD_FRAMES = 10
PITCH_FRAMES = 5
BEFORE_FRAMES = LEFT_FRAMES + PITCH_FRAMES
"""What a window begins with, before the first frame that it is made for."""

NOISE_OF_SOURCE = 2
_PHASES = 3
_RATE_HZ = 24000


@dataclass(frozen=True)
class HiftJob:
    """One stream's window: ``mel`` (80, F) on the device, whose first frame is number ``first_frame`` of the stream.

    ``phase`` is that of the pitch, in turns, where frame ``anchor`` of the window begins; the result tells it for
    frame ``next_anchor``. ``seed`` is the stream's. ``final``: the window's end is the stream's.
    """

    mel: torch.Tensor
    first_frame: int
    anchor: int
    next_anchor: int
    phase: float
    seed: int
    final: bool


class Hift:
    """Takes ``s3gen.mel2wav`` over: float32, weight norm folded in. ``bucket_frames`` as in `Flow`."""

    def __init__(self, s3gen: S3Gen, device: torch.device, bucket_frames: int = 1) -> None:
        self._net = fold_weight_norm(s3gen.mel2wav).to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self.device, self.bucket_frames = device, bucket_frames
        sines = self._net.m_source.l_sin_gen
        self._sine, self._breath = float(sines.sine_amp), float(sines.noise_std)
        self._voiced_hz, self._harmonics = float(sines.voiced_threshold), int(sines.harmonic_num) + 1
        self._precise = torch.float32 if device.type == "mps" else torch.float64
        self._weights = self._net.m_source.l_linear.weight[0]
        self._loudness = self._weights.norm()
        self._fourier = _Fourier(self._net.istft_params["n_fft"], self._net.istft_params["hop_len"], device)
        self.window = Replay(self._window)

    def key(self, job: HiftJob) -> tuple[int, bool]:
        """Jobs with the same key may be computed together. A stream's last window keeps its own length: there the
        end of the sound is shaped by the end of the frames."""
        frames = int(job.mel.shape[1])
        return (frames if job.final else math.ceil(frames / self.bucket_frames) * self.bucket_frames), job.final

    @torch.inference_mode()
    def sounds(self, jobs: Sequence[HiftJob]) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples (B, 480 · frames of the key), and the phase at each job's ``next_anchor`` as the 64 bits of a
        double in a float32 (B, 2); same key for all."""
        frames, final = self.key(jobs[0])
        mel = torch.stack([torch.nn.functional.pad(job.mel, (0, frames - job.mel.shape[1])) for job in jobs])
        facts = torch.tensor(
            [(*seed_words(job.seed), SAMPLES_PER_FRAME * job.first_frame, job.anchor, job.next_anchor) for job in jobs],
            dtype=torch.int64,
        )
        turns = torch.tensor([[job.phase, *phases(job.seed, self._harmonics)] for job in jobs], dtype=torch.float64)
        arguments = mel, self._up(facts), self._up(turns.to(self._precise))
        whole = self._window(*arguments) if final else self.window(*arguments).clone()
        return whole[:, :-2], whole[:, -2:]

    def _window(self, mel: torch.Tensor, facts: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """(B, 480 F + 2): the samples, and the phase's bits at the end."""
        source, after = self._source(self._net.f0_predictor(mel), facts, turns)
        if self._precise != torch.float64:  # a device without doubles
            after = after.cpu().double()
        bits = after[:, None].view(torch.float32).to(mel.device)
        return torch.cat([self.decode(mel, source), bits], dim=1)

    def source(self, pitch_hz: torch.Tensor, facts: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """The source (B, 1, 480 F) of pitches (B, F); see `_source`."""
        return self._source(pitch_hz, facts, turns)[0]

    def _source(
        self, pitch_hz: torch.Tensor, facts: torch.Tensor, turns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Source (B, 1, 480 F), and the phase in turns at the next anchors, from pitches (B, F).

        ``facts`` (B, 5): the seed's words, the window's first sample, the anchors. ``turns`` (B, 1 + harmonics): the
        phase at the anchor, then the harmonics' own.
        """
        step = pitch_hz.to(self._precise) / _RATE_HZ
        ends = torch.cumsum((step * SAMPLES_PER_FRAME) % 1.0, dim=1)
        begins = torch.nn.functional.pad(ends, (1, 0))
        begins = (begins - begins.gather(1, facts[:, 3:4]) + turns[:, :1]) % 1.0
        after = begins.gather(1, facts[:, 4:5])[:, 0]
        within = torch.arange(1, SAMPLES_PER_FRAME + 1, device=self.device, dtype=self._precise)
        phase = begins[:, :-1, None] + step[:, :, None] * within
        times = torch.arange(1, self._harmonics + 1, device=self.device, dtype=self._precise)
        theta = (phase[:, None] * times[None, :, None, None] + turns[:, 1:, None, None]) % 1.0
        sines = torch.sin(theta.to(torch.float32).flatten(2) * (2.0 * math.pi))
        voiced = (pitch_hz > self._voiced_hz).float().repeat_interleave(SAMPLES_PER_FRAME, dim=1)
        positions = facts[:, 2:3] + torch.arange(voiced.shape[1], device=self.device)[None]
        noise = normals(facts[:, :2], positions, 1, NOISE_OF_SOURCE)[:, 0]
        merged = torch.einsum("bhn,h->bn", sines, self._weights) * (self._sine * voiced)
        size = voiced * self._breath + (1.0 - voiced) * (self._sine / 3)
        merged = merged + self._loudness * size * noise + self._net.m_source.l_linear.bias
        return torch.tanh(merged)[:, None], after

    def decode(self, mel: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Samples (B, 480 F) within ±1 from mel (B, 80, F) and source (B, 1, 480 F), as the package's ``decode``."""
        net = self._net
        spectrum = self._fourier.forwards(source)
        x = net.conv_pre(mel)
        last = net.num_upsamples - 1
        for stage, (up, down, shape) in enumerate(zip(net.ups, net.source_downs, net.source_resblocks, strict=True)):
            x = up(torch.nn.functional.leaky_relu(x, net.lrelu_slope))
            if stage == last:
                x = net.reflection_pad(x)
            x = x + shape(down(spectrum))
            blocks = net.resblocks[stage * net.num_kernels : (stage + 1) * net.num_kernels]
            x = sum(block(x) for block in blocks) / net.num_kernels
        x = net.conv_post(torch.nn.functional.leaky_relu(x))
        loudness, phase = x.tensor_split([self._fourier.bins], dim=1)
        loudness = torch.exp(loudness).clamp(max=1e2)
        phase = torch.sin(phase)
        sound = self._fourier.backwards(loudness * torch.cos(phase), loudness * torch.sin(phase))
        return sound.clamp(-net.audio_limit, net.audio_limit)

    def _up(self, host: torch.Tensor) -> torch.Tensor:
        """To the device without waiting for it."""
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)


@lru_cache(1024)
def phases(seed: int, harmonics: int) -> tuple[float, ...]:
    """Where each harmonic of a stream begins, in turns; the pitch itself at 0."""
    return (0.0, *(one - 0.5 for one in uniforms(seed, harmonics, _PHASES)[1:]))


def fold_weight_norm(module: torch.nn.Module) -> torch.nn.Module:
    """Compute each normed weight once and for all, in place.

    As `torch.nn.utils.parametrize.remove_parametrizations` does, which however takes ``weight`` away from the class
    that a module shares with its deep copies.
    """
    for one in module.modules():
        if is_parametrized(one, "weight"):
            weight = one.weight.detach().clone()
            plain = type_before_parametrizations(one)
            del one.parametrizations
            one.__class__ = plain
            one.weight = torch.nn.Parameter(weight)
    return module


class _Fourier:
    """Short-time Fourier transform with a Hann window, centred, and its inverse, as `torch.stft` and `torch.istft`."""

    def __init__(self, size: int, hop: int, device: torch.device) -> None:
        self.bins, self._size, self._hop = size // 2 + 1, size, hop
        window = torch.hann_window(size, periodic=True, dtype=torch.float64)
        angle = 2.0 * math.pi * torch.outer(torch.arange(self.bins), torch.arange(size)).double() / size
        waves = torch.cat([torch.cos(angle), -torch.sin(angle)])
        share = torch.full((self.bins, 1), 2.0 / size, dtype=torch.float64)
        share[0] = share[-1] = 1.0 / size
        self._in = (waves * window)[:, None].float().to(device)
        self._out = (waves * share.repeat(2, 1) * window)[:, None].float().to(device)
        self._squares = window.square()[None, None].float().to(device)

    def forwards(self, sound: torch.Tensor) -> torch.Tensor:
        """(B, 1, N) to (B, 2 · bins, N / hop + 1): real parts, then imaginary ones."""
        padded = torch.nn.functional.pad(sound, (self._size // 2, self._size // 2), mode="reflect")
        return torch.nn.functional.conv1d(padded, self._in, stride=self._hop)

    def backwards(self, real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
        """(B, bins, T) twice to (B, hop · (T - 1))."""
        parts = torch.cat([real, imaginary], dim=1)
        summed = torch.nn.functional.conv_transpose1d(parts, self._out, stride=self._hop)[:, 0]
        ones = parts.new_ones(1, 1, parts.shape[2])
        weight = torch.nn.functional.conv_transpose1d(ones, self._squares, stride=self._hop)[0]
        edge = self._size // 2
        return (summed / weight.clamp(min=1e-11))[:, edge : summed.shape[1] - edge]
