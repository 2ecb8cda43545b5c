"""The programs of `perf.soak`: random texts, voices, listeners, cancels and kills, and what is noted beside."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil

from ipc.client import AsyncClient, SpeakOptions
from ipc.client_errors import PipelineError
from ipc.client_speech import AsyncSpeech
from ipc.client_track import Ending
from ipc.messages import Cancelled, Finished
from perf import common, running, texts
from perf.listening import Ear

T = TypeVar("T")

MIB = 2**20
KNOWN_TEXTS = 40
PATIENCE_S = 30.0
"""How long a dispatcher that was killed may be away, on a busy machine."""

KILLED = ("t3", "s3gen", "dispatcher", "player")
CANCELLED_SHARE = 0.15
GROWING_SHARE = 0.3
PREBUFFER_S = 0.1
"""A listener at the pace of the ear begins to play so long after its first sound."""

PROBE_TEXT = "Yes."
END_S = {"free": 120.0, "realtime": 600.0}
"""An utterance that is not over by then is lost."""

CANCEL_WITHIN_S = {"free": 0.1, "realtime": 10.0}
PLAYER_EVERY_S = 0.5
EXPLAINED_S = 10.0
"""An underrun so soon after a kill is the kill's: a worker is loaded again and makes again what was lost."""


@dataclass
class Look:
    """How everything stands: by process, and for the whole pipeline."""

    speech_s: float
    memory_bytes: dict[str, int]
    descriptors: dict[str, int]
    threads: dict[str, int]
    first_sound_ms: float


@dataclass
class Underruns:
    """Gaps in sound that somebody hears, and which of them a kill explains. Times by the monotonic clock."""

    kills_s: list[float] = field(default_factory=list)
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: Counter[str] = field(default_factory=Counter)

    def heard(self, where: str, count: int, since_s: float, now_s: float) -> None:
        """So many gaps between ``since_s`` and now."""
        known = any(since_s - EXPLAINED_S <= kill_s <= now_s for kill_s in self.kills_s)
        (self.explained if known else self.unexplained)[where] += count


@dataclass
class Tally:
    """What the programs saw."""

    speech_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    sounds: dict[int, str] = field(default_factory=dict)
    """Digest of the sound by known text."""
    wrong: list[str] = field(default_factory=list)
    underruns: Underruns = field(default_factory=Underruns)
    late_blocks: int = 0
    """Of the output: the operating system woke the player too late."""

    def ended(self, ending: Ending | None, cancelled: bool) -> None:
        """An utterance is over."""
        match ending:
            case Finished():
                self.speech_s += ending.seconds
                self.counts["finished"] += 1
                self.counts["underruns told with finished"] += ending.underruns
            case Cancelled() if cancelled:
                self.speech_s += ending.seconds
                self.counts["cancelled"] += 1
            case _:
                self.wrong.append(f"ended as {ending}")

    def heard(self, number: int, pcm: bytes) -> None:
        """A known text was heard to its end."""
        digest = hashlib.sha256(pcm).hexdigest()
        if self.sounds.setdefault(number, digest) != digest:
            self.wrong.append(f"text {number} sounded different")


