"""The engines, loaded from small checkpoints through the real path, keep the contract of every engine."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("chatterbox")

from pipeline.engines.base import EngineConfig, load_engine

pytestmark = pytest.mark.chatterbox

Checkpoint = Callable[[str], Path]


def _conformance() -> ModuleType:
    name = "chatterline_conformance"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "conformance.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


conformance = _conformance()
ENGINES = ("chatterbox-turbo", "chatterbox", "chatterbox-multilingual")
SLOW = frozenset({"tokens_go_on_after_any_history", "audio_goes_on_from_any_checkpoint"})
"""Quadratic in the length of speech: for the quickest engine alone. That the others go on after any history and from
any checkpoint is tested on the halves themselves (test_t3_tokens, test_audio)."""

OWN = frozenset(
    {
        "steps_end_with_one_final",
        "alignment_lies_inside_the_text",
        "what_does_not_exist_is_refused_and_others_go_on",
        "many_streams_together_equal_each_alone",
    }
)
"""What languages and analyzer have a part in: for the slowest engine, whose other parts are those of English."""


def _cases() -> Iterator[object]:
    for engine in ENGINES:
        for check in conformance.CHECKS:
            name, first = check.__name__, engine == ENGINES[0]
            if (name in SLOW and not first) or (engine == ENGINES[-1] and name not in OWN):
                continue
            marks = [pytest.mark.slow] if name in SLOW or not first else []
            yield pytest.param(engine, check, id=f"{engine}-{name}", marks=marks)


@pytest.mark.parametrize(("engine", "check"), list(_cases()))
def test_conformance(engine: str, check: Callable[[object], None], checkpoint: Checkpoint, tmp_path: Path) -> None:
    options: dict[str, bool | int | float | str] = {"cfm_steps": 1, "prompt_s": 1}
    config = EngineConfig(
        device="cpu", weights=str(checkpoint(engine)), max_batch=3, voices_folder=str(tmp_path), options=options
    )
    voices = (("", ""), ("", "de")) if engine == "chatterbox-multilingual" else (("", ""), ("builtin", "en"))
    check(conformance.Subject(engine, load_engine(engine), ("Hi, you.", "A bit more."), voices, config))
