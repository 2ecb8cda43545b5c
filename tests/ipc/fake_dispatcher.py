"""A dispatcher that answers by script: the text socket's manners without a pipeline behind them.

It speaks plain ZeroMQ and JSON (not our codec), so that a mistake in the codec is not made twice.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

Json = dict[str, Any]
DEADLINE_S = 10.0


class FakeDispatcher:
    """A ROUTER in a thread. ``script(self, client, request)`` is called for each request.

    What cannot be sent (a client that does not read) waits in order, as in the real one.
    """

    def __init__(self, script: Callable[[FakeDispatcher, bytes, Json], None] | None = None, to: str = "") -> None:
        self.script = script or speak_everything
        self.requests: list[tuple[bytes, Json]] = []
        self.state: dict[str, Any] = {}
        self.sent_audio = 0
        self._waiting: dict[bytes, deque[list[bytes]]] = {}
        self._req: dict[bytes, bool] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in {"LINGER": 0, "ROUTER_MANDATORY": 1, "SNDHWM": 8, "SNDBUF": 65536}.items():
            self._socket.setsockopt(getattr(zmq, option), value)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.bind(to or "tcp://127.0.0.1:0")
        self.to = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeDispatcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Die, as a killed process does: what was not sent is lost."""
        self._leave.set()
        self._thread.join(DEADLINE_S)
        self._context.destroy(linger=0)

    def of(self, kind: str) -> list[Json]:
        """The requests of a kind so far."""
        return [request for _, request in list(self.requests) if request.get("type") == kind]

    def until(self, kind: str, count: int = 1) -> list[Json]:
        """Wait until so many requests of a kind have come."""
        deadline = time.monotonic() + DEADLINE_S
        while len(found := self.of(kind)) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} {kind}: {self.requests}"
            time.sleep(0.005)
        return found

    def send(self, client: bytes, event: Json, pcm: bytes | None = None) -> None:
        """Send an event, in order; from the script only."""
        frames = [client, *([b""] if self._req.get(client) else []), json.dumps(event).encode()]
        self._waiting.setdefault(client, deque()).append(frames if pcm is None else [*frames, pcm])

    def _run(self) -> None:
        while not self._leave.is_set():
            self._flush()
            if self._socket.poll(2):
                client, *frames = self._socket.recv_multipart()
                self._req[client] = frames[0] == b""
                request = json.loads(frames[-1])
                self.requests.append((client, request))
                self.script(self, client, request)

    def _flush(self) -> None:
        for waiting in self._waiting.values():
            while waiting:
                try:
                    self._socket.send_multipart(waiting[0], zmq.NOBLOCK)
                except zmq.ZMQError:
                    break
                self.sent_audio += b'"audio"' in waiting[0][-2]
                waiting.popleft()


def accepted(request: Json, state: str = "queued") -> Json:
    return {"type": "accepted", "id": request["id"], "voice": "v", "language": "en", "seed": 1, "state": state}


def finished(request: Json, samples: int = 0, chars: int = 0) -> Json:
    return {"type": "finished", "id": request["id"], "seconds": samples / 24000, "samples": samples, "chars": chars}


def cancelled(request: Json, heard: str = "") -> Json:
    chars = len(heard)
    return {"type": "cancelled", "id": request["id"], "heard": heard, "chars": chars, "exact": True, "seconds": 0.5}


def rejected(request: Json, field: str, reason: str) -> Json:
    return {"type": "rejected", "request": request["type"], "field": field, "reason": reason, "id": request.get("id")}


def piece(request: Json, first: int, samples: int = 2400) -> tuple[Json, bytes]:
    """Sample k of an utterance has the value k modulo 1000."""
    pcm = b"".join((k % 1000).to_bytes(2, "little", signed=True) for k in range(first, first + samples))
    return {"type": "audio", "id": request["id"], "first_sample": first, "samples": samples}, pcm


ANSWERS: dict[str, Json] = {
    "pause": {"type": "paused"},
    "resume": {"type": "resumed"},
    "ping": {"type": "pong", "workers_ms": {"t3-0": 0.5}},
    "voices": {
        "type": "voices", "engine": "fake", "default": "v", "cloning": False, "languages": ["en"],
        "voices": [{"id": "v", "name": "Vee", "language": "en"}, {"id": "w", "name": "Wu", "language": "zh"}],
        "settings": [{"name": "pitch", "kind": "int", "default": 50, "help": "How high.", "least": 0, "most": 99}],
    },
}  # fmt: skip

REPORT: Json = {
    "engine": "fake", "engine_reason": "engine fake, as configured", "uptime_s": 12.5, "paused": False,
    "healthy": True, "queued": 1, "counters": {"accepted": 3}, "player": {"output": "none"},
    "stages": [{"worker": "t3-0", "state": "RUNNING", "busy": 0.25, "starved": 0.7, "blocked": 0.05, "streams": 1}],
    "queues": {"ring": {"now": 1.0, "mean": 2.0, "most": 3.0, "bound": 10.0, "unit": "s"}},
    "latencies": {"first_audio": {"count": 3, "p50_ms": 4.5, "p90_ms": 6, "p99_ms": 7, "last_ms": 5}},
    "speaking": [{"id": "a1", "conversation": "default", "output": "speaker", "priority": "normal",
                  "state": "speaking", "chars": 24, "heard_chars": 5, "text": "Hello there, [you] two."}],
}  # fmt: skip


def speak_everything(fake: FakeDispatcher, client: bytes, request: Json) -> None:
    """A pipeline in which all goes well and at once."""
    match request["type"]:
        case "speak":
            fake.send(client, accepted(request))
            if request.get("final", True):
                speak_now(fake, client, request, request["text"])
            else:
                fake.state[request["id"]] = (request, request.get("text", ""))
        case "text":
            speak, text = fake.state[request["id"]]
            fake.state[request["id"]] = (speak, text + request["text"])
        case "end":
            speak_now(fake, client, *fake.state[request["id"]])
        case "cancel" if "id" in request:
            fake.send(client, rejected(request, "id", "nothing of that id is waiting or being spoken"))
        case "cancel":
            fake.send(client, {"type": "ok", "request": "cancel"})
        case "status":
            fake.send(client, {"type": "status", **REPORT})
        case "watch" if request.get("every_ms", 500):
            for _ in range(3):
                fake.send(client, {"type": "state", **REPORT})
        case "voice_add":
            received = request["offset"] + len(request["data"]) * 3 // 4 - request["data"].count("=")
            complete = received >= request["total_bytes"]
            event = {"type": "voice_added", "voice": request["voice"], "received_bytes": received}
            fake.send(client, event | {"complete": complete})
        case kind if kind in ANSWERS:
            fake.send(client, ANSWERS[kind])


def speak_now(fake: FakeDispatcher, client: bytes, request: Json, text: str) -> None:
    """100 ms of sound a character, and all events."""
    samples = 0
    fake.send(client, {"type": "started", "id": request["id"], "latency_ms": 3.5})
    if request.get("output") == "stream":
        for _ in text:
            fake.send(client, *piece(request, samples))
            samples += 2400
    fake.send(client, {"type": "progress", "id": request["id"], "chars": len(text), "seconds": samples / 24000})
    fake.send(client, finished(request, samples, len(text)))
