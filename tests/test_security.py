"""What `SECURITY.md` claims: a web page, a stranger on the network, another user, our own sources."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
import zmq.auth

from ipc.channels import DispatcherSockets, FromClient
from launch.keys import make_keys
from pipeline.config import ConfigError, load_config
from tests.harness import until

ROOT = Path(__file__).parents[1]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
SOURCES = [ROOT / "chatterline.py"] + [
    path
    for package in ("ipc", "pipeline", "workers", "launch", "perf")
    for path in sorted((ROOT / package).rglob("*.py"))
]
NOBODY = 65534
CONNECTIONS = 1000
DEADLINE_S = 10.0
REQUEST = json.dumps({"type": "speak", "id": "w", "text": "I am a web page."}).encode()


@contextmanager
def text_socket(folder: Path, bind: str = "tcp://127.0.0.1:0", curve: str = "") -> Iterator[DispatcherSockets]:
    sockets = DispatcherSockets(f"ipc://{folder}/work.sock", bind, 1, curve)
    try:
        yield sockets
    finally:
        sockets.close()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


# --------------------------------------------------------------------------- documents


@pytest.mark.slow
def test_every_test_that_the_document_names_exists() -> None:
    named = re.findall(r"\[`(test_\w+)`\]\(([\w/.]+)\)", SECURITY)
    assert len(named) > 15
    for test, file in named:
        functions = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
                     if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}  # fmt: skip
        assert test in functions, f"SECURITY.md names {test} in {file}"
    assert set(re.findall(r"`(test_\w+)`", SECURITY)) == {test for test, _ in named}


def test_every_claim_of_the_document_names_a_test() -> None:
    rows = [line for line in SECURITY.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert len(rows) > 15
    assert [row for row in rows if "`test_" not in row] == []


# --------------------------------------------------------------------------- a web page


def http(method: str, port: int, body: bytes) -> bytes:
    """A request as a browser sends it to another origin without asking first."""
    head = (
        f"{method} /x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: Mozilla/5.0\r\nContent-Type: text/plain\r\n"
        f"Origin: http://page.example\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def old_frames(head: bytes) -> bytes:
    """A body that ends the ZMTP 1.0 frames for which an HTTP header can be taken, and then has a request."""
    at = 0
    while at < len(head):
        at += 1 + head[at]
    return b"x" * (at - len(head)) + bytes([len(REQUEST) + 1, 0]) + REQUEST


def new_frames() -> bytes:
    """What a ZeroMQ client says: greeting, READY, a request."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    return greeting + bytes([4, len(ready)]) + ready + bytes([0, len(REQUEST)]) + REQUEST


def websocket(port: int) -> bytes:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
    return http("GET", port, b"").replace(b"Content-Length: 0", upgrade) + new_frames()


PAGES: dict[str, Callable[[int], bytes]] = {
    "a POST with the frames of an old ZeroMQ": lambda port: (head := http("POST", port, b"")) + old_frames(head),
    "a PUT with the frames of an old ZeroMQ": lambda port: (head := http("PUT", port, b"")) + old_frames(head),
    "a POST with all that a ZeroMQ client says": lambda port: http("POST", port, new_frames()),
    "a POST with a request": lambda port: http("POST", port, REQUEST),
    "a GET": lambda port: http("GET", port, b""),
    "a WebSocket": websocket,
    "https": lambda _port: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2 + REQUEST,
}


def heard(sockets: DispatcherSockets, data: bytes) -> list[Any]:
    """What the dispatcher hears of this connection until it is closed on it, or has been silent for long."""
    with socket.create_connection(("127.0.0.1", port_of(sockets.bound_text)), timeout=DEADLINE_S) as stranger:
        stranger.sendall(data)
        stranger.setblocking(False)
        arrived: list[Any] = []
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end and not arrived:
            arrived += sockets.poll(0.02)
            try:
                if not stranger.recv(4096):
                    break
            except BlockingIOError:
                continue
            except ConnectionError:
                break
        else:
            assert arrived, "the connection stayed open"
        return arrived + sockets.poll(0.1)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "curve"])
def test_a_web_page_reaches_nothing(tmp_path: Path, page: str, encrypted: bool) -> None:
    keys = tmp_path / "keys"
    make_keys(keys, [])
    with text_socket(tmp_path, curve=str(keys) if encrypted else "") as sockets:
        assert heard(sockets, PAGES[page](port_of(sockets.bound_text))) == []


