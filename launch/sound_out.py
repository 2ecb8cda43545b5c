"""Where `speak --out` puts sound, and the bar that shows how far it is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Protocol, Self

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ipc.messages import SAMPLE_RATE

Kind = Literal["wav", "flac", "raw", "stdout"]
KINDS: dict[str, Kind] = {".wav": "wav", ".flac": "flac", ".pcm": "raw", ".raw": "raw"}


class Sink(Protocol):
    """Takes s16le mono 24 kHz PCM."""

    def write(self, pcm: bytes) -> object: ...

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


def sink_kind(out: str) -> Kind:
    """What to write; raises `ValueError` for a name that does not tell."""
    if out == "-":
        return "stdout"
    kind = KINDS.get(Path(out).suffix.lower())
    if kind is None:
        raise ValueError(f"--out {out}: the name must end in {', '.join(KINDS)}, or be - for PCM on standard output")
    return kind


def open_sink(out: str) -> Sink:
    """Open it; raises `OSError` when that is not possible."""
    kind = sink_kind(out)
    if kind == "stdout":
        return _Raw(sys.stdout.buffer)
    if kind == "raw":
        return _Raw(Path(out).open("wb"))
    Path(out).open("wb").close()  # soundfile's own error does not say why
    return _Sound(out)


class _Raw:
    """Plain PCM."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, pcm: bytes) -> None:
        self._file.write(pcm)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not sys.stdout.buffer:
            self._file.close()


class _Sound:
    """WAV or FLAC, 16 bits; whole and readable wherever it stops."""

    def __init__(self, path: str) -> None:
        self._file = soundfile.SoundFile(path, "w", samplerate=SAMPLE_RATE, channels=1, subtype="PCM_16")

    def write(self, pcm: bytes) -> None:
        self._file.write(np.frombuffer(pcm, "<i2"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Meter:
    """Characters made into sound, of all, and seconds of it, on standard error."""

    def __init__(self, total_chars: int | None) -> None:
        self._samples = 0
        total = f"{total_chars:,}" if total_chars is not None else "?"
        self._bar = Progress(
            BarColumn(),
            TextColumn(f"{{task.completed:,.0f}} of {total} characters, {{task.fields[sound]:.1f}} s of sound"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total_chars, sound=0.0)

    def chars(self, chars: int) -> None:
        """So many characters are done."""
        self._bar.update(self._task, completed=chars)

    def sound(self, samples: int) -> None:
        """So many more samples are there."""
        self._samples += samples
        self._bar.update(self._task, sound=self._samples / SAMPLE_RATE)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
