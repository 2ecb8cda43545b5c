"""Names of voices as other programs know them, turned into ours.

In this order: the configuration's (`gateway.aliases`), a voice of the engine by its own id, OpenAI's names,
ElevenLabs' premade voices, Kokoro-style ids (``ff_siwis``: French, female; the first of a blend counts), a
language (``fr-fr``). A name is looked up in the engine's list and never becomes a path. Which voice stands
for a name is always the same one with the same engine.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ipc.messages import Voice, VoiceList

OPENAI = {
    "alloy": "f",
    "ash": "m",
    "ballad": "m",
    "cedar": "m",
    "coral": "f",
    "echo": "m",
    "fable": "m",
    "marin": "f",
    "nova": "f",
    "onyx": "m",
    "sage": "f",
    "shimmer": "f",
    "verse": "m",
}
"""OpenAI's voices, and how they sound."""

ELEVENLABS = {
    "21m00Tcm4TlvDq8ikWAM": ("Rachel", "f"),
    "29vD33N1CtxCmqQRPOHJ": ("Drew", "m"),
    "2EiwWnXFnvU5JabPnv8n": ("Clyde", "m"),
    "9BWtsMINqrJLrRacOk9x": ("Aria", "f"),
    "CwhRBWXzGAHq8TQ4Fs17": ("Roger", "m"),
    "EXAVITQu4vr4xnSDxMaL": ("Sarah", "f"),
    "FGY2WhTYpPnrIDTdsKH5": ("Laura", "f"),
    "IKne3meq5aSn9XLyUdCD": ("Charlie", "m"),
    "JBFqnCBsd6RMkjVDRZzb": ("George", "m"),
    "N2lVS1w4EtoT3dr4eOWO": ("Callum", "m"),
    "SAz9YHcvj6GT2YYXdXww": ("River", "f"),
    "TX3LPaxmHKxFdv7VOQHJ": ("Liam", "m"),
    "Xb7hH8MSUJpSbSDYk0k2": ("Alice", "f"),
    "XrExE9yKIg1WjnnlVkGX": ("Matilda", "f"),
    "bIHbv24MWmeRgasZH58o": ("Will", "m"),
    "bVMeCyTHy58xNoL34h3p": ("Jeremy", "m"),
    "cgSgspJ2msm6clMCkdW9": ("Jessica", "f"),
    "cjVigY5qzO86Huf0OWal": ("Eric", "m"),
    "hpp4J3VqNfWAUOO0d1Us": ("Bella", "f"),
    "iP95p4xoKVk53GoZ742B": ("Chris", "m"),
    "nPczCjzI2devNBz1zQrb": ("Brian", "m"),
    "onwK4e9ZLuTAKqWW03F9": ("Daniel", "m"),
    "pFZP5JQG7iQjIQuC4Bku": ("Lily", "f"),
    "pNInz6obpgDQGcFmaJgB": ("Adam", "m"),
    "pqHfZKP75CvOlQylNhV4": ("Bill", "m"),
}
"""ElevenLabs' premade voices by their ids, as its clients ask for them when told nothing else."""

_KOKORO_LANGUAGES = {
    "a": "en-us",
    "b": "en-gb",
    "e": "es",
    "f": "fr-fr",
    "h": "hi",
    "i": "it",
    "j": "ja",
    "p": "pt-br",
    "z": "cmn",
}
_KOKORO = re.compile(r"([abefhijpz])([fm])_[a-z0-9]+", re.IGNORECASE)
_SAME_LANGUAGE = {"zh": "cmn", "cmn": "zh", "nb": "no", "no": "nb", "zh-cn": "cmn", "en": "en-us"}
_PLAIN_VARIANT = re.compile(r"(?:.*\+)?([fm])\d+")


@dataclass(frozen=True)
class Chosen:
    """What to ask the pipeline for (None: its own choice)."""

    voice: str | None
    language: str | None


