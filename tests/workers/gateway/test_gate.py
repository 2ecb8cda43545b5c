"""The gate's rules, each for itself; what it does to real requests is in test_safety.py."""

from __future__ import annotations

import pytest

from pipeline.config import Gateway as GatewayConfig
from workers.gateway.errors import Busy, GatewayError
from workers.gateway.gate import WAITERS_KEPT, Keys, Names, Rate, key_of


def test_a_key_is_known_only_whole() -> None:
    keys = Keys(("first-key-0001", "second-key-0002"))
    assert keys.wanted
    assert keys.known("first-key-0001")
    assert keys.known("second-key-0002")
    for wrong in ("", "first-key-000", "first-key-00011", "FIRST-KEY-0001", "é", "\udcff"):
        assert not keys.known(wrong)
    assert not Keys(()).wanted
    assert not Keys(()).known("")


def test_keys_are_compared_by_digest_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import workers.gateway.gate as gate

    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(gate.hmac, "compare_digest", compare)
    assert Keys(("first-key-0001", "second-key-0002", "k" * 200)).known("first-key-0001")
    assert compared == [(32, 32)] * 3


@pytest.mark.parametrize(
    ("headers", "protocols", "key"),
    [
        ({"authorization": "Bearer abc"}, [], "abc"),
        ({"authorization": "bearer  abc "}, [], "abc"),
        ({"authorization": "Basic abc"}, [], ""),
        ({"xi-api-key": "abc"}, [], "abc"),
        ({"authorization": "Bearer ", "xi-api-key": "abc"}, [], "abc"),
        ({}, ["realtime", "openai-insecure-api-key.abc"], "abc"),
        ({}, ["chatterline", "chatterline-key.YWJj"], "abc"),
        ({}, ["chatterline-key.YWI"], "ab"),
        ({}, ["chatterline-key.A"], ""),
        ({}, [], ""),
    ],
)
def test_where_a_key_may_stand(headers: dict[str, str], protocols: list[str], key: str) -> None:
    assert key_of({"subprotocols": protocols}, headers) == key


def test_a_rate_lets_a_burst_pass_and_then_its_share() -> None:
    now = [100.0]
    rate = Rate(6, lambda: now[0])
    for _ in range(6):
        rate.take("a")
    with pytest.raises(Busy) as refused:
        rate.take("a")
    assert refused.value.headers == {"Retry-After": "10"}
    rate.take("b")  # another's bucket is full
    now[0] += 10
    rate.take("a")
    with pytest.raises(Busy):
        rate.take("a")


def test_a_rate_remembers_a_bounded_number_of_callers() -> None:
    rate = Rate(1, lambda: 0.0)
    for caller in range(3 * WAITERS_KEPT):
        rate.take(str(caller))
    assert len(rate._left) == WAITERS_KEPT


def test_no_rate_is_no_limit() -> None:
    rate = Rate(0)
    for _ in range(1000):
        rate.take("a")


NAMES = Names.of(GatewayConfig(hosts=("speech.example.org",), origins=("https://app.example.org",)))


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8880", "127.0.0.1:8880", "[::1]:1", "192.168.1.4", "Speech.Example.Org:443"]
)
def test_our_own_names_and_addresses_pass(host: str) -> None:
    NAMES.check_host(host)


STRANGE = ("", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "speech.example.org.", "localhost:x")


@pytest.mark.parametrize("host", STRANGE)
def test_any_other_name_is_refused(host: str) -> None:
    with pytest.raises(GatewayError) as refused:
        NAMES.check_host(host)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, ""),
        ({"origin": "http://localhost:8880"}, ""),
        ({"origin": "https://app.example.org"}, "https://app.example.org"),
        ({"sec-fetch-site": "same-origin"}, ""),
        ({"sec-fetch-site": "none"}, ""),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, ""),
    ],
)
def test_our_own_page_a_listed_one_and_no_page_pass(headers: dict[str, str], allowed: str) -> None:
    assert NAMES.allowed_origin({"host": "localhost:8880"} | headers) == allowed


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:8881"},
        {"origin": "localhost:8880"},
        {"origin": "https://app.example.org.evil.example"},
        {"origin": "https://app.example.org:444"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_any_other_page_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(GatewayError) as refused:
        NAMES.allowed_origin({"host": "localhost:8880"} | headers)
    assert refused.value.status == 403
