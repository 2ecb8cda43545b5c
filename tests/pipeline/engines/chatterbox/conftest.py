"""What the packages under Chatterbox warn of, silenced in one place; one thread each, so that tests share a machine."""

from __future__ import annotations

import fcntl
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

THIRD_PARTY = (
    "ignore:pkg_resources is deprecated",
    "ignore:Deprecated call to `pkg_resources",
    "ignore:`LoRACompatible(Linear|Conv)` is deprecated:FutureWarning",
    "ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning",
    "ignore:Deprecated in 0.9.0. BPE.__init__ will not create from files:DeprecationWarning",  # transformers does so
    "ignore:'(aifc|audioop|sunau)' is deprecated:DeprecationWarning",  # librosa's audioread
    "ignore:.*torch.nn.utils.weight_norm.* is deprecated:FutureWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Also for what is imported while tests are collected, which no mark reaches."""
    for line in THIRD_PARTY:
        config.addinivalue_line("filterwarnings", line)


if importlib.util.find_spec("torch") is not None:
    import torch

    torch.set_num_threads(1)


Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The folder with a small random checkpoint of an engine, written once for all processes that run tests."""
    from pipeline.engines.chatterbox.options import Options, variant_of
    from pipeline.engines.chatterbox.tiny_files import write_checkpoint

    base = tmp_path_factory.getbasetemp()
    root = base.parent if base.name.startswith("popen-") else base  # xdist gives every process a folder of its own

    def get(engine: str) -> Path:
        folder = root / f"checkpoint-{engine}"
        with (root / f"{engine}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "whole").exists():
                write_checkpoint(variant_of(engine, Options(), "hub"), folder)
                (folder / "whole").touch()
        return folder

    return get
