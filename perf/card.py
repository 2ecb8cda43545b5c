"""A sound card without a sound card: when what was handed over is heard, and where it breaks off.

It takes a block of samples at every tick of the monotonic clock, as the pipeline's player does into ``none``
(`workers.playback`): playing begins once enough samples are there, or all of them; when there is less than a block
left and more to come, it runs dry, and begins again by the same rule. Nothing is waited for here: the ticks are
worked out from the moments at which the pieces were handed over.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ipc.messages import SAMPLE_RATE
from perf.joins import Sound

BLOCK_SAMPLES = 512


@dataclass(frozen=True)
class Handed:
    """A piece of sound was there for the card at this moment of the monotonic clock."""

    at_s: float
    samples: int


@dataclass(frozen=True)
class Stretch:
    """``samples`` from ``first_sample`` on were heard without a break from ``at_s`` (monotonic) on."""

    at_s: float
    first_sample: int
    samples: int

    @property
    def end_s(self) -> float:
        """When it broke off, or ended."""
        return self.at_s + self.samples / SAMPLE_RATE


def play(handed: Sequence[Handed], least_samples: int, block: int = BLOCK_SAMPLES) -> list[Stretch]:
    """What is heard when, of pieces in the order of their moments; playing begins with ``least_samples``."""
    block_s = block / SAMPLE_RATE
    total = sum(piece.samples for piece in handed)
    stretches: list[Stretch] = []
    tick = math.ceil(handed[0].at_s / block_s) if handed else 0
    there = taken = arrived = 0
    flowing = False
    while taken < total:
        while arrived < len(handed) and handed[arrived].at_s <= tick * block_s:
            there += handed[arrived].samples
            arrived += 1
        live = there - taken
        if flowing or (live and (live >= least_samples or there == total)):
            take = min(block, live)
            if not flowing:
                stretches.append(Stretch(tick * block_s, taken, 0))
            last = stretches[-1]
            stretches[-1] = Stretch(last.at_s, last.first_sample, last.samples + take)
            taken += take
            flowing = take == block
        tick += 1
    return stretches


def gaps_s(stretches: Sequence[Stretch]) -> list[float]:
    """How long each pause lasts that nobody meant."""
    return [after.at_s - before.end_s for before, after in itertools.pairwise(stretches)]


def heard_at_s(stretches: Sequence[Stretch], sample: int) -> float:
    """When a sample is heard."""
    one = next(one for one in reversed(stretches) if one.first_sample <= sample)
    return one.at_s + (sample - one.first_sample) / SAMPLE_RATE


def as_heard(sound: Sound, stretches: Sequence[Stretch], request_s: float) -> Sound:
    """The sound as it comes out, from the request on: the wait at its beginning and every gap are silence."""
    places = [round((one.at_s - request_s) * SAMPLE_RATE) for one in stretches]
    heard = np.zeros(places[-1] + stretches[-1].samples, np.float32)
    for place, one in zip(places, stretches, strict=True):
        heard[place : place + one.samples] = sound[one.first_sample : one.first_sample + one.samples]
    return heard
