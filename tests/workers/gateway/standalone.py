"""A gateway of its own in front of a pipeline that runs: as one would start it by hand, with other settings."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from launch.table import environment
from tests.harness import until

WEB = httpx.Client(verify=False, timeout=30)
"""For all tests, as making one takes as long as a hundred requests; `conftest` closes it."""

START_S = 30.0
LEAVE_S = 10.0


@dataclass
class Standalone:
    """The process. ``url`` is where it listens."""

    process: subprocess.Popen[bytes]
    printed: Path
    url: str = ""

    @property
    def ws(self) -> str:
        """The same for WebSockets."""
        return self.url.replace("http://", "ws://")

    def log(self) -> str:
        """All that it has printed."""
        return self.printed.read_text(encoding="utf-8", errors="replace")


@contextmanager
def gateway(to: str, *settings: str) -> Iterator[Standalone]:
    """A gateway to the pipeline at ``to`` with these keys of pipeline.yaml (``gateway.`` in front is meant). It has
    to leave in order."""
    command = [sys.executable, "-m", "workers.gateway", "--to", to, "--set", "gateway.bind=127.0.0.1:0"]
    for setting in settings:
        command += ["--set", f"gateway.{setting}"]
    with tempfile.TemporaryDirectory(prefix="cl-gateway-") as folder:
        printed = Path(folder) / "printed"
        with printed.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment(), cwd=folder)
        running = Standalone(process, printed)

        def listening() -> str:
            assert process.poll() is None, running.log()
            found = re.search(r"(http://[\d.]+:\d+)", running.log())
            return found[1] if found else ""

        try:
            running.url = until(listening, "the gateway listens", START_S)
            yield running
            process.send_signal(signal.SIGINT)
            assert process.wait(LEAVE_S) == 0, running.log()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
