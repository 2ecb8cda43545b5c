"""Chatterbox in its real processes on a GPU: how soon the first sound is there, and how many streams it keeps fed.

A part of `perf.gpu`. What the workers did meanwhile comes from the pipeline's own status: the share of the time in
which each of them worked (the rest it waited for input or for room), over just the time of a measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from ipc.client import AsyncClient
from perf import common, hops, listening, window
from perf.common import Cell, Row
from perf.running import Place

FIRST_SOUND = "text sent → first sound"
SPREAD_S = 2.0
SETTLE_S = 1.0
MOST_STREAMS = 1024
LIMITING = ("t3-0", "s3gen-0", "dispatcher-0")
MPS_CONTROL = "nvidia-cuda-mps-control"

Emit = Callable[[str, Row], None]


@dataclass(frozen=True)
class Target:
    """What a model is to reach on one H200."""

    first_sound_ms: float
    streams: int
    tokens_per_s: float
    max_batch: int


TARGETS = {
    "chatterbox": Target(100, 64, 500, 96),
    "chatterbox-multilingual": Target(100, 64, 500, 96),
    "chatterbox-turbo": Target(50, 300, 500, 320),
}
ENGINES = {
    "chatterbox": "pipeline.engines.chatterbox:CHATTERBOX",
    "chatterbox-multilingual": "pipeline.engines.chatterbox:MULTILINGUAL",
    "chatterbox-turbo": "pipeline.engines.chatterbox:TURBO",
}
"""By module, so that nothing needs to be installed."""


def settings(model: str, weights: str, given: argparse.Namespace, mps: bool, watermark: bool) -> dict[str, Cell]:
    """Of pipeline.yaml."""
    batch = given.max_batch or TARGETS[model].max_batch
    return {
        "model.engine": ENGINES[model],
        "model.weights": weights,
        "model.options.watermark": watermark,
        "stages.t3.device": given.device,
        "stages.s3gen.device": given.device,
        "stages.t3.max_batch": batch,
        "text.max_streams": min(MOST_STREAMS, 4 * batch),
        "text.max_queued": 4 * MOST_STREAMS,
        "supervise.start_timeout_s": given.start_timeout_s,
        "supervise.mps": mps,
    }


def why_no_mps(device: str) -> str:
    """Why it is not measured with MPS (empty: it is)."""
    if not device.startswith("cuda"):
        return f"device {device}: MPS is for CUDA devices"
    if shutil.which(MPS_CONTROL) is None:
        return f"{MPS_CONTROL} is not on the PATH (it comes with NVIDIA's driver)"
    return ""


async def measure_first_sound(place: Place, given: argparse.Namespace, what: Row, emit: Emit) -> float:
    """Emit a row of the time to the first sound on a connection that is there; its median in ms."""
    async with AsyncClient(place.to, timeout_s=listening.PATIENCE_S) as client:
        run = hops.Measuring(client, argparse.Namespace(seed=1, gap_ms=20.0, token_ms=10.0))
        await run.group(run.whole, 3)
        newcomers = await run.group(run.newcomer, max(3, given.utterances // 4))
        whole = await run.group(run.whole, given.utterances)
    row = common.quantiles("", whole[FIRST_SOUND])
    by_hop = {hop: common.quantiles("", newcomers.get(said, []))["p50_ms"] for hop, said in hops.HOPS.items()}
    emit(
        "first sound through the real processes",
        {
            **what,
            "utterances": row["count"],
            "p50_ms": row["p50_ms"],
            "p90_ms": row["p90_ms"],
            "max_ms": row["max_ms"],
            "of_it_accepted_ms": by_hop["accepted"],
            "until_first_tokens_ms": by_hop["first_tokens"],
            "until_first_pcm_ms": by_hop["first_pcm"],
        },
    )
    return float(row["p50_ms"] or 0)


# --------------------------------------------------------------------------- many streams


def next_count(good: int, bad: int | None, first: int, most: int) -> int | None:
    """How many streams to try, when ``good`` of them were well and ``bad`` not (None: not tried); None: it is known."""
    if bad is None:
        wanted = first if good == 0 else min(most, good + max(1, good // 2))
        return wanted if wanted > good else None
    if bad - good <= max(1, good // 12):
        return None
    return max(1, bad // 2) if good == 0 else (good + bad) // 2


async def measure_streams(
    place: Place, given: argparse.Namespace, model: str, what: Row, until_s: float, emit: Emit
) -> tuple[int, str]:
    """Emit a row for each number of streams that is tried, until it is known or the time is up.

    Returns the largest number that nothing was late for, and the stage that worked most at the largest tried.
    """
    most = given.max_batch or TARGETS[model].max_batch
    good, bad, busiest = 0, None, (0, "")
    count = next_count(good, bad, min(most, given.streams or TARGETS[model].streams), most)
    trial_s = SPREAD_S + given.stream_s + SETTLE_S
    async with AsyncClient(place.to, timeout_s=listening.PATIENCE_S) as client:
        while count is not None and time.monotonic() + trial_s < until_s:
            began_s = time.monotonic()
            row, well, busy = await _trial(place, client, given, count)
            trial_s = time.monotonic() - began_s
            emit("streams at the pace of the ear", {**what, **row})
            if busy and count >= busiest[0]:
                busiest = (count, max(LIMITING, key=lambda worker: busy.get(worker, 0.0)))
            good, bad = (count, bad) if well else (good, count)
            count = next_count(good, bad, min(most, given.streams or TARGETS[model].streams), most)
    return good, busiest[1].partition("-")[0]


async def _trial(
    place: Place, client: AsyncClient, given: argparse.Namespace, count: int
) -> tuple[Row, bool, dict[str, float]]:
    before = {stage.worker: stage for stage in (await window.report(client)).stages}
    heard = await listening.crowd(place.to, count, given.stream_s, seed=count, spread_s=SPREAD_S)
    after = (await window.report(client)).stages
    busy = {stage.worker: round(window.spent(before.get(stage.worker), stage).busy, 3) for stage in after}
    first = common.quantiles("", [one.first_ms for one in heard])
    dry = sum(one.dry > 0 for one in heard)
    row: Row = {
        "streams": count,
        "ran_dry": dry,
        "dry_s": round(sum(one.late_s for one in heard), 2),
        "first_p50_ms": first["p50_ms"],
        "first_p90_ms": first["p90_ms"],
        "t3_busy": busy.get("t3-0", 0.0),
        "s3gen_busy": busy.get("s3gen-0", 0.0),
        "dispatcher_busy": busy.get("dispatcher-0", 0.0),
        "gpu_memory_mib": gpu_memory_mib(),
    }
    await asyncio.sleep(SETTLE_S)
    return row, dry == 0, busy


def gpu_memory_mib() -> int:
    """In use on the first GPU by everybody, as the driver says (0: it does not)."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return int(asked.stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0
