"""The player stage: the speaker's ring into the sound card, a file or nowhere.

The output takes samples at its own pace (`workers.playback` says which); this process around it
answers probes, looks after the output and reports. It is kept quiet on purpose: any Python that
runs here runs at the expense of the callback.
"""

from __future__ import annotations

import gc
import os
import sys
import time

from msgspec.structs import replace

from ipc.messages import SAMPLE_RATE, PlayerStats
from ipc.ring import Arena
from pipeline.config import Config, ConfigError
from workers.life import Life, run
from workers.playback import Playback, State
from workers.sound import Output, SoundError
from workers.sound_choice import open_output
from workers.worker import Worker

SPEAKER_SLOT = 0
MEMORY = "player-output"
TEND_S = 0.25
STATS_S = 0.5
STATS_HEARTBEAT_S = 5.0
_SWITCH_S = 0.0005


class Reporter:
    """Tells the dispatcher how the output stands: at most twice a second, and only what is new."""

    def __init__(self, playback: Playback, output: Output) -> None:
        self._playback = playback
        self._output = output
        self._next = 0.0
        self._sent_at = 0.0
        self._sent: PlayerStats | None = None
        self._said = ""

    def due(self, now: float) -> list[PlayerStats]:
        """What is to be sent now."""
        if now < self._next:
            return []
        self._next = now + STATS_S
        stats = self.stats()
        if stats.note != self._said:
            self._said = stats.note
            print(f"player: {stats.note or 'sound is back on ' + stats.device}", file=sys.stderr, flush=True)
        if now - self._sent_at < STATS_HEARTBEAT_S and self._sent is not None and not _changed(self._sent, stats):
            return []
        self._sent, self._sent_at = stats, now
        return [stats]

    def stats(self) -> PlayerStats:
        """As of now."""
        status, state = self._output.status(), self._playback.state
        return PlayerStats(
            starvations=self._playback.starvations,
            output_underflows=status.underflows,
            reopens=status.reopens,
            callback_p99_ms=round(status.callback_p99_ms, 1),
            state=(state if status.available else State.NO_DEVICE).label,
            output=self._output.facts.output,
            device=status.device,
            note=status.note,
        )

    def forget(self) -> None:
        """A new dispatcher knows nothing."""
        self._sent = None


def _changed(sent: PlayerStats, stats: PlayerStats) -> bool:
    """The p99 moves all the time; alone it is no news."""
    return replace(sent, callback_p99_ms=0.0) != replace(stats, callback_p99_ms=0.0)


def prebuffer_samples(config: Config) -> int:
    """player.prebuffer_ms, but never so much that it could not be there: neither more than half the
    ring holds, nor more than half of what the stages run ahead."""
    most_s = min(config.flow.ring_s, config.flow.ahead_s) / 2
    return round(min(config.player.prebuffer_ms / 1000, most_s) * SAMPLE_RATE)


def quiet_libraries() -> None:
    """ALSA and PortAudio write what they also return to descriptor 2, at every attempt to open a
    device that has gone. Python's stderr goes on, theirs ends."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def work(life: Life) -> None:
    """Open the output and play until told to leave."""
    if life.arguments.arena < 0:
        raise ConfigError("workers.player: --arena is needed (the descriptor of the shared memory that `launch` makes)")
    config = life.config()
    worker = Worker(life, "player", config)
    worker.report("opening the sound output", config.supervise.start_timeout_s)
    quiet_libraries()
    sys.setswitchinterval(_SWITCH_S)
    arena = Arena.attach(life.arguments.arena)
    reader = arena.reader(SPEAKER_SLOT)
    playback = Playback(reader, config.player.block, SAMPLE_RATE, prebuffer_samples(config))
    try:
        output = open_output(config.player, playback, life.endpoints.run_dir / MEMORY)
    except SoundError as error:
        raise ConfigError(str(error)) from error
    gc.collect()
    gc.freeze()
    worker.ready(output.facts)
    reporter = Reporter(playback, output)
    while not worker.leaving:
        if worker.receive(TEND_S):  # nothing but a new dispatcher's Welcome comes through
            reporter.forget()
        output.tend()
        worker.send(reporter.due(time.monotonic()))
    worker.report("playing the last samples", config.supervise.stop_timeout_s)
    output.close()
    worker.send([reporter.stats()])
    worker.leave()
    arena.close()


if __name__ == "__main__":
    sys.exit(run("player", work))
