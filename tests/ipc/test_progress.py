"""The progress pipe: whole lines, never blocking, telling when the other end is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ipc.progress import ProgressLine, ProgressReader, ProgressWriter


@pytest.fixture
def ends() -> Iterator[tuple[ProgressReader, ProgressWriter]]:
    read, write = os.pipe()
    reader, writer = ProgressReader(read), ProgressWriter(write)
    yield reader, writer
    writer.close()
    os.close(read)


def test_what_is_written_is_read(ends: tuple[ProgressReader, ProgressWriter]) -> None:
    reader, writer = ends
    assert reader.read() == []
    writer.progress("loading", 60.0)
    writer.progress("work", 5.0)
    writer.ready("espeak on cpu")
    writer.error("model.engine: no “x”\nsecond line")
    assert reader.read() == [
        ProgressLine(progress=1, doing="loading", deadline_s=60.0),
        ProgressLine(progress=2, doing="work", deadline_s=5.0),
        ProgressLine(ready="espeak on cpu"),
        ProgressLine(error="model.engine: no “x”\nsecond line"),
    ]
    assert not reader.closed
    assert reader.errors == 0


def test_the_end_of_the_writer_is_seen_after_its_last_words(ends: tuple[ProgressReader, ProgressWriter]) -> None:
    reader, writer = ends
    writer.error("why")
    writer.close()
    writer.progress("more", 1.0)  # dropped: closed
    assert reader.read() == [ProgressLine(error="why")]
    assert reader.closed
    assert reader.read() == []


def test_a_full_pipe_drops_progress_and_never_blocks(ends: tuple[ProgressReader, ProgressWriter]) -> None:
    reader, writer = ends
    for _ in range(5000):
        writer.progress("work", 5.0)
    lines = reader.read()
    assert 100 < len(lines) < 5000
    assert [line.progress for line in lines] == list(range(1, len(lines) + 1))
    writer.ready("now")
    assert reader.read() == [ProgressLine(ready="now")]
    assert reader.errors == 0


def test_lines_that_are_none_of_ours_are_counted_and_skipped(ends: tuple[ProgressReader, ProgressWriter]) -> None:
    reader, writer = ends
    for raw in (b"Traceback\n", b'{"progress":"x"}\n', b"\xff\xfe\n", b"[" * 2000 + b"\n", b'{"nope":1}\n'):
        os.write(writer._fd, raw)
    os.write(writer._fd, b'{"ready":"a')
    assert reader.read() == []
    os.write(writer._fd, b'b"}\n')
    assert reader.read() == [ProgressLine(ready="ab")]
    assert reader.errors == 5


def test_an_endless_line_is_dropped(ends: tuple[ProgressReader, ProgressWriter]) -> None:
    reader, writer = ends
    for _ in range(10):
        os.write(writer._fd, b"x" * 4096)
        assert reader.read() == []
    assert len(reader._rest) <= 4096
    assert reader.errors >= 9


def test_a_gone_reader_does_not_hurt() -> None:
    read, write = os.pipe()
    writer = ProgressWriter(write)
    os.close(read)
    writer.progress("work", 1.0)
    writer.error("why")
    writer.close()


def test_without_a_pipe_nothing_is_written() -> None:
    writer = ProgressWriter(-1)
    writer.progress("work", 1.0)
    writer.ready("x")
    writer.close()


def test_long_words_fit_into_one_line(ends: tuple[ProgressReader, ProgressWriter]) -> None:
    reader, writer = ends
    writer.error("é" * 5000)
    (line,) = reader.read()
    assert line.error == "é" * 500
