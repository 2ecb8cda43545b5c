"""Reading a chat endpoint: against a local one that streams at a set pace, and against ones that misbehave."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from contextlib import aclosing, contextmanager

import openai
import pytest

from ipc.chat_endpoint import ChatEndpoint, ChatError, aloud, whole_characters
from perf.chat_server import MODEL, ChatServer
from tests.harness import until

ASKED = [{"role": "user", "content": "Why?"}]


async def answer(endpoint):
    async with aclosing(endpoint.answer(ASKED)) as pieces:
        return [piece async for piece in pieces]


@contextmanager
def saying(response):
    """A server that answers one request with these bytes and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as request:
                length = 0
                while (line := request.readline().lower()).strip():
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                request.read(length)  # what is not read would reset the connection
                connection.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(10)


def events(*data, length=None):
    body = b"".join(b"data: " + one + b"\n\n" for one in data)
    size = f"Content-Length: {len(body) if length is None else length}\r\n"
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{size}\r\n".encode() + body


async def test_pieces_come_while_they_are_written():
    with ChatServer(lambda _: ["One", " two", " three."], first_ms=30, token_ms=30) as server:
        pieces = await answer(ChatEndpoint(server.url, "m", key="secret"))
        assert [piece.text for piece in pieces] == ["One", " two", " three."]
        gaps = [later.at_s - sooner.at_s for sooner, later in itertools.pairwise(pieces)]
        assert sum(gaps) > 0.02  # not all at once at the end
        assert server.requests[0] == {"model": "m", "messages": ASKED, "stream": True}
        assert server.headers[0]["Authorization"] == "Bearer secret"


async def test_the_stand_in_is_one_that_openais_own_client_reads():
    with ChatServer(lambda _: ["One", " two."], first_ms=0, token_ms=1) as server:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="x") as client:
            stream = await client.chat.completions.create(model="m", messages=ASKED, stream=True)
            said = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(said) == "One two."
            assert [model.id async for model in client.models.list()] == [MODEL]


@pytest.mark.parametrize("path", ["", "/v1", "/v1/", "/v1/chat/completions"])
async def test_the_address_may_be_the_servers_or_the_whole_path_and_the_model_its_first(path):
    with ChatServer(lambda _: ["Hm."], first_ms=0) as server:
        endpoint = ChatEndpoint(server.url.removesuffix("/v1") + path)
        assert [piece.text for piece in await answer(endpoint)] == ["Hm."]
        assert server.requests[0]["model"] == MODEL


async def test_leaving_hangs_up_so_that_the_model_can_stop():
    with ChatServer(lambda _: ["word "] * 10_000, first_ms=0, token_ms=1) as server:
        async with aclosing(ChatEndpoint(server.url, "m").answer(ASKED)) as pieces:
            async for _ in pieces:
                break
        await asyncio.to_thread(until, lambda: server.hung_up == 1, "the server notices")


async def test_a_slow_reader_is_not_run_ahead_of():
    with ChatServer(lambda _: ["x" * 1000] * 30_000, first_ms=0, token_ms=0) as server:
        async with aclosing(ChatEndpoint(server.url, "m").answer(ASKED)) as pieces:
            async for _ in pieces:
                break
            names = [thread for thread in threading.enumerate() if thread.name == "chat-endpoint"]
            assert len(names) == 1
        await asyncio.to_thread(until, lambda: not names[0].is_alive(), "the reading thread leaves")


async def test_what_the_server_refuses_is_told_in_its_words():
    with ChatServer() as server:
        server.fail_with = (503, "loading model")
        with pytest.raises(ChatError, match=r"503 .*: loading model"):
            await answer(ChatEndpoint(server.url, "m"))


async def test_nobody_there_is_an_error_and_no_hang():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ChatError, match="refused"):
        await answer(ChatEndpoint(f"http://127.0.0.1:{port}", "m"))


DELTA = b'{"choices": [{"index": 0, "delta": {"content": "Hi."}, "finish_reason": null}]}'
STOP = b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (events(DELTA), "broke off"),
        (events(DELTA, length=10_000), "broke off|IncompleteRead"),
        (events(b"{no json"), "no answer"),
        (events(b"[1]"), "no answer"),
        (events(b'{"error": {"message": "out of memory"}}'), "out of memory"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", "404 Not Found: nope"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH"),
        (b"", "."),
    ],
)
async def test_an_endpoint_that_misbehaves_is_an_error_that_says_how(response, words):
    with saying(response) as url, pytest.raises(ChatError, match=words):
        await answer(ChatEndpoint(url, "m"))


@pytest.mark.parametrize(
    "response",
    [
        events(DELTA, b"[DONE]"),
        events(DELTA, STOP),
        events(b'{"choices": []}', b'{"choices": [{"delta": {"reasoning_content": "Think."}}]}', DELTA, b"[DONE]"),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        b": a comment\r\ndata:" + DELTA + b"\r\n\r\ndata: [DONE]\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"choices": [{"message": {"content": "Hi."}}]}',
    ],
)
async def test_the_dialects_of_such_servers_are_understood_and_thoughts_not_said(response):
    with saying(response) as url:
        assert [piece.text for piece in await answer(ChatEndpoint(url, "m"))] == ["Hi."]


@pytest.mark.parametrize(
    ("said", "aloud_"),
    [
        (["Hi", " you."], "Hi you."),
        (["\n", "Hi."], "Hi."),
        (["<thi", "nk>Hm", "mm", "</th", "ink>", "\n\n", "Hi", " you."], "Hi you."),
        (["<think>\n</think> Hi."], "Hi."),
        (["<think>", "never", " ends"], ""),
        (["<th", "ree"], "<three"),
        (["<th"], "<th"),
        (["a <think>b</think>"], "a <think>b</think>"),
        ([], ""),
    ],
)
def test_thoughts_in_front_of_an_answer_are_not_said(said, aloud_):
    assert "".join(aloud(iter(said))) == aloud_


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        (["Hi \ud83d", "\ude00!"], "Hi 😀!"),
        (["\ud83d\ude00"], "😀"),
        (["a\ud83d", "b"], "a\ufffdb"),
        (["\ude00"], "\ufffd"),
        (["a\ud83d"], "a\ufffd"),
        (["äöü", "帆"], "äöü帆"),
    ],
)
def test_characters_that_came_in_halves_are_whole(said, whole):
    assert "".join(whole_characters(iter(said))) == whole


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://"])
def test_what_is_no_endpoint_is_refused(url):
    with pytest.raises(ValueError, match="no chat endpoint"):
        ChatEndpoint(url)
