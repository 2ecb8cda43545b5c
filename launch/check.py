"""What a configuration would do on this machine, and what is missing: `launch --check`, and before every start.

Each finding is a line. A *problem* keeps the pipeline from starting; a *note* is worth knowing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from ipc.messages import SAMPLE_RATE
from launch.rundir import AlreadyRunning, RunDir, RunDirError, log_dir, open_run_dir, state_dir
from launch.table import environment
from pipeline.config import Config, Player, Stage
from pipeline.config_rules import split_tcp
from pipeline.engines.base import Engine, EngineError, choose_engine
from pipeline.schema import OFF
from pipeline.voices import VoiceStore
from workers.gateway import missing
from workers.worker import engine_config

SAMPLE_BYTES = 4
SOUND_TIMEOUT_S = 20.0
_SOUND = """
import sys, msgspec
from pipeline.config import Player
from workers.sound import SoundError
from workers.sound_choice import describe
try:
    print(describe(msgspec.json.decode(sys.argv[1], type=Player)))
except SoundError as error:
    sys.exit(f"problem: {error}")
"""

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    text: str


class PortTaken(Exception):
    """Another program has the address of the text socket."""


def resolve_engine(config: Config) -> tuple[Config, Engine]:
    """The configuration with the engine that will run and the reason why. Raises `EngineError`."""
    engine, reason = choose_engine(config.model.engine, engine_config(config, config.stages.t3))
    name = engine.name if config.model.engine == "auto" else config.model.engine
    model = msgspec.structs.replace(config.model, engine=name, reason=reason)
    return msgspec.structs.replace(config, model=model), engine


def with_state_dir(config: Config) -> Config:
    """The configuration with the state directory spelt out, for the workers that keep a cache there."""
    folder = str(state_dir(config.supervise.state_dir).absolute())
    return msgspec.structs.replace(config, supervise=msgspec.structs.replace(config.supervise, state_dir=folder))


def claim(config: Config) -> tuple[Config, RunDir]:
    """The configuration with its final text address, and the run directory, which holds that address.

    Raises `AlreadyRunning` (a pipeline has it), `PortTaken` (another program has) and `RunDirError`.
    """
    if wants_any_port(config.text.bind):
        config = resolve_port(config)
    run_dir = open_run_dir(config.supervise.run_dir, config.text.bind)
    try:
        return resolve_gateway(resolve_port(config)), run_dir
    except BaseException:
        run_dir.close()
        raise


def wants_any_port(bind: str) -> bool:
    """Whether the address leaves the port to the system."""
    return bind.startswith("tcp://") and split_tcp(bind)[1] == 0


def resolve_port(config: Config) -> Config:
    """The configuration with a text port that stays the same when the dispatcher restarts.

    Raises `PortTaken` when another program has it, and says which.
    """
    bind = config.text.bind
    if not bind.startswith("tcp://"):
        _refuse_live_socket(bind.removeprefix("ipc://"))
        return config
    host, port = split_tcp(bind)
    try:
        free = free_port(bind)
    except OSError as error:
        raise PortTaken(f"text.bind: {bind} cannot be bound: {error.strerror}{_holder(port)}") from error
    text = msgspec.structs.replace(config.text, bind=f"tcp://{host}:{free}")
    return msgspec.structs.replace(config, text=text)


def resolve_gateway(config: Config) -> Config:
    """The configuration with ports for the gateway that stay the same when it restarts. One that is taken is
    left as it is: the gateway will say so, and the pipeline runs without it."""
    chosen = {}
    for key in ("bind", "wyoming"):
        bind: str = getattr(config.gateway, key)
        if bind != OFF and split_tcp(bind)[1] == 0:
            with contextlib.suppress(OSError):
                chosen[key] = f"{split_tcp(bind)[0]}:{free_port(bind)}"
    return msgspec.structs.replace(config, gateway=msgspec.structs.replace(config.gateway, **chosen))


def free_port(bind: str) -> int:
    """The port of HOST:PORT, or any free one for 0. Raises OSError when it cannot be bound."""
    host, port = split_tcp(bind)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    address = {"*": "", "localhost": "127.0.0.1"}.get(host, host.strip("[]"))
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return int(probe.getsockname()[1])


def findings(config: Config) -> Iterator[Finding]:
    """Everything, for ``--check``."""
    yield from _engine(config)
    yield from _stages(config)
    yield from problems(config)
    yield from _sound(config.player)
    yield from _address(config)
    yield from _gateway(config)
    yield from _memory(config)


def problems(config: Config) -> Iterator[Finding]:
    """What is cheap to look at and would only fail later, for every start."""
    here = _processors()
    for name in ("dispatcher", "player", "s3gen", "t3"):
        cpus: tuple[int, ...] = getattr(config.stages, name).cpus
        if wrong := sorted(set(cpus) - here):
            allowed = ", ".join(map(str, sorted(here)))
            yield Finding(
                "problem", "processors", f"stages.{name}.cpus: {wrong} cannot be used here; allowed: {allowed}"
            )
        elif cpus and not hasattr(psutil.Process, "cpu_affinity"):
            yield Finding("note", "processors", f"stages.{name}.cpus: this platform does not pin processes; ignored")
    output = config.player.output
    if output.startswith("wav:"):
        folder = Path(output.removeprefix("wav:")).absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            yield Finding("problem", "sound", f"player.output: {folder} is no folder that can be written to")

    yield from _voice(config)


def gateway_note(config: Config) -> str | None:
    """Why there is no gateway, in a line; None where there is one."""
    if config.gateway.bind == OFF:
        return "no gateway: gateway.bind is off"
    if packages := missing():
        return f"no gateway: pip install 'chatterline[gateway]' ({', '.join(packages)} not installed)"
    return None


def ring_bytes(config: Config) -> int:
    """Shared memory that the rings take, but for their headers."""
    seconds = config.flow.ring_s + config.flow.stream_ring_s * config.text.max_streams
    return int(seconds * SAMPLE_RATE * SAMPLE_BYTES)


def _engine(config: Config) -> Iterator[Finding]:
    try:
        resolved, engine = resolve_engine(config)
        yield Finding("ok", "engine", resolved.model.reason or engine.name)
        if why := engine.unfit(engine_config(config, config.stages.t3)):
            yield Finding("note", "engine", why)
    except EngineError as error:
        yield Finding("problem", "engine", str(error))


def _stages(config: Config) -> Iterator[Finding]:
    for name, stage in (("t3", config.stages.t3), ("s3gen", config.stages.s3gen)):
        yield Finding("ok", name, _stage(stage, config.supervise.standby))
    for name, cpus in (("player", config.stages.player.cpus), ("dispatcher", config.stages.dispatcher.cpus)):
        yield Finding("ok", name, f"1 process, {_on(cpus)}")


def _stage(stage: Stage, standby: bool) -> str:
    count = f"{stage.workers} process{'es' if stage.workers > 1 else ''}{' and a spare one' if standby else ''}"
    return f"{count}, device {stage.device}, up to {stage.max_batch} streams at once, {_on(stage.cpus)}"


def _on(cpus: tuple[int, ...]) -> str:
    return f"on processors {', '.join(map(str, cpus))}" if cpus else "on any processor"


def _processors() -> set[int]:
    me = psutil.Process()
    if hasattr(me, "cpu_affinity"):
        return set(me.cpu_affinity())
    return set(range(psutil.cpu_count() or 1))


def _voice(config: Config) -> Iterator[Finding]:
    name, folder = config.voices.default, Path(config.voices.folder)
    recordings = VoiceStore(folder).names()
    if name == "builtin":
        yield Finding("ok", "voice", "the engine's own")
    elif name in recordings:
        yield Finding("ok", "voice", f"{name}, a recording in {folder}")
    else:
        yield _engines_voice(config)


def _engines_voice(config: Config) -> Finding:
    """A default voice that is no recording must be the engine's."""
    name, folder = config.voices.default, config.voices.folder
    try:
        _resolved, engine = resolve_engine(config)
        if engine.outline is None:
            return Finding("note", "voice", f"{name}: no recording in {folder}; the engine tells if it has none either")
        engine.resolve(engine.outline(), name, config.voices.language)
    except EngineError as error:
        return Finding("problem", "voice", f"voices.default: {error}")
    return Finding("ok", "voice", f"{name}, one of the engine's")


