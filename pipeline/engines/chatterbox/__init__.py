"""Chatterbox by Resemble AI: T3 (text → 25 speech tokens a second) and S3Gen (tokens → 24 kHz sound), streaming.

`variants` tells the models apart, `options` and `settings` what may be chosen, `weights` where the files come from,
`loading` builds the stock classes of `chatterbox-tts` from them, `voices` prepares what a voice is to them,
`assembly` puts the halves together. torch is imported by those that compute, never here: the supervisor and the
dispatcher import this.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from ipc.messages import TokenFacts
from pipeline.engines.base import AudioModel, Engine, EngineConfig, EngineError, Report, TokenModel, resolve_voice
from pipeline.engines.chatterbox import device, variants, weights
from pipeline.engines.chatterbox.options import read_options, variant_of

PACKAGES = {
    "torch": "torch",
    "torchaudio": "torchaudio",
    "chatterbox": "chatterbox-tts",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "conformer": "conformer",
    "s3tokenizer": "s3tokenizer",
    "omegaconf": "omegaconf",
    "librosa": "librosa",
    "perth": "resemble-perth",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "huggingface_hub": "huggingface_hub",
    "pyloudnorm": "pyloudnorm",
    "python_stretch": "python-stretch",
}
"""What has to be there, as it is imported and as pip calls it."""


def missing(name: str, config: EngineConfig) -> str:
    """What keeps an engine from running here, with the fix (empty: nothing)."""
    lacking = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if "chatterbox-tts" in lacking:
        return "its packages are not installed: pip install '.[chatterbox]'"
    if lacking:
        return f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing: pip install '.[chatterbox]'"
    try:
        variant = variant_of(name, read_options(name, config), config.weights)
        absent = "" if config.weights == weights.HUB else weights.absent(variant, config.weights)
        return absent or device.why_not(config.device)
    except EngineError as error:
        return str(error)


def unfit(name: str, config: EngineConfig) -> str:
    """Why it is not chosen by itself although it can run: it would have to be downloaded, or there is no GPU."""
    variant = variant_of(name, read_options(name, config), config.weights)
    if absent := weights.absent(variant, config.weights):
        return f"{absent}; `--set model.engine={name}` downloads them"
    try:
        return device.why_no_gpu()
    except EngineError as error:
        return str(error)


def prepare(name: str, config: EngineConfig) -> None:
    """Have every file of the model here. Raises `EngineError`."""
    variant = variant_of(name, read_options(name, config), config.weights)
    if config.weights == weights.HUB and weights.absent(variant, config.weights):
        weights.download(variant)


def resolve(facts: TokenFacts, voice: str, language: str) -> tuple[str, str]:
    """As `resolve_voice`, with ``de-AT`` taken as ``de``. Every voice speaks every language of its model."""
    wide = language.replace("_", "-").partition("-")[0].lower()
    return resolve_voice(facts, voice, wide if wide in facts.languages else language)


def _engine(name: str) -> Engine:
    def make_tokens(config: EngineConfig, report: Report) -> TokenModel:
        from pipeline.engines.chatterbox.assembly import tokens

        return tokens(name, config, report)

    def make_audio(config: EngineConfig, report: Report) -> AudioModel:
        from pipeline.engines.chatterbox.assembly import audio

        return audio(name, config, report)

    def bound(function: Callable[[str, EngineConfig], str]) -> Callable[[EngineConfig], str]:
        return lambda config: function(name, config)

    return Engine(
        name,
        make_tokens,
        make_audio,
        missing=bound(missing),
        resolve=resolve,
        unfit=bound(unfit),
        prepare=lambda config: prepare(name, config),
    )


CHATTERBOX = _engine(variants.CHATTERBOX.name)
MULTILINGUAL = _engine(variants.MULTILINGUAL_V2.name)
TURBO = _engine(variants.TURBO.name)
