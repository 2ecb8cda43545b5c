"""Names of voices and languages, and what they mean."""

from __future__ import annotations

import pytest

from pipeline.engines.base import EngineError
from pipeline.engines.espeak import ENGINE, resolve
from pipeline.engines.espeak.catalogue import bundled
from pipeline.engines.espeak.library import data_path
from pipeline.engines.espeak.style import style_of
from pipeline.engines.espeak.tokens import facts_of
from tests.pipeline.engines.espeak_speech import untouched_library

FACTS = facts_of(1, 0.0)


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("fr-fr", "fr"),
        ("zh", "cmn"),
        ("zh-CN", "cmn"),
        ("zh_Hans", "cmn"),
        ("zh-yue", "yue"),
        ("en-gb", "en"),
        ("en", "en"),
        ("EN_us", "en-us"),
        ("no", "nb"),
        ("de-AT", "de"),
        ("es-mx", "es-419"),
        ("pt-PT", "pt"),
        ("pt-BR", "pt-br"),
        ("hy-arevela", "hy"),
        ("hbs", "hr"),
        ("zh-cmn", "cmn"),
    ],
)
def test_every_tag_that_a_voice_declares_is_a_name_for_it(name: str, means: str) -> None:
    assert bundled().choose(name, "").voice.id == means
    assert bundled().choose("", name).voice.id == means


@pytest.mark.parametrize(
    ("voice", "language", "chosen"),
    [
        ("", "", "en-us"),
        ("builtin", "", "en-us"),
        ("builtin", "de", "de"),
        ("en-us+f3", "", "en-us+f3"),
        ("+f3", "", "en-us+f3"),
        ("+f3", "de", "de+f3"),
        ("en-us+f3", "de", "de+f3"),
        ("en-gb-x-rp", "en", "en-gb-x-rp"),
        ("en-us", "en-us", "en-us"),
        ("fr+mr_serious", "", "fr+Mr serious"),
        ("fr+ANNIE", "", "fr+Annie"),
    ],
)
def test_language_decides_and_a_voice_of_another_language_lends_its_variant(
    voice: str, language: str, chosen: str
) -> None:
    assert bundled().choose(voice, language).id == chosen


@pytest.mark.parametrize(
    ("voice", "language", "message"),
    [
        ("en-uss", "", "voice: espeak has no 'en-uss'; did you mean en-us"),
        ("", "xx", "language: espeak has no 'xx'"),
        ("", "gernam", "language: espeak has no 'gernam'"),
        ("en-us+f33", "", r"voice: espeak has no variant '\+f33'; did you mean f3"),
        ("en-us+", "", "variant"),
        ("en-us+../../f3", "", "variant"),
        ("../en-us", "", "voice: espeak has no"),
    ],
)
def test_unknown_names_are_refused_with_close_matches(voice: str, language: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        bundled().choose(voice, language)
    with pytest.raises(EngineError, match=message):
        resolve(FACTS, voice, language)


def test_what_resolve_answers_resolves_to_itself() -> None:
    for entry in FACTS.voices:
        assert ENGINE.resolve(FACTS, entry.id, "") == (entry.id, entry.language)
        assert ENGINE.resolve(FACTS, entry.id, entry.language) == (entry.id, entry.language)
    for language in FACTS.languages:
        voice, resolved = ENGINE.resolve(FACTS, "", language)
        assert ENGINE.resolve(FACTS, voice, resolved) == (voice, resolved)


def test_all_voices_are_listed_once_with_language_and_gender() -> None:
    ids = [entry.id for entry in FACTS.voices]
    assert len(ids) == len(set(ids))
    assert len(bundled().voices) == 138
    assert len({voice.id.split("-")[0] for voice in bundled().voices}) == 116
    assert len(bundled().variants) == len(list((data_path() / "voices" / "!v").iterdir()))
    female = next(entry for entry in FACTS.voices if entry.id == "en-us+f3")
    assert (female.gender, female.language) == ("female", "en-us")
    assert FACTS.default_voice in ids
    assert {"de", "fr-fr", "zh", "en-gb", "no"} <= set(FACTS.languages)


@pytest.mark.slow
def test_every_voice_and_every_variant_loads_and_speaks() -> None:
    library = untouched_library()
    try:
        for voice in bundled().voices:
            library.renew()
            library.use(voice.id, style_of({}, 1.0).parameters)
            assert len(library.speak("Banana 123.").pcm) > 4000, voice.id
        for variant in bundled().variants:
            library.renew()
            library.use(f"en-us+{variant}", style_of({}, 1.0).parameters)
            assert len(library.speak("One two three.").pcm) > 8000, variant
    finally:
        library.close()


def test_languages_without_a_dictionary_are_not_offered() -> None:
    files = {path.name.lower() for path in (data_path() / "lang").rglob("*") if path.is_file()}
    offered = {voice.id for voice in bundled().voices}
    assert files - offered == {"fo", "kaa", "xex"}
