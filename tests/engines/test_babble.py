"""Babble, the engine for tests: what the pipeline's tests rely on when they use it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ipc.messages import TokenSpan
from pipeline.engines.base import EngineConfig, EngineError, Segment, StreamError, TokenStep, choose_engine, load_engine
from tests.engines.babble import ENGINE, LONGEST_CHARS, BabbleTokens, render_whole
from tests.engines.babble_latents import DIE_STATUS, LATENT_BYTES, noise
from tests.engines.babble_sound import LARGEST_STEP, LOOKAHEAD_TOKENS, TAIL_SAMPLES, TOKEN_SAMPLES, BabbleAudio

ROOT = Path(__file__).parents[2]
NAME = "tests.engines.babble:ENGINE"
TEXT = "In 1984, two dogs barked; nobody heard them."


def config(**options) -> EngineConfig:
    return EngineConfig(max_batch=64, options=options)


def segment(text: str = TEXT, voice: str = "ada", seed: int = 7, **fields) -> Segment:
    rest = {"boundary": "end", "language": "en", "speed": 1.0, "settings": {}} | fields
    return Segment(text=text, voice=voice, seed=seed, **rest)


def token_half(**options) -> BabbleTokens:
    return BabbleTokens(config(**options), lambda *_: None)


def audio_half(**options) -> BabbleAudio:
    return BabbleAudio(config(**options), lambda *_: None)


def run_stream(half: BabbleTokens, stream: int) -> list[TokenStep]:
    """All steps of one stream (the only one, or its final step ends the loop)."""
    steps: list[TokenStep] = []
    while not steps or not steps[-1].final:
        mine = [step for step in half.step() if step.stream == stream]
        assert mine, "the stream ended without a final step"
        assert isinstance(mine[0], TokenStep), mine[0]
        steps += mine
    return steps


def tokens_for(spoken: Segment, **options) -> tuple[int, bytes]:
    half = token_half(**options)
    half.admit(1, spoken)
    steps = run_stream(half, 1)
    return sum(step.tokens for step in steps), b"".join(step.data for step in steps)


def render_in(cuts: list[int], count: int, data: bytes, spoken: Segment, resume_at: set[int] = frozenset()):
    """Sound rendered up to each cut; at those in ``resume_at`` a fresh half goes on from the checkpoint."""
    half = audio_half()
    half.open(1, spoken)
    half.feed(1, count, data, True)
    parts = []
    for upto in [*cuts, count]:
        step = half.render([(1, upto)])[0]
        assert not isinstance(step, StreamError), step
        parts.append(step.samples)
        if upto in resume_at:
            half = audio_half()
            half.open(1, spoken, step.checkpoint)
            half.feed(1, count, data, True)
    return np.concatenate(parts)


# --------------------------------------------------------------------------- registration


def test_it_is_loaded_by_module_and_attribute():
    assert load_engine(NAME) is ENGINE
    engine, why = choose_engine(NAME, config())
    assert engine is ENGINE
    assert "as configured" in why


def test_a_fresh_process_in_the_repository_root_can_import_it():
    code = "from pipeline.engines.base import load_engine; import sys; print(load_engine(sys.argv[1]).name)"
    done = subprocess.run([sys.executable, "-c", code, NAME], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "babble\n", done.stderr


def test_missing_and_wrong_options_are_refused_by_name():
    with pytest.raises(EngineError, match="no such luck"):
        choose_engine(NAME, config(missing="no such luck"))
    with pytest.raises(EngineError, match=r"tempo.*options of babble: token_delay_ms"):
        token_half(tempo=3)


# --------------------------------------------------------------------------- tokens


def test_the_same_segment_gives_the_same_tokens_whatever_shares_the_batch():
    alone = tokens_for(segment())
    half = token_half(tokens_per_step=8)
    half.admit(5, segment("Somebody else is speaking here.", voice="bob", seed=1))
    half.step()
    half.admit(1, segment())
    steps = run_stream(half, 1)
    assert b"".join(step.data for step in steps) == alone[1]


@pytest.mark.parametrize("change", [{"seed": 8}, {"voice": "bob"}, {"settings": {"pitch": 1.1}}, {"speed": 1.3}])
def test_seed_voice_speed_and_settings_change_the_tokens(change):
    assert tokens_for(segment(**change))[1] != tokens_for(segment())[1]


def test_tokens_are_worth_forty_milliseconds_and_weigh_four_kilobytes():
    half = token_half()
    half.admit(1, segment())
    for step in run_stream(half, 1):
        assert step.seconds == pytest.approx(step.tokens * 0.04)
        assert len(step.data) == step.tokens * LATENT_BYTES == step.tokens * 4096


@pytest.mark.parametrize("at", [1, 8, 11, -1, None])
def test_a_successor_goes_on_from_any_history_with_the_same_tokens(at):
    count, data = tokens_for(segment())
    done = count if at is None else at % count
    half = token_half()
    half.admit(9, segment(), data[: done * LATENT_BYTES], done)
    steps = run_stream(half, 9)
    assert data[: done * LATENT_BYTES] + b"".join(step.data for step in steps) == data


def test_history_of_another_segment_is_refused():
    count, data = tokens_for(segment())
    with pytest.raises(EngineError, match="another segment"):
        token_half().admit(1, segment(TEXT + "!"), data, count)


def test_held_back_tokens_arrive_with_the_end_and_nothing_is_lost():
    count, data = tokens_for(segment())
    half = token_half(hold_back_tokens=12)
    half.admit(1, segment())
    steps = run_stream(half, 1)
    assert steps[0].tokens == 0
    assert steps[-1].tokens > 12
    assert b"".join(step.data for step in steps) == data
    assert sum(step.tokens for step in steps) == count


def test_the_end_may_come_in_an_empty_step():
    count, _ = tokens_for(segment())
    half = token_half(tokens_per_step=count)
    half.admit(1, segment())
    assert [(step.tokens, step.final) for step in run_stream(half, 1)] == [(count, False), (0, True)]


def test_a_paused_stream_waits_while_others_go_on():
    half = token_half()
    half.admit(1, segment())
    half.admit(2, segment())
    half.pause(1)
    assert [step.stream for step in half.step()] == [2]
    half.resume(1)
    assert [step.stream for step in half.step()] == [1, 2]
    half.release(2)
    assert [step.stream for step in half.step()] == [1]


@pytest.mark.parametrize("speed", [0.25, 1.0, 4.0])
def test_alignment_tiles_the_text_and_the_tokens(speed):
    text = "Two dogs, 1984 你好\N{GRINNING FACE}."
    half = token_half()
    half.admit(1, segment(text, speed=speed))
    steps = run_stream(half, 1)
    spans = [span for step in steps for span in step.alignment]
    assert spans[0].first_token == 0
    assert spans[0].first_char == 0
    assert spans[-1].last_char == len(text)
    assert all(a.last_char == b.first_char and a.first_token < b.first_token for a, b in itertools.pairwise(spans))
    assert {True, False} == {span.exact for span in spans}
    assert not next(span for span in spans if span.first_char <= text.index("8") < span.last_char).exact


def test_alignment_comes_with_the_tokens_that_it_is_about():
    half = token_half(hold_back_tokens=5)
    half.admit(1, segment())
    done = 0
    for step in run_stream(half, 1):
        assert all(done <= span.first_token < done + step.tokens for span in step.alignment)
        done += step.tokens


def test_alignment_of_a_resumed_stream_goes_on_where_the_history_ends():
    count, data = tokens_for(segment())
    whole = token_half()
    whole.admit(1, segment())
    spans = [span for step in run_stream(whole, 1) for span in step.alignment]
    half = token_half()
    half.admit(1, segment(), data[: 10 * LATENT_BYTES], 10)
    rest: list[TokenSpan] = [span for step in run_stream(half, 1) for span in step.alignment]
    assert rest == [span for span in spans if span.first_token >= 10]
    assert count > 10


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"voice": "zelda"}, r"voice: 'zelda'.*ada, bob"),
        ({"voice": "../secret"}, r"voice: '../secret'"),
        ({"language": "tlh"}, r"language: 'tlh'.*en, de"),
        ({"text": ""}, "0 characters"),
        ({"text": "x" * (LONGEST_CHARS + 1)}, "301 characters"),
        ({"settings": {"pich": 1.0}}, r"settings.pich: .*pitch, jitter"),
        ({"settings": {"pitch": 9}}, r"settings.pitch: 9 is not between 0.5"),
        ({"settings": {"pitch": True}}, r"settings.pitch: True is not of type float"),
        ({"settings": {"mood": "grim"}}, r"settings.mood: 'grim' is not one of plain, bright, dark"),
    ],
)
def test_what_cannot_be_spoken_is_refused_by_name_and_costs_no_place(change, named):
    half = token_half()
    with pytest.raises(EngineError, match=named):
        half.admit(1, segment(**change))
    half.admit(1, segment())
    assert half.step()


def test_text_that_runs_away_is_stopped_with_a_note():
    half = token_half()
    half.admit(1, segment("7" * LONGEST_CHARS))
    steps = run_stream(half, 1)
    assert "750 tokens" in steps[-1].note
    assert sum(step.tokens for step in steps) == 750
    assert not any(step.note for step in steps[:-1])


def test_a_recording_in_the_voices_folder_is_a_voice_with_its_pitch(tmp_path):
    wave = np.sin(2 * np.pi * 150 * np.arange(24_000) / 24_000)
    soundfile.write(tmp_path / "carla.wav", 0.3 * wave, 24_000)
    cloning = EngineConfig(voices_folder=str(tmp_path))
    half = BabbleTokens(cloning, lambda *_: None)
    assert "carla" in [voice.id for voice in half.facts.voices]
    low = render_whole("aaaa", "carla", config=cloning)
    soundfile.write(tmp_path / "carla.wav", 0.3 * np.sin(2 * np.pi * 250 * np.arange(24_000) / 24_000), 24_000)
    high = render_whole("aaaa", "carla", config=cloning)
    assert dominant_hz(high) == pytest.approx(dominant_hz(low) * 250 / 150, rel=0.15)


def dominant_hz(samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * 24_000 / len(samples))


# --------------------------------------------------------------------------- sound


@pytest.mark.parametrize("seed", range(6))
def test_sound_does_not_depend_on_the_cuts_or_on_resumption(seed):
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    spoken = segment(seed=int(random.integers(2**62)), settings={"echo": bool(seed % 3), "volume": 0.9})
    count, data = tokens_for(spoken)
    cuts = sorted({int(cut) for cut in random.integers(1, count, 1 + seed * 3)})
    resumed = {cut for cut in cuts if random.random() < 0.7}
    whole = render_whole(spoken.text, "ada", seed=spoken.seed, settings=spoken.settings)
    assert np.array_equal(render_in(cuts, count, data, spoken, resumed), whole)
    assert np.array_equal(render_in(list(range(1, count)), count, data, spoken), whole)


def test_tokens_may_come_piece_by_piece_with_the_lookahead_and_no_more():
    spoken = segment()
    count, data = tokens_for(spoken)
    half = audio_half()
    half.open(1, spoken)
    parts = []
    for token in range(count):
        half.feed(1, 1, data[token * LATENT_BYTES :][:LATENT_BYTES], token == count - 1)
        upto = token + 1 - LOOKAHEAD_TOKENS
        if upto > 0:
            parts.append(half.render([(1, upto)])[0].samples)
            assert len(parts[-1]) == TOKEN_SAMPLES
    with_end = half.render([(1, count)])[0]
    assert with_end.final
    assert len(with_end.samples) == LOOKAHEAD_TOKENS * TOKEN_SAMPLES + TAIL_SAMPLES
    assert np.array_equal(np.concatenate([*parts, with_end.samples]), render_whole(TEXT, "ada", seed=7))


def test_asking_beyond_the_lookahead_is_an_error_of_the_caller():
    spoken = segment()
    _, data = tokens_for(spoken)
    half = audio_half()
    half.open(1, spoken)
    half.feed(1, 10, data[: 10 * LATENT_BYTES], False)
    with pytest.raises(RuntimeError, match="asked for token 8, done 0, fed 10, lookahead 3"):
        half.render([(1, 8)])


def test_streams_rendered_together_sound_as_they_do_alone():
    half = audio_half()
    spoken = {stream: segment(f"Stream number {stream} speaks.", seed=stream) for stream in range(1, 9)}
    counts = {}
    for stream, one in spoken.items():
        counts[stream], data = tokens_for(one)
        half.open(stream, one)
        half.feed(stream, counts[stream], data, True)
    for step in half.render(list(counts.items())):
        one = spoken[step.stream]
        assert np.array_equal(step.samples, render_whole(one.text, one.voice, seed=one.seed))


def test_sound_is_smooth_within_bounds_and_starts_and_ends_in_silence():
    for mood in ("plain", "bright", "dark"):
        for echo in (True, False):
            sound = render_whole("Whatever it says 123!", "mei", settings={"mood": mood, "echo": echo, "pitch": 1.5})
            assert sound.dtype == np.float32
            assert np.abs(sound).max() < 1.0
            assert np.abs(sound).max() > 0.2
            assert np.abs(np.diff(sound)).max() < LARGEST_STEP
            assert abs(sound[0]) + abs(sound[-1]) < 1e-6


@pytest.mark.parametrize("spoiled", ["phase", "tail", "echo"])
def test_each_part_of_the_state_is_audible_when_it_is_wrong(spoiled):
    spoken = segment("aaaa aaaa")
    count, data = tokens_for(spoken)
    half = audio_half()
    half.open(1, spoken)
    half.feed(1, count, data, True)
    half.render([(1, 7)])
    state = half._streams[1]
    if spoiled == "phase":
        state.phase += 0.3
    else:
        setattr(state, spoiled, np.zeros_like(getattr(state, spoiled)))
    rest = half.render([(1, count)])[0].samples
    right = render_whole(spoken.text, "ada", seed=7)[7 * TOKEN_SAMPLES :]
    assert np.abs(rest - right).max() > 0.05


def test_token_times_are_exact_and_counted_from_the_streams_start():
    spoken = segment()
    count, data = tokens_for(spoken)
    half = audio_half()
    half.open(1, spoken)
    half.feed(1, count, data, True)
    half.render([(1, 12)])
    times = half.render([(1, 20)])[0].token_samples
    assert [(time.token, time.sample, time.exact) for time in times] == [(t, t * 960, True) for t in range(12, 20)]


def test_checkpoints_are_tens_of_kilobytes_and_refuse_what_is_not_theirs():
    spoken = segment()
    count, data = tokens_for(spoken)
    half = audio_half()
    half.open(1, spoken)
    half.feed(1, count, data, True)
    checkpoint = half.render([(1, 12)])[0].checkpoint
    assert 15_000 < len(checkpoint) < 25_000
    spoiled = checkpoint[:9000] + bytes([checkpoint[9000] ^ 1]) + checkpoint[9001:]
    for wrong, why in ((checkpoint[:-1], "not a checkpoint"), (spoiled, "checksum")):
        with pytest.raises(EngineError, match=why):
            audio_half().open(1, spoken, wrong)
    with pytest.raises(EngineError, match="another request"):
        audio_half().open(1, segment(seed=8), checkpoint)


def test_a_stream_resumed_after_its_end_has_no_more_sound():
    spoken = segment()
    count, data = tokens_for(spoken)
    half = audio_half()
    half.open(1, spoken)
    half.feed(1, count, data, True)
    checkpoint = half.render([(1, count)])[0].checkpoint
    successor = audio_half()
    successor.open(1, spoken, checkpoint)
    successor.feed(1, count, data, True)
    step = successor.render([(1, count)])[0]
    assert step.final
    assert len(step.samples) == 0


def fed(data: bytes, count: int, spoken: Segment) -> str:
    """Why the audio half rejects these tokens."""
    half = audio_half()
    half.open(1, spoken)
    half.feed(1, count, data, True)
    step = half.render([(1, count)])[0]
    assert isinstance(step, StreamError)
    return step.reason


def test_lost_repeated_swapped_changed_and_foreign_tokens_break_the_stream_by_name():
    spoken = segment()
    count, data = tokens_for(spoken)
    one = LATENT_BYTES
    changed = data[: 5 * one + 77] + bytes([data[5 * one + 77] ^ 1]) + data[5 * one + 78 :]
    swapped = data[:one] + data[2 * one : 3 * one] + data[one : 2 * one] + data[3 * one :]
    other = tokens_for(segment("Something else altogether, which is longer."))[1]
    assert "token 3: token 4 came in its place" in fed(data[: 3 * one] + data[4 * one :], count - 1, spoken)
    assert "token 3: token 2 came in its place" in fed(data[: 3 * one] + data[2 * one :], count + 1, spoken)
    assert "token 1: token 2 came in its place" in fed(swapped, count, spoken)
    assert "token 5: was changed on the way" in fed(changed, count, spoken)
    assert "token 4: belongs to another segment" in fed(data[: 4 * one] + other[4 * one : 5 * one], 5, spoken)
    assert "another voice, language, speed, seed or settings" in fed(data, count, segment(seed=8))
    assert f"{len(data) - 1} bytes for {count} tokens" in fed(data[:-1], count, spoken)


# --------------------------------------------------------------------------- faults and determinism


def test_a_marker_refuses_or_breaks_one_stream_and_no_other():
    half = token_half(refuse_text="NO", fail_text="BREAK", audio_fail_text="MUTE", tokens_per_step=100)
    with pytest.raises(EngineError, match="refuses"):
        half.admit(1, segment("Say NO."))
    half.admit(2, segment("Now BREAK."))
    half.admit(3, segment("Now MUTE."))
    broken, fine = half.step()
    assert isinstance(broken, StreamError)
    assert isinstance(fine, TokenStep)
    audio = audio_half()
    audio.open(3, segment(""))
    audio.feed(3, fine.tokens, fine.data, True)
    assert isinstance(audio.render([(3, fine.tokens)])[0], StreamError)


@pytest.mark.slow
def test_a_marker_ends_the_process_as_often_as_told(tmp_path):
    code = (
        "from tests.engines.babble import render_whole; from pipeline.engines.base import EngineConfig; import sys\n"
        f"options = {{'die_text': 'DIE', 'fault_folder': {str(tmp_path)!r}, 'fault_times': 2}}\n"
        "print(len(render_whole('We DIE.', config=EngineConfig(options=options))))"
    )
    codes = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode for _ in range(3)]
    assert codes == [DIE_STATUS, DIE_STATUS, 0]


def test_a_fresh_process_makes_the_same_sound():
    code = (
        "from tests.engines.babble import render_whole; import sys\n"
        f"sys.stdout.buffer.write(render_whole({TEXT!r}, 'clara', language='de', seed=2**62).tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert done.stdout == render_whole(TEXT, "clara", language="de", seed=2**62).tobytes()


def test_noise_is_white_and_depends_on_position_alone():
    at = np.arange(50_000, dtype=np.uint64)
    values = noise(3, at)
    assert np.array_equal(noise(3, at[::-1])[::-1], values)
    assert abs(values.mean()) < 0.02
    assert values.std() == pytest.approx(1 / np.sqrt(3), rel=0.02)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(values, noise(4, at))[0, 1]) < 0.02
