"""What an uploaded recording is like: decoded piece by piece, never more of it than is allowed."""

from __future__ import annotations

import io
import math

import numpy as np
import soundfile

from workers.gateway.errors import GatewayError

BLOCK_FRAMES = 65_536
MOST_CHANNELS = 8
RATES_HZ = (8_000, 192_000)
SILENCE_DB = -120.0


def measured(data: bytes, longest_s: float) -> dict[str, float]:
    """Duration, loudness (RMS) and peak, in dB of full scale.

    Raises `GatewayError` for what is no recording, has more than `MOST_CHANNELS`, or lasts longer than
    ``longest_s``, whatever its header says.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            if not (RATES_HZ[0] <= rate <= RATES_HZ[1] and 1 <= file.channels <= MOST_CHANNELS):
                allowed = f"1 to {MOST_CHANNELS} channels and {RATES_HZ[0]} to {RATES_HZ[1]} samples a second"
                raise _wrong(f"the recording has {file.channels} channels at {rate} Hz; allowed are {allowed}")
            frames, squares, peak = 0, 0.0, 0.0
            for block in file.blocks(BLOCK_FRAMES, dtype="float32", always_2d=True):
                frames += len(block)
                if frames > longest_s * rate:
                    raise _wrong(f"the recording is longer than {longest_s:g} s (gateway.max_upload_s)", 413)
                peak = max(peak, float(np.abs(block).max()))
                squares += float(np.square(block, dtype=np.float64).sum()) / file.channels
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise _wrong(f"this is no recording that can be read (WAV, FLAC, OGG, MP3): {error}") from error
    if not frames or not math.isfinite(squares):
        raise _wrong("the recording holds no sound")
    return {
        "duration_s": round(frames / rate, 3),
        "level_db": _decibels(math.sqrt(squares / frames)),
        "peak_db": _decibels(peak),
    }


def _decibels(value: float) -> float:
    return round(20 * math.log10(value), 1) if value > 0 else SILENCE_DB


def _wrong(message: str, status: int = 400) -> GatewayError:
    return GatewayError(status, message, param="recording", code="recording")
