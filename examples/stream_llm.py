"""Speak a text while it is being written, then interrupt it: python examples/stream_llm.py [ADDRESS].

`tokens` stands for a language model. The first sentence sounds while the later ones are still being
written. After a moment somebody barges in: the voice is silent at once, and we learn which words
were heard, so that the model can be told.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from chatterline import AsyncClient, Cancelled, Progress

ANSWER = (
    "Let me explain how a sailing boat can go against the wind. Its sail is a wing that stands upright. "
    "The air that flows past it pulls the boat sideways and a little forward. The keel under the boat "
    "holds against the sideways part. What is left is the part that goes forward. "
) * 5
BARGE_IN_AFTER_CHARS = 60


async def tokens() -> AsyncIterator[str]:
    """What a language model sends: a few characters at a time."""
    for start in range(0, len(ANSWER), 4):
        await asyncio.sleep(0.005)
        yield ANSWER[start : start + 4]


async def main() -> None:
    async with AsyncClient(*sys.argv[1:]) as client:
        print("writing and speaking …")
        speech = await client.speak_stream(tokens(), conversation="chat")
        async for event in speech.events():
            if isinstance(event, Progress) and event.chars > BARGE_IN_AFTER_CHARS:
                break
        ending = await speech.cancel()
        if isinstance(ending, Cancelled):
            print(f"interrupted after {ending.seconds:.1f} s; heard: {ending.heard!r}")
        answer = await client.speak("All right, I am listening.", conversation="chat")
        await answer.wait()
        print("done")


if __name__ == "__main__":
    asyncio.run(main())
