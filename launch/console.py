"""What `launch` shows: log lines, and on a terminal the live view.

Everything is written by one thread of its own, unbuffered and around Python's streams: a terminal
that is held (Ctrl-S) or a pipe that nobody reads stops that thread and nothing else. A view that
fails is replaced by plain lines, which say so.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import IO, TYPE_CHECKING, cast

from ipc.messages import State

if TYPE_CHECKING:
    from launch.view import Picture

KEPT_LINES = 500
LEFT_LINES = 12
"""Lines that stay on the terminal when the live view closes."""

FRAME_S = 0.5
CLOSE_S = 1.5

Watch = Callable[[float], State | None]
"""``watch(timeout_s)``: the newest state, or None when none came in time."""


class Console:
    """Lines to ``fd``, from any thread, never blocking. With ``picture`` it is a live view."""

    def __init__(self, fd: int, picture: Callable[[], Picture] | None = None, watch: Watch | None = None) -> None:
        self._fd = fd
        self._picture = picture
        self._watch = watch
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._printed = 0
        self._said = 0
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def start(self) -> None:
        """Begin to show."""
        self._thread.start()

    def line(self, who: str, text: str) -> None:
        """Show a line with the wall-clock time; what a terminal would take for a command is blanked."""
        stamp = time.strftime("%H:%M:%S")
        with self._news:
            for part in text.splitlines() or [""]:
                plain = "".join(char if char.isprintable() else " " for char in part)
                self._lines.append(f"{stamp}  {who:<12}  {plain}")
                self._said += 1
            self._news.notify()

    def close(self) -> None:
        """Show what is left and stop; gives up on a terminal that takes nothing."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)

    # ---- in the thread

    def _run(self) -> None:
        try:
            if self._picture is not None:
                self._show(self._picture)
            while self._print_news():
                pass
        except OSError:  # the terminal or the reader is gone: there is nobody left to tell
            return

    def _print_news(self) -> bool:
        """Wait for lines and print them; False when that was the last time."""
        with self._news:
            self._news.wait_for(lambda: self._closed or self._said > self._printed)
            closed, lines = self._closed, self._unprinted()
        _write(self._fd, "".join(f"{line}\n" for line in lines))
        return not closed

    def _unprinted(self) -> list[str]:
        """Lines since the last call; of those that were too many, the last ones and their number."""
        new = self._said - self._printed
        self._printed = self._said
        lines = list(self._lines)[-new:] if new else []
        return [f"… {new - len(lines)} lines left out", *lines] if new > len(lines) else lines

    def _show(self, picture: Callable[[], Picture]) -> None:
        """The live view, until closed or until it fails."""
        try:
            self._animate(picture)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the view, speech goes on
            self.line("supervisor", f"the live view failed ({type(error).__name__}: {error}); plain lines from here on")
        with self._news:
            self._printed = max(self._printed, self._said - LEFT_LINES)

    def _animate(self, picture: Callable[[], Picture]) -> None:
        from rich.console import Console as Terminal
        from rich.live import Live

        from launch.view import draw

        terminal = Terminal(file=cast("IO[str]", _Raw(self._fd)), force_terminal=True)
        state, seen_at = None, 0.0
        with Live(
            console=terminal, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as live:
            while not self._closed:
                began = time.monotonic()
                if (fresh := self._watch(FRAME_S) if self._watch is not None else None) is not None:
                    state, seen_at = fresh, began
                if began - seen_at > 6 * FRAME_S:
                    state = None
                shown = picture()
                size = terminal.size
                with self._news:
                    lines = tuple(self._lines)
                live.update(draw(replace(shown, state=state, lines=lines), size.width, size.height), refresh=True)
                with self._news:
                    self._news.wait_for(lambda: self._closed, max(0.0, began + FRAME_S - time.monotonic()))


def _write(fd: int, text: str) -> None:
    """All of it, however long that takes."""
    data = memoryview(text.encode("utf-8", "replace"))
    while data:
        data = data[os.write(fd, data) :]


class _Raw:
    """The little of a text file that rich needs, without a buffer that could block an exit."""

    encoding = "utf-8"

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, text: str) -> int:
        """Straight to the descriptor."""
        _write(self._fd, text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        """As the descriptor says."""
        with contextlib.suppress(OSError):
            return os.isatty(self._fd)
        return False

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd
