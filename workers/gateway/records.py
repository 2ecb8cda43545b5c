"""One line in the log for each request, with its number: for people, or as JSON for programs.

No text that is spoken, no key and no query string ever stands in it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

log = logging.getLogger("gateway")
RESERVED = frozenset(vars(logging.makeLogRecord({})))


class Record:
    """What is noted of one request; closed once, when it is over."""

    def __init__(self, id: str, method: str, path: str, client: str) -> None:
        self.id = id
        self.method = method
        self.path = path
        self.client = client
        self.status = 0
        self.close_code: int | None = None
        self.error = ""
        self.voice = ""
        self.door = "other"
        """Who answered, for the figures; a door says its name."""
        self.utterances: list[str] = []
        self.first_sound_ms: float | None = None
        self._bytes = 0
        self._began_s = time.monotonic()
        self._closed = False

    @property
    def age_s(self) -> float:
        """Since the request came."""
        return time.monotonic() - self._began_s

    def sent(self, count: int) -> None:
        """So many bytes more went out."""
        self._bytes += count

    def sounded(self) -> None:
        """The first sound went out."""
        if self.first_sound_ms is None:
            self.first_sound_ms = round(self.age_s * 1000, 1)

    def close(self) -> None:
        """Write the line. Questions that are asked all the time are not worth one unless they fail."""
        if self._closed:
            return
        self._closed = True
        quiet = self.path in ("/health", "/ready", "/metrics") and self.status < 400
        facts = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path[:200],
            "client": self.client,
            "status": self.status,
            "close_code": self.close_code,
            "ms": round(self.age_s * 1000, 1),
            "bytes": self._bytes,
            "voice": self.voice,
            "utterances": self.utterances[:8],
            "first_sound_ms": self.first_sound_ms,
            "error": self.error,
        }
        told = {name: value for name, value in facts.items() if value not in (None, "", [])}
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra=told)


record_of: ContextVar[Record | None] = ContextVar("record_of", default=None)
"""The request that is being answered."""


class _Lines(logging.Formatter):
    """Time, level, what, and the facts as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={_shown(value)}" for name, value in _facts(record).items())
        line = f"{record.levelname.lower()}  {record.getMessage()}  {facts}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        told = {"time": when, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told | _facts(record), ensure_ascii=False, default=str)


def _facts(record: logging.LogRecord) -> dict[str, object]:
    facts = {name: value for name, value in vars(record).items() if name not in RESERVED and name != "color_message"}
    current = record_of.get()
    if current is not None and "request_id" not in facts:
        facts = {"request_id": current.id} | facts
    return {name: value for name, value in facts.items() if name not in ("message", "asctime", "taskName")}


def _shown(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text.isprintable() or " " in text else text


def set_up(style: Literal["text", "json"]) -> None:
    """Send everything that is logged to standard error, in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
