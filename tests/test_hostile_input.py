"""Whatever is sent at a running pipeline's sockets: no process dies, and nobody else hears a difference."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args, get_type_hints

import msgspec
import numpy as np
import psutil
import pytest
import zmq

from chatterline import Client, Finished, Rejected, SpeechError
from ipc.channels import TEXT_MAX_BYTES
from ipc.codec import ProtocolError, decode_request, encode_packet
from ipc.link import Packet
from ipc.messages import Probed, Rendered, Request
from tests.harness import Pipeline, direct_sound, own_memory_bytes, pcm, until

Start = Callable[..., Pipeline]

ONE_ENGINE = pytest.mark.parametrize("engine", ["babble"])
"""What is sent meets the dispatcher alone, which is the same with any engine."""

FRAMES = 10_000
GROWTH_BYTES = 5_000_000
HUGE_GROWTH_BYTES = 8 * TEXT_MAX_BYTES
"""Messages of megabytes cost what IN_FLIGHT of the largest take: the allocator keeps it for the next ones."""
TEXT = (
    "The kettle began to sing, and the whole kitchen listened. Nobody had expected a tune from it! "
    "It was an old song about rivers; the cat knew it well. When the last note had gone, we ate."
)
ANSWER_S = 10.0
IN_FLIGHT = 8
"""Messages sent before their answers are read: what a program that reads gets without any being kept for it."""


@dataclass(frozen=True)
class Attempt:
    """The frames of one message, and the field that the refusal has to name (None: any)."""

    frames: tuple[bytes, ...]
    field: str | None = None


# --------------------------------------------------------------------------- what is sent

NOT_JSON_VALUES = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", r'"\ud800"', r'"x\udfffx"', r'{"a":"\udc00"}']
VALUES = [
    *("null", "true", "false", "0", "-1", "1.5", "-0.0", "1e300", str(2**63), str(-(2**63) - 1), str(2**70), "9" * 400),
    *(
        '""',
        '"speak"',
        '"\\u0000"',
        f'"{"x" * 129}"',
        f'"{"ä" * 70_000}"',
        "[]",
        "[[]]",
        "{}",
        '{"a":[]}',
        '{"a":null}',
    ),
    *('{"":1}', "[" * 50 + "]" * 50, '{"a":' * 50 + "1" + "}" * 50),
]
TOO_DEEP = ["[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900]


def requests() -> dict[str, type[msgspec.Struct]]:
    """Every type of request by its name on the wire."""
    return {str(kind.__struct_config__.tag): kind for kind in get_args(Request)}


def least(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The JSON values of the fields that a request needs, each as plain as its type allows."""
    hints = get_type_hints(kind, include_extras=True)
    needed = [field for field in msgspec.structs.fields(kind) if field.required]
    return {
        field.name: next(value for value in ('"x"', "1", '""') if allows(hints[field.name], value)) for field in needed
    }


def allows(hint: Any, value: str) -> bool:
    """Whether a field of this type may hold the value."""
    try:
        msgspec.json.decode(value, type=hint)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return False
    return True


def message(kind: str, values: dict[str, str]) -> bytes:
    """A request of JSON values as they are written."""
    return (
        "{" + ",".join([f'"type":"{kind}"', *(f'"{name}":{value}' for name, value in values.items())]) + "}"
    ).encode()


def wrong_fields() -> Iterator[Attempt]:
    """Every field of every request with every value that it cannot have, missing, unknown and twice."""
    for kind, struct_type in requests().items():
        hints, needed = get_type_hints(struct_type, include_extras=True), least(struct_type)
        for name in struct_type.__struct_fields__:
            refused = [value for value in VALUES if not allows(hints[name], value)]
            assert len(refused) > 8, (kind, name)
            for value in [*refused, *NOT_JSON_VALUES, *TOO_DEEP]:
                yield Attempt((message(kind, {**needed, name: value}),), None if value in TOO_DEEP else name)
            yield Attempt(
                (message(kind, needed)[:-1] + f',"{name}":{refused[0]},"{name}":{refused[1]}}}'.encode(),), name
            )
            if name in needed:
                yield Attempt((message(kind, {other: needed[other] for other in needed if other != name}),), name)
        for unknown in ("txt", "Type", "ID", "x" * 64, "\\u0000", "__class__", "ü"):
            told = json.loads(f'"{unknown}"')
            yield Attempt((message(kind, {**needed, unknown: "1"}),), told)