class Aliases:
    """Names of voices and languages, for one engine's list."""

    def __init__(self, listed: VoiceList, configured: Mapping[str, str]) -> None:
        self.listed = listed
        self._configured = dict(configured)
        self._by_id = {voice.id: voice for voice in listed.voices}
        self._by_lower = {voice.id.lower(): voice.id for voice in reversed(listed.voices)}
        self._by_name = {voice.name.lower(): voice.id for voice in reversed(listed.voices)}

    def choose(self, voice: str | None, language: str | None) -> Chosen | None:
        """The engine's voice and language for these names; None when there is no such voice.

        A language that the engine does not have stays as it is, for the pipeline to refuse.
        """
        spoken = self.language(language) if language else None
        if not voice or voice.lower() in ("default", "builtin", "auto"):
            return Chosen(None, spoken)
        name = self._configured.get(voice, voice)
        if (found := self._own(name)) is not None:
            return Chosen(found, spoken)
        if (kokoro := _KOKORO.match(name.split("+")[0].split("(")[0])) is not None:
            spoken = spoken or self.language(_KOKORO_LANGUAGES[kokoro[1].lower()])
            return Chosen(self._voice_for(spoken, kokoro[2].lower(), kokoro[0].lower()), spoken)
        gender = OPENAI.get(name.lower()) or ELEVENLABS.get(name, ("", ""))[1] or self._by_elevenlabs_name(name)
        if gender:
            return Chosen(self._voice_for(spoken, gender, name.lower()), spoken)
        return None

    def language(self, asked: str) -> str:
        """The engine's name of a language: as it is, else the nearest one of the same."""
        tag = asked.lower().replace("_", "-")
        known = {one.lower(): one for one in self.listed.languages}
        primary = tag.split("-")[0]
        for wanted in (tag, _SAME_LANGUAGE.get(tag, ""), primary, _SAME_LANGUAGE.get(primary, "")):
            if wanted in known:
                return known[wanted]
        return next((known[one] for one in known if one.split("-")[0] == primary), asked)

    def named(self) -> Iterable[tuple[str, str]]:
        """Further names, each with the voice that it stands for."""
        for name in (*self._configured, *OPENAI):
            chosen = self.choose(name, None)
            if chosen is not None:
                yield name, chosen.voice or self.listed.default

    def _own(self, name: str) -> str | None:
        if name in self._by_id:
            return name
        found = self._by_lower.get(name.lower()) or self._by_name.get(name.lower())
        if found is None and "-" in name and (tag := self.language(name)).lower() == name.lower().replace("_", "-"):
            found = self._of_language(tag)
        return found

    def _of_language(self, language: str) -> str | None:
        """A voice whose own language this is."""
        primary = language.split("-")[0]
        exact = [voice.id for voice in self.listed.voices if voice.language == language]
        near = [voice.id for voice in self.listed.voices if voice.language.split("-")[0] == primary]
        return next(iter([*exact, *near]), None)

    def _voice_for(self, language: str | None, gender: str, name: str) -> str | None:
        """A voice of this gender that speaks the language. Without a language: any, the name decides which."""
        default = self._by_id.get(self.listed.default)
        wanted = language or (default.language if default is not None else "")
        pool = [voice for voice in self.listed.voices if self._fits(voice, wanted)]
        fitting = [voice.id for voice in pool if _gender(voice) == gender]
        plain = [one for one in fitting if _PLAIN_VARIANT.fullmatch(one)]
        chosen = plain or fitting
        if chosen:
            return chosen[zlib.crc32(name.encode()) % len(chosen)]
        return self._of_language(language) if language else None

    def _fits(self, voice: Voice, language: str) -> bool:
        return not language or voice.language.lower() == language.lower()

    def _by_elevenlabs_name(self, name: str) -> str:
        return next((gender for known, gender in ELEVENLABS.values() if known.lower() == name.lower()), "")


def _gender(voice: Voice) -> str:
    """``f``, ``m`` or empty, from what the voice says of itself."""
    told = voice.gender.lower()[:1]
    if told in ("f", "m"):
        return told
    plain = _PLAIN_VARIANT.fullmatch(voice.id)
    return plain[1] if plain else ""
