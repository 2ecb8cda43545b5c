"""Names of voices that other programs know."""

from __future__ import annotations

import pytest

from ipc.messages import Voice, VoiceList
from pipeline.engines.base import EngineConfig, load_engine
from workers.gateway.aliases import ELEVENLABS, OPENAI, Aliases, Chosen


@pytest.fixture(scope="module")
def espeak() -> VoiceList:
    facts = load_engine("espeak").tokens(EngineConfig(), lambda *_: None).facts
    return VoiceList(
        engine="espeak",
        default=facts.default_voice,
        voices=facts.voices,
        languages=facts.languages,
        settings=facts.settings,
        cloning=False,
    )


FEW = VoiceList(
    engine="few",
    default="anna",
    voices=(Voice("anna", "Anna", "en", "female"), Voice("bob", "Bob", "en", "male"), Voice("Chloé", "Chloé", "fr")),
    languages=("en", "fr"),
    settings=(),
    cloning=False,
)


@pytest.mark.parametrize("name", [*OPENAI, *ELEVENLABS, "Rachel", "af_bella", "am_adam", "ff_siwis", "zf_xiaobei"])
def test_every_well_known_name_is_a_voice_of_any_engine(name: str, espeak: VoiceList) -> None:
    for listed in (espeak, FEW):
        chosen = Aliases(listed, {}).choose(name, None)
        assert chosen is not None
        assert chosen.voice is None or chosen.voice in {voice.id for voice in listed.voices}


def test_a_name_is_always_the_same_voice_and_names_differ(espeak: VoiceList) -> None:
    first, second = Aliases(espeak, {}), Aliases(espeak, {})
    chosen = {name: first.choose(name, None) for name in OPENAI}
    assert chosen == {name: second.choose(name, None) for name in OPENAI}
    assert len(set(chosen.values())) > 4


def test_men_and_women_stay_what_they_are() -> None:
    aliases = Aliases(FEW, {})
    assert aliases.choose("nova", None) == Chosen("anna", None)
    assert aliases.choose("onyx", None) == Chosen("bob", None)
    assert aliases.choose("bm_george", None) == Chosen("bob", "en")


@pytest.mark.parametrize("language", [None, "fr-fr", "fr_FR", "FR"])
def test_a_kokoro_voice_speaks_its_language(language: str | None, espeak: VoiceList) -> None:
    chosen = Aliases(espeak, {}).choose("ff_siwis", language)
    assert chosen is not None
    assert str(chosen.voice).startswith("fr")
    assert str(chosen.language).startswith("fr")
    assert Aliases(FEW, {}).choose("ff_siwis", language) == Chosen("Chloé", "fr")


def test_the_first_voice_of_a_blend_counts(espeak: VoiceList) -> None:
    aliases = Aliases(espeak, {})
    assert aliases.choose("af_bella(2)+ff_siwis(1)", None) == aliases.choose("af_bella", None)
    assert aliases.choose("ff_siwis+af_sky", None) == aliases.choose("ff_siwis", None)


def test_an_own_id_comes_before_any_other_name(espeak: VoiceList) -> None:
    assert Aliases(espeak, {}).choose("en-us+f3", None) == Chosen("en-us+f3", None)
    assert Aliases(espeak, {}).choose("EN-US+F3", None) == Chosen("en-us+f3", None)
    assert Aliases(FEW, {}).choose("Bob", "en-US") == Chosen("bob", "en")


def test_a_configured_name_comes_before_all(espeak: VoiceList) -> None:
    aliases = Aliases(espeak, {"narrator": "de", "alloy": "en-gb-x-rp"})
    assert aliases.choose("narrator", None) == Chosen("de", None)
    assert aliases.choose("alloy", None) == Chosen("en-gb-x-rp", None)
    assert dict(aliases.named())["narrator"] == "de"


@pytest.mark.parametrize("name", ["", None, "default", "builtin"])
def test_no_name_is_the_pipelines_choice(name: str | None) -> None:
    assert Aliases(FEW, {}).choose(name, None) == Chosen(None, None)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "nobody", "a" * 5000, "\0", "en\n", "%2e%2e"]
)
def test_what_is_no_voice_is_none_and_never_a_path(name: str, espeak: VoiceList) -> None:
    assert Aliases(espeak, {}).choose(name, None) is None


@pytest.mark.parametrize(
    ("asked", "found"), [("en-GB", "en-gb"), ("pt_BR", "pt-br"), ("fr-CA", "fr"), ("zh", "zh"), ("de-AT", "de")]
)
def test_a_language_is_the_nearest_that_there_is(asked: str, found: str, espeak: VoiceList) -> None:
    assert Aliases(espeak, {}).language(asked) == found


def test_a_language_that_there_is_not_stays_for_the_pipeline_to_refuse() -> None:
    assert Aliases(FEW, {}).choose("bob", "xx") == Chosen("bob", "xx")
