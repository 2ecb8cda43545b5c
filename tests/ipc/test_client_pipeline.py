"""The client and the real pipeline, while the dispatcher dies under them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from chatterline import Finished, SpeechCancelled
from tests.harness import direct_sound, pcm, until

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("engine", ["espeak"])]

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 40


def heard(pieces):
    return np.frombuffer(b"".join(pieces), "<i2")


def test_streams_one_after_the_other_are_whole(pipeline):
    client = pipeline().client()
    want = pcm(direct_sound("espeak", "One of many.", 1))
    for _ in range(5):
        got = heard(client.speak("One of many.", seed=1, output="stream").pcm())
        np.testing.assert_array_equal(got, want)


def test_a_stream_survives_the_dispatcher_sample_for_sample(pipeline):
    running = pipeline()
    client = running.client()
    speech = client.speak(TEXT, seed=1, output="stream")
    pieces = []
    for number, piece in enumerate(speech.pcm()):
        pieces.append(piece)
        if number in (20, 300, 700):
            running.kill("dispatcher")
    np.testing.assert_array_equal(heard(pieces), pcm(direct_sound("espeak", TEXT, 1)))
    assert speech.wait().failed_segments == 0


def test_a_growing_text_survives_the_dispatcher_word_for_word(pipeline):
    running = pipeline()
    client = running.client()
    words = TEXT.split(" ")
    pieces = []
    with client.utterance(output="stream", seed=1) as speech:
        reader = threading.Thread(target=lambda: pieces.extend(speech.pcm()))
        reader.start()
        for number, word in enumerate(words):
            speech.write(word + " ")
            if number in (100, 300):
                running.kill("dispatcher")
    reader.join(60)
    done = speech.wait()
    assert done.chars == len(TEXT) + 1
    assert done.failed_segments == 0
    assert heard(pieces).size == done.samples


def test_a_speaker_utterance_is_waited_for_across_a_restart(pipeline):
    running = pipeline({"player.pace": "realtime"})
    client = running.client()
    speech = client.speak("This is spoken while the dispatcher is replaced by another one.")
    first = until(lambda: speech.heard_chars, "it is being spoken")
    running.kill("dispatcher")
    done = speech.wait()
    assert isinstance(done, Finished)
    assert first < done.chars == 63


def test_another_program_silences_everything_and_the_owner_learns_what_was_heard(pipeline):
    running = pipeline({"player.pace": "realtime"})
    owner, other = running.client(), running.client()
    speech = owner.speak(TEXT)
    until(lambda: speech.heard_chars > 10, "it is being spoken")
    other.cancel(all=True)
    with pytest.raises(SpeechCancelled) as caught:
        speech.wait()
    assert TEXT.startswith(caught.value.heard)
    assert caught.value.heard
