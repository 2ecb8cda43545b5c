"""`generate` of the stock package, on the weights that our engine would take: all tokens, then all sound.

The package's own classes are filled from the checkpoint as our loader does it, so that a small checkpoint
(`perf.tiny_checkpoint`) can be compared as well as the published one. Settings are the package's, which are ours too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from perf.joins import Sound
from pipeline.engines.base import EngineConfig, EngineError
from pipeline.engines.chatterbox import device, loading, missing, weights
from pipeline.engines.chatterbox.modules import build_s3gen, s3gen_sizes
from pipeline.engines.chatterbox.options import read_options, variant_of
from pipeline.engines.chatterbox.rehearsal import quiet
from pipeline.engines.chatterbox.variants import MULTILINGUAL_V3, Variant

LANGUAGE = "en"


class Stock:
    """A loaded model of the package. Raises `EngineError` for weights or packages that are not here."""

    def __init__(self, engine: str, config: EngineConfig) -> None:
        if why := missing(engine, config):
            raise EngineError(why)
        self._options = read_options(engine, config)
        variant = variant_of(engine, self._options, config.weights)
        if variant.t3 == MULTILINGUAL_V3.t3:
            raise EngineError('the stock package has no multilingual v3; compare v2: --options \'{"version": "v2"}\'')
        self._variant = variant
        with quiet():
            self._model = _model(
                variant, weights.folder_of(variant, config.weights), device.resolve_device(config.device)
            )
            if not self._options.watermark:
                self._model.watermarker = _NoWatermark()

    def generate(self, text: str, seed: int) -> Sound:
        """The whole text, in one go."""
        from transformers import set_seed

        set_seed(seed)
        language = {"language_id": LANGUAGE} if self._variant.analyzer else {}
        with quiet():
            made = self._model.generate(text, **language)
        return np.asarray(made.reshape(-1).float().cpu().numpy(), np.float32)


class _NoWatermark:
    """Where our pipeline has none, the package has none either."""

    def apply_watermark(self, wav: Any, sample_rate: int) -> Any:
        return wav


def _model(variant: Variant, folder: Path, where: str) -> Any:
    """The package's class for a variant, as its ``from_local`` would make it."""
    state = loading.read_state(folder / variant.s3gen)
    s3gen = loading.filled(lambda: build_s3gen(s3gen_sizes(state)), state, folder / variant.s3gen)
    made, conditionals, tokenizer = _classes(variant, folder)
    voice = conditionals.load(folder / variant.conditionals, map_location="cpu").to(where)
    t3, voices = loading.load_t3(variant, folder), loading.load_voice_encoder(variant, folder)
    return made(t3.to(where), s3gen.to(where), voices.to(where), tokenizer, where, conds=voice)


def _classes(variant: Variant, folder: Path) -> tuple[Any, Any, Any]:
    """The package's model and voice of a variant, and its tokenizer."""
    if variant.turbo:
        from chatterbox import tts_turbo
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tts_turbo.ChatterboxTurboTTS, tts_turbo.Conditionals, tokenizer
    if len(variant.languages) > 1:
        from chatterbox import mtl_tts

        name = str(folder / variant.tokenizer)
        return mtl_tts.ChatterboxMultilingualTTS, mtl_tts.Conditionals, mtl_tts.MTLTokenizer(name)
    from chatterbox import tts

    return tts.ChatterboxTTS, tts.Conditionals, tts.EnTokenizer(str(folder / variant.tokenizer))
