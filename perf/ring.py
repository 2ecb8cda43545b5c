"""What the ring costs per block: writes, reads, discards.

Each row times one operation many times over, one process, nothing else contending for the ring. ``spans_ahead``
is how many spans lie between the reader and the writer: the reader looks through them at every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ipc.messages import SAMPLE_RATE
from ipc.ring import Arena, ReaderState, RingControl, RingReader, RingWriter
from perf import common
from perf.common import Report, Row

SPEAKER_SAMPLES = 10 * SAMPLE_RATE


class Bench:
    """A fresh speaker slot, its three ends, and a clock."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.arena = Arena.create(SPEAKER_SAMPLES, SAMPLE_RATE, 0)
        self.control: RingControl = self.arena.control(0)
        self.control.grant(1)
        self.writer: RingWriter = self.arena.writer(0, 1)
        self.reader: RingReader = self.arena.reader(0)
        self.epoch = 0

    def timed(
        self, name: str, samples: int, spans: int, prepare: Callable[[], object], act: Callable[[], object]
    ) -> Row:
        """Time ``act`` alone, once per block, each time after ``prepare``."""
        costs_ns = np.empty(self.blocks, np.int64)
        for block in range(self.blocks):
            prepare()
            start_ns = time.perf_counter_ns()
            act()
            costs_ns[block] = time.perf_counter_ns() - start_ns
        p50_us, p99_us, max_us = np.percentile(costs_ns, (50, 99, 100)) / 1000
        return {
            "operation": name,
            "block_samples": samples,
            "spans_ahead": spans,
            "p50_us": round(float(p50_us), 2),
            "p99_us": round(float(p99_us), 2),
            "max_us": round(float(max_us), 2),
            "mean_us": round(float(costs_ns.mean()) / 1000, 2),
        }

    def drain(self) -> None:
        """Leave nothing to read."""
        self.reader.advance(self.reader.written - self.reader.read)

    def fill(self, samples: int, spans: int) -> None:
        """Leave ``samples`` to read, in ``spans`` spans of a stint each."""
        self.drain()
        for piece in np.array_split(np.zeros(samples, np.float32), spans):
            self.epoch += 1
            self.writer.begin_span(self.epoch, 0)
            self.writer.write(piece)


def writes(bench: Bench, samples: int) -> Row:
    """One write of a block into a ring with room."""
    block = np.zeros(samples, np.float32)
    bench.writer.begin_span(bench.epoch + 1, 0)
    bench.epoch += 1
    return bench.timed("write", samples, 0, bench.drain, lambda: bench.writer.write(block))


def reads(bench: Bench, samples: int, spans: int) -> Row:
    """What a sound card's callback does with the ring in one block, its copy included."""
    out, reader = np.empty(samples, np.float32), bench.reader

    def read() -> None:
        reader.skip_discarded()
        reader.span()
        first, second = reader.regions(samples)
        out[: len(first)] = first
        out[len(first) : len(first) + len(second)] = second
        reader.advance(len(first) + len(second))

    return bench.timed("read", samples, spans, lambda: bench.fill(max(samples, 100 * spans), spans), read)


def skips(bench: Bench, spans: int) -> Row:
    """A cancel of everything there, met by the reader."""

    def cancelled() -> None:
        bench.fill(100 * spans, spans)
        bench.control.discard_below(bench.epoch + 1)

    return bench.timed("skip_discarded", 100 * spans, spans, cancelled, bench.reader.skip_discarded)


def others(bench: Bench) -> list[Row]:
    """What happens once per segment, per callback and per look of the dispatcher."""

    def begin() -> None:
        bench.epoch += 1
        bench.writer.begin_span(bench.epoch, 0)

    state = ReaderState(*[time.monotonic_ns()] * 6)
    return [
        bench.timed("begin_span", 0, 0, bench.drain, begin),
        bench.timed("publish", 0, 0, lambda: None, lambda: bench.reader.publish(state)),
        bench.timed("reader_state", 0, 0, lambda: None, bench.control.reader_state),
        bench.timed("spans", 0, 63, lambda: bench.fill(6300, 63), bench.control.spans),
        bench.timed("nothing", 0, 0, lambda: None, lambda: None),
    ]


def draw(report: Report, figure: Any) -> None:
    """What each operation takes, from the median to the 99 % quantile, on one axis."""
    rows = report["rows"]["ring"][::-1]
    axes = figure.subplots()
    names = [_named(row) for row in rows]
    usual = [row["p50_us"] for row in rows]
    rare = [max(0.0, row["p99_us"] - row["p50_us"]) for row in rows]
    axes.barh(names, usual, color="tab:blue", label="p50")
    axes.barh(names, rare, left=usual, color="tab:blue", alpha=0.35, label="p99")
    axes.set(xlabel="µs", title=f"The ring: what one operation takes ({report['machine']['processor']})")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _named(row: Row) -> str:
    parts = [str(row["operation"])]
    parts += [f"{row['block_samples']} samples"] if row["block_samples"] else []
    parts += [f"{row['spans_ahead']} spans"] if row["spans_ahead"] else []
    return ", ".join(parts)


def main() -> None:
    """Measure, print the table, and write it as JSON where asked to."""
    parser = common.arguments(__doc__, connects=False, draws=True)
    parser.add_argument("--blocks", type=int, default=3000, help="repetitions of each operation (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, blocks=1)
    began = common.Began()
    bench = Bench(given.blocks)
    rows = [writes(bench, samples) for samples in (512, 960, 24_000)]
    rows += [reads(bench, 512, spans) for spans in (1, 4, 16, 63)]
    rows += [skips(bench, spans) for spans in (1, 4, 63)]
    rows += others(bench)
    bench.arena.close()
    common.report("ring", given, {"ring": rows}, began=began, draw=draw)


if __name__ == "__main__":
    main()