def test_an_unguarded_socket_would_hear_that_page() -> None:
    """So the bytes of the test above are an attack, and not only noise."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as unguarded:
        port = unguarded.bind_to_random_port("tcp://127.0.0.1")
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(PAGES["a POST with the frames of an old ZeroMQ"](port))
            heard_there = [unguarded.recv_multipart()[-1] for _ in range(2) if unguarded.poll(int(DEADLINE_S * 1000))]
    assert heard_there[-1] == REQUEST


# --------------------------------------------------------------------------- a stranger on the network


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:5570", "tcp://*:5570", "tcp://[::]:5570", "tcp://192.168.1.2:5570"])
def test_other_machines_reach_nothing_without_keys(bind: str) -> None:
    with pytest.raises(ConfigError, match="refused without keys"):
        load_config(None, [f"text.bind={bind}"])
    assert load_config(None, []).text.bind.startswith("tcp://127.0.0.1:")


def handshake(context: zmq.Context[zmq.Socket[bytes]], to: str, **options: object) -> zmq.Socket[bytes]:
    client = context.socket(zmq.DEALER)
    client.linger = 0
    for name, value in options.items():
        setattr(client, name, value)
    client.connect(to)
    client.send(REQUEST, zmq.NOBLOCK)
    return client


@pytest.mark.slow
def test_only_keys_that_are_listed_are_let_in_whatever_the_mechanism(tmp_path: Path) -> None:
    keys, others = tmp_path / "keys", tmp_path / "others"
    make_keys(keys, ["friend"])
    make_keys(others, [])
    server, _ = zmq.auth.load_certificate(keys / "server.key")
    wrong, _ = zmq.auth.load_certificate(others / "server.key")
    public, secret = zmq.auth.load_certificate(others / "client.key_secret")
    friend, friends_secret = zmq.auth.load_certificate(keys / "clients" / "friend" / "client.key_secret")
    strangers: list[dict[str, object]] = [
        {},
        {"plain_username": b"friend", "plain_password": b"friend"},
        {"curve_serverkey": server, "curve_publickey": public, "curve_secretkey": secret},
        {"curve_serverkey": server, "curve_publickey": friend, "curve_secretkey": secret},
        {"curve_serverkey": wrong, "curve_publickey": friend, "curve_secretkey": friends_secret},
    ]
    with text_socket(tmp_path, curve=str(keys)) as sockets, ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        for options in strangers:
            stack.enter_context(handshake(context, sockets.bound_text, **options))
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            assert sockets.poll(0.05) == []
        stack.enter_context(handshake(
            context, sockets.bound_text,
            curve_serverkey=server, curve_publickey=friend, curve_secretkey=friends_secret,
        ))  # fmt: skip
        arrived = until(lambda: sockets.poll(0.05), "the friend is heard")
        assert [one.payload for one in arrived if isinstance(one, FromClient)] == [REQUEST]


@contextmanager
def many_files() -> Iterator[None]:
    """Room for a thousand connections in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3 * CONNECTIONS:
        pytest.skip(f"this process may have {hard} open files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * CONNECTIONS), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def silent(port: int, stack: ExitStack) -> None:
    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S))


def half(port: int, stack: ExitStack) -> None:
    stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S))
    stranger.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32))


@pytest.mark.parametrize("engine", ["babble"])
@pytest.mark.parametrize("stranger", ["silent", "half", "unknown"])
def test_a_thousand_strangers_cost_little_memory_and_no_speech(pipeline, tmp_path: Path, stranger: str) -> None:
    keys = tmp_path / "keys"
    make_keys(keys, [])
    running = pipeline({"text.curve": str(keys)})
    dispatcher = psutil.Process(running.pid("dispatcher"))
    client = running.client(curve=keys)
    client.speak("Hello.").wait()
    before, files = dispatcher.memory_info().rss, dispatcher.num_fds()
    port = port_of(running.to)
    with many_files(), ExitStack() as stack:
        if stranger == "unknown":
            context = stack.enter_context(zmq.Context())
            context.max_sockets = 2 * CONNECTIONS
            server, _ = zmq.auth.load_certificate(keys / "server.key")
            public, secret = zmq.curve_keypair()
            own = {"curve_serverkey": server, "curve_publickey": public, "curve_secretkey": secret}
            for _ in range(CONNECTIONS):
                stack.enter_context(handshake(context, running.to, **own))
        else:
            for _ in range(CONNECTIONS):
                (silent if stranger == "silent" else half)(port, stack)
        client.speak("Still here.").wait()
        with running.client(curve=keys) as another:
            another.ping()
        grown = dispatcher.memory_info().rss - before
        until(lambda: dispatcher.num_fds() <= files + 4, "the strangers' connections are closed")
    assert grown < 48 * 2**20, f"{grown / 2**20:.1f} MiB more"
    assert dispatcher.pid == running.pid("dispatcher")


# --------------------------------------------------------------------------- another user of this machine


def as_nobody(code: str, *arguments: object) -> str:
    """What a script prints that runs as another user. Its imports come before it changes."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    become = f"import os, socket, sys, zmq\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    command = [sys.executable, "-c", become + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPENS = """
