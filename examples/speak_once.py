"""Speak one text and say what happened: python examples/speak_once.py [ADDRESS]."""

from __future__ import annotations

import sys

from chatterline import Client, SpeechError


def main() -> None:
    with Client(*sys.argv[1:]) as client:
        try:
            speech = client.speak("Hello. This is one text, spoken from the first word to the last.")
            finished = speech.wait()
        except SpeechError as error:
            sys.exit(f"not spoken: {error}")
        assert speech.accepted is not None
        print(f"{finished.chars} characters, {finished.seconds:.2f} s with voice {speech.accepted.voice}")
        print(f"first sound made after {finished.first_audio_ms:.1f} ms, underruns: {finished.underruns}")


if __name__ == "__main__":
    main()
