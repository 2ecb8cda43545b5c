"""Where clean text may be cut: ends of sentences and clauses in any language.

`Sentences` is asked about one mark at a time and answers from a few characters around it, so that the answer is the
same whether or not more text follows. sentencex knows the abbreviations of 300 languages (an unknown one is taken
through its fallbacks to English); numbers, initials, addresses, quotes and ellipses are decided here.
"""

from __future__ import annotations

import re
from typing import Literal

from sentencex import get_sentence_boundaries

from pipeline.spoken import NO_BREAK, runs_words_together

Verdict = Literal["cut", "go on", "wait"]

_PERIODS = ".．"
_STRONG = "!?…！？।॥؟۔։።፧។៕။၏༎‼⁉"
_FULL_WIDTH = "。｡！？．"
SENTENCE_MARKS = _PERIODS + _STRONG + "。｡"
CLAUSE_MARKS = ",;:—–-、，；：،؛፣፤"
_CLAUSE_FULL_WIDTH = "、，；："
_CLOSING = "\"'”’»›)]}」』】）》〉"
_RUN = re.compile(f"[{re.escape(SENTENCE_MARKS)}]{{1,32}}")
_CLOSERS = re.compile(f"(?:\u00a0»|[{re.escape(_CLOSING)}]){{0,32}}")
_FRENCH_CLOSERS = re.compile(f"(?:[ \u00a0]»|[{re.escape(_CLOSING)}]){{0,32}}")
_GERMAN_CLOSERS = re.compile(f"[{re.escape(_CLOSING)}“‘«‹]{{0,32}}")
_LAST_MARKS = re.compile(f"[{re.escape(SENTENCE_MARKS)}]+[{re.escape(_CLOSING)}“‘«‹]*\\Z")
_NEXT_WORD = re.compile(r"[^\w\n\x0c\U00100000-\U0010FFFF]{0,4}(\w?)")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_WORDS = re.compile(r"[\w'’]+")

_ORDINAL_DOTS = re.compile("bs|cs|da|de|et|fi|fo|hr|hu|is|lb|lv|nb|nn|no|pl|sk|sl|sr|tr")
"""Languages that write 3. for third: a short number with a dot ends no sentence."""
_OWN_ABBREVIATIONS = {
    "hi": frozenset(("डॉ", "प्रो", "श्रीमती")),
    "en": frozenset(("approx", "cf", "est", "excl", "incl", "max", "min", "tel", "vs")),
}
_LOW_QUOTES = re.compile("bg|bs|cs|da|de|et|hr|is|ka|lb|lt|lv|mk|sk|sl|sr")
"""Languages that close quotes with the marks that others open them with: „so“ and »so«."""
_CONTEXT_CHARS = 60
_FIRST_CLAUSE_LETTERS = 8
_FIRST_CLAUSE_WORDS = 2
_FIRST_CLAUSE_CJK = 4


