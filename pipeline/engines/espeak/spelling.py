"""How phonemes are written so that the synthesiser reads them as they were meant.

What `Library.phonemes` prints is not quite what the library reads: a language switch is printed in
another way, and whether a syllable without a stress mark is unstressed or diminished, and which of
two forms an unstressed vowel has, is not printed at all. In most languages the library finds that out
again; where it does not, speech would be up to 4 % longer or shorter than spoken directly.
"""

from __future__ import annotations

import re

from pipeline.engines.espeak.library import SEPARATOR

LONGEST_BYTES = 600
"""Of phonemes in one call; the library reads 800 of its input and drops the rest."""

LONGEST_WORD_BYTES = 160
"""Of phonemes without white space; the library has room for 200 and does not check it."""

_WESTERN = ("an", "ca", "es", "ia", "io", "it", "la", "pap", "pt", "eo", "cy")
_OTHERS = ("am", "cs", "el", "et", "id", "ltg", "lv", "ml", "ms", "pl", "smj", "sw", "tn")
_DIMINISHED_ENDINGS = frozenset((*_WESTERN, *_OTHERS))
"""Languages in which what follows a word's last stress is diminished: measured, word by word, against
the library's own speech; those that it marks S_FINAL_DIM_ONLY, with few exceptions."""

_REDUCED_VOWELS = {"es": "aeo", "es-419": "aeo", "an": "aeo"}
"""Vowels with a form for unstressed syllables (``a/``) that is printed as the full one."""

_SWITCH = re.compile(r"\(([a-zA-Z][a-zA-Z0-9-]*)\)")


def respell(phonemes: str, voice: str) -> str:
    """Phonemes with a `SEPARATOR` between them, as the language of ``voice`` needs them written."""
    words = phonemes.split()
    if reduced := _REDUCED_VOWELS.get(voice):
        words = [_reduce(word, reduced) for word in words]
    if voice.split("-")[0] in _DIMINISHED_ENDINGS:
        return " ".join(_diminish(word) for word in words)
    return " ".join(words).replace(SEPARATOR, "")


def _reduce(word: str, vowels: str) -> str:
    sounds = word.split(SEPARATOR)
    return SEPARATOR.join(f"{sound}/" if len(sound) == 1 and sound in vowels else sound for sound in sounds)


def _diminish(word: str) -> str:
    """``%%`` diminishes the next vowel that has no mark of its own; ``|`` only separates."""
    stress = max(word.rfind("'"), word.rfind(","))
    until = stress + 1 if stress >= 0 else len(word)
    return word[:until].replace(SEPARATOR, "|") + word[until:].replace(SEPARATOR, "%%")


def rewrite_switches(phonemes: str) -> str:
    """Language switches as the synthesiser takes them: what is printed as ``(en)`` is read as ``_^_en``."""
    return _SWITCH.sub(r" _^_\1 ", phonemes)


def split(phonemes: str, most_bytes: int = LONGEST_BYTES) -> list[str]:
    """The phonemes in parts of at most so many bytes once rewritten, cut between words.

    A part that begins in another language says so. One word that is longer is a part of its own.
    """
    parts: list[str] = []
    part, size, language = "", 0, ""
    for word in phonemes.split():
        size_bytes = len(rewrite_switches(word).encode()) + 1
        if part and size + size_bytes > most_bytes:
            parts.append(part)
            part, size = "", 0
            if language and not word.startswith("("):
                word = f"({language}){word}"
                size_bytes += len(language) + 5
        part, size = (f"{part} {word}", size + size_bytes) if part else (word, size_bytes)
        for switched in _SWITCH.findall(word):
            language = switched
    return [*parts, part] if part else parts


def cut_long(phonemes: str, most_bytes: int = LONGEST_BYTES) -> list[str]:
    """What is to be spoken call by call: as is, unless one word alone is too long; that is cut."""
    if len(rewrite_switches(phonemes).encode()) <= most_bytes:
        return [phonemes]
    cuts, rest = [], phonemes
    while len(rest.encode()) > most_bytes:
        at = max(rest.rfind(mark, 1, most_bytes // 2) for mark in "',(_")
        at = at if at > 0 else most_bytes // 2
        cuts.append(rest[:at])
        rest = rest[at:]
    return [*cuts, rest]


def with_gaps(written: str, most_bytes: int = LONGEST_WORD_BYTES) -> str:
    """Rewritten phonemes with a space in each word too long for the library, before a stress if there is one."""
    return " ".join(" ".join(_shortened(word, most_bytes)) for word in written.split())


def _shortened(word: str, most_bytes: int) -> list[str]:
    parts = []
    while len(word.encode()) > most_bytes:
        reach = most_bytes // len(max(word, key=lambda one: len(one.encode())).encode())
        at = max(word.rfind(mark, reach // 2, reach) for mark in "',_|")
        at = at if at > 0 else reach
        parts.append(word[:at])
        word = word[at:]
    return [*parts, word]
