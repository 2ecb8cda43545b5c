"""What the codec refuses, and how it says so."""

from __future__ import annotations

import gc
import json
import sys
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc import codec
from ipc.codec import ProtocolError, decode_event, decode_internal, decode_packet, decode_request, encode_event
from ipc.link import Packet
from ipc.messages import Audio, Ok, Probe, Speak, Status, Text, Welcome

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)


def refusal(payload: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode_request(payload)
    error = caught.value
    # Whatever is wrong, the answer can be sent.
    json.dumps([error.request, error.field, error.reason, error.id]).encode()
    "".join([error.request, error.field, error.reason, error.id or ""]).encode("utf-8")
    assert error.reason
    assert len(error.reason) < 600
    return error


def speak(**fields: Any) -> bytes:
    return json.dumps({"type": "speak", "id": "a1"} | fields).encode()


def test_a_request_may_have_its_type_anywhere() -> None:
    assert decode_request(b'{"id":"a","text":"x","type":"text"}') == Text(id="a", text="x")
    assert decode_request(b' {"type" : "status"}\n') == Status()


def test_an_unknown_type_lists_the_valid_ones() -> None:
    error = refusal(b'{"type":"sing","id":"a1"}')
    assert (error.request, error.field, error.id) == ("sing", "type", "a1")
    for name in ("sing", "speak", "voice_add", "ping"):
        assert name in error.reason


@pytest.mark.parametrize("payload", [b"{}", b'{"id":"a1"}', b'{"type":7}', b'{"type":null}', b'{"type":["speak"]}'])
def test_a_missing_or_impossible_type_lists_the_valid_ones(payload: bytes) -> None:
    error = refusal(payload)
    assert (error.request, error.field) == ("", "type")
    assert "speak, text, flush" in error.reason


def test_an_unknown_field_lists_the_valid_ones() -> None:
    error = refusal(speak(txt="Hello"))
    assert (error.request, error.field, error.id) == ("speak", "txt", "a1")
    assert "id, text, voice" in error.reason
    assert "none" in refusal(b'{"type":"pause","id":"a1"}').reason


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        ({"speed": 9}, "speed", "from 0.25 to 4"),
        ({"speed": "fast"}, "speed", "a number"),
        ({"output": "phone"}, "output", "speaker, stream"),
        ({"priority": 3}, "priority", "interrupt"),
        ({"text": 5}, "text", "a text"),
        ({"text": None}, "text", "a text"),
        ({"id": ""}, "id", "1 to 128 characters"),
        ({"id": "x" * 129}, "id", "1 to 128 characters"),
        ({"voice": ""}, "voice", "1 to 128 characters"),
        ({"seed": -1}, "seed", "from 0 to 9223372036854775807"),
        ({"seed": 2**63}, "seed", "from 0 to"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"final": "yes"}, "final", "true or false"),
        ({"settings": {"pitch": [1]}}, "settings", "true, false, a number or a text"),
        ({"settings": {"pitch": None}}, "settings", "true, false, a number or a text"),
        ({"settings": {"": 1}}, "settings", "an object"),
        ({"settings": []}, "settings", "an object"),
    ],
)
def test_a_wrong_value_names_the_field_and_what_is_allowed(fields: dict[str, Any], field: str, allowed: str) -> None:
    error = refusal(speak(**fields))
    assert (error.request, error.field) == ("speak", field)
    assert allowed in error.reason
    assert error.id == (None if field == "id" else "a1")


@pytest.mark.parametrize("value", ["x" * 300, "`$.id`", "ä" * 70_000])
def test_a_wrong_value_of_any_length_and_look_does_not_hide_its_field(value: str) -> None:
    error = refusal(speak(output=value))
    assert (error.field, error.id) == ("output", "a1")
    assert "speaker, stream" in error.reason


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b'{"type":"sing","id":"a1","type":"speak","text":"x"}', "type"),
        (rb'{"type":"\ud800","id":"a1","type":"speak","text":"x"}', "type"),
        (rb'{"type":"speak","id":"a1","text":"\ud800","text":"x"}', "text"),
        (b'{"type":"speak","id":"a1","text":5,"text":"x"}', "text"),
    ],
)
def test_what_is_wrong_in_a_field_that_stands_twice_names_it(payload: bytes, field: str) -> None:
    error = refusal(payload)
    assert (error.request, error.field, error.id) == ("speak", field, "a1")


def test_a_field_without_a_name_is_refused_in_words() -> None:
    assert "without a name" in refusal(b'{"type":"text","id":"a1","":1}').reason


def test_a_missing_field_is_named() -> None:
    error = refusal(b'{"type":"text","id":"a1"}')
    assert (error.request, error.field, error.id) == ("text", "text", "a1")
    assert refusal(b'{"type":"text","text":"x"}').field == "id"


@pytest.mark.parametrize("text", [rb"\ud800", rb"\udc00", rb"\ud800x", rb"\ud800\ud800", rb"\ud800\u0041", rb"x\udfff"])
def test_lone_surrogates_are_refused_naming_the_field(text: bytes) -> None:
    error = refusal(b'{"type":"speak","id":"a1","text":"' + text + b'"}')
    assert (error.request, error.field, error.id) == ("speak", "text", "a1")
    assert "surrogate" in error.reason


def test_surrogate_pairs_are_characters() -> None:
    assert decode_request(rb'{"type":"text","id":"a","text":"\ud83d\ude00"}') == Text(id="a", text="😀")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
