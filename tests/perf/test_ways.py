"""Ways of one process make the same speech, in pieces that are what they are said to be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from perf import texts
from perf.common import PerfError
from perf.direct import Direct
from perf.trials import Engine, one_process, tried
from perf.ways import Ask, Ways, answer, crossfaded
from pipeline.credit import ladder

BABBLE = "tests.engines.babble:ENGINE"


@pytest.fixture(scope="module")
def babble() -> Iterator[Ways]:
    """Of an engine with a ladder."""
    direct = Direct(BABBLE)
    yield Ways(direct)
    direct.close()


@pytest.fixture(scope="module")
def espeak() -> Iterator[Ways]:
    """Of an engine that cuts its own chunks."""
    direct = Direct("espeak")
    yield Ways(direct)
    direct.close()


def test_fading_over_keeps_a_steady_sound_steady_and_holds_back_its_end() -> None:
    steady = np.ones(1000, np.float32)
    first, tail = crossfaded(np.zeros(0, np.float32), steady, 200)
    second, rest = crossfaded(tail, steady, 200)
    assert (len(first), len(tail), len(second), len(rest)) == (800, 200, 800, 200)
    assert np.concatenate([first, second, rest]) == pytest.approx(1.0)


def test_a_chunk_shorter_than_the_fade_is_mixed_as_far_as_it_goes() -> None:
    body, tail = crossfaded(np.ones(200, np.float32), np.ones(50, np.float32), 200)
    assert len(body) + len(tail) == 50


@pytest.mark.parametrize("engine", ["babble", "espeak"])
def test_the_same_speech_whole_in_chunks_and_in_turn(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    ways: Ways = request.getfixturevalue(engine)
    ask = Ask(text=texts.SHORT, sound=str(tmp_path / "sound.npy"), chunk_samples=5000)
    made, sounds = {}, {}
    for name in ("everything", "pseudo", "sequential"):
        made[name] = answer(getattr(ways, name), ask)
        sounds[name] = np.load(ask.sound)
        assert not made[name].error
        assert sum(samples for _, samples in made[name].handed) == len(sounds[name])
    assert np.array_equal(sounds["everything"], sounds["pseudo"])
    assert np.array_equal(sounds["everything"], sounds["sequential"])
    assert made["everything"].joins == ()
    assert made["pseudo"].joins == tuple(range(5000, len(sounds["pseudo"]), 5000))
    assert len(made["sequential"].joins) > 0


def test_chunks_in_turn_are_as_long_as_the_ladder_says(babble: Ways, tmp_path: Path) -> None:
    ask = Ask(text=texts.STANDARD, sound=str(tmp_path / "sound.npy"), rungs=ladder(4, 16, 0.0))
    first, second, *_ = (samples for _, samples in answer(babble.sequential, ask).handed)
    assert (first, second) == (4 * 960, 8 * 960)


def test_independent_chunks_of_words_fade_into_each_other(espeak: Ways, tmp_path: Path) -> None:
    words = len(texts.words_of(texts.STANDARD))
    ask = Ask(text=texts.STANDARD, sound=str(tmp_path / "sound.npy"), chunk_tokens=2, fade_ms=10)
    made = answer(espeak.independent, ask)
    assert len(made.joins) == words // 2 - 1
    alone = [
        len(next(espeak.everything(msgspec.structs.replace(ask, text=text))).samples)
        for text in ("Hello my", "big long", "beautiful world")
    ]
    assert len(np.load(ask.sound)) == sum(alone) - 2 * 240
    assert made.joins[0] == alone[0] - 240 + 120


def test_nothing_to_say_is_said(espeak: Ways, tmp_path: Path) -> None:
    made = answer(lambda ask: iter(()), Ask(text="…", sound=str(tmp_path / "sound.npy")))
    assert "nothing to hear" in made.error


@pytest.mark.slow
def test_a_process_of_its_own_speaks_again_and_again() -> None:
    with one_process("sequential", Engine("espeak")) as speaker:
        first, second = (tried(speaker, Ask(text=texts.SHORT), 2880) for _ in range(2))
    assert np.array_equal(first.sound, second.sound)
    assert first.chunks == second.chunks == 2
    assert first.gaps_ms == ()
    assert 0 < first.first_made_ms < first.perceived_ms < first.total_ms
    assert first.cpu_ms > 0
    assert first.memory_bytes > 10_000_000
    assert len(first.heard) == pytest.approx(24 * first.total_ms, abs=2)


@pytest.mark.parametrize(
    ("engine", "words"), [("nobody", "is not installed"), ("chatterbox", "pip install|is no folder")]
)
def test_an_engine_that_is_not_here_is_said_in_one_line(engine: str, words: str) -> None:
    with pytest.raises(PerfError, match=words) as raised, one_process("everything", Engine(engine, "/nowhere")):
        pass
    assert len(str(raised.value).splitlines()) == 1
