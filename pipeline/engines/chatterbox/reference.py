"""A voice as S3Gen needs it, on the device: the reference recording as tokens and mel frames, and who speaks."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.conditionals import Conditionals, S3GenConditionals
from pipeline.engines.chatterbox.flow import MASK_TOKENS, Flow, Tokens
from pipeline.engines.chatterbox.variants import FRAMES_PER_TOKEN, TOKENS_PER_S

MOST_REFERENCES = 64
"""Kept on the device at once: 160 kB each for a reference of 10 s."""


class Voices(Protocol):
    """What is needed of the voices."""

    def conditionals(self, voice: str) -> Conditionals:
        """Raises `EngineError` when there is no such voice."""


@dataclass(frozen=True)
class Reference:
    """``tokens``: int64 (P,) on the host. ``mel``: float32 (80, 2P). ``speaker``: float32 (80,)."""

    tokens: Tokens
    mel: torch.Tensor
    speaker: torch.Tensor


def trimmed(voice: S3GenConditionals, prompt_s: float | None) -> S3GenConditionals:
    """The reference's last ``prompt_s`` seconds, in whole seconds if it is longer than one.

    The end is kept because the speech to be made follows it: what stands next to it weighs most. Whole seconds keep
    the stream's own seconds where `continuity`'s masks cut. None: all of it.
    """
    if prompt_s is None:
        return voice
    tokens = min(voice.prompt_tokens.shape[1], round(prompt_s * TOKENS_PER_S))
    tokens = max(tokens // MASK_TOKENS * MASK_TOKENS, min(tokens, MASK_TOKENS))
    return S3GenConditionals(
        prompt_tokens=voice.prompt_tokens[:, -tokens:],
        prompt_mel=voice.prompt_mel[:, -FRAMES_PER_TOKEN * tokens :],
        speaker=voice.speaker,
    )


class References:
    """The voices used last, on the device."""

    def __init__(self, voices: Voices, flow: Flow, prompt_s: float | None) -> None:
        if prompt_s is not None and not 1.0 <= prompt_s <= 30.0:
            raise EngineError(f"prompt_s: {prompt_s:g} is not between 1 and 30")
        self._voices, self._flow, self._prompt_s = voices, flow, prompt_s
        self._known: OrderedDict[str, tuple[S3GenConditionals, Reference]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, voice: str) -> Reference:
        """Raises `EngineError` when there is no such voice. A voice whose recording was replaced is read again."""
        source = self._voices.conditionals(voice).s3gen
        known = self._known.get(voice)
        if known is None or known[0] is not source:
            known = source, self._made(source)
        self._known[voice] = known
        self._known.move_to_end(voice)
        while len(self._known) > MOST_REFERENCES:
            self._known.popitem(last=False)
        return known[1]

    def clear(self) -> None:
        """Forget them all."""
        self._known.clear()

    @torch.inference_mode()
    def _made(self, source: S3GenConditionals) -> Reference:
        voice = trimmed(source, self._prompt_s)
        tokens = voice.prompt_tokens.shape[1]
        if voice.prompt_mel.shape[1] < FRAMES_PER_TOKEN * tokens:
            tokens = voice.prompt_mel.shape[1] // FRAMES_PER_TOKEN
        mel = voice.prompt_mel[0, : FRAMES_PER_TOKEN * tokens].float().t().contiguous()
        return Reference(
            tokens=voice.prompt_tokens[0, :tokens].to(torch.int64).numpy().copy(),
            mel=mel.to(self._flow.device),
            speaker=self._flow.speaker(voice.speaker),
        )
