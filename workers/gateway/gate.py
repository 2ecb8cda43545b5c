"""The gate: every request, HTTP or WebSocket, passes here before a door sees it.

In this order: a number for the logs, `Host` (against DNS rebinding), `Origin` (no web page elsewhere may
speak or listen), the key, the rate, the length of the body. What does not pass is answered here, in the
form that the asking client reads; doors raise `GatewayError` and are answered here too.

    /health, /ready and the page's own files need no key: they tell nothing that a key protects.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import socket
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.config import Gateway as GatewayConfig
from pipeline.config_rules import split_tcp
from workers.gateway.errors import Busy, GatewayError, answer
from workers.gateway.metrics import Metrics
from workers.gateway.records import Record, record_of

UPLOADS = ("/api/voices",)
"""Paths whose body may be a recording."""

SUBPROTOCOLS = ("openai-insecure-api-key.", "chatterline-key.")
"""How a browser, which sets no headers on a WebSocket, tells its key: in base64url after the second."""

WAITERS_KEPT = 4096
_PUBLIC = re.compile(r"/|/health|/ready|/docs|/openapi\.json|/page/[\w./-]+|/favicon\.ico")
_LATER = re.compile(r"/v1/text-to-speech/[^/]+/(multi-)?stream-input")
_REQUEST_ID = re.compile(r"[\w.-]{1,64}")
_METHODS = "GET, POST, DELETE, OPTIONS"
_HEADERS = "authorization, content-type, xi-api-key, x-request-id"


class Keys:
    """The API keys, compared in constant time: every key is looked at, by its digest."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def wanted(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._digests)

    def known(self, key: str) -> bool:
        """Whether this is one of them."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return sum([hmac.compare_digest(given, digest) for digest in self._digests]) > 0


class Rate:
    """A bucket of requests for each key or address; the least recently seen are forgotten first."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str) -> None:
        """One request of ``who``. Raises `Busy` when there were too many."""
        if not self._per_minute:
            return
        now = self._clock()
        left, since = self._left.pop(who, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - since) * self._per_minute / 60)
        self._left[who] = (max(left - 1, 0.0) if left >= 1 else left, now)
        while len(self._left) > WAITERS_KEPT:
            self._left.popitem(last=False)
        if left < 1:
            wait_s = (1 - left) * 60 / self._per_minute
            raise Busy(f"more than {self._per_minute} requests a minute (gateway.rate_per_minute)", wait_s)


