"""What the tests of the token half share: small stock modules, what they do greedily, and a half built on them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond

from ipc.messages import Voice
from pipeline.engines.base import EngineError, Segment, Settings, StreamError, TokenStep
from pipeline.engines.chatterbox import wire
from pipeline.engines.chatterbox.build import Tuning
from pipeline.engines.chatterbox.conditionals import Conditionals, S3GenConditionals, T3Conditionals
from pipeline.engines.chatterbox.guards import NO_LIMITS
from pipeline.engines.chatterbox.modules import build_t3
from pipeline.engines.chatterbox.settings import read, settings_of
from pipeline.engines.chatterbox.tiny import tiny_t3_sizes
from pipeline.engines.chatterbox.tokens import ChatterboxTokens, Profile
from pipeline.engines.chatterbox.variants import (
    CHATTERBOX,
    MULTILINGUAL_V2,
    MULTILINGUAL_V3,
    SPEECH_TOKENS,
    START_TEXT,
    STOP_SPEECH,
    STOP_TEXT,
    TURBO,
    Variant,
)

TEXT = "The quick brown fox jumps over the lazy dog."
FREE = Tuning(limits=NO_LIMITS, text_tokens=96)
VARIANTS = [
    pytest.param(CHATTERBOX, id="english"),
    pytest.param(MULTILINGUAL_V2, id="v2"),
    pytest.param(MULTILINGUAL_V3, id="v3"),
    pytest.param(TURBO, id="turbo"),
]


_STOCK: dict[tuple[str, bool, int], T3] = {}


def stock(variant: Variant, seed: int = 0) -> T3:
    """A small stock T3. ``seed`` of its weights. v2 is as narrow as its heads allow; v3 has two layers here, as nobody
    looks at its attention."""
    key = variant.name, variant.analyzer, seed
    if key not in _STOCK:
        sizes = tiny_t3_sizes(CHATTERBOX if variant is MULTILINGUAL_V3 else variant)
        if variant.name == MULTILINGUAL_V2.name:
            sizes = replace(sizes, text_vocabulary=2454, width=64, ffn=64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _STOCK[key] = build_t3(variant, sizes)
    return _STOCK[key]


def conditionals(name: str = "ada") -> Conditionals:
    """A voice of its own for each name."""
    chance = torch.Generator().manual_seed(sum(map(ord, name)))
    speaker = torch.rand(1, 256, generator=chance)
    prompt = torch.randint(0, 6561, (1, 150), generator=chance)
    return Conditionals(
        T3Conditionals(speaker, prompt),
        S3GenConditionals(prompt, torch.zeros(1, 300, 80), torch.zeros(1, 192)),
    )


class Book:
    """Voices by name."""

    def __init__(self) -> None:
        self._made = {name: conditionals(name) for name in ("ada", "bob")}

    def conditionals(self, voice: str) -> Conditionals:
        if voice not in self._made:
            raise EngineError(f"voice: there is no {voice!r}")
        return self._made[voice]


@dataclass(frozen=True)
class Letters:
    """A text encoder: one id a letter."""

    vocabulary: int = 600

    def encode(self, text: str, language: str) -> Any:
        ids = tuple(300 + ord(char) * 7 % (self.vocabulary - 300) for char in text)
        return SimpleNamespace(ids=ids, chars=tuple(range(len(text))))


def half(
    variant: Variant, tuning: Tuning = FREE, *, seed: int = 0, max_batch: int = 4, **more: Any
) -> ChatterboxTokens:
    """The token half on the small stock module."""
    profile = Profile(
        voices=lambda: tuple(Voice(name, name, "en") for name in ("ada", "bob")),
        default_voice="ada",
        settings=settings_of(variant),
    )
    return ChatterboxTokens(
        variant,
        more.pop("t3", None) or stock(variant, seed),
        Letters(),
        Book(),
        profile,
        lambda asked: read(variant, asked),
        device=more.pop("device", "cpu"),
        dtype=more.pop("dtype", torch.float32),
        max_batch=max_batch,
        report=lambda doing, deadline_s: None,
        tuning=tuning,
        **more,
    )


def segment(text: str = TEXT, seed: int = 7, voice: str = "ada", **settings: Any) -> Segment:
    return Segment(text, "sentence", voice, "en", 1.0, seed, Settings(settings))


def limited(tokens: int, **more: Any) -> Tuning:
    """No guard but the number of tokens."""
    return replace(FREE, limits=replace(NO_LIMITS, tokens=tokens), **more)


def speak(model: ChatterboxTokens, what: Segment, stream: int = 1, history: bytes = b"") -> list[TokenStep]:
    """All steps of one segment."""
    model.admit(stream, what, history, len(wire.sound(list(memoryview(history).cast("H")))) if history else 0)
    made = drain(model)
    assert {step.stream for step in made} <= {stream}
    return made


def drain(model: ChatterboxTokens) -> list[TokenStep]:
    """Steps until there are no more."""
    made: list[TokenStep] = []
    while steps := model.step():
        for step in steps:
            assert not isinstance(step, StreamError), step
            made.append(step)
    return made


def ids_of(steps: Sequence[TokenStep], stream: int | None = None) -> list[int]:
    """Every id handed out."""
    data = b"".join(step.data for step in steps if stream in (None, step.stream))
    return list(memoryview(data).cast("H"))


def text_ids(variant: Variant, text: str) -> list[int]:
    ids = list(Letters().encode(text, "en").ids)
    return ids if variant.turbo else [START_TEXT, *ids, STOP_TEXT]


@contextmanager
def likeliest() -> Iterator[None]:
    """The stock loops take the likeliest token, and draw no bars."""

    def argmax(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        return probabilities.argmax(dim=-1, keepdim=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", argmax)
        patch.setattr("chatterbox.models.t3.t3.tqdm", lambda steps, **_: steps)
        yield


def stock_tokens(
    variant: Variant,
    text: str,
    tokens: int,
    *,
    seed: int = 0,
    t3: T3 | None = None,
    exaggeration: float = 0.5,
    **settings: Any,
) -> list[int]:
    """What the stock loop of a variant makes of a text, without the stop token."""
    t3 = t3 or stock(variant, seed)
    ids = torch.tensor([text_ids(variant, text)])
    voice = conditionals().t3
    cond = T3Cond(
        speaker_emb=voice.speaker,
        cond_prompt_speech_tokens=voice.prompt_tokens,
        emotion_adv=exaggeration * torch.ones(1, 1, 1),
    )
    with likeliest(), unhooked(t3), analyzer_only_for(variant), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*sdp_kernel\(\)` is deprecated", FutureWarning)
        if variant.turbo:
            made = t3.inference_turbo(cond, ids, max_gen_len=tokens - 1, **settings)
        else:
            made = t3.inference(t3_cond=cond, text_tokens=ids.repeat(2, 1), max_new_tokens=tokens, **settings)
    found: list[int] = made[0].tolist()
    return found[:-1] if found[-1] == STOP_SPEECH else found


def trimmed(ids: Sequence[int]) -> list[int]:
    """Without what is no sound at the end: that is never handed out."""
    kept = list(ids)
    while kept and kept[-1] >= SPEECH_TOKENS:
        kept.pop()
    return kept


@contextmanager
def unhooked(t3: T3) -> Iterator[None]:
    """The stock analyzer leaves hooks and a changed configuration behind."""
    config = t3.tfmr.config
    before = config._attn_implementation, config.output_attentions
    try:
        yield
    finally:
        config._attn_implementation, config.output_attentions = before
        for layer in getattr(t3.tfmr, "layers", []):
            layer.self_attn._forward_hooks.clear()


@contextmanager
def analyzer_only_for(variant: Variant) -> Iterator[None]:
    """The installed package analyses whatever has the multilingual vocabulary; its successor does not for v3."""
    from chatterbox.models.t3.modules.t3_config import T3Config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(T3Config, "is_multilingual", property(lambda _: variant.analyzer))
        yield
