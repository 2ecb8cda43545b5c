"""The OpenAPI document and its page, and what any request that follows it (or does not) is answered with."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode

from tests.harness import Pipeline
from tests.workers.gateway.standalone import WEB
from workers.gateway.openapi import document

ENGINE = "sine"
EXAMPLES = int(os.environ.get("CHATTERLINE_EXAMPLES", "8"))
SEED = random.randrange(2**32)
DOCUMENT = document(keys_wanted=False)
TOLD, OTHERWISE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


def ways() -> Iterator[tuple[str, GenerationMode]]:
    """Paths that can be asked for in more than one way, and those ways (any text is a name in a path, any bytes
    may be a recording)."""
    for path, methods in DOCUMENT["paths"].items():
        (operation,) = methods.values()
        queries = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
        if "parameters" in operation or "requestBody" in operation:
            yield path, TOLD
        if queries or "application/json" in operation.get("requestBody", {"content": ()})["content"]:
            yield path, OTHERWISE


def test_the_document_names_every_path_over_http(speaking: Pipeline) -> None:
    served = WEB.get(f"{speaking.url}/openapi.json").json()
    assert served == DOCUMENT
    for path, methods in served["paths"].items():
        filled = path.replace("{voice}", "default").replace("{model}", "tts-1").replace("{name}", "anna")
        for method in methods:
            assert WEB.request(method, speaking.url + filled, json={}).status_code not in (404, 405), path


def test_the_page_shows_it_and_loads_nothing_from_elsewhere(speaking: Pipeline) -> None:
    answer = WEB.get(f"{speaking.url}/docs")
    assert answer.headers["content-type"].startswith("text/html")
    for path in DOCUMENT["paths"]:
        assert path in answer.text
    assert "<script" not in answer.text
    assert re.findall(r"(?:src|href)=[\"']?([^ >\"']+)", answer.text) == ["/openapi.json"]


@pytest.mark.parametrize(("path", "mode"), list(ways()), ids=str)
def test_whatever_is_asked_for_it_does_not_fail(speaking: Pipeline, path: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict({**DOCUMENT, "paths": {path: DOCUMENT["paths"][path]}})
    (operation,) = [found.ok() for found in schema.get_all_operations()]

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        answer = case.call(base_url=speaking.url, session=session)
        assert answer.status_code < 500, f"{answer.status_code} {answer.text} (seed {SEED})"

    with requests.Session() as session:
        run()
