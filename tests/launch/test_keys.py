"""`launch --make-keys`: what it makes, what it keeps, and that those keys and no others open the socket."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
import zmq.auth

from ipc.client_blocking import Client
from ipc.client_errors import PipelineError
from launch import cli
from launch.keys import KeysError, key_findings, make_keys
from pipeline.config import load_config
from tests.harness import until
from tests.ipc.fake_dispatcher import FakeDispatcher

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --------------------------------------------------------------------------- making


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_secret_keys_are_readable_by_their_user_alone(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_keys(folder, ["laptop"])
    finally:
        os.umask(before)
    secrets = sorted(folder.rglob("*.key_secret"))
    assert len(secrets) == 3
    assert {mode(path) for path in secrets} == {0o600}
    assert {mode(path) for path in [folder, *folder.rglob("*")] if path.is_dir()} == {0o700}


def test_the_files_are_as_zmq_auth_reads_them(folder: Path) -> None:
    make_keys(folder, ["laptop"])
    for pair in (folder / "server", folder / "client"):
        public, secret = zmq.auth.load_certificate(f"{pair}.key_secret")
        assert secret is not None
        assert zmq.curve_public(secret) == public
    bundle = folder / "clients" / "laptop"
    assert zmq.auth.load_certificate(bundle / "server.key") == zmq.auth.load_certificate(folder / "server.key")
    allowed = zmq.auth.load_certificates(folder / "clients")
    own = {zmq.auth.load_certificate(place / "client.key_secret")[0] for place in (folder, bundle)}
    assert set(allowed) == own
    assert zmq.auth.load_certificate(folder / "server.key")[1] is None


def test_what_is_there_is_kept_and_clients_are_added(folder: Path) -> None:
    make_keys(folder, ["laptop"])
    before = contents(folder)
    make_keys(folder, ["laptop", "phone"])
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == [
        "clients/phone.key", "clients/phone/client.key_secret", "clients/phone/server.key",
    ]  # fmt: skip


def test_a_bundle_that_was_moved_away_is_not_made_again(folder: Path) -> None:
    make_keys(folder, ["laptop"])
    shutil.rmtree(folder / "clients" / "laptop")
    before = contents(folder)
    make_keys(folder, ["laptop"])
    assert contents(folder) == before


def test_who_was_shut_out_does_not_come_back_by_a_second_call(folder: Path) -> None:
    make_keys(folder, ["laptop"])
    (folder / "clients" / "laptop.key").unlink()
    (folder / "clients" / "local.key").unlink()
    before = contents(folder)
    with pytest.raises(KeysError, match="keys that were taken back"):
        make_keys(folder, ["laptop"])
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a.key", "-x", "local", "ä", "x" * 65, "a\n"])
def test_a_client_name_that_is_no_plain_word_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(KeysError, match="--client"):
        make_keys(folder, [name])
    assert not folder.exists()


def test_a_folder_or_a_secret_that_is_open_to_others_is_refused(folder: Path) -> None:
    make_keys(folder, [])
    (folder / "server.key_secret").chmod(0o644)
    with pytest.raises(KeysError, match=r"server\.key_secret is open to other users \(mode 644\); chmod 600"):
        make_keys(folder, [])
    folder.chmod(0o755)
    with pytest.raises(KeysError, match=r"open to other users \(mode 755\); chmod 700"):
        make_keys(folder, [])


def test_a_programs_folder_is_not_taken_for_the_pipelines(folder: Path) -> None:
    make_keys(folder, ["laptop"])
    bundle = folder / "clients" / "laptop"
    with pytest.raises(KeysError, match=r"server\.key is there already"):
        make_keys(bundle, [])
    assert (bundle / "client.key_secret").exists()
    assert not (bundle / "server.key_secret").exists()


def test_the_command_says_what_to_write_and_what_to_copy(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--make-keys", str(folder), "--client", "laptop"]) == 0
    told = capsys.readouterr().out
    assert f"copy {folder}/clients/laptop to that machine" in told
    line = re.search(r"^  (text: .*)$", told, re.MULTILINE)
    assert line is not None
    (tmp_path / "pipeline.yaml").write_text(line[1])
    text = load_config(tmp_path / "pipeline.yaml").text
    assert (text.bind, text.curve) == ("tcp://0.0.0.0:5570", str(folder))


def test_a_wrong_command_line_is_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--client", "laptop"])
    assert left.value.code == 2
    assert cli.main(["--make-keys", str(folder), "--client", "../x"]) == 2
    assert "--make-keys" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--check"], []])
def test_a_pipeline_without_its_keys_is_refused_before_anything_starts(
    folder: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--set", "text.bind=tcp://127.0.0.1:0", "--set", f"text.curve={folder}", "--set", "model.engine=espeak"]
    assert cli.main([*given, *more]) == 2
    said = capsys.readouterr()
    assert f"launch --make-keys {folder}" in said.out + said.err


def test_a_check_tells_a_secret_key_that_others_can_read(folder: Path) -> None:
    make_keys(folder, [])
    assert list(key_findings(str(folder))) == list(key_findings("")) == []
    (folder / "server.key_secret").chmod(0o644)
    (finding,) = key_findings(str(folder))
    assert (finding.level, "chmod 600" in finding.text) == ("note", True)


# --------------------------------------------------------------------------- using


def speak(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "launch.speak", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("engine", ["babble"])
def test_those_keys_and_no_others_open_a_socket_that_others_can_reach(pipeline, folder: Path, tmp_path: Path) -> None:
    make_keys(folder, ["laptop"])
    make_keys(tmp_path / "others", ["stranger"])
    bundle, stranger = folder / "clients" / "laptop", tmp_path / "others" / "clients" / "stranger"
    running = pipeline({"text.bind": "tcp://0.0.0.0:0", "text.curve": str(folder)})
    to = running.to.replace("0.0.0.0", "127.0.0.1")
    assert speak("--to", to, "--curve", bundle, "--wait", "Hello.") == (0, "")
    assert speak("--to", to, "--curve", folder, "--status") == (0, "")

    code, said = speak("--to", to, "--status")
    assert (code, "wants other keys or none" in said) == (3, True), said
    code, said = speak("--to", to, "--curve", stranger, "--status")
    assert (code, "another key than server.key" in said) == (3, True), said
    shutil.copy(bundle / "server.key", stranger / "server.key")
    code, said = speak("--to", to, "--curve", stranger, "--status")
    assert (code, "refused our keys" in said) == (3, True), said
    code, said = speak("--to", to, "--curve", tmp_path, "--status")
    assert (code, "must hold server.key and client.key_secret" in said) == (3, True), said


@pytest.mark.slow
def test_keys_for_a_socket_that_has_none_are_told(folder: Path) -> None:
    make_keys(folder, [])
    with FakeDispatcher() as fake:
        code, said = speak("--to", fake.to, "--curve", folder, "--status")
    assert (code, "wants other keys or none" in said) == (3, True), said


def asks(to: str, keys: Path, timeout_s: float) -> bool:
    """Whether a new connection with these keys is answered."""
    try:
        with Client(to, curve=keys, timeout_s=timeout_s) as client:
            client.ping()
    except PipelineError:
        return False
    return True


@pytest.mark.parametrize("engine", ["babble"])
def test_keys_that_come_and_go_count_from_the_next_connection_on(pipeline, folder: Path) -> None:
    make_keys(folder, ["laptop"])
    running = pipeline({"text.curve": str(folder)})
    allowed = folder / "clients"
    make_keys(folder, ["phone"])
    assert asks(running.to, allowed / "phone", 10)
    with running.client(curve=allowed / "laptop") as standing:
        standing.ping()
        (allowed / "laptop.key").unlink()
        assert not asks(running.to, allowed / "laptop", 1)
        standing.pause()
        standing.resume()
    (allowed / "broken.key").write_text("nothing")
    assert asks(running.to, allowed / "phone", 10)
    until(lambda: "broken.key holds no key" in running.log(), "the broken file is told")


@pytest.mark.parametrize("engine", ["babble"])
def test_programs_on_the_pipelines_machine_need_no_option(pipeline, folder: Path) -> None:
    make_keys(folder, [])
    running = pipeline({"text.curve": str(folder)}, "--say", "Hello.", ready=False)
    assert running.wait() == 0, running.log()


def test_a_secret_key_that_others_can_read_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_keys(folder, [])
    Client(curve=folder).close()
    assert caplog.text == ""
    (folder / "client.key_secret").chmod(0o640)
    Client(curve=folder).close()
    assert re.search(r"client\.key_secret is open to other users \(mode 640\); chmod 600", caplog.text)


@pytest.mark.parametrize("text", ["", "public-key = short", 'public-key = "' + "é" * 40 + '"'])
def test_a_file_without_a_key_is_named(folder: Path, text: str) -> None:
    make_keys(folder, [])
    (folder / "server.key").write_text(text)
    with pytest.raises(PipelineError, match=r"server\.key holds no key"):
        Client(curve=folder)
