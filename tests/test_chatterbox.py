"""Chatterbox in the whole pipeline, with every process real, on small checkpoints with random weights.

They babble, and only a guard ends their babble; but files, loading, voices, streaming, recovery are those of the real
ones. What is slow on a CPU is turned down as a user may turn it down: short prompts, few steps of refinement. Rungs all
have one size here, so that two runs cut alike whatever speed was measured in between.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from chatterline import Client
from ipc.client_errors import SpeechError
from ipc.client_track import Sound
from ipc.messages import SAMPLE_RATE, Aligned, Cancelled, Failed, Finished
from tests.harness import ROOT, Pcm, Pipeline, until
from tests.killing import Listener

pytestmark = [
    pytest.mark.chatterbox,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("chatterbox") is None, reason="needs chatterbox-tts: pip install '.[chatterbox]'"
    ),
]

ENGINES = ("chatterbox", "chatterbox-multilingual", "chatterbox-turbo")
TEXT = "Hello there."
LONGER = "The kettle sang. Nobody knew why."
SEED = 7
READY_S = 240.0
TOLERANCE = 1e-4

QUICK = {
    "voices.prompt_s": 1,
    "model.options.cfm_steps": 1,
    "model.options.watermark": False,
    "flow.first_chunk_tokens": 25,
    "flow.chunk_tokens": 25,
    "supervise.max_restarts": 100,
    "supervise.start_timeout_s": READY_S,
    "supervise.hang_s": 60,
}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Two workers on two processors, and none of them with more threads than that."""

Start = Callable[..., Pipeline]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each engine, written by the command that users have for a dry run."""
    folder = tmp_path_factory.mktemp("checkpoints")
    writing = {
        engine: subprocess.Popen(
            [sys.executable, "-m", "perf.tiny_checkpoint", "--engine", engine, str(folder / engine)],
            cwd=ROOT,
            env=os.environ | ONE_THREAD,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for engine in ENGINES
    }
    for engine, process in writing.items():
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, f"{engine}: {said}"
    return {engine: folder / engine for engine in ENGINES}


@contextmanager
def launched(engine: str, weights: Path, *arguments: str, **named: Any) -> Iterator[Pipeline]:
    """A running pipeline that has to leave in order."""
    settings = QUICK | {"model.weights": str(weights)} | named.pop("settings", {})
    running = Pipeline(engine, settings, *arguments, environment=ONE_THREAD, ready=False, **named)
    try:
        yield running
        told = running.exit_code is None
        code = running.stop() if told else running.exit_code
        assert code == 0, f"launch ended with {code}\n{running.log()}"
        assert running.leftovers() == [], running.log()
    finally:
        running.close()


def wait_ready(running: Pipeline) -> None:
    until(
        lambda: "supervisor    ready in" in running.printed() or running.process.poll() is not None,
        "it is ready",
        READY_S,
    )
    assert running.process.poll() is None, running.log()
    running.wait_ready()


@pytest.fixture(scope="module", params=ENGINES)
def running(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Iterator[Pipeline]:
    """One pipeline for all tests of an engine: loading is what takes long."""
    with launched(request.param, checkpoints[request.param], settings={"player.pace": "realtime"}) as pipeline:
        wait_ready(pipeline)
        yield pipeline


@pytest.fixture(scope="module")
def undisturbed(running: Pipeline) -> Pcm:
    """`LONGER` as it sounds when nobody dies."""
    return heard(running.client(), LONGER)


def heard(client: Client, text: str, **asked: Any) -> Pcm:
    """A text's sound, received by a remote listener."""
    return Listener(client.speak(text, output="stream", seed=SEED, **asked)).sound(READY_S)


def assert_same(one: Pcm, other: Pcm) -> None:
    assert len(one) == len(other)
    different = np.flatnonzero(np.abs(one.astype(np.float64) - other) > TOLERANCE * 32767)
    assert not len(different), f"first at sample {different[0]} of {len(one)}"


# --------------------------------------------------------------------------- every engine


@pytest.mark.parametrize("engine", ENGINES)
def test_launch_says_a_text_and_leaves(engine: str, checkpoints: dict[str, Path]) -> None:
    marked = {"model.options.watermark": True}
    with launched(engine, checkpoints[engine], "--say", TEXT, output="wav", settings=marked) as running:
        assert running.wait(READY_S + 60) == 0, running.log()
        said = running.sound()
        assert len(said) > SAMPLE_RATE / 2
        assert np.abs(said).max() > 100
        assert "random" not in running.printed()


def test_a_killed_t3_and_a_killed_s3gen_leave_no_trace_in_the_sound(running: Pipeline, undisturbed: Pcm) -> None:
    client = running.client()
    listener = Listener(client.speak(LONGER, output="stream", seed=SEED), pace=0.5)
    until(lambda: len(listener.arrived_s) >= 1, "it sounds", timeout_s=60)
    pids = {"t3": running.kill("t3")}
    until(lambda: "t3 0          died" in running.printed(), "its death is noticed")
    pids["s3gen"] = running.kill("s3gen")
    for role, pid in pids.items():
        running.wait_replaced(role, pid)
    assert listener.listening, "both died in mid-utterance"
    assert_same(listener.sound(READY_S), undisturbed)
    assert client.status().healthy


