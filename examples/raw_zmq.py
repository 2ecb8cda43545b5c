"""The protocol with nothing but ZeroMQ and JSON: python examples/raw_zmq.py [ADDRESS].

docs/protocol.md has every message. This program speaks through the speaker, then takes the sound of
a second text, and asks a question as a REQ client.
"""

from __future__ import annotations

import json
import sys
import uuid

import zmq

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5570"
LAST = ("finished", "cancelled", "failed", "rejected")


def speak(socket: zmq.Socket[bytes], text: str, output: str) -> bytes:
    """Speak a text and follow it to its end; the sound, if it comes here (s16le, mono, 24 kHz)."""
    request = {"type": "speak", "id": uuid.uuid4().hex, "text": text, "output": output}
    socket.send(json.dumps(request).encode())
    sound = b""
    while True:
        if not socket.poll(10_000):
            sys.exit(f"no pipeline answers at {ADDRESS}: start one with `launch pipeline.yaml`")
        head, *pcm = socket.recv_multipart()
        event = json.loads(head)
        if event.get("id") != request["id"]:
            continue
        if event["type"] == "audio":
            sound += pcm[0]
        else:
            print(event)
        if event["type"] in LAST and event.get("final", True):
            return sound


def main() -> None:
    with zmq.Context() as context:
        with context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(ADDRESS)
            speak(socket, "Hello from plain ZeroMQ.", "speaker")
            sound = speak(socket, "And this one comes back.", "stream")
            print(f"{len(sound) // 2} samples, {len(sound) / 48_000:.2f} s")
        with context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.connect(ADDRESS)
            socket.send(b'{"type": "status"}')
            print("engine:", json.loads(socket.recv())["engine"])


if __name__ == "__main__":
    main()
