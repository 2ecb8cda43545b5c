"""One stream into the sound card, through PortAudio: finding the device, opening it, its callback.

The callback does no I/O, takes no lock, logs nothing and keeps nothing that grows; what it noticed
stands in the stream's attributes. `workers.sound_device` looks after the stream.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ipc.messages import SAMPLE_RATE
from workers.playback import Playback
from workers.sound import Intervals, SoundError
from workers.sound_rate import device_block_samples, make_feed

LEAD_S = 0.25
"""Silence at the start of a stream: sound servers swallow the first samples."""
HUNG_S = 2.0
_PRIORITY = 10
_BLOCKS_AHEAD = 3
_UNPRIVILEGED_S = 0.1
_FIRST_CALLS = 2

Backend = Any
"""The module sounddevice, or a test's."""


def load_backend() -> Backend:
    """Import sounddevice, which starts PortAudio. Raises `SoundError` with the fix."""
    try:
        import sounddevice
    except OSError as error:
        fix = "brew install portaudio" if os.uname().sysname == "Darwin" else "apt install libportaudio2"
        raise SoundError(f"no PortAudio ({error}): {fix}") from error
    except Exception as error:
        raise SoundError(f"PortAudio does not start: {error}") from error
    return sounddevice


@dataclass(frozen=True)
class Device:
    """An output device and how it is opened."""

    index: int
    name: str
    rate_hz: int
    channels: int


def find_device(backend: Backend, wanted: str | int) -> Device:
    """The output device by index, by part of its name, or ``default``. Raises `SoundError`."""
    outputs = {i: d for i, d in enumerate(backend.query_devices()) if d["max_output_channels"] > 0}
    if not outputs:
        raise SoundError("no output device")
    known = ", ".join(f"{i} {d['name']}" for i, d in outputs.items())
    index = _index(backend, wanted, outputs)
    if index not in outputs:
        raise SoundError(f"no output device {wanted!r}; player.device takes a number or part of a name of: {known}")
    for rate_hz in (SAMPLE_RATE, int(outputs[index]["default_samplerate"])):
        for channels in sorted({1, 2, int(outputs[index]["max_output_channels"])}):
            try:
                backend.check_output_settings(index, channels=channels, dtype="float32", samplerate=rate_hz)
            except (backend.PortAudioError, ValueError):
                continue
            return Device(index, str(outputs[index]["name"]), rate_hz, channels)
    raise SoundError(f"output device {outputs[index]['name']!r} takes no sound; set player.device to one of: {known}")


def _index(backend: Backend, wanted: str | int, outputs: dict[int, Any]) -> int:
    if isinstance(wanted, int) or wanted.isdigit():
        return int(wanted)
    if wanted == "default":
        index = int(backend.default.device[1])
        return index if index in outputs else min(outputs)
    exact = [i for i, d in outputs.items() if d["name"].lower() == wanted.lower()]
    partly = [i for i, d in outputs.items() if wanted.lower() in d["name"].lower()]
    return (exact or partly or [-1])[0]


class DeviceStream:
    """One stream from opening to its end. Silent until `live` is set.

    Written by the callback: ``intervals``, ``underflows``, ``error``. Raises what PortAudio raises.
    """

    def __init__(self, backend: Backend, device: Device, playback: Playback, block_samples: int) -> None:
        self.device = device
        self.block_samples = device_block_samples(block_samples, device.rate_hz)
        self.live = False
        self.inside = False
        self.ended = False
        self.error: BaseException | None = None
        self.underflows = 0
        self.intervals = Intervals()
        self._backend = backend
        self._lead_samples = round(LEAD_S * device.rate_hz)
        self._calls = 0
        self._feed = make_feed(playback, block_samples, device.rate_hz)
        self._mono = np.zeros(self.block_samples, np.float32)
        latency_s = _BLOCKS_AHEAD * self.block_samples / device.rate_hz
        if not _hasten():
            latency_s = max(latency_s, _UNPRIVILEGED_S)
        self._stream = backend.OutputStream(
            samplerate=device.rate_hz,
            blocksize=self.block_samples,
            device=device.index,
            channels=device.channels,
            dtype="float32",
            latency=latency_s,
            callback=self._callback,
            finished_callback=self._finished,
        )
        self._latency_ns: int = round(self._stream.latency * 1e9)
        self._opened_ns = time.monotonic_ns()
        try:
            self._stream.start()
        except BaseException:
            self._stream.close(ignore_errors=True)
            raise

    @property
    def latency_s(self) -> float:
        """From the callback to the ear."""
        return self._latency_ns / 1e9

    def lost(self) -> str:
        """Why the stream has ended or hangs (empty: it runs)."""
        if self.ended or not self._stream.active:
            return f"the device {self.device.name!r} has gone"
        silent_s = (time.monotonic_ns() - (self.intervals.last_ns or self._opened_ns)) / 1e9
        return f"the device {self.device.name!r} has hung for {silent_s:.0f} s" if silent_s > HUNG_S else ""

    def close(self) -> None:
        """Drop what is buffered and close. May block while the sound server hangs."""
        self.live = False
        try:
            self._stream.abort(ignore_errors=True)
        finally:
            self._stream.close(ignore_errors=True)

    def _finished(self) -> None:
        self.ended = True

    def _callback(self, out: Any, frames: int, at: Any, status: Any) -> None:
        self.inside = True
        try:
            now_ns = time.monotonic_ns()
            self.intervals.note(now_ns)
            if self._lead_samples > 0 or not self.live:
                self._lead_samples -= frames
                out.fill(0.0)
                return
            if status.output_underflow:
                self.underflows += 1
            self._calls += 1
            ahead_ns = round((at.outputBufferDacTime - at.currentTime) * 1e9)
            if ahead_ns <= 0 or self._calls <= _FIRST_CALLS:
                ahead_ns = self._latency_ns
            if self.device.channels == 1:
                self._feed.fill(out[:, 0], now_ns, now_ns + ahead_ns, ahead_ns)
            else:
                self._feed.fill(self._mono, now_ns, now_ns + ahead_ns, ahead_ns)
                out[:] = self._mono[:frames, np.newaxis]
        except BaseException as error:
            self.error = error  # the player's loop raises it
            raise self._backend.CallbackAbort from error
        finally:
            self.inside = False


def _hasten() -> bool:
    """Real-time priority for the calling thread; PortAudio's callback thread inherits it."""
    if not hasattr(os, "sched_setscheduler"):
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    except PermissionError:
        return False
    return True
