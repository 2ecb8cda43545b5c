"""Chatterbox against the stock package and against chatterbox-streaming, on the same random weights, in one run.

For each model: T3 in steps a second (one stream, CFG included where the model has it; of ours also eight at once, and
on a CPU one in int8), and from a request to its first sound and to its last: the stock package (all tokens, then all
sound), the method of chatterbox-streaming (context 50, chunk 25, everything rendered anew, 20 ms of fade; see
perf/chatterbox_stock.py), and ours with the ladder that a pipeline begins with. In one process, without watermark, and
with weights that say no end of speech, so that all make the same number of tokens. Each is run in turn ``--repeats``
times; medians count. On a machine that others use as well ``--cpu-clock`` counts the processor's time instead of the
clock's, with one thread.

Needs what the engines need: pip install '.[chatterbox]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from perf import common, texts
from perf.common import Row
from pipeline.engines.base import Segment, TokenModel

if TYPE_CHECKING:
    from perf.chatterbox_stock import Packet

NEEDED = ("torch", "chatterbox")
MODELS = ("chatterbox", "chatterbox-multilingual", "chatterbox-turbo")
SIZES = ("tiny", "small", "full")
AT_ONCE = 8
TEXT_CHARS = 120

Median = dict[str, float]


def check_packages() -> None:
    """Raises `PerfError` that says what to install."""
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise common.PerfError(f"{', '.join(lacking)} not installed here: pip install '.[chatterbox]'")


class Comparison:
    """One model in one size on one device: theirs and ours."""

    def __init__(self, model: str, size: str, given: argparse.Namespace) -> None:
        import torch

        from perf import chatterbox_models as models
        from pipeline.engines.chatterbox import precision

        self.variant = models.MODELS[model]
        self._size, self._given, self._models = size, given, models
        voice = models.random_voice(self.variant, given.prompt_s)
        t3 = models.random_t3(self.variant, size, given.device)
        self._voice, self._t3 = voice, t3
        self._s3gen = models.random_s3gen(self.variant, size, given.device)
        options = {"device": given.device, "dtype": torch.float32}
        self._tokens = models.tokens_half(self.variant, t3, voice, max_batch=AT_ONCE, **options)
        self._int8 = None
        if given.device == "cpu":
            convert = precision.convert_of("int8")
            self._int8 = models.tokens_half(self.variant, t3, voice, convert=convert, **options)
        # Ours takes its module over and folds weights in it: the same seed gives it one of its own.
        ours = models.random_s3gen(self.variant, size, given.device)
        self._audio = models.audio_half(self.variant, ours, voice, **options)
        self._text = texts.prose(TEXT_CHARS, random.Random(1))
        self._tokens_wanted = given.tokens

    def t3(self) -> Row:
        """Steps a second."""
        from perf import chatterbox_ours as ours
        from perf import chatterbox_stock as stock

        ids = self._models.Letters().encode(self._text, "en").ids
        steps = self._tokens_wanted

        def theirs() -> float:
            return stock.speak(self.variant, self._t3, self._voice, ids, steps).per_s

        def mine(tokens: TokenModel, streams: int) -> Callable[[], float]:
            return lambda: ours.rate(tokens, self._segments(streams), steps - 1)[0]

        measures = {"stock": theirs, "ours": mine(self._tokens, 1), "ours_8": mine(self._tokens, AT_ONCE)}
        if self._int8 is not None:
            measures["int8"] = mine(self._int8, 1)
        found = in_turn(measures, self._given.repeats)
        return {
            "model": self.variant.name,
            "size": self._size,
            "stock_per_s": round(found["stock"], 1),
            "ours_per_s": round(found["ours"], 1),
            "times": round(found["ours"] / found["stock"], 2),
            "ours_8_streams_per_s": round(found["ours_8"], 1),
            "ours_int8_per_s": round(found["int8"], 1) if "int8" in found else None,
        }

    def packets(self) -> list[Row]:
        """First and last sound, by method."""
        from perf import chatterbox_ours as ours
        from perf import chatterbox_stock as stock

        ids = self._models.Letters().encode(self._text, "en").ids

        def render(tokens: object) -> stock.Samples:
            return stock.sound(self.variant, self._s3gen, self._voice, tokens)

        def spoken() -> stock.Spoken:
            return stock.speak(self.variant, self._t3, self._voice, ids, self._tokens_wanted)

        methods: dict[str, Callable[[], list[stock.Packet]]] = {
            "stock": lambda: stock.one_shot(spoken(), render),
            "chatterbox-streaming's method": lambda: stock.streaming(spoken(), render),
            "ours": lambda: ours.packets(self._tokens, self._audio, self._segments(1)[0], self._tokens_wanted),
        }
        made: dict[str, list[list[stock.Packet]]] = {name: [] for name in methods}
        for _ in range(self._given.repeats):
            for name, method in methods.items():
                made[name].append(method())
        return [self._row(name, runs) for name, runs in made.items()]

    def _row(self, name: str, runs: Sequence[Sequence[Packet]]) -> Row:
        first = statistics.median(run[0].at_s for run in runs)
        last = statistics.median(run[-1].at_s for run in runs)
        speech = sum(one.speech_s for one in runs[0])
        return {
            "model": self.variant.name,
            "size": self._size,
            "method": name,
            "first_sound_s": round(first, 3),
            "of_it_s": round(runs[0][0].speech_s, 2),
            "last_sound_s": round(last, 3),
            "speech_s": round(speech, 2),
            "per_speech_s": round(last / speech, 3),
        }

    def _segments(self, count: int) -> list[Segment]:
        return [self._models.segment(self._text, seed) for seed in range(count)]


def in_turn(measures: dict[str, Callable[[], float]], repeats: int) -> Median:
    """The median of each, measured by turns, so that whatever disturbs disturbs all."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: statistics.median(values) for name, values in found.items()}


async def measure(given: argparse.Namespace) -> None:
    """All models that were asked for."""
    check_packages()
    warnings.simplefilter("ignore")  # of the packages underneath
    import torch

    threads = 1 if given.cpu_clock else given.threads
    if threads:
        torch.set_num_threads(threads)
    if given.cpu_clock:
        from perf.chatterbox_stock import use_cpu_clock

        use_cpu_clock()
    began = common.Began()
    rates: list[Row] = []
    sounds: list[Row] = []
    for model in given.models:
        for size in given.sizes:
            print(f"{model}, {size} …", file=sys.stderr, flush=True)
            compared = Comparison(model, size, given)
            rates.append(compared.t3())
            sounds += [] if given.t3_only else compared.packets()
            del compared
    tables = {"T3, steps a second": rates, **({"from the request to the sound": sounds} if sounds else {})}
    figures: Row = {f"t3_times_stock_{row['model']}_{row['size']}": row["times"] for row in rates}
    figures["threads"] = torch.get_num_threads()
    common.report("stock", given, tables, figures, None, began)


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__, connects=False)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="(default: all)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small"], help="(default: small)")
    parser.add_argument("--tokens", type=int, default=100, help="of speech in each run (default: %(default)s)")
    parser.add_argument("--t3-only", action="store_true", help="no sound (which takes minutes at full size)")
    parser.add_argument("--prompt-s", type=float, default=10, help="of the voice's reference (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: its own choice)")
    parser.add_argument(
        "--cpu-clock", action="store_true", help="one thread, in processor time: others' load does not count"
    )
    given = parser.parse_args()
    if given.cpu_clock and given.device != "cpu":
        parser.error("--cpu-clock: only for --device cpu")
    common.at_least(parser, given, tokens=30, prompt_s=1, repeats=1, threads=0)
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
