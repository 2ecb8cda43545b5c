"""pipeline.yaml as one frozen, nested structure.

Every key has a default; an unknown key, a wrong type or an impossible value raises `ConfigError`
with the path of the key and what is allowed, before anything starts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct, field

from pipeline import schema
from pipeline.config_rules import conflicts

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Scalar = bool | int | float | str
Derived = Annotated[str, Meta(extra={schema.DERIVED: True})]
Switched = Annotated[str, Meta(extra={schema.SWITCHED: True})]


class ConfigError(ValueError):
    """pipeline.yaml or --set asks for something impossible; the message says where and what is allowed."""


class _Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section of pipeline.yaml."""


class Model(_Part, frozen=True):
    """Which engine speaks. ``options`` and ``settings`` are the engine's own: what it is built from,
    and defaults of what a request may set. ``reason`` tells why this engine; `launch` fills it in."""

    engine: str = "auto"
    weights: str = "hub"
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    options: dict[str, Scalar] = field(default_factory=dict)
    settings: dict[str, Scalar] = field(default_factory=dict)
    reason: Derived = ""


class Voices(_Part, frozen=True):
    """Reference recordings, and the voice of a request that names none (``builtin``: the engine's).

    ``prompt_s``: how much of a recording an engine that clones hears again with every piece that it renders.
    """

    folder: str = "voices"
    default: str = "builtin"
    language: str = ""
    prompt_s: Annotated[float, Meta(ge=1, le=30)] = 10.0


class Stage(_Part, frozen=True):
    """One kind of worker. ``cpus``: processors it is pinned to (empty: all)."""

    device: str = "auto"
    workers: Annotated[int, Meta(ge=1, le=16)] = 1
    max_batch: Annotated[int, Meta(ge=1, le=1024)] = 16
    cpus: tuple[Annotated[int, Meta(ge=0)], ...] = ()


class PlayerStage(_Part, frozen=True):
    """Where the player and the dispatcher run."""

    cpus: tuple[Annotated[int, Meta(ge=0)], ...] = ()


class Stages(_Part, frozen=True):
    t3: Stage = field(default_factory=lambda: Stage(max_batch=64))
    s3gen: Stage = field(default_factory=Stage)
    player: PlayerStage = field(default_factory=PlayerStage)
    dispatcher: PlayerStage = field(default_factory=PlayerStage)


class Flow(_Part, frozen=True):
    """How far each stage runs ahead of the ear, in seconds of speech."""

    ring_s: Annotated[float, Meta(ge=1, le=120)] = 10.0
    stream_ring_s: Annotated[float, Meta(ge=0.5, le=30)] = 2.0
    ahead_s: Annotated[float, Meta(ge=0.5, le=100)] = 4.0
    first_chunk_tokens: Annotated[int, Meta(ge=1, le=1000)] = 12
    chunk_tokens: Annotated[int, Meta(ge=1, le=1000)] = 50
    flush_ms: Annotated[int, Meta(ge=20, le=60_000)] = 400


class Player(_Part, frozen=True):
    """Where the speaker's sound goes. ``pace: free`` lets wav: and none run faster than real time."""

    output: str = "auto"
    device: str | int = "default"
    block: Annotated[int, Meta(ge=32, le=8192)] = 512
    prebuffer_ms: Annotated[int, Meta(ge=0, le=5000)] = 120
    pace: Literal["realtime", "free"] = "realtime"


class TextSocket(_Part, frozen=True):
    """The socket for programs, and its limits.

    ``max_audio_s`` bounds the speech of one request, ``max_queued`` the utterances of all programs that
    are not over, ``retain_s`` what a remote listener can `attach` back to, ``detach_s`` how long its
    utterance waits for it.
    """

    bind: str = "tcp://127.0.0.1:5570"
    curve: str = ""
    max_chars: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    max_queued: Annotated[int, Meta(ge=1, le=100_000)] = 256
    max_streams: Annotated[int, Meta(ge=1, le=1024)] = 64
    max_audio_s: Annotated[float, Meta(gt=0)] = 10_800.0
    idle_s: Positive = 30.0
    retain_s: Annotated[float, Meta(ge=0, le=600)] = 5.0
    detach_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0


