"""The audio half: streams of tokens to sound without a seam, from any checkpoint, in any company."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

pytest.importorskip("chatterbox")

import numpy as np
import torch

from pipeline.engines.base import AudioStep, EngineError, StreamError
from pipeline.engines.chatterbox import sounding
from pipeline.engines.chatterbox.continuity import METHODS
from pipeline.engines.chatterbox.variants import CHATTERBOX, MULTILINGUAL_V3, TURBO, Variant
from tests.pipeline.engines.chatterbox.s3gen_tools import (
    SEED,
    audio_half,
    joined,
    ladder,
    our_noise,
    rendered,
    segment,
    small,
    speech,
    stock_voice,
)

pytestmark = pytest.mark.chatterbox

RUNGS = (7, 12, 25)
MOST_CHECKPOINT_BYTES = 150_000


@pytest.mark.parametrize("variant", [CHATTERBOX, TURBO], ids=lambda variant: variant.name)
def test_one_chunk_is_what_the_stock_package_makes(variant: Variant) -> None:
    audio, tokens, s3gen = audio_half(variant), speech(30), small(variant)
    audio.open(1, segment())
    audio.feed(1, 30, tokens.tobytes(), True)
    job = audio._streams[1].work(30).flow_job(torch.device("cpu"))
    noise = audio._flow.noise([job], job.frames)
    (step,) = audio.render([(1, 30)])
    own = torch.from_numpy(tokens.astype(np.int64))[None]
    with our_noise(s3gen, noise):
        stock, _ = s3gen.inference(own, ref_dict=stock_voice(variant))
    assert isinstance(step, AudioStep)
    assert step.final
    assert stock.std() > 0.01
    np.testing.assert_allclose(step.samples, stock[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_token_is_40_ms_of_sound_whatever_the_cuts(method: str) -> None:
    audio = audio_half(TURBO, continuity=method)
    for tokens, rungs in ((61, RUNGS), (31, (3, 1, 2)), (5, (4,)), (1, (7,))):
        steps = rendered(audio, speech(tokens), ladder(tokens, rungs))
        sound = joined(steps)
        assert len(sound) == tokens * 960
        assert np.isfinite(sound).all()
        assert np.abs(sound).max() <= 1
        assert [step.final for step in steps] == [False] * (len(steps) - 1) + [True]
        places = [(place.token, place.sample) for step in steps for place in step.token_samples]
        assert places == [(token, token * 960) for token in range(tokens)]


def test_a_first_rung_sounds_all_but_what_is_held_back() -> None:
    steps = rendered(audio_half(TURBO), speech(40), [7, 19, 40])
    assert [len(step.samples) for step in steps] == [(14 - 10) * 480, (38 - 14) * 480, (80 - 28) * 480]


@pytest.mark.parametrize("method", METHODS)
def test_killed_after_any_rung_the_sound_goes_on_the_same(method: str) -> None:
    tokens, cuts = speech(64), ladder(64, RUNGS)
    audio, successor = audio_half(TURBO, continuity=method), audio_half(TURBO, continuity=method)
    steps = rendered(audio, tokens, cuts)
    for index, step in enumerate(steps[:-1]):
        assert len(step.checkpoint) <= MOST_CHECKPOINT_BYTES
        rest = rendered(successor, tokens, cuts[index + 1 :], checkpoint=step.checkpoint, stream=9)
        np.testing.assert_array_equal(joined(rest), joined(steps[index + 1 :]))
        assert [one.checkpoint for one in rest] == [one.checkpoint for one in steps[index + 1 :]]
        assert [one.token_samples for one in rest] == [one.token_samples for one in steps[index + 1 :]]


def test_a_finished_stream_goes_on_to_nothing() -> None:
    tokens = speech(20)
    audio = audio_half(TURBO)
    steps = rendered(audio, tokens, [12, 20])
    (rest,) = rendered(audio, tokens, [20], checkpoint=steps[-1].checkpoint)
    assert len(rest.samples) == 0
    assert rest.final
    assert rest.checkpoint == steps[-1].checkpoint


def test_pieces_and_their_times_change_nothing() -> None:
    audio, tokens = audio_half(TURBO), speech(50)
    late = joined(rendered(audio, tokens, [7, 19, 44, 50]))
    audio.open(2, segment())
    parts = []
    for first, last, cuts in ((0, 10, [7]), (10, 22, [19]), (22, 47, [44]), (47, 50, [50])):
        audio.feed(2, last - first, tokens[first:last].tobytes(), last == 50)
        for cut in cuts:
            (step,) = audio.render([(2, cut)])
            assert isinstance(step, AudioStep)
            parts.append(step.samples)
    np.testing.assert_array_equal(np.concatenate(parts), late)


def test_the_end_may_come_with_no_token_and_when_all_is_rendered() -> None:
    audio, tokens = audio_half(TURBO), speech(25)
    audio.open(1, segment())
    audio.feed(1, 25, tokens.tobytes(), False)
    (first,) = audio.render([(1, 22)])
    audio.feed(1, 0, b"", True)
    (second,) = audio.render([(1, 25)])
    assert isinstance(first, AudioStep)
    assert isinstance(second, AudioStep)
    assert len(first.samples) + len(second.samples) == 25 * 960
    audio.open(2, segment())
    audio.feed(2, 0, b"", True)
    (nothing,) = audio.render([(2, 0)])
    assert isinstance(nothing, AudioStep)
    assert nothing.final
    assert len(nothing.samples) == 0


@pytest.mark.parametrize("variant", [CHATTERBOX, TURBO], ids=lambda variant: variant.name)
def test_a_stream_sounds_the_same_in_company_as_alone(variant: Variant) -> None:
    """Different voices, lengths and progress, padded into the same buckets: matrix sizes are all that differs."""
    together, alone = audio_half(variant, rows_at_once=4), audio_half(variant)
    together._flow.bucket_tokens, together._hift.bucket_frames = 32, 16
    alone._flow.bucket_tokens, alone._hift.bucket_frames = 32, 16
    asked = {1: segment(seed=1), 2: segment("bert", seed=2), 3: segment(seed=3)}
    speeches = {stream: speech(40 + stream, stream) for stream in asked}
    expected = {stream: rendered(alone, speeches[stream], [19, 30, 40 + stream], asked[stream]) for stream in asked}
    for stream, one in asked.items():
        together.open(stream, one)
        together.feed(stream, len(speeches[stream]), speeches[stream].tobytes(), True)
    rows: list[int] = []
    mels = together._flow.mels
    together._flow.mels = lambda jobs: (rows.append(len(jobs)), mels(jobs))[1]  # type: ignore[func-returns-value]
    for index in range(3):
        steps = together.render([(stream, (19, 30, 40 + stream)[index]) for stream in asked])
        for step in steps:
            assert isinstance(step, AudioStep)
            np.testing.assert_allclose(step.samples, expected[step.stream][index].samples, atol=1e-5)
    assert max(rows) >= 2, "nothing went through together"


def test_a_stream_on_a_cpu_is_bit_for_bit_its_own_whatever_is_rendered_with_it() -> None:
    audio, tokens = audio_half(TURBO), speech(30)
    alone = rendered(audio, tokens, [30])
    for stream in (1, 2, 3):
        audio.open(stream, segment(seed=SEED if stream == 2 else stream))
        audio.feed(stream, 30, tokens.tobytes(), True)
    steps = audio.render([(3, 30), (2, 30), (1, 20)])
    assert [step.stream for step in steps] == [3, 2, 1]
    assert isinstance(steps[1], AudioStep)
    np.testing.assert_array_equal(steps[1].samples, alone[0].samples)


def test_each_chunk_costs_the_same_and_the_state_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths of everything that is computed, from the fifth chunk to the hundredth; perf.continuity measures time."""
    audio, chunk = audio_half(TURBO), 3
    shapes: list[tuple[Any, ...]] = []
    mels, sounds = audio._flow.mels, audio._hift.sounds
    monkeypatch.setattr(audio._flow, "mels", lambda jobs: (shapes.append(audio._flow.key(jobs[0])), mels(jobs))[1])
    monkeypatch.setattr(audio._hift, "sounds", lambda jobs: (shapes.append(audio._hift.key(jobs[0])), sounds(jobs))[1])
    audio.open(1, segment(cfm_steps=1))
    sizes, costs = set(), set()
    for number in range(100):
        audio.feed(1, chunk, speech(chunk, number).tobytes(), False)
        if number < 2:
            continue
        shapes.clear()
        (step,) = audio.render([(1, (number - 1) * chunk)])
        assert isinstance(step, AudioStep)
        if number > 15:  # the context of 25 tokens is full
            sizes.add(len(step.checkpoint))
            costs.add(tuple(shapes))
            assert len(audio._streams[1].tokens) <= 25 + 3 * chunk
    assert len(sizes) == 1
    assert len(costs) == 1


