"""The configuration's loader: any file is a configuration, or is refused in words."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec

from pipeline.config import Config, ConfigError, load_config

MAX_BYTES = 1000
DICTIONARY = (
    *("model:", "voices:", "stages:", "flow:", "player:", "text:", "gateway:", "supervise:", "t3:", "s3gen:", "\n  "),
    *("engine: auto", "device: cpu", "workers: 1", "cpus: [0, 1]", "bind: tcp://127.0.0.1:1", "settings: {a: 1}"),
    *("&a", "*a", "<<: *a", "!!python/object:os.system", "!!binary", "!!float .inf", ".nan", "1e999", "0x1", "1:30"),
    *("2001-01-01", "2001-99-99", "? ", "- ", "|\n", ">\n", "%YAML 1.1\n", "---\n", "...\n", "{}", "[]", "~", "\x1f"),
)


def check(data: bytes) -> None:
    """Load the bytes as pipeline.yaml, what follows a unit separator as ``--set``."""
    file, *overrides = data.split(b"\x1f")
    path = _scratch()
    path.write_bytes(file)
    try:
        config = load_config(path, [part.decode("utf-8", "surrogateescape") for part in overrides])
    except ConfigError:
        return
    assert msgspec.convert(msgspec.to_builtins(config), Config) == config


def _scratch() -> Path:
    return Path(tempfile.gettempdir()) / f"fuzz-config-{os.getpid()}.yaml"