@dataclass(frozen=True)
class Names:
    """Under which names requests may come, and from which pages."""

    hosts: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def of(cls, config: GatewayConfig) -> Names:
        """As configured; this machine's own name is always one."""
        bound = split_tcp(config.bind)[0].lower() if config.bind != "off" else "localhost"
        hosts = {"localhost", bound, socket.gethostname().lower(), *(host.lower() for host in config.hosts)}
        return cls(frozenset(hosts), frozenset(origin.lower() for origin in config.origins))

    def check_host(self, host: str) -> None:
        """Raises `GatewayError` for a name that is not ours. An address cannot be rebound, so any is."""
        name = re.sub(r":\d+$", "", host.lower())
        if name in self.hosts or _is_address(name):
            return
        raise GatewayError(403, f"Host {host[:200]!r} is not one of this gateway's names (gateway.hosts)", code="host")

    def allowed_origin(self, headers: Mapping[str, str]) -> str:
        """The page's origin if it is one from elsewhere that may use this; empty for our own page and for
        what is no browser. Raises `GatewayError` for any other page."""
        origin = headers.get("origin", "").lower()
        own = origin.removeprefix("http://").removeprefix("https://")
        if origin and own == headers.get("host", "").lower() and origin != own:
            return ""
        if origin and (origin in self.origins or ("*" in self.origins and origin != "null")):
            return headers["origin"]
        foreign = headers.get("sec-fetch-site", "") in ("cross-site", "same-site")
        if origin or (foreign and headers.get("sec-fetch-mode") != "navigate"):
            where = f"the page at {origin[:200]}" if origin else "a page elsewhere"
            raise GatewayError(403, f"{where} may not use this gateway (gateway.origins)", code="origin")
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def key_of(scope: Scope, headers: Mapping[str, str]) -> str:
    """The key that a request brings (empty: none)."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    if given := headers.get("xi-api-key", ""):
        return given
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(SUBPROTOCOLS[0]):
            return str(offered.removeprefix(SUBPROTOCOLS[0]))
        if offered.startswith(SUBPROTOCOLS[1]):
            return _unpacked(offered.removeprefix(SUBPROTOCOLS[1]))
    return ""


def _unpacked(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""


class Gate:
    """The middleware around all doors."""

    def __init__(self, app: ASGIApp, config: GatewayConfig, keys: Keys, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._config = config
        self._keys = keys
        self._names = Names.of(config)
        self._rate = Rate(config.rate_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = self._record(scope, headers)
        passage = _Passage(record, send)
        try:
            early = self._admit(scope, headers, passage)
            if early is not None:
                await early(scope, receive, passage.send)
            else:
                await self._app(scope, _Measured(receive, self._most_bytes(scope)), passage.send)
        except GatewayError as error:
            record.error = record.error or error.message
            await answer(error, scope["path"], headers)(scope, receive, passage.send)
        except asyncio.CancelledError:
            record.error = record.error or "the client is gone"
            raise
        finally:
            record.close()
            self._metrics.answered(record.door, record.status)

    def _record(self, scope: Scope, headers: Mapping[str, str]) -> Record:
        given = headers.get("x-request-id", "")
        own = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex[:16]}"
        method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        record = Record(own, method, scope["path"], (scope.get("client") or ("", 0))[0])
        scope.setdefault("state", {})["record"] = record
        record_of.set(record)
        return record

    def _admit(self, scope: Scope, headers: Headers, passage: _Passage) -> Response | None:
        """Let it pass (None), answer it at once, or raise `GatewayError`."""
        self._names.check_host(headers.get("host", ""))
        origin = self._names.allowed_origin(headers)
        passage.origin = origin
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return _preflight(headers) if origin else PlainTextResponse("", 204)
        key = key_of(scope, headers)
        if self._keys.wanted and not self._keys.known(key) and not self._may_come(scope, key):
            what = "this is no key of this gateway" if key else "a key is needed"
            raise GatewayError(401, f"{what}: send one of gateway.api_keys as Authorization: Bearer or xi-api-key")
        if not _PUBLIC.fullmatch(scope["path"]):
            self._rate.take((key if self._keys.wanted else "") or str((scope.get("client") or ("",))[0]))
        if scope["type"] == "http" and (stated := headers.get("content-length", "")).isdecimal():
            _check_length(int(stated), self._most_bytes(scope))
        return None

    def _may_come(self, scope: Scope, key: str) -> bool:
        """Without a key: to see whether all is well, to load the page, or to bring it in the first message."""
        if scope["type"] == "websocket":
            return not key and _LATER.fullmatch(scope["path"]) is not None
        return scope["method"] in ("GET", "HEAD") and _PUBLIC.fullmatch(scope["path"]) is not None

    def _most_bytes(self, scope: Scope) -> int:
        if scope["type"] == "http" and scope["path"].startswith(UPLOADS):
            return self._config.max_upload_mb * 2**20 + 64 * 1024
        return self._config.max_body_kb * 1024


class _Passage:
    """What goes back: with the request's number, and with what a page elsewhere needs to read it."""

    def __init__(self, record: Record, send: Send) -> None:
        self._record = record
        self._send = send
        self.origin = ""

    async def send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
            self._record.status = message.get("status", 101)
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._record.id
            if message["type"] == "http.response.start":
                headers.setdefault("cache-control", "no-store")
                headers["x-content-type-options"] = "nosniff"
                headers.add_vary_header("Origin")
            if self.origin:
                headers["access-control-allow-origin"] = self.origin
                headers["access-control-expose-headers"] = "x-request-id, retry-after"
        elif message["type"] in ("http.response.body", "websocket.send"):
            self._record.sent(len(message.get("body") or message.get("bytes") or message.get("text") or b""))
        elif message["type"] == "websocket.close":
            self._record.close_code = message.get("code", 1000)
        await self._send(message)


class _Measured:
    """What comes in, counted: a body that grows too long is refused while it comes."""

    def __init__(self, receive: Receive, most_bytes: int) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            _check_length(self._bytes, self._most_bytes)
        return message


def _check_length(count: int, most: int) -> None:
    if count > most:
        raise GatewayError(413, f"the request is longer than {most:,} bytes (gateway.max_body_kb, max_upload_mb)")


def _preflight(headers: Headers) -> Response:
    allowed = {"access-control-allow-methods": _METHODS, "access-control-allow-headers": _HEADERS}
    if headers.get("access-control-request-private-network") == "true":
        allowed["access-control-allow-private-network"] = "true"
    return PlainTextResponse("", 204, allowed | {"access-control-max-age": "600"})
