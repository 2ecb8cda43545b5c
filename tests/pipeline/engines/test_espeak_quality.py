"""Does it still sound like espeak-ng, and can it be understood?

The measure of likeness is the library speaking the same text in one call at the same rate. Frames are
compared along a dynamic time warp (mel-cepstral distance and envelope); the length is compared as is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import soxr

from ipc.messages import SAMPLE_RATE
from pipeline.engines.espeak.library import Library
from tests.pipeline.engines.espeak_speech import (
    PARAGRAPHS,
    Halves,
    direct,
    envelope,
    mel_cepstra,
    mel_cepstral_distance,
    untouched_library,
    warp,
)

pytestmark = pytest.mark.slow

# Sentences that the recogniser understands when the library speaks them directly: it does not all.
SENTENCES = (
    "the train to london leaves at seven tomorrow morning",
    "please turn off the light in the kitchen",
    "my sister bought a new computer last week",
    "it will rain in the north and snow in the mountains",
    "the doctor wants to see you again on friday",
    "we had fish and potatoes for dinner",
    "can you tell me the way to the station",
    "he plays the piano every evening after work",
    "the children are waiting outside the school",
    "there is a letter for you on the table",
)


@pytest.fixture(scope="module")
def halves() -> Iterator[Halves]:
    made = Halves()
    yield made
    made.close()


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    opened = untouched_library()
    yield opened
    opened.close()


def likeness(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(mel-cepstral distance in dB, correlation of envelopes)."""
    left, right = mel_cepstra(one), mel_cepstra(other)
    path = warp(left, right)
    rows, columns = np.array(path).T
    alike = np.corrcoef(envelope(one)[rows], envelope(other)[columns])[0, 1]
    return mel_cepstral_distance(left, right, path), float(alike)


@pytest.mark.parametrize("language", sorted(PARAGRAPHS))
def test_two_stages_sound_like_one_call(halves: Halves, library: Library, language: str) -> None:
    made = halves.speak(PARAGRAPHS[language], language=language).samples
    whole = direct(library, PARAGRAPHS[language], language)
    distance, alike = likeness(made, whole)
    print(f"{language}: distance {distance:.2f} dB, envelope {alike:.3f}, length {len(made) / len(whole):.4f}")
    assert distance < 2
    assert alike > 0.85
    assert len(made) == pytest.approx(len(whole), rel=0.01)


@pytest.mark.parametrize("speed", [0.6, 1.6, 2.4])
def test_they_do_at_other_speeds_too(halves: Halves, library: Library, speed: float) -> None:
    made = halves.speak(PARAGRAPHS["en-us"], speed=speed).samples
    whole = direct(library, PARAGRAPHS["en-us"], "en-us", speed)
    distance, alike = likeness(made, whole)
    assert distance < 2
    assert alike > 0.85
    assert len(made) == pytest.approx(len(whole), rel=0.01)


def test_the_measures_tell_other_speech_apart(halves: Halves, library: Library) -> None:
    whole = direct(library, PARAGRAPHS["en-us"], "en-us")
    reverse = likeness(whole[::-1].copy(), whole)
    other_text = likeness(halves.speak(PARAGRAPHS["de"], language="de").samples[: len(whole)], whole)
    other_voice = likeness(halves.speak(PARAGRAPHS["en-us"], voice="en-us+f3").samples, whole)
    assert min(reverse[0], other_text[0], other_voice[0]) > 3
    assert max(reverse[1], other_text[1]) < 0.85


@functools.cache
def recogniser() -> object:
    """A grammar that is exactly the ten sentences."""
    import pocketsphinx

    decoder = pocketsphinx.Decoder(lm=None, samprate=16000, loglevel="FATAL")
    choices = " | ".join(f"({sentence})" for sentence in SENTENCES)
    decoder.add_jsgf_string("ten", f"#JSGF V1.0; grammar ten; public <one> = {choices};")
    decoder.activate_search("ten")
    return decoder


def understood(samples: np.ndarray) -> str:
    decoder = recogniser()
    silence = np.zeros(SAMPLE_RATE // 4, np.float32)
    sound = soxr.resample(np.concatenate([silence, samples, silence]), SAMPLE_RATE, 16000, quality="HQ")
    decoder.start_utt()  # type: ignore[attr-defined]
    decoder.process_raw((sound * 32000).astype("<i2").tobytes(), no_search=False, full_utt=True)  # type: ignore[attr-defined]
    decoder.end_utt()  # type: ignore[attr-defined]
    best = decoder.hyp()  # type: ignore[attr-defined]
    return best.hypstr if best else ""


def test_ten_of_ten_sentences_are_understood(halves: Halves) -> None:
    heard = [understood(halves.speak(f"{one.capitalize()}.", voice="en-us+f3").samples) for one in SENTENCES]
    assert heard == list(SENTENCES)


def test_reversed_and_shuffled_speech_and_noise_are_not(halves: Halves) -> None:
    """A recogniser that says yes to everything would be caught here."""
    random = np.random.default_rng(1)
    understood_anyway = 0
    for sentence in SENTENCES:
        sound = halves.speak(f"{sentence.capitalize()}.", voice="en-us+f3").samples
        noise = (random.standard_normal(len(sound)) * sound.std()).astype(np.float32)
        tiles = np.array_split(sound, 40)
        shuffled = np.concatenate([tiles[index] for index in random.permutation(40)])
        understood_anyway += sum(understood(one) == sentence for one in (sound[::-1].copy(), shuffled, noise))
    assert understood_anyway == 0


def test_word_times_are_where_the_words_are(halves: Halves) -> None:
    """A word cut out by its times is that word: it is like the same word cut out of the direct render."""
    text = "Monday, banana, seventeen, orange, telephone."
    speech = halves.speak(text)
    starts = [time.sample for time in speech.times] + [len(speech.samples)]
    words = [speech.samples[start:end] for start, end in itertools.pairwise(starts)]
    alone = [halves.speak(word.strip() + ",", boundary="clause").samples for word in text.rstrip(".").split(",")]
    for index, word in enumerate(words[:-1]):
        distances = [
            mel_cepstral_distance(a, b, warp(a, b, 2.0))
            for a, b in ((mel_cepstra(word), mel_cepstra(other)) for other in alone)
        ]
        assert int(np.argmin(distances)) == index
