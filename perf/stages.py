"""Each half of an engine alone, without any pipeline: tokens and speech a second, and the time of a step and of a rung.

    python -m perf.stages --engine chatterbox --weights FOLDER --device cuda:0 --png stages.png

T3: so many streams are advanced together, step by step, and whoever ends makes room for a new one. ``tokens_per_s``
and ``speech_s_per_s`` are of all streams and count everything, ``step_p50_ms`` is one step of them all.
S3Gen: so many streams are rendered together, rung after rung, all from the same tokens. ``render_p50_ms`` is one rung
of them all; ``speech_s_per_s`` counts rendering alone. An engine that cuts its own rungs, like espeak (a token is a
word there, a rung a clause), is given clauses of so many words; ``tokens`` is what a rung then has on average. More
than one stream in a rung pays where the engine computes them together.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ipc.messages import SAMPLE_RATE
from perf import common, direct, texts
from perf.common import PerfError, Report, Row
from perf.direct import Direct
from pipeline.engines.base import AudioStep, EngineConfig, EngineError, Settings, StreamError, TokenStep

BATCHES = (1, 4, 16)
RUNGS = (4, 12, 25, 50)
WARM_STEPS = 3
RUNGS_A_STREAM = 3
TEXT_CHARS = 200
SEED = 1
"""Of what is rendered: tokens and sound belong to the same one."""

T3, S3GEN = "T3: tokens", "S3Gen: sound"


class Bench:
    """A loaded engine and texts for it."""

    def __init__(self, direct: Direct, seed: int) -> None:
        self.direct = direct
        self.ladder = direct.audio_half.facts.ladder
        self._nothing = direct.cut("Nothing.")[0]
        rng = random.Random(seed)
        self._texts = (texts.prose(TEXT_CHARS, rng) for _ in itertools.count())

    # ---------------------------------------------------------------- tokens

    def t3(self, streams: int, seconds: float) -> Row:
        """That many streams for so long."""
        live = {self._admit() for _ in range(streams)}
        for _ in range(WARM_STEPS):
            self._counted(self.direct.token_half.step(), live)
        taken_s: list[float] = []
        tokens, speech_s, began_s = 0, 0.0, time.perf_counter()
        while not taken_s or time.perf_counter() - began_s < seconds:
            step_s = time.perf_counter()
            steps = self.direct.token_half.step()
            taken_s.append(time.perf_counter() - step_s)
            made = self._counted(steps, live)
            tokens, speech_s = tokens + made[0], speech_s + made[1]
        whole_s = time.perf_counter() - began_s
        for number in live:
            self.direct.token_half.release(number)
        return {
            "streams": streams,
            "steps": len(taken_s),
            "tokens_per_s": round(tokens / whole_s, 1),
            "speech_s_per_s": round(speech_s / whole_s, 2),
            **_times("step", taken_s),
        }

    def _counted(self, steps: Sequence[TokenStep | StreamError], live: set[int]) -> tuple[int, float]:
        """Tokens and seconds of speech of a step. Whoever has ended is followed by another."""
        for step in steps:
            if isinstance(step, StreamError):
                raise PerfError(f"the engine cannot speak its text: {step.reason}")
            if step.final:
                live.remove(step.stream)
                live.add(self._admit())
        made = [step for step in steps if isinstance(step, TokenStep)]
        return sum(step.tokens for step in made), sum(step.seconds for step in made)

    def _admit(self) -> int:
        """Begin a new text's first segment that is a whole sentence or so."""
        number = self.direct.next_stream()
        cut = max(self.direct.cut(next(self._texts)), key=lambda one: len(one.text))
        self.direct.token_half.admit(number, self.direct.segment(cut, number))
        return number

    # ---------------------------------------------------------------- sound

    def s3gen(self, streams: int, rung: int, steps: Sequence[TokenStep], seconds: float) -> Row:
        """That many streams of these tokens for so long, in rungs of that many tokens."""
        ends = self._ends(steps, rung)
        self._rendered(streams, steps, ends)
        taken_s: list[float] = []
        samples = 0
        while sum(taken_s) < seconds:
            for render_s, made in self._rendered(streams, steps, ends):
                taken_s.append(render_s)
                samples += made
        speech_s = samples / SAMPLE_RATE
        return {
            "streams": streams,
            "rung_tokens": rung,
            "tokens": round(ends[-1] / len(ends), 1),
            "renders": len(taken_s),
            "speech_ms": round(1000 * speech_s / len(taken_s) / streams, 1),
            "speech_s_per_s": round(speech_s / sum(taken_s), 2),
            **_times("render", taken_s),
        }

    def material(self, rung: int) -> list[TokenStep]:
        """Tokens to render: for a ladder of a segment as long as one can be, else of a clause of ``rung`` words."""
        longest = self.direct.token_half.facts.longest_chars
        text = next(self._texts)
        while len(text) < longest:
            text += " " + next(self._texts)
        if not self.ladder:
            text = " ".join(re.findall(r"[\w']+", text)[:rung]).lower()
        text = text[:longest].rpartition(" ")[0] if len(text) > longest else text
        return list(self.direct.tokens(replace(self._nothing, text=text), SEED))

    def _ends(self, steps: Sequence[TokenStep], rung: int) -> list[int]:
        """Up to which token each rung goes; of a ladder all have the same size."""
        made = list(itertools.accumulate(step.tokens for step in steps))
        if not self.ladder:
            return made
        # A segment with fewer tokens than a rung (of a model that was never trained) is one rung.
        return list(range(rung, made[-1] + 1, rung))[:RUNGS_A_STREAM] or made[-1:]

    def _rendered(self, streams: int, steps: Sequence[TokenStep], ends: Sequence[int]) -> list[tuple[float, int]]:
        """Seconds and samples of each rung of fresh streams."""
        half = self.direct.audio_half
        numbers = [self.direct.next_stream() for _ in range(streams)]
        for number in numbers:
            half.open(number, replace(self.direct.segment(self._nothing, SEED), text=""))
            for step in steps:
                half.feed(number, step.tokens, step.data, step is steps[-1])
        made = []
        for end in ends:
            began_s = time.perf_counter()
            rungs = half.render([(number, end) for number in numbers])
            made.append((time.perf_counter() - began_s, sum(_samples(one) for one in rungs)))
        for number in numbers:
            half.close_stream(number)
        return made


