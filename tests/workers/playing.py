"""The real player process on a ring of the test's own, with a stand-in for the dispatcher."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ipc.channels import DispatcherSockets, FromWorker
from ipc.endpoints import Endpoints
from ipc.messages import Internal, PlayerFacts, PlayerStats, Ready, Stop
from ipc.ring import Arena
from pipeline.config import Config, Flow, Player
from tests.workers.pulse import counter_signal, until
from workers.life import Arguments

ROOT = Path(__file__).resolve().parents[2]
_PIECE = 4800


class PlayerProcess:
    """`python -m workers.player`, fed with counter-coded samples. Use as a context manager."""

    def __init__(self, player: Player, env: Mapping[str, str] = os.environ, cwd: Path = ROOT) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="player-")
        self.run_dir = Path(self._folder.name)
        self._endpoints = Endpoints(self.run_dir)
        config = Config(player=player, flow=Flow(ring_s=4))
        self._endpoints.config.write_bytes(msgspec.json.encode(config))
        self._env = {**env, "PYTHONPATH": str(ROOT)}
        self._cwd = cwd
        self.arena = Arena.create(4 * 24_000, 64, 0)
        self.control = self.arena.control(0)
        self.control.grant(1)
        self.writer = self.arena.writer(0, 1)
        self._process: subprocess.Popen[str] | None = None
        self._sockets = DispatcherSockets(self._endpoints.work, "tcp://127.0.0.1:0", 1)
        self.messages: list[Internal] = []

    def __enter__(self) -> PlayerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._sockets.close()
        self.arena.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def facts(self) -> PlayerFacts:
        """What the player declared last."""
        return [m.facts for m in self.messages if isinstance(m, Ready) and isinstance(m.facts, PlayerFacts)][-1]

    @property
    def stats(self) -> PlayerStats:
        """What the player reported last."""
        return [m for m in self.messages if isinstance(m, PlayerStats)][-1]

    def start(self, prelude: str = "") -> PlayerProcess:
        """Start it and wait until it is ready and its callbacks run. ``prelude``: Python to run first."""
        self.messages.clear()
        begun = time.monotonic_ns()
        self.spawn(prelude)
        until(self.listen(lambda: any(isinstance(m, Ready) for m in self.messages)), "the player is ready")
        until(lambda: self.control.reader_state().callback_ns > begun, "the output takes blocks")
        return self

    def spawn(self, prelude: str = "") -> subprocess.Popen[str]:
        """Start it."""
        fd = self.arena.fd
        command = Arguments(0, os.getpid(), self.run_dir, fd, -1, -1).command("player")
        assert command[1:3] == ["-m", "workers.player"]
        if prelude:
            command[1:3] = [
                "-c",
                prelude + "import sys\nfrom workers.player import run, work\nsys.exit(run('player', work))",
            ]
        self._process = subprocess.Popen(
            command, env=self._env, cwd=self._cwd, pass_fds=[fd], stderr=subprocess.PIPE, text=True
        )
        return self._process

    def listen(self, condition: object) -> object:
        """A condition that takes in what the player sends before it is looked at."""

        def heard() -> object:
            for item in self._sockets.poll(0.0):
                if isinstance(item, FromWorker):
                    self.messages.append(item.message)
            return condition()  # type: ignore[operator]

        return heard

    def send(self, message: Internal) -> None:
        """To the player."""
        (peer,) = [peer for peer in self._sockets.peers if peer.pid == self.pid]
        assert self._sockets.send_worker(peer, message)

    def say(self, samples: int, epoch: int = 1, segment: int = 0) -> int:
        """Write so many counter-coded samples as the ring takes them, without its running dry;
        returns the first one's number."""
        first = self.writer.written
        end = first + samples
        assert self.writer.begin_span(epoch, segment)
        while (at := self.writer.written) < end:
            if not self.writer.write(counter_signal(at, min(_PIECE, end - at))):
                time.sleep(0.01)
        self.writer.complete()
        return first

    def saying(self, samples: int) -> threading.Thread:
        """`say` in a thread, for speech during which something happens."""
        thread = threading.Thread(target=self.say, args=(samples,), daemon=True)
        thread.start()
        return thread

    def until_read(self, sample: int, within_s: float = 15.0) -> None:
        """Wait until the player took everything before ``sample``."""
        until(self.listen(lambda: self.control.read >= sample), f"sample {sample} is taken", within_s)

    def until_stats(self, what: str, condition: object, within_s: float = 15.0) -> None:
        """Wait until the player's last report fulfils a condition."""

        def fits() -> object:
            return any(isinstance(m, PlayerStats) for m in self.messages) and condition(self.stats)  # type: ignore[operator]

        until(self.listen(fits), what, within_s)

    def stop(self) -> str:
        """Ask it to leave; returns what it wrote to stderr."""
        assert self._process is not None
        self.send(Stop())
        until(self.listen(lambda: self._process is not None and self._process.poll() is not None), "it leaves")
        assert self._process.returncode == 0
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stderr is not None
            self._process.stderr.close()
        self._process = None
