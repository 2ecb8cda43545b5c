"""Recordings become the conditionals that the stock package makes of them, once; what cannot be taken is told why."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("chatterbox")

import torch
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox import preparing
from pipeline.engines.chatterbox.loading import load_t3, load_voice_encoder, read_state
from pipeline.engines.chatterbox.modules import build_s3gen, s3gen_sizes
from pipeline.engines.chatterbox.recordings import RATE, clipped_share, read_recording
from pipeline.engines.chatterbox.tiny_files import hum
from pipeline.engines.chatterbox.variants import CHATTERBOX, TURBO, Variant
from pipeline.engines.chatterbox.voices import VoiceBook, read_builtin, size_bytes

pytestmark = pytest.mark.chatterbox

Checkpoint = Callable[[str], Path]


def silent_report(doing: str, deadline_s: float) -> None:
    assert doing
    assert deadline_s > 0


def book(variant: Variant, folder: Path, voices: Path, **more: Any) -> VoiceBook:
    return VoiceBook(variant, folder, voices, silent_report, **more)


def write(path: Path, sound: np.ndarray, rate: int = RATE, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, **more)


def stock_conditionals(variant: Variant, folder: Path, recording: Path) -> Any:
    """What the package's own `prepare_conditionals` makes of a recording, on the same weights."""
    state = read_state(folder / variant.s3gen)
    s3gen = build_s3gen(s3gen_sizes(state))
    s3gen.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    ve: VoiceEncoder = load_voice_encoder(variant, folder)
    package = ChatterboxTurboTTS if variant.turbo else ChatterboxTTS
    tts = object.__new__(package)  # without its watermarker
    tts.t3, tts.s3gen, tts.ve, tts.device, tts.sr = load_t3(variant, folder), s3gen, ve, "cpu", RATE
    with torch.inference_mode():
        tts.prepare_conditionals(str(recording))
    return tts.conds


