"""Reference recordings: the folder of voices that an engine may clone, and uploads into it."""

from __future__ import annotations

import io
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import soundfile

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
SHORTEST_S = 1.0
LONGEST_S = 120.0
JUST_NOW_NS = 2 * 10**9
UPLOAD_BYTES = 32 * 2**20
UPLOADS_BYTES = 96 * 2**20
"""All unfinished uploads together."""

_NAME = re.compile(r"[\w][\w .+-]{0,62}[\w]|[\w]")


class VoiceError(ValueError):
    """A recording cannot be taken: ``field`` of the request is at fault."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass
class _Upload:
    data: bytearray
    total_bytes: int


class VoiceStore:
    """A folder of recordings, one file a voice, named after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._uploads: dict[tuple[bytes, str], _Upload] = {}
        self._stamp = -1

    def names(self) -> tuple[str, ...]:
        """Voices in the folder; none where there is no folder."""
        try:
            return tuple(sorted({path.stem for path in self.folder.iterdir() if path.suffix.lower() in SUFFIXES}))
        except OSError:
            return ()

    def path(self, voice: str) -> Path | None:
        """The recording of a voice; None: there is none. Of several the first of `SUFFIXES` counts."""
        if not self.folder.is_dir():
            return None
        found = [path for path in self.folder.iterdir() if path.stem == voice and path.suffix.lower() in SUFFIXES]
        return min(found, key=lambda path: SUFFIXES.index(path.suffix.lower()), default=None)

    def changed(self) -> bool:
        """Whether recordings may have come or gone since the last time this was asked (the first time: yes).

        A folder that changed just now may change again within the resolution of its clock: look again then.
        """
        try:
            stamp = self.folder.stat().st_mtime_ns
        except OSError:
            stamp = 0
        changed, self._stamp = stamp != self._stamp, stamp
        return changed or abs(time.time_ns() - stamp) < JUST_NOW_NS

    def add(self, client: bytes, voice: str, offset: int, total_bytes: int, data: bytes) -> tuple[int, bool]:
        """Take the next piece of a recording; bytes received so far, and whether it is complete.

        Raises `VoiceError`; the upload then begins anew with offset 0.
        """
        if not _NAME.fullmatch(voice):
            raise VoiceError("voice", f"{voice!r} is no name for a voice: up to 64 letters, digits, spaces, .+-_")
        key = (client, voice)
        if offset == 0:
            self._begin(key, total_bytes)
        upload = self._uploads.get(key)
        if upload is None or offset != len(upload.data):
            due = len(upload.data) if upload else 0
            raise VoiceError("offset", f"{offset} given where {due} is due")
        if total_bytes != upload.total_bytes or len(upload.data) + len(data) > total_bytes:
            del self._uploads[key]
            raise VoiceError("total_bytes", f"the pieces do not add up to {upload.total_bytes} bytes")
        upload.data += data
        if len(upload.data) < total_bytes:
            return len(upload.data), False
        del self._uploads[key]
        self._store(voice, bytes(upload.data))
        return total_bytes, True

    def forget(self, client: bytes) -> None:
        """Drop the unfinished uploads of a client that has gone."""
        self._uploads = {key: upload for key, upload in self._uploads.items() if key[0] != client}

    def _begin(self, key: tuple[bytes, str], total_bytes: int) -> None:
        if not 0 < total_bytes <= UPLOAD_BYTES:
            raise VoiceError("total_bytes", f"{total_bytes} is not between 1 and {UPLOAD_BYTES} bytes")
        self._uploads.pop(key, None)
        if sum(upload.total_bytes for upload in self._uploads.values()) + total_bytes > UPLOADS_BYTES:
            raise VoiceError("total_bytes", f"unfinished uploads would pass {UPLOADS_BYTES} bytes; try again later")
        self._uploads[key] = _Upload(bytearray(), total_bytes)

    def _store(self, voice: str, data: bytes) -> None:
        """Check that it is sound of a sensible length and write it, whole or not at all."""
        try:
            info = soundfile.info(io.BytesIO(data))
        except soundfile.SoundFileError as error:
            raise VoiceError("data", f"this is no recording that can be read (WAV, FLAC, OGG, MP3): {error}") from error
        if not SHORTEST_S <= info.duration <= LONGEST_S:
            allowed = f"{SHORTEST_S:g} to {LONGEST_S:g} s"
            raise VoiceError("data", f"the recording lasts {info.duration:.1f} s, allowed are {allowed}")
        suffix = {"WAV": ".wav", "FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3"}.get(info.format)
        if suffix is None:
            raise VoiceError("data", f"format {info.format} is not one of WAV, FLAC, OGG, MP3")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                file.write(data)
            for other in SUFFIXES:
                (self.folder / f"{voice}{other}").unlink(missing_ok=True)
            Path(file.name).replace(self.folder / f"{voice}{suffix}")
        except OSError as error:
            raise VoiceError("voice", f"voices.folder {self.folder} cannot be written: {error.strerror}") from error
