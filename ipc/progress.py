"""Newline JSON over an inherited pipe: what a process tells the supervisor about itself.

    {"progress": n, "doing": "loading", "deadline_s": 60}    I live; next report within 60 s
    {"ready": "espeak-ng 1.52, 141 voices, loaded in 0.1 s"}
    {"error": "model.engine: …"}                              why it is about to exit

Lines are shorter than PIPE_BUF, so that they arrive whole. Progress that does not fit into a full
pipe is dropped (the next one replaces it); ready and error wait for room.
"""

from __future__ import annotations

import os
import select

import msgspec
from msgspec import Struct

LINE_BYTES = 4000
WAIT_S = 1.0


class ProgressLine(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One line; exactly one of ``progress``, ``ready`` and ``error`` is set."""

    progress: int | None = None
    doing: str = ""
    deadline_s: float = 0.0
    ready: str | None = None
    error: str | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(ProgressLine)


class ProgressWriter:
    """The worker's end. With ``fd`` < 0 nothing is written (a process started by hand)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._count = 0
        if fd >= 0:
            os.set_blocking(fd, False)

    def progress(self, doing: str, deadline_s: float) -> None:
        """The work loop lives, is ``doing`` this and reports again within ``deadline_s``."""
        self._count += 1
        self._write(ProgressLine(progress=self._count, doing=doing[:200], deadline_s=deadline_s), wait=False)

    def ready(self, facts: str) -> None:
        """The process is loaded and takes work."""
        self._write(ProgressLine(ready=facts[:500]), wait=True)

    def error(self, reason: str) -> None:
        """Why the process is about to exit."""
        self._write(ProgressLine(error=reason[:500]), wait=True)

    def close(self) -> None:
        """Close the pipe; later reports are dropped."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _write(self, line: ProgressLine, *, wait: bool) -> None:
        if self._fd < 0:
            return
        data = _ENCODER.encode(line) + b"\n"
        try:
            os.write(self._fd, data)
        except BlockingIOError:
            if wait and select.select([], [self._fd], [], WAIT_S)[1]:
                os.write(self._fd, data)
        except BrokenPipeError:
            self.close()  # the supervisor is gone; the death pipe ends this process


class ProgressReader:
    """The supervisor's end; never blocks. ``errors`` counts lines that were none of ours."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.errors = 0
        self.closed = False
        self._rest = b""

    def fileno(self) -> int:
        """For select and poll."""
        return self.fd

    def read(self) -> list[ProgressLine]:
        """Everything that has arrived. ``closed`` is set when the writer is gone."""
        lines: list[ProgressLine] = []
        while not self.closed:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                break
            if not data:
                self.closed = True
                break
            *whole, self._rest = (self._rest + data).split(b"\n")
            lines += [line for raw in whole if (line := self._decode(raw)) is not None]
            if len(self._rest) > LINE_BYTES:
                self.errors += 1
                self._rest = b""
        return lines

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.fd)
        self.closed = True

    def _decode(self, raw: bytes) -> ProgressLine | None:
        try:
            return _DECODER.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.errors += 1
            return None
