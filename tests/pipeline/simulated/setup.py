"""What a simulated pipeline is made of."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ipc.messages import (
    SAMPLE_RATE,
)
from pipeline.config import Config

TOKEN_SAMPLES = 960
TOKEN_S = TOKEN_SAMPLES / SAMPLE_RATE
FULL_SCALE = 32767
"""Sound is labels: a sample of value ``code / FULL_SCALE`` belongs to the character of this code; 0 is silence."""


class Died(BaseException):
    """A simulated process was killed in the middle of something."""


@dataclass(frozen=True)
class Setup:
    """Everything about a pipeline that stays the same in a run. Times in seconds."""

    seed: int = 0
    t3: int = 1
    s3gen: int = 1
    ring_s: float = 2.0
    stream_ring_s: float = 2.0
    ahead_s: float = 1.0
    first_chunk: int = 4
    chunk: int = 12
    ladder: bool = True
    lookahead: int = 0
    t3_batch: int = 8
    t3_tokens: int = 5
    t3_step_s: float = 0.02
    render_ratio: float = 0.1
    guess: float = 1.0
    """How long t3 believes a token to be, as a share of how long it is."""
    empty_final: bool = False
    """t3 says that a segment is over in a message of its own."""
    block_s: float = 0.08
    device_s: float = 0.0
    latency_s: float = 0.001
    load_s: float = 0.05
    restart_s: float = 0.1
    streams: int = 3
    detach_s: float = 2.0
    idle_s: float = 3.0
    flush_ms: int = 400
    pause_ms: int = 0
    free_pace: bool = False

    def config(self) -> Config:
        """The configuration that the processes get."""
        default, change = Config(), msgspec.structs.replace
        return change(
            default,
            flow=change(
                default.flow,
                ring_s=self.ring_s,
                stream_ring_s=self.stream_ring_s,
                ahead_s=self.ahead_s,
                first_chunk_tokens=self.first_chunk,
                chunk_tokens=self.chunk,
                flush_ms=self.flush_ms,
            ),
            text=change(default.text, max_streams=self.streams, detach_s=self.detach_s, idle_s=self.idle_s),
            player=change(default.player, pace="free" if self.free_pace else "realtime"),
        )
