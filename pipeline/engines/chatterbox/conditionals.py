"""What a voice is to the models: tensors made from a reference recording, on the CPU until somebody uses them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class T3Conditionals:
    """For T3. ``speaker``: float32 (1, 256); ``prompt_tokens``: int64 (1, P), the recording's beginning as speech."""

    speaker: torch.Tensor
    prompt_tokens: torch.Tensor


@dataclass(frozen=True)
class S3GenConditionals:
    """For S3Gen. ``prompt_tokens``: int64 (1, P); ``prompt_mel``: float32 (1, 2P, 80), the same as mel frames;
    ``speaker``: float32 (1, 192)."""

    prompt_tokens: torch.Tensor
    prompt_mel: torch.Tensor
    speaker: torch.Tensor


@dataclass(frozen=True)
class Conditionals:
    """A voice."""

    t3: T3Conditionals
    s3gen: S3GenConditionals
