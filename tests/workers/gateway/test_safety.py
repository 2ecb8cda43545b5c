"""Who is let in, and how much: on every door, HTTP and WebSocket, of real gateways."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.harness import Pipeline, until
from tests.workers.gateway.standalone import WEB, Standalone, gateway

ENGINE = "sine"
KEY = "a-key-that-nobody-guesses"
PAGE = "https://app.example.org"

POSTS = (
    ("/v1/audio/speech", {"input": "hello"}),
    ("/v1/text-to-speech/default", {"text": "hello"}),
    ("/v1/text-to-speech/default/stream", {"text": "hello"}),
    ("/v1/text-to-speech/default/with-timestamps", {"text": "hello"}),
    ("/v1/text-to-speech/default/stream/with-timestamps", {"text": "hello"}),
)
GETS = ("/v1/models", "/v1/audio/voices", "/v1/voices", "/v2/voices", "/metrics", "/api/voices", "/api/watch")
OPEN = ("/", "/health", "/ready", "/docs", "/openapi.json")
SOCKETS = (
    "/ws/tts/live",
    "/v1/text-to-speech/default/stream-input",
    "/v1/text-to-speech/default/multi-stream-input",
)
LONG = "on and on " * 9000


@pytest.fixture(scope="module")
def plain(bare: Pipeline) -> Iterator[Standalone]:
    with gateway(bare.to, f"origins=[{PAGE}]", "hosts=[speech.example.org]") as running:
        yield running


@pytest.fixture(scope="module")
def locked(bare: Pipeline) -> Iterator[Standalone]:
    with gateway(bare.to, f"api_keys=[another-key-0001, {KEY}]", 'origins=["*"]') as running:
        yield running


# --------------------------------------------------------------------------- keys


def test_without_a_key_no_door_opens(locked: Standalone) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"xi-api-key": f"{KEY}x"},
        {"Authorization": f"Basic {KEY}"},
    ):
        for path, body in POSTS:
            assert WEB.post(locked.url + path, json=body, headers=headers).status_code == 401, path
        for path in GETS:
            assert WEB.get(locked.url + path, headers=headers).status_code == 401, path
    assert WEB.post(f"{locked.url}/api/voices/x", content=b"x").status_code == 401
    for path in SOCKETS[:1]:
        with pytest.raises(InvalidStatus) as refused, connect(locked.ws + path):
            pass
        assert refused.value.response.status_code == 401
    for path in SOCKETS:
        with pytest.raises(InvalidStatus), connect(locked.ws + path, additional_headers={"xi-api-key": "wrong"}):
            pass


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"xi-api-key": KEY}])
def test_with_a_key_every_door_opens(locked: Standalone, headers: dict[str, str]) -> None:
    for path, body in POSTS:
        assert WEB.post(locked.url + path, json=body, headers=headers).status_code == 200, path
    for path in GETS[:-1]:
        assert WEB.get(locked.url + path, headers=headers).status_code == 200, path
    for path in SOCKETS:
        with connect(locked.ws + path, additional_headers=headers):
            pass


def test_what_tells_nothing_needs_no_key(locked: Standalone) -> None:
    for path in OPEN:
        assert WEB.get(locked.url + path).status_code == 200, path


def test_a_browser_tells_its_key_as_a_subprotocol(locked: Standalone) -> None:
    packed = base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")
    for offered in (f"openai-insecure-api-key.{KEY}", f"chatterline-key.{packed}"):
        with connect(f"{locked.ws}/ws/tts/live", subprotocols=[Subprotocol("chatterline"), Subprotocol(offered)]):
            pass


@pytest.mark.parametrize("field", ["xi_api_key", "xi-api-key"])
def test_elevenlabs_sockets_take_the_key_in_the_first_message_and_only_there(locked: Standalone, field: str) -> None:
    for path in SOCKETS[1:]:
        with connect(locked.ws + path) as allowed:
            allowed.send(json.dumps({"text": " ", field: KEY, "context_id": "a"}))
            allowed.send(json.dumps({"text": "hello", "context_id": "a"}))
            allowed.send(json.dumps({"text": "", "close_socket": True}))
            assert [json.loads(message) for message in allowed][-1]["isFinal"]
        for first in ({"text": "hello"}, {"text": "hello", field: "wrong"}):
            with connect(locked.ws + path) as refused:
                refused.send(json.dumps(first))
                assert json.loads(refused.recv(timeout=5))["error"] == "invalid_api_key"
                with pytest.raises(ConnectionClosed):
                    refused.recv(timeout=5)


def test_a_refusal_is_in_the_clients_form(locked: Standalone) -> None:
    assert WEB.post(f"{locked.url}/v1/audio/speech").json()["error"]["code"] == "invalid_api_key"
    assert WEB.get(f"{locked.url}/v1/voices").json()["detail"]["status"] == "invalid_api_key"


# --------------------------------------------------------------------------- names and pages


def everything_refuses(url: str, headers: dict[str, str]) -> None:
    for path, body in POSTS:
        assert WEB.post(url + path, json=body, headers=headers).status_code == 403, path
        simple = headers | {"Content-Type": "text/plain"}
        assert WEB.post(url + path, content=json.dumps(body), headers=simple).status_code == 403, path
    for path in (*GETS, *OPEN):
        assert WEB.get(url + path, headers=headers).status_code == 403, path
    assert WEB.post(f"{url}/api/voices/x", content=b"x", headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8880"])
def test_a_name_that_is_not_ours_reaches_nothing(plain: Standalone, host: str) -> None:
    everything_refuses(plain.url, {"Host": host})
    for path in SOCKETS:
        assert handshake(plain, path, host, None) == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_elsewhere_can_neither_speak_nor_listen(plain: Standalone, origin: str) -> None:
    everything_refuses(plain.url, {"Origin": origin})
    for path in SOCKETS:
        assert handshake(plain, path, plain.url.removeprefix("http://"), origin) == 403


def test_a_page_elsewhere_cannot_even_embed(plain: Standalone) -> None:
    everything_refuses(plain.url, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})


def handshake(running: Standalone, path: str, host: str, origin: str | None) -> int:
    """The status of a WebSocket's handshake, with any Host."""
    address = running.url.removeprefix("http://").split(":")
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    lines += [f"Origin: {origin}"] if origin else []
    with socket.create_connection((address[0], int(address[1])), 5) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(connection.recv(64).split()[1])


