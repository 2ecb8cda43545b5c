"""A stand-in for a language model: an OpenAI-compatible chat endpoint that writes what it is told to, at a set pace.

    python -m perf.chat_server --port 8000 --first-ms 100 --token-ms 20
    speak --chat http://127.0.0.1:8000 "Hello?"

It serves tests and measurements (`ChatServer`), and shows `speak --chat` where there is no model.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

ANSWER = (
    "A sailing boat can go against the wind, though never straight into it. Its sail is a wing that stands upright: "
    "the air that flows past it pulls the boat sideways and a little forward. The keel under the boat holds against "
    "the sideways part. What is left is the part that goes forward."
)
MODEL = "paced"

Script = Callable[[list[dict[str, Any]]], Sequence[str]]
"""From the messages of a request to the tokens of the answer."""


def tokens_of(text: str) -> list[str]:
    """Text as a model writes it: words with the space before them, marks apart."""
    return re.findall(r"\s*\w+|\s*[^\w\s]|\s+", text)


class ChatServer:
    """The endpoint, in threads of its own. The first token comes ``first_ms`` after the request, the n-th
    ``token_ms`` times n - 1 later by the clock, whatever the client does meanwhile.

    ``requests`` are the bodies that came; ``hung_up`` counts clients that left before the end.
    """

    def __init__(
        self, script: Script | None = None, *, first_ms: float = 100, token_ms: float = 20, port: int = 0
    ) -> None:
        self.script: Script = script or (lambda _: tokens_of(ANSWER))
        self.first_ms, self.token_ms = first_ms, token_ms
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hung_up = 0
        self.fail_with: tuple[int, str] | None = None
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.chat = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="chat-server")

    @property
    def url(self) -> str:
        """What `speak --chat` takes."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def paced(self, tokens: Sequence[str]) -> Iterator[str]:
        """Each token when it is due."""
        began_s = time.monotonic()
        for number, token in enumerate(tokens):
            due_s = began_s + (self.first_ms + number * self.token_ms) / 1000
            time.sleep(max(0.0, due_s - time.monotonic()))
            yield token


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    chat: ChatServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_OPTIONS(self) -> None:
        """Whether a page in a browser may ask: any may, as with vLLM."""
        self._send(200, {})

    def end_headers(self) -> None:
        """The same with every answer."""
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Headers", "*, Authorization")
        super().end_headers()

    def do_GET(self) -> None:
        """The models."""
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "perf"}]})

    def do_POST(self) -> None:
        """A chat completion, as a stream."""
        chat = self.server.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat.requests.append(body)
        chat.headers.append(dict(self.headers))
        if chat.fail_with is not None:
            status, reason = chat.fail_with
            self._send(status, {"error": {"message": reason, "type": "server_error"}})
            return
        tokens = chat.script(body["messages"])
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(tokens)}
            self._send(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
            for token in chat.paced(tokens):
                self._event({"delta": {"content": token}, "finish_reason": None})
            self._event({"delta": {}, "finish_reason": "stop"})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            chat.hung_up += 1
            self.close_connection = True

    def _event(self, choice: dict[str, Any]) -> None:
        event = {"object": "chat.completion.chunk", "model": MODEL, "choices": [{"index": 0, **choice}]}
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--first-ms", type=float, default=100, help="until the first token (default: %(default)s)")
    parser.add_argument("--token-ms", type=float, default=20, help="between tokens (default: %(default)s)")
    given = parser.parse_args(argv)
    with ChatServer(first_ms=given.first_ms, token_ms=given.token_ms, port=given.port) as server:
        print(f"a paced answer to any question at {server.url}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
