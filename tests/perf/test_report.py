"""The page holds every report, needs nothing from elsewhere, and lets nothing in a report out of its place."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from perf import report as script
from perf.__main__ import scripts
from perf.page import Part, Picture, page, table

RESULTS = sorted(script.RESULTS.glob("*.json"))
VOID = {"meta", "img", "source"}


def kept(measures: str = "overhead", **changed: Any) -> dict[str, Any]:
    return {
        "measures": measures,
        "command": f"python -m perf.{measures}",
        "machine": {"date": "2026-01-01", "cpus": 2, "memory_bytes": 8 * 2**30},
        "code": {"version": "0.1.0", "git": "abc"},
        "settings": {"model.engine": "espeak"},
        "figures": {"all_%": 2.5},
        "rows": {"CPU by process": [{"process": "t3-0", "speaking_share_%": 1.5, "note": None}]},
        **changed,
    }


class Reader(HTMLParser):
    """Tags in order, their addresses, and the text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(content: str) -> Reader:
    """The page, with every tag closed in its place; nothing of it comes from elsewhere."""
    found = Reader(content)
    assert all(address.startswith(("#", "data:image/svg+xml;base64,")) for address in found.addresses)
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert "url(" not in content
    return found


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_page_has_every_report_with_machine_command_and_version() -> None:
    found = read(page([Part("overhead", "What it costs.", kept(), Picture())], "today"))
    text = "".join(found.text)
    for said in (
        "overhead",
        "What it costs.",
        "python -m perf.overhead",
        "abc",
        "8.0",
        "espeak",
        "CPU by process",
        "1.5",
    ):
        assert said in text
    assert "None" not in text


def test_nothing_in_a_report_becomes_markup() -> None:
    evil = '<script>alert("1")</script><img src=x onerror=alert(2)>&amp;"\''
    report = kept(
        command=evil, machine={evil: evil}, code={evil: evil}, settings={evil: evil}, figures={evil: evil},
        rows={evil: [{evil: evil}]},
    )  # fmt: skip
    content = page(
        [Part(evil, evil, report, Picture(note=evil)), Part(evil, evil, report, Picture("<svg/>", "<svg/>"))], evil
    )
    found = read(content)
    assert found.tags.count("img") == 1
    assert "<script" not in content.lower()
    assert "".join(found.text).count(evil) >= 20


def test_numbers_stand_to_the_right_and_long_tables_are_folded() -> None:
    rows = [{"what": "a", "p50_ms": 1.25}, {"what": "b", "p50_ms": None}]
    assert '<td class="words">a</td><td class="number">1.25</td>' in table(rows)
    assert '<td class="number">123,456</td>' in table([{"bytes": 123456}])
    many = kept(rows={"many": [{"number": number} for number in range(100)]})
    assert "details" in read(page([Part("x", "", many, Picture())], "")).tags
    assert "details" not in read(page([Part("x", "", kept(), Picture())], "")).tags


def test_a_script_that_draws_nothing_has_its_tables_alone() -> None:
    assert script.picture(kept("overhead")) == Picture()
    assert "no perf.gone here" in script.picture(kept("gone")).note


@pytest.mark.slow
def test_only_scripts_that_are_here_are_ever_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(script.importlib, "import_module", loaded.append)
    for name in ("os", "..evil", "common", "../../x", "report.x", ""):
        assert script.drawing(name)[0] is None
    assert loaded == []


def test_a_report_that_cannot_be_drawn_says_so_and_the_rest_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    drawn = script.picture(kept("queues"))
    assert "cannot draw" in drawn.note
    assert "KeyError" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_are_drawn_for_light_and_dark_pages() -> None:
    pytest.importorskip("matplotlib")
    from tests.perf.test_timeline import CHUNKS, overlap, rows_of

    drawn = script.picture(kept("timeline", rows={"chunks": rows_of(CHUNKS)}, figures=overlap(CHUNKS)))
    assert drawn.light.lstrip().startswith("<!DOCTYPE svg")
    assert drawn.light != drawn.dark
    assert drawn == script.picture(kept("timeline", rows={"chunks": rows_of(CHUNKS)}, figures=overlap(CHUNKS)))
    content = page([Part("timeline", "", kept(), drawn)], "")
    assert len([one for one in read(content).addresses if one.startswith("data:")]) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "x.json is no report"),
        ("[]", "x.json is no report"),
        (json.dumps(kept(rows={"a": [{"b": []}]})), "$.rows"),
        (json.dumps({key: value for key, value in kept().items() if key != "command"}), "`command`"),
        (None, "No such file"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_named_in_one_line(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert script.main([str(path), "--out", str(tmp_path / "report.html")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "report.html").exists()


def test_two_of_one_script_are_told_apart_by_their_files(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.json", kept()) for name in ("quiet", "busy")]
    assert [part.title for part in script.parts(files)] == ["overhead (quiet)", "overhead (busy)"]


@pytest.mark.slow
def test_what_is_kept_makes_a_page(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert script.main(["--out", str(out)]) == 0
    text = "".join(read(out.read_text(encoding="utf-8")).text)
    assert all(path.name in text for path in RESULTS)
    assert all(scripts()[json.loads(path.read_text())["measures"]] in text for path in RESULTS)
