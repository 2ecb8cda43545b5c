"""What can be asked for over HTTP, for programs (`/openapi.json`, OpenAPI 3.1) and for people (`/docs`).

The bodies' schemas are those that requests are checked with. The page for people is made here and loads
nothing from elsewhere. WebSockets have no place in OpenAPI; docs/gateway.md has them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from workers.gateway.elevenlabs_api import DEFAULT_FORMAT, FORMATS, TextBody
from workers.gateway.encoding import MEDIA_TYPES
from workers.gateway.openai_api import SpeechBody

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

Json = dict[str, Any]

_JSON = "application/json"
_REFERENCE = "#/components/schemas/{name}"
_SOCKETS = (
    ("/ws/tts/live", "text in as it is written, sound out as it is made"),
    ("/v1/text-to-speech/{voice}/stream-input", "ElevenLabs' WebSocket for one text"),
    ("/v1/text-to-speech/{voice}/multi-stream-input", "ElevenLabs' WebSocket for several texts"),
)
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin: 2rem 0 .25rem; font-size: 1.1rem } code { font-family: ui-monospace, monospace }
table { border-collapse: collapse; width: 100% } .method { font-weight: 700 }
td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0 }
td { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
"""


def document(keys_wanted: bool) -> Json:
    """The OpenAPI document."""
    (speech, text), schemas = msgspec.json.schema_components([SpeechBody, TextBody], ref_template=_REFERENCE)
    described: Json = {
        "openapi": "3.1.0",
        "info": {"title": "Chatterline", "version": _version(), "description": _about()},
        "paths": _paths(speech, text),
        "components": {"schemas": {**schemas, "Error": _ERROR, "Detail": _DETAIL}},
    }
    if keys_wanted:
        described["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "xi": {"type": "apiKey", "in": "header", "name": "xi-api-key"},
        }
        described["security"] = [{"bearer": []}, {"xi": []}]
    return described


