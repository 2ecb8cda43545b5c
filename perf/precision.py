"""What each kind of number costs and brings: speed, memory and quality against float32, of both halves, in one run.

    python -m perf.precision --engine chatterbox-turbo --weights FOLDER [--device cuda:0] [--json FILE]

T3 is compared on a fixed history (teacher-forced): how often it finds the same token likeliest (``top1_%``), the share
of that token's probability that its own choice has (``kept_%``), and the divergence (``kl``). S3Gen is compared by the
mel frames that it makes of the same tokens and noise (``mel_distance``, also in percent of their variation).
``work_s``: the quickest of some runs over the same work (of T3 as many steps of decoding, one stream; of S3Gen the
frames of as many tokens); ``weights_mb``: of what is in that kind; ``worse_%``: what counts against the engine's limit;
``note``: why it is not used. Without --weights it measures a small model with random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from perf import common
from perf.common import Report, Row
from pipeline.engines.base import EngineConfig, EngineError
from pipeline.engines.chatterbox import missing
from pipeline.engines.chatterbox.options import read_options, variant_of
from pipeline.engines.chatterbox.variants import VARIANTS, Variant

ENGINES = tuple(dict.fromkeys(variant.name for variant in VARIANTS))
KINDS = ("float32", "bfloat16", "float16", "int8")
REPEATS = 3
EMPTY: Row = dict.fromkeys(
    ("work_s", "weights_mb", "top1_%", "kept_%", "kl", "mel_distance", "mel_relative_%", "worse_%")
)


def measure(variant: Variant, folder: Path, device: str, tokens: int) -> list[Row]:
    """Every kind of number of both halves. Raises `EngineError` for weights that cannot be loaded."""
    from pipeline.engines.chatterbox import loading

    t3, s3gen = loading.load_t3(variant, folder), loading.load_s3gen(variant, folder)
    rows = [_t3_row(variant, t3, kind, device, tokens) for kind in KINDS]
    return rows + [_s3gen_row(s3gen, kind, device, tokens) for kind in KINDS if kind != "int8"]


def _t3_row(variant: Variant, t3: Any, kind: str, device: str, tokens: int) -> Row:
    from pipeline.engines.chatterbox import precision

    named: Row = {"half": "t3", "kind": kind, **EMPTY}
    if fault := precision.unsupported(kind, device):
        return {**named, "note": fault}
    found = precision.t3_quality(t3, kind, device, tokens)
    share = {"float32": 4.0, "int8": 1.0}.get(kind, 2.0)
    return {
        **named,
        "work_s": _steps_s(variant, t3, kind, device, tokens),
        "weights_mb": round(sum(one.numel() for one in t3.tfmr.parameters()) * share / 1e6, 1),
        "top1_%": round(100 * found.agreement, 1),
        "kept_%": round(100 * found.kept, 2),
        "kl": float(f"{found.kl:.1e}"),
        "worse_%": round(100 * found.degradation, 3),
        "note": _verdict(found.degradation),
    }


def _s3gen_row(s3gen: Any, kind: str, device: str, tokens: int) -> Row:
    from pipeline.engines.chatterbox import precision

    named: Row = {"half": "s3gen", "kind": kind, **EMPTY}
    if fault := precision.unsupported(kind, device):
        return {**named, "note": fault}
    found = precision.s3gen_quality(s3gen, kind, device, tokens)
    count = sum(one.numel() for one in s3gen.flow.decoder.estimator.parameters())
    return {
        **named,
        "work_s": _quickest(lambda: precision.s3gen_frames(s3gen, kind, device, tokens)),
        "weights_mb": round(count * (4 if kind == "float32" else 2) / 1e6, 1),
        "mel_distance": round(found.distance, 4),
        "mel_relative_%": round(100 * found.relative, 2),
        "worse_%": round(100 * found.degradation, 3),
        "note": _verdict(found.degradation),
    }


def _verdict(worse: float) -> str:
    from pipeline.engines.chatterbox.precision import MOST_DEGRADATION

    return f"not used: more than {MOST_DEGRADATION:.0%} worse" if worse > MOST_DEGRADATION else ""


def _steps_s(variant: Variant, t3: Any, kind: str, device: str, tokens: int) -> float:
    """Of one stream, without its prefill."""
    from perf import chatterbox_models as models
    from perf.chatterbox_ours import rate
    from pipeline.engines.chatterbox import precision

    speaking = deepcopy(t3)
    models.only_sound(speaking)
    half = models.tokens_half(
        variant,
        speaking,
        models.random_voice(variant),
        device=device,
        dtype=precision.dtype_of(kind),
        convert=precision.convert_of(kind),
    )
    segment = models.segment("The quick brown fox jumps over the lazy dog.", seed=1)
    return round(tokens / max(rate(half, [segment], tokens)[0] for _ in range(REPEATS)), 4)


def _quickest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return round(min(times), 4)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = common.arguments(__doc__, connects=False, draws=True)
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="whose model (default: %(default)s)")
    parser.add_argument("--weights", default="", help="hub, or a checkpoint folder (default: a small random one)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, mps (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=50, help="speech tokens that are compared (default: %(default)s)")
    given = parser.parse_args(argv)
    common.at_least(parser, given, tokens=1)
    config = EngineConfig(device=given.device, weights=given.weights or "hub")
    if why := missing(given.engine, config):
        print(f"perf.precision: {why}", file=sys.stderr)
        return 2
    try:
        return _run(given, config)
    except EngineError as error:
        print(f"perf.precision: {error}", file=sys.stderr)
        return 2


def _run(given: argparse.Namespace, config: EngineConfig) -> int:
    from pipeline.engines.chatterbox import weights
    from pipeline.engines.chatterbox.device import resolve_device
    from pipeline.engines.chatterbox.tiny_files import write_checkpoint

    began = common.Began()
    variant = variant_of(given.engine, read_options(given.engine, config), config.weights)
    device = resolve_device(given.device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if given.weights:
            folder = weights.folder_of(variant, given.weights)
        else:
            write_checkpoint(variant, folder)
        rows = measure(variant, folder, device, given.tokens)
    base = {row["half"]: float(row["work_s"] or 0) for row in rows if row["kind"] == "float32"}
    figures: Row = {
        f"{row['half']}_{row['kind']}_times_float32": round(base[row["half"]] / float(row["work_s"]), 2)
        for row in rows
        if row["work_s"] and row["kind"] != "float32"
    }
    settings: Row = {
        "model.engine": variant.name,
        "model.weights": given.weights or "a small model with random weights",
        "device": device,
    }
    common.report("precision", given, {"precision": rows}, figures, settings, began, draw)
    return 0


def draw(report: Report, figure: Any) -> None:
    """How long the same work takes in each kind of number, and how much worse it is."""
    rows = [row for row in report["rows"]["precision"] if row["work_s"]]
    for axes, half in zip(figure.subplots(1, 2), ("t3", "s3gen"), strict=True):
        shown = [row for row in rows if row["half"] == half]
        colours = ["tab:red" if row["note"] else "tab:blue" for row in shown]
        bars = axes.bar([row["kind"] for row in shown], [row["work_s"] for row in shown], 0.6, color=colours)
        labels = [f"{row['worse_%']:.3g} % worse\n{row['weights_mb']:g} MB" for row in shown]
        axes.bar_label(bars, labels, fontsize=9, padding=2)
        axes.margins(y=0.15)
        axes.set(title=half, ylabel="seconds for the same work")
        axes.spines[["top", "right"]].set_visible(False)
    asked = report["settings"]
    figure.suptitle(f"{asked['model.engine']} ({asked['model.weights']}) on {asked['device']}; red: not used")


if __name__ == "__main__":
    sys.exit(main())
