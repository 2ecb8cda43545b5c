"""Hours of speech at a free pace with random programs, cancels and kills: what grows, gets slower or gets lost.

Some programs speak to the speaker and some listen; each picks texts, voices, priorities and ways of giving the text at
random, and now and then changes its mind. Two parts: a calm one, in which memory, descriptors, threads and the time to
first sound are followed per process (a process that is killed forgets what it leaked), and one in which processes are
killed all the time. The same text with the same seed must always come back as the same sound, and every utterance
that is not cancelled must end as finished, sample for sample.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from ipc.client import AsyncClient, SpeakOptions
from ipc.client_speech import AsyncSpeech
from ipc.client_track import Ending
from ipc.messages import Cancelled, Finished
from perf import common, running, texts
from perf.common import Row

MIB = 2**20
KNOWN_TEXTS = 40
KILLED = ("t3", "s3gen", "dispatcher", "player")
CANCELLED_SHARE = 0.15
GROWING_SHARE = 0.3
WARM_SHARE = 0.1
"""Of the calm part; what is loaded at its first use is no growth."""

PROBE_TEXT = "Yes."
END_S = 120.0


@dataclass
class Look:
    """How everything stands: by process, and for the whole pipeline."""

    speech_s: float
    memory_bytes: dict[str, int]
    descriptors: dict[str, int]
    threads: dict[str, int]
    first_sound_ms: float


@dataclass
class Tally:
    """What the programs saw."""

    speech_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    sounds: dict[int, str] = field(default_factory=dict)
    """Digest of the sound by known text."""
    wrong: list[str] = field(default_factory=list)

    def ended(self, ending: Ending | None, cancelled: bool) -> None:
        """An utterance is over."""
        match ending:
            case Finished():
                self.speech_s += ending.seconds
                self.counts["finished"] += 1
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
    """One pipeline under random use."""

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
                async with asyncio.timeout(END_S):
                    await (self._listen(client, rng, options) if listens else self._speak(client, rng, options))

    async def _speak(self, client: AsyncClient, rng: random.Random, options: SpeakOptions) -> None:
        options |= SpeakOptions(voice=rng.choice((None, "en-us+f3", "en-gb", "de")), speed=rng.uniform(0.7, 1.6))
        speech = await self._begin(client, rng, texts.prose(rng.randint(20, 600), rng), options)
        cancelled = rng.random() < CANCELLED_SHARE
        if cancelled:
            await asyncio.sleep(rng.uniform(0, 0.1))
            await speech.cancel()
        else:
            await speech.wait()
        self.tally.ended(speech.ending, cancelled)

    async def _listen(self, client: AsyncClient, rng: random.Random, options: SpeakOptions) -> None:
        known = rng.randrange(KNOWN_TEXTS)
        text = texts.prose(100 + 20 * known, random.Random(known))
        speech = await self._begin(client, rng, text, options | SpeakOptions(output="stream", seed=known))
        cancelled = rng.random() < CANCELLED_SHARE
        pcm = b""
        async for sound in speech.sounds():
            pcm += sound.pcm
            if cancelled and rng.random() < 0.3:
                await speech.cancel()
            if rng.random() < 0.01:
                await asyncio.sleep(rng.uniform(0, 1))
        self.tally.ended(speech.ending, cancelled)
        if isinstance(speech.ending, Finished):
            self.tally.heard(known, pcm)

    async def _begin(self, client: AsyncClient, rng: random.Random, text: str, options: SpeakOptions) -> AsyncSpeech:
        """Give the text at once, or as a language model would."""
        if rng.random() >= GROWING_SHARE:
            return await client.speak(text, **options)

        async def words() -> AsyncIterator[str]:
            for word in texts.words_of(text):
                yield word

        return await client.speak_stream(words(), **options)

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
            stages = [stage for stage in (await client.status()).stages if stage.state == "RUNNING"]
            able = [stage for stage in stages if stage.worker.partition("-")[0] in KILLED]
            if not able:
                continue
            stage = rng.choice(able)
            psutil.Process(stage.pid).kill()
            self.kills[stage.worker] += 1


def slopes(looks: list[Look]) -> list[Row]:
    """Per process: what it had at first and at last, and what it gains per hour of speech."""
    warm = looks[round(len(looks) * WARM_SHARE) :]
    hours = np.array([look.speech_s / 3600 for look in warm])
    rows: list[Row] = []
    for name in warm[0].memory_bytes:
        memory = np.array([look.memory_bytes[name] / MIB for look in warm])
        rows.append(
            {
                "process": name,
                "memory_first_mib": round(float(np.median(memory[: max(1, len(memory) // 5)])), 2),
                "memory_last_mib": round(float(np.median(memory[-max(1, len(memory) // 5) :])), 2),
                "memory_mib_per_h": round(_slope(hours, memory), 4),
                "descriptors_per_h": round(_slope(hours, np.array([look.descriptors[name] for look in warm])), 3),
                "threads_per_h": round(_slope(hours, np.array([look.threads[name] for look in warm])), 3),
            }
        )
    return rows


def _slope(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 and x[-1] > x[0] else 0.0


async def measure(given: argparse.Namespace) -> None:
    """The calm part, then the one with kills."""
    began = common.Began()
    asked: Row = {"model.engine": given.engine, "player.pace": "free", "supervise.max_restarts": 1_000_000}
    with running.pipeline("", asked) as place:
        soak = Soak(place.to, given)
        calm_s = await soak.part(given.speech_h * (1 - given.kill_share), soak.look)
        calm_speech_s = soak.tally.speech_s
        killed_s = 0.0
        if given.kill_share > 0:
            killed_s = await soak.part(given.speech_h * given.kill_share, soak.kill)
    tally, looks = soak.tally, soak.looks
    if not looks:
        raise common.PerfError("the calm part was over before the first look: raise --speech-h or lower --look-every-s")
    first = np.array([look.first_sound_ms for look in looks])
    hours = np.array([look.speech_s / 3600 for look in looks])
    growth = slopes(looks)
    counts: list[Row] = [
        {
            "part": name,
            "speech_h": round(speech_s / 3600, 2),
            "took_s": round(took_s, 1),
            "times_real_time": round(speech_s / took_s, 1) if took_s else 0.0,
            "kills": kills,
        }
        for name, speech_s, took_s, kills in (
            ("calm", calm_speech_s, calm_s, 0),
            ("kills", tally.speech_s - calm_speech_s, killed_s, soak.kills.total()),
        )
    ]
    figures: Row = {
        "speech_h": round(tally.speech_s / 3600, 2),
        "finished": tally.counts["finished"],
        "cancelled": tally.counts["cancelled"],
        "wrong": len(tally.wrong),
        "kills": soak.kills.total(),
        "looks": len(looks),
        "first_sound_p50_ms": round(float(np.median(first)), 2),
        "first_sound_ms_per_h": round(_slope(hours, first), 3),
        "memory_mib_per_h": round(sum(float(row["memory_mib_per_h"] or 0) for row in growth), 4),
    }
    common.report("soak", given, {"parts": counts, "growth in the calm part": growth}, figures, asked, began)
    if tally.wrong:
        raise common.PerfError(f"{len(tally.wrong)} utterances went wrong; the first: {tally.wrong[0]}")


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__, connects=False)
    parser.add_argument("--engine", default="espeak", help="of the pipeline (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    parser.add_argument("--speech-h", type=float, default=10, help="hours of speech in all (default: %(default)s)")
    parser.add_argument("--kill-share", type=float, default=0.3, help="of it with kills (default: %(default)s)")
    parser.add_argument("--kill-every-s", type=float, default=4, help="on average (default: %(default)s)")
    parser.add_argument("--look-every-s", type=float, default=3, help="at memory and so on (default: %(default)s)")
    parser.add_argument("--speakers", type=int, default=2, help="programs that speak (default: %(default)s)")
    parser.add_argument("--listeners", type=int, default=3, help="programs that listen (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, speech_h=0.001, kill_share=0, kill_every_s=0.1, look_every_s=0.05, listeners=1)
    if given.kill_share >= 1:
        parser.error(f"--kill-share: {given.kill_share}: less than 1, the calm part comes first")
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
