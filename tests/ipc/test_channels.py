"""The sockets, with real ZeroMQ: handshake, restarts, slow and hostile programs."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.auth

from ipc import channels
from ipc.channels import ChannelError, DispatcherSockets, FromClient, FromWorker, Malformed, Peer, WorkerChannel
from ipc.codec import encode_packet
from ipc.link import Packet
from ipc.messages import Hello, Internal, Probe, Welcome

DEADLINE_S = 10.0
FREE = "tcp://127.0.0.1:0"


class Room:
    """A dispatcher's sockets and its workers, all in this thread; `until` pumps them."""

    def __init__(self, folder: Path) -> None:
        self.work = f"ipc://{folder}/work.sock"
        self.sockets: DispatcherSockets | None = None
        self.workers: list[WorkerChannel] = []
        self.context = zmq.Context()
        self.clients: list[zmq.Socket[bytes]] = []
        self.from_workers: list[FromWorker] = []
        self.from_clients: list[FromClient | Malformed] = []
        self.got: dict[int, list[Internal]] = {}

    def dispatcher(self, epoch: int = 1, text: str = FREE, **more: Any) -> DispatcherSockets:
        self.sockets = DispatcherSockets(self.work, text, epoch, **more)
        return self.sockets

    def worker(self, index: int = 0) -> WorkerChannel:
        worker = WorkerChannel(self.work, Hello("t3", index, os.getpid(), 0))
        self.workers.append(worker)
        self.got[index] = []
        return worker

    def client(self, identity: bytes = b"", kind: int = zmq.DEALER) -> zmq.Socket[bytes]:
        assert self.sockets is not None
        client = self.context.socket(kind)
        self.clients.append(client)
        client.linger = 0
        client.rcvtimeo = client.sndtimeo = int(DEADLINE_S * 1000)
        if identity:
            client.setsockopt(zmq.IDENTITY, identity)
        client.connect(self.sockets.bound_text)
        return client

    def pump(self) -> None:
        for i, worker in enumerate(self.workers):
            self.got[i] += worker.receive(0.002)
        if self.sockets is not None:
            for one in self.sockets.poll(0.002):
                (self.from_workers if isinstance(one, FromWorker) else self.from_clients).append(one)  # type: ignore[arg-type]

    def until(self, done: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < end, f"{self.from_workers[-3:]} {self.from_clients[-3:]} {self.got}"
            self.pump()

    def greeted(self, index: int = 0) -> Peer:
        """Wait for the worker's hello; its peer."""
        self.until(lambda: any(isinstance(one, Welcome) for one in self.got[index]))
        return next(p for one in reversed(self.from_workers) if (p := one.peer).index == index)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        if self.sockets is not None:
            self.sockets.close()
        for client in self.clients:
            client.close(linger=0)
        self.context.term()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    room.close()


def probes(messages: list[Internal]) -> list[int]:
    return [message.probe for message in messages if isinstance(message, Probe)]


# --------------------------------------------------------------------------- work


def test_a_worker_that_connects_is_welcomed_and_its_hello_passed_on(room: Room) -> None:
    worker = room.worker()
    assert worker.epoch is None
    assert not worker.send(Probe(1))  # nobody there yet
    room.dispatcher(epoch=42)
    peer = room.greeted()
    assert room.got[0] == [Welcome(42, peer.session)]
    assert [one.message for one in room.from_workers] == [Hello("t3", 0, os.getpid(), peer.session)]
    assert worker.epoch == 42


def test_messages_arrive_in_order_in_both_directions(room: Room) -> None:
    sockets, worker = room.dispatcher(), room.worker()
    peer = room.greeted()
    for i in range(2000):
        assert sockets.send_worker(peer, Probe(i))
        assert worker.send(Probe(i))
        if i % 100 == 0:
            room.pump()
    room.until(lambda: len(room.got[0]) > 2000 and len(room.from_workers) > 2000)
    assert probes(room.got[0]) == list(range(2000))
    assert probes([one.message for one in room.from_workers]) == list(range(2000))


def test_links_come_to_rest(room: Room) -> None:
    sockets, worker = room.dispatcher(), room.worker()
    peer = room.greeted()
    sockets.send_worker(peer, Probe(1))
    worker.send(Probe(2))
    link = sockets._peers[peer].link
    room.until(lambda: worker._link is not None and link.unacked == worker._link.unacked == 0)
    room.until(lambda: worker._link is not None and link.next_due() is worker._link.next_due() is None)


@pytest.mark.slow
def test_what_a_full_pipe_refuses_is_sent_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "WORK_QUEUE_MESSAGES", 4)
    sockets, worker = room.dispatcher(), room.worker()
    peer = room.greeted()
    for i in range(300):
        assert sockets.send_worker(peer, Probe(i))
        assert worker.send(Probe(i))
    assert sockets.counters.unsent > 0
    assert worker.counters.unsent > 0
    room.until(lambda: len(probes(room.got[0])) == len(room.from_workers) - 1 == 300)
    assert probes(room.got[0]) == list(range(300))
    assert probes([one.message for one in room.from_workers]) == list(range(300))


