"""What long surveys (`make simulate N=100000`) have found, each as the least schedule that showed it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pipeline import simulation
from tests.pipeline.simulated.schedules import Action, Schedule
from tests.pipeline.simulated.setup import Setup

CAME_BEHIND = Schedule(
    Setup(
        seed=39381, s3gen=2, ring_s=4.0, stream_ring_s=0.5, ahead_s=3.0, first_chunk=1, chunk=25, lookahead=2,
        t3_batch=1, t3_tokens=2, t3_step_s=0.005, render_ratio=0.6, block_s=0.1, latency_s=0.01, load_s=0.6,
        restart_s=0.05, streams=1, flush_ms=100,
    ),
    (
        Action(0.007, "speak", "q", ("u1", "", "speaker", "x", "interrupt", False)),
        Action(0.257, "text", "q", ("u1", "զϡՂ. ʊɵb. ÀȷΞşҖԃ! ")),
        Action(0.468, "speak", "p", ("u2", "ҰŝԓǿȮն, [pause:80ms] ", "speaker", "y", "interrupt", False)),
        Action(0.518, "text", "p", ("u2", "ѭ; ")),
        Action(0.818, "end", "p", ("u2",)),
        Action(0.895, "pause", "q"),
        Action(
            0.901, "speak", "p",
            ("u4", "ЉОыÒΉê НңѪ, ШӋԹЕ ɸƾ. Ͱ ËϷāɭՇ [pause:80ms] ", "speaker", "x", "interrupt", True),
        ),
        Action(1.129, "cancel", "p", ("id", "u4")),
        Action(1.272, "kill", "dispatcher", (0, 8)),
    ),
)  # fmt: skip

CAME_BEHIND_THE_HEARD = Schedule(
    Setup(
        seed=64283, t3=2, ring_s=4.0, ahead_s=0.5, first_chunk=1, t3_step_s=0.005, render_ratio=0.2, block_s=0.05,
        latency_s=0.0003, restart_s=0.05, streams=1, idle_s=0.8, flush_ms=100,
    ),
    (
        Action(0.0, "speak", "q", ("u0", "Ϋ, ", "speaker", "x", "interrupt", True)),
        Action(0.006, "speak", "q", ("u1", "Ն! ", "speaker", "y", "normal", True)),
        Action(0.142, "kill", "dispatcher", (1, 8)),
        Action(0.147, "speak", "p", ("u2", "ԭ! ", "speaker", "x", "interrupt", True)),
    ),
)  # fmt: skip

NEVER_FETCHED = Schedule(
    Setup(
        seed=56144, ahead_s=0.5, first_chunk=1, chunk=25, ladder=False, t3_tokens=2, t3_step_s=0.005,
        render_ratio=0.6, empty_final=True, block_s=0.05, device_s=0.05, latency_s=0.0003, restart_s=0.3, idle_s=0.8,
        pause_ms=50,
    ),
    (
        Action(0.0, "speak", "s", ("u0", "ʪО; ", "stream", "y", "normal", True)),
        Action(0.106, "kill", "dispatcher", (4, 0)),
        Action(1.679, "kill", "dispatcher", (2, 0)),
        Action(2.005, "speak", "p", ("u3", "սʙǕʥӞ ɝՂȶ Ŏȧ! Ƅգ; җΗ! ŁмҐ! ", "speaker", "x", "normal", True)),
        Action(2.313, "leave", "s"),
    ),
)  # fmt: skip

KILLS_WHERE_THE_RING_IS_FULL = Schedule(
    Setup(
        seed=49134, t3=2, ahead_s=1.5, lookahead=2, t3_batch=1, t3_step_s=0.005, render_ratio=0.2, block_s=0.1,
        device_s=0.05, latency_s=0.01, restart_s=0.05, flush_ms=100,
    ),
    (
        Action(0.0, "speak", "r", ("u0", "Ӳƨ ǭСúɩѬϽ; ɜ. ", "stream", "x", "normal", False)),
        Action(0.0, "text", "r", ("u0", "ηѳþʭɟ УυD, ")),
        Action(0.495, "kill", "dispatcher", (2, 2)),
        Action(0.5, "end", "r", ("u0",)),
        Action(
            1.09, "speak", "r",
            ("u1", "ӸǣБ ͶȏԽΎ! ĠOhɹҼ КЖվ ӄĶƩғɆ, βиʞū ՠՕ ŜӘV; ЇԿЋǺս, äHӁՔүӈ. ", "stream", "x", "normal", True),
        ),
        Action(1.368, "poison", "s3gen", ("ū",)),
        Action(
            3.0, "speak", "r",
            ("u2", "Ҿƺ. ǼҹԏȺĴ ȇÌԛ, ǯəŅɡ ЎɀձՋ; ĐÓɭö чЍÐ; έƲԃΐԕԄ ՄѓTKʐЀ, ҒӬ, ", "stream", "y", "low", True),
        ),
    ),
)  # fmt: skip

TOLD_AND_INTERRUPTED = Schedule(
    Setup(
        seed=75861, t3=2, ring_s=4.0, ahead_s=0.5, first_chunk=1, chunk=25, t3_batch=1, t3_tokens=12, t3_step_s=0.2,
        render_ratio=0.6, guess=1.5, block_s=0.1, latency_s=0.01, restart_s=0.3, flush_ms=100,
    ),
    (
        Action(0.0, "speak", "r", ("u0", "өќ ", "stream", "x", "normal", False)),
        Action(0.358, "kill", "s3gen-0", ("now", 0.5)),
        Action(0.6, "text", "r", ("u0", "ӕ ѭɔ ")),
        Action(0.6, "text", "r", ("u0", "șәϸǙѰâ; ͷ ЦȥթԜ; ")),
        Action(0.65, "text", "r", ("u0", "ʊРϺ. ƑӿѩŔӱ. éȂΣ; ")),
        Action(0.7, "text", "r", ("u0", "ηǰӍ, ")),
        Action(0.7, "end", "r", ("u0",)),
        Action(2.316, "deaf", "r"),
        Action(3.68, "kill", "dispatcher", (5, 0)),
        Action(3.954, "speak", "r", ("u4", "ƾҦ! ", "stream", "x", "interrupt", True)),
    ),
)  # fmt: skip

FOUND: dict[str, Any] = {
    "what a cancelled utterance has written is not its predecessor's": CAME_BEHIND,
    "nor is it when the predecessor was heard to its end": CAME_BEHIND_THE_HEARD,
    "what a dispatcher that died called finished, and nobody fetches, is forgotten": NEVER_FETCHED,
    "what was called finished is not called cancelled when something urgent takes its place": TOLD_AND_INTERRUPTED,
    "a segment that kills its worker is given up though its listener's ring is full": KILLS_WHERE_THE_RING_IS_FULL,
}


@pytest.mark.parametrize("plan", FOUND.values(), ids=FOUND)
def test_what_was_found_once_breaks_no_promise(plan: Schedule) -> None:
    simulation.run(plan)
