"""A stand-in for the module sounddevice: devices that come, go and hang, callbacks on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from ipc.ring import Samples


class PortAudioError(Exception):
    """As sounddevice raises it."""


class CallbackAbort(Exception):
    """As sounddevice knows it (its name, so without Error)."""


def device(name: str, rates: tuple[int, ...] = (24_000, 48_000), channels: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """An output device that takes these rates and channel counts."""
    return {
        "name": name,
        "max_output_channels": max(channels, default=0),
        "default_samplerate": float(rates[-1]),
        "rates": rates,
        "channels": channels,
    }


class Card:
    """The module. Tests change ``devices`` and ``trouble`` and look at ``streams``."""

    PortAudioError = PortAudioError
    CallbackAbort = CallbackAbort

    def __init__(self, *devices: dict[str, Any]) -> None:
        self.devices = list(devices)
        self.default = SimpleNamespace(device=[-1, 0 if devices else -1])
        self.streams: list[Stream] = []
        self.trouble = ""
        self.server_answers = threading.Event()
        self.server_answers.set()
        self.restarts = 0
        self._initialized = 1
        self._known = list(devices)

    def query_devices(self) -> list[dict[str, Any]]:
        return self._known

    def check_output_settings(self, index: int, channels: int, dtype: str, samplerate: int) -> None:
        assert dtype == "float32"
        known = self._known[index]
        if samplerate not in known["rates"]:
            raise PortAudioError("Invalid sample rate")
        if channels not in known["channels"]:
            raise PortAudioError("Invalid number of channels")

    def OutputStream(self, **options: Any) -> Stream:
        assert self.server_answers.wait(20)
        if self.trouble:
            raise PortAudioError(self.trouble)
        self.streams.append(Stream(self, **options))
        return self.streams[-1]

    def _terminate(self) -> None:
        if not self._initialized:
            raise PortAudioError("PortAudio not initialized")
        self._initialized -= 1
        self._known = []

    def _initialize(self) -> None:
        if self.trouble == "no start":
            raise PortAudioError(self.trouble)
        self._initialized += 1
        self.restarts += 1
        self._known = list(self.devices)

    def _exit_handler(self) -> None:
        raise AssertionError("registered nowhere")


class Stream:
    """One output stream; `tick` is the sound card asking for a block."""

    def __init__(
        self,
        card: Card,
        samplerate: int,
        blocksize: int,
        device: int,
        channels: int,
        dtype: str,
        latency: float,
        callback: Callable[..., None],
        finished_callback: Callable[[], None],
    ) -> None:
        self.samplerate, self.blocksize, self.device, self.channels = samplerate, blocksize, device, channels
        self.latency = latency
        self.active = False
        self.closed = False
        self.heard: list[Samples] = []
        self._card = card
        self._callback = callback
        self._finished = finished_callback

    def start(self) -> None:
        self.active = True

    def tick(self, blocks: int = 1, underflow: bool = False) -> Samples:
        """Ask for blocks; returns the first channel."""
        sound = []
        for _ in range(blocks):
            out = np.full((self.blocksize, self.channels), np.nan, np.float32)
            at = SimpleNamespace(currentTime=100.0, outputBufferDacTime=100.05)
            try:
                self._callback(out, self.blocksize, at, SimpleNamespace(output_underflow=underflow))
            except CallbackAbort:
                self.end()
                out.fill(0)
            assert np.all(out == out[:, :1]), "every channel has the same sound"
            sound.append(out[:, 0])
        self.heard += sound
        return np.concatenate(sound)

    def end(self) -> None:
        """The device has gone."""
        self.active = False
        self._finished()

    def abort(self, ignore_errors: bool = True) -> None:
        assert self._card.server_answers.wait(20)
        self.active = False

    def close(self, ignore_errors: bool = True) -> None:
        self.closed = True
        self.active = False
