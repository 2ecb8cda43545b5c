"""For tests of the audio half: small stock modules, a voice, streams of tokens, and the stock way with our noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch.nn.utils.parametrize import is_parametrized

from pipeline.engines.base import AudioStep, EngineError, Segment
from pipeline.engines.chatterbox.audio import ChatterboxAudio
from pipeline.engines.chatterbox.conditionals import Conditionals, S3GenConditionals, T3Conditionals
from pipeline.engines.chatterbox.hift import NOISE_OF_SOURCE, phases
from pipeline.engines.chatterbox.position_noise import normals, seed_words
from pipeline.engines.chatterbox.tiny import tiny_s3gen
from pipeline.engines.chatterbox.variants import Variant

SEED = 77

torch.backends.mkldnn.enabled = False  # as the engine runs on a CPU: a new length costs nothing extra


_built: dict[str, Any] = {}


def small(variant: Variant) -> Any:
    """A small stock S3Gen that takes what it makes for voiced: a random one predicts a pitch of nothing."""
    name = f"{variant.name} {variant.meanflow}"
    if name not in _built:
        s3gen = _built[name] = tiny_s3gen(variant)
        with torch.no_grad():
            s3gen.mel2wav.f0_predictor.classifier.weight *= 100
            s3gen.mel2wav.f0_predictor.classifier.bias.fill_(150.0)
    made = deepcopy(_built[name])
    for one in made.modules():
        if is_parametrized(one):  # a copy has its original's class, and what is folded in one would be gone in all
            own = type(one)
            one.__class__ = type(own.__name__, own.__bases__, dict(own.__dict__))
    return made


def harmonics(seconds: float = 2.0) -> torch.Tensor:
    """A voice-like sound: moving harmonics, 24 kHz."""
    t = torch.arange(round(24000 * seconds)) / 24000
    phase = 140 * t + 10 * torch.sin(3 * t)
    return sum((0.1 / k * torch.sin(2 * math.pi * k * phase) for k in range(1, 8)), torch.zeros_like(t))


_voices: dict[tuple[str, float], S3GenConditionals] = {}


def voice_of(variant: Variant, seconds: float = 2.0) -> S3GenConditionals:
    """What the stock package makes of that sound."""
    key = (variant.name, seconds)
    if key not in _voices:
        with torch.inference_mode():
            made = small(variant).embed_ref(harmonics(seconds), 24000)
        _voices[key] = S3GenConditionals(
            made["prompt_token"].clone(), made["prompt_feat"].clone(), made["embedding"].clone()
        )
    return _voices[key]


class Book:
    """Voices by name."""

    def __init__(self, **voices: S3GenConditionals) -> None:
        self.voices = voices

    def conditionals(self, voice: str) -> Conditionals:
        if voice not in self.voices:
            raise EngineError(f"voice: {voice!r} does not exist")
        return Conditionals(T3Conditionals(torch.zeros(1, 256), torch.zeros(1, 0).long()), self.voices[voice])


def audio_half(variant: Variant, **options: Any) -> ChatterboxAudio:
    """On the CPU, with the voices ``anna`` (2 s) and ``bert`` (1 s)."""
    book = Book(anna=voice_of(variant), bert=voice_of(variant, 1.0))
    given: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "max_batch": 4, "report": lambda *_: None}
    return ChatterboxAudio(variant, small(variant), book, **given | options)


def segment(voice: str = "anna", seed: int = SEED, **settings: Any) -> Segment:
    return Segment("", "end", voice, "en", 1.0, seed, settings)


def speech(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, 6561, count).astype("<u2")


def ladder(tokens: int, rungs: Sequence[int]) -> list[int]:
    """Cuts; the last rung repeats, the last cut is the end."""
    cuts = itertools.accumulate(itertools.chain(rungs, itertools.repeat(rungs[-1])))
    return [*itertools.takewhile(lambda cut: cut < tokens, cuts), tokens]


def rendered(
    audio: ChatterboxAudio,
    tokens: np.ndarray[Any, np.dtype[np.uint16]],
    cuts: Sequence[int],
    asked: Segment | None = None,
    checkpoint: bytes = b"",
    stream: int = 1,
) -> list[AudioStep]:
    """Feed all, then each cut in turn."""
    audio.open(stream, asked or segment(), checkpoint)
    audio.feed(stream, len(tokens), tokens.tobytes(), True)
    steps = []
    for cut in cuts:
        (step,) = audio.render([(stream, cut)])
        assert isinstance(step, AudioStep), step
        steps.append(step)
    audio.close_stream(stream)
    return steps


def joined(steps: Sequence[AudioStep]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.concatenate([step.samples for step in steps])


@contextmanager
def our_noise(s3gen: Any, mel_noise: torch.Tensor, seed: int = SEED) -> Iterator[None]:
    """Inside, the stock classes draw what ours would: ``mel_noise`` (1, 80, F), the source's noise and phases."""
    weights = s3gen.mel2wav.m_source.l_linear.weight[0].detach()
    originals = torch.randn_like, torch.randn, torch.distributions.uniform.Uniform.sample

    def randn_like(like: torch.Tensor, **_: Any) -> torch.Tensor:
        if like.shape[1] == 80:
            return mel_noise.clone()
        positions = torch.arange(like.shape[2])[None]
        one = normals(torch.tensor([seed_words(seed)]), positions, 1, NOISE_OF_SOURCE)
        return (weights / weights.norm())[None, :, None] * one if like.shape[1] == len(weights) else one

    def randn(*shape: int, **_: Any) -> torch.Tensor:
        return mel_noise[:, :, -shape[2] :].clone()

    def sample(self: Any, sample_shape: Any = ()) -> torch.Tensor:
        return 2 * math.pi * torch.tensor(phases(seed, len(weights)))[None, :, None]

    torch.randn_like, torch.randn, torch.distributions.uniform.Uniform.sample = randn_like, randn, sample
    try:
        yield
    finally:
        torch.randn_like, torch.randn, torch.distributions.uniform.Uniform.sample = originals


def stock_voice(variant: Variant) -> dict[str, Any]:
    """The same voice as the stock package takes it."""
    voice = voice_of(variant)
    return {
        "prompt_token": voice.prompt_tokens.clone(),
        "prompt_token_len": torch.tensor([voice.prompt_tokens.shape[1]]),
        "prompt_feat": voice.prompt_mel.clone(),
        "prompt_feat_len": None,
        "embedding": voice.speaker.clone(),
    }