def wrong_types() -> Iterator[Attempt]:
    """Objects whose type is none, or no text, and what is no object at all."""
    for value in [*VALUES, *NOT_JSON_VALUES, '"sing"', '"Speak"', '"speak "', '"rejected"']:
        if value != '"speak"':
            yield Attempt((f'{{"type":{value},"id":"x"}}'.encode(),), None if len(value) > 500 else "type")
        if value not in ("{}",):
            yield Attempt((value.encode(),), None)
    yield Attempt((b'{"type":"sing","type":"speak","id":"x"}',), "type")
    yield Attempt((b'{"id":"x"}',), "type")


def deep_and_huge() -> Iterator[Attempt]:
    """Nesting bombs, megabytes, and text that only nearly is UTF-8."""
    for opening in (b"[", b'{"a":', b'{"type":"speak","id":"x","settings":{"a":', b'[{"type":'):
        for depth in (100, 1_000, 100_000):
            yield Attempt((opening * depth,))
    megabyte = b"x" * 2**20
    yield Attempt((b'{"type":"speak","id":"' + megabyte + b'","text":"x"}',))
    yield Attempt((b'{"type":"' + megabyte + b'"}',))
    yield Attempt((b'{"type":"ping","' + megabyte + b'":1}',))
    yield Attempt((b'{"type":"speak","id":"x","text":"' + megabyte + b'"}',), "text")
    yield Attempt((b'{"type":"speak","id":"x","text":"' + b"x" * (TEXT_MAX_BYTES - 100) + b'"}',), "text")
    yield Attempt((b'{"type":"speak","id":"x","settings":{' + b'"a":1,' * 100_000 + b'"b":[]}}',), "settings")
    yield Attempt((b" " * 2**20,))
    yield Attempt((bytes(2**20),))
    yield Attempt((b"", bytes(2**20), bytes(2**20)))
    for bad in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\x80"):
        yield Attempt((b'{"type":"speak","id":"x","text":"' + bad + b'"}',))


def impossible_wishes() -> Iterator[Attempt]:
    """Well-formed requests for what does not exist, or should not be reached."""
    for kind in ("text", "flush", "end", "attach", "played", "cancel"):
        for name in ("nobody", "../../etc/passwd", "\x00", "😀" * 60, "' OR 1=1 --", "%s%n", "x" * 128):
            values = {**least(requests()[kind]), "id": json.dumps(name)}
            yield Attempt((message(kind, values),), "id")
    for name in PATHS:
        speak = {"id": '"x"', "text": '"Hello."', "output": '"stream"'}
        yield Attempt((message("speak", {**speak, "voice": json.dumps(name)}),), "voice")
        yield Attempt((message("speak", {**speak, "language": json.dumps(name)}),), "language")
        yield Attempt((message("speak", {**speak, "settings": json.dumps({name: 1})}),), f"settings.{name}")
    yield Attempt((b'{"type":"speak","id":"x","text":"   "}',), "text")
    yield Attempt((b'{"type":"cancel","id":"x","all":true}',), "id")
    yield Attempt((b'{"type":"cancel"}',), "id")
    yield Attempt((b'{"type":"cancel","conversation":"nobody\'s"}',), "conversation")


PATHS = [
    *(
        "../../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "...",
        "voices/../x",
        "a/b",
        "a\\b",
        "C:\\x",
        "~/x",
        "\x00",
        "a\x00b",
    ),
    *(
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "|id",
        "$(id)",
        "`id`",
        "x\n",
        " x",
        "\u202eexe",
        "a" * 128,
        "-rf",
        "*",
    ),
]


def voice_uploads(cloning: bool) -> Iterator[Attempt]:
    """Recordings under names that are paths, and recordings that are none."""
    piece = {"offset": "0", "total_bytes": "4", "data": '"AAAAAA=="'}
    for name in PATHS:
        yield Attempt((message("voice_add", {"voice": json.dumps(name), **piece}),), "voice" if cloning else "type")
    for change, field in (
        ({"offset": "7"}, "offset"),
        ({"total_bytes": "0"}, "total_bytes"),
        ({"total_bytes": str(2**53)}, "total_bytes"),
        ({"total_bytes": "3"}, "total_bytes"),
        ({}, "data"),
    ):
        values = {"voice": '"carla"', **piece, **change}
        yield Attempt((message("voice_add", values),), field if cloning else "type")


