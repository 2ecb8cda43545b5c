"""What babble's halves share: voices, options, faults on demand, and the latent that is a token.

A latent is float32[1024] (4 kB, the size of an XTTS latent). It carries its own position, which
segment and which request it belongs to, and a checksum, so that the audio half notices every token
that is lost, repeated, swapped, mixed with another stream's or changed on the way:

    0 magic   1 position   2 piece   3 request   4 pitch_hz   5 loudness   6 timbre   7 fault
    8 … 1021 noise by (piece, position)                      1022, 1023 crc32 of the rest, in halves
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile

from ipc.messages import Setting, Voice
from pipeline.engines.base import EngineError, Segment, Settings

TOKENS_PER_SECOND = 25
LATENT_FLOATS = 1024
LATENT_BYTES = 4 * LATENT_FLOATS
DIE_STATUS = 86
LANGUAGES = ("en", "de", "fr", "es", "cmn")
DEFAULT_VOICE = "ada"

_MAGIC = 2718.0
_NOISE_AT = 8
_CHECK_AT = LATENT_FLOATS - 2
_BUILT_IN = {
    "ada": (Voice("ada", "Ada", "en", "female"), 210.0),
    "bob": (Voice("bob", "Bob", "en", "male"), 120.0),
    "clara": (Voice("clara", "Clara", "de", "female"), 190.0),
    "denis": (Voice("denis", "Denis", "fr", "male"), 135.0),
    "mei": (Voice("mei", "Mei", "cmn", "female"), 230.0),
}

SETTINGS = (
    Setting("pitch", "float", 1.0, "factor on the voice's pitch", 0.5, 1.5),
    Setting("jitter", "float", 0.05, "how far the pitch wanders by chance, as a share of it", 0.0, 0.5),
    Setting("volume", "float", 1.0, "factor on the samples", 0.0, 1.4),
    Setting("echo", "bool", True, "add an echo of 180 ms"),
    Setting("mood", "str", "plain", "colour of the tone", choices=("plain", "bright", "dark")),
)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``model.options`` of this engine.

    Delays are per token of the longest stream in a batch. A marker (``*_text``) that occurs in a
    segment makes a fault there: ``refuse`` raises at admission, ``fail`` breaks the stream, ``die``
    ends the process without a word, ``stuck`` hangs it, ``wedge`` hangs it in C code while another
    Python thread lives on; ``audio_*`` strike in the audio half. With a ``fault_folder`` each fault
    leaves a file, and after ``fault_times`` of them there are no more. ``die_loading`` ends each
    process of the token half while it loads. Each half starts ``children`` processes that would outlive it.
    """

    token_delay_ms: float = 0.0
    render_delay_ms: float = 0.0
    load_s: float = 0.0
    audio_load_s: float = 0.0
    tokens_per_step: int = 8
    hold_back_tokens: int = 0
    longest_tokens: int = 750
    refuse_text: str = ""
    fail_text: str = ""
    die_text: str = ""
    stuck_text: str = ""
    wedge_text: str = ""
    audio_fail_text: str = ""
    audio_die_text: str = ""
    audio_stuck_text: str = ""
    audio_wedge_text: str = ""
    die_loading: bool = False
    children: int = 0
    fault_folder: str = ""
    fault_times: int = 1
    missing: str = ""


def read_options(options: Settings) -> Options:
    """``model.options``, checked. Raises `EngineError` naming the option."""
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        names = ", ".join(Options.__struct_fields__)
        raise EngineError(f"model.options: {error}; options of babble: {names}") from error


# --------------------------------------------------------------------------- faults

FAULTS = ("", "fail", "die", "stuck", "wedge")


def fault_here(options: Options, kind: str) -> bool:
    """Strike with a fault of ``kind``: True means that the stream is to break, False that the fault is used up.

    ``die``, ``stuck`` and ``wedge`` do not return.
    """
    if options.fault_folder:
        folder = Path(options.fault_folder)
        if len(list(folder.iterdir())) >= options.fault_times:
            return False
        (folder / f"{time.monotonic_ns()}-{kind}").touch()
    if kind == "die":
        os._exit(DIE_STATUS)
    if kind == "stuck":
        time.sleep(3600)
    if kind == "wedge":
        threading.Thread(target=_live_on, daemon=True).start()
        ctypes.CDLL(None).sleep(3600)
    return True


def _live_on() -> None:
    while True:
        time.sleep(0.01)


def start_children(options: Options) -> None:
    """Processes that only a kill of the whole group ends; nobody waits for them."""
    sleep = ["sleep", "1000"]
    _children.extend(subprocess.Popen(sleep, stdin=subprocess.DEVNULL) for _ in range(options.children))


_children: list[subprocess.Popen[bytes]] = []
"""Kept: a handle that is collected while its process lives warns."""


