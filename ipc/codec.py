"""Messages to bytes and back: msgpack between our processes, JSON on the text socket.

Encoders and decoders are built once, here. Whatever arrives is checked against the types of
`ipc.messages`; nothing else gets through and nothing is ever unpickled. Errors about requests are
made for the person who wrote the client: they name the field, what is wrong and what is allowed.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import cache
from typing import Any, get_args

import msgspec
import msgspec.inspect as inspect

from ipc.link import Packet
from ipc.messages import Audio, Event, Internal, Json, Request

PCM_BYTES_PER_SAMPLE = 2
RECOVER_BYTES = 1_000_000
"""Errors of larger requests are answered without looking for the request's id again."""

_internal_out = msgspec.msgpack.Encoder()
_internal_in: msgspec.msgpack.Decoder[Internal] = msgspec.msgpack.Decoder(Internal)
_packet_in = msgspec.msgpack.Decoder(Packet)
_json_out = msgspec.json.Encoder()
_request_in: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_event_in: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)

_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)
_SCALARS = {inspect.BoolType, inspect.IntType, inspect.FloatType, inspect.StrType}
_TOO_DEEP = "JSON is nested too deeply; a request is one flat object"
_SURROGATE = re.compile("[\ud800-\udfff]")
_AT_FIELD = re.compile(r".*`[^`]*\$\.(\w+)", re.DOTALL)
"""The last place that an error of msgspec names: in front of it may stand a value that looks like one."""
_AT_NAME = re.compile(r"^Object missing required field `(.+?)`")


class ProtocolError(Exception):
    """A message that is none of ours.

    ``request`` is the kind it claims to be (empty: unknown), ``field`` the field at fault (empty:
    the message as a whole), ``id`` the utterance that it names, if that could be told.
    """

    def __init__(self, request: str, field: str, reason: str, id: str | None = None) -> None:
        super().__init__(f"{request or 'message'}{'.' + field if field else ''}: {reason}")
        self.request = request
        self.field = field
        self.reason = reason
        self.id = id


# --------------------------------------------------------------------------- internal


def encode_internal(message: Internal) -> bytes:
    """One message between our processes as msgpack."""
    return _internal_out.encode(message)


def decode_internal(data: bytes) -> Internal:
    """The reverse of `encode_internal`; raises `ProtocolError`."""
    try:
        return _internal_in.decode(data)
    except _DECODE_ERRORS as error:
        raise ProtocolError("", "", _plain(error)) from error


def encode_packet(packet: Packet) -> bytes:
    """A message with its numbers, as it goes over the work socket."""
    return _internal_out.encode(packet)


def decode_packet(data: bytes) -> Packet:
    """The reverse of `encode_packet`; raises `ProtocolError`."""
    try:
        return _packet_in.decode(data)
    except _DECODE_ERRORS as error:
        raise ProtocolError("", "", _plain(error)) from error


# --------------------------------------------------------------------------- events


def encode_event(event: Event, pcm: bytes | memoryview | None = None) -> list[bytes | memoryview]:
    """The frames of an event; `Audio` comes with its PCM (s16le), the others without.

    Raises `ProtocolError` when the PCM is not what the event says.
    """
    if isinstance(event, Audio) or pcm is not None:
        _check_pcm(event, pcm)
    return [_json_out.encode(event)] if pcm is None else [_json_out.encode(event), pcm]


def decode_event(frames: list[bytes]) -> tuple[Event, memoryview | None]:
    """The event in these frames (a client's side), and its PCM; raises `ProtocolError`."""
    if not 1 <= len(frames) <= 2:
        raise ProtocolError("", "", f"an event has 1 frame, or 2 with PCM, not {len(frames)}")
    try:
        event = _event_in.decode(frames[0])
    except _DECODE_ERRORS as error:
        raise ProtocolError("", "", _plain(error)) from error
    pcm = memoryview(frames[1]) if len(frames) == 2 else None
    if isinstance(event, Audio) or pcm is not None:
        _check_pcm(event, pcm)
    return event, pcm


def _check_pcm(event: Event, pcm: bytes | memoryview | None) -> None:
    kind = str(event.__struct_config__.tag)
    if not isinstance(event, Audio):
        raise ProtocolError(kind, "", "only audio events have a second frame")
    size = 0 if pcm is None else len(pcm) if isinstance(pcm, bytes) else pcm.nbytes
    if pcm is None or size != event.samples * PCM_BYTES_PER_SAMPLE:
        want = event.samples * PCM_BYTES_PER_SAMPLE
        raise ProtocolError(kind, "samples", f"the PCM frame must have {want} bytes, not {size}", event.id)


# --------------------------------------------------------------------------- requests


def encode_request(request: Request) -> bytes:
    """A request as JSON (a client's side); fields at their defaults are left out."""
    return _json_out.encode(request)


def decode_request(payload: bytes) -> Request:
    """The request in this frame; raises `ProtocolError`, whatever the bytes are."""
    try:
        return _request_in.decode(payload)
    except _DECODE_ERRORS as error:
        # No variable here may hold what is raised: with its traceback it would keep the payload until a collection.
        raise _explain(payload, error) from error


@cache
def _kinds() -> dict[str, dict[str, str]]:
    """Per type of request: its fields, each with what is allowed there."""
    kinds: dict[str, dict[str, str]] = {}
    for kind in get_args(Request):
        info = inspect.type_info(kind)
        assert isinstance(info, inspect.StructType)
        kinds[str(kind.__struct_config__.tag)] = {field.encode_name: _allowed(field.type) for field in info.fields}
    return kinds


