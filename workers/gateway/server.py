"""uvicorn around the application: one socket, one event loop, our own signals and signs of life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Generator
from pathlib import Path

import uvicorn

from pipeline.config import Config, ConfigError
from pipeline.config_rules import split_tcp
from workers.gateway.app import application
from workers.gateway.records import log, set_up
from workers.life import Life

BACKLOG = 512
KEEP_ALIVE_S = 30
SEND_BUFFER_BYTES = 128 * 1024
"""What waits in the kernel for a slow reader; by itself it would be megabytes, minutes of speech made for nobody."""

LEAVE_S = 2
"""How long what is still under way may take when the process is told to leave."""

PING_S = 20.0


def serve(config: Config, to: str, curve: str | Path | None, life: Life | None) -> None:
    """Serve the pipeline at ``to`` until told to leave. ``life``: of a supervised process; by hand there is
    none. Raises `ConfigError` when the address cannot be bound."""
    set_up(config.gateway.log)
    listening = _bound(config.gateway.bind)
    server = _Server(_uvicorn(config, to, curve), life)
    url = f"http://{_shown(listening)}"
    log.info("listening", extra={"url": url, "pipeline": to})
    try:
        asyncio.run(_run(server, listening, config, life, url))
    except KeyboardInterrupt:
        return
    finally:
        listening.close()


async def _run(server: _Server, listening: socket.socket, config: Config, life: Life | None, url: str) -> None:
    if life is None:
        await server.serve([listening])
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(life.wake_fd, _heed, life, server)
    beat = loop.create_task(_beat(life, config, server, url))
    try:
        await server.serve([listening])
    finally:
        beat.cancel()
        loop.remove_reader(life.wake_fd)
    if not server.started:
        raise RuntimeError("the gateway did not start")


async def _beat(life: Life, config: Config, server: _Server, url: str) -> None:
    """Signs of life from the event loop that does the work: a loop that hangs is noticed."""
    supervise = config.supervise
    ready = False
    while True:
        if server.started and not ready:
            ready = True
            life.progress.ready(f"{url}{' for who has a key' if config.gateway.api_keys else ''}")
        life.progress.progress("work", supervise.hang_s)
        await asyncio.sleep(supervise.progress_s if ready else min(0.02, supervise.progress_s))


def _heed(life: Life, server: _Server) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(life.wake_fd, 4096)
    if life.leaving:
        server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's, which leaves a supervised process's signals alone."""

    def __init__(self, config: uvicorn.Config, life: Life | None) -> None:
        super().__init__(config)
        self._life = life

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """By hand: as uvicorn does."""
        if self._life is not None:
            yield
            return
        with super().capture_signals():
            yield


def _uvicorn(config: Config, to: str, curve: str | Path | None) -> uvicorn.Config:
    gateway = config.gateway
    return uvicorn.Config(
        application(config, to, curve),
        http="h11",
        ws="websockets-sansio",
        ws_max_size=gateway.max_message_kb * 1024,
        ws_ping_interval=PING_S,
        ws_ping_timeout=gateway.stall_s,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LEAVE_S,
        backlog=BACKLOG,
    )


def _bound(bind: str) -> socket.socket:
    host, port = split_tcp(bind)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    address = {"*": "", "localhost": "127.0.0.1"}.get(host, host.strip("[]"))
    # With its protocol named, asyncio sends what is written at once (TCP_NODELAY); without, it does not.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        listening.bind((address, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(f"gateway.bind: {bind} cannot be bound: {error.strerror}") from error
    listening.set_inheritable(False)
    return listening


def _shown(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
