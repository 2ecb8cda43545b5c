"""The voices of one worker: the model's own, and recordings in the voices' folder, prepared once.

What was prepared is kept on disk (by what the recording holds, the model's weights and its prompt's length), so that
the other half, a successor and the next start need not do it again, and in memory within a bound of bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ipc.messages import Voice
from pipeline.engines.base import EngineError, Report
from pipeline.engines.chatterbox.conditionals import Conditionals, S3GenConditionals, T3Conditionals
from pipeline.engines.chatterbox.loading import identity
from pipeline.engines.chatterbox.recordings import read_recording
from pipeline.engines.chatterbox.variants import Variant
from pipeline.voices import VoiceStore

BUILTIN = "builtin"
MEMORY_BYTES = 64 * 2**20
KEPT_FILES = 512
PREPARE_DEADLINE_S = 300.0
_FORMAT = b"chatterline voice 1"


class VoiceBook:
    """Conditionals by a voice's name.

    ``weights``: the checkpoint folder. ``cache``: folder for what was prepared (None: kept in memory alone).
    Raises `EngineError` where the model's own voice cannot be read or there is no voice at all.
    """

    def __init__(
        self,
        variant: Variant,
        weights: Path,
        voices: Path,
        report: Report,
        *,
        cache: Path | None = None,
        device: str = "cpu",
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._variant, self._weights, self._store = variant, weights, VoiceStore(voices)
        self._report, self._device = report, device
        self._cache, self._memory_bytes = cache, memory_bytes
        self._builtin = self._read_builtin()
        self._kept: OrderedDict[str, Conditionals] = OrderedDict()
        self._seen: dict[Path, tuple[tuple[int, int, int], str]] = {}
        self._model = identity([weights / name for name in (variant.s3gen, variant.voice_encoder)])
        if self._builtin is None and not self._store.names():
            raise EngineError(
                f"no voice: {weights / variant.conditionals} does not exist and {voices} holds no recording; "
                "put one there (a few seconds of clean speech as NAME.wav)"
            )

    @property
    def default(self) -> str:
        """The voice of a request that names none."""
        return BUILTIN if self._builtin is not None else self._store.names()[0]

    def voices(self) -> tuple[Voice, ...]:
        """What can be asked for now. Every voice speaks every language of the model; it is listed with the first."""
        language = "en" if "en" in self._variant.languages else next(iter(self._variant.languages))
        own = (Voice(BUILTIN, "the model's own voice", language),) if self._builtin is not None else ()
        return own + tuple(Voice(name, name, language) for name in self._store.names() if name != BUILTIN)

    def conditionals(self, voice: str) -> Conditionals:
        """A voice by its name (empty: the default). Preparing a new one takes seconds, which is reported.

        Raises `EngineError` for one that does not exist or cannot be taken, and says why.
        """
        name = voice or self.default
        if name == BUILTIN and self._builtin is not None:
            return self._builtin
        path = self._store.path(name)
        if path is None:
            known = ", ".join(entry.id for entry in self.voices())
            raise EngineError(
                f"voice: {name!r} is not a voice of {self._variant.name}; there is no such voice in {known}"
            )
        return self._recorded(name, path)

    def _recorded(self, name: str, path: Path) -> Conditionals:
        try:
            key = self._key(path)
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
            data = path.read_bytes()
        except OSError as error:
            raise EngineError(f"voice: the recording of {name!r} cannot be read: {error.strerror}") from error
        made = self._prepared(name, data, key)
        self._keep(key, made)
        return made

    def _key(self, path: Path) -> str:
        """Of what the file holds now; a file that did not change is not read again. Raises OSError."""
        facts = path.stat()
        stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        seen = self._seen.get(path)
        if seen is None or seen[0] != stamp:
            self._seen = {known: entry for known, entry in self._seen.items() if known.exists()}
            seen = self._seen[path] = (stamp, self._digest(path.read_bytes()))
        return seen[1]

    def _digest(self, data: bytes) -> str:
        made_for = f"{self._variant.name} {self._variant.prompt_tokens} {self._variant.s3gen_reference_s}".encode()
        digest = hashlib.sha256()
        for piece in (_FORMAT, made_for, self._model, data):
            digest.update(len(piece).to_bytes(8, "little") + piece)
        return digest.hexdigest()

    def _prepared(self, name: str, data: bytes, key: str) -> Conditionals:
        """From the disk, or made and put there. Of two processes that need it one makes it."""
        if self._cache is None:
            return self._make(name, data)
        path = self._cache / f"{key}.safetensors"
        if (found := _load(path)) is not None:
            return found
        self._report(f"preparing voice {name}", PREPARE_DEADLINE_S)
        with _alone(path.with_suffix(".lock")):
            if (found := _load(path)) is not None:
                return found
            made = self._make(name, data)
            _save(path, made)
        return made

    def _make(self, name: str, data: bytes) -> Conditionals:
        from pipeline.engines.chatterbox.preparing import Preparer

        sound = read_recording(name, data, self._variant)
        self._report(f"preparing voice {name}", PREPARE_DEADLINE_S)
        return Preparer(self._variant, self._weights, self._device).prepare(sound)

    def _keep(self, key: str, voice: Conditionals) -> None:
        self._kept[key] = voice
        while len(self._kept) > 1 and sum(map(size_bytes, self._kept.values())) > self._memory_bytes:
            self._kept.popitem(last=False)

    def _read_builtin(self) -> Conditionals | None:
        path = self._weights / self._variant.conditionals
        return read_builtin(path) if path.exists() else None


def read_builtin(path: Path) -> Conditionals:
    """The voice in a checkpoint's conds.pt. Raises `EngineError`."""
    from pipeline.engines.chatterbox.preparing import s3gen_conditionals

    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
        t3 = T3Conditionals(
            speaker=stored["t3"]["speaker_emb"].float().reshape(1, -1),
            prompt_tokens=torch.atleast_2d(stored["t3"]["cond_prompt_speech_tokens"]).long(),
        )
        return Conditionals(t3, s3gen_conditionals(stored["gen"]))
    except Exception as error:  # a damaged file shows in many ways
        raise EngineError(f"{path} cannot be read as a voice: {type(error).__name__}: {error}") from error


