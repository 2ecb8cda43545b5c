"""The run directory and the locks: one owner, private, swept when its owner is gone.

    $XDG_RUNTIME_DIR/chatterline/        or  <temporary folder>/chatterline-<uid>/ ; 0700, ours
        sweep.lock                       held for the moment in which directories are made or swept
        text-<address>.lock              flock held while a pipeline serves that address
        run-<pid>/                       sockets, journal, config.json, lock

A lock is a flock: it ends with its holder, however that ends. Its file holds the pid and the text
address, so that a second launch can say who is in the way.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ipc.endpoints import Endpoints
from launch.mps import end_left_over

NAME = "chatterline"
SOCKET_PATH_BYTES = 90
"""Longest path of a socket here: well below the kernel's limit (104 on macOS)."""
OURS = ("work.sock", "text", "journal.sqlite*", "config.json", "player-output")
"""What processes write into the run directory, besides the lock."""
SWEEP_TIMEOUT_S = 5.0
"""Others make and sweep directories within milliseconds."""


class RunDirError(Exception):
    """The run directory cannot be used; the message says which and what to do."""


class AlreadyRunning(Exception):
    """Another pipeline holds what this one needs."""


class Lock:
    """An flock'd file that names its holder."""

    def __init__(self, path: Path, note: str, what: str) -> None:
        """Take the lock; raises `AlreadyRunning` naming the holder of ``what``, and `RunDirError`."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not _locked(self._fd):
            holder = os.read(self._fd, 4096).decode("utf-8", "replace").split("\n")
            os.close(self._fd)
            pid, address = [*holder, "", ""][:2]
            serving = f", which serves {address}" if address else ""
            raise AlreadyRunning(f"{what} is in use by the pipeline with pid {pid or 'unknown'}{serving}")
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n{note}\n".encode(), 0)
        except OSError as error:  # a full disk
            self.release()
            raise _unwritable(path, error) from error

    def release(self) -> None:
        """Let go; the file stays, as removing it would race with the next holder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass
class RunDir:
    """The directory of this run, held until `close`."""

    endpoints: Endpoints
    locks: tuple[Lock, ...]
    remove: bool
    """Whether the directory is ours to remove (a configured one stays, emptied of what is ours)."""

    def write_config(self, config: bytes) -> None:
        """Put the run's configuration where its processes read it. Raises `RunDirError`."""
        try:
            self.endpoints.config.write_bytes(config)
        except OSError as error:
            raise _unwritable(self.endpoints.config, error) from error

    def close(self) -> None:
        """Remove what the run left and give the locks back."""
        ours = self.endpoints
        if self.remove:
            shutil.rmtree(ours.run_dir, ignore_errors=True)
        else:
            _clear(ours.run_dir)
        for lock in self.locks:
            lock.release()


def open_run_dir(configured: str, address: str) -> RunDir:
    """Make the run directory (``configured``, or a fresh private one), lock it and the text address.

    Sweeps directories of runs that are gone. Raises `AlreadyRunning` and `RunDirError`.
    """
    base = _base()
    with _sweeping(base):
        sweep(base)
        text = Lock(base / f"text-{_slug(address)}.lock", address, address)
        try:
            run_dir = _configured(Path(configured)) if configured else _fresh(base)
            lock = Lock(run_dir / "lock", address, f"supervise.run_dir {run_dir}")
        except BaseException:
            text.release()
            raise
    if configured:
        _clear(run_dir)  # of a run that was killed: what it had not said is not said by this one
    return RunDir(Endpoints(run_dir), (lock, text), remove=not configured)


def state_dir(configured: str) -> Path:
    """Where logs live: ``configured``, else $XDG_STATE_HOME/chatterline, else ~/.local/state/chatterline."""
    if configured:
        return Path(configured).expanduser()
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "state") / NAME


