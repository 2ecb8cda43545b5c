"""One way to speak, tried on some texts: what is heard when, what it costs, what it sounds like.

The ways of one process (`perf.ways`) have a process of their own and play to a card that is worked out (`perf.card`).
Our pipeline is started by the real `launch`, speaks to its own player (into a WAV file, at the pace of a sound card),
and then once more as a stream, whose sound is looked at where rungs meet.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import psutil
import soundfile

from ipc.client import AsyncClient
from ipc.client_track import Sound as Arrived
from ipc.messages import SAMPLE_RATE, Finished, Started, Work
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

WATCH_MS = 200
AFTER_S = 10.0


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
    """One text spoken in one way. Moments count from the request. ``sound`` is what was made, ``heard`` what came
    out from the request on, waits and gaps included; ``joins`` are samples of ``sound``, ``joins_ms`` when they are
    heard (of a pipeline that ran dry it is not known)."""

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


# --------------------------------------------------------------------------- our pipeline


async def tried_pipeline(engine: Engine, settings: Mapping[str, Cell], spoken: Sequence[str]) -> list[Trial]:
    """The texts, one after another, by a pipeline with these settings. Raises `PerfError`."""
    with tempfile.TemporaryDirectory(prefix="cl-perf-") as name:
        wav = Path(name) / "heard.wav"
        asked = engine.settings() | {"player.output": f"wav:{wav}", "player.pace": "realtime", **settings}
        with running.pipeline("", asked, LOAD_S) as place:
            async with AsyncClient(place.to) as client:
                followed = Followed(client)
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(followed.watch())
                    await (await client.speak(WARM_TEXT)).wait()
                    await followed.streamed(WARM_TEXT)
                    trials = [await followed.spoken(text, wav) for text in spoken]
                    watching.cancel()
                return trials


class Followed:
    """A pipeline that is watched while it speaks."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._works: list[Work] = []
        self._changed = asyncio.Condition()

    async def watch(self) -> None:
        """Keep what every stage did when."""
        async for state in self._client.watch(WATCH_MS, timeline=True):
            async with self._changed:
                self._works += state.timeline
                self._changed.notify_all()

    async def spoken(self, text: str, wav: Path) -> Trial:
        """A text to the speaker, then again as a stream."""
        found = await running.processes(self._client)
        before_s = sum(running.cpu_s(process) for process in found.values())
        before_bytes = wav.stat().st_size
        sent_s = time.perf_counter()
        speech = await self._client.speak(text, seed=SEED)
        accepted_ms = (time.perf_counter() - sent_s) * 1000
        started_ms, ending = 0.0, None
        async for event in speech.events():
            match event:
                case Started(latency_ms=started_ms):
                    pass
                case Finished():
                    ending = event
        total_ms = (time.perf_counter() - sent_s) * 1000
        if ending is None or ending.failed_segments:
            raise PerfError(f"the pipeline did not speak the whole text: {speech.ending}")
        cpu_s = sum(running.cpu_s(process) for process in found.values()) - before_s
        memory = sum(running.memory_bytes(process) for process in found.values())
        # What the dispatcher does not see: the way of the request, and (against us) of the first answer.
        latency = (await self._client.status()).latencies["accepted"]
        hops_ms = max(0.0, accepted_ms - latency.last_ms)
        perceived_ms = started_ms + hops_ms
        rungs = await self._rungs(speech.id, ending.samples)
        heard = heard_of(wav, before_bytes, ending)
        sound, places = await self.streamed(text)
        return Trial(
            perceived_ms=perceived_ms,
            total_ms=total_ms,
            chunks=len(rungs),
            gaps_ms=_gaps_ms(heard, ending),
            cpu_ms=cpu_s * 1000,
            memory_bytes=memory,
            sound=sound,
            joins=places,
            heard=np.concatenate([np.zeros(round(perceived_ms * SAMPLE_RATE / 1000), np.float32), heard]),
            joins_ms=() if ending.underruns else tuple(perceived_ms + 1000 * at / SAMPLE_RATE for at in rungs[1:]),
        )

    async def streamed(self, text: str) -> tuple[Sound, tuple[int, ...]]:
        """The text's sound, and the samples where rungs meet."""
        speech = await self._client.speak(text, output="stream", seed=SEED)
        pieces = [piece.samples async for piece in speech.sounds() if isinstance(piece, Arrived)]
        if not isinstance(speech.ending, Finished):
            raise PerfError(f"the pipeline did not speak the whole text: {speech.ending}")
        sound = np.concatenate(pieces)
        rungs = await self._rungs(speech.id, len(sound))
        return sound, tuple(place for place in rungs[1:] if place < len(sound))

    async def _rungs(self, utterance: str, samples: int) -> list[int]:
        """Where each rung of an utterance begins, of whose sound the timeline has to tell all."""
        async with asyncio.timeout(AFTER_S), self._changed:
            while True:
                works = [one for one in self._works if one.id == utterance and one.worker.startswith("s3gen")]
                # A rung that a full ring took in parts is told in parts; only the first of them has cost time.
                made_s = np.cumsum([0.0, *(one.speech_s for one in works)])
                if math.isclose(made_s[-1] * SAMPLE_RATE, samples, abs_tol=3 * len(works) + 1):
                    return [
                        round(begin_s * SAMPLE_RATE)
                        for one, begin_s in zip(works, made_s, strict=False)
                        if one.speech_s and one.to_s > one.from_s
                    ]
                await self._changed.wait()


def heard_of(wav: Path, before_bytes: int, ending: Finished) -> Sound:
    """What the player has put out of the last utterance, with the gaps in it.

    The file has a silence before it that is none of its own, as it holds one utterance after another; and a gap
    within it is part of the file.
    """
    sound, _ = soundfile.read(wav, dtype="float32")
    new = sound[max(0, before_bytes - 44) // 2 :]
    if not ending.underruns:
        return new[len(new) - ending.samples :]
    first = int(np.flatnonzero(new)[0])
    return new[min(first, len(new) - ending.samples) :]


def _gaps_ms(heard: Sound, ending: Finished) -> tuple[float, ...]:
    """Gaps: as many as there were underruns, each as long as they are on average."""
    silent_ms = (len(heard) - ending.samples) * 1000 / SAMPLE_RATE
    return (max(0.0, silent_ms) / ending.underruns,) * ending.underruns if ending.underruns else ()
