"""``model.options`` of pipeline.yaml: what a Chatterbox engine is built with. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pipeline.engines.base import EngineConfig, EngineError
from pipeline.engines.chatterbox.variants import (
    CHATTERBOX,
    MULTILINGUAL_V2,
    MULTILINGUAL_V3,
    NANO,
    TURBO,
    Variant,
)

Scalar = bool | int | float | str

CONTINUITIES = ("context", "overlap", "recompute", "masked")
VERSIONS = {"v2": MULTILINGUAL_V2, "v3": MULTILINGUAL_V3}
MOST_CFM_STEPS = 50
SHORTEST_PROMPT_S, LONGEST_PROMPT_S = 1.0, 10.0


@dataclass(frozen=True)
class Options:
    """``version`` is of the multilingual model (empty: what the folder has, else v2), ``nano`` of Turbo;
    ``cfm_steps`` 0: as many as the model is made for; ``unprocessed``: speak a language whose text processing is not
    installed without it."""

    continuity: str = "context"
    cfm_steps: int = 0
    prompt_s: float = 10.0
    watermark: bool = True
    unprocessed: bool = False
    version: str = ""
    nano: bool = False


_ONLY = {"version": "chatterbox-multilingual", "nano": "chatterbox-turbo", "unprocessed": "chatterbox-multilingual"}


def names_of(engine: str) -> tuple[str, ...]:
    """Names of the options that an engine has."""
    return tuple(one.name for one in fields(Options) if _ONLY.get(one.name, engine) == engine)


def read_options(engine: str, config: EngineConfig) -> Options:
    """The options of a configuration. Raises `EngineError` that names the option, its value and what is allowed."""
    allowed = names_of(engine)
    for name, value in config.options.items():
        if name not in allowed:
            raise EngineError(f"model.options.{name}: {engine} has no such option; it has {', '.join(allowed)}")
        if fault := _fault(name, value):
            raise EngineError(f"model.options.{name}: {value!r} is not allowed; {fault}")
    given: Mapping[str, Scalar] = {"prompt_s": min(config.prompt_s, LONGEST_PROMPT_S), **config.options}
    read = replace(Options(), **given)  # type: ignore[arg-type]
    return replace(read, prompt_s=float(read.prompt_s))


def _fault(name: str, value: Scalar) -> str:
    """What would be right (empty: it is)."""
    check, allowed = _CHECKS[name]
    return "" if check(value) else f"allowed: {allowed}"


def _number(value: Scalar, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_bool(value: Scalar) -> bool:
    return isinstance(value, bool)


_CHECKS: dict[str, tuple[Callable[[Scalar], bool], str]] = {
    "continuity": (lambda value: value in CONTINUITIES, ", ".join(CONTINUITIES)),
    "cfm_steps": (
        lambda value: isinstance(value, int) and _number(value, 0, MOST_CFM_STEPS),
        f"a whole number from 0 (as many as the model is made for) to {MOST_CFM_STEPS}",
    ),
    "prompt_s": (
        lambda value: _number(value, SHORTEST_PROMPT_S, LONGEST_PROMPT_S),
        f"seconds from {SHORTEST_PROMPT_S:g} to {LONGEST_PROMPT_S:g}",
    ),
    "watermark": (_is_bool, "true, false"),
    "unprocessed": (_is_bool, "true, false"),
    "version": (lambda value: value in VERSIONS, ", ".join(VERSIONS)),
    "nano": (_is_bool, "true, false"),
}


def variant_of(engine: str, options: Options, weights: str) -> Variant:
    """The model that an engine runs. Without ``version`` a local folder decides by what is in it."""
    if engine == CHATTERBOX.name:
        return CHATTERBOX
    if engine == TURBO.name:
        return NANO if options.nano else TURBO
    if options.version:
        return VERSIONS[options.version]
    if weights != "hub":
        folder = Path(weights).expanduser()
        if not (folder / MULTILINGUAL_V2.t3).exists() and (folder / MULTILINGUAL_V3.t3).exists():
            return MULTILINGUAL_V3
    return MULTILINGUAL_V2
