"""The gateway: HTTP, WebSocket, Wyoming and a page for the browser in front of the public text protocol.

A client like any other, in a process of its own: it may crash alone, run on another machine, or be left
out. Importing this package costs nothing; what it is made of needs the extra ``chatterline[gateway]``.
"""

from __future__ import annotations

from importlib.util import find_spec

PACKAGES = {
    "av": "av",
    "multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "websockets": "websockets",
    "wyoming": "wyoming",
}
"""Modules that it imports, and the packages that bring them."""


def missing() -> list[str]:
    """The packages that would have to be installed first."""
    return [package for module, package in PACKAGES.items() if find_spec(module) is None]
