"""For those who keep it running: /health, /ready, /metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ipc.client_errors import ChatterlineError
from ipc.messages import StatusReport

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

ANSWER_S = 3.0
"""A ping is answered within 2 s by who can."""

ENGINES = ("t3", "s3gen")
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class Operations:
    """The handlers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pinging: asyncio.Task[dict[str, object]] | None = None

    async def health(self, _request: Request) -> Response:
        """Whether the engines' work loops work: a round trip through each. 503 with the reason otherwise.

        However many ask at once, the loops are asked once.
        """
        if self._pinging is None or self._pinging.done():
            self._pinging = asyncio.create_task(self._look())
        told = await asyncio.shield(self._pinging)
        return JSONResponse(told, 200 if told["status"] == "ok" else 503)

    async def ready(self, _request: Request) -> Response:
        """Whether a request would be spoken now."""
        try:
            report = await self._status()
        except (ChatterlineError, TimeoutError) as error:
            return JSONResponse({"status": "unavailable", "reason": _said(error)}, 503)
        lacking = [stage for stage in ENGINES if not any(_works(report, stage))]
        if lacking:
            return JSONResponse({"status": "loading", "reason": f"no {' and no '.join(lacking)} is ready"}, 503)
        return JSONResponse({"status": "ready", "engine": report.engine})

    async def metrics(self, _request: Request) -> Response:
        """For Prometheus."""
        try:
            report: StatusReport | None = await self._status()
        except (ChatterlineError, TimeoutError):
            report = None
        page = self._gateway.metrics.page(self._gateway.speaking.in_flight, report)
        return Response(page, headers={"content-type": EXPOSITION})

    async def _look(self) -> dict[str, object]:
        try:
            async with asyncio.timeout(ANSWER_S):
                workers_ms = await self._gateway.client.ping()
            report = await self._status()
        except (ChatterlineError, TimeoutError) as error:
            return {"status": "unavailable", "reason": _said(error)}
        told: dict[str, object] = {"engine": report.engine, "workers_ms": workers_ms}
        silent = [name for stage in ENGINES for name in _all(report, stage) if name not in workers_ms]
        lacking = [stage for stage in ENGINES if not any(name.startswith(f"{stage}-") for name in workers_ms)]
        if silent or lacking:
            reasons = [f"{name} does not answer from its work loop" for name in silent]
            reasons += [f"there is no {stage}" for stage in lacking if not any(_all(report, stage))]
            return {"status": "unhealthy", "reason": "; ".join(reasons)} | told
        return {"status": "ok"} | told

    async def _status(self) -> StatusReport:
        async with asyncio.timeout(ANSWER_S):
            return await self._gateway.client.status()


def routes(gateway: Gateway) -> list[BaseRoute]:
    """The paths."""
    operations = Operations(gateway)
    return [
        Route("/health", operations.health),
        Route("/ready", operations.ready),
        Route("/metrics", operations.metrics),
    ]


def _all(report: StatusReport, stage: str) -> list[str]:
    """The workers of a stage that are meant to work."""
    return [one.worker for one in report.stages if one.worker.startswith(f"{stage}-")]


def _works(report: StatusReport, stage: str) -> list[bool]:
    return [one.state == "RUNNING" for one in report.stages if one.worker.startswith(f"{stage}-")]


def _said(error: Exception) -> str:
    return str(error) or f"the pipeline has not answered for {ANSWER_S:g} s"
