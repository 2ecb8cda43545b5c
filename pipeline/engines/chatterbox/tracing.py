"""Text that remembers where it comes from: every character knows which one of the original it stands for."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Traced:
    """``text``, and for each of its characters an index into the original (non-decreasing)."""

    text: str
    origin: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> Traced:
        """The original itself."""
        return cls(text, tuple(range(len(text))))

    def replaced(self, old: str, new: str) -> Traced:
        """As `str.replace`; the new characters stand for the old ones in order."""
        if old not in self.text:
            return self
        text: list[str] = []
        origin: list[int] = []
        at = 0
        while (found := self.text.find(old, at)) >= 0:
            text += [self.text[at:found], new]
            origin += self.origin[at:found]
            origin += [self.origin[found + min(index, len(old) - 1)] for index in range(len(new))]
            at = found + len(old)
        return Traced("".join([*text, self.text[at:]]), (*origin, *self.origin[at:]))

    def each(self, change: Callable[[str], str]) -> Traced:
        """What ``change`` makes of each character; all of that stands for it."""
        changed = [change(char) for char in self.text]
        return Traced("".join(changed), self._spread(changed))

    def lowered(self) -> Traced:
        """As `str.lower`, which looks at neighbours (a sigma at a word's end) but keeps their number."""
        return Traced(self.text.lower(), self._spread([char.lower() for char in self.text]))

    def decomposed(self) -> Traced:
        """In Unicode's normal form KD, which may put marks of one letter in another order."""
        whole = unicodedata.normalize("NFKD", self.text)
        return Traced(whole, self._spread([unicodedata.normalize("NFKD", char) for char in self.text]))

    def _spread(self, pieces: list[str]) -> tuple[int, ...]:
        return tuple(at for at, piece in zip(self.origin, pieces, strict=True) for _ in piece)

    def words_joined(self) -> Traced:
        """As ``" ".join(text.split())``."""
        text, origin = "", []
        at = 0
        for word in self.text.split():
            at = self.text.index(word, at)
            if text:
                text += " "
                origin.append(self.origin[at - 1])
            text += word
            origin += self.origin[at : at + len(word)]
            at += len(word)
        return Traced(text, tuple(origin))

    def stripped(self, chars: str | None = None) -> Traced:
        """As `str.strip`."""
        begin = len(self.text) - len(self.text.lstrip(chars))
        return self.cut(begin, begin + len(self.text.strip(chars)))

    def right_stripped(self, chars: str | None = None) -> Traced:
        """As `str.rstrip`."""
        return self.cut(0, len(self.text.rstrip(chars)))

    def cut(self, begin: int, end: int) -> Traced:
        """A part."""
        return Traced(self.text[begin:end], self.origin[begin:end])

    def followed_by(self, text: str) -> Traced:
        """With ``text`` behind; it stands for the last character."""
        return Traced(self.text + text, (*self.origin, *([self.origin[-1] if self.origin else 0] * len(text))))

    def headed_by(self, text: str) -> Traced:
        """With ``text`` in front; it stands for the first character."""
        return Traced(text + self.text, (*([self.origin[0] if self.origin else 0] * len(text)), *self.origin))

    def rewritten(self, text: str) -> Traced:
        """What something made of it that does not tell how: word for word where their number is the same,
        else by position. Approximate."""
        mine, theirs = _words(self.text), _words(text)
        if not self.text or not text:
            return Traced(text, (self.origin[0] if self.origin else 0,) * len(text))
        if len(mine) != len(theirs):
            return Traced(text, tuple(self.origin[index * len(self.text) // len(text)] for index in range(len(text))))
        begins = [begin for begin, _ in theirs]
        origin = [self.origin[0]] * begins[0] if begins else [self.origin[0]] * len(text)
        for (begin, _), (first, last) in zip(mine, pairwise([*begins, len(text)]), strict=True):
            origin += [self.origin[begin]] * (last - first)
        return Traced(text, tuple(origin))


def _words(text: str) -> list[tuple[int, int]]:
    """Begin and end of each word."""
    found, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        found.append((at, at + len(word)))
        at += len(word)
    return found
