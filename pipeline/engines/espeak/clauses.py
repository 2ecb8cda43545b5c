"""What espeak-ng must be told about text, and what its answers mean for text.

- `clean`: text that cannot be taken for commands, with the way back to the original positions.
- `terminator_of`: how a clause ends, as one ASCII mark for the phoneme synthesiser.
- `word_ranges`: which characters each spoken word stands for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.engines.espeak.library import Word

LONGEST_RUN = 128
"""Half letters without white space. The library's buffers for a word are not checked: of 80 bytes for dotted
letters (``A.B.``), of 200 for the sounds of a word and of its endings (``s's's'``). 64 letters fit in
all of them; a letter of three bytes counts as one and a half, one of four as three."""
_HALVES = (2, 2, 3, 6)
_CUT_BEHIND = frozenset("/-_&=+|~:;@#?!)]}")

_CLAUSE_BYTES = 700
"""Of text that is handed over at once, with two more for each mark, which the library puts spaces around: its
clause has 800 bytes, and ``w.w.w. `` fills them with less."""

_DOT_THEN_SYMBOL = re.compile(r"(?<![^\W\d_])[^\W\d_]\.(?=[^\w\s]*[&%@#*+=\\$/])")
"""As in ``D./Dña.``: Spanish copies the rest of the clause into a buffer for one word."""

_KEPT_FORMATS = "\u200c\u200d"  # the non-joiner and joiner of Persian, Hindi, emoji
_SPOKEN_PUNCTUATION = frozenset("%&@#*/\\§†‡‰‱&%@#*/")
PARAGRAPH = "\n\n\n"
"""Line ends that make a clause end as a paragraph does."""

_MARKS = {
    ".": ".։۔܁܄।෴།።᙮᠃᠉⳹⳾⸳⸼。꓿꘎꛳︒﹒．｡𖫵𛲟𝪈",
    ",": ",՝،܂߸༔፣᠂᠈⸲⸴⹁、꓾꘍꛵︐︑﹐﹑，､𑑍𝪇",
    "?": "?\u037e؟܉፧᥅⁇⁈⁉⳺⳻꘏꛷︖﹖？𑅃𞥟❓❔",
    "!": "!܃߹᥄‼︕﹗！𞥞❕❗❢❣",
    ":": ":܆܇፥፦᠄꛴︓﹕：𒑱𒑲𝪊⦂",
    ";": ";\u0387؛܈፤⁏⸵꛶︔﹔；𝪉…᠁︙⋮⋯⋰⋱–—⸺⸻︱︲¡¿",
    PARAGRAPH: "܀॥༎჻፨",
}
_MARK_OF = {character: mark for mark, characters in _MARKS.items() for character in characters}


@dataclass(frozen=True)
class Clean:
    """``text`` to speak; ``origin[i]`` is where its character i stood (one more for the end)."""

    text: str
    origin: tuple[int, ...]


@dataclass(frozen=True)
class WordRange:
    """From word ``first`` of the clause on, characters [start, end) of the clean text are spoken."""

    first: int
    start: int
    end: int
    exact: bool


def clean(text: str) -> Clean:
    """Without control characters, private and unassigned ones, lone surrogates, ``[[`` and runs too long.

    A zero byte would end the text, 0x01 begins a command, private characters mean others to the
    library and ``[[`` begins phonemes. Decomposed letters are composed: the dictionaries hold those.
    """
    kept: list[str] = []
    origin: list[int] = []
    for at, cluster in _clusters(text):
        for character in cluster:
            category = unicodedata.category(character)
            if category == "Cc":
                character = "\n" if character == "\n" else " "
            elif category[0] == "C" and character not in _KEPT_FORMATS:
                continue
            if character == "[" and kept and kept[-1] == "[":
                character = " "
            kept.append(character)
            origin.append(at)
    return _with_gaps("".join(kept), (*origin, len(text)))


def _with_gaps(text: str, origin: tuple[int, ...]) -> Clean:
    """With a space where the library would write beyond its buffers; most texts need none."""
    cuts = sorted({*_cuts(text), *(match.end() for match in _DOT_THEN_SYMBOL.finditer(text))})
    if not cuts:
        return Clean(text, origin)
    kept: list[str] = []
    places: list[int] = []
    for begin, end in pairwise((0, *cuts, len(text))):
        kept.append(text[begin:end])
        places += origin[begin:end]
        if end < len(text):
            places.append(origin[end])
    return Clean(" ".join(kept), (*places, origin[-1]))


def _cuts(text: str) -> list[int]:
    """Where spaces must go: behind a mark if there is one in the later half of a run, never before a letter's
    marks unless there is nothing else. Wide punctuation ends a clause, so it ends a run."""
    cuts: list[int] = []
    size, size_behind, behind, letter = 0, 0, 0, 0
    for at, character in enumerate(text):
        if character.isspace() or (character in _MARK_OF and character >= "\u3000"):
            size, size_behind, behind, letter = 0, 0, 0, 0
            continue
        halves = _HALVES[len(character.encode()) - 1]
        if size + halves > LONGEST_RUN:
            cut, size = (behind, size - size_behind) if size_behind > LONGEST_RUN // 2 else (at, 0)
            if cut == at and unicodedata.category(character)[0] == "M" and letter:
                cut = letter
                size = sum(_HALVES[len(one.encode()) - 1] for one in text[cut:at])
            cuts.append(cut)
            size_behind, behind, letter = 0, 0, 0
        if unicodedata.category(character)[0] != "M" and size > LONGEST_RUN // 2:
            letter = at
        size += halves
        if character in _CUT_BEHIND:
            behind, size_behind = at + 1, size
    return cuts


def window(text: str, at: int) -> str:
    """The text from ``at`` on that the library may be given at once: as much as has room, up to white space.

    A clause that ends before that is whole in it.
    """
    size, gap = 0, 0
    for index in range(at, len(text)):
        character = text[index]
        if character.isspace():
            gap = index + 1
        marked = not (character.isalnum() or character.isspace() or unicodedata.category(character)[0] == "M")
        size += len(character.encode()) + (2 if marked else 0)
        if size > _CLAUSE_BYTES and gap > at:
            return text[at:gap]
    return text[at:]


def _clusters(text: str) -> list[tuple[int, str]]:
    """(position, composed letter) for each letter with its marks."""
    if unicodedata.is_normalized("NFC", text):
        return list(enumerate(text))
    found = re.finditer(r"(?s).[\u0300-\u036f\u0653-\u0655\u3099\u309a]*", text)
    return [(match.start(), unicodedata.normalize("NFC", match.group())) for match in found]


def speakable(text: str) -> bool:
    """Whether there may be anything in a text to pronounce: letters, digits, symbols."""
    return any(_spoken(character) for character in text)


def _spoken(character: str) -> bool:
    if character in _MARK_OF:
        return False
    category = unicodedata.category(character)
    return category[0] in "LNMS" or character in _SPOKEN_PUNCTUATION


def terminator_of(clause: str) -> str:
    """The mark a clause ends with: one of ``. , ? ! : ;``, `PARAGRAPH` behind it, or nothing."""
    at = len(clause)
    while at and not _spoken(clause[at - 1]):
        at -= 1
    tail = re.sub(r"\.{3,}", "…", clause[at:])
    marks = [_MARK_OF[character] for character in tail if character in _MARK_OF]
    mark = marks[-1] if marks else ""
    if mark and mark in "?!":
        while len(marks) > 1 and marks[-2] in "?!":
            marks.pop()  # the first of ?!? decides
        mark = marks[-1]
    if tail.count("\n") > 1 and not mark.endswith(PARAGRAPH):
        mark += PARAGRAPH
    return mark


def word_ranges(text: str, start: int, end: int, words: Sequence[Word], spoken: int) -> list[WordRange]:
    """Which characters of ``text[start:end]``, a clause, its ``spoken`` words stand for.

    ``words`` is what the library told, positions relative to ``start``. Where it told another number
    of words than there are, all are spread over what it told, and marked inexact.
    """
    if not words or not spoken:
        return []
    exact = len(words) == spoken
    firsts = range(spoken) if exact else [_spread(index, len(words), spoken) for index in range(len(words))]
    begins, ends = _bounds(text, start, end, words)
    made: list[WordRange] = []
    for index, first in enumerate(firsts):
        one = WordRange(first, begins[index], ends[index], exact)
        if made and one.start >= one.end:
            one = made.pop()  # what it stands for is not told: the word before speaks on
        elif made and (one.start <= made[-1].start or _one_number(text, made[-1], one)):
            last = made.pop()
            begin = min(last.start, one.start)
            one = WordRange(last.first, begin, max(last.end, one.end), last.exact and one.start >= last.start)
        elif made and one.first == made[-1].first:
            continue
        made.append(one)
    return [one for one in made if one.start < one.end]


def _spread(index: int, told: int, spoken: int) -> int:
    return min(index * spoken // told, spoken - 1)


def _bounds(text: str, start: int, end: int, words: Sequence[Word]) -> tuple[list[int], list[int]]:
    """Where words begin and end: up to the next one, without what is not spoken around them."""
    told = [min(max(start + word.position, start), end) for word in words]
    begins, ends = [], []
    for index, begin in enumerate(told):
        after = told[index + 1] if index + 1 < len(told) else end
        stop = max(after, begin)
        while begin < stop and not _spoken(text[begin]):
            begin += 1
        while start < begin < end and unicodedata.category(text[begin])[0] == "M":
            begin -= 1
        while stop > begin and not _spoken(text[stop - 1]):
            stop -= 1
        begins.append(begin)
        ends.append(stop)
    return begins, ends


def _one_number(text: str, left: WordRange, right: WordRange) -> bool:
    """Whether both belong to one number, date or amount: a digit, and neither spaces nor letters."""
    both = text[left.start : right.end]
    return any(character.isdigit() for character in both) and not any(
        character.isspace() or character.isalpha() for character in both
    )
