"""From logits to a token: the stock package's filters, many streams at once, with chance that can be repeated.

All functions work on (entries, vocabulary) with one parameter an entry and use nothing but tensor operations of fixed
shape: they run inside a CUDA graph.

Chance is Gumbel noise added to the filtered logits, of which the largest wins (the same distribution as
`torch.multinomial` on their softmax). The noise is a hash of (seed, position, id), so that a token does not depend on
the batch it was made in, on how the work was cut, or on which process did it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipeline.engines.chatterbox.speaking import NOT_A_NUMBER, NOTHING_LEFT

_MASK = 0x7FFFFFFF
_STRIDE = 668265263
_FIRST, _SECOND = 0x7FEB352D, 0x046CA68B
_ONE_BELOW = 1.0 - 2.0**-24
_NEVER = float("-inf")


MOST = (0, 1024, 1 << 20)
"""None of the ids, enough of them for the stock package's top_k, all."""


@dataclass(frozen=True)
class Sampling:
    """What one stream samples with. ``temperature`` 0: always the likeliest. ``top_k`` 0 and ``top_p`` 1: no limit."""

    temperature: float
    top_p: float
    min_p: float
    top_k: int
    repetition_penalty: float
    cfg_weight: float
    seed: int

    @property
    def most(self) -> int:
        """How many of the likeliest ids have to be sorted: one of `MOST`."""
        if 0 < self.top_k <= MOST[1]:
            return MOST[1]
        return MOST[2] if self.top_k or self.top_p < 1.0 else MOST[0]


@dataclass
class Parameters:
    """One entry each, float32. ``rest_p`` is 1 − top_p; ``kept`` is top_k, the size of the vocabulary where there is
    none; ``log_min_p`` is −∞ where there is no min_p; ``weight`` is that of CFG; ``chance`` is 1, or 0 for always the
    likeliest token."""

    temperature: torch.Tensor
    penalty: torch.Tensor
    log_min_p: torch.Tensor
    rest_p: torch.Tensor
    kept: torch.Tensor
    chance: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, table: torch.Tensor) -> Parameters:
        """From the columns of a table, (entries, `PARAMETERS`)."""
        return cls(*table.unbind(1))


PARAMETERS = 7


def row_of(asked: Sampling, vocabulary: int) -> list[float]:
    """What one stream asked for, as a row of that table."""
    return [
        asked.temperature if asked.temperature > 0 else 1.0,
        asked.repetition_penalty,
        math.log(asked.min_p) if asked.min_p > 0 else _NEVER,
        1 - asked.top_p,
        asked.top_k or vocabulary,
        float(asked.temperature > 0),
        asked.cfg_weight,
    ]


def seed_keys(seed: int) -> tuple[int, int]:
    """64 bits of a seed, stirred, as two numbers of 31 bits."""
    state = (seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> shift)) * factor & 0xFFFFFFFFFFFFFFFF
    state ^= state >> 31
    return state & _MASK, state >> 33


def scattered(vocabulary: int, device: torch.device | str) -> torch.Tensor:
    """int32 (vocabulary,): a number for each id, to begin its noise with."""
    ids = torch.arange(vocabulary, dtype=torch.int64, device=device)
    return ((ids + 1) * _STRIDE & _MASK).to(torch.int32)


def _stir(x: torch.Tensor) -> torch.Tensor:
    """In place: a bijection of the numbers of 31 bits in which every bit depends on every other (after "lowbias32").
    Products of int32 wrap around."""
    x.bitwise_xor_(x >> 16).mul_(_FIRST).bitwise_and_(_MASK)
    x.bitwise_xor_(x >> 15).mul_(_SECOND).bitwise_and_(_MASK)
    return x.bitwise_xor_(x >> 16)


def log_exponential(keys: torch.Tensor, positions: torch.Tensor, scattered_ids: torch.Tensor) -> torch.Tensor:
    """The logarithm of exponential noise for every id (minus it is Gumbel noise): int32 (entries, 2), int64
    (entries, positions), int32 (vocabulary,) to float32 (entries, positions, vocabulary), finite."""
    place = _stir((positions.to(torch.int32) * _STRIDE & _MASK) ^ keys[:, :1])
    place = _stir(place ^ keys[:, 1:])
    bits = _stir(scattered_ids ^ place[:, :, None])
    # The less noise the likelier, and there it has to be finest: 31 bits as float32 are exact only near zero.
    share = bits.float().add_(0.5).mul_(-(2.0**-31)).clamp_(min=-_ONE_BELOW)
    return share.log1p_().neg_().log_()


def penalize(logits: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Make what was said already less likely. ``factor``: like ``logits``, the penalty (1 or more) of what was said
    and 1 elsewhere; a logit is divided by it, or multiplied where it is negative."""
    return torch.minimum(logits * factor, logits / factor)


def above_min_p(logits: torch.Tensor, log_min_p: torch.Tensor) -> torch.Tensor:
    """Only what is at least min_p times as likely as the likeliest; ``log_min_p`` −∞: all."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + log_min_p[:, None], _NEVER)


def likeliest(logits: torch.Tensor, kept: torch.Tensor, rest_p: torch.Tensor, most: int) -> torch.Tensor:
    """The ``kept`` likeliest, and of these as few as have a share of more than 1 − ``rest_p`` (0: all). No entry that
    is limited at all keeps more than ``most``."""
    size = logits.shape[-1]
    ordered, order = torch.topk(logits, most) if most < size else torch.sort(logits, dim=-1, descending=True)
    last = ordered.gather(1, (kept.long().clamp(1, ordered.shape[-1]) - 1)[:, None])
    ordered = ordered.masked_fill(ordered < last, _NEVER)
    less_likely = torch.softmax(ordered, dim=-1).flip(1).cumsum(dim=1).flip(1)
    drop = (less_likely <= rest_p[:, None]) & (rest_p > 0)[:, None]
    drop[:, 0] = False
    left = torch.full_like(logits, _NEVER).scatter(1, order, ordered.masked_fill(drop, _NEVER))
    return torch.where(((kept < size) | (rest_p > 0))[:, None], left, logits)


def processed(logits: torch.Tensor, factor: torch.Tensor, by: Parameters, turbo: bool, most: int) -> torch.Tensor:
    """Logits as the stock package hands them to softmax. ``most``: see `Sampling.most`."""
    if turbo:
        logits = logits / by.temperature[:, None]
        if most:
            logits = likeliest(logits, by.kept, by.rest_p, most)
        return penalize(logits, factor)
    logits = penalize(logits, factor) / by.temperature[:, None]
    logits = above_min_p(logits, by.log_min_p)
    return likeliest(logits, by.kept, by.rest_p, most) if most else logits


def choose(logits: torch.Tensor, chance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """One id an entry: int64 (entries,), or `NOTHING_LEFT`, or `NOT_A_NUMBER`. ``noise``: of `log_exponential`."""
    best, token = torch.addcmul(logits, chance[:, None], noise, value=-1.0).max(dim=-1)
    broken = torch.where(torch.isnan(best), NOT_A_NUMBER, NOTHING_LEFT)
    return torch.where(best > _NEVER, token, broken)
