"""Real processes are killed while a recorded sound server plays: what is heard is what the engine made.

`CHATTERLINE_KILLS=25 pytest tests/test_sound_kills.py` kills as often as it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ipc.messages import SAMPLE_RATE
from pipeline.engines.base import Samples
from tests.harness import Pipeline, direct_sound, pcm, until
from tests.killing import (
    KILLING_S,
    NO_GAPS,
    PACE,
    PATIENCE_S,
    SEED,
    SIXTY,
    Growing,
    Listener,
    in_turn,
    kill_often,
    voiced,
)
from tests.test_sound_server import equal_at_start
from tests.workers.pulse import PulseServer, needs_pulse

pytestmark = [pytest.mark.sound, pytest.mark.slow, needs_pulse]

Start = Callable[..., Pipeline]

BLOCK = 512
LOST = 4 * BLOCK
"""More than a device that runs dry loses at once."""

IN_DEVICE_S = 1.0
"""More than the device and the server hold at once."""


def lost(heard: Samples, made: Samples) -> Iterator[int]:
    """How many samples are missing at each place where some are; fails where anything else is different."""
    at, done = 0, 0
    while at < len(heard):
        same = equal_at_start(heard[at:], made[done:])
        at, done = at + same, done + same
        after = heard[at : at + BLOCK]
        if len(after):
            skips = range(1, LOST + 1)
            found = [skip for skip in skips if np.array_equal(made[done + skip : done + skip + len(after)], after)]
            assert found, f"after sample {done} of {len(made)} it goes on somewhere else"
            yield found[0]
            done += found[0]
    assert done == len(made), "it ends as it was made"


def test_what_is_lost_is_noticed_and_what_is_altered_or_repeated_is_refused() -> None:
    made = np.random.default_rng(1).uniform(0.1, 1, 20_000).astype(np.float32)
    assert list(lost(made, made)) == []
    assert list(lost(np.concatenate([made[:9_000], made[9_516:]]), made)) == [516]
    for wrong in (made[:-1], np.concatenate([made[:9_000], made[8_999:]]), np.where(made == made[9_000], 0.5, made)):
        with pytest.raises(AssertionError, match=r"somewhere else|ends as"):
            list(lost(wrong.astype(np.float32), made))


@pytest.mark.timeout(300 + 4 * KILLING_S)
@pytest.mark.parametrize("engine", ["espeak"])
@pytest.mark.parametrize("roles", in_turn("t3", "s3gen", "dispatcher"), ids=str)
def test_kills_leave_no_trace_in_what_the_loudspeaker_gets(
    pipeline: Start, engine: str, roles: tuple[str, ...]
) -> None:
    """Sample for sample as float32, while another text streams to a listener.

    Where the machine is too busy for the device it loses a block; the player knows, and no kill is to blame."""
    streamed = pcm(direct_sound(engine, SIXTY, SEED))
    with PulseServer() as pulse:
        running = pipeline(NO_GAPS | {"player.device": "pulse"}, output="speaker", environment=pulse.env)
        recorder = pulse.record()
        client = running.client(timeout_s=PATIENCE_S)
        listener = Listener(client.speak(SIXTY, output="stream", seed=SEED), pace=PACE)
        with client.utterance(seed=SEED) as speech:
            speaking = Growing(client, speech)
            speaking.wait_made_ahead()
            kill_often(running, roles, listener, speaking)
        heard = listener.sound(PATIENCE_S)
        finished = speech.wait()
        underflows = int(client.status().player["output_underflows"])
        made = direct_sound(engine, speaking.text, SEED)
        recorded = recorder.count() + IN_DEVICE_S * SAMPLE_RATE
        until(lambda: recorder.count() > recorded, "what was in the device is recorded")
        assert np.array_equal(heard, streamed)
        assert (finished.failed_segments, finished.samples, finished.underruns) == (0, len(made), 0)
        missing = list(lost(voiced(recorder.sound()), voiced(made)))
        print(f"the device ran dry {underflows} times; samples lost: {missing}")
        assert len(missing) <= underflows
        assert running.stop() == 0
