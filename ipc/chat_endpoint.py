"""A language model behind an OpenAI-compatible chat endpoint, read as it writes: vLLM, llama.cpp, Ollama
and others answer `POST …/chat/completions` with ``stream: true`` by server-sent events.

    async with aclosing(ChatEndpoint("http://localhost:8000/v1").answer(messages)) as pieces:
        async for piece in pieces: ...

`http.client` reads in a thread of its own, which waits while the pieces are not taken. Closing the
generator closes the connection at once, which is how such servers learn to stop generating.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ipc.client_errors import ChatterlineError

Message = dict[str, Any]
"""As the endpoint takes it: ``role`` and ``content``."""

CONNECT_S = 10.0
SILENCE_S = 120.0
"""Longest wait for the model's next piece; a first one may have to wait for others, or for the model to load."""

LINE_BYTES = 2**20
ERROR_BYTES = 2000
UNREAD_PIECES = 256
THINK, THOUGHT = "<think>", "</think>"


class ChatError(ChatterlineError):
    """The chat endpoint can't be reached, refused, or broke off."""


@dataclass(frozen=True)
class Piece:
    """What the model wrote next, usually a token, and when it arrived here (`time.monotonic`)."""

    text: str
    at_s: float


class ChatEndpoint:
    """Where the model is: ``url`` is the server's (``http://host:8000``), its ``/v1``, or the whole path.

    ``model`` empty: the first that the server lists. ``key`` goes along as Bearer.
    """

    def __init__(self, url: str, model: str = "", *, key: str = "", silence_s: float = SILENCE_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no chat endpoint; one is http://localhost:8000/v1")
        if any(ord(char) < 33 or ord(char) > 126 for char in key):
            raise ValueError("the key of the chat endpoint holds a character that no header can carry")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self._base = path or "/v1"
        self._query = f"?{parts.query}" if parts.query else ""
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, parts.port
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._silence_s = silence_s
        self.url = f"{parts.scheme}://{parts.netloc}{self._base}/chat/completions"
        self.model = model

    async def choose_model(self) -> str:
        """The model's name; asks the server for its first when none was given."""
        if not self.model:
            self.model = await asyncio.to_thread(self._first_model)
        return self.model

    async def answer(self, messages: Sequence[Message]) -> AsyncGenerator[Piece, None]:
        """What the model answers, piece by piece. Raises `ChatError`."""
        body = {"model": await self.choose_model(), "messages": list(messages), "stream": True}
        path = f"{self._base}/chat/completions{self._query}"
        reading = _Reading(self._connection(), path, body, self._headers, self.url, self._silence_s)
        reading.start()
        try:
            while (piece := await reading.next()) is not None:
                yield piece
        finally:
            reading.close()

    def _first_model(self) -> str:
        connection = self._connection()
        try:
            connect(connection, self._silence_s)
            connection.request("GET", f"{self._base}/models{self._query}", headers=self._headers)
            return str(json.loads(_checked(connection.getresponse(), self.url).read(LINE_BYTES))["data"][0]["id"])
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self.url, error) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ChatError(f"{self.url} lists no models; say which one to ask (--model)") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._scheme == "https":
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_S, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)


def connect(connection: http.client.HTTPConnection, silence_s: float) -> socket.socket:
    """Connect; from then on reading waits ``silence_s`` at most. The socket, which `http.client` forgets."""
    connection.connect()
    sock: socket.socket = connection.sock
    sock.settimeout(silence_s)
    return sock