def _samples(rung: AudioStep | StreamError) -> int:
    if isinstance(rung, StreamError):
        raise PerfError(f"the engine cannot render: {rung.reason}")
    return len(rung.samples)


def _times(name: str, taken_s: Sequence[float]) -> Row:
    p50, p90 = np.percentile(np.asarray(taken_s) * 1000, (50, 90))
    return {f"{name}_p50_ms": round(float(p50), 3), f"{name}_p90_ms": round(float(p90), 3)}


def sound_rows(bench: Bench, given: argparse.Namespace) -> Iterator[Row]:
    """S3Gen by size of the rung and streams."""
    material = bench.material(max(given.rungs)) if bench.ladder else []
    for rung in given.rungs:
        steps = material or bench.material(rung)
        for streams in given.batches:
            print(f"S3Gen: {streams} streams, rungs of {rung} …", file=sys.stderr, flush=True)
            yield bench.s3gen(streams, rung, steps, given.seconds)


async def measure(given: argparse.Namespace, options: Settings) -> None:
    """Both halves."""
    began = common.Began()
    config = EngineConfig(device=given.device, weights=given.weights, options=options, max_batch=max(given.batches))
    try:
        engine = Direct(given.engine, config=config)
    except EngineError as error:
        raise PerfError(str(error)) from error
    bench = Bench(engine, given.seed)
    tokens = [bench.t3(streams, given.seconds) for streams in given.batches]
    sounds = list(sound_rows(bench, given))
    settings: Row = {
        "model.engine": given.engine,
        "t3_device": engine.token_half.facts.device,
        "s3gen_device": engine.audio_half.facts.device,
    }
    engine.close()
    figures: Row = {f"t3_{row['streams']}_tokens_per_s": row["tokens_per_s"] for row in tokens}
    for row in sounds:
        figures[f"s3gen_{row['streams']}_of_{row['rung_tokens']}_speech_s_per_s"] = row["speech_s_per_s"]
    common.report("stages", given, {T3: tokens, S3GEN: sounds}, figures, settings, began, draw)


def draw(report: Report, figure: Any) -> None:
    """Seconds of speech a second: of T3 by streams, of S3Gen by rung and streams; the dashed line is the ear's pace."""
    tokens, sounds = report["rows"][T3], report["rows"][S3GEN]
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.6])
    names = [str(row["streams"]) for row in tokens]
    bars = left.bar(names, [row["speech_s_per_s"] for row in tokens], 0.6, color="tab:blue")
    labels = [f"{row['tokens_per_s']:.0f} tokens/s\n{row['step_p50_ms']:.2g} ms a step" for row in tokens]
    left.bar_label(bars, labels, fontsize=9, padding=2)
    left.set(title="T3", xlabel="streams at once", ylabel="seconds of speech a second")
    left.margins(y=0.15)
    for streams in dict.fromkeys(row["streams"] for row in sounds):
        rows = [row for row in sounds if row["streams"] == streams]
        places = [row["rung_tokens"] for row in rows]
        right.plot(places, [row["speech_s_per_s"] for row in rows], "o-", label=f"{streams} at once")
    right.set(title="S3Gen", xlabel="tokens of a rung", ylabel="seconds of speech a second")
    right.set_xticks(sorted({row["rung_tokens"] for row in sounds}))
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    for axes in (left, right):
        axes.axhline(1, color="black", linestyle="--", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    facts = report["machine"]
    figure.suptitle(
        f"Each half of {report['settings']['model.engine']} alone: {facts['cpus']} processors ({facts['processor']}), "
        f"{report['settings']['s3gen_device']}, {facts['date']}"
    )


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__, connects=False, draws=True)
    direct.arguments(parser)
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="streams (default: 1 4 16)")
    parser.add_argument("--rungs", nargs="+", type=int, default=list(RUNGS), help="in tokens (default: 4 12 25 50)")
    parser.add_argument("--seconds", type=float, default=3, help="for each figure, about (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the texts (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, seconds=0.01)
    for name in ("batches", "rungs"):
        if min(getattr(given, name)) < 1:
            parser.error(f"--{name}: {min(getattr(given, name))}: at least 1")
    return common.run(measure(given, direct.options_of(parser, given)))


if __name__ == "__main__":
    sys.exit(main())