def routes(gateway: Gateway) -> list[BaseRoute]:
    """The paths."""
    described = document(gateway.keys.wanted)
    page = _page(described)

    async def as_json(_request: Request) -> Response:
        return JSONResponse(described)

    async def as_page(_request: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return [Route("/openapi.json", as_json), Route("/docs", as_page)]


# --------------------------------------------------------------------------- the document

_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_DETAIL: Json = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {
            "type": "object",
            "required": ["status", "message"],
            "properties": {"status": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_REFUSALS = {
    400: "the request cannot be carried out; the message names the field",
    401: "a key is needed",
    403: "asked under a name, or from a web page, that is not allowed",
    404: "there is no such voice",
    413: "the request is too long",
    429: "too much is under way; Retry-After tells when to come back",
    503: "the pipeline is not there",
}


def _version() -> str:
    try:
        return version("chatterline")
    except PackageNotFoundError:  # run from its sources
        return "0"


def _about() -> str:
    return (
        "Text to speech, streamed while it is made. Sound is mono. "
        "What the page alone asks for (/api/watch, /api/chat) is not listed."
    )


def _paths(speech: Json, text: Json) -> Json:
    sound = {media: _binary() for media in sorted({*MEDIA_TYPES.values(), "text/event-stream"})}
    files = {media: _binary() for media in sorted(set(MEDIA_TYPES.values()))}
    lines = {_JSON: {"schema": {"type": "string"}}}
    voice = _parameter("voice", "path", {"type": "string", "minLength": 1}, "a voice's id, or one of its other names")
    output = _parameter(
        "output_format", "query", {"enum": list(FORMATS), "default": DEFAULT_FORMAT}, "codec, rate, kbps"
    )
    model = _parameter("model", "path", {"type": "string", "minLength": 1}, "a model's name")
    name = _parameter("name", "path", {"type": "string", "minLength": 1}, "what the voice is to be called")
    recording: Json = {"application/octet-stream": _binary()}
    speech, text = ({_JSON: {"schema": schema}} for schema in (speech, text))
    page = [
        _parameter("page_size", "query", {"type": "integer", "minimum": 1, "maximum": 100}, "how many"),
        _parameter("search", "query", {"type": "string"}, "part of an id, a name or a language"),
        _parameter("next_page_token", "query", {"type": "string", "pattern": "^[0-9]{1,6}$"}, "from the page before"),
    ]
    return {
        "/v1/audio/speech": {"post": _operation("Speak a text (OpenAI)", sound, body=speech)},
        "/v1/audio/voices": {"get": _operation("Voices, with their further names", _object())},
        "/v1/audio/models": {"get": _operation("Models that speak", _object())},
        "/v1/models": {"get": _operation("Models (OpenAI; for who sends xi-api-key: ElevenLabs)", _object(array=True))},
        "/v1/models/{model}": {"get": _operation("One model", _object(), [model])},
        "/v1/text-to-speech/{voice}": {
            "post": _operation("Speak a text (ElevenLabs)", files, [voice, output], text, _DETAIL_REF)
        },
        "/v1/text-to-speech/{voice}/stream": {
            "post": _operation("The same (both stream)", files, [voice, output], text, _DETAIL_REF)
        },
        "/v1/text-to-speech/{voice}/with-timestamps": {
            "post": _operation("Sound and when each character is heard", _object(), [voice, output], text, _DETAIL_REF)
        },
        "/v1/text-to-speech/{voice}/stream/with-timestamps": {
            "post": _operation("The same, one JSON object a line", lines, [voice, output], text, _DETAIL_REF)
        },
        "/v1/voices": {"get": _operation("Voices (ElevenLabs)", _object(), error=_DETAIL_REF)},
        "/v2/voices": {"get": _operation("Voices, page by page", _object(), page, error=_DETAIL_REF)},
        "/v1/voices/{voice}": {"get": _operation("One voice", _object(), [voice], error=_DETAIL_REF)},
        "/api/voices": {"get": _operation("The engine, its voices, languages and settings", _object())},
        "/api/voices/{name}": {
            "post": _operation("A recording as a new voice", _object(), [name], recording),
        },
        "/health": {"get": _operation("A round trip through the engines' work loops", _object(), failure=503)},
        "/ready": {"get": _operation("Whether a request would be spoken now", _object(), failure=503)},
        "/metrics": {"get": _operation("Figures for Prometheus", {"text/plain": {"schema": {"type": "string"}}})},
    }


_ERROR_REF = {"$ref": "#/components/schemas/Error"}
_DETAIL_REF = {"$ref": "#/components/schemas/Detail"}


def _operation(
    summary: str,
    content: Json,
    parameters: list[Json] | None = None,
    body: Json | None = None,
    error: Json | None = None,
    failure: int = 0,
) -> Json:
    told = {_JSON: {"schema": {"type": "object"} if failure else error or _ERROR_REF}}
    refusals = {failure: "it is not; the reason is told"} if failure else _REFUSALS
    responses: Json = {"200": {"description": "done", "content": content}}
    responses |= {str(status): {"description": why, "content": told} for status, why in refusals.items()}
    operation: Json = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _parameter(name: str, where: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": description}


def _object(array: bool = False) -> Json:
    return {_JSON: {"schema": {"type": ["object", "array"] if array else "object"}}}


def _binary() -> Json:
    return {"schema": {"type": "string", "format": "binary"}}


# --------------------------------------------------------------------------- the page


def _page(described: Mapping[str, Any]) -> str:
    parts = [
        _operation_shown(described, path, *found) for path, some in described["paths"].items() for found in some.items()
    ]
    sockets = "".join(f"<tr><td><code>{_safe(path)}</code><td>{_safe(what)}" for path, what in _SOCKETS)
    info = described["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{_safe(info['title'])}: HTTP</title><style>{_STYLE}</style><main><h1>{_safe(info['title'])}</h1>"
        f"<p>{_safe(info['description'])} For programs: <a href=/openapi.json>openapi.json</a>.</p>"
        f"{''.join(parts)}<h2>WebSockets</h2><table>{sockets}</table></main>"
    )


def _operation_shown(described: Mapping[str, Any], path: str, method: str, operation: Json) -> str:
    rows = [
        _row(one["name"], f"in the {one['in']}", one["schema"], one["description"])
        for one in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {"content": {}})["content"]
    rows += [_row("the body", "needed", media["schema"], kind) for kind, media in body.items() if kind != _JSON]
    if _JSON in body:
        schema = described["components"]["schemas"][body[_JSON]["schema"]["$ref"].rsplit("/", 1)[1]]
        for field, told in schema["properties"].items():
            needed = "needed" if field in schema.get("required", ()) else ""
            rows.append(_row(field, needed, told, told.get("description", "")))
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    head = f"<h2><span class=method>{method.upper()}</span> <code>{_safe(path)}</code></h2>"
    return f"{head}<p>{_safe(operation['summary'])}</p>{table}"


def _row(name: str, where: str, schema: Json, description: str) -> str:
    told = ". ".join(part for part in (description, where) if part)
    return f"<tr><td><code>{_safe(name)}</code><td>{_safe(_kind(schema))}<td>{_safe(told)}"


def _kind(schema: Json) -> str:
    """A schema in a few words."""
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"] if value is not None)
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[1]
    bounds = [f"{word} {schema[key]:g}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join([str(schema.get("type", "any")), *bounds])


def _safe(text: str) -> str:
    return html.escape(text)
