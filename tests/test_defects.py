"""Defects that a hostile program or machine found in the real pipeline, each kept out by a test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from tests.harness import Pipeline, until

Start = Callable[..., Pipeline]


@contextmanager
def dealer(to: str, **options: Any) -> Iterator[zmq.Socket[bytes]]:
    """A program with nothing but a socket."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        for name, value in {"LINGER": 0, **options}.items():
            socket.setsockopt(getattr(zmq, name), value)
        socket.connect(to)
        yield socket
    finally:
        socket.close()
        context.term()


def ask(socket: zmq.Socket[bytes], **request: Any) -> None:
    socket.send(json.dumps(request).encode())


def events(socket: zmq.Socket[bytes], last: str, timeout_s: float) -> list[dict[str, Any]]:
    """What arrives, up to an event of type ``last``."""
    got: list[dict[str, Any]] = []
    deadline = time.monotonic() + timeout_s
    while not got or got[-1]["type"] != last:
        left_ms = round((deadline - time.monotonic()) * 1000)
        assert left_ms > 0 and socket.poll(left_ms), f"no {last!r} within {timeout_s} s, but {got[-3:]}"  # noqa: PT018
        got.append(json.loads(socket.recv_multipart()[0]))
    return got


@pytest.mark.parametrize("engine", ["espeak"])
def test_many_listeners_that_never_read_do_not_silence_the_speaker(pipeline: Start) -> None:
    running = pipeline()
    text = "This is one sentence of the long text that nobody reads. " * 60
    with dealer(running.to) as loud, dealer(running.to, RCVHWM=1, RCVBUF=4096) as deaf:
        for number in range(24):
            ask(deaf, type="speak", id=f"deaf{number}", conversation=str(number), text=text, output="stream")
        until(lambda: running.client().status().queues["stream_rings"].now > 20, "the rings of the deaf are full")
        ask(loud, type="speak", id="loud", text="Hello there.")
        events(loud, "finished", 10)
        ask(loud, type="cancel", all=True)
        events(loud, "ok", 10)


@pytest.mark.parametrize("engine", ["espeak"])
def test_a_listener_that_comes_back_under_its_name_keeps_its_speech(pipeline: Start) -> None:
    running = pipeline({"text.detach_s": 3.0})
    text = "One sentence of many. " * 4000
    with dealer(running.to, IDENTITY=b"fixed", RCVHWM=1, RCVBUF=4096) as first:
        ask(first, type="speak", id="long", text=text, output="stream")
        events(first, "audio", 10)
    until(lambda: running.client().status().queues["stream_rings"].now >= 2.0, "it has gone: its ring is full")
    with dealer(running.to, IDENTITY=b"fixed", RCVHWM=1, RCVBUF=4096) as again:
        seen = time.monotonic() + 4.0
        while time.monotonic() < seen:
            if again.poll(200):
                kind = json.loads(again.recv_multipart()[0])["type"]
                assert kind not in ("cancelled", "failed"), "it is back and listens"
        ask(again, type="cancel", id="long")
        events(again, "cancelled", 20)
