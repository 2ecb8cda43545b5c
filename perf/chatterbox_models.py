"""Chatterbox models with random weights in any size, and our two halves on them: what the Chatterbox scripts measure.

Speed does not depend on what the weights are, with one exception that is put right here (`only_sound`). torch is
imported by this module: a script asks for it only when it has said what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from safetensors.torch import save_file

from pipeline.engines.base import Segment, Settings
from pipeline.engines.chatterbox import settings, tiny, tiny_files, variants
from pipeline.engines.chatterbox.audio import ChatterboxAudio
from pipeline.engines.chatterbox.build import Convert, Tuning
from pipeline.engines.chatterbox.conditionals import Conditionals, S3GenConditionals, T3Conditionals
from pipeline.engines.chatterbox.guards import NO_LIMITS
from pipeline.engines.chatterbox.modules import S3GenSizes, T3Sizes, build_s3gen, build_t3
from pipeline.engines.chatterbox.tokens import ChatterboxTokens, Profile
from pipeline.engines.chatterbox.variants import SPEECH_TOKENS, STOP_SPEECH, Variant

SIZES = ("tiny", "small", "full")
VOICE = "random"
LANGUAGE = "en"
MODELS = {one.name: one for one in (variants.CHATTERBOX, variants.MULTILINGUAL_V2, variants.TURBO)}

_TEXT_VOCABULARY = tiny.TINY_TEXT_VOCABULARY
_MARK = 0
"""The component of the hidden state that tells sound from no sound."""

_MARKED, _AGAINST = 30.0, -10.0


def t3_sizes(variant: Variant, size: str) -> T3Sizes:
    """``full``: the published models'; ``small``: eight layers of a quarter of the width."""
    if size == "tiny":
        return tiny.tiny_t3_sizes(variant)
    full = T3Sizes(text_vocabulary=_TEXT_VOCABULARY[variant.name])
    if variant.turbo:
        full = replace(
            full, layers=24, speech_vocabulary=6563, text_positions=0, speech_positions=0, perceiver_queries=0
        )
    if size == "full":
        return full
    heads, layers = (16, 14) if variant.analyzer else (4, 8)
    return replace(full, width=256, layers=layers, heads=heads, ffn=1024)


def s3gen_sizes(variant: Variant, size: str) -> S3GenSizes:
    """``full``: the published models'; ``small``: fewer blocks. Without what only a reference recording needs."""
    if size == "tiny":
        return replace(tiny.tiny_s3gen_sizes(variant), tokenizer_layers=0)
    full = S3GenSizes(meanflow=variant.meanflow, tokenizer_layers=0)
    if size == "full":
        return full
    return replace(
        full,
        encoder_ffn=512,
        encoder_layers=2,
        up_layers=1,
        estimator_width=128,
        estimator_heads=2,
        estimator_blocks=1,
        estimator_mid_blocks=4,
        hift_width=128,
        f0_width=128,
    )


def random_t3(variant: Variant, size: str, device: str, seed: int = 0) -> T3:
    """A stock T3 that says nothing but sound, and does not stop."""
    torch.manual_seed(seed)
    with torch.device(device):
        t3 = build_t3(variant, t3_sizes(variant, size))
    only_sound(t3)
    return t3


def random_s3gen(variant: Variant, size: str, device: str, seed: int = 0) -> S3Gen:
    """A stock S3Gen."""
    torch.manual_seed(seed)
    with torch.device(device):
        return build_s3gen(s3gen_sizes(variant, size)).to(device)


@torch.no_grad()
def only_sound(t3: T3) -> None:
    """Change random weights so that ids that are no sound are never sampled, the end of speech among them.

    Trained weights hardly ever say one, random ones say one in five, and every one of them costs a step that makes
    no speech. One component of the hidden state is made large always, and the rows of those ids look at it.
    """
    t3.speech_emb.weight[:, _MARK] = _MARKED
    head = t3.speech_head.weight
    head[:, _MARK] = 0.0
    head[SPEECH_TOKENS:, _MARK] = _AGAINST
    assert head.shape[0] > STOP_SPEECH


