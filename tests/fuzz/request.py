"""The decoder of what programs send: any bytes are a request or a refusal that can be sent back."""

from __future__ import annotations

import json

from ipc.codec import ProtocolError, decode_request, encode_request
from ipc.messages import Rejected

MAX_BYTES = 4096
DICTIONARY = (
    *("speak", "text", "flush", "end", "cancel", "attach", "played", "voice_add", "watch", "type", "id", "settings"),
    *("offset", "seed", "speed", "output", "priority", "conversation", "final", "all", "from_sample", "total_bytes"),
    *('{"', '":', '","', "null", "true", "NaN", "-Infinity", "1e999", "\\ud800", "\\u0000", "[[[[", "\xff"),
)


def check(data: bytes) -> None:
    """Decode; what is refused names the field, what is taken survives the way back."""
    try:
        request = decode_request(data)
    except ProtocolError as error:
        _check_refusal(data, error)
    else:
        assert decode_request(encode_request(request)) == request


def _check_refusal(data: bytes, error: ProtocolError) -> None:
    answer = Rejected(request=error.request, field=error.field, reason=error.reason, id=error.id)
    for text in (answer.request, answer.field, answer.reason, answer.id or ""):
        text.encode("utf-8")
    assert answer.reason
    assert len(answer.request) + len(answer.field) + len(answer.reason) < 800
    assert answer.id is None or 0 < len(answer.id) <= 128
    assert answer.field or not _has_faulty_field(data), answer


def _has_faulty_field(data: bytes) -> bool:
    """True for what any JSON library takes for one object, unless a field of it has no name to tell."""
    try:
        raw = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and "" not in raw
