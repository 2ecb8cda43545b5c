"""Speech from a language model: its answer is spoken while it is being written, and a new question silences it.

    chat = Chat(client, ChatEndpoint("http://localhost:8000/v1"))
    answer = await chat.ask(Question("Why is the sky blue?"))
    answer.heard, answer.figures.first_sound_ms

What the model is told of its earlier answers is what was heard of them.
"""

from __future__ import annotations

import asyncio
import uuid
from time import monotonic
from typing import Literal

from ipc.chat_endpoint import ChatEndpoint
from ipc.chat_exchange import Answer, Exchange, Teller, Told
from ipc.chat_memory import Memory, Question
from ipc.chat_pace import Pace
from ipc.client import AsyncClient, SpeakOptions

Begin = Literal["auto", "word", "clause"]
"""When the voice begins: with the first word, or with the first complete clause, which sounds better and is
later. ``auto``: the first word where making sound of it costs nothing (the built-in voice)."""

QUICK_ENGINES = ("espeak",)


class Chat:
    """A conversation with a model, aloud. ``options`` as in `AsyncClient.speak`. One answer at a time."""

    def __init__(
        self,
        client: AsyncClient,
        endpoint: ChatEndpoint,
        *,
        options: SpeakOptions | None = None,
        memory: Memory | None = None,
        begin: Begin = "auto",
    ) -> None:
        self._client, self._endpoint = client, endpoint
        self._options: SpeakOptions = {"conversation": f"chat-{uuid.uuid4().hex[:8]}", **(options or {})}
        self.memory = memory or Memory()
        self._begin: Begin = begin
        self._turn = asyncio.Lock()
        self._asked = 0
        self._silenced = 0
        self._current: Exchange | None = None

    async def ask(self, question: Question, tell: Teller | None = None) -> Answer:
        """Ask, and speak the answer; what it is told in pieces goes to ``tell`` as it comes.

        Silences the answer before, and is silenced by the next question or by `interrupt`. Raises
        `ChatterlineError` when the pipeline can't speak; what the model's side does wrong is the answer's ``problem``.
        """
        asked_s = monotonic()
        self.interrupt()
        self._asked += 1
        number = self._asked
        async with self._turn:
            eager = await self._eager()
            if number <= self._silenced:  # before it had its turn
                self.memory.add(question, "")
                return Answer(interrupted=True)
            exchange = Exchange(self._client, self._options, Pace(eager), tell or _nobody, asked_s)
            self._current = exchange
            try:
                return await exchange.run(self._endpoint, self.memory.messages(question))
            finally:
                self._current = None
                self.memory.add(question, exchange.answer.heard)

    def interrupt(self) -> None:
        """Silence the answer that is being spoken, if there is one, and those that wait."""
        self._silenced = self._asked
        if self._current is not None:
            self._current.interrupt()

    async def played(self, samples: int) -> None:
        """A stream's listener has played so many samples of the answer; see `AsyncSpeech.played`."""
        if self._current is not None:
            await self._current.played(samples)

    async def _eager(self) -> bool:
        if self._begin == "auto":
            self._begin = "word" if (await self._client.voices()).engine in QUICK_ENGINES else "clause"
        return self._begin == "word"


async def _nobody(_: Told) -> None:
    pass