def test_numbers_that_are_not_finite_are_refused_naming_the_field(number: bytes) -> None:
    for field, raw in (("speed", number), ("settings", b'{"rate":' + number + b"}")):
        error = refusal(b'{"type":"speak","id":"a1","' + field.encode() + b'":' + raw + b"}")
        assert (error.request, error.field, error.id) == ("speak", field, "a1")
        assert "finite" in error.reason


@pytest.mark.parametrize("bad", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"])
def test_invalid_utf8_is_refused_and_the_id_recovered(bad: bytes) -> None:
    error = refusal(b'{"type":"text","id":"a1","text":"x' + bad + b'"}')
    assert (error.request, error.id) == ("text", "a1")
    assert "UTF-8" in error.reason


def test_the_replacement_character_itself_is_no_error() -> None:
    assert decode_request('{"type":"text","id":"a","text":"\ufffd"}'.encode()) == Text(id="a", text="\ufffd")


@pytest.mark.parametrize("payload", [b"[" * 100_000, b'{"type":"sing","id":"' + b"x" * 1000 + b'"}', bytes(1000)])
def test_a_refused_payload_is_let_go_at_once_and_not_at_the_next_collection(payload: bytes) -> None:
    held = sys.getrefcount(payload)
    gc.disable()
    try:
        with suppress(ProtocolError):
            decode_request(payload)
        assert sys.getrefcount(payload) == held
    finally:
        gc.enable()


DEEP = 100_000


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'{"type":"speak","id":"a1","text":' + b"[" * DEEP,
        b'{"type":"speak","id":"a1","settings":' + b'{"a":' * 700 + b"1" + b"}" * 701,
        b'{"type":"speak","id":"a1","more":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"type":"nope","id":"a1","more":' + b"[" * 980 + b"]" * 980 + b"}",
    ],
    ids=["arrays", "objects", "in a field", "in settings", "in an unknown field", "in an unknown type"],
)
def test_nesting_bombs_are_refused(payload: bytes) -> None:
    refusal(payload)


@pytest.mark.parametrize("payload", [b"", b" ", b"null", b"3", b'"speak"', b"[]", b'[{"type":"ping"}]', b"hello", b"{"])
def test_what_is_no_object_is_refused(payload: bytes) -> None:
    error = refusal(payload)
    assert error.field == ""
    assert "one JSON object" in error.reason


def test_numbers_too_long_for_anything_are_refused() -> None:
    assert refusal(b'{"type":"speak","id":"a1","seed":' + b"9" * 5000 + b"}").reason
    assert refusal(b'{"type":"speak","id":"a1","settings":{"x":' + b"9" * 100_000 + b"}}").reason


def test_errors_of_huge_requests_are_short() -> None:
    assert refusal(speak(text="x" * 2_000_000, nope=1)).id is None
    assert refusal(speak(**{"y" * 10_000: 1})).field.startswith("yyy")
    assert refusal(json.dumps({"type": "z" * 10_000}).encode()).request.startswith("zzz")


@CALM
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_clear_refusal(payload: bytes) -> None:
    try:
        decode_request(payload)
    except ProtocolError:
        refusal(payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["id", "text", "speed", "settings", "seed", "output", "final", "data", "all", "what"])
KINDS = st.sampled_from([*codec._kinds(), "nope"])


@CALM
@given(KINDS, st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_object_is_a_request_or_a_clear_refusal(kind: str, fields: dict[str, Any]) -> None:
    payload = json.dumps(fields | {"type": kind}).encode()
    try:
        decode_request(payload)
    except ProtocolError:
        error = refusal(payload)
        assert (
            error.field == "" or error.field == "type" or error.field in fields or error.field in codec._kinds()[kind]
        )


@CALM
@given(st.binary(max_size=100))
def test_any_bytes_on_the_work_socket_are_a_packet_or_refused(data: bytes) -> None:
    for decode in (decode_internal, decode_packet):
        with suppress(ProtocolError):  # and nothing else
            decode(data)


def test_packets_survive_the_wire() -> None:
    for packet in (Packet(5, 6, 7, 8, Probe(9)), Packet(5, 0, 0, 0), Packet(5, 6, 0, 0, Welcome(6, 5))):
        assert decode_packet(codec.encode_packet(packet)) == packet


def test_audio_carries_exactly_its_pcm() -> None:
    audio = Audio(id="a", first_sample=0, samples=2)
    assert len(encode_event(audio, memoryview(b"abcd"))) == 2
    for pcm in (None, b"", b"abc", b"abcdef"):
        with pytest.raises(ProtocolError, match="4 bytes"):
            encode_event(audio, pcm)
    with pytest.raises(ProtocolError, match="second frame"):
        encode_event(Ok(request="flush"), b"abcd")


def test_pcm_of_wider_items_is_counted_in_bytes() -> None:
    assert len(encode_event(Audio(id="a", first_sample=0, samples=2), memoryview(b"abcd").cast("h"))) == 2


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"{}"],
        [b"\xff"],
        [b'{"type":"ok","request":"flush"}', b"pcm"],
        [b'{"type":"audio","id":"a","first_sample":0,"samples":2}'],
        [b'{"type":"audio","id":"a","first_sample":0,"samples":2}', b"abc"],
        [b'{"type":"ok","request":"flush"}', b"", b""],
        [b"[" * DEEP],
    ],
)
def test_frames_that_are_no_event_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode_event(frames)


def test_encoded_requests_leave_out_defaults() -> None:
    assert json.loads(codec.encode_request(Speak(id="a", text="x"))) == {"type": "speak", "id": "a", "text": "x"}
