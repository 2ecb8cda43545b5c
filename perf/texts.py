"""Texts to speak: the same four for every comparison, and plain English prose, another one for every seed."""

from __future__ import annotations

import random
import re

CHARS_PER_S = 16
"""Roughly, of espeak's default voice."""

STANDARD = "Hello my big long beautiful world"
SHORT = "The kettle is on, and tea will be ready in a minute."
MEDIUM = (
    "The last train had left before the rain began. Nobody at the station knew when the next one would come, "
    "so we walked along the river instead, and talked about the summer."
)
LONG = (
    "Every evening the lighthouse keeper climbed the hundred and twelve steps, wound the old clock, and lit the lamp. "
    "He had done so for thirty years, in fog and in frost, and he had never been late. "
    "Ships that passed far out at sea could not see him, of course, but they saw the light, and that was enough.\n\n"
    "One night in May the lamp stayed dark. The sailors noticed it first: where the white flash should have been, "
    "there was nothing but stars. By the time the harbour master had found his boots, half of the village was on the "
    "road to the cape. They met the keeper at the door, in his best coat, with a letter from Lisbon in his hand. "
    '"I am sorry," he said, "but today I could not find the matches."'
)
TEXTS = {"standard": STANDARD, "short": SHORT, "medium": MEDIUM, "long": LONG}
"""What ways to speak are compared with, by name."""

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
