"""What perf.continuity measures, and that it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from perf import continuity
from perf.joins import log_mel


def test_spectra_are_apart_as_far_as_loudness_is() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 24000).astype(np.float32)
    one, other = log_mel(sound), log_mel(sound * 10)
    assert continuity.apart_db(one, one) == 0
    assert continuity.apart_db(one, other) == pytest.approx(20, abs=0.1)


def test_rows_tell_the_cost_of_full_chunks() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 24000).astype(np.float32)
    made = SimpleNamespace(
        method="context", samples=sound, joins=[8000, 16000], mel_joins=[9000], cpu_s=[0.5, 0.2, 0.2, 0.1],
        first_s=0.5, first_samples=8000, checkpoint_bytes=17014,
    )  # fmt: skip
    row = continuity.row(made, 12, log_mel(sound))
    assert (row["chunk_ms"], row["first_ms"], row["sound_ms"], row["growth"]) == (200, 500, 333, 1)
    assert row["state_kB"] == 17.0


def test_the_table_is_markdown() -> None:
    text = continuity.markdown([{"method": "context", "chunk": 6}, {"method": "stock", "chunk": None}])
    assert text == "| method | chunk |\n| --- | --- |\n| context | 6 |\n| stock |  |\n"


@pytest.mark.chatterbox
def test_every_method_is_measured_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("chatterbox")
    pytest.importorskip("matplotlib")
    file = tmp_path / "continuity.json"
    command = ["--variant", "chatterbox-turbo", "--tokens", "60", "--chunks", "20", "--long", "8", "--json", str(file)]
    assert continuity.main([*command, "--pictures", str(tmp_path)]) == 0
    content = json.loads(file.read_text())
    (rows,) = content["rows"].values()
    assert [row["method"] for row in rows] == [
        "context", "overlap", "recompute", "masked", "chatterbox-streaming", "stock, one shot", "context",
    ]  # fmt: skip
    assert all(row["total_s"] > 0 for row in rows)
    assert rows[-1]["apart_db"] == 0
    assert content["figures"]["long_chunks"] == 8
    for name in ("continuity.png", "continuity-mel.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_without_the_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pipeline.engines.chatterbox.rehearsal", None)
    with pytest.raises(SystemExit):
        continuity.main([])
    assert "pip install '.[chatterbox]'" in capsys.readouterr().err
