"""Our two halves of Chatterbox in this process, by turns, as the pipeline drives them: tokens up to the next rung and
its lookahead, then that rung's sound."""

from __future__ import annotations

from collections.abc import Sequence

from perf.chatterbox_stock import Packet, now_s
from perf.common import PerfError
from pipeline.config import Flow
from pipeline.credit import ladder, next_cut
from pipeline.engines.base import AudioModel, AudioStep, Segment, TokenModel, TokenStep

DEFAULT_RUNGS = ladder(Flow().first_chunk_tokens, Flow().chunk_tokens, 0.0)
"""What a pipeline begins with that knows nothing of its speed yet."""


def stepped(tokens: TokenModel) -> list[TokenStep]:
    """One step; raises `PerfError` when a stream breaks."""
    made = []
    for step in tokens.step():
        if not isinstance(step, TokenStep):
            raise PerfError(f"T3 gave up a stream: {step.reason}")
        made.append(step)
    return made


def packets(
    tokens: TokenModel, audio: AudioModel, segment: Segment, most_tokens: int, rungs: Sequence[int] = DEFAULT_RUNGS
) -> list[Packet]:
    """The pieces of sound of ``most_tokens`` tokens, timed from the request."""
    began_s = now_s()
    made: list[Packet] = []
    tokens.admit(0, segment)
    audio.open(0, segment)
    fed = done = 0
    while done < most_tokens:
        cut = min(next_cut(rungs, done), most_tokens)
        while fed < min(cut + audio.facts.lookahead_tokens, most_tokens):
            for step in stepped(tokens):
                fed += step.tokens
                audio.feed(0, step.tokens, step.data, fed >= most_tokens)
        # A step may bring more tokens than are wanted; the end of the stream is then a little later.
        cut = fed if fed >= most_tokens and cut >= most_tokens else cut
        (rung,) = audio.render([(0, cut)])
        if not isinstance(rung, AudioStep):
            raise PerfError(f"S3Gen gave up a stream: {rung.reason}")
        done = cut
        if len(rung.samples):
            made.append(Packet(now_s() - began_s, len(rung.samples)))
    tokens.release(0)
    audio.close_stream(0)
    return made


def rate(tokens: TokenModel, segments: Sequence[Segment], steps: int, most_s: float = 60.0) -> tuple[float, float]:
    """Tokens a second of so many streams at once, without their prefill, and the seconds until each had its first.

    Measured over about ``steps`` tokens of each stream.
    """
    began_s = now_s()
    for number, segment in enumerate(segments):
        tokens.admit(number, segment)
    sounding: set[int] = set()
    while len(sounding) < len(segments):
        sounding |= {step.stream for step in stepped(tokens) if step.tokens}
    first_s = now_s() - began_s
    count, ended = 0, False
    began_s = now_s()
    while count < steps * len(segments) and not ended and now_s() - began_s < most_s:
        made = stepped(tokens)
        count += sum(step.tokens for step in made)
        ended = any(step.final for step in made)
    taken_s = now_s() - began_s
    for number in range(len(segments)):
        tokens.release(number)
    return count / taken_s, first_s
