"""The whole pipeline under test: the real `launch` with all its processes, in folders of its own.

`Pipeline` is the handle that the fixture `pipeline` (conftest) gives to a test. `until` is how tests
wait: never a bare sleep, always a deadline and a sentence for when it passes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import soundfile
import yaml

from chatterline import Client
from ipc.messages import SAMPLE_RATE
from pipeline.engines.base import (
    AudioModel,
    AudioStep,
    EngineConfig,
    Samples,
    Segment,
    TokenModel,
    TokenStep,
    load_engine,
)
from pipeline.text import TextSegmenter

ROOT = Path(__file__).parents[1]
ENGINES = {"espeak": "espeak", "babble": "tests.engines.babble:ENGINE", "sine": "tests.engines.sine:ENGINE"}
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

Pcm = npt.NDArray[np.int16]
_Seen = TypeVar("_Seen")


def until(look: Callable[[], _Seen], what: str, timeout_s: float = 20.0, every_s: float = 0.01) -> _Seen:
    """The first true thing that ``look`` sees. Fails with ``what`` when it takes longer than ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)
    return seen


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """``{"flow.ahead_s": 2}`` as pipeline.yaml nests it."""
    tree: dict[str, Any] = {}
    for name, value in dotted.items():
        *sections, key = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return tree


