"""Resemble's inaudible Perth watermark on a stream of sound.

The package marks whole files: spectrum at 32 kHz, a network that changes the magnitudes below 2 kHz, and back. A
frame of that spectrum can be had at 24 kHz as well (windows of the same 64 ms, steps of the same 10 ms, the same bins
below 12 kHz), and only the *change* has to be turned back into sound, which is added. Each frame is decided once:
`AHEAD` frames after it are waited for where exactness would take 15, beyond them the last one is repeated; and what
counts as silence is measured against the loudest frame so far instead of the whole file's. The package's own detector
finds the mark all the same.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.engines.base import Samples

RATE = 24_000
WINDOW, HOP = 1536, 240
"""64 and 10 ms: the package's 2048 and 320 samples at 32 kHz."""

AHEAD = 5
NEIGHBOURS = 15
"""Frames to either side that the network looks at: five layers of three."""

LATENCY_S = (WINDOW + AHEAD * HOP) / RATE
MEND = "pip install 'setuptools<82' (the perth package imports pkg_resources, which newer ones do not have)"

_GAIN = 2048 / WINDOW
"""A window at 32 kHz has as many more samples, and its spectrum is larger by that."""

_FLOOR = 1e-9
_SPAN_DB = 195.0
_SILENT_SHARE = 0.05
_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
_COUNTS = struct.Struct("<QQdII")

Frames = npt.NDArray[np.float32]


@dataclass
class Marker:
    """The network, shared by all streams of a process; None where the package does not give one. ``note``: for the
    log."""

    encoder: Any
    subband: int
    device: str
    note: str

    @classmethod
    def load(cls, device: str = "cpu") -> Marker:
        """Perth's own network on that device; without it streams stay unmarked, and the note says so and why."""
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                import perth

                if perth.PerthImplicitWatermarker is None:
                    return cls(None, 0, device, f"watermark: off, Perth's cannot be loaded; {MEND}")
                net = perth.PerthImplicitWatermarker().perth_net
        except Exception as error:  # noqa: BLE001 - speech goes on without, and says so
            return cls(None, 0, device, f"watermark: off, Perth's cannot be loaded ({error}); {MEND}")
        note = f"watermark: on (Perth; holds back {LATENCY_S * 1000:.0f} ms; model.options.watermark turns it off)"
        return cls(net.encoder.layers.to(device).float().eval(), net.subband, device, note)

    def factories(self) -> tuple[Callable[[bytes], Watermarker], ...]:
        """What a stream needs: one watermarker, or nothing where there is no network."""
        return () if self.encoder is None else (lambda state: Watermarker(self, state),)

    @torch.inference_mode()
    def residual(self, frames: Frames) -> Frames:
        """(T, subband) magnitudes on the network's scale to the change of each."""
        given = torch.from_numpy(np.ascontiguousarray(frames.T)).to(self.device)[None]
        made: Frames = self.encoder(given)[0].T.float().cpu().numpy()
        return made


