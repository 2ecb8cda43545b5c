"""What a door answers when it cannot do what was asked, in the form that its clients read.

One exception for all: a status, a sentence, the field at fault. OpenAI's clients read
``{"error": {message, type, param, code}}``, ElevenLabs' ``{"detail": {status, message}}``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from ipc.client_errors import ChatterlineError, PipelineError, RequestError, SpeechError
from ipc.messages import Failed, Rejected

RETRY_S = 1.0

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    503: "unavailable",
}


class GatewayError(Exception):
    """A request that is not carried out. ``param`` names the field at fault (empty: none does)."""

    def __init__(self, status: int, message: str, *, param: str = "", code: str = "", retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code or _CODES.get(status, "invalid_request" if status < 500 else "server_error")
        self.retry_s = retry_s

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(math.ceil(self.retry_s))} if self.retry_s else {}

    def openai(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        param = "input" if self.param == "text" else self.param or None
        return {"error": {"message": self.message, "type": kind, "param": param, "code": self.code}}

    def elevenlabs(self) -> dict[str, Any]:
        """As ElevenLabs' clients read it."""
        return {"detail": {"status": self.code, "message": self.message}}


class Busy(GatewayError):
    """Too much is under way; come back later."""

    def __init__(self, message: str, retry_s: float = RETRY_S) -> None:
        super().__init__(429, message, retry_s=retry_s)


class Unavailable(GatewayError):
    """The pipeline is not there, or does not answer."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, retry_s=RETRY_S)


def translated(error: ChatterlineError) -> GatewayError:
    """What the pipeline said, as an answer over HTTP."""
    if isinstance(error, PipelineError):
        return Unavailable(str(error))
    event = error.event if isinstance(error, RequestError | SpeechError) else None
    match event:
        case Rejected(request="speak", field="id"):
            return Busy(event.reason)
        case Rejected(request="speak", field="type"):
            return Unavailable(event.reason)
        case Rejected():
            return GatewayError(400, str(error), param=event.field)
        case Failed():
            return GatewayError(500, event.reason)
    return GatewayError(500, str(error))


def answer(error: GatewayError, path: str, headers: Mapping[str, str]) -> JSONResponse:
    """The error as whoever asks for ``path`` with these headers reads it."""
    body = error.elevenlabs() if speaks_elevenlabs(path, headers) else error.openai()
    return JSONResponse(body, error.status, error.headers)


def speaks_elevenlabs(path: str, headers: Mapping[str, str]) -> bool:
    """Whether a request comes from a client of ElevenLabs'."""
    ours = path.startswith(("/v1/text-to-speech", "/v1/voices", "/v2/voices", "/v1/user"))
    return ours or "xi-api-key" in headers