@pytest.mark.parametrize("method", METHODS)
def test_given_the_same_frames_every_ladder_sounds_as_one_shot(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase, a place or a fade that is wrong at any join would be far off."""
    audio, tokens = audio_half(TURBO, continuity=method), speech(60)
    knots = torch.randn(1, 80, 22, generator=torch.Generator().manual_seed(2))
    mel = torch.nn.functional.interpolate(knots, 126, mode="linear")[0]

    def frames(jobs: Any) -> Any:
        lengths = [(job.prompt_frames, job.first_frame, job.frames) for job in jobs]
        return [torch.cat([mel[:, :one], mel[:, first : first + every - one]], 1) for one, first, every in lengths]

    monkeypatch.setattr(audio._flow, "mels", frames)
    whole = joined(rendered(audio, tokens, [60]))
    assert whole.std() > 0.01
    for rungs in ((7, 12, 25), (10,), (13, 4, 9), (2,)):
        sound = joined(rendered(audio, tokens, ladder(60, rungs)))
        np.testing.assert_allclose(sound, whole, atol=1e-4)


def test_joins_do_not_stand_out_on_any_ladder() -> None:
    audio, tokens = audio_half(CHATTERBOX), speech(60)
    for rungs in ((7, 12, 25), (13, 4, 9)):
        steps = rendered(audio, tokens, ladder(60, rungs), segment(cfm_steps=3))
        sound = joined(steps)
        jumps = np.abs(np.diff(sound))
        joins = np.cumsum([len(step.samples) for step in steps])[:-1]
        around = np.concatenate([jumps[join - 3 : join + 2] for join in joins])
        assert around.max() <= np.quantile(jumps, 0.9999)
        assert np.quantile(jumps, 0.9) > 1e-3


def test_a_setting_of_no_steps_means_the_configured_ones() -> None:
    audio, tokens = audio_half(CHATTERBOX, cfm_steps=2), speech(10)
    asked = segment(), segment(cfm_steps=0), segment(cfm_steps=3)
    configured, none, three = (joined(rendered(audio, tokens, [10], one)) for one in asked)
    np.testing.assert_array_equal(configured, none)
    assert np.abs(configured - three).max() > 1e-4


def test_a_stream_begins_in_silence_and_only_there() -> None:
    sound = joined(rendered(audio_half(TURBO), speech(40), ladder(40, RUNGS)))
    assert not sound[:480].any()
    assert np.abs(sound[480:600]).max() < np.abs(sound[960:]).max() / 10
    assert all(np.abs(sound[at : at + 480]).max() > 1e-3 for at in range(960, len(sound) - 480, 480))


def test_the_seed_changes_the_sound_and_nothing_else_does() -> None:
    audio, tokens = audio_half(TURBO), speech(20)
    one, same, other = (joined(rendered(audio, tokens, [20], segment(seed=seed))) for seed in (1, 1, 2**40 + 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_the_last_token_of_v3_is_not_heard() -> None:
    sound = joined(rendered(audio_half(CHATTERBOX), speech(25), [12, 25], segment(cfm_steps=1)))
    cut = joined(rendered(audio_half(MULTILINGUAL_V3), speech(25), [12, 25], segment(cfm_steps=1)))
    assert len(cut) == 24 * 960
    np.testing.assert_array_equal(cut, sound[: 24 * 960])


class _Doubler:
    """Each sample twice, three samples late: a post-processor with a state, a delay and a scale."""

    scale = 2.0

    def __init__(self, state: bytes) -> None:
        self._late = np.frombuffer(state, np.float32) if state else np.zeros(0, np.float32)

    def process(self, samples: Any, final: bool) -> Any:
        waiting = np.concatenate([self._late, samples])
        count = len(waiting) if final else max(0, len(waiting) - 3)
        self._late = waiting[count:]
        return np.repeat(waiting[:count], 2)

    def state(self) -> bytes:
        return self._late.tobytes()


def test_post_processors_see_the_sound_in_order_and_their_state_is_in_the_checkpoint() -> None:
    tokens, cuts = speech(40), ladder(40, RUNGS)
    plain = joined(rendered(audio_half(TURBO), tokens, cuts))
    audio = audio_half(TURBO, posts=lambda segment: [_Doubler] if segment.settings.get("twice") else [])
    steps = rendered(audio, tokens, cuts, segment(twice=True))
    np.testing.assert_array_equal(joined(steps), np.repeat(plain, 2))
    assert [place.sample for step in steps for place in step.token_samples] == [1920 * token for token in range(40)]
    rest = rendered(audio, tokens, cuts[2:], segment(twice=True), checkpoint=steps[1].checkpoint)
    np.testing.assert_array_equal(joined(rest), joined(steps[2:]))
    np.testing.assert_array_equal(joined(rendered(audio, tokens, cuts)), plain)


def test_what_is_no_speech_is_refused_and_the_others_go_on() -> None:
    audio = audio_half(TURBO)
    with pytest.raises(EngineError, match="voice: 'nobody'"):
        audio.open(1, segment("nobody"))
    audio.open(1, segment())
    audio.open(2, segment())
    with pytest.raises(EngineError, match="0 in 2 bytes, 1 were announced"):
        audio.feed(1, 1, np.array([6561], "<u2").tobytes(), False)
    with pytest.raises(EngineError, match="3 bytes are no whole number"):
        audio.feed(1, 1, b"abc", False)
    audio.close_stream(1)
    audio.close_stream(404)
    audio.feed(2, 8, speech(8).tobytes(), True)
    (step,) = audio.render([(2, 8)])
    assert isinstance(step, AudioStep)
    assert len(step.samples) == 8 * 960


def test_ids_that_are_no_sound_are_passed_over() -> None:
    audio, tokens = audio_half(TURBO), speech(8)
    audio.open(1, segment())
    audio.feed(1, 8, np.concatenate([tokens[:3], [6562, 8000], tokens[3:]]).astype("<u2").tobytes(), True)
    (step,) = audio.render([(1, 8)])
    assert isinstance(step, AudioStep)
    np.testing.assert_array_equal(step.samples, joined(rendered(audio, tokens, [8], stream=2)))


def test_callers_mistakes_are_told() -> None:
    audio = audio_half(TURBO, max_batch=1)
    audio.open(1, segment())
    with pytest.raises(RuntimeError, match="already open"):
        audio.open(1, segment())
    audio.feed(1, 10, speech(10).tobytes(), False)
    with pytest.raises(RuntimeError, match="asked for token 8, done 0, fed 10, lookahead 3"):
        audio.render([(1, 8)])
    with pytest.raises(RuntimeError, match="at most 1"):
        audio.render([(1, 7), (1, 7)])
    audio.feed(1, 0, b"", True)
    with pytest.raises(RuntimeError, match="after the final"):
        audio.feed(1, 1, speech(1).tobytes(), False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"continuity": "magic"}, "continuity: 'magic' is not one of context, overlap, recompute, masked"),
        ({"context_tokens": 0}, "context_tokens: 0 is not between 1 and 200"),
        ({"cfm_steps": 0}, "cfm_steps: 0 is not between 1 and 50"),
        ({"prompt_s": 0.5}, "prompt_s: 0.5 is not between 1 and 30"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(EngineError, match=complaint):
        audio_half(TURBO, **options)


def test_checkpoints_of_other_requests_are_refused() -> None:
    tokens = speech(30)
    audio = audio_half(TURBO)
    checkpoint = rendered(audio, tokens, [12, 30])[0].checkpoint
    for other in (segment("bert"), segment(seed=1), segment(cfm_steps=3)):
        with pytest.raises(EngineError, match="belongs to another"):
            audio.open(5, other, checkpoint)
    with pytest.raises(EngineError, match="belongs to another"):
        audio_half(TURBO, continuity="overlap").open(5, segment(), checkpoint)
    audio.open(5, segment(), checkpoint)


def test_without_memory_for_all_at_once_fewer_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = audio_half(TURBO, rows_at_once=4)
    expected = {seed: joined(rendered(audio, speech(12), [12], segment(seed=seed))) for seed in (1, 2, 3, 4)}
    mels, rows = audio._flow.mels, []

    def scarce(jobs: Any) -> Any:
        rows.append(len(jobs))
        if len(jobs) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return mels(jobs)

    monkeypatch.setattr(audio._flow, "mels", scarce)
    for seed in expected:
        audio.open(seed, segment(seed=seed))
        audio.feed(seed, 12, speech(12).tobytes(), True)
    steps = audio.render([(seed, 12) for seed in expected])
    assert rows == [4, 2, 1, 1, 1, 1]
    for step in steps:
        assert isinstance(step, AudioStep)
        np.testing.assert_allclose(step.samples, expected[step.stream], atol=1e-5)


def test_a_stream_for_which_there_is_no_memory_breaks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = audio_half(TURBO)
    mels = audio._flow.mels

    def scarce(jobs: Any) -> Any:
        if any(job.frames > 160 for job in jobs):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return mels(jobs)

    monkeypatch.setattr(audio._flow, "mels", scarce)
    for stream, count in ((1, 60), (2, 12)):
        audio.open(stream, segment())
        audio.feed(stream, count, speech(count).tobytes(), True)
    broken, well = audio.render([(1, 60), (2, 12)])
    assert isinstance(broken, StreamError)
    assert "memory" in broken.reason
    assert isinstance(well, AudioStep)
    assert len(well.samples) == 12 * 960


def test_an_error_that_sticks_to_the_process_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = audio_half(TURBO)

    def broken(jobs: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(audio._flow, "mels", broken)
    audio.open(1, segment())
    audio.feed(1, 12, speech(12).tobytes(), True)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        audio.render([(1, 12)])


def test_closed_streams_leave_nothing() -> None:
    audio = audio_half(TURBO)
    gone = []
    for stream in range(5):
        audio.open(stream, segment())
        audio.feed(stream, 12, speech(12).tobytes(), False)
        gone.append(weakref.ref(audio._streams[stream]))
        audio.close_stream(stream)
    gc.collect()
    assert [one() for one in gone] == [None] * 5
    audio.open(9, segment())
    audio.close()
    assert not audio._streams
    assert len(audio._references) == 0


def test_a_fade_goes_from_one_sound_to_the_other() -> None:
    tail, sound = np.zeros(240, np.float32), np.ones(480, np.float32)
    faded = sounding._joined(tail, sound)
    assert len(faded) == 480
    assert (np.diff(faded[:240]) > 0).all()
    assert (faded[240:] == 1).all()


def test_what_it_declares() -> None:
    facts = audio_half(TURBO, load_s=2.0).facts
    assert (facts.engine, facts.lookahead_tokens, facts.ladder, facts.max_batch) == ("chatterbox-turbo", 3, True, 4)
    assert facts.seconds_per_token == 0.04
    assert (facts.device, facts.load_s) == ("cpu", 2.0)


def test_without_a_gpu_a_rung_is_announced_with_time_enough() -> None:
    """Else the supervisor takes a process that renders for longer than `supervise.hang_s` for hung."""
    told: list[tuple[str, float]] = []
    audio, tokens = audio_half(TURBO, report=lambda doing, deadline_s: told.append((doing, deadline_s))), speech(12)
    audio.open(1, segment())
    audio.feed(1, 12, tokens.tobytes(), True)
    told.clear()
    audio.render([(1, 12)])
    assert told == [("rendering", 60.0)]