class Gateway(_Part, frozen=True):
    """The front doors for programs that speak HTTP, WebSocket or Wyoming, and for people with a browser.

    ``bind`` and ``wyoming`` are HOST:PORT or ``off``; ``wyoming_from`` are the addresses and networks elsewhere
    that may use Wyoming, which knows no keys. ``hosts`` are further names under which requests may
    come (`Host`), ``origins`` web pages elsewhere that may use it, ``aliases`` further names of voices.
    ``max_requests`` bounds what is spoken or waits at once, ``max_sockets`` open WebSockets and Wyoming
    connections, ``rate_per_minute`` the requests of one key or address (0: any number), ``stall_s`` how long
    a listener may take nothing. ``chat_url`` is the chat endpoint that the gateway asks for the page (empty: none).
    """

    bind: Switched = "127.0.0.1:8880"
    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    wyoming: Switched = "off"
    wyoming_from: tuple[str, ...] = ()
    chat_url: str = ""
    chat_model: str = ""
    chat_key: str = ""
    max_requests: Annotated[int, Meta(ge=1, le=10_000)] = 200
    max_sockets: Annotated[int, Meta(ge=1, le=10_000)] = 100
    max_body_kb: Annotated[int, Meta(ge=1, le=65_536)] = 1024
    max_message_kb: Annotated[int, Meta(ge=1, le=65_536)] = 256
    max_upload_mb: Annotated[int, Meta(ge=1, le=1024)] = 20
    max_upload_s: Annotated[float, Meta(ge=1, le=3600)] = 120.0
    rate_per_minute: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    stall_s: Positive = 60.0
    log: Literal["text", "json"] = "text"


class Supervise(_Part, frozen=True):
    """When a process counts as hung, and how often it may be restarted. ``mps``: several processes share one
    NVIDIA GPU through its Multi-Process Service, which `launch` then starts and stops."""

    progress_s: Annotated[float, Meta(ge=0.05, le=60)] = 0.5
    hang_s: Positive = 5.0
    start_timeout_s: Positive = 120.0
    stop_timeout_s: Positive = 5.0
    max_restarts: Annotated[int, Meta(ge=0, le=1_000_000)] = 5
    within_s: Positive = 60.0
    standby: bool = False
    mps: bool = False
    run_dir: str = ""
    state_dir: str = ""


class Config(_Part, frozen=True):
    """All of pipeline.yaml."""

    model: Model = field(default_factory=Model)
    voices: Voices = field(default_factory=Voices)
    stages: Stages = field(default_factory=Stages)
    flow: Flow = field(default_factory=Flow)
    player: Player = field(default_factory=Player)
    text: TextSocket = field(default_factory=TextSocket)
    gateway: Gateway = field(default_factory=Gateway)
    supervise: Supervise = field(default_factory=Supervise)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read pipeline.yaml (None: all defaults) and apply ``stages.t3.device=cuda:1`` overrides.

    Raises `ConfigError` that lists everything that is wrong.
    """
    raw = {} if path is None else _read(path)
    origin = str(path) if path is not None else "the defaults"
    if isinstance(raw, dict):
        for override in overrides:
            _override(raw, override)
    if found := schema.faults(Config(), raw):
        raise ConfigError(_listed(origin, found))
    config = msgspec.convert(schema.merged(Config(), raw), Config)
    if found := list(conflicts(config)):
        raise ConfigError(_listed(origin, found))
    return config


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a section, where YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, _Loader) or {}  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; leave the name out to run with the defaults") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error


def _override(raw: dict[Any, Any], override: str) -> None:
    """Put ``a.b=value`` into ``raw``; the value is YAML, except where the key holds nothing but text."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected KEY=VALUE, as in --set stages.t3.device=cuda:1")
    section, known = raw, schema.section_of(Config(), keys[:-1])
    for depth, key in enumerate(keys[:-1]):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise ConfigError(
                f"--set {override}: {'.'.join(keys[: depth + 1])} is {schema.show(section)}, not a section"
            )
    is_text = known is not None and schema.is_text(known, keys[-1])
    section[keys[-1]] = text if is_text and text[:1] not in ("'", '"') else _value(override, text)


def _value(override: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set {override}: {text!r} is not YAML: {error}") from error


def _listed(origin: str, found: Sequence[str]) -> str:
    count = "1 thing is wrong" if len(found) == 1 else f"{len(found)} things are wrong"
    return "\n".join([f"{origin}: {count}", *(f"  {one}" for one in found)])
