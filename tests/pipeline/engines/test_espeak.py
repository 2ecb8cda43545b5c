"""Both halves of espeak together: text in, sound and word times out."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from ipc.messages import SAMPLE_RATE, Boundary
from pipeline.engines.base import EngineConfig, EngineError, Segment, TokenStep, load_engine
from pipeline.engines.espeak import ENGINE
from pipeline.engines.espeak.pieces import decode
from pipeline.engines.espeak.style import style_of
from tests.pipeline.engines.espeak_speech import PARAGRAPHS, Halves, Speech, direct, untouched_library

NUMBERS = "I paid $1,234.56 on 12/05/2021 at 10:30 a.m., i.e. 50% of the rest; see www.example.com today."


@pytest.fixture(scope="module")
def halves() -> Iterator[Halves]:
    made = Halves()
    yield made
    made.close()


def spoken_words(text: str, speech: Speech) -> list[str]:
    return [text[span.first_char : span.last_char] for span in speech.spans]


def test_the_engine_is_registered_and_can_run_here() -> None:
    assert load_engine("espeak") is ENGINE
    assert ENGINE.missing(EngineConfig()) == ""


def test_a_missing_package_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert "pip install espeakng-loader" in ENGINE.missing(EngineConfig())


def test_a_library_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espeakng_loader.get_library_path", lambda: "/nowhere/libespeak-ng.so")
    assert "cannot be loaded" in ENGINE.missing(EngineConfig())


def test_options_are_refused_by_name() -> None:
    with pytest.raises(EngineError, match=r"model\.options: espeak has none, remove nonsense"):
        ENGINE.tokens(EngineConfig(options={"nonsense": 1}), lambda _doing, _deadline_s: None)


def test_one_clause_is_one_step_and_words_are_aligned(halves: Halves) -> None:
    text = "Hello, big world."
    speech = halves.speak(text)
    assert [step.tokens for step in speech.steps] == [1, 2]
    assert [step.final for step in speech.steps] == [False, True]
    assert [rung.final for rung in speech.rungs] == [False, True]
    assert spoken_words(text, speech) == ["Hello", "big", "world"]
    assert [time.token for time in speech.times] == [0, 1, 2]
    assert all(span.exact for span in speech.spans)
    assert all(time.exact for time in speech.times)


@pytest.mark.parametrize("language", sorted(PARAGRAPHS))
def test_every_word_of_a_paragraph_has_its_characters_and_its_time(halves: Halves, language: str) -> None:
    text = PARAGRAPHS[language]
    speech = halves.speak(text, language=language)
    assert all(span.exact for span in speech.spans)
    assert all(time.exact for time in speech.times)
    assert [time.token for time in speech.times] == list(range(sum(step.tokens for step in speech.steps)))
    covered = {at for span in speech.spans for at in range(span.first_char, span.last_char)}
    assert all(at in covered for at, character in enumerate(text) if character.isalnum())


def test_numbers_dates_and_amounts_stay_aligned(halves: Halves) -> None:
    found = spoken_words(NUMBERS, halves.speak(NUMBERS))
    assert found[:6] == ["I", "paid", "$1,234.56", "on", "12/05/2021", "at"]
    assert "10:30" in found
    assert "50%" in found
    assert "of the" in found
    assert found[-1] == "today"


def test_words_begin_where_their_sound_begins(halves: Halves) -> None:
    """Between clauses there is silence; each clause's first word must begin at its end."""
    text = "One. Two. Three. Four."
    speech = halves.speak(text)
    for time in speech.times[1:]:
        around = np.abs(speech.samples[time.sample - 2400 : time.sample]).max()
        after = np.abs(speech.samples[time.sample : time.sample + 4800]).max()
        assert around < 0.01 < 0.1 < after


def test_alignment_counts_characters_of_the_text_as_it_came(halves: Halves) -> None:
    text = "\u00adHe\u00adllo [[w'3:ld]] cafe\u0301 \ue000\x01now"
    found = spoken_words(text, halves.speak(text))
    assert found[0] == "He\u00adllo"
    assert "cafe\u0301" in found
    assert found[-1] == "now"


@pytest.mark.parametrize(
    "text", ["[[f'Vk]] hello", "\x01+50P hello", "hello ]] [[ there", "a\x00b", "[\x02f'Vk]] hello", "]],[[s'3:]]"]
)
def test_phonemes_and_commands_in_text_are_read_and_not_obeyed(halves: Halves, text: str) -> None:
    for step in halves.speak(text).steps:
        for piece in decode(step.data):
            assert "[[" not in piece.phonemes
            assert "]]" not in piece.phonemes
            assert "f'Vk" not in piece.phonemes
    if "hello" in text:
        assert any("h@l'oU" in step.data.decode() for step in halves.speak(text).steps)