# --------------------------------------------------------------------------- voices and settings


def voices(folder: str) -> tuple[Voice, ...]:
    """The built-in voices, and one for each reference recording (WAV) in the folder."""
    cloned = sorted(Path(folder).glob("*.wav")) if Path(folder).is_dir() else []
    return tuple(voice for voice, _ in _BUILT_IN.values()) + tuple(
        Voice(path.stem, path.stem, "en") for path in cloned if path.stem not in _BUILT_IN
    )


def voice_pitch_hz(voice: str, folder: str) -> float:
    """A voice's pitch; that of a reference recording is measured by counting zero crossings."""
    if voice in _BUILT_IN:
        return _BUILT_IN[voice][1]
    path = Path(folder) / f"{voice}.wav"
    if path.parent != Path(folder) or not path.is_file():
        names = ", ".join(known.id for known in voices(folder))
        raise EngineError(f"voice: {voice!r} does not exist; voices: {names}")
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    rising = np.count_nonzero((samples[:-1, 0] < 0) & (samples[1:, 0] >= 0))
    return float(np.clip(rising * rate / max(1, len(samples)), 80.0, 260.0))


def with_defaults(settings: Settings) -> Settings:
    """All settings, as requested or else as they are by default."""
    return {setting.name: setting.default for setting in SETTINGS} | settings


# --------------------------------------------------------------------------- noise and latents


def noise(key: int, at: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Noise within ±1 that depends on (key, position) alone: splitmix64, whatever the order of calls."""
    state = at * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & 0xFFFFFFFFFFFFFFFF)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def digests(segment: Segment) -> tuple[int, int]:
    """24 bits each that name the segment, and the request alone (all that the audio half knows of it)."""
    request = repr((segment.voice, segment.language, segment.speed, segment.seed, sorted(segment.settings.items())))
    request_crc = zlib.crc32(request.encode())
    return zlib.crc32(segment.text.encode(), request_crc) & 0xFFFFFF, request_crc & 0xFFFFFF


@dataclass(frozen=True)
class Latents:
    """What a run of latents says; every field has one entry a token."""

    pitch_hz: npt.NDArray[np.float64]
    loudness: npt.NDArray[np.float64]
    timbre: npt.NDArray[np.float64]
    fault: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.pitch_hz)


def write_latents(first: int, piece: int, request: int, latents: Latents) -> bytes:
    """Encode latents at positions ``first`` … of the segment ``piece``."""
    count = len(latents)
    position = np.arange(first, first + count)
    rows = np.empty((count, LATENT_FLOATS), np.float32)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] = _MAGIC, position, piece, request
    rows[:, 4], rows[:, 5] = latents.pitch_hz, latents.loudness
    rows[:, 6], rows[:, 7] = latents.timbre, latents.fault
    at = np.arange(first * LATENT_FLOATS, (first + count) * LATENT_FLOATS, dtype=np.uint64).reshape(rows.shape)
    rows[:, _NOISE_AT:_CHECK_AT] = noise(piece, at[:, _NOISE_AT:_CHECK_AT])
    for row in rows:
        crc = zlib.crc32(row[:_CHECK_AT].tobytes())
        row[_CHECK_AT:] = crc >> 16, crc & 0xFFFF
    return rows.tobytes()


def read_latents(data: bytes, count: int, first: int, piece: int, request: int) -> tuple[Latents, int]:
    """Decode and check ``count`` latents at positions ``first`` …; ``piece`` < 0 takes whatever the first one says.

    Also returns the piece. Raises `EngineError` saying which token is wrong and how.
    """
    if len(data) != count * LATENT_BYTES:
        raise EngineError(f"tokens {first}…: {len(data)} bytes for {count} tokens of {LATENT_BYTES} bytes")
    rows = np.frombuffer(data, np.float32).reshape(count, LATENT_FLOATS)
    for index, row in enumerate(rows, start=first):
        crc = zlib.crc32(row[:_CHECK_AT].tobytes())
        if row[0] != _MAGIC or (row[_CHECK_AT], row[_CHECK_AT + 1]) != (crc >> 16, crc & 0xFFFF):
            raise EngineError(f"token {index}: was changed on the way (checksum)")
        if row[1] != index:
            raise EngineError(f"token {index}: token {int(row[1])} came in its place")
        piece = int(row[2]) if piece < 0 else piece
        if row[2] != piece:
            raise EngineError(f"token {index}: belongs to another segment ({int(row[2]):06x}, not {piece:06x})")
        if row[3] != request:
            raise EngineError(f"token {index}: was made for another voice, language, speed, seed or settings")
    columns = rows.astype(np.float64)
    return Latents(columns[:, 4], columns[:, 5], columns[:, 6], columns[:, 7]), piece
