"""Real processes are killed, frozen and stuck while they speak: what is heard stays the same, sample for sample.

`CHATTERLINE_KILLS=25 pytest tests/test_kills.py` kills as often as it says.
"""

from __future__ import annotations

import random
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from chatterline import Client
from ipc.messages import Failed, Finished
from launch.supervisor import FAILED
from tests.harness import Pcm, Pipeline, direct_sound, pcm, until
from tests.killing import (
    KILLING_S,
    KILLS,
    NO_GAPS,
    PACE,
    PATIENCE_S,
    SEED,
    SIXTY,
    TEXT,
    UNLIMITED,
    Growing,
    Listener,
    in_turn,
    kill_often,
    voiced,
)

Start = Callable[..., Pipeline]

BLOCK, FADE = 512, 120
"""Samples: what the player takes at a time, and what it fades in when it begins."""

HANG_S = 1.5
HANGS = UNLIMITED | {"supervise.hang_s": HANG_S, "supervise.progress_s": 0.2}


def wait_heard(client: Client) -> None:
    until(lambda: any(one.heard_chars for one in client.status().speaking), "something is heard")


@pytest.mark.timeout(300 + 4 * KILLING_S)
@pytest.mark.parametrize(
    ("engine", "roles"),
    [("espeak", roles) for roles in in_turn("t3", "s3gen", "dispatcher")]
    + [("babble", roles) for roles in in_turn("s3gen", "dispatcher")],
    ids=str,
)
def test_kills_leave_no_trace_in_the_sound(pipeline: Start, engine: str, roles: tuple[str, ...]) -> None:
    """Of a text that streams to a slow listener and of one that is played at the pace of real time.

    Into a file, so that it needs no sound server; `test_sound_kills` records one."""
    streamed = pcm(direct_sound(engine, SIXTY, SEED))
    running = pipeline(NO_GAPS, output="wav")
    client = running.client(timeout_s=PATIENCE_S)
    listener = Listener(client.speak(SIXTY, output="stream", seed=SEED), pace=PACE)
    with client.utterance(seed=SEED) as speech:
        speaking = Growing(client, speech)
        speaking.wait_made_ahead()
        kill_often(running, roles, listener, speaking)
    heard = listener.sound(PATIENCE_S)
    finished = speech.wait()
    made = direct_sound(engine, speaking.text, SEED)
    assert np.array_equal(heard, streamed)
    assert running.stop() == 0
    assert (finished.failed_segments, finished.samples) == (0, len(made))
    print(f"{finished.underruns} underruns")
    if finished.underruns == 0:  # else it was faded out and in again where it ran dry
        assert np.array_equal(voiced(running.sound()), voiced(pcm(made)))


def repeats(heard: Pcm, made: Pcm) -> Iterator[int]:
    """How many samples each new player repeated; both without silence. Fails where any is lost.

    A new player fades in, and the first sample of a fade is silence: at a place where one took over, a
    sample may be missing and `FADE` of them differ.
    """
    at, done = 0, 0
    while True:
        length = min(len(heard) - at, len(made) - done)
        different = np.flatnonzero(heard[at : at + length] != made[done : done + length])
        if not len(different):
            assert len(heard) - at == len(made) - done, "it ends as it was made"
            return
        at, done = at + int(different[0]), done + int(different[0])
        after = heard[at + FADE : at + FADE + 2 * BLOCK]
        starts = range(done + FADE + 1, max(0, done + FADE - BLOCK - 2), -1)
        found = [start for start in starts if np.array_equal(made[start : start + len(after)], after)]
        assert found, f"after sample {done} of {len(made)} it goes on somewhere else"
        yield done + FADE - found[0]
        at, done = at + FADE, found[0]


