"""What no single type can say of pipeline.yaml: forms of addresses, devices and outputs, and keys at odds."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pipeline.config import Config, Flow, Gateway, Player, Stages, Supervise, TextSocket

IPC_PATH_BYTES = 100
"""Longest path of a local socket that every kernel takes."""

KEY_CHARS = 8
"""An API key is at least this long."""

_ORIGIN = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,2})?")
_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[\w.-]+|\*")


def conflicts(config: Config) -> Iterator[str]:
    """One sentence for each thing that is wrong, with its path and what would be right."""
    yield from _stage_faults(config.stages)
    yield from _flow_faults(config.flow)
    yield from _player_faults(config.player, config.flow)
    yield from _text_faults(config.text)
    yield from _supervise_faults(config.supervise)
    yield from _gateway_faults(config.gateway)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def split_tcp(address: str) -> tuple[str, int]:
    """Host and port of ``tcp://host:port`` or ``host:port``; port 0 (or ``*``) means any free one.

    Raises ValueError with what is wrong.
    """
    host, _colon, port = address.removeprefix("tcp://").rpartition(":")
    if not host or not (port == "*" or re.fullmatch(r"[0-9]{1,5}", port)) or (port != "*" and int(port) > 65535):
        raise ValueError("expected HOST:PORT with a port from 1 to 65535, or 0 for any free one")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is no host; an IPv6 address goes in brackets, as in [::1]:5570")
    return host, 0 if port == "*" else int(port)


def reachable(bind: str) -> str:
    """Where a client on this machine finds what is bound to ``bind``."""
    if not bind.startswith("tcp://"):
        return bind
    host, port = split_tcp(bind)
    return f"tcp://{'127.0.0.1' if host in ('*', '0.0.0.0') else host}:{port}"


def _stage_faults(stages: Stages) -> Iterator[str]:
    for name, stage in (("t3", stages.t3), ("s3gen", stages.s3gen)):
        if not _DEVICE.fullmatch(stage.device):
            yield f"stages.{name}.device: {stage.device!r} is no device; allowed: auto, cpu, mps, cuda, cuda:0 …"


def _flow_faults(flow: Flow) -> Iterator[str]:
    if flow.ahead_s >= flow.ring_s:
        yield (
            f"flow.ahead_s: {flow.ahead_s:g} s in flight must be less than flow.ring_s, which is {flow.ring_s:g}; "
            "lower flow.ahead_s or raise flow.ring_s"
        )
    if flow.first_chunk_tokens > flow.chunk_tokens:
        yield (
            f"flow.first_chunk_tokens: {flow.first_chunk_tokens} exceeds flow.chunk_tokens, which is "
            f"{flow.chunk_tokens}; chunks grow from the first to the second"
        )


def _player_faults(player: Player, flow: Flow) -> Iterator[str]:
    if player.output not in ("auto", "speaker", "none") and not re.fullmatch(r"wav:.+", player.output):
        yield f"player.output: {player.output!r} is not allowed; allowed: auto, speaker, none, wav:PATH (wav:out.wav)"
    if player.prebuffer_ms > flow.ahead_s * 1000:
        yield (
            f"player.prebuffer_ms: {player.prebuffer_ms} would never fill, as flow.ahead_s allows {flow.ahead_s:g} s; "
            f"at most {flow.ahead_s * 1000:.0f}"
        )


def _supervise_faults(supervise: Supervise) -> Iterator[str]:
    if supervise.progress_s >= supervise.hang_s:
        yield (
            f"supervise.hang_s: {supervise.hang_s:g} is not above supervise.progress_s ({supervise.progress_s:g}), so "
            "every worker would count as hung between two reports; set hang_s to several times progress_s"
        )


def _gateway_faults(gateway: Gateway) -> Iterator[str]:
    if gateway.bind != "off":
        yield from _bind_faults(gateway)
    if gateway.wyoming != "off":
        yield from _wyoming_faults(gateway)
    for number, network in enumerate(gateway.wyoming_from):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            yield f"gateway.wyoming_from[{number}]: {error}; expected one like 192.168.1.20 or 192.168.1.0/24"
    for number, key in enumerate(gateway.api_keys):
        if not re.fullmatch(rf"[!-~]{{{KEY_CHARS},200}}", key):
            yield (
                f"gateway.api_keys[{number}]: a key is {KEY_CHARS} to 200 letters, digits and signs without spaces; "
                "`openssl rand -hex 24` makes one"
            )
    for number, origin in enumerate(gateway.origins):
        if origin == "*":
            if not gateway.api_keys:
                yield (
                    f"gateway.origins[{number}]: '*' would let every web page speak here; name the pages, or set "
                    "gateway.api_keys"
                )
        elif not _ORIGIN.fullmatch(origin):
            yield f"gateway.origins[{number}]: {origin!r} is no origin; expected one like https://example.org"
    chat = urlsplit(gateway.chat_url)
    if gateway.chat_url and not (chat.scheme in ("http", "https") and chat.hostname):
        yield f"gateway.chat_url: {gateway.chat_url!r} is no chat endpoint; expected one like http://localhost:8000/v1"
    for number, host in enumerate(gateway.hosts):
        if not _HOST.fullmatch(host) or host == "*":
            yield f"gateway.hosts[{number}]: {host!r} is no name of a host; expected one like speech.example.org"


def _bind_faults(gateway: Gateway) -> Iterator[str]:
    try:
        host, port = split_tcp(gateway.bind)
    except ValueError as error:
        yield f"gateway.bind: {gateway.bind!r}: {error}; or off"
        return
    if not is_loopback(host) and not gateway.api_keys:
        yield (
            f"gateway.bind: {gateway.bind!r} can be reached from other machines, which is refused without keys; set "
            f"gateway.api_keys (`openssl rand -hex 24` makes one), or bind 127.0.0.1:{port}"
        )


def _wyoming_faults(gateway: Gateway) -> Iterator[str]:
    """Wyoming knows no keys: instead, who may come is listed by address."""
    if gateway.bind == "off":
        yield "gateway.wyoming: there is no gateway, as gateway.bind is off"
    try:
        host, port = split_tcp(gateway.wyoming)
    except ValueError as error:
        yield f"gateway.wyoming: {gateway.wyoming!r}: {error}; or off"
    else:
        if not is_loopback(host) and not gateway.wyoming_from:
            yield (
                f"gateway.wyoming: {gateway.wyoming!r} can be reached from other machines, and Wyoming knows no keys; "
                f"list in gateway.wyoming_from who may come, or bind 127.0.0.1:{port}"
            )


def _text_faults(text: TextSocket) -> Iterator[str]:
    if text.bind.startswith("ipc://"):
        if not 0 < len(text.bind.removeprefix("ipc://").encode()) <= IPC_PATH_BYTES:
            yield f"text.bind: {text.bind!r}: expected ipc://PATH of at most {IPC_PATH_BYTES} bytes"
        return
    if not text.bind.startswith("tcp://"):
        yield f"text.bind: {text.bind!r} is no address; expected tcp://127.0.0.1:5570 or ipc:///path/to/socket"
        return
    try:
        host, port = split_tcp(text.bind)
    except ValueError as error:
        yield f"text.bind: {text.bind!r}: {error}"
        return
    if not is_loopback(host) and not text.curve:
        yield (
            f"text.bind: {text.bind!r} can be reached from other machines, which is refused without keys; "
            f"set text.curve (launch --make-keys makes one), or bind tcp://127.0.0.1:{port}"
        )
