"""Uploads of reference recordings."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.voices import UPLOAD_BYTES, VoiceError, VoiceStore


def recording(seconds: float = 2.0, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(int(16000 * seconds)) / 10), 16000, format=kind)
    return file.getvalue()


def test_a_recording_in_pieces_becomes_a_voice(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path / "voices")
    assert store.names() == ()
    data = recording()
    received, complete = store.add(b"c", "Ann", 0, len(data), data[:1000])
    assert (received, complete) == (1000, False)
    assert store.add(b"c", "Ann", 1000, len(data), data[1000:]) == (len(data), True)
    assert store.names() == ("Ann",)
    assert (tmp_path / "voices" / "Ann.wav").read_bytes() == data


def test_a_new_recording_replaces_the_old_one_whatever_its_kind(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    for kind in ("WAV", "FLAC"):
        data = recording(kind=kind)
        store.add(b"c", "Ann", 0, len(data), data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Ann.flac"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "", ".", "x" * 100, "a\nb", "a\\b"])
def test_names_that_are_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(VoiceError) as error:
        VoiceStore(tmp_path).add(b"c", name, 0, 10, b"x" * 10)
    assert error.value.field == "voice"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "field"),
    [(b"not sound at all", "data"), (recording(0.2), "data"), (recording(200), "data")],
)
def test_what_is_no_fitting_recording_is_refused_and_leaves_nothing(tmp_path: Path, data: bytes, field: str) -> None:
    with pytest.raises(VoiceError) as error:
        VoiceStore(tmp_path).add(b"c", "Ann", 0, len(data), data)
    assert error.value.field == field
    assert not list(tmp_path.iterdir())


def test_pieces_out_of_place_and_uploads_too_large_are_refused(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    store.add(b"c", "Ann", 0, 100, b"x" * 10)
    for offset, total, data, field in ((20, 100, b"x", "offset"), (10, 100, b"x" * 91, "total_bytes")):
        with pytest.raises(VoiceError) as error:
            store.add(b"c", "Ann", offset, total, data)
        assert error.value.field == field
    with pytest.raises(VoiceError) as error:
        store.add(b"c", "Ben", 0, UPLOAD_BYTES + 1, b"x")
    assert error.value.field == "total_bytes"


def test_unfinished_uploads_are_bounded_and_end_with_their_client(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    for number in range(3):
        store.add(b"c", f"v{number}", 0, UPLOAD_BYTES, b"x")
    with pytest.raises(VoiceError, match="unfinished"):
        store.add(b"d", "v", 0, UPLOAD_BYTES, b"x")
    store.forget(b"c")
    store.add(b"d", "v", 0, UPLOAD_BYTES, b"x")


def test_a_file_put_there_by_hand_is_noticed_and_so_is_one_taken_away(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path / "voices")
    assert store.changed()
    assert not store.changed()
    store.folder.mkdir()
    assert store.changed()
    (store.folder / "Ann.wav").write_bytes(recording())
    assert store.changed()
    assert (store.names(), store.path("Ann")) == (("Ann",), store.folder / "Ann.wav")
    (store.folder / "Ann.wav").unlink()
    assert store.changed()
    assert (store.names(), store.path("Ann")) == ((), None)
    long_ago = 1_000_000_000
    os.utime(store.folder, (long_ago, long_ago))
    assert store.changed()
    assert not store.changed()


def test_two_recordings_of_one_name_are_one_voice(tmp_path: Path) -> None:
    for suffix in ("mp3", "wav"):
        (tmp_path / f"Ann.{suffix}").write_bytes(recording())
    store = VoiceStore(tmp_path)
    assert store.names() == ("Ann",)
    assert store.path("Ann") == tmp_path / "Ann.wav"
