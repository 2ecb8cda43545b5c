"""What a request may set, by model: names, ranges, defaults, and their values as the halves use them. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from ipc.messages import Setting
from pipeline.engines.base import EngineError, Settings, check_value
from pipeline.engines.chatterbox.options import MOST_CFM_STEPS
from pipeline.engines.chatterbox.variants import Variant


@dataclass(frozen=True)
class Asked:
    """The settings of one request, complete. What a model does not have is at its neutral value (top_k 0: all
    tokens, min_p 0, cfg_weight 0). ``cfm_steps`` 0: as many as the engine is configured for."""

    temperature: float
    top_p: float
    min_p: float
    top_k: int
    repetition_penalty: float
    cfg_weight: float
    exaggeration: float
    cfm_steps: int


_HELP = {
    "temperature": "how freely tokens are drawn: low is even, high is lively, 0 always takes the likeliest",
    "top_p": "draw from the likeliest tokens that together have this share; 1 draws from all",
    "min_p": "draw from tokens at least this likely, as a share of the likeliest one; 0 draws from all",
    "top_k": "draw from so many of the likeliest tokens; 0 draws from all",
    "repetition_penalty": "how much a token that was spoken before is held back; 1 not at all",
    "cfg_weight": "how closely speech follows the text; lower is slower and calmer; 0 also takes half the work",
    "exaggeration": "how strongly emotion is expressed; 0.5 is neutral",
    "cfm_steps": "steps in which sound is refined: fewer are quicker, more are finer; 0: as the engine is configured",
}
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 5.0),
    "top_p": (0.01, 1.0),
    "min_p": (0.0, 1.0),
    "top_k": (0, 10_000),
    "repetition_penalty": (1.0, 10.0),
    "cfg_weight": (0.0, 5.0),
    "exaggeration": (0.0, 2.0),
    "cfm_steps": (0, MOST_CFM_STEPS),
}
_WHOLE = ("top_k", "cfm_steps")
_TURBO = ("temperature", "top_p", "top_k", "repetition_penalty", "cfm_steps")
_LLAMA = ("temperature", "top_p", "min_p", "repetition_penalty", "cfg_weight", "exaggeration", "cfm_steps")


def names_of(variant: Variant) -> tuple[str, ...]:
    """What a model lets one set."""
    return _TURBO if variant.turbo else _LLAMA


def settings_of(variant: Variant) -> tuple[Setting, ...]:
    """The schema of a model's settings."""
    return tuple(_setting(variant, name) for name in names_of(variant))


def _setting(variant: Variant, name: str) -> Setting:
    least, most = _RANGES[name]
    default: int | float = 0 if name == "cfm_steps" else getattr(variant.defaults, name)
    kind = "int" if name in _WHOLE else "float"
    return Setting(name, "int" if kind == "int" else "float", default, _HELP[name], least, most)


def read(variant: Variant, asked: Settings) -> Asked:
    """Settings of a request, with defaults for the rest.

    Raises `EngineError` that names the setting, its value and what is allowed.
    """
    schema = {entry.name: entry for entry in settings_of(variant)}
    for name, value in asked.items():
        if name not in schema:
            raise EngineError(f"settings.{name}: {variant.name} has no such setting; it has {', '.join(schema)}")
        check_value(schema[name], value)
    neutral: dict[str, float] = {"min_p": 0.0, "top_k": 0, "cfg_weight": 0.0, "exaggeration": 0.0}
    given = {entry.name: asked.get(entry.name, entry.default) for entry in schema.values()}
    numbers = neutral | {name: float(value) for name, value in given.items()}
    return Asked(**{name: int(value) if name in _WHOLE else value for name, value in numbers.items()})  # type: ignore[arg-type]
