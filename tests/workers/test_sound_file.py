"""WAV files: readable at every moment, nothing lost, no silence that nobody asked for."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest

from ipc.ring import Samples
from workers.sound import SoundError
from workers.sound_file import LONGEST_GAP_S, FileInUse, WavFile, header, to_int16

RATE_HZ = 24_000


def speech(samples: int, seed: int = 1) -> Samples:
    return np.random.default_rng(seed).uniform(0.1, 1, samples).astype(np.float32)


def content(path: Path) -> bytes:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)
        return file.readframes(file.getnframes())


def silence(samples: int) -> Samples:
    return np.zeros(samples, np.float32)


def test_rounding_is_to_the_nearest_and_what_is_too_loud_is_limited() -> None:
    given = np.array([0, 1, -1, 1.5, -7, 0.5 / 32767, 0.51 / 32767, 100.4 / 32767], np.float32)
    assert np.frombuffer(to_int16(given), "<i2").tolist() == [0, 32767, -32767, 32767, -32767, 0, 1, 100]


def test_the_file_is_valid_after_every_block_and_holds_exactly_what_was_made(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    file = WavFile(path, append=False)
    assert content(path) == b""
    made = b""
    for seed in range(5):
        block = speech(512, seed)
        file.write(block, 512)
        made += to_int16(block)
        assert content(path) == made
    file.close()
    file.close()
    assert path.stat().st_size == 44 + len(made)


def test_silence_is_kept_between_speech_only_and_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    file = WavFile(path, append=False)
    file.write(silence(512), 0)
    first, second = speech(512, 1), speech(512, 2)
    first[300:] = 0
    file.write(first, 300)
    file.write(silence(512), 0)
    file.write(second, 512)
    assert content(path) == to_int16(first[:300]) + bytes(2 * (212 + 512)) + to_int16(second)
    for _ in range(10 * RATE_HZ // 512):
        file.write(silence(512), 0)
    before = content(path)
    file.write(second, 512)
    assert len(content(path)) - len(before) == 2 * (round(LONGEST_GAP_S * RATE_HZ) + 512)
    file.close()


def test_zeros_that_somebody_made_are_speech(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    file = WavFile(path, append=False)
    file.write(silence(512), 400)
    assert content(path) == bytes(800)
    file.close()


def put(path: Path, samples: Samples, sounding: int, append: bool) -> None:
    """What one player writes before it is killed: its file is closed with it."""
    file = WavFile(path, append)
    file.write(samples, sounding)
    file.close()


def test_two_players_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    first = WavFile(path, append=False)
    first.write(speech(512, 1), 512)
    for append in (False, True):
        with pytest.raises(FileInUse, match=r"out\.wav is written by another pipeline"):
            WavFile(path, append)
    assert content(path) == to_int16(speech(512, 1))
    first.close()
    WavFile(path, append=False).close()


def test_a_restarted_player_appends_and_a_new_run_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    first, second = speech(512, 1), speech(100, 2)
    put(path, first, 512, append=False)
    put(path, second, 100, append=True)
    assert content(path) == to_int16(first) + to_int16(second)
    put(path, second, 100, append=False)
    assert content(path) == to_int16(second)


def test_what_a_killed_player_had_not_counted_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    first = speech(512, 1)
    put(path, first, 512, append=False)
    with path.open("ab") as file:
        file.write(b"\x01" * 333)
    assert content(path) == to_int16(first), "players read up to the header's end"
    put(path, first, 512, append=True)
    assert content(path) == to_int16(first) * 2
    # Killed between the header's two sizes: the data size counts, it is stored first.
    raw = bytearray(path.read_bytes())
    raw[4:8] = b"\x24\x00\x00\x00"
    path.write_bytes(raw)
    put(path, first, 512, append=True)
    assert content(path) == to_int16(first) * 3
    # Killed before the header was whole.
    path.write_bytes(header(0)[:20])
    put(path, first, 512, append=True)
    assert content(path) == to_int16(first)


def test_a_full_file_is_followed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    blocks = [speech(512, seed) for seed in range(5)]
    file = WavFile(path, append=False, largest_data_bytes=2100)
    for block in blocks[:4]:
        file.write(block, 512)
    file.close()
    assert content(path) == to_int16(np.concatenate(blocks[:2]))
    assert content(tmp_path / "out-2.wav") == to_int16(np.concatenate(blocks[2:4]))
    file = WavFile(path, append=True, largest_data_bytes=2100)
    assert file.path == tmp_path / "out-2.wav"
    file.write(blocks[4], 512)
    assert content(tmp_path / "out-3.wav") == to_int16(blocks[4])


@pytest.mark.parametrize("name", ["missing/out.wav", "."])
def test_a_file_that_cannot_be_written_is_named_with_the_fix(tmp_path: Path, name: str) -> None:
    with pytest.raises(SoundError, match=r"player\.output: wav:.*cannot be written: .*name a file in a folder"):
        WavFile(tmp_path / name, append=False)


def test_appending_to_something_else_is_refused_and_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"x" * 100)
    with pytest.raises(SoundError, match="no WAV file that this program began"):
        WavFile(path, append=True)
    assert path.read_bytes() == b"x" * 100


def test_a_failed_write_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.wav"
    file = WavFile(path, append=False)
    first, second = speech(512, 1), speech(512, 2)
    file.write(first, 512)
    honest, calls = os.pwrite, []

    def full(fd: int, data: bytes, at: int) -> int:
        calls.append(at)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return honest(fd, data[:100] if len(calls) == 1 else data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        file.write(second, 512)
    assert content(path) == to_int16(first)
    file.write(second, 512)
    assert content(path) == to_int16(first) + to_int16(second)
    file.close()
