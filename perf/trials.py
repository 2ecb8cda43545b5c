"""One way to speak, tried on a text: what is heard when, what it costs, what it sounds like.

The ways of one process (`perf.ways`) have a process of their own here, and play to a card that is worked out
(`perf.card`). Our pipeline is tried by `perf.trials_pipeline`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import psutil

from ipc.messages import SAMPLE_RATE
from launch.table import environment
from perf import card, joins, running
from perf.card import Handed
from perf.common import Cell, PerfError
from perf.joins import Sound
from perf.ways import Answer, Ask, Ready

WARM_TEXT = "This comes first, so that nothing is cold."
SEED = 1
LOAD_S = 600.0
ASK_S = 600.0
JOIN_SAMPLES = 4
"""A join of the pipeline is known to a tenth of a millisecond."""


@dataclass(frozen=True)
class Engine:
    """What is compared: an engine, its weights, the device, its options (of ``model.options``)."""

    name: str
    weights: str = "hub"
    device: str = "auto"
    options: Mapping[str, Cell] = field(default_factory=dict)

    def settings(self) -> dict[str, Cell]:
        """Of a pipeline with it."""
        asked: dict[str, Cell] = {"model.engine": self.name, "model.weights": self.weights}
        asked |= {"stages.t3.device": self.device, "stages.s3gen.device": self.device}
        return asked | ({"model.options": json.dumps(dict(self.options))} if self.options else {})


@dataclass(frozen=True)
class Trial:
    """One text spoken in one way. Moments count from the request.

    ``first_made_ms`` is when the first sample was made, ``perceived_ms`` when it is heard. ``sound`` is what was made,
    ``heard`` what came out from the request on, waits and gaps included; ``joins`` are samples of ``sound``,
    ``joins_ms`` when they are heard (of a pipeline that ran dry it is not known).
    """

    first_made_ms: float
    perceived_ms: float
    total_ms: float
    chunks: int
    gaps_ms: tuple[float, ...]
    cpu_ms: float
    memory_bytes: int
    sound: Sound
    joins: tuple[int, ...]
    heard: Sound
    joins_ms: tuple[float, ...] = ()

    @property
    def speech_s(self) -> float:
        """How long the sound lasts."""
        return len(self.sound) / SAMPLE_RATE

    @property
    def join_step(self) -> float | None:
        """The largest step at a join as a share of the 99.9 % quantile of all steps (None: no join)."""
        return joins.steps_at(self.sound, self.joins, JOIN_SAMPLES)[0] if self.joins else None

    @property
    def join_flux(self) -> float | None:
        """How much the spectrum changes across joins; 1: as much as elsewhere."""
        return joins.flux_at(joins.log_mel(self.sound), self.joins) if self.joins else None


# --------------------------------------------------------------------------- one process


class OneProcess:
    """A process that speaks in one way. Raises `PerfError` when it fails or dies."""

    def __init__(self, process: subprocess.Popen[bytes], complaint: Path, sound: Path) -> None:
        self._process, self._complaint, self._sound = process, complaint, sound
        self.ready = msgspec.json.decode(self._line(LOAD_S), type=Ready)
        if self.ready.error:
            raise PerfError(self.ready.error)

    def speak(self, ask: Ask) -> tuple[Answer, Sound]:
        """How one text was made."""
        assert self._process.stdin is not None
        ask = msgspec.structs.replace(ask, sound=str(self._sound), seed=SEED)
        self._process.stdin.write(msgspec.json.encode(ask) + b"\n")
        self._process.stdin.flush()
        answer = msgspec.json.decode(self._line(ASK_S), type=Answer)
        if answer.error:
            raise PerfError(answer.error)
        return answer, np.load(self._sound)

    def memory_bytes(self) -> int:
        """What the process takes now."""
        return running.memory_bytes(psutil.Process(self._process.pid))

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        watch = threading.Timer(timeout_s, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            last = self._complaint.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise PerfError(f"a way's process ended: {last[0]}")
        return line


@contextmanager
def one_process(way: str, engine: Engine) -> Iterator[OneProcess]:
    """Such a process, loaded and warm."""
    command = [sys.executable, "-m", "perf.ways", "--way", way, "--engine", engine.name, "--weights", engine.weights]
    command += ["--device", engine.device, "--options", json.dumps(dict(engine.options))]
    with tempfile.TemporaryDirectory(prefix="cl-perf-") as name:
        complaint = Path(name) / "stderr"
        with complaint.open("wb") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment()
            )
        try:
            speaker = OneProcess(process, complaint, Path(name) / "sound.npy")
            speaker.speak(Ask(text=WARM_TEXT, sound=""))
            yield speaker
        finally:
            process.kill()
            process.communicate()


def tried(speaker: OneProcess, ask: Ask, least_samples: int) -> Trial:
    """A text, played once ``least_samples`` are there."""
    answer, sound = speaker.speak(ask)
    return trial_of(answer, sound, speaker.memory_bytes(), least_samples)


def trial_of(answer: Answer, sound: Sound, memory_bytes: int, least_samples: int) -> Trial:
    """What a card hears of it."""
    stretches = card.play([Handed(at_s, samples) for at_s, samples in answer.handed], least_samples)
    return Trial(
        first_made_ms=(answer.handed[0][0] - answer.asked_s) * 1000,
        perceived_ms=(stretches[0].at_s - answer.asked_s) * 1000,
        total_ms=(stretches[-1].end_s - answer.asked_s) * 1000,
        chunks=len(answer.joins) + 1,
        gaps_ms=tuple(1000 * gap_s for gap_s in card.gaps_s(stretches)),
        cpu_ms=answer.cpu_s * 1000,
        memory_bytes=memory_bytes,
        sound=sound,
        joins=answer.joins,
        heard=card.as_heard(sound, stretches, answer.asked_s),
        joins_ms=tuple((card.heard_at_s(stretches, join) - answer.asked_s) * 1000 for join in answer.joins),
    )
