"""Our pipeline, tried on some texts: what is heard when, what it costs, what it sounds like.

It is started by the real `launch` and speaks to its own player (into a WAV file, at the pace of a sound card), and then
says each text once more as a stream, whose sound is looked at where rungs meet.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ipc.client import AsyncClient
from ipc.client_track import Sound as Arrived
from ipc.messages import SAMPLE_RATE, Finished, Work
from perf import running
from perf.common import Cell, PerfError
from perf.joins import Sound
from perf.trials import LOAD_S, SEED, WARM_TEXT, Engine, Trial

WATCH_MS = 200
AFTER_S = 10.0
WAV_HEADER_BYTES = 44


async def tried_pipeline(engine: Engine, settings: Mapping[str, Cell], spoken: Sequence[str]) -> list[Trial]:
    """The texts, one after another, by a pipeline with these settings. Raises `PerfError`."""
    with tempfile.TemporaryDirectory(prefix="cl-perf-") as name:
        wav = Path(name) / "heard.wav"
        asked = engine.settings() | {"player.output": f"wav:{wav}", "player.pace": "realtime", **settings}
        with running.pipeline("", asked, LOAD_S) as place:
            async with AsyncClient(place.to) as client:
                followed = Followed(client)
                watching = asyncio.create_task(followed.watch())
                try:
                    await (await client.speak(WARM_TEXT)).wait()
                    await followed.streamed(WARM_TEXT)
                    return [await followed.trial(text, wav) for text in spoken]
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)


@dataclass(frozen=True)
class Spoken:
    """A text said to the speaker. Times count from the request."""

    id: str
    first_made_ms: float
    perceived_ms: float
    total_ms: float
    cpu_ms: float
    memory_bytes: int
    ending: Finished


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

    async def trial(self, text: str, wav: Path) -> Trial:
        """A text to the speaker, then again as a stream."""
        before_bytes = wav.stat().st_size
        said = await self.spoken(text)
        rungs = await self._rungs(said.id, said.ending.samples)
        heard = heard_of(wav, before_bytes, said.ending)
        sound, places = await self.streamed(text)
        wait = np.zeros(round(said.perceived_ms * SAMPLE_RATE / 1000), np.float32)
        later_ms = [said.perceived_ms + 1000 * place / SAMPLE_RATE for place in rungs[1:]]
        return Trial(
            first_made_ms=said.first_made_ms,
            perceived_ms=said.perceived_ms,
            total_ms=said.total_ms,
            chunks=len(rungs),
            gaps_ms=_gaps_ms(heard, said.ending),
            cpu_ms=said.cpu_ms,
            memory_bytes=said.memory_bytes,
            sound=sound,
            joins=places,
            heard=np.concatenate([wait, heard]),
            joins_ms=() if said.ending.underruns else tuple(later_ms),
        )

    async def spoken(self, text: str) -> Spoken:
        """A text to the speaker, to its end."""
        found = (await running.processes(self._client)).values()
        before_s = sum(map(running.cpu_s, found))
        sent_s = time.perf_counter()
        speech = await self._client.speak(text, seed=SEED)
        accepted_ms = (time.perf_counter() - sent_s) * 1000
        ending = await speech.wait()
        total_ms = (time.perf_counter() - sent_s) * 1000
        cpu_ms = 1000 * (sum(map(running.cpu_s, found)) - before_s)
        memory_bytes = sum(map(running.memory_bytes, found))
        if ending.failed_segments or ending.started_ms is None or ending.first_audio_ms is None:
            raise PerfError(f"the pipeline did not speak the whole text: {ending}")
        # What the dispatcher does not see: the way of the request, and (against us) of the first answer.
        answered_ms = (await self._client.status()).latencies["accepted"].last_ms
        hops_ms = max(0.0, accepted_ms - answered_ms)
        first_ms, heard_ms = ending.first_audio_ms + hops_ms, ending.started_ms + hops_ms
        return Spoken(speech.id, first_ms, heard_ms, total_ms, cpu_ms, memory_bytes, ending)

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
        """Where each rung of an utterance begins, as soon as the timeline tells of all its sound."""
        try:
            async with asyncio.timeout(AFTER_S), self._changed:
                await self._changed.wait_for(lambda: _told(self._works_of(utterance), samples))
        except TimeoutError as error:
            raise PerfError(f"the pipeline's timeline does not tell of all the {samples} samples") from error
        works = self._works_of(utterance)
        begins_s = np.cumsum([0.0, *(one.speech_s for one in works)])
        # A rung that a full ring took in parts is told in parts; only the first of them has cost time.
        return [
            round(begin_s * SAMPLE_RATE)
            for one, begin_s in zip(works, begins_s, strict=False)
            if one.speech_s and one.to_s > one.from_s
        ]

    def _works_of(self, utterance: str) -> list[Work]:
        return [one for one in self._works if one.id == utterance and one.worker.startswith("s3gen")]


def _told(works: Sequence[Work], samples: int) -> bool:
    """Whether this is all of the sound; each piece of work is rounded to a tenth of a millisecond."""
    made = sum(one.speech_s for one in works) * SAMPLE_RATE
    return math.isclose(made, samples, abs_tol=3 * len(works) + 1)


def heard_of(wav: Path, before_bytes: int, ending: Finished) -> Sound:
    """What the player has put out of the last utterance, with the gaps in it.

    The file has a silence before it that is none of its own, as it holds one utterance after another; and a gap
    within it is part of the file.
    """
    sound, _ = soundfile.read(wav, dtype="float32")
    new = sound[max(0, before_bytes - WAV_HEADER_BYTES) // 2 :]
    if not ending.underruns:
        return new[len(new) - ending.samples :]
    first = int(np.flatnonzero(new)[0])
    return new[min(first, len(new) - ending.samples) :]


def _gaps_ms(heard: Sound, ending: Finished) -> tuple[float, ...]:
    """Gaps: as many as there were underruns, each as long as they are on average."""
    silent_ms = (len(heard) - ending.samples) * 1000 / SAMPLE_RATE
    return (max(0.0, silent_ms) / ending.underruns,) * ending.underruns if ending.underruns else ()
