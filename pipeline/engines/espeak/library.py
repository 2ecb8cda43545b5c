"""espeak-ng's shared library through ctypes.

Everything in it is global: voice, settings, text position, random numbers, and what no call resets:
a counter of pitch periods that roughness and trills are cut from, gain control, the table position
of flutter, the speed-up stream of high rates. The same phonemes therefore sound slightly different
after something else was spoken. `Library.renew` unloads the library and loads it again (0.4 ms),
which is the one state that a fresh process has too: what is spoken next depends on nothing else.

One thread at a time; a `Library` has its own copy of the file, so two of them do not meet.
"""

from __future__ import annotations

import _ctypes
import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_long,
    c_short,
    c_size_t,
    c_uint,
    c_void_p,
)
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.engines.base import EngineError
from pipeline.engines.espeak.folder import DataFolder

RATE_HZ = 22_050
SEPARATOR = "·"
"""Between two phonemes of a word; no phoneme's name contains it."""

BUFFER_MS = 200
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000  # without it a bad data path ends the process
_UTF8, _PHONEMES, _ENDPAUSE = 0x1, 0x100, 0x1000
_WORD, _END = 1, 5
_PARAMETERS = {"rate": 1, "pitch": 3, "pitch_range": 4, "word_gap": 7}

Pcm = npt.NDArray[np.int16]

_log = logging.getLogger(__name__)


class EspeakError(RuntimeError):
    """espeak-ng refused a call that should have worked."""


@dataclass(frozen=True)
class Word:
    """A word began at ``sample`` (22,050 Hz); it is ``length`` characters from ``position`` on, as
    far as the library knows."""

    position: int
    length: int
    sample: int


@dataclass(frozen=True)
class Clause:
    """A clause ended: the next one begins at character ``position`` and at ``sample``."""

    position: int
    sample: int


@dataclass(frozen=True)
class Spoken:
    """What one call made. ``pcm`` ends later than the last clause when it was stopped there."""

    pcm: Pcm
    words: tuple[Word, ...]
    clauses: tuple[Clause, ...]


class _Event(Structure):
    _fields_ = (
        ("type", c_int),
        ("unique_identifier", c_uint),
        ("text_position", c_int),
        ("length", c_int),
        ("audio_position", c_int),
        ("sample", c_int),
        ("user_data", c_void_p),
        ("id", c_char * 8),
    )


_Callback = CFUNCTYPE(c_int, POINTER(c_short), c_int, POINTER(_Event))


