"""One utterance after another, each timed from its request to its first sound: by the dispatcher's clocks hop by hop,
and by a program's own. `perf.first_sound` makes a report of it."""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

from ipc.client import AsyncClient
from ipc.client_speech import AsyncSpeech
from ipc.client_track import Sound
from ipc.messages import Event, Started
from perf import common, texts
from perf.chat_server import tokens_of
from pipeline.text import TextSegmenter

HOPS = {
    "accepted": "request → accepted sent",
    "first_tokens": "request → first tokens at the dispatcher",
    "first_pcm": "request → first sample in the ring",
    "loudspeaker": "request → first sample at the loudspeaker",
    "listener": "request → first sound sent to the listener",
}
"""What the dispatcher counts, each from the request's arrival."""

BETWEEN = {
    "accepted": "received → accepted",
    "first_tokens": "accepted → first tokens",
    "first_pcm": "first tokens → first PCM in the ring",
    "loudspeaker": "in the ring → at the DAC",
    "listener": "in the ring → sent to the listener",
}
"""What each adds to the one before it, of the same utterance."""

SENT = "text sent → first sound"
WORD, CLAUSE, FIRST = (
    "first word complete → first sound",
    "token that completes the clause → first sound",
    "first token",
)
UNTIL_WORD, UNTIL_CLAUSE, UNTIL_SOUND = (f"{FIRST} → {what}" for what in ("first word", "first clause", "first sound"))
GAPS, LATE = "between two tokens as sent", "token sent later than due"

LONGEST_CHARS = 300
"""Above any sentence here: where a text is cut is the same for every longer limit."""

LONG_CHARS = 2000
TIMEOUT_S = 20.0
_WORD_COMPLETE = re.compile(r"\s*\w+\W")

Values = dict[str, list[float]]
"""Milliseconds by what they are of."""

LENGTHS: dict[str, Callable[[random.Random], str]] = {
    "short": lambda rng: re.split("[,.!?]", texts.sentence(rng))[0] + ".",
    "medium": lambda rng: f"{texts.sentence(rng)} {texts.sentence(rng)}",
    "long": lambda rng: texts.prose(LONG_CHARS, rng),
}
"""Texts to speak: one clause (30 to 60 characters), two sentences (100 to 200), a page (`LONG_CHARS`)."""


class Measuring:
    """One run against one pipeline. ``given``: ``seed``, ``gap_ms`` (mean pause before each), ``token_ms``."""

    def __init__(self, client: AsyncClient, given: argparse.Namespace) -> None:
        self._client = client
        self._rng = random.Random(given.seed)
        self._gap_s = given.gap_ms / 1000
        self._token_s = given.token_ms / 1000
        self._counts: dict[str, int] = {}

    async def group(self, measure: Callable[[str, Values], Awaitable[None]], utterances: int) -> Values:
        """``measure`` that many utterances, each of a new text of two sentences."""
        return (await self.groups(measure, utterances, ("medium",)))["medium"]

    async def groups(
        self, measure: Callable[[str, Values], Awaitable[None]], utterances: int, lengths: Sequence[str]
    ) -> dict[str, Values]:
        """The same with that many texts of each length, by turns, so that noise meets all alike."""
        values: dict[str, Values] = {length: {} for length in lengths}
        self._counts = {hop: one.count for hop, one in (await self._client.status()).latencies.items()}
        for _ in range(utterances):
            for length in lengths:
                await asyncio.sleep(self._rng.uniform(0, 2 * self._gap_s))
                async with asyncio.timeout(TIMEOUT_S):
                    await measure(LENGTHS[length](self._rng), values[length])
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
        _add(values, "program connects → its first sound", await _first(speech, Sound) - began_s)
        await self._hops(values, "listener")
        await speech.cancel()

    async def whole(self, text: str, values: Values) -> None:
        """A whole text, on a connection that is there."""
        async with self._client.utterance(output="stream") as speech:
            began_s = time.perf_counter()
            await speech.write(text)
            await speech.end()
            _add(values, SENT, await _first(speech, Sound) - began_s)
            await speech.cancel()

    async def from_clause(self, text: str, values: Values) -> None:
        """A text in tokens, on a connection that is there: the voice begins with the first clause."""
        await self._growing(text, values, at_word=False)

    async def from_word(self, text: str, values: Values) -> None:
        """The same, flushed once the first word is complete, as `speak --chat` does with a quick engine."""
        await self._growing(text, values, at_word=True)

    async def _growing(self, text: str, values: Values, at_word: bool) -> None:
        async with self._client.utterance(output="stream") as speech:
            assert speech.accepted is not None
            cutter = TextSegmenter(speech.accepted.language, LONGEST_CHARS)
            sounded = asyncio.create_task(_first(speech, Sound))
            began_s = time.perf_counter()
            sent_s: list[float] = []
            word_s = clause_s = 0.0
            tokens = tokens_of(text)
            for number, token in enumerate(tokens):
                due_s = began_s + number * self._token_s
                await asyncio.wait((sounded,), timeout=max(0.0, due_s - time.perf_counter()))
                if sounded.done():
                    break
                sent_s.append(time.perf_counter())
                _add(values, LATE, sent_s[-1] - due_s)
                await speech.write(token)
                if not clause_s and cutter.feed(token):
                    clause_s = sent_s[-1]
                if not word_s and _WORD_COMPLETE.match("".join(tokens[: number + 1])):
                    word_s = sent_s[-1]
                    if at_word:
                        await speech.flush()
            else:
                clause_s = clause_s or time.perf_counter()
                await speech.end()
            heard_s = await sounded
            await speech.cancel()
        for earlier_s, later_s in pairwise(sent_s):
            _add(values, GAPS, later_s - earlier_s)
        _add(values, UNTIL_WORD, word_s - began_s)
        _add(values, WORD, heard_s - word_s)
        if clause_s and not at_word:
            _add(values, UNTIL_CLAUSE, clause_s - began_s)
            _add(values, CLAUSE, heard_s - clause_s)
        _add(values, UNTIL_SOUND, heard_s - began_s)

    async def _hops(self, values: Values, last: str) -> None:
        """What the dispatcher measured of the utterance just heard; nothing when others spoke meanwhile."""
        hops = ("accepted", "first_tokens", "first_pcm", last)
        while True:
            latencies = (await self._client.status()).latencies
            if all(latencies[hop].count > self._counts.get(hop, 0) for hop in hops):
                break
            await asyncio.sleep(0.002)  # the reader can be sooner than the dispatcher
        alone = all(latencies[hop].count == self._counts.get(hop, 0) + 1 for hop in hops)
        self._counts |= {hop: latencies[hop].count for hop in hops}
        before_ms = 0.0
        for hop in hops if alone else ():
            values.setdefault(HOPS[hop], []).append(latencies[hop].last_ms)
            values.setdefault(BETWEEN[hop], []).append(latencies[hop].last_ms - before_ms)
            before_ms = latencies[hop].last_ms


def _add(values: Values, name: str, seconds: float) -> None:
    values.setdefault(name, []).append(seconds * 1000)


async def _first(speech: AsyncSpeech, kind: type[Event] | type[Sound]) -> float:
    """When (by perf_counter) the first of these came."""
    async for event in speech.events():
        if isinstance(event, kind):
            return time.perf_counter()
    raise common.PerfError(f"utterance {speech.id} ended before it sounded: {speech.ending}")