def log_dir(state: Path, address: str) -> Path:
    """Where the logs of a pipeline at this text address go, so that two pipelines do not share files."""
    any_port = address.endswith((":0", ":*"))
    return state / (f"{_slug(address)}-{os.getpid()}" if any_port else _slug(address))


def sweep(base: Path) -> list[Path]:
    """Remove run directories and locks that nobody holds; returns the directories. Only within `_sweeping`."""
    gone = []
    for path in base.glob("text-*.lock"):
        try:
            lock = Lock(path, "", str(path))
        except (AlreadyRunning, RunDirError, OSError):
            continue
        path.unlink()
        lock.release()
    for path in base.glob("run-*"):
        if path.is_symlink() or not path.is_dir():
            continue
        try:
            Lock(path / "lock", "", str(path)).release()
        except (AlreadyRunning, RunDirError, OSError):
            continue
        end_left_over(path)
        shutil.rmtree(path, ignore_errors=True)
        gone.append(path)
    return gone


@contextmanager
def _sweeping(base: Path) -> Iterator[None]:
    """One launch at a time makes and sweeps, so that none removes what another has just made."""
    fd = os.open(base / "sweep.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + SWEEP_TIMEOUT_S
        while not _locked(fd):
            if time.monotonic() > deadline:
                raise RunDirError(f"{base / 'sweep.lock'} is held by another launch that does not go on; stop it")
            time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _clear(run_dir: Path) -> None:
    """Remove what a run leaves in a directory that is not ours to remove, and nothing else."""
    end_left_over(run_dir)
    for pattern in OURS:
        for path in run_dir.glob(pattern):
            path.unlink(missing_ok=True)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _base() -> Path:
    """The first place that is private, writable and short enough."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    own = f"{NAME}-{os.getuid()}"
    places = [Path(tempfile.gettempdir()) / own, Path("/tmp") / own]  # noqa: S108 - checked to be ours below
    if runtime.startswith("/"):
        places.insert(0, Path(runtime) / NAME)
    reasons = []
    for place in dict.fromkeys(places):
        try:
            _check_length(place / f"run-{os.getpid()}")
            place.mkdir(mode=0o700, exist_ok=True)
            _check_private(place)
            return place
        except (RunDirError, OSError) as error:
            reasons.append(str(error))
    raise RunDirError("no folder for the run directory; set supervise.run_dir: " + "; ".join(reasons))


def _fresh(base: Path) -> Path:
    path = base / f"run-{os.getpid()}"
    if path.exists():  # of an earlier process with our pid whose lock is held by nobody: swept before
        path = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=base))
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _configured(path: Path) -> Path:
    path = path.expanduser().absolute()
    try:
        _check_length(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(path)
    except OSError as error:
        raise RunDirError(f"supervise.run_dir: {error}") from error
    return path


def _check_length(path: Path) -> None:
    socket = Endpoints(path).work_path if len(bytes(path)) < SOCKET_PATH_BYTES else path
    if len(bytes(socket)) > SOCKET_PATH_BYTES:
        raise RunDirError(
            f"{path} is too long for the sockets in it ({len(bytes(socket))} bytes, at most {SOCKET_PATH_BYTES}); "
            "set supervise.run_dir to a shorter path"
        )


def _check_private(path: Path) -> None:
    """Ours, a real directory, and closed to everybody else."""
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise RunDirError(f"{path} is not a directory of this user; remove it or set supervise.run_dir")
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise RunDirError(f"{path} is open to other users (mode {stat.S_IMODE(facts.st_mode):o}); chmod 700 {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunDirError(f"{path} is not writable; set supervise.run_dir to a folder that is")


def _unwritable(path: Path, error: OSError) -> RunDirError:
    return RunDirError(f"{path} cannot be written: {error.strerror}; make room or set supervise.run_dir")


def _slug(address: str) -> str:
    """A file name for an address."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", address.partition("://")[2]).strip("-")
    return plain if len(plain) <= 64 else hashlib.sha256(address.encode()).hexdigest()[:16]
