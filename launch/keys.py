"""`launch --make-keys`: the keys for a text socket that other machines can reach.

What is there already is kept: a second call adds clients, and never takes a key away from anybody.
The folder's contents are described in `ipc.keys`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ipc.channels import new_pair
from ipc.keys import (
    ALLOWED,
    CLIENT,
    SERVER,
    KeyFileError,
    open_to_others,
    public_file,
    read_keys,
    secret_file,
    server_keys,
    write_keys,
)
from launch.check import Finding

LOCAL = "local"
"""The name under which programs on the pipeline's own machine come in."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


class KeysError(Exception):
    """Keys cannot be made; the message says which and what to do."""


def make_keys(folder: Path, clients: Sequence[str]) -> list[str]:
    """Make what is missing of the pipeline's keys and those of ``clients``; what to tell about it, in lines.

    Raises `KeysError`; nothing has been overwritten then.
    """
    for name in clients:
        if not NAME.fullmatch(name) or name == LOCAL:
            raise KeysError(f"--client {name!r}: expected letters, digits, - and _, and not {LOCAL!r}")
    try:
        folder = folder.expanduser().absolute()
        _private(folder)
        _private(folder / ALLOWED)
        server = _pair(folder, SERVER)
        told = [f"{folder}: {'the pipeline has new keys' if server else 'the pipeline has its keys already'}"]
        _allow(folder, LOCAL, folder)
        for name in dict.fromkeys(clients):
            told += _client(folder, name)
    except FileExistsError as error:
        raise KeysError(f"{error.filename} is there already, without its other half; nothing is overwritten") from error
    except (OSError, KeyFileError) as error:
        raise KeysError(str(error)) from error
    return told + _advice(folder, clients)


def key_findings(curve: str) -> Iterator[Finding]:
    """What is wrong with the folder ``text.curve``, which would otherwise show when the dispatcher starts."""
    if curve:
        folder = Path(curve).expanduser()
        try:
            server_keys(folder)
            if warning := open_to_others(secret_file(folder, SERVER)):
                yield Finding("note", "keys", f"text.curve: {warning}")
        except KeyFileError as error:
            yield Finding("problem", "keys", str(error))


def _client(folder: Path, name: str) -> list[str]:
    """Keys for a program elsewhere, in a folder of their own, to be taken there."""
    bundle = folder / ALLOWED / name
    listed = public_file(folder / ALLOWED, name)
    if listed.exists():
        return [f"{name}: has keys already, and may come in"]
    if bundle.exists():
        raise KeysError(f"{name} had keys that were taken back; remove {bundle} to give it new ones")
    _private(bundle)
    write_keys(public_file(bundle, SERVER), read_keys(public_file(folder, SERVER))[0])
    _allow(folder, name, bundle)
    return [f"{name}: copy {bundle} to that machine, then remove it here"]


def _allow(folder: Path, name: str, own: Path) -> None:
    """A client's pair in ``own``, and its public key among those who may come in."""
    if _pair(own, CLIENT):
        write_keys(public_file(folder / ALLOWED, name), read_keys(secret_file(own, CLIENT))[0])


def _pair(folder: Path, name: str) -> bool:
    """Make a pair unless it is there; whether it is new."""
    secret = secret_file(folder, name)
    if secret.exists():
        if warning := open_to_others(secret):
            raise KeysError(warning)
        return False
    public_key, secret_key = new_pair()
    if name == SERVER:
        write_keys(public_file(folder, name), public_key)
    write_keys(secret, public_key, secret_key)
    return True


def _private(folder: Path) -> None:
    """A folder of ours that is closed to other users."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid != os.getuid():
        raise KeysError(f"{folder} belongs to another user")
    if facts.st_mode & 0o077:
        raise KeysError(f"{folder} is open to other users (mode {facts.st_mode & 0o777:o}); chmod 700 {folder}")


def _advice(folder: Path, clients: Sequence[str]) -> list[str]:
    name = clients[0] if clients else "NAME"
    lines = [
        "",
        "in pipeline.yaml:",
        '  text: {bind: "tcp://0.0.0.0:5570", curve: "' + str(folder) + '"}',
        "on the other machine:",
        f'  speak --to tcp://THIS_MACHINE:5570 --curve {name} "Hello."',
        f"nobody else may come in. To shut out {name}: remove {public_file(folder / ALLOWED, name)}",
    ]
    if not clients:
        lines.insert(1, f"keys for a program on another machine: launch --make-keys {folder} --client NAME")
    return lines
