"""The parts of `perf.gpu` that compute in their own process: `python -m perf.gpu_parts PART …`.

Each prints its findings as it goes, one line of JSON each (a row of a table, or a figure), so that what was found
counts though the rest fails or takes too long. What the packages underneath print goes to the error output.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perf import texts
from perf.common import Cell

if TYPE_CHECKING:
    from pipeline.engines.base import AudioModel, TokenModel

TEXT_CHARS = 200
FIRST_RUNG, CHUNK = 12, 50
LADDER = (FIRST_RUNG, 24, 48)
LOOKAHEAD = 3
STOCK_STEPS, STOCK_RENDERS = 60, 3
TOP_KERNELS = 12
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
MIB = 2**20

T3_TABLE, S3GEN_TABLE = "T3, tokens a second", "S3Gen, a rung"
T3_STAGES, S3GEN_STAGES = "T3 alone, one stream, stage by stage", "S3Gen alone, one stream, stage by stage"

_OUT = os.fdopen(os.dup(1), "w")


def row(table: str, **cells: Cell) -> None:
    """Tell a row of a table."""
    print(json.dumps({"table": table, "row": cells}), file=_OUT, flush=True)


def figure(name: str, value: Cell) -> None:
    """Tell a figure."""
    print(json.dumps({"figure": name, "value": value}), file=_OUT, flush=True)


# --------------------------------------------------------------------------- the machine


def facts(given: argparse.Namespace) -> None:
    """What the device is, and how fast it copies: reading weights is what a step of T3 waits for."""
    import torch

    figure("torch", torch.__version__)
    figure("python", sys.version.split()[0])
    figure("cuda", torch.version.cuda or "none")
    if not given.device.startswith("cuda"):
        figure("device", given.device)
        return
    about = torch.cuda.get_device_properties(torch.device(given.device))
    figure("device", about.name)
    figure("device_memory_gib", round(about.total_memory / 2**30, 1))
    source = torch.empty(2**30, dtype=torch.uint8, device=given.device)
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    began_s = time.perf_counter()
    for _ in range(20):
        target.copy_(source)
    torch.cuda.synchronize()
    figure("copy_gb_per_s", round(20 * 2 * 2**30 / (time.perf_counter() - began_s) / 1e9))


# --------------------------------------------------------------------------- T3


def t3(given: argparse.Namespace) -> None:
    """Tokens a second at each batch, and at batch 1 what each stage of optimisation brings."""
    from perf import chatterbox_models as models
    from pipeline.engines.chatterbox.build import Tuning

    variant = models.MODELS[given.model]
    voice = models.random_voice(variant)
    stock = models.random_t3(variant, given.size, given.device)
    shipped = _shipped_dtype(given.device)

    def half(dtype: Any, batch: int, **tuning: Any) -> TokenModel:
        return models.tokens_half(
            variant, stock, voice, device=given.device, dtype=dtype, max_batch=batch, tuning=Tuning(**tuning)
        )

    _forget_peak(given.device)
    began_s = time.perf_counter()
    tokens = half(shipped, max(given.batches))
    figure(f"t3_ready_s_{given.model}", round(time.perf_counter() - began_s, 1))
    for batch in given.batches:
        per_s, first_s = _rate(models, tokens, batch, given.steps)
        row(
            T3_TABLE,
            model=given.model,
            streams=batch,
            tokens_per_s=round(per_s, 1),
            real_time_streams=round(per_s / 25, 1),
            ms_per_step=round(1000 * batch / per_s, 3),
            first_tokens_of_all_ms=round(1000 * first_s, 1),
        )
    figure(f"t3_peak_mib_{given.model}", _peak_mib(given.device))
    tokens.close()
    _t3_stages(given, models, half, shipped)
    _stock_t3(given, variant, stock, voice)


def _t3_stages(given: argparse.Namespace, models: Any, half: Callable[..., TokenModel], shipped: Any) -> None:
    import torch

    eager = {"graphs": False, "steps_per_check": 1, "ahead": 0}
    stages: dict[str, tuple[Any, dict[str, Any]]] = {
        "ours, float32, looked at after every step": (torch.float32, eager),
        "… looked at every 4 steps, no waiting between": (torch.float32, eager | {"steps_per_check": 4, "ahead": 1}),
        f"… in {_name(shipped)}": (shipped, {"graphs": False, "ahead": 1}),
        "… in CUDA graphs (as shipped)": (shipped, {}),
    }
    for stage, (dtype, tuning) in list(stages.items())[: None if given.device.startswith("cuda") else 2]:
        with _attempt(f"T3: {stage}"):
            tokens = half(dtype, 1, **tuning)
            per_s, _ = _rate(models, tokens, 1, given.steps)
            tokens.close()
            row(
                T3_STAGES,
                model=given.model,
                stage=stage,
                tokens_per_s=round(per_s, 1),
                ms_per_token=round(1000 / per_s, 3),
            )


def _stock_t3(given: argparse.Namespace, variant: Any, module: Any, voice: Any) -> None:
    """It does one text at a time; so many texts take so many times as long."""
    from perf import chatterbox_models as models
    from perf import chatterbox_stock as stock

    ids = models.Letters().encode(_text(1), "en").ids
    with _attempt("T3: the stock package"):
        stock.speak(variant, module, voice, ids, 8)
        per_s = stock.speak(variant, module, voice, ids, min(STOCK_STEPS, given.steps)).per_s
        row(
            T3_STAGES,
            model=given.model,
            stage="the stock package, float32",
            tokens_per_s=round(per_s, 1),
            ms_per_token=round(1000 / per_s, 3),
        )


def _rate(models: Any, tokens: TokenModel, batch: int, steps: int) -> tuple[float, float]:
    from perf import chatterbox_ours as ours

    segments = [models.segment(_text(seed), seed) for seed in range(batch)]
    ours.rate(tokens, segments, 8)
    return ours.rate(tokens, segments, steps, most_s=20)


# --------------------------------------------------------------------------- S3Gen


def s3gen(given: argparse.Namespace) -> None:
    """Milliseconds of a first rung and of a chunk at each batch, and at batch 1 what each stage brings."""
    import torch

    from perf import chatterbox_models as models

    variant = models.MODELS[given.model]
    voice = models.random_voice(variant)
    shipped = _shipped_dtype(given.device)

    def half(dtype: Any, batch: int, rungs: tuple[int, ...]) -> AudioModel:
        module = models.random_s3gen(variant, given.size, given.device)
        return models.audio_half(variant, module, voice, device=given.device, dtype=dtype, max_batch=batch, rungs=rungs)

    _forget_peak(given.device)
    began_s = time.perf_counter()
    audio = half(shipped, max(given.batches), (FIRST_RUNG, CHUNK))
    figure(f"s3gen_ready_s_{given.model}", round(time.perf_counter() - began_s, 1))
    for batch in given.batches:
        first_ms, chunk_ms = _rungs(models, audio, batch, given.renders)
        row(
            S3GEN_TABLE,
            model=given.model,
            streams=batch,
            first_rung_ms=round(first_ms, 2),
            chunk_ms=round(chunk_ms, 2),
            chunk_ms_per_stream=round(chunk_ms / batch, 2),
            real_time_streams=round(batch * CHUNK / 25 / (chunk_ms / 1000), 1),
        )
    figure(f"s3gen_peak_mib_{given.model}", _peak_mib(given.device))
    audio.close()
    stages: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ours, float32": (torch.float32, ()),
        f"… estimator in {_name(shipped)}": (shipped, ()),
        "… in CUDA graphs (as shipped)": (shipped, (FIRST_RUNG, CHUNK)),
    }
    for stage, (dtype, rungs) in list(stages.items())[: None if given.device.startswith("cuda") else 1]:
        with _attempt(f"S3Gen: {stage}"):
            audio = half(dtype, 1, rungs)
            first_ms, chunk_ms = _rungs(models, audio, 1, given.renders)
            audio.close()
            row(
                S3GEN_STAGES,
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

    with _attempt("S3Gen: the stock package"):
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
            S3GEN_STAGES,
            model=given.model,
            stage="the stock package, float32, without history",
            first_rung_ms=taken[FIRST_RUNG],
            chunk_ms=taken[CHUNK],
        )


def _rungs(models: Any, audio: AudioModel, batch: int, renders: int) -> tuple[float, float]:
    """Median milliseconds of one call for ``batch`` first rungs, and of one for as many chunks in mid-stream."""
    firsts, chunks = [], []
    for turn in range(2):
        _open(models, audio, batch, renders)
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


def _open(models: Any, audio: AudioModel, batch: int, renders: int) -> None:
    """Streams with all their tokens."""
    from pipeline.engines.chatterbox import wire

    count = sum(LADDER) + CHUNK * renders + LOOKAHEAD
    for stream in range(batch):
        rng = random.Random(stream)
        audio.open(stream, models.segment("", stream))
        audio.feed(stream, count, wire.encode([rng.randrange(6561) for _ in range(count)]), False)


# --------------------------------------------------------------------------- where the time goes


def profile(given: argparse.Namespace) -> None:
    """What a step of T3, or a chunk of S3Gen, is made of: the longest kernels, launches, and how busy the device is."""
    import torch
    from torch.profiler import ProfilerActivity

    from perf import chatterbox_models as models

    variant, shipped = models.MODELS[given.model], _shipped_dtype(given.device)
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
            tokens.admit(stream, models.segment(_text(stream), stream))
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
        _open(models, audio, batch, 20)
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


# --------------------------------------------------------------------------- common


def checkpoint(given: argparse.Namespace) -> None:
    """Write a folder that the processes load."""
    from perf import chatterbox_models as models

    began_s = time.perf_counter()
    models.write_checkpoint(models.MODELS[given.model], given.size, Path(given.folder), given.device)
    size = sum(path.stat().st_size for path in Path(given.folder).rglob("*") if path.is_file())
    figure(f"checkpoint_mib_{given.model}", round(size / MIB))
    figure(f"checkpoint_written_s_{given.model}", round(time.perf_counter() - began_s, 1))


def _shipped_dtype(device: str) -> Any:
    """What ``precision: auto`` comes to."""
    import torch

    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _text(seed: int) -> str:
    return texts.prose(TEXT_CHARS, random.Random(seed))[:TEXT_CHARS]


def _forget_peak(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def _peak_mib(device: str) -> int:
    """Of the device's memory; on the CPU of this process's."""
    import psutil
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_reserved()) // MIB
    return int(psutil.Process().memory_info().rss) // MIB


@contextmanager
def _attempt(what: str) -> Iterator[None]:
    """One thing of several: if it fails, the others still count."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - told, and the part goes on
        row("problems", part=what, after_s=0.0, problem=_said(error))


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "facts": facts,
    "checkpoint": checkpoint,
    "t3": t3,
    "s3gen": s3gen,
    "profile": profile,
}


def main() -> int:
    """Run one part."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--model", default="chatterbox")
    parser.add_argument("--size", default="full")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--renders", type=int, default=5)
    parser.add_argument("--half", choices=("t3", "s3gen"), default="t3")
    parser.add_argument("--folder", default="")
    given = parser.parse_args()
    os.dup2(2, 1)
    warnings.simplefilter("ignore")  # of the packages underneath
    try:
        PARTS[given.part](given)
    except Exception as error:
        row("problems", part=f"{given.part} {given.model}", after_s=0.0, problem=_said(error))
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
