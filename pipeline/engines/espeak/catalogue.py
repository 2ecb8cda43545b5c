"""The voices espeak-ng brings, read from its own files, and what names mean which.

A voice id is a language file's name in lower case (``en-us``, ``fr``, ``cmn``), with or without
a variant that changes its sound (``en-us+f3``); ``+f3`` is the variant in the language asked for.
The library itself answers ``fr-fr``, ``zh``, ``en-gb`` or ``no`` with an error and goes on in the old
voice: here every tag that a voice file declares is a name for it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ipc.messages import Voice
from pipeline.engines.base import EngineError
from pipeline.engines.espeak.library import data_path

DEFAULT_VOICE = "en-us"
_USUAL_PRIORITY = 5
_REGION_OR_SCRIPT = re.compile(r"[a-z]{2}|[0-9]{3}|[a-z]{4}")


@dataclass(frozen=True)
class LanguageVoice:
    """A language file. ``tags``: (language tag, priority; lower is better). ``below``: its path."""

    id: str
    name: str
    tags: tuple[tuple[str, int], ...]
    below: str


@dataclass(frozen=True)
class Chosen:
    """A voice to speak with; ``variant`` may be empty."""

    voice: LanguageVoice
    variant: str

    @property
    def id(self) -> str:
        """What `Library.use` takes, and what a request may name."""
        return f"{self.voice.id}+{self.variant}" if self.variant else self.voice.id


class Catalogue:
    """All voices and variants below one data folder.

    Those whose dictionary is missing are left out: of 119 languages the package brings three (Faroese,
    Karakalpak, Xextan) that cannot be loaded.
    """

    def __init__(self, data: Path) -> None:
        found = [_read_language(path, data) for path in sorted((data / "lang").rglob("*")) if path.is_file()]
        self.voices = tuple(sorted((voice for voice in found if voice), key=lambda voice: voice.id))
        variants = [_read_variant(path) for path in sorted((data / "voices" / "!v").iterdir()) if path.is_file()]
        self.variants = {name: gender for name, gender in variants if name}
        self.names = _names(self.voices)
        self._variant_names = {_plain(name): name for name in self.variants}

    def choose(self, voice: str, language: str) -> Chosen:
        """What to speak with; either may be empty (``builtin`` is an empty voice).

        A language decides the pronunciation: a voice of another language lends its variant only.
        Raises `EngineError` with close matches for a name that does not exist.
        """
        named, plus, variant_name = ("", "", "") if voice == "builtin" else voice.partition("+")
        variant = self._variant(variant_name) if plus else ""
        base = self._find(named, "voice") if named else None
        if language:
            wanted = self._find(language, "language")
            if base is None or not _speaks(base, wanted, language):
                base = wanted
        return Chosen(base or self.names[DEFAULT_VOICE], variant)

    def listing(self) -> tuple[Voice, ...]:
        """Every voice, then every variant, with the default language; they combine freely."""
        plain = [Voice(voice.id, voice.name, voice.id) for voice in self.voices]
        varied = [
            Voice(f"{DEFAULT_VOICE}+{name}", f"{name} (a variant, of every voice)", DEFAULT_VOICE, gender)
            for name, gender in self.variants.items()
        ]
        return tuple(plain + varied)

    def _find(self, name: str, field: str) -> LanguageVoice:
        parts = _plain(name).split("-")
        for count in range(len(parts), 0, -1):
            if found := self.names.get("-".join(parts[:count])):
                return found
            if not _REGION_OR_SCRIPT.fullmatch(parts[count - 1]):
                break
        raise EngineError(f"{field}: espeak has no {name!r}; {_close(_plain(name), self.names)}")

    def _variant(self, name: str) -> str:
        found = self._variant_names.get(_plain(name))
        if found is None:
            near = _close(_plain(name), self._variant_names)
            raise EngineError(f"voice: espeak has no variant {'+' + name!r}; {near}")
        return found


@lru_cache(maxsize=1)
def bundled() -> Catalogue:
    """What espeakng-loader brings."""
    return Catalogue(data_path())


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def _speaks(voice: LanguageVoice, wanted: LanguageVoice, language: str) -> bool:
    """Whether the voice is already one for this language (``en-gb-x-rp`` for ``en``)."""
    return voice is wanted or _plain(language) in (tag for tag, _ in voice.tags)


def _close(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 8, 0.5)
    near += [other for other in names if other[:2] == name[:2] and other not in near][: 8 - len(near)]
    return f"did you mean {', '.join(near)}?" if near else "`speak --voices` lists what there is"


def _lines(path: Path) -> list[tuple[str, list[str]]]:
    """(attribute, words) of a voice file. Comments in some are in another encoding."""
    split = (line.split("//")[0].split() for line in path.read_text("utf-8", errors="replace").splitlines())
    return [(words[0], words[1:]) for words in split if len(words) > 1]


def _read_language(path: Path, data: Path) -> LanguageVoice | None:
    lines = _lines(path)
    tags, dictionary, name = [], "", path.name
    for attribute, words in lines:
        if attribute == "language":
            tags.append((words[0].lower(), int(words[1]) if len(words) > 1 else _USUAL_PRIORITY))
        elif attribute == "dictionary":
            dictionary = words[0]
        elif attribute == "name":
            name = " ".join(words)
    dictionary = dictionary or (tags[0][0].split("-")[0] if tags else path.name)
    if not (data / f"{dictionary}_dict").is_file():
        return None
    below = path.relative_to(data / "lang").as_posix()
    return LanguageVoice(path.name.lower(), name, tuple(tags), below)


def _read_variant(path: Path) -> tuple[str, str]:
    genders = [words[0] for attribute, words in _lines(path) if attribute == "gender"]
    return path.name, genders[-1] if genders and genders[-1] in ("male", "female") else ""


def _names(voices: tuple[LanguageVoice, ...]) -> dict[str, LanguageVoice]:
    """Every name of every voice: its own id first, then declared tags, the best priority winning."""
    claims = [(priority, len(voice.id), voice.id, tag, voice) for voice in voices for tag, priority in voice.tags]
    names = {voice.id: voice for voice in voices}
    for _, _, _, tag, voice in sorted(claims, key=lambda claim: claim[:4]):
        names.setdefault(tag, voice)
    return names
