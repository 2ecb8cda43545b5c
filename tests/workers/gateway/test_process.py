"""The gateway as a process beside the others: it may crash, be late or be missing, and the rest goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from launch.check import gateway_note
from launch.table import processes
from pipeline.config import load_config
from tests.harness import Pipeline, pcm, until
from tests.workers.gateway.standalone import WEB, gateway

LONG = "This sentence is spoken again and again. " * 60


def test_a_gateway_that_is_killed_disturbs_nobody_and_comes_back_at_its_address(speaking: Pipeline) -> None:
    url = speaking.url
    with speaking.client() as direct:
        whole = pcm(direct.speak(LONG, output="stream", seed=3).audio())
        speech = direct.speak(LONG, output="stream", seed=3)
        speaker = direct.speak(LONG)
        pid = speaking.kill("gateway")
        assert (pcm(speech.audio()) == whole).all()
        speaker.wait()
        assert speaking.wait_replaced("gateway", pid)
        until(lambda: direct.status().healthy, "all is well again")
    until(lambda: _answers(f"{url}/ready"), "it answers where it did")
    assert WEB.post(f"{url}/v1/audio/speech", json={"input": "Hello."}).status_code == 200
    assert speaking.process.poll() is None


def _answers(address: str) -> bool:
    try:
        return WEB.get(address).status_code == 200
    except httpx.TransportError:  # nobody listens
        return False


def test_an_engine_that_hangs_is_no_health(speaking: Pipeline) -> None:
    assert WEB.get(f"{speaking.url}/health").json()["status"] == "ok"
    for role in ("s3gen", "t3"):
        pid = speaking.pid(role)
        os.kill(pid, signal.SIGSTOP)
        try:
            answer = WEB.get(f"{speaking.url}/health")
            assert answer.status_code == 503
            assert f"{role}-0 does not answer" in answer.json()["reason"]
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: WEB.get(f"{speaking.url}/health").status_code == 200, "it is well again")


def test_figures_are_what_prometheus_reads(speaking: Pipeline) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    WEB.post(f"{speaking.url}/v1/audio/speech", json={"input": LONG})
    families = {
        family.name: family for family in text_string_to_metric_families(WEB.get(f"{speaking.url}/metrics").text)
    }
    asked = ("requests", "first_sound_seconds", "between_sounds_seconds", "queue_fill", "stage_share", "underruns")
    assert {f"chatterline_{name}" for name in (*asked, "restarts", "cancelled", "abandoned", "pipeline_up")} <= set(
        families
    )
    shares = {
        (sample.labels["stage"], sample.labels["doing"]) for sample in families["chatterline_stage_share"].samples
    }
    assert ("t3-0", "busy") in shares
    counts = [s.value for s in families["chatterline_first_sound_seconds"].samples if s.name.endswith("_count")]
    assert sum(counts) >= 1


@pytest.mark.slow
def test_a_stop_does_not_wait_for_those_who_stay_connected() -> None:
    running = Pipeline("espeak", {"gateway.bind": "127.0.0.1:0"})
    try:
        url = running.url
        with connect(f"{url.replace('http', 'ws', 1)}/ws/tts/live") as live, WEB.stream("GET", f"{url}/api/watch"):
            live.send("{}")
            live.recv(timeout=5)
            assert running.stop() == 0
        assert "SIGKILL" not in running.log()
        assert "did not leave" not in running.log()
        assert running.leftovers() == []
    finally:
        running.close()


@pytest.mark.slow
def test_a_port_that_is_taken_costs_the_gateway_alone() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        running = Pipeline("espeak", {"gateway.bind": f"127.0.0.1:{port}"})
        try:
            until(lambda: "it cannot start here" in running.printed(), "it is told")
            assert re.search(rf"gateway 0 .*gateway.bind: 127.0.0.1:{port} cannot be bound", running.printed())
            with running.client() as direct:
                direct.speak("All the same.").wait()
            assert running.stop() == 0
        finally:
            running.close()


def test_off_is_said_in_a_line_and_starts_nothing(speaking: Pipeline, bare: Pipeline) -> None:
    assert "no gateway: gateway.bind is off" in bare.printed()
    assert not bare.children().get("gateway")
    assert speaking.children().get("gateway")


def test_without_its_packages_there_is_no_gateway_and_a_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_config(None)
    assert [spec.role for spec in processes(config, Path("/tmp/x"))][-1] == "gateway"
    assert gateway_note(config) is None
    monkeypatch.setattr("launch.check.missing", lambda: ["starlette", "av"])
    monkeypatch.setattr("launch.table.missing", lambda: ["starlette", "av"])
    assert "gateway" not in [spec.role for spec in processes(config, Path("/tmp/x"))]
    assert gateway_note(config) == "no gateway: pip install 'chatterline[gateway]' (starlette, av not installed)"


def test_a_gateway_elsewhere_serves_the_same_pipeline_and_waits_for_one_that_restarts(bare: Pipeline) -> None:
    with gateway(bare.to, "aliases={narrator: de}") as running:
        body = {"input": "Guten Tag.", "voice": "narrator", "response_format": "pcm", "seed": 1}
        first = WEB.post(f"{running.url}/v1/audio/speech", json=body)
        assert first.status_code == 200
        pid = bare.kill("dispatcher")
        bare.wait_replaced("dispatcher", pid)
        again = WEB.post(f"{running.url}/v1/audio/speech", json=body)
        assert again.content == first.content
