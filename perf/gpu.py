"""Chatterbox on one GPU, in under nine minutes: T3, S3Gen, the first sound and the most streams, against the targets.

With random weights of full size, made on the spot. Each part runs in a process of its own and in a time box of its own;
what it found until it failed or was stopped is kept, and with ``--json`` written after every part.

- T3: tokens a second at batch 1, 8, 32, 64 (with CFG where the model has it), and what each optimisation brings at
  batch 1, the stock package's loop among them;
- S3Gen: milliseconds of a first rung and of a chunk at batch 1, 8, 16, and the same stage by stage;
- the real processes (`launch`) on a checkpoint in a temporary folder: from a text to its first sound, with and without
  the watermark, with and without NVIDIA MPS; and the most streams at the pace of the ear of which none runs dry,
  searched for within the time there is, with the stage that worked most;
- for every target that is missed, a profile of the half in question.

Targets are for one H200. On the GPU machine: this source tree, Python 3.11 or newer, torch with CUDA and torchaudio of
the same version (tried with 2.6 and, on Python 3.12, 2.11), and

    pip install msgspec pyzmq psutil pyyaml rich emoji sentencex sounddevice soundfile soxr espeakng-loader
    pip install transformers safetensors tokenizers einops librosa onnx pyloudnorm python-stretch "setuptools<82"
    pip install --no-deps chatterbox-tts s3tokenizer diffusers conformer omegaconf resemble-perth importlib_metadata

Nothing of Chatterline itself needs to be installed, nothing is compiled, and nothing is fetched while it runs: a
machine without a network takes the same packages as wheels (`pip download`).

``--size tiny --device cpu`` runs all of it small, without a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

from launch.table import environment
from perf import common, gpu_pipeline, running
from perf.common import Cell, PerfError, Row
from perf.gpu_pipeline import TARGETS

NEEDED = {
    "torch": "torch",
    "torchaudio": "torchaudio",
    "transformers": "transformers",
    "chatterbox": "chatterbox-tts",
    "s3tokenizer": "s3tokenizer",
    "librosa": "librosa",
    "perth": "resemble-perth",
}
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
CHECKPOINT_BYTES = 6 * 2**30
SHORT_S = 20.0
MANY_CPUS = 8

FACTS_S, CHECKPOINT_S, T3_S, S3GEN_S, START_S, FIRST_S, STREAMS_S, PROFILE_S = 60, 90, 90, 90, 120, 40, 60, 45


@dataclass
class Found:
    """What is known so far."""

    given: argparse.Namespace
    began: common.Began
    tables: dict[str, list[Row]] = field(default_factory=dict)
    figures: Row = field(default_factory=dict)

    def emit(self, table: str, row: Row) -> None:
        """One more row."""
        self.tables.setdefault(table, []).append(row)

    def problem(self, part: str, after_s: float, problem: str) -> None:
        """Something could not be measured, or not all of it."""
        print(f"perf.gpu: {part}: {problem}", file=sys.stderr, flush=True)
        self.emit("problems", {"part": part, "after_s": round(after_s, 1), "problem": problem})

    def value(self, table: str, column: str, **wanted: Cell) -> float | None:
        """Of the first row with these cells."""
        for row in self.tables.get(table, []):
            if all(row.get(name) == cell for name, cell in wanted.items()):
                found = row[column]
                return None if found is None else float(found)
        return None

    def write(self) -> None:
        """Keep it."""
        content = common.contents("gpu", self.given, self.tables, self.figures, {}, self.began.facts)
        common.write(self.given, content)


class Budget:
    """The time that is left for everything."""

    def __init__(self, seconds: float) -> None:
        self.until_s = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return self.until_s - time.monotonic()


# --------------------------------------------------------------------------- parts in processes of their own


async def part(found: Found, budget: Budget, box_s: float, name: str, *arguments: str) -> None:
    """Run one of `perf.gpu_parts`; takes at most ``box_s``, and what is left of all."""
    said = dict(pairwise(arguments))
    label = " ".join([name, *(said[option] for option in ("--model", "--half") if option in said)])
    allowed_s = min(box_s * found.given.patience, budget.left_s)
    if allowed_s < 1:
        found.problem(label, 0.0, "not run: the time was up")
        return
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        async with _child(errors, name, *arguments) as process:
            try:
                async with asyncio.timeout(allowed_s):
                    await _read(found, process)
                    await process.wait()
            except TimeoutError:
                found.problem(label, time.monotonic() - began_s, f"stopped after {allowed_s:.0f} s")
        if process.returncode and process.returncode > 0:
            errors.seek(0)
            complaint = errors.read().decode(errors="replace").strip() or f"exit code {process.returncode}"
            found.problem(label, time.monotonic() - began_s, complaint.splitlines()[-1][:300])
    took_s = time.monotonic() - began_s
    found.emit("parts", {"part": label, "seconds": round(took_s, 1)})
    found.write()


@asynccontextmanager
async def _child(errors: object, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "perf.gpu_parts", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=errors,  # type: ignore[arg-type]
        env=environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _read(found: Found, process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        told = json.loads(line)
        if "table" in told:
            found.emit(told["table"], told["row"])
        else:
            found.figures[told["figure"]] = told["value"]


# --------------------------------------------------------------------------- the real processes


@dataclass(frozen=True)
class Way:
    """One way to run the processes. ``streams``: whether the most streams are searched for."""

    mps: bool
    watermark: bool
    streams: bool

    def cells(self, model: str) -> Row:
        """What tells its rows from others."""
        return {"model": model, "mps": self.mps, "watermark": self.watermark}


async def processes(found: Found, budget: Budget, model: str, weights: Path, way: Way) -> None:
    """Start them, measure, stop them."""
    given, what = found.given, way.cells(model)
    label = f"processes {model}{' with MPS' * way.mps}{' with the watermark' * way.watermark}"
    if budget.left_s < SHORT_S:
        found.problem(label, 0.0, "not run: the time was up")
        return
    began_s = time.monotonic()
    start_s = min(given.start_timeout_s, budget.left_s)
    try:
        settings = gpu_pipeline.settings(model, str(weights), given, way.mps, way.watermark)
        with running.pipeline("", settings, start_s) as place:
            started: Row = {"ready_s": round(time.monotonic() - began_s, 1), **_ready(place)}
            found.emit("start of the processes", {**what, **started})
            async with asyncio.timeout(min(FIRST_S * given.patience, max(1.0, budget.left_s))):
                await gpu_pipeline.measure_first_sound(place, given, what, found.emit)
            found.write()
            if way.streams:
                box_s = min(STREAMS_S, budget.left_s - SHORT_S) if not given.stream_box_s else given.stream_box_s
                until_s = time.monotonic() + box_s
                async with asyncio.timeout(box_s + SHORT_S * given.patience):
                    most, stage = await gpu_pipeline.measure_streams(place, given, model, what, until_s, found.emit)
                found.emit("the most streams without a gap", {**what, "streams": most, "busiest_stage": stage})
    except TimeoutError:
        found.problem(label, time.monotonic() - began_s, "took longer than its time; what it found counts")
    except (PerfError, OSError, psutil.Error) as error:
        found.problem(label, time.monotonic() - began_s, str(error).strip()[-600:])
    found.emit("parts", {"part": label, "seconds": round(time.monotonic() - began_s, 1)})
    found.write()


def _ready(place: running.Place) -> Row:
    return {f"{role}_s": place.ready_s.get(f"{role}-0", 0.0) for role in ("t3", "s3gen")}


# --------------------------------------------------------------------------- targets


def judge(found: Found, models: Sequence[str]) -> list[tuple[str, str]]:
    """A row for every target; what to profile: (model, half)."""
    missed: list[tuple[str, str]] = []
    for model in models:
        target = TARGETS[model]
        first = _best(found, "first sound through the real processes", "p50_ms", model, least=True)
        streams = _best(found, "the most streams without a gap", "streams", model, least=False)
        rate = found.value("T3, tokens a second", "tokens_per_s", model=model, streams=1)
        stage = _busiest(found, model)
        for name, wanted, measured, least, halves in (
            ("first sound, ms at most", target.first_sound_ms, first, True, ["t3", "s3gen"]),
            ("streams without a gap, at least", target.streams, streams, False, [stage] if stage else []),
            ("T3 tokens a second at batch 1, at least", target.tokens_per_s, rate, False, ["t3"]),
        ):
            met = None if measured is None else (measured <= wanted if least else measured >= wanted)
            found.emit("targets", {"model": model, "target": name, "wanted": wanted, "found": measured, "met": met})
            if met is False:
                missed += [(model, half) for half in halves if half in ("t3", "s3gen")]
    return list(dict.fromkeys(missed))


def _best(found: Found, table: str, column: str, model: str, *, least: bool) -> float | None:
    values = [float(row[column] or 0) for row in found.tables.get(table, []) if row["model"] == model]
    return (min if least else max)(values) if values else None


def _busiest(found: Found, model: str) -> str:
    rows = [row for row in found.tables.get("the most streams without a gap", []) if row["model"] == model]
    return str(rows[0]["busiest_stage"]) if rows else ""


# --------------------------------------------------------------------------- the script


def check_packages(given: argparse.Namespace) -> None:
    """Raises `PerfError` that says what to install, or that the device is not there."""
    if lacking := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        raise PerfError(f"not installed here: {', '.join(lacking)}; `python -m perf.gpu --help` says what it takes")


@contextmanager
def _folders(given: argparse.Namespace) -> Iterator[dict[str, Path]]:
    """A folder for the checkpoint of every model, in memory where there is room."""
    needed = len(given.models) * CHECKPOINT_BYTES
    room = SHARED_MEMORY.is_dir() and psutil.disk_usage(str(SHARED_MEMORY)).free > needed
    where = str(SHARED_MEMORY) if room and given.size == "full" else None
    with tempfile.TemporaryDirectory(prefix="cl-gpu-", dir=where) as name:
        yield {model: Path(name) / model for model in given.models}


async def measure(given: argparse.Namespace) -> None:
    """Everything, the most important first."""
    check_packages(given)
    found, budget = Found(given, common.Began()), Budget(given.budget_s)
    common_arguments = ["--size", given.size, "--device", given.device]
    t3_batches = ["--batches", *map(str, sorted(given.t3_batches, reverse=True)), "--steps", str(given.steps)]
    s3gen_batches = ["--batches", *map(str, sorted(given.s3gen_batches, reverse=True)), "--renders", str(given.renders)]
    no_mps = gpu_pipeline.why_no_mps(given.device)
    with _folders(given) as folders:
        writing = asyncio.create_task(_write_all(found, budget, folders, common_arguments))
        try:
            if (os.cpu_count() or 1) < MANY_CPUS:  # else meanwhile
                await writing
            await part(found, budget, FACTS_S, "facts", *common_arguments)
            for model in given.models:
                await part(found, budget, T3_S, "t3", "--model", model, *common_arguments, *t3_batches)
                await part(found, budget, S3GEN_S, "s3gen", "--model", model, *common_arguments, *s3gen_batches)
            await writing
            for model in given.models:
                await processes(found, budget, model, folders[model], Way(not no_mps, watermark=False, streams=True))
            missed = judge(found, given.models)
            for model, half in missed:
                await part(
                    found, budget, PROFILE_S, "profile", "--model", model, "--half", half, *common_arguments,
                    "--batches", "1",
                )  # fmt: skip
            for model in given.models:
                if no_mps:
                    found.problem(f"processes {model} with MPS", 0.0, f"not run: {no_mps}")
                else:
                    await processes(found, budget, model, folders[model], Way(False, watermark=False, streams=True))
                await processes(found, budget, model, folders[model], Way(not no_mps, watermark=True, streams=False))
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
    found.tables.pop("targets", None)
    judge(found, given.models)
    found.figures |= {f"busiest_stage_{model}": _busiest(found, model) for model in given.models}
    found.figures["seconds"] = round(given.budget_s - budget.left_s, 1)
    common.report("gpu", given, found.tables, found.figures, None, found.began)


async def _write_all(found: Found, budget: Budget, folders: dict[str, Path], arguments: Sequence[str]) -> None:
    for model, folder in folders.items():
        await part(found, budget, CHECKPOINT_S, "checkpoint", "--model", model, "--folder", str(folder), *arguments)


def main() -> int:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", default="cuda:0", help="(default: %(default)s)")
    parser.add_argument("--size", choices=("full", "small", "tiny"), default="full", help="(default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=list(TARGETS), default=["chatterbox", "chatterbox-turbo"])
    parser.add_argument("--budget-s", type=float, default=490, help="for everything (default: %(default)s)")
    parser.add_argument("--t3-batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--s3gen-batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--steps", type=int, default=150, help="of T3 in each measurement (default: %(default)s)")
    parser.add_argument("--renders", type=int, default=6, help="chunks of S3Gen in each (default: %(default)s)")
    parser.add_argument("--utterances", type=int, default=20, help="timed to their first sound (default: %(default)s)")
    parser.add_argument("--max-batch", type=int, default=0, help="streams at once (default: by model)")
    parser.add_argument("--streams", type=int, default=0, help="to begin the search with (default: the target)")
    parser.add_argument("--stream-s", type=float, default=6, help="that each stream is heard (default: %(default)s)")
    parser.add_argument("--stream-box-s", type=float, default=0, help="for the search (default: what there is)")
    parser.add_argument(
        "--start-timeout-s", type=float, default=START_S, help="of the processes (default: %(default)s)"
    )
    parser.add_argument("--patience", type=float, default=1, help="how much longer each part may take, as a factor")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here, after every part")
    given = parser.parse_args()
    common.at_least(parser, given, budget_s=10, steps=8, renders=1, utterances=1, stream_s=1, patience=1)
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
