"""A private folder through which espeak-ng reads its bundled data.

Four of the library's habits make it necessary:
- it holds the data path and voice names in fixed buffers; a path of 160 bytes fails, a long voice
  name behind a long path overflows. So the folder has a short path, whatever the installation's is.
- it lowers the case of a voice's file name before it opens the file (``en-US`` is never found
  that way), and otherwise reads all voice files to find one (2 ms). So voices stand here in lower case.
- a voice loads its dictionary (Russian: 7 ms), needed or not, and wavers at random, wanted or not.
  So each half gets voice files and dictionaries as it needs them.
- its state is global and partly impossible to reset except by unloading it (see `library`), which
  needs a copy that nobody else in the process has loaded.

A killed process leaves its folder behind; the next start removes folders whose lock nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

PREFIX = "chatterline-espeak-"
MOST_PATH_BYTES = 100
_SETTLED_S = 60.0


def steady_voice(text: bytes) -> bytes:
    """A voice file for the token half: the length of what is spoken depends on nothing before it, and
    pauses are silent."""
    return text + b"\nflutter 0\necho 0 0\n"


def mute_voice(text: bytes) -> bytes:
    """A voice file for the audio half: it does not ask how large its dictionary is."""
    return b"\n".join(line for line in text.splitlines() if not line.startswith(b"dict_min")) + b"\n"


class DataFolder:
    """What the library reads, made from ``source``, and a copy of ``library``; until `close` or the
    process's end.

    ``voices``: (name to give, path below ``source``/lang). ``edit`` changes voice and variant files.
    ``dictionaries`` false: all are the smallest one, which is enough to speak phonemes. ``path`` is
    what to initialise with.
    """

    def __init__(
        self,
        source: Path,
        library: Path,
        voices: Iterable[tuple[str, str]],
        edit: Callable[[bytes], bytes],
        dictionaries: bool,
    ) -> None:
        parent = short_parent()
        sweep(parent)
        root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(root, os.O_RDONLY | os.O_CLOEXEC)  # systemd's cleaner spares locked folders too
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._remove = weakref.finalize(self, _remove, root, lock, os.getpid())
        self.path = root / "espeak-ng-data"
        (self.path / "voices" / "!v").mkdir(parents=True)
        smallest = min(source.glob("*_dict"), key=lambda path: path.stat().st_size)
        for entry in source.iterdir():
            if entry.name not in ("lang", "voices"):
                small = entry.match("*_dict") and not dictionaries
                (self.path / entry.name).symlink_to(smallest if small else entry)
        files = [(name, source / "lang" / below) for name, below in voices]
        files += [(f"!v/{entry.name}", entry) for entry in (source / "voices" / "!v").iterdir()]
        for name, entry in files:
            (self.path / "voices" / name).write_bytes(edit(entry.read_bytes()))
        self.library = root / library.name
        shutil.copyfile(library, self.library)

    def close(self) -> None:
        """Remove the folder."""
        self._remove()


def short_parent() -> Path:
    """The system's folder for temporary files, or /tmp where that path is too long for espeak-ng."""
    parent = Path(tempfile.gettempdir())
    return parent if len(os.fsencode(parent)) <= MOST_PATH_BYTES else Path("/tmp")  # noqa: S108 (mkdtemp makes it ours)


def sweep(parent: Path) -> None:
    """Remove folders that killed processes of this user left behind."""
    for root in parent.glob(PREFIX + "*"):
        try:
            status = root.stat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _SETTLED_S:
                continue
            lock = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # somebody else is just removing it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(root, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _remove(root: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has the finalizer too, but not the right
        shutil.rmtree(root, ignore_errors=True)
        os.close(lock)
