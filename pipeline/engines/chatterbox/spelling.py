"""Text to text tokens, as the stock package does it for each model, with the way back to the text as given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.languages import LanguageProcessing
from pipeline.engines.chatterbox.tracing import Traced
from pipeline.engines.chatterbox.variants import Variant

SPACE = "[SPACE]"
SPECIAL = ("[START]", "[STOP]")

_SHARED = ((":", ","),)
_DASHES_AND_QUOTES = (
    ("—", "-"),
    ("–", "-"),
    (" ,", ","),
    ("“", '"'),
    ("”", '"'),
    ("‘", "'"),
    ("’", "'"),
)
_LLAMA_PUNCTUATION = (("...", ", "), ("…", ", "), (":", ","), (" - ", ", "), (";", ", "), *_DASHES_AND_QUOTES)
_TURBO_PUNCTUATION = (("…", ", "), (":", ","), *_DASHES_AND_QUOTES)
_ENDINGS = (".", "!", "?", "-", ",")
_EASTERN_ENDINGS = ("、", "，", "。", "？", "！")


@dataclass(frozen=True)
class Encoded:
    """Text tokens without start and stop. ``chars[i]``: index in the text as given of the first character that
    token i stands for (non-decreasing; within a word only where the language's processing tells)."""

    ids: tuple[int, ...]
    chars: tuple[int, ...]


def normal(variant: Variant, text: Traced) -> Traced:
    """Punctuation and spaces as the model was trained on: a capital to begin with, an end to end with."""
    if text.text[:1].islower():
        first = text.cut(0, 1).each(str.upper)
        text = Traced(first.text + text.text[1:], first.origin + text.origin[1:])
    text = text.words_joined()
    for old, new in _TURBO_PUNCTUATION if variant.turbo else _LLAMA_PUNCTUATION:
        text = text.replaced(old, new)
    text = text.right_stripped(" ")
    many = len(variant.languages) > 1
    return text if text.text.endswith(_ENDINGS + (_EASTERN_ENDINGS if many else ())) else text.followed_by(".")


class TextEncoder:
    """One model's tokenizer, from the files of a checkpoint folder.

    ``unprocessed``: a language whose text processing is not installed is spoken without it instead of refused.
    Raises `EngineError` where the files cannot be read.
    """

    def __init__(self, variant: Variant, folder: Path, unprocessed: bool = False) -> None:
        self._variant = variant
        self._encode: Callable[[str], tuple[list[int], list[tuple[int, int]]]]
        try:
            self._encode = _turbo(folder) if variant.turbo else _graphemes(folder / variant.tokenizer)
        except EngineError:
            raise
        except Exception as error:  # what the tokenizers raise is nothing more special
            raise EngineError(f"the tokenizer in {folder} cannot be read: {error}") from error
        self._languages = LanguageProcessing(folder, unprocessed)

    def encode(self, text: str, language: str) -> Encoded:
        """Tokens of a text. Raises `EngineError` when there is nothing to speak or the language cannot be spoken."""
        if not text.strip():
            raise EngineError("text: there is nothing in it to speak")
        if language not in self._variant.languages:
            spoken = ", ".join(self._variant.languages)
            raise EngineError(f"language: {language!r} is not spoken by {self._variant.name}; languages: {spoken}")
        spelt = normal(self._variant, Traced.of(text))
        if len(self._variant.languages) > 1:
            spelt = self._languages.process(spelt.lowered().decomposed(), language).headed_by(f"[{language}]")
        if not self._variant.turbo:
            spelt = spelt.replaced(" ", SPACE)
        ids, offsets = self._encode(spelt.text)
        return Encoded(tuple(ids), _firsts(spelt, offsets))


def _firsts(spelt: Traced, offsets: list[tuple[int, int]]) -> tuple[int, ...]:
    """The original's character for each token, never going back."""
    chars, last, end = [], 0, len(spelt.origin) - 1
    for begin, _ in offsets:
        last = max(last, spelt.origin[min(begin, end)])
        chars.append(last)
    return tuple(chars)


def _graphemes(path: Path) -> Callable[[str], tuple[list[int], list[tuple[int, int]]]]:
    """The tokenizer file of the English and the multilingual model."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    vocabulary = tokenizer.get_vocab()
    if lacking := [name for name in SPECIAL if name not in vocabulary]:
        raise EngineError(f"{path} is not a tokenizer of Chatterbox: it has no {', '.join(lacking)}")

    def encode(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = tokenizer.encode(text)
        return encoding.ids, encoding.offsets

    return encode


def _turbo(folder: Path) -> Callable[[str], tuple[list[int], list[tuple[int, int]]]]:
    """Turbo's tokenizer, of GPT-2's kind."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

    def encode(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = tokenizer(text, truncation=True, return_offsets_mapping=True)
        return encoding["input_ids"], encoding["offset_mapping"]

    return encode
