"""How soon a language model's answer is heard while it is still being written, and what of that is ours.

A local chat server (`perf.chat_server`) writes each answer at a set pace, the first token --first-ms after the
question. Each is interrupted once it sounds. To the speaker (of ``player.output: none`` at real-time pace: up to
a block of 21 ms passes until the next one is taken) and to a listener; the voice beginning with the first word,
which is what `speak --chat` does with the built-in voice, and with the first clause.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Literal

from ipc.chat import Chat
from ipc.chat_endpoint import ChatEndpoint
from ipc.chat_exchange import Figures, Told
from ipc.chat_memory import Memory, Question
from ipc.client import AsyncClient
from ipc.client_track import Sound
from ipc.messages import Output, Started
from perf import common, running, texts
from perf.chat_server import ChatServer, tokens_of
from perf.common import Row

WARM_ANSWERS = 5
GROUPS: tuple[tuple[str, Output, Literal["word", "clause"]], ...] = (
    ("to the speaker, from the first word on", "speaker", "word"),
    ("to a listener, from the first word on", "stream", "word"),
    ("to a listener, from the first clause on", "stream", "clause"),
)


async def answers(
    client: AsyncClient, server: ChatServer, output: Output, begin: Literal["word", "clause"], count: int
) -> list[Figures]:
    """The figures of so many answers, each interrupted at its first sound."""
    found = []
    for _ in range(count):
        chat = Chat(client, ChatEndpoint(server.url, "paced"), options={"output": output}, memory=Memory(), begin=begin)

        async def stop(what: Told, chat: Chat = chat) -> None:
            if isinstance(what, Started if output == "speaker" else Sound):
                chat.interrupt()

        answer = await chat.ask(Question("?"), stop)
        if answer.problem or answer.figures.first_sound_ms is None:
            raise common.PerfError(f"an answer was not heard: {answer.problem or 'it ended before'}")
        found.append(answer.figures)
    return found


def rows(found: list[Figures]) -> list[Row]:
    """What was asked until what was heard."""
    tokens, words, sounds = (
        [getattr(one, name) or 0.0 for one in found] for name in ("first_token_ms", "first_word_ms", "first_sound_ms")
    )
    return [
        common.quantiles("question → first token", tokens),
        common.quantiles("question → first word complete", words),
        common.quantiles("question → first sound", sounds),
        common.quantiles("first word complete → first sound", _differences(words, sounds)),
        common.quantiles("between tokens (median of an answer)", [one.token_gap_p50_ms or 0.0 for one in found]),
    ]


def _differences(sooner: list[float], later: list[float]) -> list[float]:
    return [end - begin for begin, end in zip(sooner, later, strict=True)]


async def measure(given: argparse.Namespace) -> None:
    """All groups against one pipeline."""
    began = common.Began()
    rng = random.Random(given.seed)
    settings: Row = {"model.engine": given.engine, "player.output": "none", "player.pace": "realtime"}
    settings["gateway.bind"] = "off"
    tables = {}
    with (
        running.pipeline(given.to, settings) as place,
        ChatServer(
            lambda _: tokens_of(" ".join(texts.sentence(rng) for _ in range(4))),
            first_ms=given.first_ms,
            token_ms=given.token_ms,
        ) as server,
    ):
        async with AsyncClient(place.to) as client:
            for title, output, begin in GROUPS:
                await answers(client, server, output, begin, min(WARM_ANSWERS, given.answers))
                tables[title] = rows(await answers(client, server, output, begin, given.answers))
    speaker = tables[GROUPS[0][0]]
    figures: Row = {
        "word_to_sound_p50_ms": speaker[3]["p50_ms"],
        "word_to_sound_p99_ms": speaker[3]["p99_ms"],
        "question_to_sound_p50_ms": speaker[2]["p50_ms"],
        "question_to_sound_p99_ms": speaker[2]["p99_ms"],
    }
    common.report("chat", given, tables, figures, place.settings, began)


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__)
    parser.add_argument("--answers", type=int, default=100, help="in each group (default: %(default)s)")
    parser.add_argument("--first-ms", type=float, default=100, help="until the first token (default: %(default)s)")
    parser.add_argument("--token-ms", type=float, default=20, help="between two tokens (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, answers=1, first_ms=0, token_ms=0)
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
