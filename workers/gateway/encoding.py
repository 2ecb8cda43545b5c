"""PCM as it comes, into the format that was asked for, as it comes.

An `Encoder` takes s16le mono PCM at 24 kHz and gives the bytes that can be sent by now. Nothing is held
back beyond what a codec's frame needs, and no format needs a known length: WAV says 0xFFFFFFFF, as is
usual for a stream. Lossless formats have exactly the samples that went in (resampled: rounded to the
nearest one).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, Protocol, cast

import av
import numpy as np
import soxr

from ipc.messages import SAMPLE_RATE

Codec = Literal["mp3", "opus", "aac", "flac", "wav", "pcm", "ulaw", "alaw"]

UNKNOWN_BYTES = 0xFFFFFFFF
SAMPLE_BYTES = 2


@dataclass(frozen=True)
class Format:
    """What is asked for. ``kbps`` counts for mp3, opus and aac."""

    codec: Codec
    rate: int = SAMPLE_RATE
    kbps: int = 0

    @property
    def media_type(self) -> str:
        """For the header Content-Type."""
        return MEDIA_TYPES[self.codec]


MEDIA_TYPES: Mapping[Codec, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "ulaw": "audio/basic",
    "alaw": "audio/x-alaw-basic",
}


class Encoder(Protocol):
    """A stream of one format. Ends with `end`, or at any time with `close`."""

    def feed(self, pcm: bytes) -> bytes:
        """More sound; the bytes that can go out by now (perhaps none)."""

    def end(self) -> bytes:
        """The last bytes."""

    def close(self) -> None:
        """Free what is held."""


def encoder(wanted: Format) -> Encoder:
    """A new stream in this format."""
    match wanted.codec:
        case "pcm":
            made: Encoder = _Pcm(b"")
        case "wav":
            made = _Pcm(wav_header(wanted.rate))
        case "opus":  # libopus takes 24 kHz as it is, whatever the file says
            return _Container(replace(wanted, rate=SAMPLE_RATE))
        case _:
            made = _Container(wanted)
    return made if wanted.rate == SAMPLE_RATE else _Resampled(made, wanted.rate)


def wav_header(rate: int, data_bytes: int = UNKNOWN_BYTES) -> bytes:
    """44 bytes in front of s16le mono. An unknown length is as long as the field allows."""
    riff_bytes = min(data_bytes + 36, UNKNOWN_BYTES)
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", riff_bytes, b"WAVE", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    return head + struct.pack("<4sI", b"data", data_bytes)


class _Pcm:
    """The samples as they are, after a header."""

    def __init__(self, header: bytes) -> None:
        self._header = header

    def feed(self, pcm: bytes) -> bytes:
        header, self._header = self._header, b""
        return header + pcm if header else pcm

    def end(self) -> bytes:
        return self.feed(b"")

    def close(self) -> None:
        return


class _Resampled:
    """Another rate first."""

    def __init__(self, inner: Encoder, rate: int) -> None:
        self._inner = inner
        self._resampler = soxr.ResampleStream(SAMPLE_RATE, rate, 1, dtype="int16", quality="HQ")

    def feed(self, pcm: bytes) -> bytes:
        return self._inner.feed(self._resampler.resample_chunk(np.frombuffer(pcm, "<i2")).tobytes())

    def end(self) -> bytes:
        rest = self._resampler.resample_chunk(np.zeros(0, np.int16), last=True).tobytes()
        return self._inner.feed(rest) + self._inner.end()

    def close(self) -> None:
        self._inner.close()


@dataclass(frozen=True)
class _Recipe:
    """How libav is asked for a format: the options of the container make it write at once and nothing else."""

    container: str
    codec: str
    kbps: int = 0
    container_options: Mapping[str, str] = field(default_factory=dict)
    codec_options: Mapping[str, str] = field(default_factory=dict)


_RECIPES: Mapping[Codec, _Recipe] = {
    "mp3": _Recipe("mp3", "libmp3lame", 96, {"write_xing": "0", "id3v2_version": "0"}, {"reservoir": "0"}),
    "opus": _Recipe("ogg", "libopus", 48, {"page_duration": "20000"}, {"application": "voip", "frame_duration": "20"}),
    "aac": _Recipe("adts", "aac", 96),
    "flac": _Recipe("flac", "flac", 0, {"metadata_header_padding": "0"}, {"frame_size": "1152"}),
    "ulaw": _Recipe("mulaw", "pcm_mulaw"),
    "alaw": _Recipe("alaw", "pcm_alaw"),
}


class _Sink:
    """What libav writes into; it cannot be wound back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class _Container:
    """A format of libav's."""

    def __init__(self, wanted: Format) -> None:
        recipe = _RECIPES[wanted.codec]
        self._rate = wanted.rate
        self._sink = _Sink()
        options = {"flush_packets": "1", **recipe.container_options}
        self._out = cast(Any, av.open(self._sink, "w", format=recipe.container, options=options))
        codec_options = dict(recipe.codec_options)
        self._stream = self._out.add_stream(recipe.codec, rate=wanted.rate, layout="mono", options=codec_options)
        if kbps := wanted.kbps or recipe.kbps:
            self._stream.bit_rate = kbps * 1000
        self._out.start_encoding()  # now and not at the first sound, which would have to wait for it
        self._samples = 0

    def feed(self, pcm: bytes) -> bytes:
        samples = np.frombuffer(pcm, "<i2")
        if len(samples):
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = self._rate
            frame.pts = self._samples
            frame.time_base = Fraction(1, self._rate)
            self._samples += len(samples)
            self._mux(frame)
        return self._sink.take()

    def end(self) -> bytes:
        self._mux(None)
        self.close()
        return self._sink.take()

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = self._stream = None

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._out.mux(packet)
