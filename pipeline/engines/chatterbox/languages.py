"""What some languages need before their text can be spelt: stress, vowels, codes of characters.

Each needs a package of its own, which is imported when that language is asked for and not before. Where it is
missing the language is refused with the name of the package: the stock package speaks on without, which sounds
wrong and does not say why.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.tracing import Traced

CANGJIE = "Cangjie5_TC.json"
Process = Callable[[Traced], Traced]

_PACKAGES = {
    "zh": "spacy-pkuseg",
    "ja": "pykakasi",
    "he": "dicta-onnx",
    "ru": "russian-text-stresser",
}
_WITHOUT = "or set model.options.unprocessed to speak it without, at the cost of how it sounds"


class LanguageProcessing:
    """The processing of each language, made at its first use. ``folder``: of the checkpoint."""

    def __init__(self, folder: Path, unprocessed: bool = False) -> None:
        self._folder = folder
        self._unprocessed = unprocessed
        self._made: dict[str, Process] = {"ko": korean}

    def process(self, text: Traced, language: str) -> Traced:
        """The text as the tokenizer takes it. Raises `EngineError` naming the package that is missing."""
        if language not in self._made:
            self._made[language] = self._make(language)
        try:
            return self._made[language](text)
        except Exception as error:
            raise EngineError(f"language {language}: {_PACKAGES.get(language)} failed: {error}") from error

    def _make(self, language: str) -> Process:
        if language not in _PACKAGES:
            return _as_it_is
        try:
            return {"zh": self._chinese, "ja": _japanese, "he": _hebrew, "ru": _russian}[language]()
        except Exception as error:
            if self._unprocessed:
                return _as_it_is
            package = _PACKAGES[language]
            if isinstance(error, ImportError):
                raise EngineError(f"language {language}: needs `pip install {package}`, {_WITHOUT}") from error
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"language {language}: {package} cannot be started: {error}; {_WITHOUT}") from error

    def _chinese(self) -> Process:
        from spacy_pkuseg import pkuseg

        path = self._folder / CANGJIE
        if not path.is_file():
            raise EngineError(f"language zh: {path} is missing; get it from where the weights come from")
        return Cangjie(json.loads(path.read_text(encoding="utf-8")), pkuseg())


def _as_it_is(text: Traced) -> Traced:
    return text


def korean(text: Traced) -> Traced:
    """Syllables taken apart into their letters."""
    return text.each(_letters).stripped()


def _letters(char: str) -> str:
    if not "\uac00" <= char <= "\ud7a3":
        return char
    number = ord(char) - 0xAC00
    end = chr(0x11A7 + number % 28) if number % 28 else ""
    return chr(0x1100 + number // 588) + chr(0x1161 + number % 588 // 28) + end


class Cangjie:
    """Chinese characters as their Cangjie codes, words set apart.

    ``entries``: lines of character, tab, code; of several characters with one code the later ones are numbered.
    """

    def __init__(self, entries: list[str], segmenter: Any) -> None:
        self._segmenter = segmenter
        self._codes: dict[str, str] = {}
        taken: dict[str, list[str]] = {}
        for entry in entries:
            char, code = entry.split("\t")[:2]
            self._codes[char] = code
            taken.setdefault(code, []).append(char)
        self._taken = taken

    def __call__(self, text: Traced) -> Traced:
        """Raises whatever the segmenter raises."""
        return _in_words(text, self._segmenter.cut(text.text)).each(self._spelt)

    def _spelt(self, char: str) -> str:
        code = self._codes.get(char) if unicodedata.category(char) == "Lo" else None
        if code is None:
            return char
        number = self._taken[code].index(char)
        return "".join(f"[cj_{letter}]" for letter in f"{code}{number or ''}") + "[cj_.]"


def _in_words(text: Traced, words: list[str]) -> Traced:
    """The text with its words set apart by spaces; a word's characters are found in their order."""
    joined = " ".join(words)
    origin, at = [], 0
    for char in joined:
        found = text.text.find(char, at) if char != " " else -1
        if found >= 0:
            at = found + 1
            origin.append(text.origin[found])
        else:
            origin.append(text.origin[min(at, len(text.origin) - 1)] if text.origin else 0)
    return Traced(joined, tuple(origin))


def _japanese() -> Process:
    import pykakasi

    converter = pykakasi.kakasi()

    def process(text: Traced) -> Traced:
        made, at = Traced("", ()), 0
        for part in converter.convert(text.text):
            source = text.cut(at, at + len(part["orig"]))
            at += len(part["orig"])
            spoken = source if not any(_is_kanji(char) for char in source.text) else source.rewritten(_hira(part))
            made = Traced(made.text + spoken.text, made.origin + spoken.origin)
        return made.decomposed()

    return process


def _hira(part: dict[str, str]) -> str:
    """Where は and へ begin a reading a space keeps them from being taken for particles."""
    hira = part["hira"]
    return f" {hira}" if hira[:1] in ("は", "へ") and hira else hira


def _is_kanji(char: str) -> bool:
    return "一" <= char <= "鿿"


def _hebrew() -> Process:
    from dicta_onnx import Dicta

    dicta = Dicta()
    return lambda text: text.rewritten(dicta.add_diacritics(text.text))


def _russian() -> Process:
    from russian_text_stresser.text_stresser import RussianTextStresser

    stresser = RussianTextStresser()
    return lambda text: text.rewritten(stresser.stress_text(text.text))
