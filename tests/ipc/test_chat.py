"""When a model's words are handed to the pipeline and hurried: against a dispatcher that answers by script."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ipc.chat import Chat
from ipc.chat_endpoint import ChatEndpoint
from ipc.chat_memory import Question
from ipc.client import AsyncClient
from ipc.client_errors import SpeechError
from perf.chat_server import ChatServer
from tests.ipc.fake_dispatcher import FakeDispatcher, accepted, cancelled, finished, rejected


@pytest.fixture
def fake():
    with FakeDispatcher(speaking) as one:
        yield one


@pytest.fixture
async def client(fake):
    async with AsyncClient(fake.to) as one:
        yield one


@pytest.fixture
def held():
    """What the server waits for before it writes its third token."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def server(held):
    def paced(tokens):
        for number, token in enumerate(tokens):
            if number == 2:
                held.wait(30)
            yield token

    with ChatServer(lambda _: ["Sail", "ing ", "boats, ", "again."]) as one:
        one.paced = paced
        yield one


def speaking(fake, peer, request):
    """A pipeline that takes all and speaks when the text is complete."""
    match request["type"]:
        case "speak":
            fake.state[request["id"]] = request["text"]
            fake.send(peer, accepted(request))
        case "text":
            fake.state[request["id"]] += request["text"]
        case "end":
            fake.send(peer, finished(request, 24_000, len(fake.state[request["id"]])))
        case "cancel":
            fake.send(peer, cancelled(request, fake.state[request["id"]][:4]))
        case "voices":
            answer(fake, peer, "espeak")


def answer(fake, peer, engine):
    fake.send(
        peer,
        {"type": "voices", "engine": engine, "default": "v", "cloning": False, "languages": [], "voices": [],
         "settings": []},
    )  # fmt: skip


async def ask(client, server, **options):
    return await Chat(client, ChatEndpoint(server.url, "m"), **options).ask(Question("?"))


@pytest.mark.parametrize("begin", ["word", "auto"])
async def test_the_first_word_is_hurried_as_soon_as_it_is_complete(fake, client, server, held, begin):
    asking = asyncio.ensure_future(ask(client, server, begin=begin))
    await asyncio.to_thread(fake.until, "flush")
    (request,) = fake.of("speak")
    assert request["text"] + "".join(text["text"] for text in fake.of("text")) == "Sailing "
    held.set()
    assert (await asking).heard == "Sailing boats, again."
    assert len(fake.of("flush")) == 1


async def test_with_the_clause_nothing_is_hurried(fake, client, server, held):
    held.set()
    assert (await ask(client, server, begin="clause")).heard == "Sailing boats, again."
    assert fake.of("flush") == []


async def test_a_slow_engine_gets_its_clause_by_itself(fake, client, server, held):
    def slow(fake, peer, request):
        if request["type"] == "voices":
            answer(fake, peer, "chatterbox")
        else:
            speaking(fake, peer, request)

    fake.script = slow
    held.set()
    await ask(client, server)
    assert fake.of("flush") == []


async def test_what_the_pipeline_refuses_stops_the_model(fake, client, server):
    fake.script = lambda fake, peer, request: (
        fake.send(peer, rejected(request, "voice", "no such voice"))
        if request["type"] == "speak"
        else speaking(fake, peer, request)
    )
    with pytest.raises(SpeechError, match="no such voice"):
        await ask(client, server, begin="word")


async def test_what_fails_while_the_model_is_silent_is_not_waited_for(fake, client, server):
    def failing(fake, peer, request):
        if request["type"] == "flush":
            failed = {"type": "failed", "id": request["id"], "reason": "broken", "chars": [0, 8], "final": True}
            fake.send(peer, failed)
        else:
            speaking(fake, peer, request)

    fake.script = failing
    with pytest.raises(SpeechError, match="broken"):
        await asyncio.wait_for(ask(client, server, begin="word"), 20)


async def test_an_interrupt_is_a_cancel_and_tells_what_was_heard(fake, client, server):
    chat = Chat(client, ChatEndpoint(server.url, "m"), begin="word")
    asking = asyncio.ensure_future(chat.ask(Question("?")))
    await asyncio.to_thread(fake.until, "flush")
    chat.interrupt()
    answered = await asyncio.wait_for(asking, 20)
    assert (answered.heard, answered.interrupted) == ("Sail", True)
    assert len(fake.of("cancel")) == 1
    assert chat.memory.messages(Question("!"))[1] == {"role": "assistant", "content": "Sail"}


async def test_a_task_that_is_cancelled_silences_too(fake, client, server):
    chat = Chat(client, ChatEndpoint(server.url, "m"), begin="word")
    asking = asyncio.ensure_future(chat.ask(Question("?")))
    await asyncio.to_thread(fake.until, "flush")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.to_thread(fake.until, "cancel")
    assert chat.memory.messages(Question("!"))[1]["content"] == "Sail"
