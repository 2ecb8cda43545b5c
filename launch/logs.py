"""What the processes print: one size-rotated file each, and the last lines at hand for when it dies."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

ROTATE_BYTES = 2 * 2**20
TAIL_LINES = 12
RETRY_S = 10.0


class Log:
    """A log file. A disk that does not take it costs nothing but the log: what is lost is counted, and
    `news` tells when it begins and when it is over."""

    def __init__(self, path: Path, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.path = path
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.lost_lines = 0
        self._news = ""
        self._retry_s = 0.0
        self._rotate_bytes = rotate_bytes
        self._file: BinaryIO | None = None

    def write(self, lines: list[str]) -> None:
        """Append lines with the wall-clock time."""
        self.tail += lines
        self._append(lines)

    def mark(self, text: str) -> None:
        """Append a line of ours, which is not among the last lines of the process."""
        self._append([f"--- {text}"])

    def last(self) -> list[str]:
        """The last lines since this was last asked."""
        lines = list(self.tail)
        self.tail.clear()
        return lines

    def news(self) -> str:
        """What is to be said about the log itself since this was last asked (mostly nothing)."""
        news, self._news = self._news, ""
        return news

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _append(self, lines: list[str]) -> None:
        if not lines:
            return
        if self.lost_lines and time.monotonic() < self._retry_s:
            self.lost_lines += len(lines)
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            file = self._opened()
            missing = [f"--- {self.lost_lines} lines are missing here"] if self.lost_lines else []
            file.write("".join(f"{stamp}  {line}\n" for line in [*missing, *lines]).encode())
            if self.lost_lines:
                self._news = f"{self.path}: can be written again; {self.lost_lines} lines are lost"
                self.lost_lines = 0
            if file.tell() > self._rotate_bytes:
                self._rotate()
        except OSError as error:
            if not self.lost_lines:
                self._news = f"{self.path}: cannot be written, so what is printed is not kept: {error}"
            self.lost_lines += len(lines)
            self._retry_s = time.monotonic() + RETRY_S

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        return self._file

    def _rotate(self) -> None:
        """Keep the full file as NAME.log.1 and begin a new one."""
        self.close()
        self.path.replace(self.path.with_name(self.path.name + ".1"))
