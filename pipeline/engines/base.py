"""What a speech engine is: two halves that need not meet in one process.

A `TokenModel` turns a text segment into tokens, an `AudioModel` turns tokens into 24 kHz sound.
Both are plain classes built from an `EngineConfig`: no sockets, rings, descriptors or GPU tensors
cross their edge, so that the same class runs under our supervisor on one machine and as a
deployment of a distributed engine on many. A half is used by one thread of one process.

Tokens travel as bytes in the engine's own encoding with a count. The pipeline never looks inside:
it joins pieces in order, journals them and hands them on, to the audio half (`AudioModel.feed`) or
back to a successor of the token half (`TokenModel.admit`'s ``history``). A token is whatever the
engine can give a time to: a 40 ms speech token, a spoken word.

Both halves must be deterministic: the same segment, voice, settings, seed and cuts give the same
tokens and samples, in a fresh process too. Noise is indexed by (seed, position).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ipc.messages import AudioFacts, Boundary, Setting, TokenFacts, TokenSample, TokenSpan

Settings = dict[str, bool | int | float | str]
Samples = npt.NDArray[np.float32]
Report = Callable[[str, float], None]
"""``report(doing, deadline_s)``: what a long operation is doing, and how long it may go without
reporting again before the supervisor takes it for hung."""


class EngineError(ValueError):
    """The request cannot be spoken by this engine; the message says why and what would work."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine half is built from. ``device``: auto, cpu, cuda:0, mps. ``options``: model.options
    of pipeline.yaml, the engine's own. ``cache_folder``: where it may keep what it worked out (empty: nowhere)."""

    device: str = "cpu"
    weights: str = "hub"
    precision: str = "auto"
    voices_folder: str = "voices"
    max_batch: int = 1
    prompt_s: float = 10.0
    cache_folder: str = ""
    options: dict[str, bool | int | float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """What one stream speaks. ``boundary`` tells how the segment ends, for prosody and pause."""

    text: str
    boundary: Boundary
    voice: str
    language: str
    speed: float
    seed: int
    settings: Settings


@dataclass(frozen=True)
class TokenStep:
    """What one stream made in one step: ``tokens`` tokens (possibly 0) worth ``seconds`` of speech.

    ``alignment`` counts tokens from the stream's first. ``note`` reports a guard that stopped the
    stream early (empty otherwise).
    """

    stream: int
    tokens: int
    data: bytes
    seconds: float
    alignment: tuple[TokenSpan, ...] = ()
    final: bool = False
    note: str = ""


@dataclass(frozen=True)
class AudioStep:
    """One rung of one stream: its samples (float32 mono 24 kHz, within ±1).

    The stream has now rendered ``done_tokens`` tokens; ``checkpoint`` (tens of kB at most) lets a
    fresh process go on from here with the same samples. ``token_samples`` tells where the rung's
    tokens begin, counted from the stream's first sample.
    """

    stream: int
    samples: Samples
    done_tokens: int
    checkpoint: bytes
    token_samples: tuple[TokenSample, ...] = ()
    final: bool = False


class TokenModel(Protocol):
    """Text segments to tokens, many at once."""

    @property
    def facts(self) -> TokenFacts: ...

    def admit(self, stream: int, segment: Segment, history: bytes = b"", history_tokens: int = 0) -> None:
        """Take a segment; the next step goes on after ``history``.

        Raises `EngineError` if it cannot be spoken (the other streams go on).
        """

    def step(self) -> list[TokenStep | StreamError]:
        """Advance every admitted stream that is not paused by one step (empty: nothing to do).

        A final step releases its stream. A stream that breaks yields a `StreamError`.
        """

    def pause(self, stream: int) -> None:
        """Hold a stream (its credit is used up); the others go on. Unknown streams are ignored."""

    def resume(self, stream: int) -> None:
        """Let a paused stream go on."""

    def release(self, stream: int) -> None:
        """Forget a stream and free its slot; unknown streams are ignored."""

    def close(self) -> None:
        """Free everything."""


class AudioModel(Protocol):
    """Tokens to sound, many streams at once."""

    @property
    def facts(self) -> AudioFacts: ...

    def open(self, stream: int, segment: Segment, checkpoint: bytes = b"") -> None:
        """Begin a stream (``segment.text`` is empty here), or go on from a checkpoint: then `feed`
        still delivers all its tokens from the first."""

    def feed(self, stream: int, tokens: int, data: bytes, final: bool) -> None:
        """The next tokens of a stream, in the pieces that the token half made."""

    def render(self, jobs: Sequence[tuple[int, int]]) -> list[AudioStep | StreamError]:
        """Render each (stream, upto_tokens): the sound from what is done up to that token.

        The caller asks only for what is fed with ``lookahead_tokens`` beyond it, unless the
        stream's tokens are final. An engine with ``facts.ladder`` false is asked for one fed piece
        at a time. The final rung may have more samples than its tokens (what was held back).
        """

    def close_stream(self, stream: int) -> None:
        """Forget a stream; unknown streams are ignored."""

    def close(self) -> None:
        """Free everything."""


@dataclass(frozen=True)
class StreamError:
    """One stream broke in a step; its worker and the other streams are well."""

    stream: int
    reason: str


def resolve_voice(facts: TokenFacts, voice: str, language: str) -> tuple[str, str]:
    """The voice and language to speak with, from what a request names (either may be empty).

    Raises `EngineError` that lists what exists. No language: the voice's own. No voice (or
    ``builtin``): the default voice if it speaks the language, else the first that does.
    """
    known = {entry.id: entry for entry in facts.voices}
    if language and language not in facts.languages:
        raise EngineError(
            f"language: {language!r} is not spoken by {facts.engine}; languages: {_some(facts.languages)}"
        )
    if voice in ("", "builtin"):
        voice = facts.default_voice
        if language and known[voice].language != language:
            speakers = [entry.id for entry in facts.voices if entry.language == language]
            voice = speakers[0] if speakers else voice
    if voice not in known:
        raise EngineError(f"voice: {voice!r} is not a voice of {facts.engine}; voices: {_some(tuple(known))}")
    return voice, language or known[voice].language


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:40]) + (f" … ({len(names)} in all)" if len(names) > 40 else "")


