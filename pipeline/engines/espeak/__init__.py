"""The embedded voice: espeak-ng, 116 languages in 138 voices, no GPU, no download.

Token half: text → clauses → phonemes and how each clause ends; a token is one spoken word. Audio
half: phonemes → sound, one clause at a time. `folder` is where the library reads its data,
`library` the library itself, `catalogue` the voices, `style` the settings, `clauses` everything about text,
`spelling` how phonemes are written, `pieces` what travels between the halves, `tokens` and `audio` those.

espeak-ng and the `espeakng-loader` package are GPL-3.0-or-later; whoever wants none of it chooses
another engine: nothing here is imported then.
"""

from __future__ import annotations

import ctypes

from ipc.messages import TokenFacts
from pipeline.engines.base import AudioModel, Engine, EngineConfig, EngineError, Report, TokenModel

NAME = "espeak"


def _check_options(config: EngineConfig) -> None:
    if config.options:
        raise EngineError(f"model.options: espeak has none, remove {', '.join(sorted(config.options))}")


def _tokens(config: EngineConfig, report: Report) -> TokenModel:
    from pipeline.engines.espeak.tokens import EspeakTokens

    _check_options(config)
    return EspeakTokens(config, report)


def _audio(config: EngineConfig, report: Report) -> AudioModel:
    from pipeline.engines.espeak.audio import EspeakAudio

    _check_options(config)
    return EspeakAudio(config, report)


def missing(config: EngineConfig) -> str:
    """Why espeak-ng cannot run here, with the fix; empty when it can."""
    try:
        import espeakng_loader

        ctypes.CDLL(espeakng_loader.get_library_path())
        espeakng_loader.get_data_path()
    except ImportError:
        return "the Python package espeakng-loader is not installed (pip install espeakng-loader)"
    except (OSError, RuntimeError) as error:
        return f"espeakng-loader is installed but cannot be loaded: {error}"
    return ""


def resolve(facts: TokenFacts, voice: str, language: str) -> tuple[str, str]:
    """The full voice id (``de+f3``) and language that a request's ``voice`` and ``language`` mean."""
    from pipeline.engines.espeak.catalogue import bundled

    chosen = bundled().choose(voice, language)
    return chosen.id, chosen.voice.id


def outline() -> TokenFacts:
    """Voices, languages and settings, from the catalogue alone."""
    from pipeline.engines.espeak.tokens import facts_of

    return facts_of(1, 0.0)


ENGINE = Engine(NAME, _tokens, _audio, missing, resolve, outline)
