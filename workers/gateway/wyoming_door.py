"""The Wyoming door, for Home Assistant and its satellites: a TCP server beside HTTP, in the same process.

Events are read and written by the package `wyoming`; here is what they mean. A connection's requests are
spoken one after the other. While a text grows (`synthesize-start` … `synthesize-stop`), the `synthesize` with all of
it, which is meant for servers that cannot stream, is left out. A connection that ends silences what it asked for.

Wyoming knows no keys: who may come is told by address (`gateway.wyoming_from`; this machine always may).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pipeline.config_rules import split_tcp
from workers.gateway.errors import GatewayError
from workers.gateway.records import log
from workers.gateway.wyoming_handler import Handler

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

_NO_EVENT = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What `wyoming` raises for bytes that are no event."""


@asynccontextmanager
async def service(gateway: Gateway) -> AsyncIterator[None]:
    """Listens at `gateway.wyoming` as long as the block lasts; ``off``: does not."""
    if gateway.config.wyoming == "off":
        yield
        return
    door = _Door(gateway)
    host, port = split_tcp(gateway.config.wyoming)
    try:
        server = await asyncio.start_server(door.serve, None if host == "*" else host.strip("[]"), port)
    except OSError as error:
        log.error("Wyoming is off: gateway.wyoming: %s cannot be bound: %s", gateway.config.wyoming, error.strerror)
        yield
        return
    bound = server.sockets[0].getsockname()
    log.info("listening", extra={"url": f"tcp://{bound[0]}:{bound[1]}", "protocol": "wyoming"})
    try:
        yield
    finally:
        server.close()
        await door.close()


class _Door:
    """The connections."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._networks = [ipaddress.ip_network(one) for one in gateway.config.wyoming_from]
        self._serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it ends."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            peer = str((writer.get_extra_info("peername") or ("",))[0])
            if self._may_come(peer):
                with self._gateway.speaking.socket():
                    await Handler(self._gateway, reader, writer, peer).run()
            else:
                log.warning("Wyoming: %s may not come; gateway.wyoming_from lists who may", peer)
        except GatewayError as error:
            log.warning("Wyoming: %s", error.message)
        except (EOFError, OSError):
            return  # it is gone
        except _NO_EVENT as error:
            log.info("Wyoming: hung up on what is no event (%s)", type(error).__name__)
        except asyncio.CancelledError:
            if not task.cancelling():
                raise
        finally:
            self._serving.discard(task)
            writer.close()

    async def close(self) -> None:
        """Hang up on everybody."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _may_come(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address.is_loopback or any(address in network for network in self._networks)