def size_bytes(voice: Conditionals) -> int:
    """What a voice takes in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(voice).values())


def _tensors(voice: Conditionals) -> dict[str, torch.Tensor]:
    return {
        "t3.speaker": voice.t3.speaker,
        "t3.prompt_tokens": voice.t3.prompt_tokens,
        "s3gen.prompt_tokens": voice.s3gen.prompt_tokens,
        "s3gen.prompt_mel": voice.s3gen.prompt_mel,
        "s3gen.speaker": voice.s3gen.speaker,
    }


def _load(path: Path) -> Conditionals | None:
    """A voice from the cache; None where there is none or it is damaged (then it is made again)."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = load(path.read_bytes())
        voice = Conditionals(
            T3Conditionals(found["t3.speaker"], found["t3.prompt_tokens"]),
            S3GenConditionals(found["s3gen.prompt_tokens"], found["s3gen.prompt_mel"], found["s3gen.speaker"]),
        )
        with contextlib.suppress(OSError):
            os.utime(path)
    except (OSError, KeyError, SafetensorError):
        return None
    return voice


def _save(path: Path, voice: Conditionals) -> None:
    """Whole or not at all; a cache that cannot be written costs time, not the voice."""
    from safetensors.torch import save

    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            file.write(save({name: tensor.contiguous() for name, tensor in _tensors(voice).items()}))
        Path(file.name).replace(path)
        _prune(path.parent)
    except OSError as error:
        print(f"voice cache {path.parent}: cannot be written: {error.strerror}", file=sys.stderr, flush=True)


def _prune(folder: Path) -> None:
    """Keep those used last."""
    kept = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept[KEPT_FILES:]:
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time for the same recording; without a writable folder everybody for itself."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the holder's work is bounded, and its death lets go
        yield
