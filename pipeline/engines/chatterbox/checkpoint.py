"""The state of a sounding stream between two rungs, and the same as bytes.

Numbers on the host only: a rung starts from them whether or not another was rendered by this process before, so that
a successor cannot differ from its predecessor.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from pipeline.engines.base import EngineError, Samples, Segment

_HEAD = struct.Struct("<8s16sIIIIBBd")
_MAGIC = b"cbaudio1"
_CHANNELS = 80


@dataclass(frozen=True)
class State:
    """After a rung.

    ``mel``: float32 (80, F), the last frames up to token ``done_tokens``. ``sounded_frames``: frames whose sound is
    out. ``tail``: what the last window made of the beginning of the next frame, to be faded over. ``phase``: of the
    pitch, in turns. ``posts``: the post-processors' own states.
    """

    done_tokens: int = 0
    sounded_frames: int = 0
    phase: float = 0.0
    finished: bool = False
    mel: Samples = field(default_factory=lambda: np.zeros((_CHANNELS, 0), np.float32))
    tail: Samples = field(default_factory=lambda: np.zeros(0, np.float32))
    posts: tuple[bytes, ...] = ()


def request_digest(segment: Segment, engine: str) -> bytes:
    """16 bytes that tell one request's checkpoints from another's. ``engine``: whatever else shapes the sound."""
    asked = [segment.voice, segment.language, segment.speed, segment.seed, sorted(segment.settings.items()), engine]
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).digest()


def pack(state: State, digest: bytes) -> bytes:
    """The state as bytes, with a checksum."""
    head = _HEAD.pack(
        _MAGIC,
        digest,
        state.done_tokens,
        state.sounded_frames,
        state.mel.shape[1],
        len(state.tail),
        len(state.posts),
        state.finished,
        state.phase,
    )
    posts = b"".join(struct.pack("<I", len(post)) + post for post in state.posts)
    body = head + state.mel.tobytes() + state.tail.tobytes() + posts
    return body + zlib.crc32(body).to_bytes(4, "little")


def unpack(data: bytes, digest: bytes) -> State:
    """Raises `EngineError` when ``data`` was damaged, is no checkpoint of this engine, or another request's."""
    body, check = data[:-4], data[-4:]
    if len(body) < _HEAD.size or not body.startswith(_MAGIC):
        raise EngineError(f"checkpoint: {len(data)} bytes that are not a checkpoint of Chatterbox")
    if zlib.crc32(body).to_bytes(4, "little") != check:
        raise EngineError("checkpoint: was changed on the way (checksum)")
    _, whose, done, sounded, frames, tail, posts, finished, phase = _HEAD.unpack_from(body)
    if whose != digest:
        raise EngineError("checkpoint: belongs to another request, voice or configuration")
    mel = np.frombuffer(body, np.float32, _CHANNELS * frames, _HEAD.size).reshape(_CHANNELS, frames)
    at = _HEAD.size + mel.nbytes
    sound = np.frombuffer(body, np.float32, tail, at)
    at += sound.nbytes
    states = []
    for _ in range(posts):
        (size,) = struct.unpack_from("<I", body, at)
        states.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    return State(done, sounded, phase, bool(finished), mel.copy(), sound.copy(), tuple(states))
