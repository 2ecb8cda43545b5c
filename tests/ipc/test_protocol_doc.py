"""docs/protocol.md says all there is: every type, every field, and examples that are none but valid."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from ipc.codec import decode_request
from ipc.messages import Audio, Event, Latency, QueueFill, Request, Setting, StageShare, UtteranceStatus, Voice, Work

DOC = Path(__file__).parents[2] / "docs" / "protocol.md"
EVENTS = msgspec.json.Decoder(Event)
KINDS = [("Requests", kind) for kind in get_args(Request)] + [("Events", kind) for kind in get_args(Event)]


@cache
def sections():
    """Text by (part, type)."""
    found = {}
    part = ""
    for block in re.split(r"^(?=##+ )", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE):
        head, _, body = block.partition("\n")
        if head.startswith("## "):
            part = head[3:]
        elif name := re.fullmatch(r"### `(\w+)`", head):
            found[part, name[1]] = body
    return found


def tag(kind):
    return kind.__struct_config__.tag


def example(part, name):
    (text,) = re.findall(r"```json\n(.*?)```", sections()[part, name], flags=re.DOTALL)
    return text.strip()


def test_every_type_is_documented_and_no_other():
    assert set(sections()) == {(part, tag(kind)) for part, kind in KINDS}


@pytest.mark.parametrize(("part", "kind"), KINDS, ids=lambda value: value if isinstance(value, str) else tag(value))
def test_every_field_is_documented_and_no_other(part, kind):
    body = sections()[part, tag(kind)]
    rows = re.findall(r"^\| `(\w+)`( \*)? \|", body, flags=re.MULTILINE)
    documented = {name for name, _ in rows} or set(re.findall(r"`(\w+)`", body)) & set(kind.__struct_fields__)
    assert documented == set(kind.__struct_fields__)
    if part == "Requests":
        required = {field.name for field in msgspec.structs.fields(kind) if field.required}
        assert {name for name, star in rows if star} == required


@pytest.mark.parametrize(("part", "kind"), KINDS, ids=lambda value: value if isinstance(value, str) else tag(value))
def test_every_example_decodes_and_shows_every_field(part, kind):
    text = example(part, tag(kind))
    decoded = decode_request(text.encode()) if part == "Requests" else EVENTS.decode(text)
    assert type(decoded) is kind
    shown = set(json.loads(text)) - {"type"}
    if tag(kind) != "cancel":  # takes exactly one of its fields
        assert shown == set(kind.__struct_fields__)
    if isinstance(decoded, Audio):
        assert decoded.samples <= 2400


@pytest.mark.parametrize(
    ("name", "inner"),
    [("voices", Voice), ("voices", Setting), ("status", StageShare), ("status", QueueFill), ("status", Latency),
     ("status", UtteranceStatus), ("state", Work)],
)  # fmt: skip
def test_every_field_of_a_part_is_documented(name, inner):
    body = sections()["Events", name]
    assert set(inner.__struct_fields__) <= set(re.findall(r"`(\w+)`", body))


def test_values_that_can_be_chosen_are_all_named():
    text = DOC.read_text(encoding="utf-8")
    for kind in (*get_args(Request), *get_args(Event)):
        for field in msgspec.structs.fields(kind):
            inner = msgspec.inspect.type_info(field.type)
            if isinstance(inner, msgspec.inspect.LiteralType):
                assert all(f"`{value}`" in text for value in inner.values), f"{tag(kind)}.{field.name}"