@pytest.mark.parametrize("text", ["", " ", "...", "—", "¿", "\x00", "\u200b", "( )", "\ud800", "»\n\n"])
def test_nothing_to_speak_is_a_final_step_without_tokens(halves: Halves, text: str) -> None:
    speech = halves.speak(text)
    assert [(step.tokens, step.final) for step in speech.steps] == [(0, True)]
    assert speech.rungs[-1].final
    assert len(speech.samples) == 0


@pytest.mark.parametrize(
    ("text", "language"),
    [("x" * 400, ""), ("Donau" * 60, "de"), ("今" * 300, "zh"), ("😀" * 50, ""), ("1" * 300, ""), ("a-" * 200, "")],
)
def test_a_single_huge_word_is_spoken(halves: Halves, text: str, language: str) -> None:
    speech = halves.speak(text, language=language)
    assert len(speech.samples) > SAMPLE_RATE / 2
    assert speech.steps[-1].final


def test_a_language_switch_is_spoken_as_directly(halves: Halves) -> None:
    text = "Это английское слово computer в русском тексте."
    speech = halves.speak(text, language="ru")
    assert "(en)" in decode(speech.steps[0].data)[0].phonemes
    assert spoken_words(text, speech) == text.rstrip(".").split()
    library = untouched_library()
    try:
        library.use("ru", style_of({}, 1.0).parameters)
        told = [word.sample * SAMPLE_RATE / 22_050 for word in library.speak(text).words]
    finally:
        library.close()
    assert [time.sample for time in speech.times] == pytest.approx(told, abs=0.03 * SAMPLE_RATE)


def test_mixed_scripts_and_languages_keep_their_tokens(halves: Halves) -> None:
    text = "Hello Привет नमस्ते 你好 مرحبا 😀 world, naïve café."
    speech = halves.speak(text)
    assert spoken_words(text, speech)[0] == "Hello"
    assert spoken_words(text, speech)[-1] == "café"
    assert [time.token for time in speech.times] == list(range(len(speech.times)))


def test_a_long_clause_travels_in_pieces_of_at_most_600_bytes(halves: Halves) -> None:
    text = "and so it went on and on " * 40
    steps = halves.speak(text).steps
    pieces = [piece for step in steps for piece in decode(step.data)]
    assert len(pieces) == len(steps) > 1
    assert all(len(piece.phonemes.encode()) <= 600 for piece in pieces)
    assert any(piece.part + 1 < piece.parts and piece.ending == "join" for piece in pieces)


def joins(speech: Speech) -> Iterator[float]:
    """The step over each join, as a share of the largest steps of the signal (their 99th percentile)."""
    usual = np.percentile(np.abs(np.diff(speech.samples)), 99)
    for at in itertools.accumulate(len(rung.samples) for rung in speech.rungs[:-1]):
        yield float(abs(speech.samples[at] - speech.samples[at - 1]) / usual)


@pytest.mark.parametrize("voice", ["en-us", "en-us+f3", "en-us+whisper", "en-us+klatt", "es+croak"])
def test_nothing_clicks_where_pieces_meet(halves: Halves, voice: str) -> None:
    for text in ("Hello, big world; more: of it. Moon men? May be!", "many more men mean much more money " * 30):
        steps = list(joins(halves.speak(text, voice=voice)))
        assert steps
        assert max(steps) < 0.5


def test_segments_meet_without_a_click(halves: Halves) -> None:
    first = halves.speak("Many more men,", boundary="clause").samples
    second = halves.speak("more money.", boundary="end").samples
    usual = np.percentile(np.abs(np.diff(first)), 99)
    assert abs(second[0] - first[-1]) < 0.5 * usual


def tail_s(speech: Speech) -> float:
    return (len(speech.samples) - np.flatnonzero(np.abs(speech.samples) > 0.01)[-1]) / SAMPLE_RATE


def test_the_pause_after_a_segment_is_that_of_the_whole_text(halves: Halves) -> None:
    library = untouched_library()
    try:
        whole = direct(library, "First things first. Then the rest.", "en-us")
    finally:
        library.close()
    apart = [halves.speak("First things first.", boundary="sentence"), halves.speak("Then the rest.")]
    assert sum(len(one.samples) for one in apart) == pytest.approx(len(whole), rel=0.01)
    quiet = np.flatnonzero(np.convolve(np.abs(whole) > 0.01, np.ones(2400), "valid") == 0)
    pause_s = (quiet[-1] - quiet[0] + 2400) / SAMPLE_RATE
    assert tail_s(apart[0]) == pytest.approx(pause_s, abs=0.03)


