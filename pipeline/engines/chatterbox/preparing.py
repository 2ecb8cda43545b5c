"""Conditionals from a reference recording, exactly as the stock `prepare_conditionals` of each model makes them.

The networks for this (speech tokenizer, two speaker encoders; 0.6 GB at full size) are loaded when a recording has
to be prepared and let go after.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from chatterbox.models.s3gen.s3gen import S3Token2Mel
from chatterbox.models.s3gen.utils.mel import mel_spectrogram
from chatterbox.models.s3gen.xvector import CAMPPlus

from pipeline.engines.base import Samples
from pipeline.engines.chatterbox.conditionals import Conditionals, S3GenConditionals, T3Conditionals
from pipeline.engines.chatterbox.loading import REFERENCE_PARTS, filled, load_voice_encoder, part, read_state
from pipeline.engines.chatterbox.modules import S3GenSizes, build_tokenizer, tokenizer_sizes
from pipeline.engines.chatterbox.recordings import RATE, at_16k
from pipeline.engines.chatterbox.variants import Variant

RATE_16K = 16_000


class Preparer:
    """The networks that turn recordings into conditionals. Raises `EngineError` where they cannot be loaded."""

    def __init__(self, variant: Variant, folder: Path, device: str = "cpu") -> None:
        self._variant, self._device = variant, device
        path = folder / variant.s3gen
        state = read_state(path, lambda name: name.startswith(REFERENCE_PARTS))
        sizes: S3GenSizes = tokenizer_sizes(state)
        tokenizer = filled(lambda: build_tokenizer(sizes), part(state, "tokenizer."), path)
        speaker = filled(lambda: CAMPPlus(memory_efficient=False), part(state, "speaker_encoder."), path)
        self._tokenizer = tokenizer.to(device)
        self._speaker = speaker.to(device)
        self._voice_encoder = load_voice_encoder(variant, folder).to(device)

    @torch.inference_mode()
    def prepare(self, sound: Samples) -> Conditionals:
        """Conditionals of 24 kHz sound (of at least the model's shortest length)."""
        variant = self._variant
        if variant.reference_loudness_lufs is not None:
            sound = _at_loudness(sound, variant.reference_loudness_lufs)
        sound_16k = at_16k(sound)
        for_s3gen = self._s3gen(sound[: int(variant.s3gen_reference_s * RATE)])
        beginning = sound_16k[: int(variant.t3_reference_s * RATE_16K)]
        tokens, _ = self._tokenizer.forward([beginning], max_len=variant.prompt_tokens)
        embeds = torch.from_numpy(self._voice_encoder.embeds_from_wavs([sound_16k], sample_rate=RATE_16K))
        for_t3 = T3Conditionals(
            speaker=embeds.mean(dim=0, keepdim=True).float().clone(),
            prompt_tokens=torch.atleast_2d(tokens).cpu().long().clone(),
        )
        return Conditionals(for_t3, for_s3gen)

    def _s3gen(self, sound: Samples) -> S3GenConditionals:
        """The package's own function, on the parts that it uses."""
        parts = SimpleNamespace(
            device=self._device,
            dtype=torch.float32,
            mel_extractor=mel_spectrogram,
            speaker_encoder=self._speaker,
            tokenizer=self._tokenizer,
        )
        made = S3Token2Mel.embed_ref(parts, np.ascontiguousarray(sound), RATE, device=self._device)
        return s3gen_conditionals(made)


def s3gen_conditionals(made: dict[str, torch.Tensor]) -> S3GenConditionals:
    """What the package calls ``gen``: its tensors, with two mel frames for each token."""
    tokens = torch.atleast_2d(made["prompt_token"]).cpu().long()
    mel = made["prompt_feat"].cpu().float()
    count = min(tokens.shape[1], mel.shape[1] // 2)
    return S3GenConditionals(
        prompt_tokens=tokens[:, :count].clone(),
        prompt_mel=mel[:, : 2 * count].clone(),
        speaker=made["embedding"].cpu().float().reshape(1, -1).clone(),
    )


def _at_loudness(sound: Samples, lufs: float) -> Samples:
    """The recording at a given loudness; as it is where that cannot be measured."""
    import pyloudnorm

    try:
        loudness = pyloudnorm.Meter(RATE).integrated_loudness(sound)
    except ValueError:
        return sound
    gain = 10.0 ** ((lufs - loudness) / 20.0)
    return sound * gain if math.isfinite(gain) and gain > 0 else sound
