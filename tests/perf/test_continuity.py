"""What perf.continuity measures, and that it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from perf import continuity

SECOND = np.arange(24000) / 24000


def test_a_jump_is_a_large_step_and_a_smooth_place_is_not() -> None:
    sound = np.sin(2 * np.pi * 150 * SECOND).astype(np.float32)
    assert continuity.steps_at(sound, [6000, 12345])[0] < 1.1
    sound[12000:] += 0.5
    largest, mean = continuity.steps_at(sound, [6000, 12000])
    assert largest > 10
    assert mean > 5


def test_another_spectrum_behind_a_join_is_flux_and_the_same_one_is_not() -> None:
    low, high = (np.sin(2 * np.pi * hz * SECOND) for hz in (200, 2000))
    noise = np.random.default_rng(0).normal(0, 0.01, 48000)
    mel = continuity.log_mel((np.concatenate([low, high]) + noise).astype(np.float32))
    assert continuity.flux_at(mel, [24000]) > 3
    assert continuity.flux_at(mel, [12000, 36000]) < 1.5


def test_spectra_are_apart_as_far_as_loudness_is() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 24000).astype(np.float32)
    one, other = continuity.log_mel(sound), continuity.log_mel(sound * 10)
    assert continuity.apart_db(one, one) == 0
    assert continuity.apart_db(one, other) == pytest.approx(20, abs=0.1)


def test_rows_tell_the_cost_of_full_chunks() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 24000).astype(np.float32)
    made = SimpleNamespace(
        method="context", samples=sound, joins=[8000, 16000], mel_joins=[9000], cpu_s=[0.5, 0.2, 0.2, 0.1],
        first_s=0.5, first_samples=8000, checkpoint_bytes=17014,
    )  # fmt: skip
    row = continuity.row(made, 12, continuity.log_mel(sound))
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