def test_a_sentence_pauses_longer_than_a_clause_and_the_end_not_at_all(halves: Halves) -> None:
    boundaries: tuple[Boundary, ...] = ("end", "pause", "sentence", "paragraph")
    end, pause, sentence, paragraph = (tail_s(halves.speak("Well, then.", boundary=one)) for one in boundaries)
    assert end == pytest.approx(pause)
    assert end < 0.05
    assert sentence > 0.2
    assert sentence == paragraph, "the pipeline adds what a paragraph pauses longer"
    comma = tail_s(halves.speak("Well then,", boundary="clause"))
    assert 0.1 < comma < sentence
    assert tail_s(halves.speak("Well then", boundary="clause")) < 0.05


def test_an_abbreviation_is_no_end_of_sentence(halves: Halves) -> None:
    whole = halves.speak("I went to Dr. Smith today.")
    assert decode(whole.steps[0].data)[0].ending == "join"
    gap = whole.samples[whole.times[4].sample - 1200 : whole.times[4].sample]
    assert np.abs(gap).max() > 0.01


def test_an_echo_does_not_hold_up_what_follows(halves: Halves) -> None:
    text = "Mrs. Smith sang."
    dry, echoing = (halves.speak(text, voice=voice).rungs for voice in ("en-us", "en-us+f3"))
    assert len(echoing[0].samples) == pytest.approx(len(dry[0].samples), rel=0.05)
    assert len(echoing[-1].samples) > len(dry[-1].samples) + 0.02 * SAMPLE_RATE, "at the end it dies away"
    assert max(abs(rung.samples[-1]) for rung in echoing) < 0.001


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.5, 1.0, 2.0, 2.5, 3.0, 4.0])
def test_speed_is_obeyed_beyond_the_librarys_own_rates(halves: Halves, speed: float) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    usual, here = halves.speak(text), halves.speak(text, speed=speed)
    assert len(usual.samples) / len(here.samples) == pytest.approx(speed, rel=0.2)
    assert [time.sample for time in here.times] == sorted(time.sample for time in here.times)
    assert all(time.exact for time in here.times) == (80 / 175 <= speed < 450 / 175)


def test_rate_and_speed_multiply(halves: Halves) -> None:
    text = "The quick brown fox."
    both = halves.speak(text, speed=2.0, settings={"rate": 100})
    assert np.array_equal(both.samples, halves.speak(text, settings={"rate": 200}).samples)


def fundamental_hz(samples: np.ndarray) -> float:
    spectrum = np.fft.rfft(samples[1000:9000])
    spectrum[350 * 8000 // SAMPLE_RATE :] = 0  # without it, formants win
    frame = np.fft.irfft(spectrum)
    found = np.correlate(frame, frame, "full")[len(frame) - 1 :]
    lags = slice(SAMPLE_RATE // 400, SAMPLE_RATE // 40)
    return SAMPLE_RATE / (np.argmax(found[lags]) + lags.start)


def test_pitch_range_gap_and_volume_do_what_they_say(halves: Halves) -> None:
    text = "Aah, moon men."
    low, high = (halves.speak("aaaah", settings={"pitch": pitch}).samples for pitch in (30, 90))
    assert fundamental_hz(high) > 1.3 * fundamental_hz(low)
    flat, lively = (halves.speak(text, settings={"pitch_range": one}).samples for one in (0, 99))
    assert not np.array_equal(flat, lively)
    near, apart = (halves.speak("moon men", settings={"word_gap_ms": one}).samples for one in (0, 300))
    assert len(apart) - len(near) > 0.2 * SAMPLE_RATE
    once, half, twice = (halves.speak(text, settings={"volume": one}).samples for one in (1.0, 0.5, 2.0))
    assert np.allclose(half, once / 2, atol=0.03)
    assert np.abs(once).max() < np.abs(twice).max() <= 1.0
    assert np.mean(np.abs(twice) > 0.9999) < 0.001, "volume clips"
    assert not halves.speak(text, settings={"volume": 0.0}).samples.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 60}, "settings.rate: 60 is not between 80 and 450"),
        ({"pitch": 100}, "settings.pitch: 100"),
        ({"volume": 2.5}, "settings.volume"),
        ({"volume": True}, "settings.volume"),
        ({"loudness": 1}, "settings.loudness.*it has rate, pitch"),
    ],
)
def test_settings_out_of_range_are_refused_by_both_halves(
    halves: Halves, settings: dict[str, bool | int | float | str], message: str
) -> None:
    segment = Segment("Hello.", "end", "", "", 1.0, 1, settings)
    with pytest.raises(EngineError, match=message):
        halves.tokens.admit(99, segment)
    with pytest.raises(EngineError, match=message):
        halves.audio.open(99, segment)


def test_seconds_are_what_the_audio_half_makes(halves: Halves) -> None:
    for language, text in PARAGRAPHS.items():
        speech = halves.speak(text, language=language, boundary="sentence")
        for step, rung in zip(speech.steps, speech.rungs, strict=True):
            assert step.seconds == pytest.approx(len(rung.samples) / SAMPLE_RATE, rel=0.06), (language, step)