def test_what_an_engine_has_not_is_refused_by_name(running: Pipeline) -> None:
    name = "exaggeration" if running.engine == "chatterbox-turbo" else "top_k"
    with pytest.raises(SpeechError, match=rf"settings\.{name}: {running.engine} has no such setting"):
        running.client().speak(TEXT, settings={name: 0.5})
    with pytest.raises(SpeechError, match=r"settings\.temperature: 9.* is not between 0 and 5"):
        running.client().speak(TEXT, settings={"temperature": 9.0})
    with pytest.raises(SpeechError, match="language: 'tlh' is not spoken"):
        running.client().speak(TEXT, language="tlh")


def test_a_guard_ends_what_does_not_end_and_it_is_told(running: Pipeline) -> None:
    """Random weights never say that they are done."""
    client = running.client()
    before = client.status().counters
    speech = client.speak(TEXT, output="stream", seed=SEED)
    seconds = sum(sound.count for sound in speech.sounds()) / SAMPLE_RATE
    assert isinstance(speech.ending, Finished)
    assert speech.ending.samples == round(seconds * SAMPLE_RATE)
    assert 1 < seconds < 20
    assert client.status().counters != before


# --------------------------------------------------------------------------- one engine


english = pytest.mark.parametrize("running", ENGINES[:1], indirect=True)
"""The engine that has every setting; the pipeline is the one of the tests above."""


@english
def test_two_texts_at_once_sound_as_each_alone(running: Pipeline, undisturbed: Pcm) -> None:
    client = running.client()
    other = heard(client, TEXT)
    both = [
        Listener(client.speak(text, output="stream", seed=SEED, conversation=name))
        for name, text in (("a", LONGER), ("b", TEXT))
    ]
    assert_same(both[0].sound(READY_S), undisturbed)
    assert_same(both[1].sound(READY_S), other)


@english
def test_a_barge_in_silences_at_once_and_the_next_one_speaks(running: Pipeline) -> None:
    client = running.client()
    first = client.speak(LONGER, conversation="first")
    until(lambda: any(one.heard_chars or one.state == "speaking" for one in client.status().speaking), "it speaks", 60)
    second = client.speak(TEXT, conversation="second", priority="interrupt")
    with pytest.raises(SpeechError):
        first.wait()
    assert isinstance(first.ending, Cancelled)
    assert LONGER.startswith(first.ending.heard)
    assert len(first.ending.heard) < len(LONGER)
    assert second.wait().chars == len(TEXT)


@english
def test_a_recording_put_into_the_folder_becomes_a_voice(running: Pipeline) -> None:
    client = running.client()
    folder = running.folder / "voices"
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / "sample.wav", recording(), SAMPLE_RATE)
    until(lambda: "sample" in {voice.id for voice in client.voices().voices}, "the voice is there")
    own = heard(client, TEXT)
    both = [
        Listener(client.speak(TEXT, output="stream", seed=SEED, conversation=voice, voice=voice))
        for voice in ("builtin", "sample")
    ]
    builtin, sample = (one.sound(READY_S) for one in both)
    assert_same(builtin, own)
    assert len(sample) != len(own) or not np.array_equal(sample, own)


def recording(seconds: float = 6.0) -> Pcm:
    """Something with a pitch that moves, and pauses: neither silent nor clipped."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * t)) / SAMPLE_RATE
    tone = sum(np.sin(harmonic * pitch) / harmonic for harmonic in range(1, 12))
    loud = np.clip(np.sin(2 * np.pi * 1.3 * t) + 0.6, 0, 1)
    noise = np.random.default_rng(1).normal(0, 0.01, len(t))
    sound: Pcm = np.rint(6000 * (tone * loud + noise)).astype(np.int16)
    return sound


@english
def test_words_are_aligned_and_the_precision_is_told(running: Pipeline) -> None:
    speech = running.client().speak(LONGER, output="stream", seed=SEED)
    aligned: list[Aligned] = []
    samples = 0
    for event in speech.events():
        assert not isinstance(event, Failed), event
        aligned += [event] if isinstance(event, Aligned) else []
        samples += event.count if isinstance(event, Sound) else 0
    assert aligned
    assert all(isinstance(one.exact, bool) for one in aligned)
    assert [one.chars for one in aligned] == sorted(one.chars for one in aligned)
    assert aligned[-1].chars[1] == len(LONGER)
    assert aligned[-1].samples[1] <= samples


@english
def test_speed_shortens_what_is_said(running: Pipeline) -> None:
    client = running.client()
    usual, quick = len(heard(client, TEXT)), len(heard(client, TEXT, speed=1.5))
    assert usual / quick == pytest.approx(1.5, rel=0.1)


def test_check_names_what_a_checkpoint_lacks(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    for path in checkpoints["chatterbox-turbo"].iterdir():
        if path.name not in ("s3gen_meanflow.safetensors", "merges.txt"):
            (folder / path.name).symlink_to(path)
    command = [sys.executable, "-m", "launch", "--check"]
    for setting in ("model.engine=chatterbox-turbo", f"model.weights={folder}", "text.bind=tcp://127.0.0.1:0"):
        command += ["--set", setting]
    env = os.environ | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert f"{folder} lacks s3gen_meanflow.safetensors, merges.txt" in " ".join(said.split()), said
