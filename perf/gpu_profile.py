"""Where the time of a step of T3 or a chunk of S3Gen goes: longest kernels, launches, how busy the device is."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from perf.gpu_s3gen import CHUNK, LADDER, open_streams
from perf.gpu_telling import row, shipped_dtype, text

TOP_KERNELS = 12
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def profile(given: argparse.Namespace) -> None:
    """What a step of T3, or a chunk of S3Gen, is made of: the longest kernels, launches, and how busy the device is."""
    import torch
    from torch.profiler import ProfilerActivity

    from perf import chatterbox_models as models

    variant, shipped = models.MODELS[given.model], shipped_dtype(given.device)
    voice, batch = models.random_voice(variant), max(given.batches)
    cuda = given.device.startswith("cuda")
    if given.half == "t3":
        tokens = models.tokens_half(
            variant,
            models.random_t3(variant, given.size, given.device),
            voice,
            device=given.device,
            dtype=shipped,
            max_batch=batch,
        )
        for stream in range(batch):
            tokens.admit(stream, models.segment(text(stream), stream))
        work: Callable[[], object] = tokens.step
    else:
        audio = models.audio_half(
            variant,
            models.random_s3gen(variant, given.size, given.device),
            voice,
            device=given.device,
            dtype=shipped,
            max_batch=batch,
        )
        open_streams(models, audio, batch, 20)
        cuts = iter(range(sum(LADDER), 10**6, CHUNK))

        def work() -> object:
            cut = next(cuts)
            return audio.render([(stream, cut) for stream in range(batch)])

    for _ in range(3):
        work()
    count = 5
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as seen:
        began_s = time.perf_counter()
        for _ in range(count):
            work()
        wall_ms = 1000 * (time.perf_counter() - began_s)
    _tell_profile(given, batch, seen, wall_ms, count, cuda)


def _tell_profile(given: argparse.Namespace, batch: int, seen: Any, wall_ms: float, count: int, cuda: bool) -> None:
    def taken_us(event: Any) -> float:
        if not cuda:
            return float(event.self_cpu_time_total)
        return float(getattr(event, "self_device_time_total", 0) or getattr(event, "self_cuda_time_total", 0))

    events = sorted(seen.key_averages(), key=taken_us, reverse=True)
    total_ms = sum(map(taken_us, events)) / 1000
    launches = sum(event.count for event in events if event.key in LAUNCHES)
    waits = sum(event.count for event in events if "Synchronize" in event.key)
    row(
        "profile",
        model=given.model,
        half=given.half,
        streams=batch,
        calls=count,
        wall_ms_per_call=round(wall_ms / count, 3),
        device_ms_per_call=round(total_ms / count, 3),
        device_busy=round(min(1.0, total_ms / wall_ms), 3),
        launches_per_call=launches // count,
        waits_per_call=waits // count,
    )
    for event in events[:TOP_KERNELS]:
        row(
            f"profile: what {given.half} of {given.model} spends its time on",
            kernel=event.key[:70],
            calls=event.count // count,
            ms_per_call=round(taken_us(event) / 1000 / count, 3),
            share=round(taken_us(event) / 1000 / max(total_ms, 1e-9), 3),
        )
