"""The named table of what lies in the run directory: sockets, journal, configuration, lock.

The run directory is the supervisor's (mode 0700); everything in it belongs to one run. Whoever
needs a path or an address takes it from here, so that names exist once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

IPC_PATH_BYTES = 100
"""Longest path of a socket: the kernel's limit is 108 (Linux) or 104 (macOS) with the final zero."""


@dataclass(frozen=True)
class Endpoints:
    """Paths and addresses of one run."""

    run_dir: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_dir", Path(self.run_dir))
        if len(bytes(self.work_path)) > IPC_PATH_BYTES:
            raise ValueError(
                f"supervise.run_dir: {self.run_dir} is too long for a socket in it "
                f"(at most {IPC_PATH_BYTES - len('/work.sock')} bytes); set supervise.run_dir to a shorter path"
            )

    @property
    def work_path(self) -> Path:
        """The socket file behind `work`."""
        return self.run_dir / "work.sock"

    @property
    def work(self) -> str:
        """Where workers and the supervisor meet the dispatcher."""
        return f"ipc://{self.work_path}"

    @property
    def text(self) -> Path:
        """Holds the address that the text socket is really bound to (one line)."""
        return self.run_dir / "text"

    @property
    def journal(self) -> Path:
        """The dispatcher's SQLite file."""
        return self.run_dir / "journal.sqlite"

    @property
    def config(self) -> Path:
        """The resolved configuration that every process of the run reads."""
        return self.run_dir / "config.json"

    @property
    def lock(self) -> Path:
        """Held (flock) by the supervisor while the run lives."""
        return self.run_dir / "lock"

    def log(self, state_dir: Path, name: str) -> Path:
        """The log file of the process ``name`` (logs outlive the run, in the state directory)."""
        return Path(state_dir) / f"{name}.log"
