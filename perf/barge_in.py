"""How soon a cancel is silence: what still comes out after it, in samples of the speaker's ring.

The speaker's output is a WAV file at the pace of a sound card. While a long text is spoken, this program follows the
ring's cursors (it maps the same memory, and only looks) and cancels at a random moment. Counted is what the player
took of the cancelled text from the moment in which the cancel was *sent* until the ring was discarded: whole blocks,
as a sound card takes them. After that it plays a fade of 5 ms and silence. The clock's figures beside it contain the
way of the request to the dispatcher, and the wait for the next block.

`interrupt` is the same with another text in the cancel's place: how soon that one is there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from ipc.client import AsyncClient
from ipc.client_speech import AsyncSpeech
from ipc.messages import SAMPLE_RATE, Started
from ipc.ring import Arena, RingControl
from perf import common, running, texts
from perf.common import Row

LOOK_EVERY_S = 0.0005
FADE_SAMPLES = 120
TEXT_CHARS = 600
TIMEOUT_S = 20.0


class Follower:
    """Looks at the speaker's cursors all the time, in a thread of its own; ``moves`` are (time, read before, after)."""

    def __init__(self, ring: RingControl) -> None:
        self._ring = ring
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self.moves: list[tuple[float, int, int]] = []

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        read = self._ring.read
        while not self._stop.wait(LOOK_EVERY_S):
            now = self._ring.read
            if now != read:
                self.moves.append((time.perf_counter(), read, now))
                read = now


@contextmanager
def speaker_ring(player: psutil.Process) -> Iterator[RingControl]:
    """The speaker's ring of a running pipeline, by way of the descriptor that its player has of it (Linux)."""
    if sys.platform != "linux":
        raise common.PerfError("barge_in looks into the rings of another process, which only Linux lets it do")
    words = player.cmdline()
    number = words[words.index("--arena") + 1]
    fd = os.open(f"/proc/{player.pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    try:
        arena = Arena.attach(fd)
    finally:
        os.close(fd)
    try:
        yield arena.control(0)
    finally:
        arena.close()


class Trials:
    """Cancels, one after the other."""

    def __init__(self, client: AsyncClient, ring: RingControl, block_samples: int, seed: int) -> None:
        self._client, self._ring, self._block = client, ring, block_samples
        self._rng = random.Random(seed)
        self.samples_after: list[float] = []
        self.heard_blocks_after: list[float] = []
        self.discarded_ms: list[float] = []
        self.answered_ms: list[float] = []
        self.newcomer_ms: list[float] = []

    async def cancel(self) -> None:
        """Speak, cancel at some moment, and see what came out after that."""
        speech = await self._speaking()
        with Follower(self._ring) as follower:
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))
            read, sent_s = self._ring.read, time.perf_counter()
            await speech.cancel()
            self.answered_ms.append((time.perf_counter() - sent_s) * 1000)
            moves = await self._until_discarded(follower)
        before = moves[-1][1]
        self.samples_after.append(max(0, before - read))
        self.heard_blocks_after.append(max(0, before - read) / self._block)
        self.discarded_ms.append((moves[-1][0] - sent_s) * 1000)

    async def interrupt(self) -> None:
        """Speak, interrupt at some moment, and see when the newcomer sounds."""
        await self._speaking()
        await asyncio.sleep(self._rng.uniform(0.05, 0.5))
        text = texts.sentence(self._rng)
        newcomer = await self._client.speak(text, priority="interrupt")
        self.newcomer_ms.append((await _started(newcomer)).latency_ms)
        await newcomer.cancel()

    async def _speaking(self) -> AsyncSpeech:
        """A long text that sounds, with the ring well filled behind what is heard."""
        speech = await self._client.speak(texts.prose(TEXT_CHARS, self._rng))
        await _started(speech)
        async with asyncio.timeout(TIMEOUT_S):
            while self._ring.written - self._ring.read < SAMPLE_RATE:
                await asyncio.sleep(0.01)
        return speech

    async def _until_discarded(self, follower: Follower) -> list[tuple[float, int, int]]:
        """The moves of the read cursor up to the one over what was discarded: more than blocks are long."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for at, (_, before, after) in enumerate(follower.moves):
                    if after - before > SAMPLE_RATE // 4:
                        return follower.moves[: at + 1]
                await asyncio.sleep(0.005)


async def _started(speech: AsyncSpeech) -> Started:
    async with asyncio.timeout(TIMEOUT_S):
        async for event in speech.events():
            if isinstance(event, Started):
                return event
    raise common.PerfError(f"utterance {speech.id} ended before it sounded: {speech.ending}")


async def measure(given: argparse.Namespace) -> None:
    """All trials against one pipeline."""
    began = common.Began()
    settings: Row = {"model.engine": given.engine, "player.output": "none", "player.pace": "realtime"}
    settings |= {"player.block": given.block}
    with running.pipeline(given.to, settings) as place:
        async with AsyncClient(place.to) as client:
            player = (await running.processes(client))["player-0"]
            with speaker_ring(player) as ring:
                trials = Trials(client, ring, given.block, given.seed)
                for _ in range(given.trials):
                    await trials.cancel()
                    await trials.interrupt()
    rows = [
        common.quantiles("cancel sent → ring discarded, as the reader's cursor shows", trials.discarded_ms),
        common.quantiles("cancel sent → `cancelled` with what was heard is here", trials.answered_ms),
        common.quantiles("interrupt received → first sample of the newcomer at the speaker", trials.newcomer_ms),
    ]
    after = common.quantiles("taken of the cancelled text after the cancel was sent", trials.samples_after, "samples")
    figures: Row = {
        "block_samples": given.block,
        "block_ms": round(given.block / SAMPLE_RATE * 1000, 2),
        "most_blocks_after_cancel": round(max(trials.heard_blocks_after), 3),
        "fade_samples_besides": FADE_SAMPLES,
    }
    common.report("barge_in", given, {"samples": [after], "times": rows}, figures, place.settings, began)


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__)
    parser.add_argument("--trials", type=int, default=50, help="of each kind (default: %(default)s)")
    parser.add_argument("--block", type=int, default=512, help="player.block (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, trials=1, block=32)
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
