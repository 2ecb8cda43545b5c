"""The player process: life cycle, reports, files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from ipc.messages import Bye, PlayerStats, Probe, Probed
from pipeline.config import Config, Flow, Player
from tests.workers.playing import PlayerProcess
from tests.workers.pulse import counter_signal, until
from workers.player import prebuffer_samples
from workers.sound_file import to_int16


@pytest.mark.slow
@pytest.mark.parametrize("pace", ["realtime", "free"])
def test_a_file_holds_what_was_said_sample_for_sample(tmp_path: Path, pace: str) -> None:
    player = Player(output=f"wav:{tmp_path}/out.wav", pace=pace)  # type: ignore[arg-type]
    with PlayerProcess(player) as process:
        process.start()
        process.say(20_000)
        process.until_read(20_000)
        process.stop()
    with wave.open(f"{tmp_path}/out.wav") as file:
        assert file.readframes(file.getnframes()) == to_int16(counter_signal(0, 20_000))


@pytest.mark.slow
def test_a_killed_players_file_is_gone_on_with_and_repeats_at_most_a_block(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    with PlayerProcess(Player(output=f"wav:{path}")) as process:
        process.start()
        talk = process.saying(60_000)
        process.until_read(12_000)
        process.kill()
        with wave.open(str(path)) as file:
            assert file.getnframes() >= 12_000
        process.start()
        process.until_read(60_000)
        talk.join(10)
        process.stop()
    with wave.open(str(path)) as file:
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    made = np.frombuffer(to_int16(counter_signal(0, 60_000)), "<i2")
    repeated = len(heard) - len(made)
    assert repeated in (0, 512)
    begin = int(np.argmax(heard[: len(made)] != made)) if repeated else 0
    assert np.array_equal(np.delete(heard, np.s_[begin : begin + repeated]), made)


@pytest.mark.slow
def test_it_reports_answers_and_says_goodbye() -> None:
    with PlayerProcess(Player(output="none", pace="free")) as process:
        process.start()
        assert (process.facts.output, process.facts.block_samples) == ("none", 512)
        process.send(Probe(7))
        until(process.listen(lambda: Probed(7) in process.messages), "the probe is answered")
        process.until_stats("it is idle", lambda stats: stats.state == "idle")
        process.control.pause(True)
        process.until_stats("it is paused", lambda stats: stats.state == "paused")
        assert process.stats.starvations == 0
        assert process.stop() == "", "nothing to tell on stderr"
        assert isinstance(process.messages[-1], Bye)


@pytest.mark.slow
def test_an_idle_player_hardly_reports(tmp_path: Path) -> None:
    with PlayerProcess(Player(output="none")) as process:
        process.start()
        process.until_stats("it is idle", lambda stats: stats.state == "idle")
        process.say(24_000)
        process.until_read(24_000)
        process.until_stats("it is idle again", lambda stats: stats.state == "idle")
        assert sum(isinstance(message, PlayerStats) for message in process.messages) <= 5


def test_an_output_that_cannot_be_had_is_told_with_the_fix(tmp_path: Path) -> None:
    with PlayerProcess(Player(output=f"wav:{tmp_path}/missing/out.wav")) as process:
        started = process.spawn()
        assert started.wait(15) == 2, "a configuration that can't work: restarting is no use"
        assert started.stderr is not None
        assert "cannot be written" in started.stderr.read()


def test_a_device_that_does_not_exist_is_told_with_those_that_do() -> None:
    with PlayerProcess(Player(output="speaker", device="no such device")) as process:
        started = process.spawn()
        assert started.wait(20) == 2
        assert started.stderr is not None
        told = started.stderr.read()
        if "no PortAudio" in told:
            pytest.skip("PortAudio is not installed here (apt install libportaudio2)")
        assert "player.output: no output device" in told


def test_the_prebuffer_is_never_more_than_could_be_there() -> None:
    assert prebuffer_samples(Config()) == 2880
    assert prebuffer_samples(Config(player=Player(prebuffer_ms=5000))) == 48_000
    assert prebuffer_samples(Config(player=Player(prebuffer_ms=5000), flow=Flow(ring_s=1))) == 12_000
