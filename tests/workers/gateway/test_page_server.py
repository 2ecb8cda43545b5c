"""What the page asks the gateway for besides speech, and what is refused."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from chatterline import Client
from pipeline.config import ConfigError, load_config
from tests.harness import Pipeline, until
from tests.workers.gateway.standalone import WEB, gateway
from workers.gateway.errors import GatewayError
from workers.gateway.recording import measured

PAGE = Path(__file__).parents[3] / "workers" / "gateway" / "page"


def wav(seconds: float, level: float = 0.5, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    """A tone."""
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    tone = np.tile((level * np.sin(2 * np.pi * 200 * time_s))[:, None], (1, channels))
    file = io.BytesIO()
    soundfile.write(file, tone, rate_hz, format="WAV", subtype="PCM_16")
    return file.getvalue()


# ---------------------------------------------------------------- files


def test_every_file_of_the_page_is_served_under_a_policy_that_lets_in_no_foreign_script(speaking: Pipeline) -> None:
    for name in ("", *(f"page/{path.name}" for path in PAGE.iterdir())):
        answer = WEB.get(f"{speaking.url}/{name}")
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        again = WEB.get(f"{speaking.url}/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["page/no.js", "page/../page.py", "page/%2e%2e%2fpage.py", "page/..%5cpage.py", "page/"]
)
def test_nothing_but_the_page_is_served(speaking: Pipeline, path: str) -> None:
    assert WEB.get(f"{speaking.url}/{path}").status_code == 404


def test_the_page_names_no_address_elsewhere() -> None:
    for path in PAGE.iterdir():
        found = set(re.findall(r"https?://[\w.:-]+", path.read_text(encoding="utf-8")))
        assert found <= {"http://localhost:8000", "http://www.w3.org"}, path.name  # an example; the name of SVG


def test_all_that_the_page_asks_for_is_there() -> None:
    names = {path.name for path in PAGE.iterdir()}
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        wanted = set(re.findall(r'from "\./([\w.]+)"|"/page/([\w.]+)"', text))
        assert {one or other for one, other in wanted} <= names, path.name


# ---------------------------------------------------------------- voices


def test_the_page_learns_what_the_engine_says_of_itself(speaking: Pipeline) -> None:
    told = WEB.get(f"{speaking.url}/api/voices").json()
    with Client(speaking.to) as client:
        listed = client.voices()
    assert (told["engine"], told["default"], told["cloning"]) == (listed.engine, listed.default, listed.cloning)
    assert [voice["id"] for voice in told["voices"]] == [voice.id for voice in listed.voices]
    assert [one["name"] for one in told["settings"]] == [one.name for one in listed.settings]
    assert told["chat"] == ""


def test_a_voice_for_an_engine_that_cannot_imitate_is_refused_with_the_reason(speaking: Pipeline) -> None:
    answer = WEB.post(f"{speaking.url}/api/voices/anna", content=wav(3.0))
    assert answer.status_code == 400
    assert "espeak" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"RIFF....WAVE", 400), (b"\0" * 21 * 2**20, 413)])
def test_what_is_no_recording_or_too_much_is_refused(speaking: Pipeline, body: bytes, status: int) -> None:
    assert WEB.post(f"{speaking.url}/api/voices/anna", content=body).status_code == status


def test_a_recording_is_measured() -> None:
    assert measured(wav(2.0), 120.0) == {"duration_s": 2.0, "level_db": -9.0, "peak_db": -6.0}
    assert measured(wav(2.0, level=0.0), 120.0)["level_db"] == -120.0


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (wav(3.1), 413, "longer than 3 s"),
        (wav(0.0), 400, "no sound"),
        (wav(1.0, channels=9), 400, "9 channels"),
        (wav(0.1, rate_hz=384_000), 400, "384000 Hz"),
        (b"no sound at all", 400, "no recording"),
    ],
)
def test_a_recording_beyond_the_limits_is_refused(data: bytes, status: int, words: str) -> None:
    with pytest.raises(GatewayError, match=words) as caught:
        measured(data, 3.0)
    assert caught.value.status == status


def test_no_more_of_a_recording_is_decoded_than_is_allowed() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000 * 600, np.int16), 16_000, format="FLAC")
    assert len(file.getvalue()) < 100_000  # ten minutes
    with pytest.raises(GatewayError, match="longer than 2 s"):
        measured(file.getvalue(), 2.0)


# ---------------------------------------------------------------- the picture


def test_the_picture_is_a_stream_of_states_with_what_was_done_in_between(speaking: Pipeline) -> None:
    with WEB.stream("GET", f"{speaking.url}/api/watch?every_ms=50") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        first = json.loads(next(lines)[6:])
        assert first["type"] == "state"
        with Client(speaking.to) as client:
            speech = client.speak("Three words, perhaps.", output="stream")
            speech.audio()
        done: set[str] = set()
        while not {"t3-0", "s3gen-0"} <= done:
            state = json.loads(next(lines)[6:])
            assert state["speaking"] == []  # nobody's text
            done |= {one["worker"] for one in state["timeline"] if one["id"] == speech.id}


def test_more_watchers_than_allowed_are_told_to_come_back_later(speaking: Pipeline) -> None:
    with gateway(speaking.to, "max_sockets=1") as own:
        with WEB.stream("GET", f"{own.url}/api/watch") as answer:
            lines = answer.iter_lines()  # when this goes, the connection goes
            assert next(lines)
            refused = WEB.get(f"{own.url}/api/watch")
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
        until(lambda: _may_watch(own.url), "the place is free again")


def _may_watch(url: str) -> bool:
    with WEB.stream("GET", f"{url}/api/watch") as answer:
        return answer.status_code == 200


def test_how_often_is_a_number(speaking: Pipeline) -> None:
    answer = WEB.get(f"{speaking.url}/api/watch?every_ms=often")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "every_ms")


# ---------------------------------------------------------------- a language model


def test_the_gateway_asks_no_model_that_a_request_names(speaking: Pipeline) -> None:
    body = {"messages": [{"role": "user", "content": "Hello?"}]}
    answer = WEB.post(f"{speaking.url}/api/chat", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_chat")
    assert WEB.post(f"{speaking.url}/api/chat", json={**body, "url": "http://127.0.0.1/"}).status_code == 404


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://", "ftp://host/v1"])
def test_what_is_no_chat_endpoint_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.chat_url"):
        load_config(None, [f"gateway.chat_url={url}"])
