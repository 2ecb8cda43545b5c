"""The fixture that the whole pipeline's tests stand on: what it starts, what it says, what it notices."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from chatterline import Failed
from tests.harness import direct_sound, pcm, trimmed, until

TEXT = "Hello there, my friend. How are you on this nice day? It is 1984."


def test_what_is_heard_is_what_the_engine_makes_sample_for_sample(pipeline, engine):
    running = pipeline(output="wav")
    client = running.client()
    finished = client.speak(TEXT, seed=11).wait()
    sent = client.speak(TEXT, seed=11, output="stream").audio()
    assert running.stop() == 0
    expected = direct_sound(engine, TEXT, seed=11)
    assert finished.samples == len(expected)
    assert np.array_equal(pcm(sent), pcm(expected))
    assert np.array_equal(running.sound(), trimmed(pcm(expected)))


def test_a_killed_worker_is_found_killed_and_found_again_in_its_successor(pipeline):
    running = pipeline()
    assert set(running.children()) == {"dispatcher", "player", "s3gen", "t3"}
    pid = running.kill("t3")
    assert running.wait_replaced("t3", pid) != pid
    running.client().speak(TEXT).wait()


@pytest.mark.parametrize("engine", ["babble"])
def test_options_reach_the_engine(pipeline):
    running = pipeline({"model.options": {"refuse_text": "ABRACADABRA"}})
    failed = [event for event in running.client().speak("Say ABRACADABRA now.").events() if isinstance(event, Failed)]
    assert "refuses" in failed[0].reason


@pytest.mark.parametrize("engine", ["babble"])
def test_a_process_that_is_left_behind_is_noticed(pipeline):
    running = pipeline()
    stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(running.folder)])
    try:
        assert running.stop() == 0
        assert running.leftovers() == [f"process {stray.pid}"]
    finally:
        stray.kill()
        stray.wait()


@pytest.mark.parametrize("engine", ["babble"])
def test_a_pipeline_that_cannot_start_says_why(pipeline):
    running = pipeline({"model.options": {"tempo": 3}, "supervise.max_restarts": 0}, ready=False)
    assert running.wait() != 0
    assert "model.options" in running.log()


def test_until_gives_up_with_what_it_waited_for():
    with pytest.raises(AssertionError, match="the moon is blue"):
        until(lambda: False, "the moon is blue", timeout_s=0.05)