def check_settings(facts: TokenFacts, settings: Settings) -> None:
    """Raises `EngineError` naming the setting, its value and what is allowed."""
    schema = {entry.name: entry for entry in facts.settings}
    for name, value in settings.items():
        if name not in schema:
            raise EngineError(
                f"settings.{name}: {facts.engine} has no such setting; it has {_some(tuple(schema)) or 'none'}"
            )
        check_value(schema[name], value)


def check_value(entry: Setting, value: bool | int | float | str) -> None:
    """Raises `EngineError` when a setting cannot have this value, naming what is allowed."""
    kinds: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}
    if not isinstance(value, kinds[entry.kind]) or (isinstance(value, bool) and entry.kind != "bool"):
        raise EngineError(f"settings.{entry.name}: {value!r} is not of type {entry.kind}")
    if entry.choices and value not in entry.choices:
        raise EngineError(f"settings.{entry.name}: {value!r} is not one of {', '.join(entry.choices)}")
    if isinstance(value, int | float) and entry.kind in ("int", "float"):
        least = -math.inf if entry.least is None else entry.least
        most = math.inf if entry.most is None else entry.most
        if not least <= value <= most:
            raise EngineError(f"settings.{entry.name}: {value!r} is not between {least:g} and {most:g}")


@dataclass(frozen=True)
class Engine:
    """A registered engine.

    ``missing(config)`` says why it can't run here (empty: it can, once `prepare` is done), and
    ``unfit(config)`` why ``auto`` passes it by all the same (no GPU, nothing downloaded yet).
    ``prepare(config)`` fetches what it needs, with progress on the terminal, before any worker
    starts; it raises `EngineError`. ``resolve(facts, voice, language)`` checks what a request
    names, in the dispatcher, before anything is accepted: it must be light and raise
    `EngineError`. ``outline()`` is what the token half will declare, for engines that know it
    without loading: then a default voice that does not exist is refused before anything starts.
    """

    name: str
    tokens: Callable[[EngineConfig, Report], TokenModel]
    audio: Callable[[EngineConfig, Report], AudioModel]
    missing: Callable[[EngineConfig], str] = lambda config: ""
    resolve: Callable[[TokenFacts, str, str], tuple[str, str]] = resolve_voice
    outline: Callable[[], TokenFacts] | None = None
    unfit: Callable[[EngineConfig], str] = lambda config: ""
    prepare: Callable[[EngineConfig], None] = lambda config: None


ENTRY_POINTS = "chatterline.engines"
_AUTO_ORDER = ("chatterbox",)
_FALLBACK = "espeak"


def engine_names() -> list[str]:
    """Names of every engine installed here."""
    return sorted(point.name for point in entry_points(group=ENTRY_POINTS))


def load_engine(name: str) -> Engine:
    """The engine registered under ``name``, or ``module:attribute`` of one that is not installed.

    Raises `EngineError` listing the names that exist.
    """
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if points:
        engine = points[0].load()
    elif ":" in name:
        from importlib import import_module

        module, _, attribute = name.partition(":")
        try:
            engine = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise EngineError(f"model.engine: {name!r} cannot be imported: {error}") from error
    else:
        raise EngineError(f"model.engine: {name!r} is not installed; installed: auto, {', '.join(engine_names())}")
    if not isinstance(engine, Engine):
        raise EngineError(f"model.engine: {name!r} is a {type(engine).__name__}, not a pipeline.engines.base.Engine")
    return engine


def choose_engine(name: str, config: EngineConfig) -> tuple[Engine, str]:
    """The engine to run and, in one line, why: ``auto`` takes the best that can run here.

    Raises `EngineError` when a named engine cannot run here.
    """
    if name != "auto":
        engine = load_engine(name)
        if why := engine.missing(config):
            raise EngineError(f"model.engine: {name} cannot run here: {why}")
        return engine, f"engine {name}, as configured"
    reasons = []
    for candidate in _AUTO_ORDER:
        if candidate not in engine_names():
            reasons.append(f"{candidate}: not part of this installation")
            continue
        engine = load_engine(candidate)
        if not (why := engine.missing(config) or engine.unfit(config)):
            return engine, f"engine {candidate}: its packages, weights and a GPU are here"
        reasons.append(f"{candidate}: {why}")
    return load_engine(_FALLBACK), f"engine {_FALLBACK} ({'; '.join(reasons)})"