def test_the_estimate_per_character_is_of_the_right_size(halves: Halves) -> None:
    shares = [
        len(halves.speak(text, language=language).samples) / SAMPLE_RATE / len(text)
        for language, text in PARAGRAPHS.items()
    ]
    assert halves.tokens.facts.seconds_per_char == pytest.approx(float(np.median(shares)), rel=0.25)


@pytest.mark.slow
def test_a_new_process_makes_the_same_tokens_and_samples(halves: Halves) -> None:
    code = (
        "import hashlib\n"
        "from tests.pipeline.engines.espeak_speech import Halves\n"
        "halves = Halves()\n"
        "one = halves.speak('Roughness, trills: perro, 21.', voice='es+f3', seed=5)\n"
        "print(hashlib.sha256(one.samples.tobytes() + repr(one.steps).replace(f'stream=1', '').encode()).hexdigest())\n"
    )
    import hashlib

    halves.speak(NUMBERS, speed=3.0)
    halves.speak("Привет.", language="ru", settings={"pitch": 80})
    here = halves.speak("Roughness, trills: perro, 21.", voice="es+f3", seed=5)
    steps = repr(here.steps).replace(f"stream={here.steps[0].stream}", "")
    digest = hashlib.sha256(here.samples.tobytes() + steps.encode()).hexdigest()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == digest, done.stderr


def test_another_seed_sounds_different_where_a_voice_is_noisy(halves: Halves) -> None:
    one, same, other = (halves.speak("Hush.", voice="en-us+whisper", seed=seed).samples for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.slow
def test_tokens_do_not_depend_on_what_was_translated_before(halves: Halves) -> None:
    segment = Segment(NUMBERS, "sentence", "en-us+f3", "", 1.0, 1, {})

    def made() -> list[tuple[object, ...]]:
        return [(s.tokens, s.data, s.seconds, s.alignment, s.final) for s in halves.translate(900, segment)]

    first = made()
    for language, text in PARAGRAPHS.items():
        for speed in (1.0, 3.0, 0.3):
            halves.translate(901, Segment(text, "end", "+klatt", language, speed, 2, {}))
            assert made() == first, (language, speed)


def test_a_clause_of_another_stream_between_changes_nothing(halves: Halves) -> None:
    segments = {
        1001: Segment(PARAGRAPHS["en-us"], "end", "", "en-us", 1.0, 1, {}),
        1002: Segment(PARAGRAPHS["ru"], "end", "", "ru", 3.0, 1, {}),
        1003: Segment(PARAGRAPHS["de"], "end", "+f3", "de", 1.0, 1, {}),
    }
    alone = {number: halves.translate(number, segment) for number, segment in segments.items()}
    together: dict[int, list[TokenStep]] = {number: [] for number in segments}
    for number, segment in segments.items():
        halves.tokens.admit(number, segment)
    while steps := halves.tokens.step():
        for step in steps:
            assert isinstance(step, TokenStep)
            together[step.stream].append(step)
    assert together == alone


def test_facts_are_those_of_a_voice_on_a_cpu(halves: Halves) -> None:
    tokens, audio = halves.tokens.facts, halves.audio.facts
    assert (tokens.engine, audio.engine, tokens.device, audio.device) == ("espeak", "espeak", "cpu", "cpu")
    assert (audio.ladder, audio.lookahead_tokens) == (False, 0)
    assert tokens.max_batch == audio.max_batch == 16
    assert tokens.load_s > 0
    assert not tokens.cloning


def test_a_rung_ends_only_where_a_piece_ends(halves: Halves) -> None:
    segment = Segment("One two three.", "end", "", "", 1.0, 1, {})
    (step,) = halves.translate(950, segment)
    halves.audio.open(950, segment)
    halves.audio.feed(950, step.tokens, step.data, step.final)
    (error,) = halves.audio.render([(950, 2)])
    assert "not the end of a piece" in getattr(error, "reason", "")
    halves.audio.close_stream(950)


def test_wrong_counts_and_checkpoints_are_refused(halves: Halves) -> None:
    segment = Segment("One two three.", "end", "", "", 1.0, 1, {})
    (step,) = halves.translate(951, segment)
    with pytest.raises(EngineError, match="history_tokens: 7, but the history holds 3"):
        halves.tokens.admit(952, segment, step.data, 7)
    with pytest.raises(EngineError, match="checkpoint"):
        halves.audio.open(952, segment, b"\x00nonsense")
    halves.audio.open(953, segment)
    with pytest.raises(EngineError, match="tokens: 5 are announced, the pieces hold 3"):
        halves.audio.feed(953, 5, step.data, True)
    halves.audio.close_stream(953)