class _Reading:
    """One answer, read by a thread. `next` and `close` belong to the event loop that made it."""

    def __init__(
        self, connection: http.client.HTTPConnection, path: str, body: Message, headers: Mapping[str, str], url: str,
        silence_s: float,
    ) -> None:  # fmt: skip
        self._connection, self._path, self._headers, self._url = connection, path, headers, url
        self._body = json.dumps(body).encode()
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._read: asyncio.Queue[Piece | ChatError | None] = asyncio.Queue()
        self._room = threading.Semaphore(UNREAD_PIECES)
        self._closed = False
        self._sock: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="chat-endpoint", daemon=True)

    def start(self) -> None:
        """Ask."""
        self._thread.start()

    async def next(self) -> Piece | None:
        """The next piece; None after the last. Raises `ChatError`."""
        item = await self._read.get()
        self._room.release()
        if isinstance(item, ChatError):
            raise item
        return item

    def close(self) -> None:
        """Hang up; the thread leaves by itself."""
        self._closed = True
        self._room.release()
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            for text in self._pieces():
                self._put(Piece(text, time.monotonic()))
                if self._closed:
                    return
            self._put(None)
        except ChatError as error:
            self._put(error)
        except TimeoutError:
            self._put(ChatError(f"{self._url}: nothing came for {self._silence_s:g} s"))
        except (OSError, http.client.HTTPException) as error:
            self._put(_unreachable(self._url, error))
        finally:
            self._connection.close()

    def _pieces(self) -> Iterator[str]:
        self._sock = connect(self._connection, self._silence_s)
        if self._closed:  # while it connected: there was nothing to shut down yet
            return
        self._connection.request("POST", self._path, self._body, dict(self._headers))
        response = _checked(self._connection.getresponse(), self._url)
        if response.headers.get_content_type() == "text/event-stream":
            yield from aloud(whole_characters(_streamed(response, self._url)))
        else:  # it does not stream: all at once is better than nothing
            yield from aloud(whole_characters(_said(response.read(), "message", self._url)))

    def _put(self, item: Piece | ChatError | None) -> None:
        self._room.acquire()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._read.put_nowait, item)


def _streamed(response: http.client.HTTPResponse, url: str) -> Iterator[str]:
    """The words in server-sent events. Raises `ChatError` when they end and the answer has not."""
    data: list[bytes] = []
    complete = False
    while line := response.readline(LINE_BYTES):
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            whole = b"\n".join(data)
            data.clear()
            if whole == b"[DONE]":
                return
            complete = complete or b'"finish_reason": "' in whole or b'"finish_reason":"' in whole
            yield from _said(whole, "delta", url)
    if not complete:
        raise ChatError(f"{url}: the answer broke off")


def _said(data: bytes, part: str, url: str) -> Iterator[str]:
    """The words in one event (``part`` is ``delta``) or in a whole answer (``message``). What a model thinks
    before it answers comes apart (``reasoning_content``) and is not said."""
    try:
        event = json.loads(data)
        if error := event.get("error"):
            raise ChatError(f"{url}: {error.get('message', error) if isinstance(error, dict) else error}")
        texts = [(choice.get(part) or {}).get("content") for choice in event.get("choices") or ()]
    except (ValueError, AttributeError, TypeError) as error:
        raise ChatError(f"{url} sent what is no answer: {data[:200]!r}") from error
    yield from (text for text in texts if isinstance(text, str) and text)


def whole_characters(texts: Iterator[str]) -> Iterator[str]:
    """The same text with surrogates joined, which JSON may tell apart, and U+FFFD in place of one that is alone."""
    half = ""
    for text in texts:
        text, half = half + text, ""
        if "\ud800" <= text[-1] <= "\udbff":
            text, half = text[:-1], text[-1]
        if text:
            yield text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if half:
        yield "\ufffd"


def aloud(texts: Iterator[str]) -> Iterator[str]:
    """The answer without what some servers leave in front of it: ``<think>`` thoughts ``</think>``."""
    held = ""  # the beginning, as long as it may be a thought
    for text in texts:
        held = (held + text).lstrip()
        if held.startswith(THINK):
            thought, closed, rest = held.partition(THOUGHT)
            held = rest.lstrip() if closed else THINK + thought[len(THINK) :][1 - len(THOUGHT) :]
            if not closed or not held:
                continue
        elif THINK.startswith(held):
            continue
        yield held
        yield from texts
        return
    if not held.startswith(THINK):
        yield held


def _checked(response: http.client.HTTPResponse, url: str) -> http.client.HTTPResponse:
    """The response, if the server took the request."""
    if response.status == http.client.OK:
        return response
    said = response.read(ERROR_BYTES).decode(errors="replace").strip()
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(said)["error"]["message"]
    raise ChatError(f"{url}: {response.status} {response.reason}: {said}")


def _unreachable(url: str, error: Exception) -> ChatError:
    return ChatError(f"{url}: {error or type(error).__name__}")