def test_our_own_page_may(plain: Standalone) -> None:
    own = {"Origin": plain.url}
    assert WEB.post(plain.url + POSTS[0][0], json=POSTS[0][1], headers=own).status_code == 200
    for path in SOCKETS:
        assert handshake(plain, path, plain.url.removeprefix("http://"), plain.url) == 101
    assert WEB.get(f"{plain.url}/ready", headers={"Host": "speech.example.org"}).status_code == 200


def test_a_listed_page_may_and_no_credentials_are_ever_allowed(plain: Standalone, locked: Standalone) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for running in (plain, locked):  # without and with keys; there the preflight brings none
        before = WEB.options(running.url + POSTS[0][0], headers=asks)
        assert before.status_code == 204
        assert before.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in before.headers["access-control-allow-headers"]
        answer = WEB.post(
            running.url + POSTS[0][0], json=POSTS[0][1], headers={"Origin": PAGE, "Authorization": f"Bearer {KEY}"}
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "origin" in answer.headers["vary"].lower()
        for one in (before, answer):
            assert "access-control-allow-credentials" not in one.headers
    other = WEB.options(plain.url + POSTS[0][0], headers=asks | {"Origin": "https://evil.example"})
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


# --------------------------------------------------------------------------- how much


def test_a_body_that_is_too_long_is_refused_before_it_is_there(bare: Pipeline) -> None:
    with gateway(bare.to, "max_body_kb=4", "max_message_kb=2", "max_upload_mb=1") as running:
        for path, body in POSTS:
            field = next(iter(body))
            stated = WEB.post(running.url + path, json={field: "x" * 5000})
            assert stated.status_code == 413, path
            pieces = (b"x" * 1000 for _ in range(100))
            assert WEB.post(running.url + path, content=pieces).status_code == 413, path
            assert WEB.post(running.url + path, json={field: "x" * 300}).status_code == 200
        assert WEB.post(f"{running.url}/api/voices/x", content=b"x" * 1_200_000).status_code == 413
        for path in SOCKETS:
            with connect(running.ws + path) as socket_:
                socket_.send(json.dumps({"text": "x" * 5000}))
                with pytest.raises(ConnectionClosed) as closed:
                    socket_.recv(timeout=5)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1009


def held(url: str, stop: threading.Event, statuses: list[int]) -> None:
    """A request whose answer is not read until ``stop``."""
    with WEB.stream("POST", url + POSTS[0][0], json={"input": LONG, "response_format": "pcm"}) as answer:
        statuses.append(answer.status_code)
        stop.wait(30)


def test_beyond_the_bound_comes_a_429_that_says_when_to_come_back(bare: Pipeline) -> None:
    with gateway(bare.to, "max_requests=3", "max_sockets=2") as running:
        stop, statuses = threading.Event(), list[int]()
        threads = [threading.Thread(target=held, args=(running.url, stop, statuses)) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(statuses) == 3, "three are under way")
        for path, body in POSTS:
            answer = WEB.post(running.url + path, json=body)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
        with connect(running.ws + SOCKETS[1]) as socket_:
            socket_.send('{"text": "hello"}')
            assert json.loads(socket_.recv(timeout=5))["code"] == 1013
        stop.set()
        for thread in threads:
            thread.join(20)
        assert statuses == [200] * 3
        until(lambda: WEB.post(running.url + POSTS[0][0], json=POSTS[0][1]).status_code == 200, "there is room again")

        def refused(path: str) -> int:
            try:
                with connect(running.ws + path):
                    return 101
            except InvalidStatus as error:
                return error.response.status_code if "retry-after" in error.response.headers else 0

        with connect(running.ws + SOCKETS[0]), connect(running.ws + SOCKETS[1]):
            assert [refused(path) for path in SOCKETS] == [429] * 3
        until(lambda: refused(SOCKETS[0]) == 101, "there is room for a socket again")


def test_a_rate_counts_by_key(bare: Pipeline) -> None:
    with gateway(bare.to, "rate_per_minute=3", f"api_keys=[another-key-0001, {KEY}]") as running:
        statuses = []
        for key in (KEY, "another-key-0001"):
            headers = {"Authorization": f"Bearer {key}"}
            statuses += [WEB.get(f"{running.url}/v1/models", headers=headers).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429] * 2
        assert WEB.get(f"{running.url}/health").status_code == 200  # who keeps it running may always ask


@pytest.mark.slow
def test_without_a_pipeline_every_door_says_so() -> None:
    with gateway("tcp://127.0.0.1:9") as running, ThreadPoolExecutor(5) as threads:
        asking = [threads.submit(WEB.post, running.url + path, json=body) for path, body in POSTS[:2]]
        looking = [threads.submit(WEB.get, running.url + path) for path in ("/health", "/ready")]
        figures = threads.submit(WEB.get, f"{running.url}/metrics")
        for answer in (asked.result() for asked in asking):
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
        for answer in (looked.result() for looked in looking):
            assert answer.status_code == 503
            assert "no pipeline answers at tcp://127.0.0.1:9" in answer.json()["reason"]
        assert "chatterline_pipeline_up 0.0" in figures.result().text


def test_who_reads_nothing_is_hung_up_on(bare: Pipeline) -> None:
    with gateway(bare.to, "stall_s=1") as running, bare.client() as direct:
        body = {"input": LONG, "response_format": "pcm"}
        with WEB.stream("POST", running.url + POSTS[0][0], json=body) as answer:
            until(lambda: direct.status().queued == 0, "the speech has ended")
            with pytest.raises(httpx.RemoteProtocolError):  # cut short, and the client can tell
                answer.read()
        assert "took nothing for 1 s" in running.log()


# --------------------------------------------------------------------------- what is told


def test_nothing_that_is_spoken_and_no_key_is_in_the_log(bare: Pipeline) -> None:
    secret = "the secret of the old lighthouse"
    with gateway(bare.to, "log=json", f"api_keys=[{KEY}]") as running:
        headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "mine.1"}
        answer = WEB.post(f"{running.url}/v1/audio/speech?note={secret}", json={"input": secret}, headers=headers)
        assert answer.headers["x-request-id"] == "mine.1"
        with connect(f"{running.ws}/ws/tts/live?note=secret", additional_headers={"xi-api-key": KEY}) as socket_:
            socket_.send("{}")
            socket_.send(secret)
            socket_.send("")
            assert list(socket_)
        forged = WEB.get(f"{running.url}/v1/models", headers=headers | {"X-Request-Id": "a b\tc"})
        assert re.fullmatch(r"req-[0-9a-f]{16}", forged.headers["x-request-id"])
        until(lambda: running.log().count('"request"') == 3, "three requests are in the log")
        lines = [json.loads(line) for line in running.log().splitlines()]
        told = [line for line in lines if line["message"] == "request"]
        assert told[0]["request_id"] == "mine.1"
        assert {"method", "path", "status", "ms", "bytes", "voice", "utterances", "first_sound_ms"} <= set(told[0])
        assert told[1]["method"] == "WEBSOCKET"
        for part in (secret, KEY, "note="):
            assert part not in running.log()