def _allowed(kind: Any) -> str:
    """A type of `msgspec.inspect` in words."""
    match kind:
        case inspect.UnionType():
            if {type(one) for one in kind.types} == _SCALARS:
                return "true, false, a number or a text"
            return " or ".join(_allowed(one) for one in kind.types)
        case inspect.StrType(min_length=None, max_length=None):
            return "a text"
        case inspect.StrType():
            return f"a text of {kind.min_length or 0} to {kind.max_length} characters"
        case inspect.IntType():
            return f"a whole number{_bounds(kind)}"
        case inspect.FloatType():
            return f"a number{_bounds(kind)}"
        case inspect.LiteralType():
            return f"one of {', '.join(str(value) for value in kind.values)}"
        case inspect.DictType():
            return f"an object whose values are each {_allowed(kind.value_type)}"
        case inspect.BytesType():
            return "bytes in base64"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case _:
            return type(kind).__name__.removesuffix("Type").lower()


def _bounds(kind: Any) -> str:
    least = "" if kind.ge is None else f" from {kind.ge}"
    return least if kind.le is None else f"{least} to {kind.le}"


def _explain(payload: bytes, error: Exception) -> ProtocolError:
    """Say what is wrong with a request, as exactly as can be told."""
    if isinstance(error, RecursionError):
        return ProtocolError("", "", _TOO_DEEP)
    try:
        return _explain_object(payload, error)
    except RecursionError:
        return ProtocolError("", "", _TOO_DEEP)


def _explain_object(payload: bytes, error: Exception) -> ProtocolError:
    """What is wrong with what may be an object; raises `RecursionError` where it is nested too deeply."""
    raw = _recover(payload)
    if raw is None:
        return ProtocolError("", "", f"a request is one JSON object in UTF-8: {_plain(error)}")
    kinds = _kinds()
    kind, id_ = raw.get("type"), _recovered_id(raw)
    if not isinstance(kind, str) or kind not in kinds:
        shown = "type is missing" if "type" not in raw else f"{_shown(kind)} is no type of request"
        claimed = _cut(kind, 64) if isinstance(kind, str) else ""
        return ProtocolError(claimed, "type", f"{shown}; valid: {', '.join(kinds)}", id_)
    return _explain_fields(payload, raw, kind, id_, error)


def _explain_fields(payload: bytes, raw: Json, kind: str, id_: str | None, error: Exception) -> ProtocolError:
    """What is wrong with a request of a known kind."""
    fields = _kinds()[kind]
    for name in raw:
        if name != "type" and name not in fields:
            what = "unknown field" if name else "a field without a name is none"
            return ProtocolError(
                kind, _cut(name, 64), f"{what} of {kind}; valid: {', '.join(fields) or 'none but type'}", id_
            )
    for name, value in raw.items():
        if flaw := _flaw(value):
            return ProtocolError(kind, name, flaw, id_)
    if "\ufffd" in (lenient := payload.decode("utf-8", "replace")) and lenient.encode() != payload:
        return ProtocolError(kind, "", f"a request must be UTF-8: {_plain(error)}", id_)
    if missing := _AT_NAME.match(str(error)):
        name = missing[1]
        return ProtocolError(kind, name, f"{kind} needs {name}: {fields.get(name, '')}", id_)
    at = _AT_FIELD.match(str(error))
    if at and at[1] in fields:
        name = at[1]
        return ProtocolError(kind, name, f"{_shown(raw.get(name))} is not {fields[name]}", id_)
    return ProtocolError(kind, at[1] if at else _repeated(payload), _plain(error), id_)


def _recover(payload: bytes) -> Json | None:
    """The object in a faulty request, read leniently (for the error's sake only)."""
    if len(payload) > RECOVER_BYTES:
        return None
    try:
        raw = json.loads(payload.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return raw if isinstance(raw, dict) else None


def _repeated(payload: bytes) -> str:
    """A field that stands twice in this object (empty: none): at fault may be the value that was overwritten."""
    pairs = json.loads(payload.decode("utf-8", "replace"), object_pairs_hook=lambda pairs: pairs)
    return next((name for name, count in Counter(name for name, _ in pairs).items() if count > 1), "")


def _recovered_id(raw: Json) -> str | None:
    id_ = raw.get("id")
    usable = isinstance(id_, str) and 0 < len(id_) <= 128 and _flaw(id_) == ""
    return str(id_) if usable else None


def _flaw(value: object) -> str:
    """What makes a value impossible in JSON or UTF-8, whatever the field (empty: nothing)."""
    match value:
        case float() if not math.isfinite(value):
            return "not a finite number"
        case str() if _SURROGATE.search(value):
            return "has a lone surrogate, which is no character"
        case dict():
            return next((flaw for pair in value.items() for one in pair if (flaw := _flaw(one))), "")
        case list():
            return next((flaw for one in value if (flaw := _flaw(one))), "")
        case _:
            return ""


def _shown(value: object) -> str:
    """A value as it may stand in an answer: JSON, short, valid UTF-8."""
    return _cut(json.dumps(value, ensure_ascii=False), 80)


def _cut(text: str, most: int) -> str:
    printable = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return printable if len(printable) <= most else printable[: most - 1] + "…"


def _plain(error: Exception) -> str:
    """An error of the decoder in one short line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 ({error.reason})"
    return _cut(str(error), 200)
