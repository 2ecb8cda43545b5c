"""The two halves put together from a configuration: weights, device, precision, voices, what happens to the sound."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.engines.base import AudioModel, EngineConfig, EngineError, Report, Segment, TokenModel
from pipeline.engines.chatterbox import precision, settings, weights
from pipeline.engines.chatterbox.device import resolve_device
from pipeline.engines.chatterbox.options import Options, read_options, variant_of
from pipeline.engines.chatterbox.spelling import TextEncoder
from pipeline.engines.chatterbox.stretch import stretchers
from pipeline.engines.chatterbox.variants import Variant
from pipeline.engines.chatterbox.voices import VoiceBook
from pipeline.engines.chatterbox.watermark import Marker

LOAD_DEADLINE_S = 600.0
"""Gigabytes from a slow disk take a while."""


def tokens(name: str, config: EngineConfig, report: Report) -> TokenModel:
    """T3 with everything that it needs. Raises `EngineError`."""
    began = time.monotonic()
    variant, options, folder, device = _ground(name, config, report)
    from pipeline.engines.chatterbox.loading import load_t3
    from pipeline.engines.chatterbox.tokens import ChatterboxTokens, Profile

    encoder = TextEncoder(variant, folder, options.unprocessed)
    voices = _voices(variant, folder, device, config, report)
    t3 = load_t3(variant, folder)
    chosen = precision.for_t3(config.precision, device, t3, report)
    _say(name, "t3", chosen.note)
    profile = Profile(
        voices=voices.voices,
        default_voice=voices.default,
        settings=settings.settings_of(variant),
        load_s=time.monotonic() - began,
    )
    half = ChatterboxTokens(
        variant,
        t3,
        encoder,
        voices,
        profile,
        partial(settings.read, variant),
        device=device,
        dtype=chosen.dtype,
        max_batch=config.max_batch,
        report=report,
        convert=chosen.convert,
    )
    del t3
    _give_memory_back()
    return half


def audio(name: str, config: EngineConfig, report: Report) -> AudioModel:
    """S3Gen with everything that it needs. Raises `EngineError`."""
    began = time.monotonic()
    variant, options, folder, device = _ground(name, config, report)
    from pipeline.engines.chatterbox.audio import ChatterboxAudio
    from pipeline.engines.chatterbox.loading import load_s3gen

    voices = _voices(variant, folder, device, config, report)
    s3gen = load_s3gen(variant, folder)
    chosen = precision.for_s3gen(config.precision, device, s3gen, report)
    _say(name, "s3gen", chosen.note)
    marker = Marker.load(device) if options.watermark else None
    _say(name, "s3gen", marker.note if marker is not None else "watermark: off (model.options.watermark)")

    def posts(segment: Segment) -> Sequence:  # type: ignore[type-arg]
        return (*stretchers(segment.speed), *(marker.factories() if marker is not None else ()))

    half = ChatterboxAudio(
        variant,
        s3gen,
        voices,
        device=device,
        dtype=chosen.dtype,
        max_batch=config.max_batch,
        report=report,
        continuity=options.continuity,
        cfm_steps=options.cfm_steps or None,
        prompt_s=_prompt_s(variant, options),
        posts=posts,
        load_s=time.monotonic() - began,
    )
    del s3gen
    _give_memory_back()
    return half


def _ground(name: str, config: EngineConfig, report: Report) -> tuple[Variant, Options, Path, str]:
    """What both halves stand on. Raises `EngineError`, also for packages that do not fit together."""
    report(f"loading {name}", LOAD_DEADLINE_S)
    options = read_options(name, config)
    variant = variant_of(name, options, config.weights)
    folder = weights.folder_of(variant, config.weights)
    try:
        return variant, options, folder, resolve_device(config.device)
    except (ImportError, OSError) as error:
        raise EngineError(f"torch cannot be loaded: {error}; pip install '.[chatterbox]'") from error


def _voices(variant: Variant, folder: Path, device: str, config: EngineConfig, report: Report) -> VoiceBook:
    return VoiceBook(
        variant,
        folder,
        Path(config.voices_folder),
        report,
        cache=Path(config.cache_folder) / "voices" if config.cache_folder else None,
        device=device if device.startswith("cuda") else "cpu",
    )


def _prompt_s(variant: Variant, options: Options) -> float | None:
    """How much of the reference S3Gen hears; None: as much as the stock package gives it. Chunk masks need it to be
    whole seconds, to which it is then cut."""
    whole = options.prompt_s >= variant.s3gen_reference_s and options.continuity != "masked"
    return None if whole else options.prompt_s


def _give_memory_back() -> None:
    """What loading, comparing and converting took for a while: hundreds of megabytes of a model of full size, which the
    C library would keep for later."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _say(name: str, half: str, note: str) -> None:
    """One line in the process's log."""
    if note:
        print(f"{name} {half}: {note}", file=sys.stderr, flush=True)
