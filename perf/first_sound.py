"""How soon the first sound is there, hop by hop, in the pipeline's eyes and in a program's.

Each utterance has another text, comes after a pause of random length, and is cancelled once its first sound was
there. Three groups:

- to the speaker: the dispatcher's own clocks, from the request's arrival to ``accepted`` sent, the first tokens,
  the first sample in the ring (as the dispatcher learns of it, so rather too much), and at the loudspeaker (of
  ``player.output: none`` at real-time pace: up to a block of 21 ms passes until the next one is taken);
- to a remote listener: the same clocks, and what the program sees, from before it connects to its first sound;
- to a remote listener that is connected already, the text whole or token by token: from the piece that completes
  the first clause to the first sound;

and what of that is the engine's own: its two halves in this process make the first piece of as many texts.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable

from ipc.client import AsyncClient
from ipc.client_speech import AsyncSpeech
from ipc.client_track import Sound
from ipc.messages import Event, Started
from perf import common, running, texts
from perf.common import Row
from perf.direct import Direct
from pipeline.text import TextSegmenter

HOPS = {
    "accepted": "request → accepted sent",
    "first_tokens": "request → first tokens at the dispatcher",
    "first_pcm": "request → first sample in the ring",
    "loudspeaker": "request → first sample at the loudspeaker",
    "listener": "request → first sound sent to the listener",
}
LONGEST_CHARS = 300
"""Above any sentence here: where a text is cut is the same for every longer limit."""

WARM_UTTERANCES = 10
TIMEOUT_S = 20.0

Values = dict[str, list[float]]


class Measuring:
    """One run against one pipeline."""

    def __init__(self, client: AsyncClient, given: argparse.Namespace) -> None:
        self._client = client
        self._rng = random.Random(given.seed)
        self._gap_s = given.gap_ms / 1000
        self._token_s = given.token_ms / 1000
        self._counts: dict[str, int] = {}

    async def group(self, measure: Callable[[str, Values], Awaitable[None]], utterances: int) -> Values:
        """``measure`` that many utterances, each of a new text; its values by name."""
        values: Values = {}
        for _ in range(utterances):
            await asyncio.sleep(self._rng.uniform(0, 2 * self._gap_s))
            async with asyncio.timeout(TIMEOUT_S):
                await measure(_text(self._rng), values)
        return values

    async def speaker(self, text: str, values: Values) -> None:
        """One utterance to the speaker."""
        speech = await self._client.speak(text)
        await _first(speech, Started)
        await self._hops(values, "loudspeaker")
        await speech.cancel()

    async def newcomer(self, text: str, values: Values) -> None:
        """One utterance to a listener that connects for it."""
        began_s = time.perf_counter()
        speech = await self._client.speak(text, output="stream")
        await _first(speech, Sound)
        values.setdefault("program connects → its first sound", []).append((time.perf_counter() - began_s) * 1000)
        await self._hops(values, "listener")
        await speech.cancel()

    async def whole(self, text: str, values: Values) -> None:
        """A whole text, on a connection that is there."""
        async with self._client.utterance(output="stream") as speech:
            began_s = time.perf_counter()
            await speech.write(text)
            await _first(speech, Sound)
            values.setdefault("text sent → first sound", []).append((time.perf_counter() - began_s) * 1000)
            await speech.cancel()

    async def growing(self, text: str, values: Values) -> None:
        """A text in tokens at an even pace, on a connection that is there."""
        async with self._client.utterance(output="stream") as speech:
            assert speech.accepted is not None
            cutter = TextSegmenter(speech.accepted.language, LONGEST_CHARS)
            sounded = asyncio.create_task(_first(speech, Sound))
            released_s = 0.0
            for token in texts.words_of(text):
                sent_s = time.perf_counter()
                await speech.write(token)
                if cutter.feed(token) and not released_s:
                    released_s = sent_s
                    break
                await asyncio.sleep(self._token_s)
            if not released_s:
                released_s = time.perf_counter()
                await speech.end()
            values.setdefault("token that completes the clause → first sound", []).append(
                (await sounded - released_s) * 1000
            )
            await speech.cancel()

    async def _hops(self, values: Values, last: str) -> None:
        """What the dispatcher measured of the utterance just heard; nothing when others spoke meanwhile."""
        hops = ("accepted", "first_tokens", "first_pcm", last)
        while True:
            latencies = (await self._client.status()).latencies
            if all(latencies[hop].count > self._counts.get(hop, 0) for hop in hops):
                break
            await asyncio.sleep(0.002)  # the reader can be sooner than the dispatcher
        for hop in hops:
            if latencies[hop].count == self._counts.get(hop, 0) + 1:
                values.setdefault(HOPS[hop], []).append(latencies[hop].last_ms)
            self._counts[hop] = latencies[hop].count


async def _first(speech: AsyncSpeech, kind: type[Event] | type[Sound]) -> float:
    """When (by perf_counter) the first of these came."""
    async for event in speech.events():
        if isinstance(event, kind):
            return time.perf_counter()
    raise common.PerfError(f"utterance {speech.id} ended before it sounded: {speech.ending}")


def engine_alone(engine: str, voice: str, language: str, given: argparse.Namespace) -> Values:
    """The clock's time of the engine's halves for the first piece of each text."""
    rng = random.Random(given.seed)
    direct = Direct(engine, voice, language)
    values: Values = {"its tokens": [], "its sound": [], "both": []}
    for _ in range(given.utterances):
        first = direct.cut(_text(rng))[0]
        cost = next(direct.pieces(first))
        for name, seconds in zip(values, (cost.tokens_s, cost.audio_s, cost.tokens_s + cost.audio_s), strict=True):
            values[name].append(seconds * 1000)
    direct.close()
    return values


def _text(rng: random.Random) -> str:
    """Two sentences."""
    return f"{texts.sentence(rng)} {texts.sentence(rng)}"


async def measure(given: argparse.Namespace) -> None:
    """All groups against one pipeline."""
    began = common.Began()
    settings: Row = {"model.engine": given.engine, "player.output": "none", "player.pace": "realtime"}
    with running.pipeline(given.to, settings) as place:
        async with AsyncClient(place.to) as client:
            run = Measuring(client, given)
            engine = await running.engine_of(place, client)
            known = await client.speak("Warm.")
            await known.wait()
            assert known.accepted is not None
            for warm in (run.speaker, run.newcomer, run.whole):
                await run.group(warm, min(WARM_UTTERANCES, given.utterances))
            groups = {
                "to the speaker": await run.group(run.speaker, given.utterances),
                "to a listener that connects for it": await run.group(run.newcomer, given.utterances),
                "to a connected listener, whole text": await run.group(run.whole, given.utterances),
                f"to a connected listener, a token every {given.token_ms:g} ms": await run.group(
                    run.growing, given.utterances
                ),
            }
    title = f"{engine} alone, the first piece of such a text"
    groups[title] = engine_alone(engine, known.accepted.voice, known.accepted.language, given)
    tables = {
        title: [common.quantiles(name, found) for name, found in values.items()] for title, values in groups.items()
    }
    in_ring = common.quantiles("", groups["to the speaker"].get(HOPS["first_pcm"], []))
    figures: Row = {
        "first_pcm_p50_ms": in_ring["p50_ms"],
        "first_pcm_p99_ms": in_ring["p99_ms"],
        "engine_p50_ms": common.quantiles("", groups[title]["both"])["p50_ms"],
    }
    common.report("first_sound", given, tables, figures, place.settings, began)


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__)
    parser.add_argument("--utterances", type=int, default=200, help="in each group (default: %(default)s)")
    parser.add_argument("--gap-ms", type=float, default=100, help="mean pause before each (default: %(default)s)")
    parser.add_argument("--token-ms", type=float, default=10, help="between two tokens (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, utterances=1, gap_ms=0, token_ms=0)
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
