"""CURVE keys in files: where they lie, how they are read and written, which programs may come in.

    FOLDER/                      0700; text.curve of a pipeline, and --curve of programs beside it
        server.key_secret        the pipeline's pair
        server.key               its public half, which every program needs
        client.key_secret        the pair of the programs on this machine
        clients/local.key        ... and its public half: they may come in
        clients/NAME.key         the public half of another program's pair: it may come in
        clients/NAME/            server.key and client.key_secret: what that program needs

The files are as `zmq.auth` writes and reads them. A key has 40 characters (Z85).
"""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

SERVER, CLIENT, ALLOWED = "server", "client", "clients"
"""Stems of the files with a pair, and the folder with the public keys of those who may come in."""

LARGEST_BYTES = 64 * 1024
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_LINE = re.compile(r"^\s*(public|secret)-key\s*=\s*(.*?)\s*$", re.MULTILINE)


class KeyFileError(ValueError):
    """A file holds no key; the message names the file."""


def public_file(folder: Path, name: str) -> Path:
    """The file with the public key of a pair."""
    return folder / f"{name}.key"


def secret_file(folder: Path, name: str) -> Path:
    """The file with both keys of a pair."""
    return folder / f"{name}.key_secret"


def read_keys(path: Path) -> tuple[bytes, bytes | None]:
    """The public key in a file and the secret one, if it has one. Raises `OSError` and `KeyFileError`."""
    with path.open("rb") as file:
        text = file.read(LARGEST_BYTES).decode("utf-8", "replace")
    found = {kind: value.strip("\"'") for kind, value in _LINE.findall(text)}
    if "public" not in found or not all(_KEY.fullmatch(key) for key in found.values()):
        raise KeyFileError(f"{path} holds no key of 40 characters")
    return found["public"].encode(), found["secret"].encode() if "secret" in found else None


def write_keys(path: Path, public: bytes, secret: bytes | None = None) -> None:
    """Write a new key file; one with a secret key is closed to other users. Raises `FileExistsError`."""
    lines = ["metadata", "curve", f'    public-key = "{public.decode()}"']
    if secret is not None:
        lines = ["# Whoever has this file has the key: keep it to yourself.", "", *lines]
        lines += [f'    secret-key = "{secret.decode()}"']
    mode = 0o644 if secret is None else 0o600
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")


def open_to_others(secret: Path) -> str:
    """A warning if other users may read or change a file with a secret key (empty: they may not)."""
    mode = stat.S_IMODE(secret.stat().st_mode)
    return f"{secret} is open to other users (mode {mode:o}); chmod 600 {secret}" if mode & 0o077 else ""


class AllowedKeys:
    """The public keys in a folder, as it is now: a file more or less counts from the next connection on.

    Raises `OSError` and `KeyFileError` if the folder cannot be read or a file in it holds no key. Later
    such a file is told on standard error and lets nobody in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._files()
        self._keys = frozenset(read_keys(Path(file[0]))[0] for file in self._seen)

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the holder of this key may come in. Called by `zmq.auth`, in its thread."""
        try:
            files = self._files()
            if files != self._seen:
                self._keys, self._seen = frozenset(self._readable(files)), files
        except OSError as error:
            print(f"text.curve: {error}; nobody can connect until this is mended", file=sys.stderr, flush=True)
            return False
        return key in self._keys

    def _files(self) -> list[tuple[str, int, int]]:
        """Each file's path, number and time of change: what tells whether anything is new."""
        with os.scandir(self._folder) as entries:
            names = [entry.path for entry in entries if entry.name.endswith(".key")]
        return [(name, facts.st_ino, facts.st_mtime_ns) for name in sorted(names) for facts in [Path(name).stat()]]

    def _readable(self, files: list[tuple[str, int, int]]) -> list[bytes]:
        keys = []
        for name, *_ in files:
            try:
                keys.append(read_keys(Path(name))[0])
            except (OSError, KeyFileError) as error:
                print(f"text.curve: {error}; it lets nobody in", file=sys.stderr, flush=True)
        return keys


def server_keys(folder: Path) -> tuple[bytes, bytes, AllowedKeys]:
    """The pipeline's public and secret key, and who may come in. Raises `KeyFileError`."""
    secret = secret_file(folder, SERVER)
    try:
        public_key, secret_key = read_keys(secret)
        allowed = AllowedKeys(folder / ALLOWED)
    except (OSError, KeyFileError) as error:
        raise KeyFileError(
            f"text.curve: {folder} needs server.key_secret and clients/*.key (launch --make-keys {folder}): {error}"
        ) from error
    if secret_key is None:
        raise KeyFileError(f"text.curve: {secret} holds no secret key; launch --make-keys FOLDER makes one")
    return public_key, secret_key, allowed
