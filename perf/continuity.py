"""How well S3Gen's chunks continue each other, and what that costs: every method and chunk size on the same tokens.

    python -m perf.continuity --json continuity.json --pictures docs

Weights are random (`pipeline.engines.chatterbox.rehearsal` says which), so nothing here tells how good a voice is.
What the figures do tell: whether a join stands out from the sound around it (1 = it does not), how far a stream is
from the same tokens rendered at once, what a chunk costs and when the first sound is there.

- step: the sample to sample step at the joins as a share of the 99.9 % quantile of all steps; the largest and mean.
- flux: change of the log-mel spectrum across the joins, in places where sound goes over (``flux_sound``) and where
  the next chunk's mel frames begin (``flux_mel``), against its mean elsewhere.
- apart: mean distance in dB of the log-mel spectrum, taken over 80 ms, to that of the same tokens in one chunk.
  The package in one chunk with another noise tells what is far apart.
- ``first_ms`` and ``chunk_ms``: CPU time of one thread until the first sound and for a full chunk; ``sound_ms``:
  how much sound that is; ``growth``: the last full chunk's time over the fifth's (or the first one after it).

``chatterbox-streaming`` is that fork's way (context 50, chunk 25) on the same model; ``stock`` the package at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ipc.messages import SAMPLE_RATE
from perf.common import Began, PerfError, Row, arguments, at_least, report
from perf.joins import Grid, flux_at, log_mel, steps_at

SMOOTH = 16


def apart_db(mel: Grid, other: Grid) -> float:
    """Mean distance between two spectra of equal length, smoothed over 80 ms."""
    both = np.cumsum(mel - other, axis=0)
    return float(np.abs(both[SMOOTH:] - both[:-SMOOTH]).mean() / SMOOTH)


def row(made: Any, chunk: int, whole: Grid) -> Row:
    """What there is to say of one rendering (`rehearsal.Rendering`)."""
    mel = log_mel(made.samples)
    full = made.cpu_s[1:-1] or made.cpu_s
    largest, mean = steps_at(made.samples, made.joins) if made.joins else (None, None)
    joined = bool(made.joins)
    return {
        "method": made.method,
        "chunk": chunk,
        "step_max": _rounded(largest),
        "step_mean": _rounded(mean),
        "flux_sound": _rounded(flux_at(mel, made.joins)) if joined else None,
        "flux_mel": _rounded(flux_at(mel, made.mel_joins)) if joined else None,
        "apart_db": _rounded(apart_db(mel, whole)),
        "first_ms": round(made.first_s * 1000, 1),
        "sound_ms": round(made.first_samples / SAMPLE_RATE * 1000),
        "chunk_ms": round(float(np.median(full)) * 1000, 1),
        "growth": _rounded(full[-1] / full[min(3, len(full) - 1)]) if joined else None,
        "total_s": round(sum(made.cpu_s), 2),
        "state_kB": round(made.checkpoint_bytes / 1000, 1) if made.checkpoint_bytes else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def markdown(rows: Sequence[Row]) -> str:
    """The table for docs/continuity.md."""
    cells = [list(rows[0]), ["---"] * len(rows[0])]
    cells += [["" if one is None else str(one) for one in row.values()] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


# --------------------------------------------------------------------------- pictures


def picture(path: Path, renderings: Sequence[tuple[str, Any, int]], title: str) -> None:
    """Waveform and spectrogram around one join of each rendering, the join in the middle."""
    try:
        import matplotlib
    except ImportError as error:
        raise PerfError("--pictures needs matplotlib: pip install '.[perf]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    most = max(float(np.abs(made.samples[join - 480 : join + 480]).max()) for _, made, join in renderings)
    figure, axes = pyplot.subplots(2, len(renderings), figsize=(3.4 * len(renderings), 5), layout="constrained")
    for (wave, spectrum), (name, made, join) in zip(axes.T, renderings, strict=True):
        near, far = made.samples[join - 480 : join + 480], made.samples[join - 6000 : join + 6000]
        wave.plot((np.arange(len(near)) - 480) / 24, near, linewidth=0.8)
        wave.axvline(0, color="tab:red", linewidth=0.6, linestyle=":")
        wave.set(title=name, xlabel="ms", ylim=(-1.1 * most, 1.1 * most))
        spectrum.specgram(far - far.mean(), NFFT=512, Fs=24, noverlap=448, xextent=(-250, 250), cmap="magma")
        spectrum.axvline(0, color="white", linewidth=0.6, linestyle=":")
        spectrum.set(ylim=(0, 6), xlabel="ms")
    axes[0, 0].set_ylabel("sample")
    axes[1, 0].set_ylabel("kHz")
    figure.suptitle(title)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def middle(joins: Sequence[int]) -> int:
    """The join to look at."""
    return joins[len(joins) // 2]


# --------------------------------------------------------------------------- the script


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__, connects=False)
    parser.add_argument("--variant", default="chatterbox", choices=["chatterbox", "chatterbox-turbo"])
    parser.add_argument("--tokens", type=int, default=200, help="25 are a second (default: %(default)s)")
    parser.add_argument("--chunks", default="6,12,25,50", help="sizes in tokens (default: %(default)s)")
    parser.add_argument("--long", type=int, default=500, help="chunks of a long stream, 0: none (default: %(default)s)")
    parser.add_argument("--full-size", action="store_true", help="the published model's size")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write continuity*.png there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    given = parser.parse_args(argv)
    at_least(parser, given, tokens=20, long=0)
    if 0 < given.long < 6:
        parser.error(f"--long: {given.long}: 0, or at least 6")
    try:
        from pipeline.engines.chatterbox.continuity import METHODS
        from pipeline.engines.chatterbox.rehearsal import Rehearsal
        from pipeline.engines.chatterbox.variants import CHATTERBOX, TURBO
    except ImportError as error:
        parser.error(f"the Chatterbox packages are not installed ({error.name}): pip install '.[chatterbox]'")
    began = Began()
    variant = TURBO if given.variant == TURBO.name else CHATTERBOX
    rehearsal = Rehearsal(variant, given.tokens, full_size=given.full_size)
    rehearsal.ours("context", [12, 25])  # what is set up at first use is no chunk's cost
    whole = rehearsal.one_shot()
    mel = log_mel(whole.samples)
    chunks = [int(chunk) for chunk in given.chunks.split(",")]
    made = {(method, chunk): rehearsal.ours(method, [chunk]) for method in METHODS for chunk in chunks}
    fork = rehearsal.chatterbox_streaming()
    rows = [row(one, chunk, mel) for (_, chunk), one in made.items()]
    rows += [row(fork, 25, mel), row(rehearsal.stock(), given.tokens, mel), row(whole, given.tokens, mel)]
    figures = _long(rehearsal, given) if given.long else {}
    if given.pictures:
        _pictures(given, made, fork, min(chunks, key=lambda chunk: abs(chunk - 25)))
    if given.markdown:
        given.markdown.write_text(markdown(rows), encoding="utf-8")
    report("continuity", given, {f"{given.variant}, random weights": rows}, figures, began=began)
    return 0


def _long(rehearsal: Any, given: argparse.Namespace) -> dict[str, float | int]:
    """Whether a chunk costs the same late in an utterance."""
    early, late, size = rehearsal.long(given.long, 12)
    return {
        "long_chunks": given.long,
        "fifth_chunk_ms": round(float(np.median(early)) * 1000, 2),
        "last_chunk_ms": round(float(np.median(late)) * 1000, 2),
        "last_over_fifth": round(float(np.median(late) / np.median(early)), 3),
        "checkpoint_bytes": size,
    }


def _pictures(given: argparse.Namespace, made: dict[tuple[str, int], Any], fork: Any, chunk: int) -> None:
    shown = [(method, one, middle(one.joins)) for (method, size), one in made.items() if size == chunk]
    shown.append((fork.method, fork, middle(fork.joins)))
    what = f"{given.variant}, random weights, chunks of {chunk} tokens"
    picture(given.pictures / "continuity.png", shown, f"Where the sound of one chunk goes over into the next: {what}")
    shown = [(name, one, middle(one.mel_joins)) for name, one, _ in shown]
    picture(given.pictures / "continuity-mel.png", shown, f"Where the next chunk's mel frames begin: {what}")


if __name__ == "__main__":
    raise SystemExit(main())
