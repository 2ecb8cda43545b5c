"""A reference recording, from its file to sound that a voice can be made of. No torch here."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from pipeline.engines.base import EngineError, Samples
from pipeline.engines.chatterbox.variants import Variant

RATE = 24_000
LONGEST_S = 120.0
"""Of a longer recording the beginning is taken."""

SILENT_PEAK = 0.003
SILENT_RMS = 0.0005
FULL_SCALE = 0.999
CLIPPED_RUN = 4
"""So many samples in a row at full scale are no coincidence."""

MOST_CLIPPED = 0.01


def read_recording(name: str, data: bytes, variant: Variant) -> Samples:
    """The sound of a WAV, FLAC, OGG or MP3 file: float32 mono 24 kHz; channels are averaged, as the stock package does.

    Raises `EngineError` naming the voice for what cannot be read, is too short for the model, silent or clipped.
    """
    sound, rate = _decoded(name, data)
    seconds = len(sound) / rate
    shortest = variant.shortest_reference_s
    if seconds <= shortest:
        raise EngineError(
            f"voice: the recording of {name!r} lasts {seconds:.1f} s, {variant.name} needs more than {shortest:g} s"
        )
    if not np.isfinite(sound).all():
        raise EngineError(f"voice: the recording of {name!r} holds samples that are no finite numbers")
    peak, rms = float(np.abs(sound).max()), float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
    if peak < SILENT_PEAK or rms < SILENT_RMS:
        raise EngineError(f"voice: the recording of {name!r} is silent (peak {peak:.4f} of 1)")
    if (share := clipped_share(sound)) > MOST_CLIPPED:
        raise EngineError(
            f"voice: the recording of {name!r} is clipped ({share:.0%} of its samples at full scale); "
            "record it with less gain"
        )
    return _at_rate(sound, rate, RATE)


def _decoded(name: str, data: bytes) -> tuple[Samples, int]:
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            sound = file.read(int(LONGEST_S * file.samplerate), dtype="float32", always_2d=True)
            return sound.mean(axis=1), file.samplerate
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise EngineError(f"voice: the recording of {name!r} cannot be read (WAV, FLAC, OGG, MP3): {error}") from error


def clipped_share(sound: Samples) -> float:
    """Which part of the samples lies in runs at full scale."""
    full = np.concatenate(([False], np.abs(sound) >= FULL_SCALE, [False]))
    edges = np.flatnonzero(full[1:] != full[:-1])
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= CLIPPED_RUN].sum()) / max(1, len(sound))


def _at_rate(sound: Samples, rate: int, wanted: int) -> Samples:
    """As librosa resamples by default: soxr at its high quality, to the length that the ratio gives."""
    import soxr

    if rate == wanted:
        return sound
    length = int(np.ceil(len(sound) * wanted / rate))
    made = soxr.resample(sound, rate, wanted, quality="HQ")[:length]
    return np.pad(made, (0, length - len(made))).astype(np.float32)


def at_16k(sound: Samples) -> Samples:
    """24 kHz sound at the rate of speech tokenizer and speaker encoders."""
    return _at_rate(sound, RATE, 16_000)