def _sound(player: Player) -> Iterator[Finding]:
    """Asked in a process of its own: sound libraries print, and may hang or crash."""
    command = [sys.executable, "-c", _SOUND, msgspec.json.encode(player).decode()]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=SOUND_TIMEOUT_S, env=environment(), check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("problem", "sound", f"the sound system did not answer within {SOUND_TIMEOUT_S:g} s")
        return
    last = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
    if asked.returncode:
        yield Finding("problem", "sound", last.removeprefix("problem: "))
    else:
        said = asked.stdout.strip()
        yield Finding("note" if said.startswith("wav:") and player.output == "auto" else "ok", "sound", said)


def _address(config: Config) -> Iterator[Finding]:
    """The text socket, the run directory and the logs, by taking them for a moment."""
    try:
        _resolved, run = claim(config)
        run.close()
        yield Finding("ok", "text socket", f"{config.text.bind} is free")
        yield Finding("ok", "run folder", str(run.endpoints.run_dir))
    except (PortTaken, AlreadyRunning) as error:
        yield Finding("problem", "text socket", str(error))
    except RunDirError as error:
        yield Finding("problem", "run folder", str(error))
    logs = log_dir(state_dir(config.supervise.state_dir), config.text.bind)
    try:
        logs.mkdir(parents=True, exist_ok=True)
        writable = os.access(logs, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if writable:
        yield Finding("ok", "logs", str(logs))
    else:
        yield Finding("note", "logs", f"supervise.state_dir: {logs} cannot be written to, so no logs are kept")


def _gateway(config: Config) -> Iterator[Finding]:
    if (note := gateway_note(config)) is not None:
        yield Finding("note" if config.gateway.bind != OFF else "ok", "gateway", note)
        return
    keys = len(config.gateway.api_keys)
    who = (
        f"for who has {'the key' if keys == 1 else f'one of {keys} keys'}" if keys else "for everybody on this machine"
    )
    try:
        free_port(config.gateway.bind)
        yield Finding("ok", "gateway", f"{config.gateway.bind} is free, {who}")
    except OSError as error:
        port = split_tcp(config.gateway.bind)[1]
        text = f"gateway.bind: {config.gateway.bind} cannot be bound: {error.strerror}{_holder(port)}"
        yield Finding("note", "gateway", f"{text}; the pipeline would run without it")


def _memory(config: Config) -> Iterator[Finding]:
    need, there = ring_bytes(config), psutil.virtual_memory().available
    text = f"{need / 2**20:.0f} MB of shared memory for sound, of {there / 2**20:.0f} MB that are free"
    if need < there:
        yield Finding("ok", "memory", text)
    else:
        yield Finding("problem", "memory", f"{text}; lower flow.ring_s, flow.stream_ring_s or text.max_streams")


def _refuse_live_socket(path: str) -> None:
    """A second bind would silently take the path away from a program that is listening there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.settimeout(1.0)
        probe.connect(path)
        raise PortTaken(f"text.bind: ipc://{path} is in use by another program")


def _holder(port: int) -> str:
    """Who listens there, where the system tells."""
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
                return f"; {psutil.Process(one.pid).name()} with pid {one.pid} listens there"
    return ""
