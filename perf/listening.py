"""Listeners at the pace of the ear, in a process of their own: when does one of them run dry?

`python -m perf.listening --to ADDRESS --streams N --seconds S` prints one line of JSON about so many streams, each of
which begins at a moment of its own, plays ``--prebuffer-ms`` after its first sound, takes the next piece half a second
before it is needed, and leaves after so many seconds. `crowd` is for several of these processes at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

from ipc.client import AsyncClient
from ipc.messages import SAMPLE_RATE
from launch.table import environment
from perf import common, texts

IN_ADVANCE_S = 0.5
LATEST_S = 60.0
PER_PROCESS = 50
"""Streams that one process of listeners follows without becoming the limit itself."""

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Listened:
    """One stream. ``late_s``: how long it was dry in all; ``dry``: how often."""

    first_ms: float
    dry: int
    late_s: float
    speech_s: float


class Ear:
    """Plays without a loudspeaker: knows when which sample would be due."""

    def __init__(self, prebuffer_s: float, began_s: float) -> None:
        self._prebuffer_s, self._began_s = prebuffer_s, began_s
        self._zero_s = 0.0
        self._received = 0
        self.first_ms = 0.0
        self.dry = 0
        self.late_s = 0.0

    @property
    def speech_s(self) -> float:
        """Sound received so far."""
        return self._received / SAMPLE_RATE

    def hear(self, samples: int, now_s: float) -> None:
        """A piece has come. What comes after it was due counts, and the rest is then due later."""
        if not self._received:
            self.first_ms = (now_s - self._began_s) * 1000
            self._zero_s = now_s + self._prebuffer_s
        elif (late_s := now_s - self._zero_s - self.speech_s) > 0:
            self.dry += 1
            self.late_s += late_s
            self._zero_s += late_s
        self._received += samples

    def wait_s(self, now_s: float) -> float:
        """How long until the next piece should be there."""
        return self._zero_s + self.speech_s - IN_ADVANCE_S - now_s


async def listen(client: AsyncClient, seconds: float, seed: int, prebuffer_s: float, delay_s: float) -> Listened:
    """One stream from its request to so many seconds of sound."""
    await asyncio.sleep(delay_s)
    ear = Ear(prebuffer_s, time.monotonic())
    speech = await client.speak(texts.prose_of(4 * seconds, seed), output="stream", seed=seed)
    async with asyncio.timeout(LATEST_S + seconds):
        async for sound in speech.sounds():
            ear.hear(sound.count, time.monotonic())
            if ear.speech_s >= seconds:
                break
            await asyncio.sleep(max(0.0, ear.wait_s(time.monotonic())))
    await speech.cancel()
    return Listened(ear.first_ms, ear.dry, ear.late_s, ear.speech_s)


async def listen_to_all(given: argparse.Namespace) -> list[Listened]:
    """All streams of this process."""
    rng = random.Random(given.seed)
    async with AsyncClient(given.to, timeout_s=PATIENCE_S) as client:
        return await asyncio.gather(
            *(
                listen(
                    client,
                    given.seconds,
                    given.seed + number,
                    given.prebuffer_ms / 1000,
                    rng.uniform(0, given.spread_s),
                )
                for number in range(given.streams)
            )
        )


async def crowd(to: str, streams: int, seconds: float, seed: int, spread_s: float) -> list[Listened]:
    """So many streams, in as many processes as it takes. Raises `PerfError` when one of these fails."""
    processes = -(-streams // PER_PROCESS)
    shares = [streams // processes + (number < streams % processes) for number in range(processes)]
    async with AsyncExitStack() as stack:
        running = []
        for number, share in enumerate(shares):
            command = [sys.executable, "-m", "perf.listening", "--to", to, "--streams", str(share)]
            command += ["--seconds", str(seconds), "--seed", str(seed + 1000 * number), "--spread-s", str(spread_s)]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment()
            )
            stack.push_async_callback(_end, process)
            running.append(process)
        heard: list[Listened] = []
        for said, complaint in await asyncio.gather(*(process.communicate() for process in running)):
            if not said:
                last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
                raise common.PerfError(f"listeners failed: {last[0]}")
            heard += [Listened(**one) for one in json.loads(said.decode().splitlines()[-1])]
    return heard


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def main() -> int:
    """Read the command line, listen, and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--to", required=True)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prebuffer-ms", type=float, default=120)
    parser.add_argument("--spread-s", type=float, default=2)
    given = parser.parse_args()

    async def all_of_them() -> None:
        print(json.dumps([asdict(one) for one in await listen_to_all(given)]), flush=True)

    return common.run(all_of_them())


if __name__ == "__main__":
    sys.exit(main())
