"""Formats: every sample, as it comes, and nothing else."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from tests.engines.sine import expected
from workers.gateway.elevenlabs_api import FORMATS, format_of
from workers.gateway.encoding import Format, encoder, wav_header

RATE = 24_000
SOUND = expected(31)  # 29,760 samples: no whole number of any codec's frames
PIECE = 2400


def encoded(wanted: Format, sound: npt.NDArray[np.int16] = SOUND, piece: int = PIECE) -> list[bytes]:
    """The stream in the pieces in which it would be sent."""
    stream = encoder(wanted)
    pieces = [stream.feed(sound[at : at + piece].tobytes()) for at in range(0, len(sound), piece)]
    return [*pieces, stream.end()]


def decoded(data: bytes) -> tuple[npt.NDArray[np.float64], int]:
    """Samples within ±1 and their rate, as libav hears them."""
    parts: list[npt.NDArray[np.float64]] = []
    with av.open(io.BytesIO(data)) as file:
        resampler = av.AudioResampler(format="dblp", layout="mono")
        for frame in file.decode(audio=0):
            parts += [one.to_ndarray()[0] for one in resampler.resample(frame)]
            rate = frame.sample_rate
    return np.concatenate(parts), rate


def largest_jump(sound: npt.NDArray[np.float64]) -> float:
    """How far any sample lies from the line through the two before it: a click is far from it."""
    return float(np.abs(np.diff(sound, 2)).max())


def test_pcm_is_the_samples_and_nothing_else() -> None:
    assert b"".join(encoded(Format("pcm"))) == SOUND.tobytes()


def test_wav_is_read_by_the_standard_library_and_by_libsndfile(tmp_path: Path) -> None:
    data = b"".join(encoded(Format("wav")))
    assert data == wav_header(RATE) + SOUND.tobytes()
    for source in (io.BytesIO(data), tmp_path / "streamed.wav"):
        if isinstance(source, Path):
            source.write_bytes(data)
        with wave.open(str(source) if isinstance(source, Path) else source) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
            assert file.readframes(file.getnframes()) == SOUND.tobytes()
    assert np.array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], SOUND)


def test_flac_has_every_sample() -> None:
    sound, rate = decoded(b"".join(encoded(Format("flac"))))
    assert rate == RATE
    assert np.array_equal(np.rint(sound * 32768).astype(np.int16), SOUND)


def test_opus_has_the_right_length() -> None:
    sound, rate = decoded(b"".join(encoded(Format("opus"))))
    assert (len(sound), rate) == (2 * len(SOUND), 48_000)


@pytest.mark.parametrize("codec", ["mp3", "aac", "opus"])
@pytest.mark.parametrize("piece", [480, 2400, 29_760])
def test_a_lossy_format_has_no_click_whatever_the_pieces(codec: str, piece: int) -> None:
    sound, rate = decoded(b"".join(encoded(Format(codec), piece=piece)))  # type: ignore[arg-type]
    inner = sound[rate // 5 : -rate // 5]  # a codec rings where the sound begins and ends
    turn = 2 * np.pi * 440 / rate
    assert largest_jump(inner) < 0.5 * turn**2 * 1.5
    assert len(sound) / rate == pytest.approx(len(SOUND) / RATE, abs=0.12)


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("pcm")])
def test_another_rate_has_the_nearest_number_of_samples_and_no_click(name: str) -> None:
    wanted = format_of(name)
    sound = np.frombuffer(b"".join(encoded(wanted)), "<i2").astype(np.float64) / 32767
    assert len(sound) == round(len(SOUND) * wanted.rate / RATE)
    inner = sound[wanted.rate // 50 : -wanted.rate // 50]
    assert largest_jump(inner) < 0.5 * (2 * np.pi * 440 / wanted.rate) ** 2 * 1.1 + 2 / 32767


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_sound_with_the_second_piece_at_the_latest(name: str) -> None:
    pieces = encoded(format_of(name))
    assert any(pieces[:2])


@pytest.mark.parametrize("name", FORMATS)
def test_no_sound_at_all_is_an_empty_stream(name: str) -> None:
    assert len(encoder(format_of(name)).end()) < 200


@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_may_be_given_up_at_any_time(name: str) -> None:
    stream = encoder(format_of(name))
    stream.feed(SOUND[:1000].tobytes())
    stream.close()
    stream.close()


def test_the_same_sound_twice_is_the_same_bytes() -> None:
    for codec in ("mp3", "flac", "aac"):
        assert encoded(Format(codec)) == encoded(Format(codec))  # type: ignore[arg-type]
