"""Fixtures of the tests that run the whole pipeline: the real `launch`, once with each engine.

`pipeline` is a factory: ``speaking = pipeline({"flow.ahead_s": 2}, output="wav")``. Every pipeline that a
test starts is stopped at its end as Ctrl-C would, and has to leave in order: exit code 0, no process,
no run directory. A test that ends it otherwise says so itself (``stop``, ``wait``) and checks the code.
A test for one engine alone says ``@pytest.mark.parametrize("engine", ["babble"])``.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness import Pipeline


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a script starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else no Ctrl-C reaches what a test starts


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that starts whole pipelines takes seconds: it is slow unless it says that it is brief.

    Files with the largest share of slow tests come first: one that takes minutes and comes last is waited for alone.
    """
    slow, tests = Counter[Path](), Counter[Path]()
    for item in items:
        if "pipeline" in getattr(item, "fixturenames", ()) and item.get_closest_marker("brief") is None:
            item.add_marker(pytest.mark.slow)
        tests[item.path] += 1
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path] / tests[item.path])


@pytest.fixture(params=["espeak", "babble"])
def engine(request: pytest.FixtureRequest) -> str:
    """Name of the engine that the test runs with."""
    return str(request.param)


@pytest.fixture
def pipeline(engine: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Pipeline]]:
    """Start a pipeline (arguments of `tests.harness.Pipeline` but for the engine)."""
    from tests.harness import Pipeline

    started: list[Pipeline] = []

    def start(*arguments: object, **named: object) -> Pipeline:
        started.append(Pipeline(engine, *arguments, **named))  # type: ignore[arg-type]
        return started[-1]

    try:
        yield start
        for one in started:
            told = one.exit_code is None
            code = one.stop() if told else one.exit_code
            assert not told or code == 0, f"launch ended with {code}\n{one.log()}"
            assert one.leftovers() == [], one.log()
    finally:
        for one in started:
            one.close()
