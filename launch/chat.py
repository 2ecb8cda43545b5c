"""`speak --chat`: questions to a language model, its answers aloud while it writes them.

One question from the command line, or one a line from standard input for as long as that lasts: then each
silences the answer before, and the model is told only what was heard of that. An empty line just silences.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ipc.chat import Chat
from ipc.chat_endpoint import ChatEndpoint, ChatError, Piece
from ipc.chat_exchange import Answer, Figures, Told
from ipc.chat_memory import Memory, Question, spoken_question
from ipc.client import AsyncClient, SpeakOptions
from ipc.client_errors import ChatterlineError
from ipc.client_track import Sound
from ipc.messages import Audio, Failed
from launch.sound_out import Sink, open_sink, sink_kind
from launch.speaking import as_it_comes

OK, SILENCED, TERMINATED = 0, 4, 143


@dataclass(frozen=True)
class Where:
    """The pipeline, and the folder with our keys."""

    to: str
    curve: str | None


def chat(where: Where, options: SpeakOptions, given: argparse.Namespace) -> int:
    """Do what the command line says; the exit code. Raises `ChatterlineError`, `OSError` and `ValueError`."""
    if given.out:
        sink_kind(given.out)
    return asyncio.run(_Chatting(where, options, given).run())


class _Chatting:
    """One run of the command."""

    def __init__(self, where: Where, options: SpeakOptions, given: argparse.Namespace) -> None:
        self._where, self._options, self._given = where, options, given
        key = Path(given.chat_key).expanduser().read_text(encoding="utf-8").strip() if given.chat_key else ""
        self._endpoint = ChatEndpoint(given.chat, given.model or "", key=key)
        self._memory = Memory(given.system or "")
        if given.memory:
            self._memory.load(Path(given.memory))
        self._question = self._from_command_line()
        self._sink: Sink | None = None
        self._terminated = False

    def _from_command_line(self) -> Question | None:
        """The question; None: they come from standard input."""
        words = "" if self._given.text == ["-"] else " ".join(self._given.text)
        if self._given.audio:
            return spoken_question(Path(self._given.audio), words)
        return Question(words) if words else None

    async def run(self) -> int:
        """Talk, and remember."""
        main = asyncio.current_task()
        assert main is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._terminate, main)
        try:
            async with AsyncClient(self._where.to, curve=self._where.curve) as client:
                await client.voices()  # nothing is asked of a model that nobody could speak for
                talk = Chat(client, self._endpoint, options=self._options, memory=self._memory, begin=self._given.begin)
                with ExitStack() as stack:
                    if self._given.out:
                        self._sink = stack.enter_context(open_sink(self._given.out))
                    if self._question is None:
                        return await self._many(talk)
                    return await self._one(talk, self._question)
        except asyncio.CancelledError:
            if self._terminated:
                return TERMINATED
            raise
        finally:
            if self._given.memory:
                self._memory.save(Path(self._given.memory))

    def _terminate(self, main: asyncio.Task[int]) -> None:
        self._terminated = True
        main.cancel()

    async def _one(self, talk: Chat, question: Question) -> int:
        answer = await self._ask(talk, question)
        if answer.problem:
            raise ChatError(answer.problem)
        return SILENCED if answer.interrupted else OK

    async def _many(self, talk: Chat) -> int:
        """A question a line, until there are no more and the last answer was heard."""
        if sys.stdin.isatty():
            print("Ask, a question a line. An empty line silences, Ctrl-D ends.", file=sys.stderr)
        try:
            async with asyncio.TaskGroup() as answering:
                async for line in _lines(sys.stdin.fileno()):
                    talk.interrupt()
                    if line.strip():
                        answering.create_task(self._answer(talk, Question(line.strip())))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return OK

    async def _answer(self, talk: Chat, question: Question) -> None:
        try:
            answer = await self._ask(talk, question)
        except ChatterlineError as error:
            print(f"speak: {error}", file=sys.stderr, flush=True)
            return
        if answer.problem:
            print(f"speak: {answer.problem}", file=sys.stderr, flush=True)

    async def _ask(self, talk: Chat, question: Question) -> Answer:
        answer = await talk.ask(question, self._tell)
        if self._given.json:
            print(msgspec.json.encode({"type": "answer", **msgspec.to_builtins(answer)}).decode(), flush=True)
            return answer
        if self._given.out != "-":
            print(flush=True)
        if answer.interrupted:
            print(f"silenced; heard: {answer.heard!r}", file=sys.stderr)
        if answer.text:
            print(told(answer.figures), file=sys.stderr, flush=True)
        return answer

    async def _tell(self, what: Told) -> None:
        """What happens, as it happens."""
        match what:
            case Piece(text=text) if self._given.json:
                print(msgspec.json.encode({"type": "token", "text": text}).decode(), flush=True)
            case Piece(text=text):
                if self._given.out != "-":
                    print(text, end="", flush=True)
            case Sound():
                if self._sink is not None:
                    self._sink.write(what.pcm)
                if self._given.json:
                    audio = Audio(id=what.id, first_sample=what.first_sample, samples=what.count)
                    print(msgspec.json.encode(audio).decode(), flush=True)
            case _:
                if self._given.json:
                    print(msgspec.json.encode(what).decode(), flush=True)
                elif isinstance(what, Failed) and not what.final:
                    print(f"speak: characters {what.chars[0]} to {what.chars[1]}: {what.reason}", file=sys.stderr)


def told(figures: Figures) -> str:
    """The figures of an answer in a line."""
    parts = [
        f"{name} {value:.0f} ms"
        for name, value in (
            ("first token", figures.first_token_ms),
            ("first word", figures.first_word_ms),
            ("first sound", figures.first_sound_ms),
        )
        if value is not None
    ]
    if figures.first_sound_ms is not None and figures.first_word_ms is not None:
        parts[-1] += f" ({figures.first_sound_ms - figures.first_word_ms:.0f} ms after the word)"
    if figures.token_gap_p50_ms is not None:
        parts.append(f"between tokens {figures.token_gap_p50_ms:.1f} ms (p90 {figures.token_gap_p90_ms:.1f})")
    return ", ".join([*parts, f"{figures.tokens} tokens, {figures.seconds:.1f} s heard"])


async def _lines(descriptor: int) -> AsyncIterator[str]:
    """Lines as they are typed. A thread reads them, which a program's end does not wait for."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    def put(line: str | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(lines.put_nowait, line)

    def read() -> None:
        pending = ""
        for piece in as_it_comes(descriptor):
            *whole, pending = (pending + piece).split("\n")
            for line in whole:
                put(line)
        if pending:
            put(pending)
        put(None)

    threading.Thread(target=read, name="questions", daemon=True).start()
    while (line := await lines.get()) is not None:
        yield line
