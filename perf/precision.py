"""What each kind of number costs and brings: speed, memory and quality against float32, of both halves, in one run.

    python -m perf.precision --engine chatterbox-turbo --weights FOLDER [--device cuda:0] [--json FILE]

T3 is compared on a fixed history (teacher-forced): how often it finds the same token likeliest, the share of that
token's probability that its own choice has, and the divergence. S3Gen is compared by the mel frames that it makes of
the same tokens and noise. Without --weights it measures a small model with random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.engines.base import EngineConfig, EngineError
from pipeline.engines.chatterbox import missing
from pipeline.engines.chatterbox.options import read_options, variant_of
from pipeline.engines.chatterbox.variants import VARIANTS, Variant

ENGINES = tuple(dict.fromkeys(variant.name for variant in VARIANTS))
KINDS = ("float32", "bfloat16", "float16", "int8")
REPEATS = 3


@dataclass(frozen=True)
class Row:
    """One half in one kind of number. ``seconds``: the quicker of some runs over the same work; ``weights_mb``: of
    what is in that kind; ``worse``: what counts against the engine's limit; ``note``: why it is not used."""

    half: str
    kind: str
    seconds: float = 0.0
    weights_mb: float = 0.0
    quality: str = ""
    worse: float = 0.0
    note: str = ""


def measure(variant: Variant, folder: Path, device: str, tokens: int) -> list[Row]:
    """Every kind of number of both halves. Raises `EngineError` for weights that cannot be loaded."""
    from pipeline.engines.chatterbox import loading

    t3, s3gen = loading.load_t3(variant, folder), loading.load_s3gen(variant, folder)
    rows = [_t3_row(t3, kind, device, tokens) for kind in KINDS]
    return rows + [_s3gen_row(s3gen, kind, device, tokens) for kind in KINDS if kind != "int8"]


def _t3_row(t3, kind: str, device: str, tokens: int) -> Row:  # type: ignore[no-untyped-def]
    from pipeline.engines.chatterbox import precision

    if fault := precision.unsupported(kind, device):
        return Row("t3", kind, note=fault)
    found = precision.t3_quality(t3, kind, device, tokens)
    seconds = _quickest(lambda: precision.t3_logits(t3, kind, device, tokens))
    share = {"float32": 4.0, "int8": 1.0}.get(kind, 2.0)
    weights = sum(one.numel() for one in t3.tfmr.parameters()) * share / 1e6
    quality = f"top-1 {found.agreement:.1%}  kept {found.kept:.2%}  KL {found.kl:.1e}"
    return Row("t3", kind, seconds, weights, quality, found.degradation, _verdict(found.degradation))


def _s3gen_row(s3gen, kind: str, device: str, tokens: int) -> Row:  # type: ignore[no-untyped-def]
    from pipeline.engines.chatterbox import precision

    if fault := precision.unsupported(kind, device):
        return Row("s3gen", kind, note=fault)
    found = precision.s3gen_quality(s3gen, kind, device, tokens)
    seconds = _quickest(lambda: precision.s3gen_frames(s3gen, kind, device, tokens))
    count = sum(one.numel() for one in s3gen.flow.decoder.estimator.parameters())
    weights = count * (4 if kind == "float32" else 2) / 1e6
    quality = f"log-mel distance {found.distance:.4f} ({found.relative:.2%} of their variation)"
    return Row("s3gen", kind, seconds, weights, quality, found.degradation, _verdict(found.degradation))


def _verdict(worse: float) -> str:
    from pipeline.engines.chatterbox.precision import MOST_DEGRADATION

    return f"not used: more than {MOST_DEGRADATION:.0%} worse" if worse > MOST_DEGRADATION else ""


def _quickest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def table(rows: Sequence[Row]) -> str:
    """For people."""
    lines = [f"{'half':<6} {'kind':<9} {'seconds':>8} {'MB':>8}  quality against float32"]
    lines += [
        f"{row.half:<6} {row.kind:<9} {row.seconds:>8.3f} {row.weights_mb:>8.1f}  {row.quality}"
        + (f"  ({row.note})" if row.note else "")
        for row in rows
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    about, _, use = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "perf.precision", description=about, epilog=use, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="whose model")
    parser.add_argument("--weights", default="", help="hub, or a checkpoint folder (default: a small random one)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, mps")
    parser.add_argument("--tokens", type=int, default=50, help="speech tokens that are compared")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args(argv)
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

    variant = variant_of(given.engine, read_options(given.engine, config), config.weights)
    device = resolve_device(given.device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if given.weights:
            folder = weights.folder_of(variant, given.weights)
        else:
            write_checkpoint(variant, folder)
        rows = measure(variant, folder, device, given.tokens)
    what = given.weights or "a small model with random weights"
    print(f"{variant.name} ({what}) on {device}, {given.tokens} tokens\n{table(rows)}")
    if given.json:
        figures = {"engine": variant.name, "weights": what, "device": device, "tokens": given.tokens}
        given.json.write_text(json.dumps(figures | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
