"""What `launch` prints: never blocking, and plain lines when the view cannot be shown."""

import os
import threading
import time
from collections.abc import Iterator

import pytest

from launch import view
from launch.console import KEPT_LINES, Console
from launch.view import Picture

PICTURE = Picture(phase="running", address="tcp://127.0.0.1:5570", engine="engine toy", up_s=1.0)
DEADLINE_S = 10.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def read_until(fd: int, wanted: bytes) -> bytes:
    os.set_blocking(fd, False)
    until, data = time.monotonic() + DEADLINE_S, b""
    while wanted not in data:
        assert time.monotonic() < until, data
        try:
            data += os.read(fd, 65536)
        except BlockingIOError:
            os.sched_yield()
    return data


def test_lines_carry_time_and_source(pipe: tuple[int, int]) -> None:
    console = Console(pipe[1])
    console.start()
    console.line("t3 0", "ready")
    console.line("supervisor", "two\nlines \x1b[31mand a trick")
    console.close()
    lines = read_until(pipe[0], b"trick\n").decode().splitlines()
    assert [line[8:] for line in lines] == [
        "  t3 0          ready",
        "  supervisor    two",
        "  supervisor    lines  [31mand a trick",
    ]


@pytest.mark.slow
def test_a_reader_that_does_not_read_blocks_nobody_and_learns_what_it_missed(pipe: tuple[int, int]) -> None:
    console = Console(pipe[1])
    console.start()
    began = time.monotonic()
    for number in range(20_000):
        console.line("supervisor", f"line {number} " + "x" * 100)
    console.close()
    assert time.monotonic() - began < DEADLINE_S
    text = read_until(pipe[0], b"line 19999 ").decode()
    assert "lines left out" in text
    assert text.count("\n") < 20_000 - KEPT_LINES


def test_a_reader_that_is_gone_is_no_error() -> None:
    out, into = os.pipe()
    os.close(out)
    console = Console(into)
    console.start()
    console.line("supervisor", "anybody?")
    console.close()
    console.line("supervisor", "nobody")
    os.close(into)


def test_the_live_view_is_drawn_and_its_last_lines_stay(pipe: tuple[int, int]) -> None:
    console = Console(pipe[1], lambda: PICTURE, lambda _timeout: None)
    console.start()
    console.line("supervisor", "the only line")
    drawn = read_until(pipe[0], b"engine toy")
    assert b"\x1b[?1049h" in drawn  # a screen of its own
    console.close()
    left = read_until(pipe[0], b"the only line\n")
    assert b"\x1b[?1049l" in drawn + left


def test_a_view_that_fails_becomes_plain_lines_and_says_so(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no width")

    monkeypatch.setattr(view, "draw", broken)
    console = Console(pipe[1], lambda: PICTURE)
    console.start()
    console.line("supervisor", "before or after")
    read_until(pipe[0], b"the live view failed (ZeroDivisionError: no width); plain lines from here on\n")
    console.line("supervisor", "afterwards")
    console.close()
    assert b"afterwards\n" in read_until(pipe[0], b"afterwards\n")


def test_a_state_that_is_old_is_not_shown_as_if_it_were_new(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    real = view.draw

    def watched(picture: Picture, width: int, height: int) -> object:
        seen.append(picture.state)
        return real(picture, width, height)

    monkeypatch.setattr(view, "draw", watched)
    console = Console(pipe[1], lambda: PICTURE, lambda _timeout: None)
    console.start()
    read_until(pipe[0], b"does not answer")
    console.close()
    assert set(seen) == {None}
    assert not any(thread.name == "console" for thread in threading.enumerate())
