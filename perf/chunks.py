"""From the pieces of work that the dispatcher noted to what each stage did with each chunk, and how much of that was at
once: the arithmetic of `perf.timeline`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ipc.messages import Work
from perf.common import Row

STAGES = ("T3", "S3Gen", "playback")


@dataclass(frozen=True)
class Chunk:
    """What one stage did with one chunk; seconds from the request, ``until_s`` the speech made or heard by its end."""

    stage: str
    worker: str
    number: int
    from_s: float
    to_s: float
    speech_s: float
    until_s: float


ROUNDED_S = 0.002
"""Speech in the timeline is rounded: sums that differ no more are the same."""

Curve = list[tuple[float, float]]
"""Points (time from the request, speech until then), both in seconds and growing."""


# --------------------------------------------------------------------------- from pieces of work to chunks


def chunks_of(stage: str, pieces: Sequence[Work], zero_s: float) -> list[Chunk]:
    """A stage's pieces as chunks, in order and without overlap in one worker.

    What S3Gen reports of a rung after the first part (the ring had no room for all of it) took no work and belongs to
    the chunk before.
    """
    chunks: list[Chunk] = []
    ends: dict[str, float] = {}
    until_s = 0.0
    for one in pieces:
        until_s += one.speech_s
        to_s = one.to_s - zero_s
        if stage == "S3Gen" and one.from_s == one.to_s and chunks:
            chunks[-1] = replace(chunks[-1], speech_s=chunks[-1].speech_s + one.speech_s, until_s=until_s)
            continue
        from_s = min(to_s, max(0.0, one.from_s - zero_s, ends.get(one.worker, 0.0)))
        ends[one.worker] = to_s
        if one.speech_s > 0 or stage != "T3":
            chunks.append(Chunk(stage, one.worker, len(chunks) + 1, from_s, to_s, one.speech_s, until_s))
    return chunks


def heard_curve(pieces: Sequence[Work], zero_s: float) -> Curve:
    """How much had been heard when, by the player's pieces."""
    curve: Curve = []
    until_s = 0.0
    for one in pieces:
        if not curve or one.from_s - zero_s > curve[-1][0]:
            curve.append((one.from_s - zero_s, until_s))
        until_s += one.speech_s
        curve.append((max(one.to_s - zero_s, curve[-1][0]), until_s))
    return curve


def playback_of(rendered: Sequence[Chunk], curve: Curve, worker: str) -> list[Chunk]:
    """When each rendered chunk was heard."""
    chunks = []
    for chunk in rendered if curve else ():
        begins_s, ends_s = (min(at_s, curve[-1][1]) for at_s in (chunk.until_s - chunk.speech_s, chunk.until_s))
        from_s = _when(curve, begins_s)[1]
        to_s = max(from_s, _when(curve, ends_s)[0])
        chunks.append(Chunk("playback", worker, chunk.number, from_s, to_s, ends_s - begins_s, ends_s))
    return chunks


def _when(curve: Curve, speech_s: float) -> tuple[float, float]:
    """When so much had been heard: from when on, and until when (no longer, unless it was silent then)."""
    times, speech = np.array(curve).T
    first = min(int(np.searchsorted(speech, speech_s - ROUNDED_S)), len(speech) - 1)
    last = max(0, int(np.searchsorted(speech, speech_s + ROUNDED_S, side="right")) - 1)
    if last > first:
        return float(times[first]), float(times[last])
    at_s = float(np.interp(speech_s, speech, times))
    return at_s, at_s


# --------------------------------------------------------------------------- overlap


def overlap(chunks: Sequence[Chunk]) -> Row:
    """Total time from the request to the last sound, the sum of what the stages worked, and how much was at once."""
    spans = {stage: _union([(one.from_s, one.to_s) for one in chunks if one.stage == stage]) for stage in STAGES}
    worked = {stage: sum(to - since for since, to in found) for stage, found in spans.items()}
    total_s = max(one.to_s for one in chunks)
    edges = sorted({edge for found in spans.values() for span in found for edge in span})
    at_once_s = 0.0
    for since, to in pairwise(edges):
        at_work = sum(any(a <= since and to <= b for a, b in found) for found in spans.values())
        at_once_s += (to - since) * (at_work >= 2)
    return {
        "total_ms": _ms(total_s),
        "t3_ms": _ms(worked["T3"]),
        "s3gen_ms": _ms(worked["S3Gen"]),
        "playback_ms": _ms(worked["playback"]),
        "sum_of_stages_ms": _ms(sum(worked.values())),
        "saved_by_overlap_ms": _ms(sum(worked.values()) - total_s),
        "total_of_sum_%": round(100 * total_s / max(sum(worked.values()), 1e-9), 2),
        "two_or_more_at_once_%": round(100 * at_once_s / max(total_s, 1e-9), 2),
        "first_sound_ms": _ms(min(one.from_s for one in chunks if one.stage == "playback")),
    }


def _union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for since, to in sorted(spans):
        if joined and since <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], to))
        else:
            joined.append((since, to))
    return joined


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def rows_of(chunks: Sequence[Chunk]) -> list[Row]:
    """One row a chunk and stage."""
    return [
        {
            "stage": one.stage,
            "worker": one.worker,
            "chunk": one.number,
            "from_ms": _ms(one.from_s),
            "to_ms": _ms(one.to_s),
            "speech_ms": _ms(one.speech_s),
            "speech_until_ms": _ms(one.until_s),
        }
        for one in chunks
    ]
