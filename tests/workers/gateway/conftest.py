"""One pipeline with a gateway for all tests that want the same: to start one takes seconds.

`speaking` runs the engine that the module names (``ENGINE``, else the embedded voice) with the gateway on a free
port and what the module sets besides (``SETTINGS``); `bare` runs no gateway, for tests that start their own. At the
end of all tests each has to leave in order, with nothing left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness import Pipeline

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """As for every test that starts whole pipelines."""
    for item in items:
        if HERE in item.path.parents and {"speaking", "bare"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _web() -> Iterator[None]:
    """Close what all tests ask with."""
    from tests.workers.gateway.standalone import WEB

    with WEB:
        yield


@pytest.fixture(scope="session")
def _pipelines() -> Iterator[dict[str, Pipeline]]:
    """Those that run, by what they were started with."""
    running: dict[str, Pipeline] = {}
    try:
        yield running
        for one in running.values():
            code = one.stop()
            assert code == 0, f"launch ended with {code}\n{one.log()}"
            assert one.leftovers() == [], one.log()
    finally:
        for one in running.values():
            one.close()


@pytest.fixture(scope="module")
def speaking(request: pytest.FixtureRequest, _pipelines: dict[str, Pipeline]) -> Pipeline:
    """The pipeline; its gateway listens at ``speaking.url``."""
    return _started(_pipelines, request.module, {"gateway.bind": "127.0.0.1:0"})


@pytest.fixture(scope="module")
def bare(request: pytest.FixtureRequest, _pipelines: dict[str, Pipeline]) -> Pipeline:
    """The pipeline without a gateway."""
    return _started(_pipelines, request.module, {})


def _started(running: dict[str, Pipeline], module: object, settings: dict[str, object]) -> Pipeline:
    from tests.harness import Pipeline

    engine, settings = getattr(module, "ENGINE", "espeak"), settings | getattr(module, "SETTINGS", {})
    name = f"{engine} {sorted(settings.items())}"
    if name not in running:
        running[name] = Pipeline(engine, settings)
    return running[name]
