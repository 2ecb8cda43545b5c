"""Texts to speak: plain English prose, another one for every seed."""

from __future__ import annotations

import random
import re

CHARS_PER_S = 16
"""Roughly, of espeak's default voice."""

_SUBJECTS = (
    "the kettle", "a grey cat", "my neighbour", "the last train", "every sailor", "the river", "an old clock",
    "our teacher", "the lighthouse keeper", "nobody at the station",
)  # fmt: skip
_VERBS = ("waited for", "listened to", "had forgotten", "walked past", "drew", "remembered", "wrote about", "kept")
_OBJECTS = (
    "the morning rain", "a letter from Lisbon", "two small stones", "the open window", "a song", "the long road home",
)  # fmt: skip
_ENDS = ("without a word", "before breakfast", "at the end of May", "as if nothing had happened", "in the dark")


def sentence(rng: random.Random) -> str:
    """A sentence of 5 to 25 words, mostly with a comma."""
    parts = [rng.choice(_SUBJECTS), rng.choice(_VERBS), rng.choice(_OBJECTS)]
    text = " ".join(parts).capitalize()
    if rng.random() < 0.7:
        text += f", and {rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}"
    return f"{text} {rng.choice(_ENDS)}{rng.choice('..!?')}"


def prose(chars: int, rng: random.Random) -> str:
    """Sentences in paragraphs, ``chars`` characters long but for the rest of a sentence."""
    parts: list[str] = []
    length = 0
    while length < chars:
        parts.append(sentence(rng) + ("\n\n" if rng.random() < 0.1 else " "))
        length += len(parts[-1])
    return "".join(parts).strip()


def prose_of(seconds: float, seed: int) -> str:
    """Prose of about that many seconds of speech."""
    return prose(round(seconds * CHARS_PER_S), random.Random(seed))


def words_of(text: str) -> list[str]:
    """The text in pieces as a language model gives them: a word and what follows it."""
    return re.findall(r"\S+\s*", text)