@pytest.mark.parametrize(
    ("variant", "seconds", "rate", "name"),
    [(CHATTERBOX, 3.3, 24_000, "a.wav"), (CHATTERBOX, 12.0, 44_100, "b.flac"), (TURBO, 16.0, 22_050, "c.ogg")],
    ids=["short", "long", "turbo"],
)
def test_conditionals_are_the_stock_ones(
    variant: Variant, seconds: float, rate: int, name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint(variant.name)
    sound = np.stack([hum(seconds * rate / RATE), hum(seconds * rate / RATE, 1)], axis=1)  # two channels
    write(tmp_path / name, sound, rate)
    made = book(variant, folder, tmp_path).conditionals(name[0])
    expected = stock_conditionals(variant, folder, tmp_path / name)
    assert torch.allclose(made.t3.speaker, expected.t3.speaker_emb, atol=1e-5)
    assert torch.equal(made.t3.prompt_tokens, expected.t3.cond_prompt_speech_tokens)
    gen = expected.gen
    count = made.s3gen.prompt_tokens.shape[1]
    assert abs(count - gen["prompt_token"].shape[1]) <= 1
    assert torch.equal(made.s3gen.prompt_tokens, gen["prompt_token"][:, :count])
    assert made.s3gen.prompt_mel.shape == (1, 2 * count, 80)
    assert torch.allclose(made.s3gen.prompt_mel, gen["prompt_feat"][:, : 2 * count], atol=1e-4)
    assert torch.allclose(made.s3gen.speaker, gen["embedding"], atol=1e-4)


def test_the_built_in_voice_is_the_checkpoints(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("chatterbox")
    made = book(CHATTERBOX, folder, tmp_path)
    assert made.default == "builtin"
    assert [voice.id for voice in made.voices()] == ["builtin"]
    stored = torch.load(folder / "conds.pt", weights_only=True)
    for name in ("", "builtin"):
        voice = made.conditionals(name)
        assert torch.equal(voice.t3.speaker, stored["t3"]["speaker_emb"])
        assert torch.equal(voice.s3gen.prompt_tokens, stored["gen"]["prompt_token"])
        assert voice.s3gen.prompt_mel.shape[1] == 2 * voice.s3gen.prompt_tokens.shape[1] == 500


def test_without_one_the_first_recording_is_the_default_and_without_any_it_says_what_to_do(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in checkpoint("chatterbox").iterdir():
        if path.name != "conds.pt":
            (folder / path.name).symlink_to(path)
    with pytest.raises(EngineError, match=r"no voice: .*conds.pt does not exist.*NAME.wav"):
        book(CHATTERBOX, folder, tmp_path / "voices")
    write(tmp_path / "voices" / "Ann.wav", hum(2))
    assert book(CHATTERBOX, folder, tmp_path / "voices").default == "Ann"


def test_a_recording_added_later_is_a_voice_and_one_taken_away_is_none(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = book(CHATTERBOX, checkpoint("chatterbox"), tmp_path)
    with pytest.raises(EngineError, match="'Ann' is not a voice of chatterbox; there is no such voice in builtin"):
        made.conditionals("Ann")
    write(tmp_path / "Ann.wav", hum(2))
    assert made.conditionals("Ann").t3.speaker.shape == (1, 256)
    assert [voice.id for voice in made.voices()] == ["builtin", "Ann"]
    (tmp_path / "Ann.wav").unlink()
    with pytest.raises(EngineError, match="'Ann' is not a voice"):
        made.conditionals("Ann")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", ".."])
def test_a_name_reaches_nothing_outside_the_folder(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    write(tmp_path / "secret.wav", hum(2))
    with pytest.raises(EngineError, match="is not a voice"):
        book(CHATTERBOX, checkpoint("chatterbox"), tmp_path / "voices").conditionals(name)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of what was prepared; the networks make something of each at once."""
    lengths: list[int] = []

    class Quick:
        def __init__(self, variant: Variant, folder: Path, device: str = "cpu") -> None:
            self._builtin = read_builtin(folder / variant.conditionals)

        def prepare(self, sound: np.ndarray) -> Any:
            lengths.append(len(sound))
            return self._builtin

    monkeypatch.setattr(preparing, "Preparer", Quick)
    return lengths


def test_a_voice_is_prepared_once_for_both_halves_and_the_next_start(
    checkpoint: Checkpoint, tmp_path: Path, prepared: list[int]
) -> None:
    folder, cache = checkpoint("chatterbox"), tmp_path / "cache"
    write(tmp_path / "Ann.wav", hum(2))
    one, other = (book(CHATTERBOX, folder, tmp_path, cache=cache) for _ in range(2))
    threads = [threading.Thread(target=each.conditionals, args=("Ann",)) for each in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.conditionals("Ann") is one.conditionals("Ann")
    assert len(prepared) == 1
    again = book(CHATTERBOX, folder, tmp_path, cache=cache).conditionals("Ann")
    assert torch.equal(again.s3gen.prompt_mel, one.conditionals("Ann").s3gen.prompt_mel)
    assert len(prepared) == 1
    write(tmp_path / "Ann.wav", hum(2, seed=5))
    one.conditionals("Ann")
    assert len(prepared) == 2, "another recording of the same name is another voice"
    (tmp_path / "Ann.wav").rename(tmp_path / "Bea.wav")
    one.conditionals("Bea")
    assert len(prepared) == 2, "what counts is what the file holds"


def test_other_weights_prepare_again(checkpoint: Checkpoint, tmp_path: Path, prepared: list[int]) -> None:
    folder, other = checkpoint("chatterbox"), tmp_path / "weights"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    with (other / CHATTERBOX.s3gen).open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\1" * 8)
    write(tmp_path / "Ann.wav", hum(2))
    for weights in (folder, other):
        book(CHATTERBOX, weights, tmp_path, cache=tmp_path / "cache").conditionals("Ann")
    assert len(prepared) == 2


def test_a_damaged_cache_is_made_again_and_one_that_cannot_be_written_is_done_without(
    checkpoint: Checkpoint, tmp_path: Path, prepared: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, cache = checkpoint("chatterbox"), tmp_path / "cache"
    write(tmp_path / "Ann.wav", hum(2))
    book(CHATTERBOX, folder, tmp_path, cache=cache).conditionals("Ann")
    (kept,) = cache.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])
    book(CHATTERBOX, folder, tmp_path, cache=cache).conditionals("Ann")
    assert len(prepared) == 2
    assert not list(cache.glob("*.part"))
    (tmp_path / "file").touch()
    assert book(CHATTERBOX, folder, tmp_path, cache=tmp_path / "file" / "cache").conditionals("Ann")
    assert "cannot be written" in capfd.readouterr().err


def test_memory_keeps_to_its_bound(checkpoint: Checkpoint, tmp_path: Path, prepared: list[int]) -> None:
    folder = checkpoint("chatterbox")
    for name in "abc":
        write(tmp_path / f"{name}.wav", hum(2, ord(name)))
    made = book(CHATTERBOX, folder, tmp_path)
    two = 2 * size_bytes(made.conditionals("builtin")) + 1
    made = book(CHATTERBOX, folder, tmp_path, memory_bytes=two)
    prepared.clear()
    for name in "aba" + "c" + "a" + "b":
        made.conditionals(name)
    assert len(prepared) == 4, "a, b, c, and b again: it was used least recently when c came"


# --------------------------------------------------------------------------- recordings


def recording(sound: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_every_format_is_read(kind: str) -> None:
    sound = read_recording("x", recording(hum(2), kind=kind), CHATTERBOX)
    assert sound.dtype == np.float32
    assert len(sound) == pytest.approx(2 * RATE, rel=0.05)


def test_sound_is_resampled_as_librosa_does() -> None:
    import librosa

    sound = hum(2)[:40_001]
    made = read_recording("x", recording(sound, 16_000), CHATTERBOX)
    stored, _ = soundfile.read(io.BytesIO(recording(sound, 16_000)), dtype="float32")
    assert np.allclose(made, librosa.resample(stored, orig_sr=16_000, target_sr=RATE), atol=1e-6)


@pytest.mark.parametrize(
    ("sound", "variant", "said"),
    [
        (hum(0.9), CHATTERBOX, "lasts 0.9 s, chatterbox needs more than 1 s"),
        (hum(5.0), TURBO, "lasts 5.0 s, chatterbox-turbo needs more than 5 s"),
        (np.zeros(2 * RATE), CHATTERBOX, "is silent"),
        (1e-4 * hum(2), CHATTERBOX, "is silent"),
        (np.clip(9 * hum(2), -1, 1), CHATTERBOX, "is clipped"),
    ],
    ids=["short", "short for turbo", "silent", "faint", "clipped"],
)
def test_what_cannot_be_taken_is_told_why(sound: np.ndarray, variant: Variant, said: str) -> None:
    with pytest.raises(EngineError, match=said) as raised:
        read_recording("Ann", recording(sound), variant)
    assert "'Ann'" in str(raised.value)


def test_what_is_no_recording_is_told_as_well() -> None:
    for data in (b"", b"RIFF", b"\0" * 1000, b"hello" * 100):
        with pytest.raises(EngineError, match="cannot be read"):
            read_recording("Ann", data, CHATTERBOX)
    broken = np.full(2 * RATE, np.nan, np.float32)
    file = io.BytesIO()
    soundfile.write(file, broken, RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(EngineError, match="no finite numbers"):
        read_recording("Ann", file.getvalue(), CHATTERBOX)


def test_of_a_long_recording_the_beginning_is_taken() -> None:
    sound = read_recording("x", recording(np.tile(hum(10), 13), 16_000), CHATTERBOX)
    assert len(sound) <= 120 * RATE


def test_a_single_peak_is_not_clipping() -> None:
    sound = hum(2)
    sound[1000] = 1.0
    assert clipped_share(sound) == 0.0
    sound[2000:2010] = 1.0
    assert clipped_share(sound) == 10 / len(sound)
