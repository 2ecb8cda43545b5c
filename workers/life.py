"""What every process that the supervisor starts has in common: how it is told what to do, how it
notices that it should leave, and how it makes sure never to outlive its supervisor.

    python -m workers.t3 --index 0 --parent PID --run-dir DIR --arena FD --progress FD --death FD

A worker dies with its supervisor, whatever it is doing: the kernel kills its whole process group when
the supervisor's end of the death pipe closes (Linux), and a thread that waits at that pipe does the
same elsewhere. The group is its own (the supervisor starts each worker in a new session), so its
children go with it. Until that is set up, and where there is no such pipe, the kernel kills it when the
parent dies (Linux): not for longer, as the parent's main thread may end before its descriptors are
closed, and a worker that is killed alone takes the watch for its children with it.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from ipc.endpoints import Endpoints
from ipc.messages import Role
from ipc.progress import ProgressWriter
from pipeline.config import Config, ConfigError
from pipeline.engines.base import EngineError

EXIT_ERROR = 1
EXIT_CONFIG = 2

_PR_SET_PDEATHSIG = 1
_F_SETSIG = 10


@dataclass(frozen=True)
class Arguments:
    """A worker's command line. Descriptors are inherited; -1 where there is none (started by hand)."""

    index: int
    parent: int
    run_dir: Path
    arena: int
    progress: int
    death: int

    def command(self, role: Role) -> list[str]:
        """The command line that `parse` reads (for whoever starts a worker)."""
        numbers = [("index", self.index), ("parent", self.parent), ("arena", self.arena)]
        numbers += [("progress", self.progress), ("death", self.death)]
        flags = [part for name, number in numbers for part in (f"--{name}", str(number))]
        return [sys.executable, "-m", f"workers.{role}", *flags, "--run-dir", str(self.run_dir)]


def parse(role: Role, argv: Sequence[str] | None = None) -> Arguments:
    """Read the command line; exits with 2 and the usage when it is not one."""
    parser = argparse.ArgumentParser(f"workers.{role}", description="Started by `launch`.", allow_abbrev=False)
    parser.add_argument("--index", type=int, default=0, help="which of several workers of this kind")
    parser.add_argument("--parent", type=int, default=0, help="the supervisor's pid (0: not checked)")
    parser.add_argument("--run-dir", type=Path, required=True, help="holds config.json and the sockets")
    for name in ("arena", "progress", "death"):
        parser.add_argument(f"--{name}", type=int, default=-1, help=f"inherited descriptor of the {name}")
    given = parser.parse_args(argv)
    return Arguments(given.index, given.parent, given.run_dir, given.arena, given.progress, given.death)


class Life:
    """One process's life: made first thing in the main thread, closed last.

    ``leaving`` turns true at SIGTERM; SIGINT is the supervisor's to handle. Handlers only record:
    waits that get `wake_fd` end when a signal comes, and the loop acts.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.endpoints = Endpoints(arguments.run_dir)
        self.progress = ProgressWriter(arguments.progress)
        self.leaving = False
        _die_with(arguments.parent)
        if arguments.death >= 0:
            _watch(arguments.death)
            _on_death_of_parent(0)
        self.wake_fd, self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def config(self) -> Config:
        """The run's resolved configuration; raises `ConfigError`."""
        path = self.endpoints.config
        try:
            return msgspec.json.decode(path.read_bytes(), type=Config)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{path}: {error}; it is written by `launch`") from error

    def close(self) -> None:
        """Give back what the process was given."""
        signal.set_wakeup_fd(-1)
        os.close(self.wake_fd)
        os.close(self._wakes)
        self.progress.close()

    def _leave(self, _signal: int, _frame: FrameType | None) -> None:
        self.leaving = True


def run(role: Role, body: Callable[[Life], None], argv: Sequence[str] | None = None) -> int:
    """A worker's main: live, do ``body``, and tell the supervisor why if that fails.

    Returns the exit code: 0 left on purpose, 2 for a configuration that can't work (a restart won't
    help). Any other error is reported and raised, which ends the process with 1.
    """
    life = Life(parse(role, argv))
    try:
        body(life)
    except (ConfigError, EngineError) as error:
        print(f"{role}: {error}", file=sys.stderr, flush=True)
        life.progress.error(str(error))
        return EXIT_CONFIG
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        life.progress.error(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
        raise
    finally:
        life.close()
    return 0


def end(code: int) -> NoReturn:
    """End this process here and now. With torch loaded, taking the interpreter apart takes seconds, in which the
    supervisor waits; whoever comes here has closed everything that anybody else could miss."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; leave at once if it
    already has. ``parent`` comes from the command line: asking here would race with its death."""
    _on_death_of_parent(signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(EXIT_ERROR)


def _on_death_of_parent(number: int) -> None:
    """The signal that the kernel sends this process then (0: none). Does nothing but on Linux."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _watch(death: int) -> None:
    """Kill this process's group as soon as the other end of the pipe ``death`` is closed."""
    if sys.platform == "linux":
        # Opened again: whom a descriptor wakes belongs to the open file, which siblings may share.
        mine = os.open(f"/proc/self/fd/{death}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        leads = os.getpgrp() == os.getpid()
        fcntl.fcntl(mine, fcntl.F_SETOWN, -os.getpid() if leads else os.getpid())
        fcntl.fcntl(mine, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(mine, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    # It also covers a pipe that was closed before the kernel was asked.
    threading.Thread(target=_wait_for_death, args=(death,), name="death-pipe", daemon=True).start()


def _wait_for_death(death: int) -> None:
    while os.read(death, 1):
        continue
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(EXIT_ERROR)


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    return ends