class Library:
    """One loaded espeak-ng that reads ``folder``, which it removes at `close`.

    ``parameters``: rate (words a minute), pitch, pitch_range, word_gap (10 ms).
    """

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._data = bytes(folder.path)
        self._path = folder.library
        self._callback = _Callback(self._on_sound)
        self._busy = threading.Lock()
        self._sound: list[bytes] = []
        self._words: list[Word] = []
        self._clauses: list[Clause] = []
        self._one_clause = False
        self._failure: BaseException | None = None
        self._told = False
        self._current: tuple[str, dict[str, int]] | None = None
        self._unspoken = False
        """A voice was set and nothing was spoken since: the library frees its copy of the voice only then."""
        self._library = self._load()

    def renew(self) -> None:
        """Forget everything, voice and settings included."""
        with self._alone():
            self._unload()
            self._library = self._load()

    def use(self, voice: str, parameters: dict[str, int]) -> None:
        """Set the voice (a name linked in the data folder, ``+variant`` behind it) and parameters."""
        if self._current == (voice, parameters):
            return
        with self._alone():
            self._take_up()
            self._current = None
            if status := self._library.espeak_ng_SetVoiceByName(voice.encode()):
                raise EspeakError(f"voice {voice!r} did not load (status {status:#x}); the old one would go on")
            self._unspoken = True
            for name, value in parameters.items():
                if status := self._library.espeak_SetParameter(_PARAMETERS[name], value, 0):
                    raise EspeakError(f"{name} {value} was not taken (status {status:#x})")
            self._current = (voice, dict(parameters))

    def speak(
        self, text: str, *, phonemes: bool = False, pause: bool = False, one_clause: bool = False, seed: int = 0
    ) -> Spoken:
        """Speak a text, or ``[[phonemes]]`` in it; with the last clause's own ``pause``, or 10 ms.

        ``one_clause`` stops after the first.
        """
        with self._alone():
            return self._speak(text, (_PHONEMES if phonemes else 0) | (_ENDPAUSE if pause else 0), one_clause, seed)

    def phonemes(self, clause: str) -> str:
        """One clause in espeak's ASCII phonemes, a space between words, `SEPARATOR` between phonemes.

        The call keeps state from clause to clause, and what a stopped `speak` had read ahead: it is
        given exactly one clause, cleared first, and drained.
        """
        with self._alone():
            self._speak("", 0, False, 0)
            buffer = ctypes.create_string_buffer(clause.encode())
            at = c_void_p(ctypes.addressof(buffer))
            found = []
            while at.value:
                piece = self._library.espeak_TextToPhonemes(byref(at), _UTF8, ord(SEPARATOR) << 8)
                found.append((piece or b"").decode(errors="replace").strip())
            return " ".join(piece for piece in found if piece)

    def stretch(self, pcm: Pcm, speed: float) -> Pcm:
        """The same sound at the same pitch, slowed down to ``speed`` (below 1)."""
        with self._alone():
            room = np.zeros(int(len(pcm) / speed * 1.1) + RATE_HZ, np.int16)
            room[: len(pcm)] = pcm
            made = self._library.sonicChangeShortSpeed(room.ctypes.data, len(pcm), speed, 1.0, 1.0, 1.0, 0, RATE_HZ, 1)
            return room[:made]

    def close(self) -> None:
        """Unload the library and remove its data folder."""
        with self._alone():
            self._unload()
        self._folder.close()

    def _speak(self, text: str, flags: int, one_clause: bool, seed: int) -> Spoken:
        self._sound, self._words, self._clauses = [], [], []
        self._one_clause, self._failure = one_clause, None
        self._unspoken = False
        data = text.encode()
        self._library.espeak_ng_SetRandSeed(seed)
        status = self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, flags | _UTF8, None, None)
        if self._failure is not None:
            raise self._failure
        if status and not (one_clause and self._clauses):
            raise EspeakError(f"espeak-ng failed to speak (status {status:#x})")
        pcm = np.frombuffer(b"".join(self._sound), np.int16)
        return Spoken(pcm, tuple(self._words), tuple(self._clauses))

    def _on_sound(self, pcm: ctypes._Pointer[c_short], samples: int, events: ctypes._Pointer[_Event]) -> int:
        """Called by the library for each buffer; 1 stops it."""
        try:
            if pcm and samples > 0:
                self._sound.append(ctypes.string_at(pcm, samples * 2))
            at = 0
            while (event := events[at]).type:
                at += 1
                if event.type == _WORD:
                    self._words.append(Word(event.text_position - 1, event.length, event.sample))
                elif event.type == _END:
                    self._clauses.append(Clause(event.text_position, event.sample))
                    if self._one_clause:
                        return 1
        except BaseException as error:  # noqa: BLE001 (ctypes would only print it; _speak raises it)
            self._failure = error
            return 1
        return 0

    def _load(self) -> ctypes.CDLL:
        try:
            library = ctypes.CDLL(str(self._path))
        except OSError as error:
            raise EngineError(f"espeak-ng cannot be loaded from {self._path.parent}: {error}") from error
        library.espeak_TextToPhonemes.restype = c_char_p
        library.espeak_ng_SetRandSeed.argtypes = [c_long]
        library.espeak_Synth.argtypes = [c_char_p, c_size_t, c_uint, c_int, c_uint, c_uint, c_void_p, c_void_p]
        library.sonicChangeShortSpeed.argtypes = [c_void_p, c_int, *[c_float] * 4, c_int, c_int, c_int]
        if library.espeak_ng_GetSampleRate() and not self._told:
            self._told = True
            _log.warning("espeak-ng cannot be unloaded on this system: its sound may differ slightly from run to run")
        rate_hz = library.espeak_Initialize(_SYNCHRONOUS, BUFFER_MS, self._data, _DONT_EXIT)
        if rate_hz != RATE_HZ:
            raise EngineError(f"espeak-ng cannot read its data through {self._data.decode()} (answered {rate_hz})")
        library.espeak_SetSynthCallback(self._callback)
        return library

    def _take_up(self) -> None:
        """Have the library take up, and so free, what `use` set last (9 µs); else it would lose 1,360 bytes."""
        if self._unspoken:
            self._speak("", 0, False, 0)

    def _unload(self) -> None:
        self._take_up()
        self._current = None
        self._library.espeak_ng_Terminate()
        handle = self._library._handle  # noqa: SLF001 (ctypes has no public way to unload)
        del self._library
        _ctypes.dlclose(handle)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("espeak-ng is not thread-safe: a half is used by one thread at a time")
        try:
            yield
        finally:
            self._busy.release()


def library_path() -> Path:
    """The shared library that espeakng-loader brings."""
    import espeakng_loader

    return Path(espeakng_loader.get_library_path())


def data_path() -> Path:
    """The data that espeakng-loader brings."""
    import espeakng_loader

    return Path(espeakng_loader.get_data_path())
