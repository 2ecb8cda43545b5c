"""How soon the first sound is there, hop by hop, in the pipeline's eyes and in a program's.

Each utterance has another text (one clause, two sentences or a page), comes after a pause of random length, and is
cancelled once its first sound was there. The groups:

- to the speaker: the dispatcher's own clocks, from the request's arrival to ``accepted`` sent, the first tokens,
  the first sample in the ring (as the dispatcher learns of it, so rather too much), and at the loudspeaker (of
  ``player.output: none`` at real-time pace: up to a block of 21 ms passes until the next one is taken); and what
  each of them adds to the one before, utterance by utterance;
- to a remote listener: the same clocks, and what the program sees, from before it connects to its first sound;
- to a remote listener that is connected already, the text whole, or token by token: from the first token, the first
  complete word and the token that completes the first clause to the first sound, and how evenly the tokens came;

and what of that is the engine's own: its two halves in this process make the first piece of as many texts.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ipc.client import AsyncClient
from perf import common, hops, running
from perf.common import Report, Row
from perf.direct import Direct
from perf.hops import BETWEEN, CLAUSE, FIRST, HOPS, LATE, LENGTHS, SENT, UNTIL_SOUND, WORD, Measuring, Values

WARM_UTTERANCES = 10
SHARES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
SPEAKER = {
    BETWEEN["accepted"]: "received_to_accepted_ms",
    BETWEEN["first_tokens"]: "accepted_to_tokens_ms",
    BETWEEN["first_pcm"]: "tokens_to_ring_ms",
    BETWEEN["loudspeaker"]: "ring_to_dac_ms",
}
"""The hops to the loudspeaker, and their columns where all stand side by side."""

BY_HOP, DISTRIBUTION = "to the speaker, hop by hop", "to the speaker, distribution"
COLOURS = ("#34495e", "#2980b9", "#16a085", "#e67e22", "#8e44ad")


def engine_alone(engine: str, voice: str, language: str, given: argparse.Namespace, length: str) -> Values:
    """The clock's time of the engine's halves for the first piece of each text."""
    rng = random.Random(given.seed)
    direct = Direct(engine, voice, language)
    values: Values = {"its tokens": [], "its sound": [], "both": []}
    for _ in range(given.utterances):
        first = direct.cut(LENGTHS[length](rng))[0]
        cost = next(direct.pieces(first))
        for name, seconds in zip(values, (cost.tokens_s, cost.audio_s, cost.tokens_s + cost.audio_s), strict=True):
            values[name].append(seconds * 1000)
    direct.close()
    return values


def table(groups: Mapping[str, Values], names: Sequence[str] = ()) -> list[Row]:
    """A row for each length of text and each of ``names`` (default: all that was measured)."""
    return [
        {"text": length, **common.quantiles(name, values.get(name, []))}
        for length, values in groups.items()
        for name in names or values
    ]


def distribution(groups: Mapping[str, Values]) -> list[Row]:
    """Up to how many milliseconds each hop takes in what share of the utterances, by length of text."""
    return [
        {
            "text": length,
            "share": f"{share} %",
            **{column: _percentile(values.get(name, []), share) for name, column in SPEAKER.items()},
        }
        for length, values in groups.items()
        for share in SHARES
    ]


def _percentile(values: Sequence[float], share: float) -> float | None:
    return round(float(np.percentile(values, share)), 3) if values else None


async def measured(client: AsyncClient, given: argparse.Namespace) -> dict[str, dict[str, Values]]:
    """All groups: by title and length of text."""
    run = Measuring(client, given)
    for warm in (run.speaker, run.newcomer, run.whole):
        await run.group(warm, min(WARM_UTTERANCES, given.utterances))
    paced = f"a token every {given.token_ms:g} ms"
    asked = {
        "to the speaker": (run.speaker, given.lengths),
        "to a listener that connects for it": (run.newcomer, [_main(given)]),
        "to a connected listener, whole text": (run.whole, given.lengths),
        f"to a connected listener, {paced}, from the first clause on": (run.from_clause, given.lengths),
        f"to a connected listener, {paced}, from the first word on": (run.from_word, given.lengths),
    }
    return {title: await run.groups(one, given.utterances, lengths) for title, (one, lengths) in asked.items()}


def _main(given: argparse.Namespace) -> str:
    """The length of text that the figures are of."""
    return "medium" if "medium" in given.lengths else str(given.lengths[0])


def summary(groups: Mapping[str, Mapping[str, Values]], engine: Values, length: str) -> Row:
    """The figures, all of one length of text."""
    speaker, _, whole, clause, word = (values.get(length, {}) for values in groups.values())
    in_ring = common.quantiles("", speaker.get(HOPS["first_pcm"], []))
    medians = {
        "accepted_p50_ms": speaker.get(BETWEEN["accepted"]),
        "accepted_to_tokens_p50_ms": speaker.get(BETWEEN["first_tokens"]),
        "tokens_to_ring_p50_ms": speaker.get(BETWEEN["first_pcm"]),
        "ring_to_dac_p50_ms": speaker.get(BETWEEN["loudspeaker"]),
        "text_to_sound_p50_ms": whole.get(SENT),
        "clause_to_sound_p50_ms": clause.get(CLAUSE),
        "word_to_sound_p50_ms": word.get(WORD),
        "token_late_p50_ms": clause.get(LATE),
    }
    return {
        "first_pcm_p50_ms": in_ring["p50_ms"],
        "first_pcm_p99_ms": in_ring["p99_ms"],
        "engine_p50_ms": common.quantiles("", engine["both"])["p50_ms"],
        **{name: common.quantiles("", values)["p50_ms"] for name, values in medians.items() if values},
    }


async def measure(given: argparse.Namespace) -> None:
    """All groups against one pipeline."""
    began = common.Began()
    settings: Row = {"model.engine": given.engine, "player.output": "none", "player.pace": "realtime"}
    with running.pipeline(given.to, settings) as place:
        async with AsyncClient(place.to) as client:
            engine = await running.engine_of(place, client)
            known = await client.speak("Warm.")
            await known.wait()
            assert known.accepted is not None
            groups = await measured(client, given)
    alone = engine_alone(engine, known.accepted.voice, known.accepted.language, given, _main(given))
    speaker, *others = groups
    tables = {
        f"{speaker}, since the request": table(groups[speaker], [HOPS[hop] for hop in HOPS if hop != "listener"]),
        BY_HOP: table(groups[speaker], list(SPEAKER)),
        DISTRIBUTION: distribution(groups[speaker]),
        **{title: table(groups[title]) for title in others},
        f"{engine} alone, the first piece of such a text": table({_main(given): alone}),
    }
    figures = summary(groups, alone, _main(given))
    common.report("first_sound", given, tables, figures, place.settings, began, draw)


# --------------------------------------------------------------------------- the picture


def draw(report: Report, figure: Any) -> None:
    """The hops on top of each other for each length of text, how each is distributed, and growing texts."""
    axes = figure.subplot_mosaic([["hops", "spread"], ["growing", "spread"]])
    _draw_hops(report["rows"][BY_HOP], report["rows"]["to the speaker, since the request"], axes["hops"])
    _draw_spread(report["rows"][DISTRIBUTION], axes["spread"])
    _draw_growing({title: rows for title, rows in report["rows"].items() if "a token every" in title}, axes["growing"])


def _draw_hops(rows: Sequence[Row], since: Sequence[Row], axes: Any) -> None:
    lengths = list(dict.fromkeys(str(row["text"]) for row in rows))
    for place, length in enumerate(lengths):
        left = 0.0
        for name, colour in zip(SPEAKER, COLOURS, strict=False):
            width = next(float(row["p50_ms"] or 0) for row in rows if (row["text"], row["what"]) == (length, name))
            axes.barh(place, width, 0.6, left, color=colour, label=None if place else name)
            left += width
        whole = next(row for row in since if (row["text"], row["what"]) == (length, HOPS["loudspeaker"]))
        ends = [float(whole[name] or 0) for name in ("p50_ms", "p90_ms", "p99_ms")]
        axes.plot(ends, [place] * 3, "|", color="black", markersize=14, label=None if place else "p50, p90, p99 of all")
    axes.set_yticks(range(len(lengths)), lengths)
    axes.set_ylim(len(lengths) + 0.8, -0.6)
    axes.set_xlabel("ms since the request (medians of each hop)")
    axes.set_title("to the speaker, by length of text", loc="left")
    axes.legend(loc="lower right", fontsize=8, ncols=2)


def _draw_spread(rows: Sequence[Row], axes: Any) -> None:
    """The share of the utterances in which a hop takes no longer than so much; of one length of text."""
    lengths = [row["text"] for row in rows]
    length = "medium" if "medium" in lengths else lengths[0]
    shown = [row for row in rows if row["text"] == length]
    shares = [float(str(row["share"]).removesuffix(" %")) for row in shown]
    for (name, column), colour in zip(SPEAKER.items(), COLOURS, strict=False):
        if shown[0][column] is not None:
            axes.plot([row[column] for row in shown], shares, marker=".", color=colour, label=name)
    axes.set_xlabel("ms that a hop takes at most")
    axes.set_ylabel("share of the utterances, %")
    axes.grid(alpha=0.3)
    axes.set_title(f"each hop, text {length}", loc="left")
    axes.legend(fontsize=8)


def _draw_growing(tables: Mapping[str, Sequence[Row]], axes: Any) -> None:
    """From the first token on: the first word, the first clause, the first sound."""
    marks = {hops.UNTIL_WORD: "v", hops.UNTIL_CLAUSE: "s", UNTIL_SOUND: "o"}
    labels: list[str] = []
    for title, rows in tables.items():
        for length in dict.fromkeys(str(row["text"]) for row in rows):
            place = len(labels)
            labels.append(f"{length}, {title.rpartition(', ')[2]}")
            for (name, mark), colour in zip(marks.items(), COLOURS, strict=False):
                row = next((row for row in rows if (row["text"], row["what"]) == (length, name)), None)
                if row is not None:
                    label = None if place else name.removeprefix(f"{FIRST} → ")
                    axes.plot([row["p50_ms"], row["p90_ms"]], [place] * 2, color=colour, alpha=0.4, linewidth=4)
                    axes.plot(row["p50_ms"], place, mark, color=colour, label=label)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms since the first token (mark: p50, bar: to p90)")
    axes.set_title("token by token, to a listener", loc="left")
    axes.legend(loc="lower right", fontsize=8)


def main() -> int:
    """Read the command line and measure."""
    parser = common.arguments(__doc__, draws=True)
    parser.add_argument("--utterances", type=int, default=80, help="of each length and group (default: %(default)s)")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS), help="of texts (default: all)")
    parser.add_argument("--gap-ms", type=float, default=50, help="mean pause before each (default: %(default)s)")
    parser.add_argument("--token-ms", type=float, default=10, help="between two tokens (default: %(default)s)")
    given = parser.parse_args()
    common.at_least(parser, given, utterances=1, gap_ms=0, token_ms=0)
    return common.run(measure(given))


if __name__ == "__main__":
    sys.exit(main())