class Soak:
    """One pipeline under random use. ``given``: ``pace``, ``seed``, ``speakers``, ``listeners``, ``chars`` (of the
    longest text), ``look_every_s``, ``kill_every_s``."""

    def __init__(self, to: str, given: argparse.Namespace) -> None:
        self._to = to
        self._given = given
        self._until_s = 0.0
        self.tally = Tally()
        self.looks: list[Look] = []
        self.kills: Counter[str] = Counter()

    async def part(self, speech_h: float, *others: Callable[[AsyncClient], Coroutine[Any, Any, None]]) -> float:
        """Use the pipeline until so much more was spoken, with ``others`` beside; the clock's seconds."""
        self._until_s = self.tally.speech_s + speech_h * 3600
        began_s = time.monotonic()
        async with AsyncClient(self._to) as client:
            beside = [asyncio.create_task(other(client)) for other in others]
            programs = [self._program(number) for number in range(self._given.speakers + self._given.listeners)]
            try:
                await asyncio.gather(*programs)
            finally:
                for task in beside:
                    task.cancel()
                for done in await asyncio.gather(*beside, return_exceptions=True):
                    if isinstance(done, Exception):
                        raise done
        return time.monotonic() - began_s

    async def _program(self, number: int) -> None:
        """A program with a connection of its own: says one thing after another."""
        rng = random.Random(f"{self._given.seed} {number} {self.tally.speech_s}")
        listens = number >= self._given.speakers
        async with AsyncClient(self._to) as client:
            while self.tally.speech_s < self._until_s:
                options = SpeakOptions(conversation=f"program {number}", priority=rng.choice(("low", "normal", "high")))
                async with asyncio.timeout(END_S[self._given.pace]):
                    await (self._listen(client, rng, options) if listens else self._speak(client, rng, options))

    async def _speak(self, client: AsyncClient, rng: random.Random, options: SpeakOptions) -> None:
        options |= SpeakOptions(voice=rng.choice((None, "en-us+f3", "en-gb", "de")), speed=rng.uniform(0.7, 1.6))
        speech = await self._begin(client, rng, texts.prose(rng.randint(20, self._given.chars), rng), options)
        cancelled = rng.random() < CANCELLED_SHARE
        if cancelled:
            await asyncio.sleep(rng.uniform(0, CANCEL_WITHIN_S[self._given.pace]))
            await speech.cancel()
        else:
            await speech.wait()
        self.tally.ended(speech.ending, cancelled)

    async def _listen(self, client: AsyncClient, rng: random.Random, options: SpeakOptions) -> None:
        known = rng.randrange(KNOWN_TEXTS)
        text = texts.prose(min(100 + 20 * known, self._given.chars), random.Random(known))
        speech = await self._begin(client, rng, text, options | SpeakOptions(output="stream", seed=known))
        cancelled = rng.random() < CANCELLED_SHARE
        paced = self._given.pace == "realtime"
        ear = Ear(PREBUFFER_S, time.monotonic())
        pcm = b""
        async for sound in speech.sounds():
            pcm += sound.pcm
            if paced:
                await self._hear(ear, sound.count)
            elif rng.random() < 0.01:
                await asyncio.sleep(rng.uniform(0, 1))
            if cancelled and rng.random() < 0.3:
                await speech.cancel()
        self.tally.ended(speech.ending, cancelled)
        if isinstance(speech.ending, Finished):
            self.tally.heard(known, pcm)

    async def _hear(self, ear: Ear, samples: int) -> None:
        """Play a piece, and come back shortly before the next one is needed."""
        now_s, dry, late_s = time.monotonic(), ear.dry, ear.late_s
        ear.hear(samples, now_s)
        if ear.dry > dry:
            self.tally.underruns.heard("listeners", 1, now_s - (ear.late_s - late_s), now_s)
        await asyncio.sleep(max(0.0, ear.wait_s(time.monotonic())))

    async def _begin(self, client: AsyncClient, rng: random.Random, text: str, options: SpeakOptions) -> AsyncSpeech:
        """Give the text at once, or as a language model would."""
        if rng.random() >= GROWING_SHARE:
            return await self._insist(lambda: client.speak(text, **options))

        async def words() -> AsyncIterator[str]:
            for word in texts.words_of(text):
                yield word

        return await self._insist(lambda: client.speak_stream(words(), **options))

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """A client that has to connect tries it for 2 s; a dispatcher that was killed may take longer to be back."""
        while True:
            try:
                return await ask()
            except PipelineError:
                kills_s = self.tally.underruns.kills_s
                if not kills_s or time.monotonic() > kills_s[-1] + PATIENCE_S:
                    raise

    # ---------------------------------------------------------------- beside

    async def look(self, client: AsyncClient) -> None:
        """Note how everything stands, every few seconds."""
        found = await running.processes(client)
        while True:
            await asyncio.sleep(self._given.look_every_s)
            began_s = time.perf_counter()
            speech = await client.speak(PROBE_TEXT, output="stream", priority="high")
            async for _ in speech.sounds():
                break
            first_ms = (time.perf_counter() - began_s) * 1000
            await speech.wait()
            try:
                self.looks.append(
                    Look(
                        self.tally.speech_s,
                        {name: running.memory_bytes(process) for name, process in found.items()},
                        {name: process.num_fds() for name, process in found.items()},
                        {name: process.num_threads() for name, process in found.items()},
                        first_ms,
                    )
                )
            except psutil.Error as error:
                raise common.PerfError(f"a process of the pipeline died in the calm part: {error}") from error

    async def kill(self, client: AsyncClient) -> None:
        """Kill a process every now and then, once the one before is back."""
        rng = random.Random(self._given.seed)
        while True:
            await asyncio.sleep(rng.uniform(0, 2 * self._given.kill_every_s))
            stages = [stage for stage in (await self._insist(client.status)).stages if stage.state == "RUNNING"]
            able = [stage for stage in stages if stage.worker.partition("-")[0] in KILLED]
            if not able:
                continue
            stage = rng.choice(able)
            psutil.Process(stage.pid).kill()
            self.kills[stage.worker] += 1
            self.tally.underruns.kills_s.append(time.monotonic())

    async def follow_player(self, client: AsyncClient) -> None:
        """Count the gaps in what the loudspeaker plays. A player that was started again counts from 0."""
        gaps, blocks, since_s = 0, 0, time.monotonic()
        while True:
            await asyncio.sleep(PLAYER_EVERY_S)
            told, now_s = (await self._insist(client.status)).player, time.monotonic()
            seen, late = int(told.get("starvations", gaps)), int(told.get("output_underflows", blocks))
            new = seen - gaps if seen >= gaps else seen
            if new:
                # A player tells of itself twice a second, and the status may be as old.
                self.tally.underruns.heard("loudspeaker", new, since_s - 2 * PLAYER_EVERY_S, now_s)
            self.tally.late_blocks += late - blocks if late >= blocks else late
            gaps, blocks, since_s = seen, late, now_s
