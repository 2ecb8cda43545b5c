"""Sound into a WAV file that is complete and readable at every moment.

16 bit, mono, 24 kHz: every player and Python's own `wave` reads it. A float sample x becomes
``round(x * 32767)``, limited to ±32767. Samples are written before the header counts them, so that a
killed player leaves a valid file; its successor goes on where the header ends.

Silence that nobody made is kept between two pieces of speech as it was heard, but at most
`LONGEST_GAP_S` of it, and not before the first or after the last piece: an idle day costs no disk.
A file that reaches the format's limit (24 h of speech) is followed by ``name-2.wav``.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ipc.messages import SAMPLE_RATE
from ipc.ring import Samples
from workers.sound import SoundError

LONGEST_GAP_S = 5.0
LARGEST_DATA_BYTES = 2**32 - 2**20
_LONGEST_GAP_SAMPLES = round(LONGEST_GAP_S * SAMPLE_RATE)
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_RIFF_AT, _DATA_AT = 4, 40
_SAMPLE_BYTES = 2


def to_int16(samples: Samples) -> bytes:
    """Float32 within ±1 as 16-bit little-endian PCM; what lies outside is limited."""
    pcm: npt.NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * np.float32(32767)).astype("<i2")
    return pcm.tobytes()


def header(data_bytes: int) -> bytes:
    """The 44 bytes before ``data_bytes`` of PCM."""
    rate = SAMPLE_RATE
    return _HEADER.pack(
        *(b"RIFF", _HEADER.size - 8 + data_bytes, b"WAVE", b"fmt ", 16, 1, 1, rate, rate * _SAMPLE_BYTES),
        *(_SAMPLE_BYTES, 8 * _SAMPLE_BYTES, b"data", data_bytes),
    )


class FileInUse(SoundError):
    """Another player writes this file."""


def _lock(fd: int, path: Path) -> None:
    """Two players in one file would destroy each other's speech."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileInUse(f"player.output: {path} is written by another pipeline; name another file") from error


class WavFile:
    """A WAV file that grows. ``append``: go on with what is there (a restarted player), else begin anew."""

    def __init__(self, path: Path, append: bool, largest_data_bytes: int = LARGEST_DATA_BYTES) -> None:
        self._named = path
        self._number = 1
        self._largest_bytes = largest_data_bytes
        self._gap_samples = 0
        self._begun = False
        self._fd = -1
        self._data_bytes = 0
        self._open(append)
        while append and self._data_bytes >= largest_data_bytes // 2 and self._numbered(self._number + 1).exists():
            self._next(append=True)

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._numbered(self._number)

    @property
    def device(self) -> str:
        """For people: where the sound is."""
        return str(self.path)

    def write(self, samples: Samples, sounding: int) -> None:
        """One block: the first ``sounding`` samples were made by somebody, the rest is silence.

        Raises OSError; then nothing of the block counts, and it can be written again.
        """
        if not sounding:
            self._gap_samples += len(samples)
            return
        gap = min(self._gap_samples, _LONGEST_GAP_SAMPLES) if self._begun else 0
        data = bytes(gap * _SAMPLE_BYTES) + to_int16(samples[:sounding])
        if self._data_bytes + len(data) > self._largest_bytes:
            self._next(append=False)
        self._append(data)
        self._begun = True
        self._gap_samples = len(samples) - sounding

    def close(self) -> None:
        """Close the file; twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _append(self, data: bytes) -> None:
        at = _HEADER.size + self._data_bytes
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], at + written)
        self._data_bytes += len(data)
        os.pwrite(self._fd, struct.pack("<I", self._data_bytes), _DATA_AT)
        os.pwrite(self._fd, struct.pack("<I", _HEADER.size - 8 + self._data_bytes), _RIFF_AT)

    def _numbered(self, number: int) -> Path:
        named = self._named
        return named if number == 1 else named.with_name(f"{named.stem}-{number}{named.suffix}")

    def _next(self, append: bool) -> None:
        """Go on in the next file."""
        self.close()
        self._number += 1
        self._open(append)

    def _open(self, append: bool) -> None:
        """Raises `SoundError` when the file can't be had."""
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            _lock(self._fd, self.path)
            self._data_bytes = self._known_bytes() if append else 0
            if not self._data_bytes:
                os.pwrite(self._fd, header(0), 0)
            os.ftruncate(self._fd, _HEADER.size + self._data_bytes)
        except OSError as error:
            raise SoundError(
                f"player.output: wav:{self.path} cannot be written: {error.strerror}; "
                "name a file in a folder that exists and is yours"
            ) from error

    def _known_bytes(self) -> int:
        """Bytes of PCM in the file of a predecessor. Its RIFF size may lag: it is stored last."""
        known = os.pread(self._fd, _HEADER.size, 0)
        if len(known) < _HEADER.size:
            return 0
        if (
            known[:_RIFF_AT] + known[_RIFF_AT + 4 : _DATA_AT]
            != header(0)[:_RIFF_AT] + header(0)[_RIFF_AT + 4 : _DATA_AT]
        ):
            raise SoundError(
                f"player.output: {self.path} is no WAV file that this program began; move it away or name another file"
            )
        return int(_HEADER.unpack(known)[-1])