class Sentences:
    """Answers for one language (a tag such as en, pt-BR, cmn; what nobody knows is treated as English)."""

    def __init__(self, language: str) -> None:
        primary = re.split("[-_]", language.lower(), maxsplit=1)[0]
        self._language = {"cmn": "zh", "yue": "zh", "nb": "no", "nn": "no"}.get(primary, primary) or "en"
        self._abbreviations = _OWN_ABBREVIATIONS.get(self._language, frozenset())
        self._closers = _FRENCH_CLOSERS if self._language == "fr" else _CLOSERS
        if _LOW_QUOTES.fullmatch(self._language):
            self._closers = _GERMAN_CLOSERS

    def is_sentence_mark(self, char: str) -> bool:
        """A mark that `sentence_end` is to be asked about."""
        return char in SENTENCE_MARKS or (self._language == "el" and char in ";\u037e")

    def marks_end(self, text: str, at: int) -> int:
        """Where the marks that begin at ``at`` and the quotes and brackets that they close end."""
        run = _RUN.match(text, at)
        closers = self._closers.match(text, run.end() if run else at + 1)
        return closers.end() if closers else at + 1

    def sentence_end(self, text: str, at: int) -> tuple[Verdict, int]:
        """Whether a sentence ends with the mark at ``at``, and where (after closing quotes)."""
        end = self.marks_end(text, at)
        if end == len(text):
            return "wait", end
        if text[end] != " ":
            return ("go on" if self._needs_space(text, at, end) else "cut"), end
        following = _NEXT_WORD.match(text, end + 1)
        if following and not following[1] and following.end() == len(text):
            return "wait", end
        return ("cut" if self._ends(text, at, following[1] if following else "") else "go on"), end

    def is_sentence(self, text: str) -> bool:
        """Whether the text, if no more comes, ends with the end of a sentence."""
        found = _LAST_MARKS.search(text)
        return found is not None and self._ends(text, found.start(), "")

    def _needs_space(self, text: str, at: int, end: int) -> bool:
        """Chinese and Japanese marks end a sentence with no space behind them."""
        run = _RUN.match(text, at)
        marks = run[0] if run else text[at]
        if any(mark in _FULL_WIDTH for mark in marks):
            return False
        cjk_around = at > 0 and runs_words_together(text[at - 1]) and runs_words_together(text[end])
        return not (cjk_around and any(mark in "!?" for mark in marks))

    def _ends(self, text: str, at: int, following: str) -> bool:
        if following.islower():
            return False
        run = _RUN.match(text, at)
        if run and run[0] != ".":
            return True
        return self._period_ends(text, at, following)

    def _period_ends(self, text: str, at: int, following: str) -> bool:
        """One period after a word: abbreviation, initial, number, or the end."""
        before = text[max(0, at - _CONTEXT_CHARS) : at]
        word = re.split(r"[\s(\[{\"'“‘«„]", before)[-1]
        if "/" in word or "@" in word:
            return True
        if _INITIALS.fullmatch(word) and word not in ("I", "я", "Я"):
            return False
        if word.isdecimal():
            return self._number_ends(before[: len(before) - len(word)], word)
        if word.lower() in self._abbreviations:
            return False
        if word == "no" and self._language == "en":
            return not following.isdecimal()
        # A word in front: at the very beginning sentencex takes initials for sentences. Plain spaces: it steps one
        # byte past white space and panics inside one that has more.
        asked = "x " + before.replace(NO_BREAK, " ") + ". "
        boundaries = get_sentence_boundaries(self._language, asked + (following or "X"))
        return bool(boundaries[-1]["start_index"] >= len(asked))

    def _number_ends(self, before: str, number: str) -> bool:
        """``1. Open it.`` numbers what follows; ``3. Mai`` is third."""
        if len(number) <= 2 and _ORDINAL_DOTS.fullmatch(self._language):
            return False
        before = before.rstrip()
        numbering = not before or before[-1] in SENTENCE_MARKS + ":;"
        return not (numbering and len(number) <= 3)

    def clause_end(self, text: str, at: int) -> tuple[Verdict, int]:
        """Whether the clause mark at ``at`` ends a first clause that is worth saying alone, and where.

        It must hold two words and eight letters (four, where words have no space between them): fewer sound
        chopped and buy no time, as the next clause is not there yet when they have been said.
        """
        closers = self._closers.match(text, at + 1)
        end = closers.end() if closers else at + 1
        if end == len(text):
            return "wait", end
        if end > at + 1 and text[at + 1] in ")]}":
            return "go on", end
        spaced = text[end] == " "
        if spaced and end + 1 == len(text):
            return "wait", end
        if not spaced and text[at] not in _CLAUSE_FULL_WIDTH + "—":
            return "go on", end
        if text[at] in "-–" and text[at - 1 : at] not in (" ", "\u00a0"):
            return "go on", end
        after = text[end + 1] if spaced else text[end]
        if at and text[at - 1].isdigit() and after.isdigit():
            return "go on", end
        return ("cut" if self._worth_saying(text[:at]) else "go on"), end

    @staticmethod
    def _worth_saying(clause: str) -> bool:
        letters = sum(map(str.isalnum, clause))
        if sum(map(runs_words_together, clause)) >= _FIRST_CLAUSE_CJK:
            return True
        return letters >= _FIRST_CLAUSE_LETTERS and len(_WORDS.findall(clause)) >= _FIRST_CLAUSE_WORDS
