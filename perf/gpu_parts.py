"""The parts of `perf.gpu` that compute in their own process: `python -m perf.gpu_parts PART …`.

Each prints its findings as it goes (perf/gpu_telling.py), so that what was found counts though the rest fails or takes
too long. What the packages underneath print goes to the error output.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from perf.gpu_profile import profile
from perf.gpu_s3gen import s3gen
from perf.gpu_t3 import t3
from perf.gpu_telling import MIB, figure, row, said


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


def checkpoint(given: argparse.Namespace) -> None:
    """Write a folder that the processes load."""
    from perf import chatterbox_models as models

    began_s = time.perf_counter()
    models.write_checkpoint(models.MODELS[given.model], given.size, Path(given.folder), given.device)
    size = sum(path.stat().st_size for path in Path(given.folder).rglob("*") if path.is_file())
    figure(f"checkpoint_mib_{given.model}", round(size / MIB))
    figure(f"checkpoint_written_s_{given.model}", round(time.perf_counter() - began_s, 1))


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
        row("problems", part=f"{given.part} {given.model}", after_s=0.0, problem=said(error))
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