for path in sys.argv[1:]:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").close()
        print("open", path)
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder that everybody may enter, with a path short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_an_ipc_socket_is_for_its_user_alone(short: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with text_socket(short, f"ipc://{short}/text.sock"):
            facts = (short / "text.sock").stat()
            assert stat.S_ISSOCK(facts.st_mode)
            assert stat.S_IMODE(facts.st_mode) & 0o077 == 0
            assert os.umask(umask) == umask
    finally:
        os.umask(before)


CONNECTS = """
one = socket.socket(socket.AF_UNIX)
try:
    one.connect(sys.argv[1])
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


def test_another_user_cannot_connect_to_an_ipc_socket(short: Path) -> None:
    with text_socket(short, f"ipc://{short}/text.sock"):
        assert as_nobody(CONNECTS, short / "text.sock") == "PermissionError"
        (short / "text.sock").chmod(0o777)
        assert as_nobody(CONNECTS, short / "text.sock") == "connected"


PINGS = """
one = zmq.Context().socket(zmq.DEALER)
one.linger = 0
one.connect(sys.argv[1])
one.send(b'{"type": "ping"}')
print(one.poll(2000) and one.recv().decode())
os._exit(0)
"""


@pytest.mark.parametrize("engine", ["babble"])
def test_another_user_can_use_a_loopback_socket_that_has_no_keys(pipeline, engine: str) -> None:
    assert '"pong"' in as_nobody(PINGS, pipeline().to)


@pytest.mark.parametrize("engine", ["babble"])
def test_another_user_sees_neither_text_nor_sound_nor_keys(pipeline, short: Path) -> None:
    keys = short / "keys"
    make_keys(keys, [])
    running = pipeline({"text.curve": str(keys)})
    running.folder.chmod(0o755)
    (running.folder / "run").chmod(0o755)  # as if the folder around ours were open
    running.client(curve=keys).speak("Hello.").wait()
    (run_dir,) = (running.folder / "run").glob("*/run-*")
    assert stat.S_IMODE(run_dir.stat().st_mode) == stat.S_IMODE(run_dir.parent.stat().st_mode) == 0o700
    places = [run_dir, run_dir / "journal.sqlite", run_dir / "config.json", keys, keys / "server.key_secret"]
    arenas = [path for path in Path(f"/proc/{running.pid('s3gen')}/fd").glob("*") if "arena" in str(path.readlink())]
    assert arenas or sys.platform != "linux"
    assert as_nobody(OPENS, *places, *arenas).split() == ["PermissionError"] * (len(places) + len(arenas))
    assert as_nobody(PINGS, running.to) == "0"
    for path in places + arenas:  # their owner may, so that is not why
        assert list(path.iterdir()) if path.is_dir() else path.open("rb").close() is None


@pytest.mark.parametrize("engine", ["babble"])
def test_logs_and_sound_files_are_as_open_as_the_umask_says(pipeline) -> None:
    before = os.umask(0o077)
    try:
        running = pipeline(output="wav")
    finally:
        os.umask(before)
    running.client().speak("Hello.").wait()
    files = [running.wav, *(path for path in (running.folder / "state").rglob("*") if path.is_file())]
    assert len(files) > 1
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files} == {0}


def test_what_is_spoken_is_in_no_log_and_nothing_of_it_stays(pipeline, engine: str) -> None:
    running = pipeline(output="none")
    running.client().speak("Zanzibar and Xylophone.").wait()
    assert running.stop() == 0
    logs = [path for path in (running.folder / "state").rglob("*") if path.is_file()]
    assert logs
    for path in [*logs, *(path for path in (running.folder / "run").rglob("*") if path.is_file())]:
        content = path.read_bytes().lower()
        assert b"zanzibar" not in content, path
        assert b"xylophone" not in content, path


# --------------------------------------------------------------------------- the sources

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing"}
CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell", "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip
METHODS = {"recv_pyobj", "send_pyobj", "read_pickle"}


def dangers(source: str) -> list[str]:
    """Where a source unpickles, runs text as code or as a shell's command."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            found += [name for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in CALLS or name.rpartition(".")[2] in METHODS:
            found.append(name)
        if named.get("shell", "False") != "False" or named.get("allow_pickle", "False") != "False":
            found.append(name)
        if name == "torch.load" and named.get("weights_only") != "True":
            found.append(name)
        if name == "yaml.load" and not re.search(r"Safe|_Loader", ast.unparse(node)):
            found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_unpickled_and_no_shell_is_run(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from multiprocessing import Queue", "eval('1')", "subprocess.run('ls', shell=True)",
        "numpy.load(path, allow_pickle=True)", "torch.load(path)", "yaml.load(file, yaml.Loader)", "x.recv_pyobj()",
        "os.system('ls')",
    ],
)  # fmt: skip
def test_such_a_source_would_be_noticed(source: str) -> None:
    assert dangers(source)


def test_the_settings_are_read_as_data() -> None:
    with pytest.raises(ConfigError):
        load_config(None, ["text.bind=!!python/object/apply:os.getcwd []"])
