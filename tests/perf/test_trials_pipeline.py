"""Our pipeline tried: what is heard is what one process makes, sample for sample, and gaps are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ipc.messages import Finished
from perf import texts
from perf.trials import Engine, one_process, tried
from perf.trials_pipeline import heard_of, tried_pipeline
from perf.ways import Ask
from workers.sound_file import WavFile

BLOCK = np.full(512, 0.5, np.float32)


def written(path: Path, blocks: list[int]) -> int:
    """A file of the player's: blocks with so many samples of sound each; its bytes before the last utterance."""
    file = WavFile(path, append=False)
    file.write(BLOCK, 512)
    before = path.stat().st_size
    for sounding in blocks:
        file.write(BLOCK, sounding)
    file.close()
    return before


def finished(samples: int, underruns: int) -> Finished:
    return Finished(id="u", seconds=samples / 24000, samples=samples, chars=1, underruns=underruns)


def test_what_was_heard_is_found_behind_the_silence_before_it(tmp_path: Path) -> None:
    before = written(tmp_path / "heard.wav", [0, 0, 512, 512, 100])
    heard = heard_of(tmp_path / "heard.wav", before, finished(1124, underruns=0))
    assert len(heard) == 1124
    assert heard.all()


def test_a_gap_is_part_of_what_was_heard(tmp_path: Path) -> None:
    before = written(tmp_path / "heard.wav", [0, 512, 200, 0, 512])
    heard = heard_of(tmp_path / "heard.wav", before, finished(1224, underruns=1))
    assert len(heard) == 1224 + 312 + 512
    assert np.count_nonzero(heard) == 1224


@pytest.mark.slow
async def test_the_pipeline_makes_what_one_process_makes() -> None:
    engine = Engine("espeak")
    with one_process("sequential", engine) as speaker:
        alone = tried(speaker, Ask(text=texts.SHORT), 2880)
    (ours,) = await tried_pipeline(engine, {}, [texts.SHORT])
    assert ours.sound == pytest.approx(alone.sound, abs=1 / 32767)
    assert ours.chunks == alone.chunks == 2
    assert ours.joins == pytest.approx(alone.joins, abs=4)
    silent = len(ours.heard) - len(ours.sound) - sum(ours.gaps_ms) * 24
    assert silent == pytest.approx(24 * ours.perceived_ms, abs=1)
    assert 0 < ours.first_made_ms <= ours.perceived_ms < ours.total_ms
    assert ours.cpu_ms > 0
    assert ours.memory_bytes > alone.memory_bytes
