"""What the engines do without: a demo's web page, and what only some languages need."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("chatterbox")

pytestmark = pytest.mark.chatterbox

NOT_NEEDED = ("gradio", "spacy_pkuseg", "pykakasi", "dicta_onnx", "russian_text_stresser")
BUILD = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import warnings
warnings.simplefilter("ignore")
from pipeline.engines.base import EngineConfig, Segment, load_engine
config = EngineConfig(device="cpu", weights={folder!r}, options={{"cfm_steps": 1, "prompt_s": 1}}, max_batch=2)
engine = load_engine("chatterbox-multilingual")
assert engine.missing(config) == "", engine.missing(config)
tokens, audio = engine.tokens(config, print), engine.audio(config, print)
tokens.admit(1, Segment("Hallo.", "end", "builtin", "de", 1.0, 1, {{}}))
assert tokens.step()
try:
    tokens.admit(2, Segment("今日", "end", "builtin", "ja", 1.0, 1, {{}}))
except ValueError as error:
    assert "pip install pykakasi" in str(error), error
else:
    raise AssertionError("Japanese without its package")
"""


def test_neither_gradio_nor_what_another_language_needs_is_imported(checkpoint: Callable[[str], Path]) -> None:
    code = BUILD.format(blocked=NOT_NEEDED, folder=str(checkpoint("chatterbox-multilingual")))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, ran.stderr