def test_what_a_player_repeats_is_counted_and_what_it_loses_is_noticed() -> None:
    made: Pcm = np.random.default_rng(1).integers(1, 2**15 - 1, 20_000, np.int16)
    faded = made[9_000 - 300 :].copy()
    faded[:FADE] //= 2
    assert list(repeats(made, made)) == []
    assert list(repeats(np.concatenate([made[:9_000], faded]), made)) == [300]
    for lost in (2, 300):
        with pytest.raises(AssertionError, match="somewhere else"):
            list(repeats(np.concatenate([made[:9_000], made[9_000 + lost :]]), made))
    with pytest.raises(AssertionError, match="ends as it was made"):
        list(repeats(made[:-1], made))


@pytest.mark.parametrize("engine", ["espeak"])
def test_a_killed_player_repeats_at_most_one_block_and_loses_none(pipeline: Start, engine: str) -> None:
    running = pipeline(UNLIMITED | {"player.pace": "realtime", "player.block": BLOCK}, output="wav")
    client = running.client()
    text = TEXT * max(1, KILLS // 4)
    speech = client.speak(text, seed=SEED)
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    wait_heard(client)
    for number in range(KILLS):
        time.sleep(rng.uniform(0.1, 0.5))
        print(f"seed {seed}, kill {number}")
        running.wait_replaced("player", running.kill("player"))
    finished = speech.wait()
    assert running.stop() == 0
    made = direct_sound(engine, text, SEED)
    assert finished.samples == len(made)
    repeated = list(repeats(voiced(running.sound()), voiced(pcm(made))))
    print(f"samples repeated: {repeated}")
    assert len(repeated) <= KILLS
    assert all(-1 <= samples <= BLOCK for samples in repeated)


PIECES_AHEAD = 60
"""Of 0.1 s each: more than may be made ahead (flow.ahead_s) and a rung."""


@pytest.mark.parametrize("engine", ["babble"])
def test_with_a_spare_process_a_kill_costs_about_one_rung(pipeline: Start, engine: str) -> None:
    """The spare one has made more than was on its way before a successor is even ready.

    A rung that was being made is made again, so there are up to two in the longest pause."""
    slow = {"load_s": 1.5, "audio_load_s": 1.5, "token_delay_ms": 2.0, "render_delay_ms": 2.0}
    settings = {f"model.options.{name}": value for name, value in slow.items()} | {"supervise.standby": True}
    client = (running := pipeline(UNLIMITED | settings)).client()
    made = pcm(direct_sound(engine, TEXT * 4, SEED))
    rng = random.Random(SEED)
    for role in ("", *("t3", "s3gen") * max(1, KILLS // 4)):
        listener = Listener(client.speak(TEXT * 4, output="stream", seed=SEED))
        moment = rng.randint(5, 60)
        until(lambda heard=listener, pieces=moment: len(heard.arrived_s) > pieces, "it streams")
        if role:
            at_work = [stage.worker for stage in client.status().stages if stage.streams]
            at = next((int(name[-1]) for name in at_work if name.startswith(role)), 0)
            ready = re.compile(rf"{role} {at} +ready in ")
            starts, arrived = len(ready.findall(running.printed())), len(listener.arrived_s)
            running.kill(role, at)
            until(lambda heard=listener, had=arrived: len(heard.arrived_s) > had + PIECES_AHEAD, "it goes on")
            assert len(ready.findall(running.printed())) == starts
        assert np.array_equal(listener.sound(), made)
        gap_ms = np.diff(listener.arrived_s).max() * 1000
        if not role:
            rung_ms = gap_ms
            print(f"longest pause when nothing dies: {rung_ms:.0f} ms")
            continue
        print(f"longest pause when {role} is killed: {gap_ms:.0f} ms, {gap_ms - rung_ms:.0f} ms more")
        until(lambda: all(stage.state == "RUNNING" for stage in client.status().stages), "there is a spare one again")


def hang_told(running: Pipeline, count: int, since_s: float) -> None:
    """The supervisor says that one more process hung, soon after it could know."""
    told = re.compile(r"hung for .*; killed$", re.MULTILINE)
    until(lambda: len(told.findall(running.printed())) >= count, f"{count} hangs are noticed\n{running.log()}")
    noticed_s = time.monotonic() - since_s
    print(f"noticed after {noticed_s:.2f} s")
    assert HANG_S * 0.9 < noticed_s < HANG_S + 1.0


@pytest.mark.parametrize("engine", ["babble"])
def test_frozen_processes_are_noticed_and_replaced_and_nothing_is_lost(pipeline: Start, engine: str) -> None:
    running = pipeline(HANGS | {"player.pace": "realtime"})
    client = running.client()
    speaking = client.speak(TEXT, seed=SEED)
    listener = Listener(client.speak(SIXTY, output="stream", seed=SEED), pace=0.05)
    for count, roles in ((3, ["t3", "s3gen", "player"]), (4, ["dispatcher"])):
        pids = {role: running.kill(role, signal_number=signal.SIGSTOP) for role in roles}
        hang_told(running, count, time.monotonic())
        for role, pid in pids.items():
            running.wait_replaced(role, pid)
    assert np.array_equal(listener.sound(), pcm(direct_sound(engine, SIXTY, SEED)))
    assert speaking.wait().samples == len(direct_sound(engine, TEXT, SEED))


@pytest.mark.parametrize("engine", ["babble"])
@pytest.mark.parametrize(("role", "option"), [("t3", "wedge_text"), ("s3gen", "audio_wedge_text")])
def test_a_loop_stuck_in_native_code_is_noticed_though_a_thread_lives_on(
    pipeline: Start, engine: str, role: str, option: str, tmp_path: Path
) -> None:
    fault = {f"model.options.{option}": "WEDGE", "model.options.fault_folder": str(tmp_path)}
    running = pipeline(HANGS | fault)
    pid = running.pid(role)
    text = TEXT + "Here is a WEDGE in the works. And it goes on."
    listener = Listener(running.client().speak(text, output="stream", seed=SEED))
    struck = until(lambda: list(tmp_path.iterdir()), "it is stuck")
    hang_told(running, 1, int(struck[0].name.split("-")[0]) / 1e9)
    assert np.array_equal(listener.sound(), pcm(direct_sound(engine, text, SEED)))
    assert running.pid(role) != pid


@pytest.mark.parametrize("engine", ["babble"])
@pytest.mark.parametrize("option", ["die_text", "audio_die_text"])
def test_segments_that_always_kill_their_worker_fail_alone_and_end_nothing(
    pipeline: Start, engine: str, option: str
) -> None:
    """They die more often than a worker may (supervise.max_restarts): those deaths do not count."""
    running = pipeline({f"model.options.{option}": "POISON", "supervise.max_restarts": 2})
    client = running.client()
    text = "This is fine. " + "Here comes POISON in a sentence. And this is fine again. " * 3
    speech = client.speak(text, output="stream")
    failed = [event for event in speech.events() if isinstance(event, Failed)]
    assert [text[slice(*event.chars)].strip() for event in failed] == ["Here comes POISON in a sentence."] * 3
    assert not any(event.final for event in failed)
    assert isinstance(speech.ending, Finished)
    assert speech.ending.failed_segments == 3
    assert client.status().healthy
    assert "given up" not in running.printed()


@pytest.mark.parametrize("engine", ["babble"])
def test_a_worker_that_dies_whenever_it_starts_ends_the_launch_soon_and_says_why(pipeline: Start, engine: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = pipeline({"model.options.die_loading": True, "supervise.max_restarts": 4}, ready=False)
    assert running.wait(120) == FAILED
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    deaths = re.findall(r"t3 0 +died \(pid \d+\): exit code 86; (.*)", running.printed())
    print(f"{used_s:.1f} s of processor time")
    assert len(deaths) == 5
    assert deaths[-1] == "given up after 4 restarts within 60 s"
    assert "t3 0 is lost, see " in running.printed()
    assert used_s < 15, "as much as so many starts take, and no more"