def random_voice(variant: Variant, prompt_s: float | None = None, seed: int = 0) -> Conditionals:
    """A voice as a reference recording of the usual length gives one; S3Gen hears ``prompt_s`` of it."""
    source = torch.Generator().manual_seed(seed)
    tokens = round(25 * (variant.s3gen_reference_s if prompt_s is None else prompt_s))

    def ids(count: int) -> torch.Tensor:
        return torch.randint(0, SPEECH_TOKENS, (1, count), generator=source)

    return Conditionals(
        T3Conditionals(torch.randn(1, 256, generator=source), ids(variant.prompt_tokens)),
        S3GenConditionals(
            ids(tokens), torch.randn(1, 2 * tokens, 80, generator=source) - 5, torch.randn(1, 192, generator=source)
        ),
    )


def write_checkpoint(variant: Variant, size: str, folder: Path, device: str) -> None:
    """A checkpoint folder with a T3 and an S3Gen of that size; what else belongs to one is small. In float16."""
    tiny_files.write_checkpoint(variant, folder)
    _save(folder / variant.t3, random_t3(variant, size, device).state_dict())
    torch.manual_seed(1)
    with torch.device(device):
        sizes = replace(s3gen_sizes(variant, size), tokenizer_width=128, tokenizer_layers=1)
        _save(folder / variant.s3gen, build_s3gen(sizes).state_dict())


def _save(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    small = {
        name: (tensor.half() if tensor.is_floating_point() else tensor)
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    if path.suffix == ".safetensors":
        save_file(small, str(path))
    else:
        torch.save(small, path)


@dataclass(frozen=True)
class Encoded:
    """Of `Letters`."""

    ids: tuple[int, ...]
    chars: tuple[int, ...]


class Letters:
    """An encoder without a tokenizer's file: one id for two characters, about as many as the real one makes."""

    def encode(self, text: str, language: str) -> Encoded:
        starts = tuple(range(0, len(text), 2))
        return Encoded(tuple(1 + (ord(text[at]) * 7 + len(text[at : at + 2])) % 250 for at in starts), starts)


@dataclass(frozen=True)
class OneVoice:
    """A book of voices with the same one under every name."""

    voice: Conditionals

    def conditionals(self, voice: str) -> Conditionals:
        return self.voice


def silent_report(doing: str, deadline_s: float) -> None:
    """Nobody waits for progress here."""


def tokens_half(
    variant: Variant,
    t3: T3,
    voice: Conditionals,
    *,
    device: str,
    dtype: torch.dtype,
    max_batch: int = 1,
    tuning: Tuning | None = None,
    convert: Convert | None = None,
) -> ChatterboxTokens:
    """Ours, without the guards that random weights set off."""
    profile = Profile(voices=lambda: (), default_voice=VOICE, settings=settings.settings_of(variant))
    return ChatterboxTokens(
        variant,
        t3,
        Letters(),
        OneVoice(voice),
        profile,
        lambda asked: settings.read(variant, asked),
        device=device,
        dtype=dtype,
        max_batch=max_batch,
        report=silent_report,
        tuning=replace(tuning or Tuning(), limits=NO_LIMITS),
        convert=convert,
    )


def audio_half(
    variant: Variant,
    s3gen: S3Gen,
    voice: Conditionals,
    *,
    device: str,
    dtype: torch.dtype,
    max_batch: int = 1,
    rungs: Sequence[int] = (12, 50),
) -> ChatterboxAudio:
    """Ours, without watermark; graphs (on CUDA) for these rungs alone."""
    return ChatterboxAudio(
        variant,
        s3gen,
        OneVoice(voice),
        device=device,
        dtype=dtype,
        max_batch=max_batch,
        report=silent_report,
        rungs=rungs,
    )


def segment(text: str, seed: int, asked: Settings | None = None) -> Segment:
    """What a half is asked to speak."""
    return Segment(text, "end", VOICE, LANGUAGE, 1.0, seed, dict(asked or {}))