class Watermarker:
    """One stream's mark. ``state``: of a predecessor, after any call but the final one.

    ``_taken`` samples came and the first ``_done`` frames are decided, so that ``_out`` samples are out. ``_recent``:
    input from there on. ``_before``: magnitudes of the frames before the first undecided one. ``_change``: what
    decided frames add to the samples after the last one that is out.
    """

    def __init__(self, marker: Marker, state: bytes = b"") -> None:
        self._marker = marker
        self._taken = self._done = 0
        self._loudest = 0.0
        self._recent = np.zeros(0, np.float32)
        self._before = np.zeros((0, marker.subband), np.float32)
        self._change = np.zeros(WINDOW, np.float32)
        if state:
            self._taken, self._done, self._loudest, recent, before = _COUNTS.unpack_from(state)
            rest = np.frombuffer(state, np.float32, offset=_COUNTS.size)
            self._recent, rest = rest[:recent], rest[recent:]
            self._before = rest[: before * marker.subband].reshape(before, marker.subband)
            self._change = rest[before * marker.subband :].copy()

    @property
    def scale(self) -> float:
        """Samples that come out for one that goes in."""
        return 1.0

    def state(self) -> bytes:
        """What a successor goes on from."""
        counts = _COUNTS.pack(self._taken, self._done, self._loudest, len(self._recent), len(self._before))
        return counts + b"".join(part.tobytes() for part in (self._recent, self._before, self._change))

    def process(self, samples: Samples, final: bool) -> Samples:
        """The next samples in, those that are ready out; with ``final`` all the rest."""
        self._recent = np.concatenate([self._recent, samples.astype(np.float32, copy=False)])
        self._taken += len(samples)
        known = self._taken // HOP + 1 if final else max(0, (self._taken - WINDOW // 2 - 1) // HOP + 1)
        if final and not self._taken:
            return np.zeros(0, np.float32)
        decided = known if final else known - AHEAD
        if decided <= self._done:
            return np.zeros(0, np.float32)
        spectra = self._spectra(known)
        self._add(spectra, decided - self._done, final)
        out = self._taken - len(self._recent)
        end = self._taken if final else max(0, decided * HOP - WINDOW // 2)
        self._done = decided
        return self._given(out, end, decided if final else None)

    def _spectra(self, known: int) -> npt.NDArray[np.complex64]:
        """(T, bins) of the frames that are not decided, on the scale of the package's."""
        first = self._taken - len(self._recent)
        begin = self._done * HOP - WINDOW // 2
        end = (known - 1) * HOP + WINDOW // 2
        padding = (max(0, first - begin), max(0, end - self._taken))
        # At the stream's ends sound is mirrored, as the package does it.
        mode = "reflect" if len(self._recent) > 1 else "edge"
        sound = np.pad(self._recent, padding, mode=mode)[max(0, begin - first) :][: end - begin]  # type: ignore[call-overload]
        frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP]
        return (np.fft.rfft(frames * _HANN, axis=1) * _GAIN).astype(np.complex64)

    def _add(self, spectra: npt.NDArray[np.complex64], decided: int, final: bool) -> None:
        """Decide the first ``decided`` frames and add their change."""
        subband = self._marker.subband
        magnitudes = np.abs(spectra)
        levels = (20 * np.log10(np.maximum(magnitudes, _FLOOR)) + 180.0) / _SPAN_DB
        sums = levels.sum(axis=1)
        loudest = np.maximum.accumulate(np.concatenate([[self._loudest], sums]))[1:]
        low = levels[:, :subband].astype(np.float32)
        ahead = [] if final else [np.repeat(low[-1:], NEIGHBOURS - AHEAD, axis=0)]
        residual = self._marker.residual(np.concatenate([self._before, low, *ahead]))[len(self._before) :][:decided]
        residual *= (sums > _SILENT_SHARE * loudest)[:decided, None]
        change = np.zeros((decided, WINDOW // 2 + 1), np.complex64)
        change[:, :subband] = spectra[:decided, :subband] * (10.0 ** (residual * _SPAN_DB / 20.0) - 1.0) / _GAIN
        sound = (np.fft.irfft(change, WINDOW, axis=1) * _HANN).astype(np.float32)
        begin = (self._taken - len(self._recent)) - (self._done * HOP - WINDOW // 2)
        total = np.zeros(max(len(self._change) + begin, (decided - 1) * HOP + WINDOW), np.float32)
        total[begin : begin + len(self._change)] = self._change
        for index, one in enumerate(sound):
            total[index * HOP : index * HOP + WINDOW] += one
        self._change = total[begin:]
        self._loudest = float(loudest[decided - 1])
        self._before = np.concatenate([self._before, low[:decided]])[-NEIGHBOURS:]

    def _given(self, out: int, end: int, frames: int | None) -> Samples:
        """Samples ``out`` to ``end`` with the change of all frames that touch them. ``frames``: how many there are
        in the whole stream, where it ends."""
        count = end - out
        change = self._change[:count]
        change = np.pad(change, (0, count - len(change)))
        made = self._recent[:count] + change / _envelope(out, count, frames)
        self._recent = self._recent[count:].copy()
        self._change = self._change[count:].copy()
        return made.astype(np.float32)


def _envelope(first: int, count: int, frames: int | None) -> Samples:
    """What overlapping windows add up to at these samples: steady but for the stream's beginning and end."""
    total = np.zeros(count + 2 * WINDOW, np.float32)
    earliest = max(0, (first - WINDOW // 2) // HOP)
    latest = (first + count + WINDOW // 2) // HOP
    for frame in range(earliest, latest + 1 if frames is None else min(latest + 1, frames)):
        at = frame * HOP - WINDOW // 2 - first + WINDOW
        low = max(0, at)
        total[low : at + WINDOW] += (_HANN * _HANN)[low - at :][: max(0, len(total) - low)]
    return np.maximum(total[WINDOW : WINDOW + count], 1e-3)
