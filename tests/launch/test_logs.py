"""Log files: rotated by size, the last lines at hand, and never a reason to stop."""

from pathlib import Path

import pytest

from launch.logs import TAIL_LINES, Log


def test_lines_are_appended_with_their_time(tmp_path: Path) -> None:
    log = Log(tmp_path / "deep" / "t3-0.log")
    log.write(["one", "zwei ä"])
    log.close()
    log.write(["three"])
    log.close()
    lines = log.path.read_text().splitlines()
    assert [line[21:] for line in lines] == ["one", "zwei ä", "three"]


def test_the_last_lines_are_told_once_and_marks_are_not_among_them(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.write([f"line {number}" for number in range(100)])
    log.mark("ended")
    assert log.last() == [f"line {number}" for number in range(100 - TAIL_LINES, 100)]
    assert log.last() == []
    assert "--- ended" in log.path.read_text()
    log.close()


def test_a_full_file_is_kept_once_and_replaced(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", rotate_bytes=1000)
    for number in range(100):
        log.write([f"line {number:03d} " + "x" * 60])
    log.close()
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1"}
    assert all(path.stat().st_size < 1200 for path in tmp_path.iterdir())
    kept = (tmp_path / "log.1").read_text() + (log.path.read_text() if log.path.exists() else "")
    assert "line 099" in kept


def test_a_place_that_cannot_be_written_is_told_once_and_the_last_lines_still_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = Log(tmp_path / "file" / "log")
    log.write(["one"])
    log.write(["two"])
    assert str(log.path) in log.news()
    assert log.news() == ""
    assert log.last() == ["one", "two"]
    assert log.lost_lines == 2
    log.close()


def test_what_was_lost_is_counted_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    log = Log(tmp_path / "file" / "log")
    log.write(["one", "two"])
    log.news()
    (tmp_path / "file").unlink()
    log.write(["three"])
    assert log.lost_lines == 3, "it is not tried again at once"
    monkeypatch.setattr("launch.logs.RETRY_S", 0.0)
    monkeypatch.setattr(log, "_retry_s", 0.0)
    log.write(["four"])
    log.close()
    assert "3 lines are lost" in log.news()
    kept = log.path.read_text().splitlines()
    assert [line.split("  ")[1] for line in kept] == ["--- 3 lines are missing here", "four"]
