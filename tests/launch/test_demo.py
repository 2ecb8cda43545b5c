"""`make demo`, with a shorter text and into a file."""

from __future__ import annotations

import re

import pytest
import soundfile

from launch import demo


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, without a sound card, and a text that is soon over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_where_sound_goes", lambda: ("", " (a test has no sound card)"))
    monkeypatch.setattr(demo, "TEXT", "Hello. This is a test.")


@pytest.mark.slow
def test_it_speaks_shows_latency_queues_and_stages_and_names_the_file(capfd, tmp_path):
    assert demo.main() == 0
    said = capfd.readouterr().out
    assert re.search(r"ready after [\d.]+ s: engine espeak", said)
    assert re.search(r"[\d.]+ ms +from the request to the first sample in the ring", said)
    for name in ("ring ", "tokens_waiting", "dispatcher-0", "t3-0", "s3gen-0", "player-0"):
        assert name in said
    assert said.index("Hello.") < said.index("This is a test.")
    assert "the speech is in demo.wav" in said
    info = soundfile.info(tmp_path / "demo.wav")
    assert 1.0 < info.duration < 5.0
    assert [path.name for path in tmp_path.iterdir()] == ["demo.wav"]


def test_a_configuration_that_is_refused_is_named(capfd, tmp_path, monkeypatch):
    (tmp_path / "pipeline.yaml").write_text("flow: {tempo: 3}\n")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert demo.main() == 1
    assert "flow.tempo" in capfd.readouterr().err


@pytest.mark.slow
def test_a_pipeline_that_does_not_start_is_shown_with_its_last_lines(capfd, tmp_path):
    (tmp_path / "pipeline.yaml").write_text("stages: {t3: {cpus: [9999]}}\n")
    assert demo.main() == 1
    said = capfd.readouterr().err
    assert "launch ended with exit code" in said
    assert "stages.t3.cpus" in said
