"""The s3gen stage: tokens to sound in the rings, with whatever engine is configured.

`workers.rendering.AudioStreams` is the bookkeeping; this is the process around it: receive → step
→ send. While every stream waits for room in its ring, the loop looks again after a short while: a
ring has no other way to tell. It is full, so nothing hurries, unless its reader is fast.
"""

from __future__ import annotations

from ipc.messages import SAMPLE_RATE
from ipc.ring import Arena
from pipeline.config import ConfigError
from pipeline.engines.base import load_engine
from workers.life import Life, end, run
from workers.rendering import AudioStreams
from workers.worker import Worker, engine_config

IDLE_S = 1.0
LOOK_SOON_S = 0.002
LOOK_LATE_S = 0.05
CLOSE_AFTER_S = 0.005
"""The engine closes what is over when nothing has come for so long; what was just sent is on its way then."""

MUCH_SAMPLES = SAMPLE_RATE // 5
"""Room for that much after one look means that the reader is faster than the ear."""


class Patience:
    """How long to leave full rings alone: half as long when one had much room, else twice as long."""

    def __init__(self) -> None:
        self.wait_s = LOOK_SOON_S

    def next(self, blocked: bool, moved_samples: int) -> float:
        """Seconds to wait now, given what the last look could write; starts anew when nothing is blocked."""
        if not blocked:
            self.wait_s = LOOK_SOON_S
            return IDLE_S
        factor = 0.5 if moved_samples >= MUCH_SAMPLES else 2.0
        self.wait_s = min(max(self.wait_s * factor, LOOK_SOON_S), LOOK_LATE_S)
        return self.wait_s


def work(life: Life) -> None:
    """Load the engine's audio half and render until told to leave."""
    if life.arguments.arena < 0:
        raise ConfigError("workers.s3gen: --arena is needed (the descriptor of the shared memory that `launch` makes)")
    config = life.config()
    worker = Worker(life, "s3gen", config)
    worker.report("loading", config.supervise.start_timeout_s)
    arena = Arena.attach(life.arguments.arena)
    engine = load_engine(config.model.engine)
    model = engine.audio(engine_config(config, config.stages.s3gen), worker.report)
    try:
        worker.ready(model.facts)
        streams = AudioStreams(model, arena.writer)
        patience = Patience()
        while not worker.leaving:
            wait_s = 0.0 if streams.ready else patience.next(streams.blocked, streams.moved)
            if streams.finished:
                wait_s = min(wait_s, CLOSE_AFTER_S)
            messages = worker.receive(wait_s, "blocked" if streams.blocked else "starved")
            for message in messages:
                worker.send(streams.handle(message))
            worker.send(streams.step())
            if not messages and not streams.ready:
                streams.close_finished()
            worker.load(len(streams), streams.counters)
        worker.leave()
    finally:
        model.close()
        arena.close()


if __name__ == "__main__":
    end(run("s3gen", work))
