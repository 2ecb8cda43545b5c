"""The gateway process.

python -m workers.gateway --index 0 --run-dir DIR …                 as `launch` starts it
python -m workers.gateway --to tcp://HOST:5570 [--config FILE]      by hand, here or on another machine
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import ConfigError, load_config
from pipeline.config_rules import reachable
from pipeline.schema import OFF
from workers.gateway import missing
from workers.life import EXIT_CONFIG, Life, run


def work(life: Life) -> None:
    """Serve the pipeline of this run until told to leave."""
    config = life.config()
    life.progress.progress("importing", config.supervise.start_timeout_s)
    from workers.gateway.server import serve

    serve(config, reachable(config.text.bind), config.text.curve, life)


def by_hand(argv: Sequence[str]) -> int:
    """Serve a pipeline that runs elsewhere until Ctrl-C; returns the exit code."""
    from ipc.client import DEFAULT_TO
    from workers.gateway.server import serve

    parser = argparse.ArgumentParser(
        "workers.gateway", description="HTTP, WebSocket and Wyoming in front of a running pipeline.", allow_abbrev=False
    )
    parser.add_argument("--to", default=DEFAULT_TO, help="the pipeline's text socket (default: %(default)s)")
    parser.add_argument("--config", type=Path, help="a pipeline.yaml; of it, gateway counts")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key of it")
    parser.add_argument("--curve", help="folder with server.key and client.key_secret, where the socket wants keys")
    given = parser.parse_args(argv)
    try:
        config = load_config(given.config, given.set)
        if config.gateway.bind == OFF:
            raise ConfigError("gateway.bind is off, so there is nothing to do")
        serve(config, given.to, given.curve, None)
    except ConfigError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """As a worker if there is a run directory, else by hand."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word.split("=")[0] == "--run-dir" for word in words):
        return run("gateway", work, words)
    return by_hand(words)


if __name__ == "__main__":
    if packages := missing():
        sys.exit(f"gateway: pip install 'chatterline[gateway]' ({', '.join(packages)} not installed)")
    sys.exit(main())
