"""The page for people with a browser, and what it asks for besides speech.

    /  /page/…                the page's own files: no build step, nothing from elsewhere
    GET  /api/voices          voices, languages, settings; what else the page has to know
    POST /api/voices/{name}   a reference recording (the body) as a new voice
    GET  /api/watch           the pipeline's state again and again, with its timeline (server-sent events)
    POST /api/chat            a question to the configured language model, streamed back

Speech itself comes over the live door. `/api/chat` calls the one address that the configuration names
(`gateway.chat_url`; empty, as by default: none), never one that a request names: else whoever reaches the
gateway could reach through it what the gateway can reach.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from ipc.chat_endpoint import ChatEndpoint, ChatError
from ipc.client_errors import ChatterlineError
from pipeline.voices import LONGEST_S, SHORTEST_S, UPLOAD_BYTES
from workers.gateway.errors import GatewayError, translated
from workers.gateway.recording import measured

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self' http: https:",  # a language model's endpoint, where the page's user names one
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
LEAST_EVERY_MS, MOST_EVERY_MS = 50, 10_000
MOST_UPLOADS = 4


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/api/chat`: the conversation so far, as a chat endpoint takes it."""

    messages: list[dict[str, Any]]


def routes(gateway: Gateway) -> Sequence[BaseRoute]:
    """The page and its helpers."""
    pages = _pages()

    async def page(request: Request) -> Response:
        return _file(pages, request.path_params.get("name", "index.html"), request.headers)

    async def favicon(request: Request) -> Response:
        return _file(pages, "icon.svg", request.headers)

    async def voices(_request: Request) -> Response:
        return Response(msgspec.json.encode(await _facts(gateway)), media_type="application/json")

    async def add_voice(request: Request) -> Response:
        return await _add_voice(gateway, request)

    async def watch(request: Request) -> Response:
        return _events(gateway, "watchers", _states(gateway, _every_ms(request)))

    async def chat(request: Request) -> Response:
        return await _chat(gateway, request)

    return [
        Route("/", page),
        Route("/page/{name}", page),
        Route("/favicon.ico", favicon),
        Route("/api/voices", voices),
        Route("/api/voices/{name}", add_voice, methods=["POST"]),
        Route("/api/watch", watch),
        Route("/api/chat", chat, methods=["POST"]),
    ]


# ---------------------------------------------------------------- files


def _pages() -> dict[str, tuple[bytes, dict[str, str]]]:
    """The page's files with their headers, read once: what is not here is not served, whatever is asked for."""
    found = {}
    for file in files("workers.gateway").joinpath("page").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in KINDS:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[file.name] = content, HEADERS | {"Content-Type": KINDS[suffix], "ETag": tag}
    return found


def _file(pages: Mapping[str, tuple[bytes, dict[str, str]]], name: str, asked: Mapping[str, str]) -> Response:
    if name not in pages:
        raise GatewayError(404, f"there is nothing at /page/{name[:200]}")
    content, headers = pages[name]
    if asked.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)


# ---------------------------------------------------------------- voices


async def _facts(gateway: Gateway) -> dict[str, Any]:
    listed = await gateway.speaking.voices()
    config = gateway.config
    return {
        "engine": listed.engine,
        "default": listed.default,
        "voices": listed.voices,
        "languages": listed.languages,
        "settings": listed.settings,
        "cloning": listed.cloning,
        "chat": config.chat_url and f"{config.chat_model or 'the model'} at {urlsplit(config.chat_url).netloc}",
        "upload_bytes": min(config.max_upload_mb * 2**20, UPLOAD_BYTES),
        "shortest_s": SHORTEST_S,
        "longest_s": min(config.max_upload_s, LONGEST_S),
    }


async def _add_voice(gateway: Gateway, request: Request) -> Response:
    """Decode the recording as far as is allowed, hand it to the pipeline, tell what it is like."""
    name = request.path_params["name"]
    with gateway.speaking.place("uploads", MOST_UPLOADS, "a gateway"):
        data = await request.body()
        found = await run_in_threadpool(measured, data, gateway.config.max_upload_s)
        try:
            await gateway.client.add_voice(name, data)
        except ChatterlineError as error:
            raise translated(error) from error
    await gateway.speaking.aliases(fresh=True)
    return JSONResponse({"voice": name, **found})


# ---------------------------------------------------------------- events


def _events(gateway: Gateway, kind: str, events: AsyncGenerator[str, None]) -> Response:
    """Server-sent events that hold a place as long as somebody reads them."""

    def place() -> AbstractContextManager[None]:
        return gateway.speaking.place(kind, gateway.config.max_sockets, "gateway.max_sockets")

    async def stream() -> AsyncGenerator[str, None]:
        with place():
            async with aclosing(events):
                async for event in events:
                    yield f"data: {event}\n\n"

    with place():  # once the answer has begun, it would be too late to refuse
        pass
    return StreamingResponse(stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _every_ms(request: Request) -> int:
    given = request.query_params.get("every_ms", "500")
    if not given.isdecimal() or len(given) > 6:
        raise GatewayError(400, "every_ms must be a whole number of milliseconds", param="every_ms")
    return min(max(int(given), LEAST_EVERY_MS), MOST_EVERY_MS)


async def _states(gateway: Gateway, every_ms: int) -> AsyncGenerator[str, None]:
    try:
        async with aclosing(gateway.client.watch(every_ms, timeline=True)) as states:
            async for state in states:  # what others have spoken is not the page's business
                yield msgspec.json.encode(msgspec.structs.replace(state, speaking=())).decode()
    except ChatterlineError as error:
        yield msgspec.json.encode({"type": "problem", "message": str(error)}).decode()


async def _chat(gateway: Gateway, request: Request) -> Response:
    config = gateway.config
    if not config.chat_url:
        raise GatewayError(404, "this gateway asks no language model (gateway.chat_url)", code="no_chat")
    try:
        asked = msgspec.json.decode(await request.body(), type=ChatRequest)
    except msgspec.DecodeError as error:
        raise GatewayError(400, f"the body is a JSON object with messages: {error}", param="messages") from error
    endpoint = ChatEndpoint(config.chat_url, config.chat_model, key=config.chat_key)
    pieces = endpoint.answer(asked.messages)
    try:  # what goes wrong before the first word has a status of its own
        first = await anext(pieces, None)
    except ChatError as error:
        raise GatewayError(502, str(error), code="chat") from error

    async def told() -> AsyncGenerator[str, None]:
        async with aclosing(pieces):
            try:
                if first is not None:
                    yield _delta(first.text)
                async for piece in pieces:
                    yield _delta(piece.text)
                yield "[DONE]"
            except ChatError as error:
                yield msgspec.json.encode({"error": {"message": str(error)}}).decode()

    return _events(gateway, "questions", told())


def _delta(text: str) -> str:
    return msgspec.json.encode({"choices": [{"index": 0, "delta": {"content": text}}]}).decode()
