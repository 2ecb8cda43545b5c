"""Between a playback at 24 kHz and a device at another rate.

A feed makes the device's blocks and tells the playback when its samples will be heard. It is called
in the sound card's callback: everything it needs exists beforehand.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import soxr

from ipc.messages import SAMPLE_RATE
from ipc.ring import Samples
from workers.playback import Playback

_NS = 1_000_000_000


class Feed(Protocol):
    """What a callback calls."""

    def fill(self, out: Samples, now_ns: int, dac_ns: int, latency_ns: int) -> None:
        """Make one block of the device, whose first sample reaches the ear at ``dac_ns``."""


class DirectFeed:
    """The device runs at 24 kHz: samples pass unchanged."""

    def __init__(self, playback: Playback) -> None:
        self._playback = playback

    def fill(self, out: Samples, now_ns: int, dac_ns: int, latency_ns: int) -> None:
        """One block of the playback is one of the device."""
        self._playback.fill(out)
        self._playback.commit(now_ns, dac_ns, latency_ns)


class ResampledFeed:
    """The device runs at ``rate_hz``: blocks of ``block_samples`` are resampled as a stream.

    The resampler keeps back a few hundredths of a second, which the reported times include; silence
    after speech pushes it out.
    """

    def __init__(self, playback: Playback, block_samples: int, rate_hz: int) -> None:
        self._playback = playback
        self._rate_hz = rate_hz
        self._stream = soxr.ResampleStream(SAMPLE_RATE, rate_hz, 1, dtype="float32", quality="HQ")
        self._block = np.zeros(block_samples, np.float32)
        self._made = np.zeros(rate_hz, np.float32)
        self._made_samples = 0
        self._fed = 0
        self._given = 0
        while not self._made_samples:
            self._push()  # silence, until the resampler is full

    def fill(self, out: Samples, now_ns: int, dac_ns: int, latency_ns: int) -> None:
        """Pull as many blocks of the playback as this one of the device needs."""
        while self._made_samples < len(out):
            self._playback.fill(self._block)
            behind = self._fed * self._rate_hz // SAMPLE_RATE - self._given
            self._push()
            self._playback.commit(now_ns, dac_ns + behind * _NS // self._rate_hz, latency_ns)
        out[:] = self._made[: len(out)]
        self._made_samples -= len(out)
        self._given += len(out)
        self._made[: self._made_samples] = self._made[len(out) : len(out) + self._made_samples]

    def _push(self) -> None:
        sound = self._stream.resample_chunk(self._block)
        self._made[self._made_samples : self._made_samples + len(sound)] = sound
        self._made_samples += len(sound)
        self._fed += len(self._block)


def make_feed(playback: Playback, block_samples: int, rate_hz: int) -> Feed:
    """The feed for a device that runs at ``rate_hz``."""
    if rate_hz == SAMPLE_RATE:
        return DirectFeed(playback)
    return ResampledFeed(playback, block_samples, rate_hz)


def device_block_samples(block_samples: int, rate_hz: int) -> int:
    """As long a block as ``block_samples`` at 24 kHz."""
    return math.ceil(block_samples * rate_hz / SAMPLE_RATE)
