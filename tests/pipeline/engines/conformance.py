"""What every engine must do, whatever it is made of.

A `Subject` is an engine with texts for it; each function in `CHECKS` takes one and asserts one part of
the contract of `pipeline.engines.base`. ``test_conformance.py`` runs them all on its list of subjects.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from ipc.messages import SAMPLE_RATE, Boundary, TokenSample
from pipeline.engines.base import (
    AudioModel,
    AudioStep,
    Engine,
    EngineConfig,
    EngineError,
    Samples,
    Segment,
    Settings,
    TokenModel,
    TokenStep,
    check_settings,
)

MOST_CHECKPOINT_BYTES = 200_000
_RUNG_TOKENS = (7, 12, 25)


@dataclass(frozen=True)
class Subject:
    """An engine to judge. ``texts`` should make several steps each and differ in length; ``voices``
    are (voice, language) as a request may name them."""

    name: str
    engine: Engine
    texts: tuple[str, ...]
    voices: tuple[tuple[str, str], ...] = (("", ""),)
    config: EngineConfig = field(default_factory=lambda: EngineConfig(max_batch=8))

    def segments(self, tokens: TokenModel) -> list[Segment]:
        """One segment for each text, voices, boundaries, seeds and speeds taken in turn."""
        boundaries: tuple[Boundary, ...] = ("sentence", "end", "clause", "paragraph")
        made = []
        for index, text in enumerate(self.texts):
            voice, language = self.engine.resolve(tokens.facts, *self.voices[index % len(self.voices)])
            speed = (1.0, 1.5)[index % 2]
            made.append(Segment(text, boundaries[index % 4], voice, language, speed, 7 + index, {}))
        return made


@dataclass(frozen=True)
class Made:
    """A segment through both halves."""

    steps: list[TokenStep]
    rungs: list[AudioStep]

    @property
    def samples(self) -> Samples:
        return joined(self.rungs)

    @property
    def times(self) -> list[TokenSample]:
        return [time for rung in self.rungs for time in rung.token_samples]


def joined(rungs: Sequence[AudioStep]) -> Samples:
    return np.concatenate([rung.samples for rung in rungs]) if rungs else np.zeros(0, np.float32)


@contextmanager
def halves(subject: Subject) -> Iterator[tuple[TokenModel, AudioModel]]:
    reports: list[tuple[str, float]] = []

    def report(doing: str, deadline_s: float) -> None:
        reports.append((doing, deadline_s))

    tokens = subject.engine.tokens(subject.config, report)
    audio = subject.engine.audio(subject.config, report)
    assert reports, "loading must be reported"
    assert all(doing and deadline_s > 0 for doing, deadline_s in reports)
    try:
        yield tokens, audio
    finally:
        tokens.close()
        audio.close()


def translate(
    tokens: TokenModel, segment: Segment, stream: int = 1, history: bytes = b"", history_tokens: int = 0
) -> list[TokenStep]:
    tokens.admit(stream, segment, history, history_tokens)
    made: list[TokenStep] = []
    while not (made and made[-1].final):
        steps = tokens.step()
        assert len(steps) == 1, f"one admitted stream made {len(steps)} steps"
        assert isinstance(steps[0], TokenStep), steps[0]
        assert steps[0].stream == stream
        made.append(steps[0])
    return made


def cuts_of(audio: AudioModel, steps: Sequence[TokenStep]) -> list[int]:
    """Where rungs end: at the ends of pieces, or on a ladder, whatever the pieces were."""
    ends = list(itertools.accumulate(step.tokens for step in steps))
    if not audio.facts.ladder:
        return sorted({end for end in ends if end}) or [0]
    ladder = itertools.accumulate(itertools.chain(_RUNG_TOKENS, itertools.repeat(_RUNG_TOKENS[-1])))
    return [*itertools.takewhile(lambda cut: cut < ends[-1], ladder), ends[-1]]


def render(
    audio: AudioModel,
    segment: Segment,
    steps: Sequence[TokenStep],
    stream: int = 1,
    checkpoint: bytes = b"",
    done_tokens: int = 0,
) -> list[AudioStep]:
    """Feed all, then render rung by rung from ``done_tokens`` on."""
    audio.open(stream, _without_text(segment), checkpoint)
    for step in steps:
        audio.feed(stream, step.tokens, step.data, step.final)
    cuts = cuts_of(audio, steps)
    rungs = [_rendered(audio, stream, cut) for cut in cuts if cut > done_tokens or cut == cuts[-1]]
    audio.close_stream(stream)
    return rungs


def _without_text(segment: Segment) -> Segment:
    return Segment("", segment.boundary, segment.voice, segment.language, segment.speed, segment.seed, segment.settings)


def _rendered(audio: AudioModel, stream: int, upto: int) -> AudioStep:
    (rung,) = audio.render([(stream, upto)])
    assert isinstance(rung, AudioStep), rung
    assert (rung.stream, rung.done_tokens) == (stream, upto)
    return rung


def make(tokens: TokenModel, audio: AudioModel, segment: Segment) -> Made:
    steps = translate(tokens, segment)
    return Made(steps, render(audio, segment, steps))


def told(steps: Sequence[TokenStep]) -> tuple[object, ...]:
    """What steps say, however they are cut."""
    spans = tuple(span for step in steps for span in step.alignment)
    return sum(step.tokens for step in steps), b"".join(step.data for step in steps), spans


# --------------------------------------------------------------------------- the checks


def facts_are_sane(subject: Subject) -> None:
    with halves(subject) as (tokens, audio):
        one, other = tokens.facts, audio.facts
        assert one.engine == other.engine == subject.engine.name
        assert subject.engine.missing(subject.config) == ""
        assert one.default_voice in {voice.id for voice in one.voices}
        assert len({voice.id for voice in one.voices}) == len(one.voices)
        assert {voice.language for voice in one.voices} <= set(one.languages)
        assert 1 <= one.shortest_chars <= one.longest_chars
        assert one.seconds_per_char > 0
        assert one.longest_chunk_s > 0
        assert one.sentence_pause_ms >= 0
        assert min(one.max_batch, other.max_batch) >= 1
        assert other.lookahead_tokens >= 0
        assert other.seconds_per_token > 0
        defaults: Settings = {setting.name: setting.default for setting in one.settings}
        check_settings(one, defaults)
        for facts in (one, other):
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=type(facts)) == facts


def steps_end_with_one_final(subject: Subject) -> None:
    with halves(subject) as (tokens, audio):
        for segment in subject.segments(tokens):
            made = make(tokens, audio, segment)
            assert [step.final for step in made.steps] == [False] * (len(made.steps) - 1) + [True]
            assert [rung.final for rung in made.rungs] == [False] * (len(made.rungs) - 1) + [True]
            assert all(step.tokens >= 0 and step.seconds >= 0 for step in made.steps)
            assert all(step.seconds <= tokens.facts.longest_chunk_s * 4 for step in made.steps)
            assert sum(step.tokens for step in made.steps) > 0
            assert tokens.step() == [], "a final step releases its stream"


def samples_are_sound(subject: Subject) -> None:
    with halves(subject) as (tokens, audio):
        for segment in subject.segments(tokens):
            made = make(tokens, audio, segment)
            assert all(rung.samples.dtype == np.float32 and rung.samples.ndim == 1 for rung in made.rungs)
            assert np.isfinite(made.samples).all()
            assert np.abs(made.samples).max() <= 1.0
            assert np.abs(made.samples).max() > 0.01, "silence"
            seconds = sum(step.seconds for step in made.steps)
            assert seconds == pytest.approx(len(made.samples) / SAMPLE_RATE, rel=0.5, abs=0.2)
            assert all(len(rung.checkpoint) <= MOST_CHECKPOINT_BYTES for rung in made.rungs)


def token_times_grow_and_lie_inside(subject: Subject) -> None:
    with halves(subject) as (tokens, audio):
        for segment in subject.segments(tokens):
            made = make(tokens, audio, segment)
            total = sum(step.tokens for step in made.steps)
            numbers = [time.token for time in made.times]
            assert numbers == sorted(set(numbers))
            assert all(0 <= number < total for number in numbers)
            places = [time.sample for time in made.times]
            assert places == sorted(places)
            assert all(0 <= place <= len(made.samples) for place in places)
            first = 0
            for rung in made.rungs:
                assert all(first <= time.token < rung.done_tokens for time in rung.token_samples)
                first = rung.done_tokens


def alignment_lies_inside_the_text(subject: Subject) -> None:
    with halves(subject) as (tokens, _):
        for segment in subject.segments(tokens):
            steps = translate(tokens, segment)
            spans = [span for step in steps for span in step.alignment]
            firsts = [span.first_token for span in spans]
            assert firsts == sorted(set(firsts))
            assert all(0 <= first < sum(step.tokens for step in steps) for first in firsts)
            assert all(0 <= span.first_char < span.last_char <= len(segment.text) for span in spans)
            begins = [span.first_char for span in spans if span.exact]
            assert begins == sorted(begins)
            made = 0
            for step in steps:
                assert all(made <= span.first_token < made + step.tokens for span in step.alignment)
                made += step.tokens


def fresh_models_repeat_bit_for_bit(subject: Subject) -> None:
    with halves(subject) as (tokens, audio), halves(subject) as (tokens_again, audio_again):
        segments = subject.segments(tokens)
        there = {index: make(tokens_again, audio_again, segments[index]) for index in reversed(range(len(segments)))}
        for index, segment in enumerate(segments):
            here = make(tokens, audio, segment)
            assert here.steps == there[index].steps
            assert np.array_equal(here.samples, there[index].samples)
            assert [rung.checkpoint for rung in here.rungs] == [rung.checkpoint for rung in there[index].rungs]


def tokens_go_on_after_any_history(subject: Subject) -> None:
    with halves(subject) as (tokens, _), halves(subject) as (successor, _):
        for segment in subject.segments(tokens):
            steps = translate(tokens, segment)
            assert len(steps) > 1, f"the text is too short to be resumed: {segment.text!r}"
            for made in range(1, len(steps)):
                count, data, _ = told(steps[:made])
                assert isinstance(count, int)
                assert isinstance(data, bytes)
                rest = translate(successor, segment, 50 + made, data, count)
                assert told(rest) == told(steps[made:]), f"after {made} of {len(steps)} steps"


def audio_goes_on_from_any_checkpoint(subject: Subject) -> None:
    with halves(subject) as (tokens, audio), halves(subject) as (_, successor):
        for segment in subject.segments(tokens):
            made = make(tokens, audio, segment)
            assert len(made.rungs) > 1, f"the text is too short to be resumed: {segment.text!r}"
            for index, rung in enumerate(made.rungs[:-1]):
                rest = render(successor, segment, made.steps, 70, rung.checkpoint, rung.done_tokens)
                expected = made.rungs[index + 1 :]
                assert np.array_equal(joined(rest), joined(expected)), f"after rung {index}"
                assert [one.token_samples for one in rest] == [one.token_samples for one in expected]
                assert [one.checkpoint for one in rest] == [one.checkpoint for one in expected]


def early_and_late_feeding_sound_the_same(subject: Subject) -> None:
    """Each rung as soon as its tokens and the lookahead are there."""
    with halves(subject) as (tokens, audio):
        for segment in subject.segments(tokens):
            made = make(tokens, audio, segment)
            audio.open(9, _without_text(segment))
            cuts, fed, rungs = cuts_of(audio, made.steps), 0, []
            for step in made.steps:
                audio.feed(9, step.tokens, step.data, step.final)
                fed += step.tokens
                while cuts and (step.final or fed >= cuts[0] + audio.facts.lookahead_tokens) and fed >= cuts[0]:
                    rungs.append(_rendered(audio, 9, cuts.pop(0)))
            if not rungs[-1].final:  # the end came with no token: what was held back
                rungs.append(_rendered(audio, 9, fed))
            audio.close_stream(9)
            assert np.array_equal(joined(rungs), made.samples)


def many_streams_together_equal_each_alone(subject: Subject) -> None:
    with halves(subject) as (tokens, audio):
        segments = dict(enumerate(subject.segments(tokens), start=1))
        alone = {number: make(tokens, audio, segment) for number, segment in segments.items()}
        together = _translated_together(tokens, segments)
        for number, steps in together.items():
            assert told(steps) == told(alone[number].steps)
        rungs = _rendered_together(audio, segments, together)
        for number, made in alone.items():
            assert np.array_equal(joined(rungs[number]), made.samples), f"stream {number}"


def _translated_together(tokens: TokenModel, segments: dict[int, Segment]) -> dict[int, list[TokenStep]]:
    made: dict[int, list[TokenStep]] = {number: [] for number in segments}
    waiting, running = list(segments), 0
    while waiting or running:
        while waiting and running < tokens.facts.max_batch:
            number = waiting.pop(0)
            tokens.admit(number, segments[number])
            running += 1
        for step in tokens.step():
            assert isinstance(step, TokenStep), step
            made[step.stream].append(step)
            running -= step.final
    return made


def _rendered_together(
    audio: AudioModel, segments: dict[int, Segment], steps: dict[int, list[TokenStep]]
) -> dict[int, list[AudioStep]]:
    cuts: dict[int, list[int]] = {}
    for number, segment in segments.items():
        audio.open(number, _without_text(segment))
        for step in steps[number]:
            audio.feed(number, step.tokens, step.data, step.final)
        cuts[number] = cuts_of(audio, steps[number])
    rungs: dict[int, list[AudioStep]] = {number: [] for number in segments}
    while any(cuts.values()):
        jobs = [(number, left.pop(0)) for number, left in cuts.items() if left][: audio.facts.max_batch]
        made = audio.render(jobs)
        assert sorted(step.stream for step in made) == sorted(number for number, _ in jobs)
        for rung in made:
            assert isinstance(rung, AudioStep), rung
            rungs[rung.stream].append(rung)
    for number in segments:
        audio.close_stream(number)
    return rungs


def a_paused_stream_waits_and_then_makes_the_same(subject: Subject) -> None:
    with halves(subject) as (tokens, _):
        segment, other = subject.segments(tokens)[:2]
        alone, other_alone = translate(tokens, segment), translate(tokens, other)
        tokens.admit(1, segment)
        tokens.admit(2, other)
        made: dict[int, list[TokenStep]] = {1: [], 2: []}
        for step in tokens.step():
            assert isinstance(step, TokenStep)
            made[step.stream].append(step)
        tokens.pause(1)
        while steps := tokens.step():
            assert [step.stream for step in steps] == [2]
            made[2] += [step for step in steps if isinstance(step, TokenStep)]
        tokens.resume(1)
        while steps := tokens.step():
            made[1] += [step for step in steps if isinstance(step, TokenStep)]
        assert told(made[1]) == told(alone)
        assert told(made[2]) == told(other_alone)
        tokens.pause(404)
        tokens.resume(404)


def released_streams_are_gone_and_their_place_is_free(subject: Subject) -> None:
    with halves(subject) as (tokens, audio):
        segment = subject.segments(tokens)[0]
        alone = make(tokens, audio, segment)
        for number in range(100, 100 + 3 * tokens.facts.max_batch):
            tokens.admit(number, segment)
            tokens.step()
            tokens.release(number)
            assert tokens.step() == []
        for number in range(100, 100 + 3 * audio.facts.max_batch):
            audio.open(number, _without_text(segment))
            audio.feed(number, alone.steps[0].tokens, alone.steps[0].data, alone.steps[0].final)
            audio.close_stream(number)
        tokens.release(404)
        audio.close_stream(404)
        again = make(tokens, audio, segment)
        assert told(again.steps) == told(alone.steps)
        assert np.array_equal(again.samples, alone.samples)


def what_does_not_exist_is_refused_and_others_go_on(subject: Subject) -> None:
    with halves(subject) as (tokens, audio):
        for voice, language in (("no such voice", ""), ("", "xx-nowhere")):
            with pytest.raises(EngineError):
                subject.engine.resolve(tokens.facts, voice, language)
        segment = subject.segments(tokens)[0]
        alone = make(tokens, audio, segment)
        tokens.admit(1, segment)
        wrong = [
            Segment(segment.text, "end", "no such voice", segment.language, 1.0, 1, {}),
            Segment(segment.text, "end", segment.voice, "xx-nowhere", 1.0, 1, {}),
            Segment(segment.text, "end", segment.voice, segment.language, 1.0, 1, {"no_such_setting": 1}),
        ]
        for number, one in enumerate(wrong, start=2):
            with pytest.raises(EngineError) as raised:
                tokens.admit(number, one)
            assert "no" in str(raised.value)
            tokens.release(number)
        made: list[TokenStep] = []
        while steps := tokens.step():
            made += [step for step in steps if isinstance(step, TokenStep)]
        assert told(made) == told(alone.steps)


CHECKS: tuple[Callable[[Subject], None], ...] = (
    facts_are_sane,
    steps_end_with_one_final,
    samples_are_sound,
    token_times_grow_and_lie_inside,
    alignment_lies_inside_the_text,
    fresh_models_repeat_bit_for_bit,
    tokens_go_on_after_any_history,
    audio_goes_on_from_any_checkpoint,
    early_and_late_feeding_sound_the_same,
    many_streams_together_equal_each_alone,
    a_paused_stream_waits_and_then_makes_the_same,
    released_streams_are_gone_and_their_place_is_free,
    what_does_not_exist_is_refused_and_others_go_on,
)
