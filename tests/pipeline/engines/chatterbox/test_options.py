"""Options and settings: what exists by engine, and what is refused by name. Needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.engines.base import EngineConfig, EngineError, Settings, check_settings
from pipeline.engines.chatterbox import settings
from pipeline.engines.chatterbox.options import Options, names_of, read_options, variant_of
from pipeline.engines.chatterbox.variants import CHATTERBOX, MULTILINGUAL_V2, MULTILINGUAL_V3, NANO, TURBO, VARIANTS


def options(engine: str, **given: bool | int | float | str) -> Options:
    return read_options(engine, EngineConfig(options=given))


def test_without_options_everything_is_as_in_the_stock_package() -> None:
    assert options("chatterbox") == Options("context", 0, 10.0, True, False, "", False)


def test_options_are_read_and_the_voices_prompt_is_the_default_of_the_engines() -> None:
    read = options("chatterbox-turbo", continuity="overlap", cfm_steps=4, watermark=False, nano=True, prompt_s=3)
    assert read == Options("overlap", 4, 3.0, False, False, "", True)
    assert read_options("chatterbox", EngineConfig(prompt_s=5.0)).prompt_s == 5.0
    assert read_options("chatterbox", EngineConfig(prompt_s=30.0)).prompt_s == 10.0


@pytest.mark.parametrize(
    ("engine", "name", "value", "said"),
    [
        ("chatterbox", "speed", 2, "chatterbox has no such option; it has continuity, cfm_steps"),
        ("chatterbox", "nano", True, "chatterbox has no such option"),
        ("chatterbox-turbo", "version", "v2", "chatterbox-turbo has no such option"),
        ("chatterbox-multilingual", "version", "v9", "'v9' is not allowed; allowed: v2, v3"),
        ("chatterbox", "continuity", "magic", "allowed: context, overlap, recompute, masked"),
        ("chatterbox", "cfm_steps", 51, "a whole number from 0"),
        ("chatterbox", "cfm_steps", 2.5, "a whole number from 0"),
        ("chatterbox", "prompt_s", 0, "seconds from 1 to 10"),
        ("chatterbox", "watermark", 1, "allowed: true, false"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(
    engine: str, name: str, value: bool | int | float | str, said: str
) -> None:
    with pytest.raises(EngineError) as raised:
        options(engine, **{name: value})
    assert f"model.options.{name}" in str(raised.value)
    assert said in str(raised.value)


def test_the_model_follows_from_engine_options_and_folder(tmp_path: Path) -> None:
    assert variant_of("chatterbox", Options(), "hub") is CHATTERBOX
    assert variant_of("chatterbox-turbo", Options(), "hub") is TURBO
    assert variant_of("chatterbox-turbo", Options(nano=True), "hub") is NANO
    assert variant_of("chatterbox-multilingual", Options(), "hub") is MULTILINGUAL_V2
    assert variant_of("chatterbox-multilingual", Options(version="v3"), "hub") is MULTILINGUAL_V3
    (tmp_path / MULTILINGUAL_V3.t3).touch()
    assert variant_of("chatterbox-multilingual", Options(), str(tmp_path)) is MULTILINGUAL_V3
    (tmp_path / MULTILINGUAL_V2.t3).touch()
    assert variant_of("chatterbox-multilingual", Options(), str(tmp_path)) is MULTILINGUAL_V2


def test_only_the_engines_own_options_are_listed() -> None:
    assert "version" in names_of("chatterbox-multilingual")
    assert not {"version", "nano", "unprocessed"} & set(names_of("chatterbox"))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant.name}-{variant.t3}")
def test_defaults_are_the_stock_packages_and_within_their_ranges(variant) -> None:
    schema = settings.settings_of(variant)
    asked = settings.read(variant, {})
    assert all(entry.help and entry.least <= entry.default <= entry.most for entry in schema)
    for name in settings.names_of(variant):
        expected = 0 if name == "cfm_steps" else getattr(variant.defaults, name)
        assert getattr(asked, name) == expected
    turbo = (asked.cfg_weight, asked.min_p, asked.exaggeration) == (0, 0, 0)
    assert turbo == variant.turbo


def test_multilingual_versions_differ_in_their_repetition_penalty() -> None:
    assert settings.read(MULTILINGUAL_V2, {}).repetition_penalty == 2.0
    assert settings.read(MULTILINGUAL_V3, {}).repetition_penalty == 1.2


@pytest.mark.parametrize("name", ["cfg_weight", "exaggeration", "min_p"])
def test_turbo_refuses_what_it_does_not_have_by_name(name: str) -> None:
    with pytest.raises(EngineError, match=rf"settings\.{name}: chatterbox-turbo has no such setting; it has temper"):
        settings.read(TURBO, {name: 0.5})


def test_the_others_refuse_top_k() -> None:
    with pytest.raises(EngineError, match=r"settings\.top_k: chatterbox has no such setting"):
        settings.read(CHATTERBOX, {"top_k": 50})


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -0.1},
        {"top_p": 0},
        {"min_p": 1.5},
        {"repetition_penalty": 0.5},
        {"cfm_steps": 2.5},
        {"temperature": "hot"},
        {"exaggeration": True},
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused(given: Settings) -> None:
    with pytest.raises(EngineError, match=rf"settings\.{next(iter(given))}"):
        settings.read(CHATTERBOX, given)


def test_settings_of_a_request_go_before_the_defaults() -> None:
    asked = settings.read(TURBO, {"temperature": 1, "top_k": 50})
    assert (asked.temperature, asked.top_k, asked.top_p) == (1.0, 50, 0.95)
    assert isinstance(asked.temperature, float)


def test_none_of_this_imports_torch() -> None:
    import subprocess

    code = (
        "import sys, pipeline.engines.chatterbox as engine, pipeline.engines.chatterbox.settings\n"
        "from pipeline.engines.base import EngineConfig\n"
        "engine.CHATTERBOX.missing(EngineConfig())\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'chatterbox')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check_settings_of_the_base_agrees() -> None:
    from ipc.messages import TokenFacts

    facts = TokenFacts("chatterbox", (), "", (), settings.settings_of(CHATTERBOX), 1, 1, 1.0, 1, 1.0, 0)
    check_settings(facts, {"cfg_weight": 0.3})
    with pytest.raises(EngineError):
        check_settings(facts, {"cfg_weight": 9})