def own_memory_bytes(process: psutil.Process) -> int:
    """What a process has allocated for itself: without shared memory and files, where the system tells."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except FileNotFoundError:
        return int(process.memory_full_info().uss)
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))


def pcm(samples: Samples) -> Pcm:
    """Float samples as they are written to files and sent to listeners."""
    rounded: Pcm = np.rint(np.clip(samples, -1.0, 1.0) * np.float32(32767)).astype(np.int16)
    return rounded


def trimmed(samples: Pcm) -> Pcm:
    """Without the zeros at both ends."""
    heard = np.flatnonzero(samples)
    kept: Pcm = samples[heard[0] : heard[-1] + 1] if len(heard) else samples[:0]
    return kept


def direct_sound(engine: str, text: str, seed: int, voice: str = "", language: str = "", **asked: Any) -> Samples:
    """The sound of a whole text, made by an engine's two halves in this process, without any pipeline.

    Of ``asked`` there may be ``speed``, ``settings`` and the engine's ``options``. What a pipeline makes of the
    same text, given at once, is the same sample for sample.
    """
    tokens, audio = _halves(engine, json.dumps(asked.get("options", {})))
    voice, language = load_engine(ENGINES[engine]).resolve(tokens.facts, voice, language)
    facts = tokens.facts
    cutter = TextSegmenter(language, facts.longest_chars, facts.shortest_chars, facts.sentence_pause_ms)
    parts: list[Samples] = []
    for number, piece in enumerate([*cutter.feed(text), *cutter.end()]):
        segment = Segment(
            piece.text, piece.boundary, voice, language, asked.get("speed", 1.0), seed, asked.get("settings", {})
        )
        if piece.text.strip():
            parts.append(_segment_sound(tokens, audio, number, segment))
        parts.append(np.zeros(piece.pause_ms * SAMPLE_RATE // 1000, np.float32))
    return np.concatenate(parts)


@lru_cache(maxsize=8)
def _halves(engine: str, options: str) -> tuple[TokenModel, AudioModel]:
    """Loaded once: that takes longer than a short text."""
    config = EngineConfig(max_batch=8, options=json.loads(options))
    loaded = load_engine(ENGINES[engine])
    return loaded.tokens(config, lambda *_: None), loaded.audio(config, lambda *_: None)


def _segment_sound(tokens: TokenModel, audio: AudioModel, stream: int, segment: Segment) -> Samples:
    tokens.admit(stream, segment)
    audio.open(stream, replace(segment, text=""))
    ends: list[int] = []
    final = False
    while not final:
        for step in tokens.step():
            assert isinstance(step, TokenStep), step
            if step.tokens or step.final:
                audio.feed(stream, step.tokens, step.data, step.final)
                ends.append((ends[-1] if ends else 0) + step.tokens)
            final = step.final
    parts = []
    # An engine with a ladder takes it in one; others render each piece as it was fed.
    for upto in ends[-1:] if audio.facts.ladder else ends:
        rendered = audio.render([(stream, upto)])[0]
        assert isinstance(rendered, AudioStep), rendered
        parts.append(rendered.samples)
    audio.close_stream(stream)
    return np.concatenate(parts)


def _lives(process: psutil.Process) -> bool:
    """It runs, or waits to; it may die while that is asked."""
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Pipeline:
    """A running pipeline.

    ``to`` is its text address. By default sound goes nowhere, as fast as it is made; ``output="wav"``
    writes the file `wav`. ``settings`` are keys of pipeline.yaml with dots (``flow.ahead_s``);
    ``environment`` is added to this process's (a sound server's, for instance).
    """

    def __init__(
        self,
        engine: str,
        settings: Mapping[str, Any] | None = None,
        *arguments: str,
        output: str = "none",
        ready: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.engine = engine
        self.exit_code: int | None = None
        self._stack = ExitStack()
        self._known: dict[int, psutil.Process] = {}
        # Short, as sockets lie in it and the kernel allows them 100 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
        self.wav = self.folder / "speech.wav"
        self._output = self.folder / "launch.out"
        config = {
            "model.engine": ENGINES.get(engine, engine),
            "voices.folder": str(self.folder / "voices"),
            "text.bind": "tcp://127.0.0.1:0",
            "gateway.bind": "off",
            "player.output": f"wav:{self.wav}" if output == "wav" else output,
            "player.pace": "free",
            "supervise.state_dir": str(self.folder / "state"),
        } | dict(settings or {})
        self.config_file = self.folder / "pipeline.yaml"
        self.config_file.write_text(yaml.safe_dump(nested(config)), encoding="utf-8")
        self.process = self._launch(arguments, environment or {})
        if ready:
            self.wait_ready()

    def _launch(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        env = {**os.environ, **environment} | {
            "PYTHONPATH": str(ROOT),  # where the workers find tests.engines
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "PYTHONUNBUFFERED": "1",
        }
        (self.folder / "run").mkdir(mode=0o700)
        command = [sys.executable, "-m", "launch", str(self.config_file), *arguments]
        with self._output.open("wb") as out:
            return subprocess.Popen(
                command, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    # ---------------------------------------------------------------- looking

    def wait_ready(self) -> None:
        """Wait until every process is ready."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"launch ended with {self.process.returncode} before it was ready\n{self.log()}")
            return re.search(r"supervisor +ready in ", self.printed()) is not None

        until(ready, f"the pipeline is ready\n{self.log()}", START_TIMEOUT_S)
        self._remember()

    @property
    def to(self) -> str:
        """The text address."""

        def said() -> str:
            found = re.search(r"text socket (\S+?),? ", self.printed())
            return found[1] if found else ""

        return until(said, "launch says its text socket")

    @property
    def url(self) -> str:
        """The gateway's address, once it listens (of a pipeline with ``gateway.bind``)."""

        def said() -> str:
            found = re.search(r"gateway 0 +ready in .*?(http://\S+)", self.printed())
            return found[1] if found else ""

        return until(said, f"the gateway is ready\n{self.log()}", START_TIMEOUT_S)

    def client(self, **options: Any) -> Client:
        """A client of its own; closed when the pipeline stops."""
        return self._stack.enter_context(Client(self.to, **options))

    def printed(self) -> str:
        """What launch has printed so far."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def log(self) -> str:
        """All that was printed and logged, for a failure's message."""
        logs = sorted((self.folder / "state").rglob("*.log"))
        parts = [("launch", self._output), *((path.stem, path) for path in logs)]
        return "\n".join(f"--- {name}\n{path.read_text(errors='replace')[-6000:]}" for name, path in parts)

    def children(self) -> dict[str, list[psutil.Process]]:
        """The living processes by role, in the order of their index."""
        found: dict[str, list[tuple[int, psutil.Process]]] = {}
        for child in self._remember():
            with suppress(psutil.Error):
                command = " ".join(child.cmdline())
                # A child that has not become a worker yet still has the command line of launch.
                if named := re.search(r" workers\.(\w+) .*--index (\d+)", command):
                    found.setdefault(named[1], []).append((int(named[2]), child))
        return {role: [child for _, child in sorted(some, key=lambda one: one[0])] for role, some in found.items()}

    def _remember(self) -> list[psutil.Process]:
        """Every living descendant; all that were ever seen are known at the end."""
        try:
            living = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        living = [child for child in living if _lives(child)]
        self._known |= {child.pid: child for child in living}
        return living

    def sound(self) -> Pcm:
        """All that the player wrote, once it has stopped; without the silence at both ends."""
        samples, rate = soundfile.read(self.wav, dtype="int16")
        assert rate == SAMPLE_RATE
        return trimmed(samples)

    # ---------------------------------------------------------------- doing

    def pid(self, role: str, index: int = 0) -> int:
        """The process that holds this place; waits while it is being restarted."""

        def find() -> int:
            some = self.children().get(role, [])
            return some[index].pid if index < len(some) else 0

        return until(find, f"there is a {role} {index}")

    def kill(self, role: str, index: int = 0, signal_number: int = signal.SIGKILL) -> int:
        """Kill (or stop, …) a process; returns the pid that it had."""
        pid = self.pid(role, index)
        os.kill(pid, signal_number)
        return pid

    def wait_replaced(self, role: str, pid: int, timeout_s: float = 20.0) -> int:
        """Wait until another process has the place of ``pid``; returns its pid."""

        def another() -> int:
            return next((child.pid for child in self.children().get(role, []) if child.pid != pid), 0)

        return until(another, f"{role} is started again after {pid}\n{self.log()}", timeout_s)

    def stop(self, signal_number: int = signal.SIGINT, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask launch to leave, as Ctrl-C does, and wait; returns its exit code."""
        self._remember()
        self._stack.close()
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for launch to end by itself; returns its exit code."""
        try:
            self.exit_code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"launch did not end within {timeout_s:g} s\n{self.log()}") from None
        return self.exit_code

    # ---------------------------------------------------------------- afterwards

    def leftovers(self) -> list[str]:
        """What a stopped pipeline has left behind: processes, run directories, sockets."""
        alive = {child.pid: child for child in [*self._known.values(), *self._related()]}
        left = [f"process {child.pid}" for child in psutil.wait_procs(list(alive.values()), timeout=2.0)[1]]
        left += [f"{path.name} in the run folder" for path in (self.folder / "run").glob("*/run-*")]
        return left + [f"socket {path}" for path in self.folder.rglob("*.sock")]

    def _related(self) -> list[psutil.Process]:
        """Every process that names this pipeline's folder on its command line."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(str(self.folder) in word for word in process.info["cmdline"] or [])
        ]

    def close(self) -> None:
        """End it whatever has happened, and remove its folder."""
        self._stack.close()
        for child in [*self._remember(), *self._known.values(), *self._related()]:
            with suppress(psutil.Error):
                child.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)
