"""S3Gen on the device: milliseconds of a rung at each batch, what each stage of optimisation brings, and the stock
package."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import TYPE_CHECKING, Any

from perf.gpu_telling import attempt, figure, forget_peak, name_of, peak_mib, row, shipped_dtype

if TYPE_CHECKING:
    from pipeline.engines.base import AudioModel

FIRST_RUNG, CHUNK = 12, 50
LADDER = (FIRST_RUNG, 24, 48)
LOOKAHEAD = 3
STOCK_RENDERS = 3
TABLE = "S3Gen, a rung"
STAGES = "S3Gen alone, one stream, stage by stage"


def s3gen(given: argparse.Namespace) -> None:
    """Milliseconds of a first rung and of a chunk at each batch, and at batch 1 what each stage brings."""
    import torch

    from perf import chatterbox_models as models

    variant = models.MODELS[given.model]
    voice = models.random_voice(variant)
    shipped = shipped_dtype(given.device)

    def half(dtype: Any, batch: int, rungs: tuple[int, ...]) -> AudioModel:
        module = models.random_s3gen(variant, given.size, given.device)
        return models.audio_half(variant, module, voice, device=given.device, dtype=dtype, max_batch=batch, rungs=rungs)

    forget_peak(given.device)
    began_s = time.perf_counter()
    audio = half(shipped, max(given.batches), (FIRST_RUNG, CHUNK))
    figure(f"s3gen_ready_s_{given.model}", round(time.perf_counter() - began_s, 1))
    for batch in given.batches:
        first_ms, chunk_ms = _rungs(models, audio, batch, given.renders)
        row(
            TABLE,
            model=given.model,
            streams=batch,
            first_rung_ms=round(first_ms, 2),
            chunk_ms=round(chunk_ms, 2),
            chunk_ms_per_stream=round(chunk_ms / batch, 2),
            real_time_streams=round(batch * CHUNK / 25 / (chunk_ms / 1000), 1),
        )
    figure(f"s3gen_peak_mib_{given.model}", peak_mib(given.device))
    audio.close()
    stages: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ours, float32": (torch.float32, ()),
        f"… estimator in {name_of(shipped)}": (shipped, ()),
        "… in CUDA graphs (as shipped)": (shipped, (FIRST_RUNG, CHUNK)),
    }
    for stage, (dtype, rungs) in list(stages.items())[: None if given.device.startswith("cuda") else 1]:
        with attempt(f"S3Gen: {stage}"):
            audio = half(dtype, 1, rungs)
            first_ms, chunk_ms = _rungs(models, audio, 1, given.renders)
            audio.close()
            row(
                STAGES,
                model=given.model,
                stage=stage,
                first_rung_ms=round(first_ms, 2),
                chunk_ms=round(chunk_ms, 2),
            )
    _stock_s3gen(given, variant, voice)


def _stock_s3gen(given: argparse.Namespace, variant: Any, voice: Any) -> None:
    """As many tokens in one go, reference included."""
    import torch

    from perf import chatterbox_models as models
    from perf import chatterbox_stock as stock

    with attempt("S3Gen: the stock package"):
        module = models.random_s3gen(variant, given.size, given.device)
        taken: dict[int, float] = {}
        for count in (FIRST_RUNG, CHUNK):
            ids = torch.randint(0, 6561, (count,), generator=torch.Generator().manual_seed(count))
            stock.sound(variant, module, voice, ids)
            times = []
            for _ in range(STOCK_RENDERS):
                began_s = time.perf_counter()
                stock.sound(variant, module, voice, ids)
                times.append(1000 * (time.perf_counter() - began_s))
            taken[count] = round(statistics.median(times), 2)
        row(
            STAGES,
            model=given.model,
            stage="the stock package, float32, without history",
            first_rung_ms=taken[FIRST_RUNG],
            chunk_ms=taken[CHUNK],
        )


def _rungs(models: Any, audio: AudioModel, batch: int, renders: int) -> tuple[float, float]:
    """Median milliseconds of one call for ``batch`` first rungs, and of one for as many chunks in mid-stream."""
    firsts, chunks = [], []
    for turn in range(2):
        open_streams(models, audio, batch, renders)
        done, timed = 0, []
        for rung in (*LADDER, *[CHUNK] * renders):
            done += rung
            began_s = time.perf_counter()
            audio.render([(stream, done) for stream in range(batch)])
            timed.append(1000 * (time.perf_counter() - began_s))
        for stream in range(batch):
            audio.close_stream(stream)
        if turn:  # the first warms up
            firsts.append(timed[0])
            chunks += timed[len(LADDER) :]
    return statistics.median(firsts), statistics.median(chunks)


def open_streams(models: Any, audio: AudioModel, batch: int, renders: int) -> None:
    """Streams with all their tokens."""
    from pipeline.engines.chatterbox import wire

    count = sum(LADDER) + CHUNK * renders + LOOKAHEAD
    for stream in range(batch):
        rng = random.Random(stream)
        audio.open(stream, models.segment("", stream))
        audio.feed(stream, count, wire.encode([rng.randrange(6561) for _ in range(count)]), False)
