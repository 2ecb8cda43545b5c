"""Gaussian noise that depends on a seed and a position alone: the same in whatever chunk, batch, process and device.

A counter goes through an integer hash twice, once for each word of the seed; pairs of hashes become pairs of normal
numbers (Box and Muller). Integers are exact everywhere; the last bits of the logarithm and the cosine are the
device's. All of it is elementwise on the device: no generator, no state, nothing to wait for.
"""

from __future__ import annotations

import math

import torch

_WORD = 0xFFFFFFFF
_SPREAD = 0x9E3779B1


def seed_words(seed: int) -> tuple[int, int]:
    """The two 32-bit words of a seed (any integer; taken modulo 2**64)."""
    return seed & _WORD, (seed >> 32) & _WORD


def normals(words: torch.Tensor, positions: torch.Tensor, channels: int, purpose: int) -> torch.Tensor:
    """Standard normal float32 (B, channels, N) for int64 ``words`` (B, 2) and int64 ``positions`` (B, N).

    Positions may be negative. Each ``purpose`` has noise of its own. ``channels`` is 1 or even.
    """
    key = _hash((positions + words[:, :1]) & _WORD)
    key = _hash(key ^ words[:, 1:] ^ (purpose * _SPREAD & _WORD))
    pairs = (channels + 1) // 2
    salts = torch.arange(1, 2 * pairs + 1, device=positions.device, dtype=torch.int64)
    bits = _hash(key[:, None, :] ^ (salts * _SPREAD & _WORD)[None, :, None])
    uniform = (bits.to(torch.float32) + 0.5) * (1.0 / 2**32)
    radius = torch.sqrt(-2.0 * torch.log(uniform[:, :pairs].clamp(max=1.0 - 2.0**-24)))
    angle = uniform[:, pairs:] * (2.0 * math.pi)
    cosine = radius * torch.cos(angle)
    return cosine if channels == 1 else torch.cat([cosine, radius * torch.sin(angle)], dim=1)


def uniforms(seed: int, count: int, purpose: int) -> list[float]:
    """``count`` numbers in [0, 1) that belong to the seed."""
    low, high = seed_words(seed)
    positions = torch.arange(count, dtype=torch.int64)
    key = _hash((positions + low) & _WORD)
    bits = _hash(key ^ high ^ (purpose * _SPREAD & _WORD))
    return [int(one) / 2**32 for one in bits]


def _hash(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit words (held in int64) in which every bit of the input moves every bit of the output."""
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0xD35A2D97) & _WORD
    return x ^ (x >> 15)
