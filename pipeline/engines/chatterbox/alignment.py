"""Which words the tokens speak: text tokens to characters, characters to words, words to `TokenSpan`s.

Two sources. Where the model has the aligned heads (`attention`), each speech token comes with the text token that was
looked at when it was sampled: a measurement, right to about a word, sharper at stressed syllables than in pauses. A
span from it is *exact* when the heads looked clearly at one place (most of their attention to the text within two text
tokens) and went on to the very next word; where they were vague, or skipped words, the span says false. Without such
heads (Turbo, small models) words are laid out by their share of the text at the usual pace: a guess, never exact.

Spans only go forward, each begins with a later token than the one before, and depends on tokens up to there alone, so
that it is the same whatever rounds the tokens came in.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from ipc.messages import TokenSpan
from pipeline.engines.chatterbox.variants import TOKENS_PER_S


def words_of(text: str) -> list[tuple[int, int]]:
    """(first, last) of everything between spaces; characters of scripts without spaces one by one."""
    words: list[tuple[int, int]] = []
    for found in re.finditer(r"\S+", text):
        begin = found.start()
        for at in range(found.start() + 1, found.end()):
            if _stands_alone(text[at]) or (_stands_alone(text[at - 1]) and text[at].isalnum()):
                words.append((begin, at))
                begin = at
        words.append((begin, found.end()))
    return words or ([(0, len(text))] if text else [])


def _stands_alone(char: str) -> bool:
    """Chinese and Japanese characters; Korean has spaces."""
    return unicodedata.east_asian_width(char) in "WF" and char.isalpha() and not "\uac00" <= char <= "\ud7a3"


@dataclass
class Words:
    """One stream's. ``chars[i]``: the character at which text token i begins; None: nobody says where T3 is."""

    text: str
    chars: Sequence[int] | None
    seconds_per_char: float
    _words: list[tuple[int, int]] = field(init=False)
    _begins: list[int] = field(init=False)
    _word: int = -1

    def __post_init__(self) -> None:
        self._words = words_of(self.text)
        self._begins = [first for first, _ in self._words]

    def at(self, token: int, place: int, certain: bool) -> TokenSpan | None:
        """The span that begins with sounding token ``token`` (counted from 0), if one does.

        Called for each in order. ``place``: the text token it speaks, counted with the start of text before them.
        """
        word = self._guess(token) if self.chars is None else self._found(place)
        if word <= self._word or not self._words:
            return None
        skipped, self._word = self._word + 1, word
        exact = self.chars is not None and certain and word == skipped
        return TokenSpan(token, self._words[skipped][0], self._words[word][1], exact)

    def _found(self, place: int) -> int:
        """The word of a text token; start of text belongs to the first, its stop to the last."""
        assert self.chars is not None
        if place > len(self.chars):
            return len(self._words) - 1
        return self._word_of(self.chars[place - 1]) if place > 0 else 0

    def _guess(self, token: int) -> int:
        return self._word_of(int(token / TOKENS_PER_S / self.seconds_per_char))

    def _word_of(self, char: int) -> int:
        """The word that a character is in, or the one before where it is between two."""
        return max(0, bisect_right(self._begins, char) - 1)