def wrong_frames(rng: random.Random) -> Iterator[Attempt]:
    """Too few, too many, empty, and in the wrong order."""
    ping = b'{"type":"ping"}'
    yield Attempt((b"",))
    yield Attempt((ping, ping))
    yield Attempt((ping, b""))
    yield Attempt((b"", b""))
    yield Attempt((b"", b"", ping))
    yield Attempt((b"", ping, b""))
    yield Attempt((b"",) * 1000)
    yield Attempt((ping,) * 1000)
    while True:
        count = rng.randint(2, 11)
        yield Attempt((*(rng.randbytes(rng.choice((0, 1, 5, 300))) for _ in range(count)), b"x"))


def noise(rng: random.Random) -> Iterator[Attempt]:
    """Random bytes, and good requests with bytes changed, lost and doubled."""
    good = [message(kind, {**least(struct_type)}) for kind, struct_type in requests().items()]
    good += [b'{"type":"speak","id":"x","text":"Hello.","speed":1.5,"settings":{"a":1},"seed":7,"output":"stream"}']
    while True:
        payload = rng.randbytes(rng.choice((1, 2, 8, 64, 1000)))
        if rng.random() < 0.8:
            payload = mutated(rng.choice(good), rng)
        try:
            decode_request(payload)
        except ProtocolError:
            yield Attempt((payload,))


def mutated(payload: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four changes."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(payload) + 1)
        until_ = min(len(payload), at + rng.randint(0, 8))
        new = rng.choice(
            (b"", rng.randbytes(1), payload[at:until_] * 2, b'"', b"{", b"\\", b"\\u", b"e999", b"\0", b"null")
        )
        payload = payload[:at] + new + payload[until_:]
    return payload


def attempts(cloning: bool, rng: random.Random) -> list[Attempt]:
    """FRAMES malformed messages of every kind but the huge ones, shuffled; the same for the same seed."""
    found = [*wrong_fields(), *wrong_types(), *impossible_wishes(), *voice_uploads(cloning)]
    found += islice(wrong_frames(rng), 1000)
    found += islice(noise(rng), FRAMES - len(found))
    rng.shuffle(found)
    assert len(found) == FRAMES
    return found


# --------------------------------------------------------------------------- raw TCP

GREETING = b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready(routing_id: bytes) -> bytes:
    """The handshake of ZMTP 3.0 after the greeting, for a DEALER that calls itself so."""
    properties = b"".join(
        struct.pack(">B", len(name)) + name + struct.pack(">I", len(value)) + value
        for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", routing_id))
    )
    body = b"\x05READY" + properties
    return b"\x06" + struct.pack(">Q", len(body)) + body


class Raw:
    """A TCP connection to the text socket that need not speak ZeroMQ."""

    def __init__(self, address: str, sent: bytes) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._socket = socket.create_connection((host, int(port)), ANSWER_S)
        with suppress(OSError):
            self._socket.sendall(sent)

    def wait_answered(self, count: int) -> None:
        """Receive until so much has been refused, or all of it by closing; fails when that takes too long."""
        received = b""
        with suppress(ConnectionError):
            while received.count(b'"type":"rejected"') < count and (part := self._socket.recv(2**16)):
                received += part

    def wait_closed(self) -> None:
        """Receive until the other side closes; fails when that takes too long."""
        with suppress(ConnectionError):
            while self._socket.recv(2**16):
                pass

    def close(self) -> None:
        self._socket.close()


NEVER_DONE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 16\r\n\r\n" + b'{"type":"pause"}',
    GREETING + ready(b"x" * 300),
]
NOT_ZMTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    GREETING[:12] + b"PLAIN".ljust(20, b"\0") + bytes(32),
    GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32),
    GREETING[:12] + b"\xff" * 52,
    GREETING + b"\xff" * 64,
    GREETING + b"\x04\x00",
    GREETING + b"\x06" + b"\xff" * 8 + b"x" * 64,
    GREETING + ready(b"thief") + b"\x02" + struct.pack(">Q", 2**63 - 1) + b"x" * 64,
    GREETING + ready(b"thief") + b"\x02" + struct.pack(">Q", TEXT_MAX_BYTES + 1) + b"x" * 64,
    b"\x01\0\xff" + struct.pack(">Q", 2**62) + b"\0x",
]
HALF_OPEN = [b"", GREETING[:1], GREETING[:10], GREETING[:11], GREETING[:63], GREETING, GREETING + ready(b"x")[:9]]