def test_a_worker_meets_a_restarted_dispatcher_within_milliseconds(room: Room) -> None:
    worker = room.worker()
    took_s = []
    for epoch in range(1, 6):
        began = time.monotonic()
        room.dispatcher(epoch)
        room.until(lambda epoch=epoch: worker.epoch == epoch)  # type: ignore[misc]
        took_s.append(time.monotonic() - began)
        assert room.got[0][-1] == Welcome(epoch, room.from_workers[-1].peer.session)
        assert room.sockets is not None
        room.sockets.close()
        room.sockets = None
        room.until(lambda: worker.epoch is None)
        assert not worker.send(Probe(0))
    sessions = [one.peer.session for one in room.from_workers]
    assert len(set(sessions)) == 5
    assert min(took_s) < 0.1


_SERVE = """
import sys
from ipc.channels import DispatcherSockets, FromWorker
sockets = DispatcherSockets(sys.argv[1], "tcp://127.0.0.1:0", int(sys.argv[2]))
print("up", flush=True)
while True:
    for one in sockets.poll(1.0):
        if isinstance(one, FromWorker):
            sockets.send_worker(one.peer, one.message)
"""


@pytest.mark.slow
def test_a_dispatcher_killed_in_mid_traffic_loses_its_epoch_and_nothing_else(room: Room) -> None:
    """Ten SIGKILLs at the same path: each successor gets a fresh session and echoes without gaps."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    worker = room.worker()
    for epoch in range(1, 11):
        command = [sys.executable, "-c", _SERVE, room.work, str(epoch)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as dispatcher:
            try:
                assert dispatcher.stdout is not None
                assert dispatcher.stdout.readline() == b"up\n"
                room.until(lambda epoch=epoch: worker.epoch == epoch)  # type: ignore[misc]
                room.got[0].clear()
                sent, stop_at = 0, chance.randrange(50, 400)
                while len(probes(room.got[0])) < stop_at:
                    sent += worker.send(Probe(sent))
                    room.pump()
            finally:
                dispatcher.kill()
        echoed = probes(room.got[0])
        assert echoed == list(range(len(echoed)))
        room.until(lambda: worker.epoch is None)


def test_a_worker_that_comes_back_is_a_new_peer_and_the_old_one_is_forgotten(room: Room) -> None:
    sockets = room.dispatcher()
    room.worker()
    first = room.greeted()
    room.workers.pop().close()
    room.worker()
    second = room.greeted()
    assert second != first
    assert sockets.peers == [second]
    assert not sockets.send_worker(first, Probe(1))
    assert sockets.send_worker(second, Probe(2))


def test_a_forgotten_worker_that_still_lives_introduces_itself_again(room: Room) -> None:
    sockets, worker = room.dispatcher(), room.worker()
    peer = room.greeted()
    sockets.forget(peer)
    sockets.forget(peer)
    assert not sockets.send_worker(peer, Probe(1))
    worker.send(Probe(5))
    room.until(lambda: len(sockets.peers) == 1)
    assert sockets.peers[0].session != peer.session
    room.until(lambda: sum(isinstance(one, Welcome) for one in room.got[0]) == 2)
    assert sockets.send_worker(sockets.peers[0], Probe(6))
    room.until(lambda: probes(room.got[0]) == [6])
    assert probes([one.message for one in room.from_workers]) == []  # the old session's 5 is void


def test_a_peer_that_acknowledges_nothing_is_given_up_and_can_begin_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets, worker = room.dispatcher(), room.worker()
    peer = room.greeted()
    monkeypatch.setattr(sockets._peers[peer].link, "_limit", 10)
    assert [sockets.send_worker(peer, Probe(i)) for i in range(12)] == [True] * 10 + [False] * 2
    worker.send(Probe(1))
    room.until(lambda: len(sockets.peers) == 1)
    assert sockets.peers[0] != peer


def test_garbage_on_the_work_socket_is_counted_and_hurts_nobody(room: Room) -> None:
    sockets, worker = room.dispatcher(), room.worker()
    peer = room.greeted()
    stranger = room.context.socket(zmq.DEALER)
    room.clients.append(stranger)
    stranger.linger = 0
    stranger.connect(room.work)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(300):
        stranger.send_multipart([chance.randbytes(chance.randrange(60)) for _ in range(chance.randrange(1, 4))])
    stranger.send(encode_packet(Packet(1, 1, 1, 0, Probe(666))))  # valid, but never introduced
    room.until(lambda: sockets.counters.malformed + sockets.counters.strangers >= 301)
    sockets.send_worker(peer, Probe(1))
    worker.send(Probe(2))
    room.until(lambda: probes(room.got[0]) == [1] and room.from_workers[-1] == FromWorker(peer, Probe(2)))
    assert FromWorker(peer, Probe(666)) not in room.from_workers
    assert sockets.peers == [peer]


def test_a_signal_ends_the_wait(room: Room) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    old = signal.set_wakeup_fd(write)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        sockets = room.dispatcher(wake_fd=read)
        worker = WorkerChannel(room.work, Hello("t3", 0, os.getpid(), 0), wake_fd=read)
        room.workers.append(worker)
        room.got[0] = []
        room.greeted()
        waits: list[Callable[[float], object]] = [worker.receive, sockets.poll]
        for wait in waits:
            room.pump()
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            began = time.monotonic()
            wait(60.0)
            assert time.monotonic() - began < 30.0
            timer.join()
    finally:
        signal.set_wakeup_fd(old)
        signal.signal(signal.SIGUSR1, before)
        room.close()
        room.workers, room.sockets, room.context, room.clients = [], None, zmq.Context(), []
        os.close(read)
        os.close(write)


def test_what_came_before_a_welcome_is_void(room: Room) -> None:
    worker = room.worker()
    worker._session = 5
    assert worker._welcomed(Welcome(3, 4), [Probe(1)]) == [Probe(1)]  # to another session
    assert worker._welcomed(Welcome(3, 5), [Probe(1)]) == [Welcome(3, 5)]
    assert worker._welcomed(Welcome(3, 5), [Probe(2)]) == [Probe(2)]  # the answer to a repeated hello


# --------------------------------------------------------------------------- text


def test_programs_are_heard_and_answered_with_and_without_delimiter(room: Room) -> None:
    sockets = room.dispatcher()
    dealer, req = room.client(b"d"), room.client(b"r", zmq.REQ)
    dealer.send(b"one")
    req.send(b"two")
    room.until(lambda: len(room.from_clients) == 2)
    assert set(room.from_clients) == {FromClient(b"d", False, b"one"), FromClient(b"r", True, b"two")}
    assert sockets.send_client(b"d", False, [b"json", memoryview(b"pcm")]) == "sent"
    assert sockets.send_client(b"r", True, [b"json"]) == "sent"
    assert dealer.recv_multipart() == [b"json", b"pcm"]
    assert req.recv() == b"json"


@pytest.mark.parametrize(
    ("frames", "req"),
    [
        ([b"a", b"b"], False),
        ([b"", b""], True),
        ([b"", b"a", b"b"], True),
        ([b"a"] * 1000, False),
        ([b"", *[b"a"] * 1000], True),
    ],
)
def test_a_wrong_number_of_frames_is_malformed(room: Room, frames: list[bytes], req: bool) -> None:
    sockets = room.dispatcher()
    client = room.client(b"c")
    client.send_multipart(frames)
    client.send(b"after")
    room.until(lambda: len(room.from_clients) == 2)
    malformed, after = room.from_clients
    if frames == [b"", b""]:
        assert malformed == FromClient(b"c", True, b"")  # an empty request; the codec refuses it
    else:
        assert isinstance(malformed, Malformed)
        assert (malformed.client, malformed.req) == (b"c", req)
        assert str(len(frames) - req) in malformed.reason
        assert sockets.counters.malformed == 1
    assert after == FromClient(b"c", False, b"after")


def test_one_empty_frame_is_a_request_without_content(room: Room) -> None:
    room.dispatcher()
    room.client(b"c").send(b"")
    room.until(lambda: room.from_clients)
    assert room.from_clients == [FromClient(b"c", False, b"")]


def test_a_client_that_does_not_read_shows_as_full_and_gets_everything_later(room: Room) -> None:
    sockets = room.dispatcher()
    client = room.client(b"slow")
    client.send(b"hello")
    room.until(lambda: room.from_clients)
    frame = bytes(48_000)
    sent = 0
    while (how := sockets.send_client(b"slow", False, [b"%d" % sent, frame])) == "sent":
        sent += 1
        assert sent * len(frame) < 100e6, "a client that does not read is never full"
    assert how == "full"
    received = 0
    while received < sent + 200:
        if sent < received + 200 and sockets.send_client(b"slow", False, [b"%d" % sent, frame]) == "sent":
            sent += 1
        if client.poll(1):
            assert client.recv_multipart()[0] == b"%d" % received
            received += 1
        if received == sent and received > 200:
            break
    assert received == sent


@pytest.mark.slow
def test_what_waits_for_a_slow_client_is_bounded(room: Room) -> None:
    sockets = room.dispatcher()
    raw = room.client(b"slow")
    raw.setsockopt(zmq.RCVHWM, 1)
    raw.send(b"hello")
    room.until(lambda: room.from_clients)
    sent_bytes = 0
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        if sockets.send_client(b"slow", False, [bytes(9600)]) == "sent":
            sent_bytes += 9600
    assert 0 < sent_bytes < 16e6


def test_a_client_that_left_shows_as_gone(room: Room) -> None:
    sockets = room.dispatcher()
    assert sockets.send_client(b"never", False, [b"x"]) == "gone"
    client = room.client(b"c")
    client.send(b"hello")
    room.until(lambda: room.from_clients)
    client.close()
    end = time.monotonic() + DEADLINE_S
    while sockets.send_client(b"c", False, [b"x"]) != "gone":
        assert time.monotonic() < end
        room.pump()


def test_a_reconnecting_client_with_the_same_identity_takes_over(room: Room) -> None:
    sockets = room.dispatcher()
    old = room.client(b"me")
    old.send(b"one")
    room.until(lambda: len(room.from_clients) == 1)
    new = room.client(b"me")
    new.send(b"two")
    room.until(lambda: len(room.from_clients) == 2)
    assert sockets.send_client(b"me", False, [b"answer"]) == "sent"
    assert new.recv() == b"answer"
    assert not old.poll(50)


def test_a_flooding_client_starves_neither_workers_nor_other_clients(room: Room) -> None:
    sockets, worker = room.dispatcher(), room.worker()
    peer = room.greeted()
    flood, other = room.client(b"flood"), room.client(b"other")
    other.send(b"x")
    room.until(lambda: room.from_clients)
    stop = threading.Event()

    def pour() -> None:
        flood.sndtimeo = 20
        while not stop.is_set():
            try:
                flood.send(b"y" * 100)
            except zmq.Again:
                continue

    pouring = threading.Thread(target=pour)
    pouring.start()
    try:
        for i in range(20):
            worker.send(Probe(i))
            other.send(b"z")
            polls = 0
            batch: list[Any] = []
            while FromWorker(peer, Probe(i)) not in batch or FromClient(b"other", False, b"z") not in batch:
                arrived = sockets.poll(0.1)
                assert len([one for one in arrived if not isinstance(one, FromWorker)]) <= channels.TEXT_BATCH
                batch += arrived
                polls += 1
                assert polls < 200
    finally:
        stop.set()
        pouring.join()


def test_a_message_that_is_too_large_disconnects_its_sender_only(room: Room) -> None:
    room.dispatcher()
    good, bad = room.client(b"good"), room.client(b"bad")
    bad.send(bytes(channels.TEXT_MAX_BYTES + 1))
    good.send(bytes(channels.TEXT_MAX_BYTES))
    room.until(lambda: room.from_clients)
    good.send(b"again")
    room.until(lambda: len(room.from_clients) == 2)
    assert [one.client for one in room.from_clients] == [b"good", b"good"]


def test_bytes_that_are_no_zeromq_hurt_nobody(room: Room) -> None:
    sockets = room.dispatcher()
    host, port = sockets.bound_text.removeprefix("tcp://").split(":")
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            begin = chance.choice([b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00", b"\xff" + bytes(8) + b"\x7f"])
            raw.sendall(begin + chance.randbytes(500))
            room.pump()
    client = room.client(b"c")
    client.send(b"hello")
    room.until(lambda: FromClient(b"c", False, b"hello") in room.from_clients)


def test_a_taken_port_is_a_clear_error(room: Room, tmp_path: Path) -> None:
    first = room.dispatcher()
    with pytest.raises(ChannelError, match=first.bound_text) as caught:
        DispatcherSockets(f"ipc://{tmp_path}/other.sock", first.bound_text, 1)
    assert "text.bind" in str(caught.value)
    with pytest.raises(ChannelError, match="work socket"):
        DispatcherSockets(f"ipc://{tmp_path}/missing/work.sock", FREE, 1)


def test_the_address_tells_the_port_that_was_taken(room: Room) -> None:
    port = int(room.dispatcher().bound_text.rsplit(":", 1)[1])
    assert 1024 < port < 65536


# --------------------------------------------------------------------------- curve


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    (folder / "clients").mkdir(parents=True)
    zmq.auth.create_certificates(folder, "server")
    zmq.auth.create_certificates(folder / "clients", "alice")
    zmq.auth.create_certificates(tmp_path, "mallory")
    return folder


def curve_client(room: Room, server: Path, own: Path) -> zmq.Socket[bytes]:
    assert room.sockets is not None
    client = room.context.socket(zmq.DEALER)
    room.clients.append(client)
    client.linger = 0
    client.curve_publickey, client.curve_secretkey = zmq.auth.load_certificate(own)  # type: ignore[assignment]
    client.curve_serverkey = zmq.auth.load_certificate(server)[0]
    client.setsockopt(zmq.IDENTITY, own.name.encode())
    client.connect(room.sockets.bound_text)
    return client


def test_with_keys_only_programs_whose_key_is_listed_get_in(room: Room, keys: Path, tmp_path: Path) -> None:
    sockets = room.dispatcher(curve=str(keys))
    room.worker()
    alice = curve_client(room, keys / "server.key", keys / "clients" / "alice.key_secret")
    mallory = curve_client(room, keys / "server.key", tmp_path / "mallory.key_secret")
    plain = room.client(b"plain")
    for client in (mallory, plain, alice):
        client.send(b"hello", zmq.NOBLOCK)
    room.until(lambda: room.from_clients and sockets.peers)
    for _ in range(50):
        room.pump()
    assert room.from_clients == [FromClient(b"alice.key_secret", False, b"hello")]
    assert sockets.send_client(b"alice.key_secret", False, [b"answer"]) == "sent"
    assert alice.poll(int(DEADLINE_S * 1000))
    assert alice.recv() == b"answer"


def test_missing_keys_are_a_clear_error(room: Room, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match=r"server\.key_secret and clients"):
        room.dispatcher(curve=str(tmp_path / "nowhere"))
    (keys / "server.key_secret").write_text((keys / "server.key").read_text())
    with pytest.raises(ChannelError, match="no secret key"):
        room.dispatcher(curve=str(keys))
