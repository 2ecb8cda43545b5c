"""The examples do what they say, against the real pipeline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("engine", ["espeak"])]


def run(command, folder):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def example(name, folder, *arguments):
    return run([sys.executable, EXAMPLES / name, *arguments], folder)


@pytest.fixture
def running(pipeline):
    # At the pace of speech: an interruption must find something to interrupt.
    return pipeline({"player.pace": "realtime"})


@pytest.mark.usefixtures("engine")
def test_every_python_example_is_run_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in source for path in EXAMPLES.glob("*.py"))


def test_speak_once(running, tmp_path):
    printed = example("speak_once.py", tmp_path, running.to)
    assert "64 characters" in printed
    assert "first sound made after" in printed


def test_stream_llm_is_interrupted_and_knows_what_was_heard(running, tmp_path):
    printed = example("stream_llm.py", tmp_path, running.to)
    heard = printed.split("heard: ")[1].splitlines()[0].strip("'")
    assert heard.startswith("Let me explain how a sailing boat can go against the wind.")
    assert len(heard) < 200
    assert printed.endswith("done\n")


def test_listen_writes_the_sound(running, tmp_path):
    printed = example("listen.py", tmp_path, "out.wav", running.to)
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getframerate() == 24_000
        assert f"{file.getnframes() / 24_000:.2f} s of sound" in printed
        assert file.getnframes() > 24_000


def test_raw_zmq_needs_nothing_of_ours(running, tmp_path):
    source = (EXAMPLES / "raw_zmq.py").read_text(encoding="utf-8")
    assert "chatterline" not in source
    assert "from ipc" not in source
    printed = example("raw_zmq.py", tmp_path, running.to)
    assert printed.count("'type': 'finished'") == 2
    assert "'type': 'failed'" not in printed
    assert "0 samples" not in printed
    assert printed.endswith("engine: espeak\n")


def test_node_speaks_and_listens(running, tmp_path):
    folder = EXAMPLES / "node"
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (folder / "node_modules" / "zeromq").exists():
        pytest.skip("the package zeromq is not installed: npm install --prefix examples/node")
    printed = run(["node", folder / "speak.mjs", running.to, tmp_path / "out.pcm"], tmp_path)
    ends = [json.loads(line.partition(" ")[2]) for line in printed.splitlines() if line.startswith("finished ")]
    assert [end["failed_segments"] for end in ends] == [0, 0]
    assert ends[0]["chars"] == len("Hello from Node. This text grows.")
    assert (tmp_path / "out.pcm").stat().st_size == 2 * ends[1]["samples"] > 24_000
