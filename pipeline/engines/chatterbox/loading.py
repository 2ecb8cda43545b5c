"""The stock classes with the weights of a checkpoint folder, on the CPU, in float32, in evaluation mode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from chatterbox.models.voice_encoder import VoiceEncoder
from torch.overrides import TorchFunctionMode

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.modules import build_s3gen, build_t3, s3gen_sizes, t3_sizes
from pipeline.engines.chatterbox.variants import Variant

State = dict[str, torch.Tensor]

REFERENCE_PARTS = ("tokenizer.", "speaker_encoder.")
"""Of S3Gen: what only a reference recording needs."""

MAY_BE_MISSING = frozenset({"tokenizer._mel_filters", "tokenizer.window", "_mel_filters", "window"})
"""Computed, not learnt: the package writes its checkpoints with and without them."""

NOT_USED = frozenset({"tfmr.wte.weight"})
"""Turbo's backbone has a text embedding that T3 never looks at; the package deletes it after loading."""


def load_t3(variant: Variant, folder: Path) -> T3:
    """T3 of a checkpoint. Raises `EngineError` where the file is not what its name says."""
    path = folder / variant.t3
    state = read_state(path)
    return filled(lambda: build_t3(variant, t3_sizes(state)), state, path)


def load_s3gen(variant: Variant, folder: Path) -> S3Gen:
    """S3Gen without speech tokenizer and speaker encoder. Raises `EngineError`."""
    path = folder / variant.s3gen
    state = read_state(path, lambda name: not name.startswith(REFERENCE_PARTS))
    s3gen = filled(lambda: build_s3gen(s3gen_sizes(state)), state, path)
    if s3gen.meanflow != variant.meanflow:
        raise EngineError(f"{path} is {'' if s3gen.meanflow else 'not '}a mean-flow model, unlike {variant.name}")
    return s3gen


def load_voice_encoder(variant: Variant, folder: Path) -> VoiceEncoder:
    """The network that tells speakers apart for T3. Raises `EngineError`."""
    path = folder / variant.voice_encoder
    return filled(VoiceEncoder, read_state(path), path).eval()


def filled(build: Callable[[], Any], state: State, path: Path) -> Any:
    """A module made by ``build`` with the weights of ``path``, all of them, in float32.

    Raises `EngineError` that names what is missing and what is too much.
    """
    try:
        with _uninitialised():
            module = build()
    except Exception as error:  # sizes that make no sense show in many ways
        raise EngineError(f"{path} does not hold the model that it should ({type(error).__name__}: {error})") from error
    wanted = module.state_dict()
    state = {name: tensor for name, tensor in state.items() if name not in NOT_USED or name in wanted}
    missing = sorted(wanted.keys() - state.keys() - MAY_BE_MISSING)
    unknown = sorted(state.keys() - wanted.keys())
    shapes = [name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape]
    if missing or unknown or shapes:
        faults = [("missing", missing), ("unknown", unknown), ("of another shape", sorted(shapes))]
        raise EngineError(f"{path}: " + "; ".join(f"{what}: {_some(names)}" for what, names in faults if names))
    module.load_state_dict(state, strict=False)
    return module.float().eval()


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" … ({len(names)} in all)" if len(names) > 8 else "")


class _Skip(TorchFunctionMode):
    """Random numbers for parameters are not drawn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_, torch.nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _uninitialised() -> Iterator[None]:
    """Modules built in here keep whatever their memory holds: every weight is about to be replaced."""
    with torch.no_grad(), _Skip():
        yield


def read_state(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> State:
    """Tensors of a .safetensors or .pt file by name, only those ``wanted``. Raises `EngineError`."""
    try:
        state = _safetensors(path, wanted) if path.suffix == ".safetensors" else _pickled(path, wanted)
    except FileNotFoundError as error:
        raise EngineError(f"{path}: no such file") from error
    except Exception as error:  # a damaged file shows in many ways
        raise EngineError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not state:
        raise EngineError(f"{path} holds no weights of the kind that is needed")
    return state


def _safetensors(path: Path, wanted: Callable[[str], bool]) -> State:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118 - no mapping


def _pickled(path: Path, wanted: Callable[[str], bool]) -> State:
    state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if "model" in state and not isinstance(state["model"], torch.Tensor):
        state = state["model"][0]
    return {name: tensor for name, tensor in state.items() if wanted(name)}


def part(state: State, prefix: str) -> State:
    """The tensors below a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def identity(paths: Iterable[Path]) -> bytes:
    """What tells one set of weights from another: sizes and samples of the files; whole ones take seconds to read."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for at in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * at // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


_SAMPLES, _SAMPLE_BYTES = 32, 16384
