"""The doors' common way to a pipeline that is there and says nothing."""

from __future__ import annotations

import asyncio
import time

import pytest
import zmq.asyncio

from ipc.client import AsyncClient
from pipeline.config import Gateway
from workers.gateway.errors import GatewayError
from workers.gateway.metrics import Metrics
from workers.gateway.speaking import BEGINNING, Speaking

TIMEOUT_S = 0.4
AT_ONCE = 20 * BEGINNING


@pytest.mark.slow
async def test_no_request_waits_for_all_the_others_to_give_up() -> None:
    """Each waits for its turn as long as for an answer: twice the timeout, not twenty times."""
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as silent:
        silent.bind("tcp://127.0.0.1:0")
        client = AsyncClient(silent.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"), timeout_s=TIMEOUT_S)
        speaking = Speaking(client, Gateway(max_requests=AT_ONCE), Metrics())

        async def ask() -> None:
            async with speaking.speak("Is anybody there?"):
                raise AssertionError("it began to speak")

        began_s = time.monotonic()
        refused = await asyncio.gather(*(ask() for _ in range(AT_ONCE)), return_exceptions=True)
        waited_s = time.monotonic() - began_s
        await client.close()
    assert {type(one) for one in refused} <= {GatewayError, *GatewayError.__subclasses__()}
    assert {one.status for one in refused if isinstance(one, GatewayError)} == {503}
    assert waited_s < AT_ONCE / BEGINNING * TIMEOUT_S
    assert speaking.in_flight == 0