def bare_zmtp1(address: str, rng: random.Random) -> None:
    """Messages after the two bytes that are a handshake in ZMTP 1.0: each is answered, or none is taken."""
    bodies = [rng.randbytes(rng.randint(1, 200)) for _ in range(10)]
    raw = Raw(address, b"\x01\0" + b"".join(struct.pack(">BB", len(body) + 1, 0) + body for body in bodies))
    raw.wait_answered(len(bodies))
    raw.close()


# --------------------------------------------------------------------------- those around


class Hostile:
    """A program that sends what it wants, and reads what it is answered."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, routing_id: bytes = b"") -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, int(ANSWER_S * 1000))
        if routing_id:
            self._socket.setsockopt(zmq.IDENTITY, routing_id)
        self._socket.connect(address)

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def answer(self) -> dict[str, Any]:
        """The next answer; fails when none comes."""
        answer = json.loads(self._socket.recv_multipart()[-1])
        assert isinstance(answer, dict)
        return answer

    def try_all(self, some: list[Attempt]) -> None:
        """Send each and check that it is refused (of several in flight, in whatever order)."""
        for first in range(0, len(some), IN_FLIGHT):
            batch = some[first : first + IN_FLIGHT]
            for attempt in batch:
                self.send(*attempt.frames)
            answers = [self.answer() for _ in batch]
            told = "\n".join(str(one)[:300] for one in [*batch, *answers])
            assert {answer["type"] for answer in answers} == {"rejected"}, told
            assert all(answer["reason"] and len(json.dumps(answer)) < 2000 for answer in answers), told
            missed = Counter(attempt.field for attempt in batch if attempt.field is not None)
            missed -= Counter(answer["field"] for answer in answers)
            assert not missed, f"no answer names {list(missed)}\n{told}"

    def close(self) -> None:
        self._socket.close()


class Listener:
    """A good client that hears the same text again and again meanwhile."""

    def __init__(self, client: Client, engine: str) -> None:
        self._client = client
        self._expected = pcm(direct_sound(engine, TEXT, seed=7))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self.heard = 0
        self.trouble: list[str] = []

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def hear(self) -> None:
        """Hear it once, and compare sample for sample."""
        sound = pcm(self._client.speak(TEXT, output="stream", seed=7).audio())
        if not np.array_equal(sound, self._expected):
            self.trouble.append(f"{len(sound)} samples in place of {len(self._expected)}, or others")
        self.heard += 1

    def _listen(self) -> None:
        try:
            while not self._done.is_set():
                self.hear()
        except Exception as error:  # noqa: BLE001 (told by the test's thread)
            self.trouble.append(repr(error))


Connect = Callable[..., Hostile]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def connect(stack: ExitStack) -> Connect:
    """Connects hostile programs, which are closed at the end."""
    context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())

    def connected(address: str, routing_id: bytes = b"") -> Hostile:
        hostile = Hostile(context, address, routing_id)
        stack.callback(hostile.close)
        return hostile

    return connected


def pids(running: Pipeline) -> dict[str, list[int]]:
    return {role: [child.pid for child in some] for role, some in running.children().items()}


def memory_bytes(running: Pipeline, role: str) -> int:
    """What it has allocated: without the rings, which are mapped as they are touched, and code that is loaded."""
    return own_memory_bytes(psutil.Process(running.pid(role)))


# --------------------------------------------------------------------------- tests


@ONE_ENGINE
def test_ten_thousand_malformed_messages_are_each_answered_and_disturb_nobody(
    pipeline: Start, engine: str, connect: Connect
) -> None:
    running = pipeline()
    rng = random.Random(4)
    hostile = [connect(running.to) for _ in range(4)]
    listener = Listener(running.client(), engine)
    listener.hear()
    before, processes = memory_bytes(running, "dispatcher"), pids(running)
    some = attempts(engine == "babble", rng)
    with listener:
        for number in range(0, FRAMES, 100):
            hostile[number // 100 % 4].try_all(some[number : number + 100])
    listener.hear()
    assert listener.trouble == []
    assert listener.heard > 2
    assert pids(running) == processes
    grown_bytes = memory_bytes(running, "dispatcher") - before
    print(f"grown by {grown_bytes:,} bytes")
    assert grown_bytes < GROWTH_BYTES
    status = running.client().status()
    assert status.healthy
    assert status.queued == 0
    assert [path.name for path in (running.folder / "voices").rglob("*")] == []


@ONE_ENGINE
def test_megabytes_are_refused_or_cut_off_and_what_they_take_is_bounded(
    pipeline: Start, engine: str, connect: Connect
) -> None:
    running = pipeline()
    hostile = connect(running.to)
    listener = Listener(running.client(), engine)
    listener.hear()
    before, processes, huge = memory_bytes(running, "dispatcher"), pids(running), list(deep_and_huge())
    with listener:
        first = max(_memory_after(running, hostile, huge) for _ in range(5))
        for _ in range(5):
            shut_out = connect(running.to)
            shut_out.send(b'{"type":"speak","id":"x","text":"' + b"x" * TEXT_MAX_BYTES + b'"}')
            shut_out.close()
        last = max(_memory_after(running, hostile, huge) for _ in range(5))
    listener.hear()
    assert listener.trouble == []
    assert pids(running) == processes
    assert first - before < HUGE_GROWTH_BYTES
    assert last - first < GROWTH_BYTES


def _memory_after(running: Pipeline, hostile: Hostile, some: list[Attempt]) -> int:
    hostile.try_all(some)
    return memory_bytes(running, "dispatcher")


@ONE_ENGINE
def test_one_message_of_a_million_characters_is_refused_by_the_name_of_the_limit(pipeline: Start) -> None:
    client = pipeline().client()
    with pytest.raises(SpeechError, match=r"text\.max_chars = 100000") as refused:
        client.speak("x" * 1_000_000, output="stream")
    assert isinstance(refused.value.event, Rejected)
    assert refused.value.event.field == "text"


@ONE_ENGINE
def test_a_million_characters_of_a_growing_text_are_spoken_with_flat_memory(pipeline: Start) -> None:
    running = pipeline({"text.max_audio_s": 1e6})
    client = running.client()
    # Code is not read out: it makes the text as long as it has to be, and its sound no longer than a test can wait for.
    page = (
        "Part {} of a *very* long text is read to nobody, until the end of it. Then comes code:\n\n```py\n"
        + "print('not spoken')  # at all\n" * 20
        + "```\n\nAnd so on, it never ends.\n\n"
    )
    text = "".join(page.format(number) for number in range(1_000_000 // len(page) + 1))[:1_000_000]
    client.speak(TEXT).wait()
    roles = ("dispatcher", "t3", "s3gen", "player")
    used: list[int] = []
    with client.utterance(speed=4.0) as speech:
        for at in range(0, len(text), 1000):
            speech.write(text[at : at + 1000])
            if at % 100_000 == 0:
                used.append(sum(memory_bytes(running, role) for role in roles))
    finished = speech.wait()
    assert isinstance(finished, Finished)
    assert finished.chars == len(text)
    assert finished.failed_segments == 0
    assert finished.seconds > 2000
    used.append(sum(memory_bytes(running, role) for role in roles))
    assert max(used[2:]) - used[1] < GROWTH_BYTES, used


HARD_TO_READ = (
    "—",
    "\u2028[",
    "\u2028*",
    "`",
    "B\u00a0. ",
    "[![",
    "<b ",
    "&",
    "|-|\n",
    "\n\n[",
    "😀",
    "\u0301",
    "\u200d",
    "a",
)


def test_texts_that_are_hard_to_read_hold_nobody_up(pipeline: Start, engine: str, connect: Connect) -> None:
    running = pipeline()
    processes = pids(running)
    hostile = connect(running.to)
    with Listener(running.client(), engine) as listener:
        for number, unit in enumerate(HARD_TO_READ):
            speak = {
                "type": "speak",
                "id": f"x{number}",
                "text": (unit * 100_000)[:100_000],
                "conversation": f"x{number}",
            }
            hostile.send(json.dumps(speak).encode())
            assert hostile.answer()["type"] == "accepted"
            heard = listener.heard
            until(lambda heard=heard: listener.heard > heard or listener.trouble, f"it is heard beside {unit!r}")
            hostile.send(json.dumps({"type": "cancel", "id": speak["id"]}).encode())
            until(lambda: hostile.answer()["type"] in ("cancelled", "rejected"), "it is over")
    assert listener.trouble == []
    assert pids(running) == processes


@ONE_ENGINE
def test_a_taken_routing_id_takes_nothing_from_others(pipeline: Start, engine: str, connect: Connect) -> None:
    running = pipeline()
    processes = pids(running)
    with Listener(running.client(), engine) as listener:
        for name in (b"victim", b"x" * 255, b"client", b"\xff\0\n"):
            victim, thief = connect(running.to, name), None
            for _ in range(20):
                victim.send(b'{"type":"sing"}')
                assert victim.answer()["field"] == "type"
                thief = connect(running.to, name)
                thief.send(b'{"type":"sing"}')
                assert thief.answer()["field"] == "type"
                victim.close()
                victim = thief
            victim.close()
        for guess in range(200):
            raw = Raw(running.to, GREETING + ready(struct.pack(">BI", 0, guess)) + b"\0\x05hello")
            raw.wait_closed()  # such names are the socket's own to give
            raw.close()
    listener.hear()
    assert listener.trouble == []
    assert pids(running) == processes


@ONE_ENGINE
def test_the_work_socket_is_private_and_drops_what_no_process_of_ours_would_say(
    pipeline: Start, engine: str, connect: Connect
) -> None:
    running = pipeline()
    rng = random.Random(6)
    [path] = (running.folder / "run").glob("*/run-*/work.sock")
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    if os.geteuid() == 0:
        knock = "import os, socket, sys; os.setuid(65534); socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        stranger = subprocess.run([sys.executable, "-c", knock, path], capture_output=True)
        assert b"PermissionError" in stranger.stderr
    listener = Listener(running.client(), engine)
    listener.hear()
    before, processes = memory_bytes(running, "dispatcher"), pids(running)
    stranger_says = [encode_packet(Packet(session, 1, 1, 1, Probed(1))) for session in (0, 1, 2**53, 2**63 - 1)]
    stranger_says += [encode_packet(Packet(7, 0, 0, 0, Rendered(1, 2**60, 2**60, b"x" * 1000))), b"", b"\x90", b"\xdd"]
    with listener:
        for number in range(20):
            same_user = connect(f"ipc://{path}")
            for _ in range(100):
                frames = [rng.choice((rng.randbytes(rng.randint(0, 100)), mutated(rng.choice(stranger_says), rng)))]
                same_user.send(*frames * rng.choice((1, 1, 1, 2, 50)))
            for said in stranger_says:
                same_user.send(said)
            same_user.send(b"\x91" * (2**20 if number == 0 else 10_000))
            same_user.close()
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(path))
            raw.sendall(b"\x01\0" + rng.randbytes(100_000))
    listener.hear()
    assert listener.trouble == []
    assert pids(running) == processes
    grown_bytes = memory_bytes(running, "dispatcher") - before
    print(f"grown by {grown_bytes:,} bytes")
    assert grown_bytes < GROWTH_BYTES


@ONE_ENGINE
def test_what_is_no_zeromq_is_shut_out_and_disturbs_nobody(pipeline: Start, engine: str, stack: ExitStack) -> None:
    running = pipeline()
    rng = random.Random(5)
    listener = Listener(running.client(), engine)
    listener.hear()
    before, processes = memory_bytes(running, "dispatcher"), pids(running)
    with listener:
        waiting = [Raw(running.to, sent) for sent in HALF_OPEN * 10]
        for raw in waiting:
            stack.callback(raw.close)
        for _ in range(100):
            bare_zmtp1(running.to, rng)
        for sent in NOT_ZMTP * 3:
            raw = Raw(running.to, sent)
            raw.wait_closed()
            raw.close()
        for _ in range(200):
            Raw(running.to, rng.randbytes(rng.choice((1, 12, 64, 500)))).close()
        for sent in NEVER_DONE * 10:
            stack.callback(Raw(running.to, sent).close)
        for raw in waiting:
            raw.wait_closed()
    listener.hear()
    assert listener.trouble == []
    assert pids(running) == processes
    grown_bytes = memory_bytes(running, "dispatcher") - before
    print(f"grown by {grown_bytes:,} bytes")
    assert grown_bytes < GROWTH_BYTES
