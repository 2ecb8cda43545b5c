"""`launch --check`: what would run where, and what is missing."""

import os
import socket
from pathlib import Path

import psutil
import pytest

from launch.check import Finding, PortTaken, findings, problems, resolve_engine, resolve_port, ring_bytes
from pipeline.config import Config, load_config
from pipeline.engines.base import EngineError


def found(what: str, *overrides: str) -> Finding:
    config = load_config(None, ["text.bind=tcp://127.0.0.1:0", "player.output=none", *overrides])
    return next(finding for finding in findings(config) if finding.what == what)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_the_engine_is_named_with_the_reason() -> None:
    config, engine = resolve_engine(Config())
    assert config.model.engine == engine.name
    assert config.model.reason.startswith(f"engine {engine.name}")
    assert found("engine").level == "ok"


def test_an_engine_that_is_not_installed_is_a_problem_that_lists_those_that_are() -> None:
    with pytest.raises(EngineError, match="installed: auto"):
        resolve_engine(load_config(None, ["model.engine=whisper"]))
    finding = found("engine", "model.engine=whisper")
    assert finding.level == "problem"
    assert "installed: auto" in finding.text


def test_processors_that_do_not_exist_are_a_problem() -> None:
    config = load_config(None, ["stages.t3.cpus=[0, 4000]"])
    finding = next(problems(config))
    assert (finding.level, "stages.t3.cpus: [4000] cannot be used here; allowed: 0" in finding.text) == (
        "problem",
        True,
    )
    assert [finding.level for finding in problems(Config())] == ["ok"]


def test_a_wav_in_a_folder_that_does_not_exist_is_a_problem(tmp_path: Path) -> None:
    config = load_config(None, [f"player.output=wav:{tmp_path}/none/out.wav"])
    assert [finding.what for finding in problems(config) if finding.level == "problem"] == ["sound"]
    fine = load_config(None, [f"player.output=wav:{tmp_path}/out.wav"])
    assert [finding.level for finding in problems(fine)] == ["ok"]


def test_a_free_port_is_chosen_once_for_all_restarts() -> None:
    bind = resolve_port(load_config(None, ["text.bind=tcp://127.0.0.1:0"])).text.bind
    assert int(bind.rpartition(":")[2]) > 0


def test_a_taken_port_names_who_has_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127.0.0.1:{port} cannot be bound.*pid {os.getpid()} listens there"):
            resolve_port(load_config(None, [f"text.bind=tcp://127.0.0.1:{port}"]))
        finding = found("text socket", f"text.bind=tcp://127.0.0.1:{port}")
    assert finding.level == "problem"


def test_a_local_socket_that_somebody_listens_at_is_refused(tmp_path: Path) -> None:
    path = f"/tmp/cl-{os.getpid()}.sock"
    config = load_config(None, [f"text.bind=ipc://{path}"])
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        try:
            assert resolve_port(config) is config  # a file that nobody listens at is left over
            other.listen()
            with pytest.raises(PortTaken, match="in use by another program"):
                resolve_port(config)
        finally:
            Path(path).unlink()


def test_memory_that_is_not_there_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ring_bytes(Config()) == (10 + 64 * 2) * 24_000 * 4
    assert found("memory").level == "ok"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    finding = found("memory")
    assert finding.level == "problem"
    assert "lower flow.ring_s" in finding.text


def test_a_default_voice_that_is_a_recording_is_found(tmp_path: Path) -> None:
    (tmp_path / "anna.wav").touch()
    assert "anna, a recording in" in found("voice", f"voices.folder={tmp_path}", "voices.default=anna").text
    refused = found("voice", f"voices.folder={tmp_path}", "voices.default=berta")
    assert refused.level == "problem"
    assert "voices.default" in refused.text
    assert found("voice", "voices.default=en-us+f3").level == "ok"
    babble = found("voice", "voices.default=berta", "model.engine=tests.engines.babble:ENGINE")
    assert babble.level == "note", "what voices it has is known when it is loaded"
    assert found("voice").text == "the engine's own"


def test_stages_say_their_number_device_and_processors() -> None:
    finding = found(
        "t3", "stages.t3.workers=2", "stages.t3.device=cuda:1", "stages.t3.cpus=[0]", "supervise.standby=true"
    )
    assert finding.text == "2 processes and a spare one, device cuda:1, up to 64 streams at once, on processors 0"


def test_where_sound_would_go_is_asked_of_the_sound_system() -> None:
    assert found("sound") == Finding("ok", "sound", "none")
    finding = found("sound", "player.output=speaker", "player.device=no such device at all")
    assert finding.level == "problem"
    assert "player.output" in finding.text


def test_a_log_folder_that_cannot_be_written_is_only_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = found("logs", f"supervise.state_dir={tmp_path}/file")
    assert (finding.level, "no logs are kept" in finding.text) == ("note", True)


@pytest.mark.slow
def test_the_gateway_is_told_with_who_may_use_it() -> None:
    assert found("gateway", "gateway.bind=127.0.0.1:0") == Finding(
        "ok", "gateway", "127.0.0.1:0 is free, for everybody on this machine"
    )
    keys = found("gateway", "gateway.bind=127.0.0.1:0", "gateway.api_keys=[long-enough]")
    assert keys.text == "127.0.0.1:0 is free, for who has the key"
    assert found("gateway", "gateway.bind=off") == Finding("ok", "gateway", "no gateway: gateway.bind is off")


def test_a_gateway_whose_port_is_taken_is_a_note_that_says_by_whom() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        finding = found("gateway", f"gateway.bind=127.0.0.1:{holder.getsockname()[1]}")
    assert finding.level == "note"
    assert f"with pid {os.getpid()} listens there; the pipeline would run without it" in finding.text
