"""`launch`: start the pipeline and keep it up.

    launch [pipeline.yaml] [--set KEY=VALUE]… [--check | --say TEXT] [--no-view] [--verbose]
    launch --make-keys FOLDER [--client NAME]…

Exit codes:

    0    stopped in order: everything that was asked for has been heard
    1    could not start, lost a process for good, or --say failed
    2    wrong usage or configuration, or --check found a problem
    3    another pipeline (or program) has the text address or the run directory
    4    stopped in order, but what was still to be heard did not move any more
    129  stopped at once because the terminal was closed
    130  stopped at once by a second Ctrl-C (or one while starting); 143 by a second SIGTERM
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ipc.channels import WorkerChannel
from ipc.endpoints import Endpoints
from ipc.messages import SAMPLE_RATE, Hello
from ipc.ring import Arena, RingError
from launch.allowed import check_threads, raise_open_files
from launch.check import PortTaken, claim, findings, gateway_note, problems, resolve_engine, with_state_dir
from launch.console import Console
from launch.keys import KeysError, key_findings, make_keys
from launch.lifecycle import Limits
from launch.logs import Log
from launch.mps import MpsError, multi_process_service
from launch.rundir import AlreadyRunning, RunDirError, log_dir, state_dir
from launch.supervisor import FAILED, OK, Outside, Supervisor
from launch.table import environment, processes
from launch.talk import Talk, Watcher, say
from launch.view import Picture
from pipeline.config import Config, ConfigError, load_config
from pipeline.engines.base import EngineError
from workers.worker import engine_config

BAD_CONFIG, ALREADY_RUNNING = 2, 3
STDOUT = 1
DEFAULT_FILE = Path("pipeline.yaml")
NO_GATEWAY = ("gateway.bind=off", "gateway.wyoming=off")
MARKS = {"ok": "ok  ", "note": "note", "problem": "MISS"}


@dataclass(frozen=True)
class Options:
    """What the command line says besides the configuration."""

    say: str | None = None
    view: bool = True
    verbose: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    given = _parse(argv)
    try:
        if given.make_keys is not None:
            print(*make_keys(given.make_keys, given.client), sep="\n")
            return OK
        path = given.config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
        config = load_config(path, given.set if given.say is None else [*given.set, *NO_GATEWAY])
        if given.check:
            return check(config)
        return run(config, Options(given.say, given.view and given.say is None, given.verbose))
    except (ConfigError, EngineError, KeysError) as error:
        return _refuse(error, BAD_CONFIG)
    except (AlreadyRunning, PortTaken) as error:
        return _refuse(error, ALREADY_RUNNING)
    except (RunDirError, RingError, MpsError, OSError) as error:
        return _refuse(error, FAILED)


def check(config: Config) -> int:
    """Print what would run where and what is missing."""
    worst = 0
    for finding in (*findings(config), *key_findings(config.text.curve)):
        print(f"{MARKS[finding.level]}  {finding.what:<12} {finding.text}", flush=True)
        worst = max(worst, BAD_CONFIG if finding.level == "problem" else 0)
    print("this would not start: see MISS above" if worst else "this would start")
    return worst


def run(config: Config, options: Options) -> int:
    """Start everything and stay until told to stop; returns the exit code."""
    began = time.monotonic()
    looked_at = (*problems(config), *key_findings(config.text.curve))
    if found := [finding for finding in looked_at if finding.level == "problem"]:
        raise ConfigError("\n".join(finding.text for finding in found))
    raise_open_files()
    check_threads()
    config, engine = resolve_engine(config)
    engine.prepare(engine_config(config, config.stages.t3))
    config = with_state_dir(config)
    logs = log_dir(state_dir(config.supervise.state_dir), config.text.bind)
    config, run_dir = claim(config)
    try:
        run_dir.write_config(msgspec.json.encode(config))
        with contextlib.ExitStack() as stack:
            return Launch(config, run_dir.endpoints, logs, options, stack).run(began)
    finally:
        run_dir.close()


class Launch:
    """One run: the supervisor and what is around it. What has to be closed is put on ``stack``."""

    def __init__(
        self, config: Config, endpoints: Endpoints, logs: Path, options: Options, stack: contextlib.ExitStack
    ) -> None:
        self._config = config
        self._options = options
        self._endpoints = endpoints
        flow = config.flow
        self._arena = Arena.create(
            int(flow.ring_s * SAMPLE_RATE), int(flow.stream_ring_s * SAMPLE_RATE), config.text.max_streams
        )
        stack.callback(self._arena.close)
        self._controls = [self._arena.control(slot) for slot in range(self._arena.slots)]
        self._logs = logs
        self._log = Log(self._logs / "supervisor.log")
        stack.callback(self._log.close)
        self._channel = WorkerChannel(endpoints.work, Hello("supervisor", 0, os.getpid(), 0))
        stack.callback(self._channel.close)
        self._stack = stack
        self._env = environment()
        self._console = self._opened_console(options.view and _on_terminal())
        self._supervisor: Supervisor | None = None
        self._began = time.monotonic()

    def run(self, began: float) -> int:
        """Until everything has stopped."""
        self._began = began
        supervise = self._config.supervise
        if supervise.mps:
            self._env |= self._stack.enter_context(multi_process_service(self._endpoints.run_dir, self._note))
        limits = Limits(
            hang_s=supervise.hang_s,
            start_timeout_s=supervise.start_timeout_s,
            stop_timeout_s=supervise.stop_timeout_s,
            max_restarts=supervise.max_restarts,
            within_s=supervise.within_s,
        )
        self._supervisor = Supervisor(processes(self._config, self._endpoints.run_dir), limits, self._outside())
        self._console.start()
        self._say("supervisor", self._config.model.reason)
        self._say("supervisor", f"text socket {self._config.text.bind}, logs in {self._logs}")
        if (note := gateway_note(self._config)) is not None:
            self._say("supervisor", note)
        try:
            return self._supervisor.run()
        finally:
            self._console.close()

    def _opened_console(self, live: bool) -> Console:
        if not live:
            return Console(STDOUT)
        watcher = Watcher(self._config)
        self._stack.callback(watcher.close)
        watcher.start()
        return Console(STDOUT, self._picture, watcher)

    def _outside(self) -> Outside:
        return Outside(
            channel=self._channel,
            say=self._say,
            arena=self._arena.fd,
            logs=self._logs,
            moved=lambda: sum(control.read + control.written for control in self._controls),
            ready=self._ready,
            env=self._env,
            verbose=self._options.verbose,
            began=self._began,
        )

    def _ready(self) -> None:
        """All stages are up: with ``--say`` there is something to do."""
        if self._options.say is not None:
            talk = Talk("say", self._speak)
            self._stack.callback(talk.close)
            talk.start()

    async def _speak(self) -> None:
        """Through the public socket, like any program; then the pipeline drains and ends."""
        fault = await say(self._config, self._options.say or "")
        if fault:
            self._say("say", fault)
        if self._supervisor is not None:
            self._supervisor.ask_drain(FAILED if fault else OK)

    def _note(self, text: str) -> None:
        self._say("supervisor", text)

    def _say(self, who: str, text: str) -> None:
        self._log.write([f"{who:<12}  {line}" for line in text.splitlines()])
        self._console.line(who, text)

    def _picture(self) -> Picture:
        """What the live view shows, apart from what the dispatcher says. From the console's thread."""
        supervisor = self._supervisor
        return Picture(
            phase=supervisor.phase if supervisor else "starting",
            address=self._config.text.bind,
            engine=self._config.model.reason,
            up_s=time.monotonic() - self._began,
            processes=supervisor.table if supervisor else (),
        )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    about, _, codes = (__doc__ or "").partition("Exit codes:")
    parser = argparse.ArgumentParser(
        "launch",
        description=about.split("\n\n")[0].replace("`launch`: ", "").strip().capitalize(),
        epilog="exit codes:" + codes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "config", nargs="?", type=Path, help="configuration (./pipeline.yaml where there is one, else defaults)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one key, as in stages.t3.device=cuda:1"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="say what would run where and what is missing, and exit")
    what.add_argument("--say", metavar="TEXT", help="speak this, and exit when it has been heard")
    what.add_argument(
        "--make-keys",
        type=Path,
        metavar="FOLDER",
        help="make the keys that text.curve needs, and exit; keeps what is there",
    )
    parser.add_argument(
        "--client", action="append", default=[], metavar="NAME", help="with --make-keys: keys for a program elsewhere"
    )
    parser.add_argument("--no-view", dest="view", action="store_false", help="plain lines on a terminal too")
    parser.add_argument("--verbose", action="store_true", help="show everything that the processes print")
    given = parser.parse_args(argv)
    if given.client and given.make_keys is None:
        parser.error("--client goes with --make-keys FOLDER")
    return given


def _on_terminal() -> bool:
    return os.isatty(STDOUT) and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _refuse(error: Exception, code: int) -> int:
    print(f"launch: {error}", file=sys.stderr)
    return code
