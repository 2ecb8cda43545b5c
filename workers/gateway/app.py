"""The gateway put together: what all doors share, the doors, and the gate in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from ipc.client import AsyncClient
from ipc.client_errors import ChatterlineError
from pipeline.config import Config
from workers.gateway import elevenlabs_api, elevenlabs_ws, live, openai_api, openapi, operations, page, wyoming_door
from workers.gateway.errors import GatewayError, answer, translated
from workers.gateway.gate import Gate, Keys
from workers.gateway.metrics import Metrics
from workers.gateway.records import record_of
from workers.gateway.speaking import Speaking


class Gateway:
    """What every door is given: the configuration, the way to the pipeline, limits and figures."""

    def __init__(self, config: Config, client: AsyncClient) -> None:
        self.config = config.gateway
        self.pipeline = config
        self.client = client
        self.metrics = Metrics()
        self.speaking = Speaking(client, self.config, self.metrics)
        self.speak = self.speaking.speak
        self.keys = Keys(self.config.api_keys)


Doors = Callable[[Gateway], Sequence[BaseRoute]]
Service = Callable[[Gateway], AbstractAsyncContextManager[Any]]

DOORS: tuple[Doors, ...] = (
    openai_api.routes,
    elevenlabs_ws.routes,
    elevenlabs_api.routes,
    live.routes,
    page.routes,
    operations.routes,
    openapi.routes,
)
"""Each says which paths it answers."""

SERVICES: tuple[Service, ...] = (wyoming_door.service,)
"""What runs beside HTTP as long as the gateway does (Wyoming)."""


def application(config: Config, to: str, curve: str | Path | None) -> ASGIApp:
    """The gateway to the pipeline at ``to``. It connects when it is asked for something."""
    gateway = Gateway(config, AsyncClient(to, curve=curve or None))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(gateway.client.close)
            for service in SERVICES:
                await stack.enter_async_context(service(gateway))
            yield

    starlette = Starlette(
        routes=[route for door in DOORS for route in door(gateway)],
        exception_handlers={
            404: _not_found,
            405: _not_found,
            GatewayError: _refused,
            ChatterlineError: _refused,
            Exception: _failed,
        },
        lifespan=lifespan,
    )
    starlette.state.gateway = gateway
    return Gate(starlette, gateway.config, gateway.keys, gateway.metrics)


async def _refused(connection: HTTPConnection, error: Exception) -> Response:
    """What a door could not do. (Of a WebSocket that was accepted, the door itself tells.)"""
    told = error if isinstance(error, GatewayError) else translated(error)  # type: ignore[arg-type]
    if (record := record_of.get()) is not None:
        record.error = record.error or told.message
    return answer(told, connection.url.path, connection.headers)


async def _failed(connection: HTTPConnection, _error: Exception) -> Response:
    """A fault of ours; the log has the traceback."""
    told = GatewayError(500, "the gateway failed; its log tells more")
    return answer(told, connection.url.path, connection.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    what = f"there is nothing at {request.url.path[:200]}"
    if status == 405:
        what = f"{request.url.path[:200]} takes no {request.method}"
    response = answer(GatewayError(status, what), request.url.path, request.headers)
    response.headers.update(getattr(error, "headers", None) or {})
    return response
