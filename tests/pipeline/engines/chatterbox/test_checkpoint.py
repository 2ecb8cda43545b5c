"""A stream's state as bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.engines.base import EngineError, Segment
from pipeline.engines.chatterbox.checkpoint import State, pack, request_digest, unpack

pytestmark = pytest.mark.chatterbox

SEGMENT = Segment("", "end", "anna", "en", 1.0, 5, {"cfm_steps": 4})
STATE = State(
    done_tokens=700,
    sounded_frames=1390,
    phase=0.123456789012345,
    mel=np.random.default_rng(0).normal(size=(80, 50)).astype(np.float32),
    tail=np.linspace(0, 1, 240, dtype=np.float32),
    posts=(b"", b"state of another"),
)


def test_what_was_packed_is_there_bit_for_bit() -> None:
    digest = request_digest(SEGMENT, "engine")
    back = unpack(pack(STATE, digest), digest)
    assert (back.done_tokens, back.sounded_frames, back.phase, back.finished) == (700, 1390, STATE.phase, False)
    np.testing.assert_array_equal(back.mel, STATE.mel)
    np.testing.assert_array_equal(back.tail, STATE.tail)
    assert back.posts == STATE.posts
    assert len(pack(STATE, digest)) < 20_000
    assert pack(back, digest) == pack(STATE, digest)


def test_a_fresh_state_fits_too() -> None:
    back = unpack(pack(State(), b"0" * 16), b"0" * 16)
    assert back.mel.shape == (80, 0)
    assert back.posts == ()


def test_every_damage_is_noticed() -> None:
    digest = request_digest(SEGMENT, "engine")
    data = pack(STATE, digest)
    draw = np.random.default_rng(1)
    for _ in range(200):
        at = int(draw.integers(len(data)))
        damaged = data[:at] + bytes([data[at] ^ (1 << int(draw.integers(8)))]) + data[at + 1 :]
        with pytest.raises(EngineError, match="checkpoint"):
            unpack(damaged, digest)
        with pytest.raises(EngineError, match="checkpoint"):
            unpack(data[:at], digest)
    with pytest.raises(EngineError, match="are not a checkpoint"):
        unpack(b"something else", digest)


def test_each_request_has_its_own() -> None:
    others = [
        replace(SEGMENT, voice="bert"),
        replace(SEGMENT, language="de"),
        replace(SEGMENT, speed=1.5),
        replace(SEGMENT, seed=6),
        replace(SEGMENT, settings={}),
    ]
    digests = {request_digest(one, "engine") for one in (SEGMENT, *others)} | {request_digest(SEGMENT, "other")}
    assert len(digests) == 7
    assert request_digest(replace(SEGMENT, text="not known here", boundary="clause"), "engine") in digests
