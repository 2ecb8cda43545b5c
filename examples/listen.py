"""Get the sound instead of hearing it: python examples/listen.py FILE.wav [ADDRESS].

It comes as fast as it is made and read, piece by piece, long before the last of it exists.
"""

from __future__ import annotations

import sys
import wave

from chatterline import Client

TEXT = "This sound goes into a file. It could go to a telephone, to a browser, or into a game."


def main() -> None:
    path, *address = sys.argv[1:] or ["listen.wav"]
    with Client(*address) as client, wave.open(path, "wb") as file:
        speech = client.speak(TEXT, output="stream")
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(speech.sample_rate)
        pieces = 0
        for pcm in speech.pcm():  # for float32 arrays: for samples in speech
            file.writeframes(pcm)
            pieces += 1
        print(f"{speech.wait().seconds:.2f} s of sound in {pieces} pieces: {path}")


if __name__ == "__main__":
    main()
