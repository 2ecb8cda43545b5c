"""Speech tokens as they travel: two little-endian bytes each, every id that T3 made, in order.

Ids from `SPEECH_TOKENS` on are no sound and are not counted, but they stay in the bytes: T3 has heard itself say them,
so that whoever goes on from these bytes needs them. The audio half passes over them (`sound`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.variants import SPEECH_TOKENS


def encode(ids: Sequence[int]) -> bytes:
    """Two bytes an id (0 … 65535)."""
    return np.asarray(ids, dtype="<u2").tobytes()


def decode(data: bytes, tokens: int) -> list[int]:
    """Every id in ``data``. Raises `EngineError` unless exactly ``tokens`` of them are sound."""
    if len(data) % 2:
        raise EngineError(f"tokens: {len(data)} bytes are no whole number of tokens of two bytes")
    ids: list[int] = np.frombuffer(data, dtype="<u2").tolist()
    if (found := len(sound(ids))) != tokens:
        raise EngineError(f"tokens: {found} in {len(data)} bytes, {tokens} were announced")
    return ids


def sound(ids: Sequence[int]) -> list[int]:
    """Those that are heard."""
    return [one for one in ids if one < SPEECH_TOKENS]
