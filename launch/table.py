"""Which processes a configuration asks for, and in which order they start and stop."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ipc.messages import Role
from launch.process import Descriptors, Spec
from pipeline.config import Config
from pipeline.schema import OFF
from workers.gateway import missing
from workers.life import Arguments

FIRST: Role = "dispatcher"
"""Starts alone; the others follow once it is ready."""

STOP_ORDER: tuple[Role, ...] = ("gateway", "t3", "s3gen", "player", "dispatcher")


def processes(config: Config, run_dir: Path) -> list[Spec]:
    """Every process to keep alive. With ``supervise.standby`` there is one t3 and one s3gen more; with
    ``gateway.bind`` off, or without what it needs, no gateway."""
    spare = int(config.supervise.standby)
    stages = config.stages
    counted: list[tuple[Role, int, tuple[int, ...]]] = [
        ("dispatcher", 1, stages.dispatcher.cpus),
        ("player", 1, stages.player.cpus),
        ("s3gen", stages.s3gen.workers + spare, stages.s3gen.cpus),
        ("t3", stages.t3.workers + spare, stages.t3.cpus),
    ]
    if config.gateway.bind != OFF and not missing():
        counted.append(("gateway", 1, ()))
    return [
        Spec(role, index, _command(role, index, run_dir), cpus, vital=role != "gateway")
        for role, count, cpus in counted
        for index in range(count)
    ]


SPINS = "2000"
"""Two engines on the same processors (without a GPU) have as many threads each as there are: one that waits for the
rest of its own by spinning, for milliseconds by default, takes from the other what that is waiting for."""


def environment() -> dict[str, str]:
    """What the processes see: ours, their output unbuffered, crashes in native code with a traceback, threads that wait
    for each other asleep.

    A folder that happens to be the current one is no place to import from; a source tree is.
    """
    env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "PYTHONSAFEPATH": "1"}
    if not env.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        env["GOMP_SPINCOUNT"] = SPINS
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").exists():
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), env.get("PYTHONPATH", "")]))
    return env


def _command(role: Role, index: int, run_dir: Path) -> Callable[[Descriptors], list[str]]:
    def command(inherited: Descriptors) -> list[str]:
        arguments = Arguments(
            index=index,
            parent=os.getpid(),
            run_dir=run_dir,
            arena=inherited.arena,
            progress=inherited.progress,
            death=inherited.death,
        )
        return [sys.executable, *arguments.command(role)[1:]]

    return command
