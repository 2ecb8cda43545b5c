"""The sockets between our processes, and the one for programs. Only this module and the client know zmq.

`WorkerChannel` is a worker's (or the supervisor's) side of the work socket: it introduces itself at
every connection and survives the dispatcher's death: within milliseconds it meets the successor.
`DispatcherSockets` is the other side, plus the text socket for programs. Everything decoded here is
checked; what is not a valid frame is counted and dropped, never raised.

Neither side ever blocks in a send. What a full pipe refuses on the work socket is sent again by the
`Link`; on the text socket the caller is told (``"full"``) and keeps it.

A signal handler only records, so waiting must end when a signal comes: give ``wake_fd`` the read
end of the pipe registered with `signal.set_wakeup_fd`, and both waits return at once.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from ipc.codec import ProtocolError, decode_packet, encode_packet
from ipc.keys import SERVER, KeyFileError, open_to_others, secret_file, server_keys
from ipc.link import Link, LinkFull, Packet
from ipc.messages import Hello, Internal, Role, Welcome

TEXT_MAX_BYTES = 4 * 2**20
WORK_MAX_BYTES = 64 * 2**20
"""Far above what workers send (checkpoints of tens of kB, histories in pieces): a guard, no limit."""

WORK_BATCH = 256
TEXT_BATCH = 64
TEXT_SEND_MESSAGES = 8
TEXT_SEND_BYTES = 64 * 1024
TEXT_RECEIVE_MESSAGES = 32
WORK_QUEUE_MESSAGES = 2048
BACKLOG = 4096
"""Connections that the kernel holds until they are accepted (at most net.core.somaxconn of them). One that finds no
place tries again after a second. With libzmq's 100 one run of the tests had 923 of them."""

HELLO_AGAIN_S = 0.25
HELLO_SOON_S = 0.01
BYE_LINGER_MS = 200
ZAP_DOMAIN = "text"
TEXT_FRAMES = 3
"""Identity, perhaps an empty delimiter, payload."""

Sent = Literal["sent", "full", "gone"]


class ChannelError(RuntimeError):
    """A socket cannot be opened; the message names the address and what to do."""


@dataclass(frozen=True)
class Peer:
    """A process at the work socket, in one connection of its life."""

    role: Role
    index: int
    pid: int
    session: int


@dataclass(frozen=True)
class FromWorker:
    """A message that is next in order from a worker or the supervisor."""

    peer: Peer
    message: Internal


@dataclass(frozen=True)
class FromClient:
    """One frame from a program; ``req`` tells that it came (and wants its answer) with a delimiter."""

    client: bytes
    req: bool
    payload: bytes


@dataclass(frozen=True)
class Malformed:
    """A program sent something that is no request frame."""

    client: bytes
    req: bool
    reason: str


@dataclass
class ChannelCounters:
    """Frames that were dropped, and why."""

    malformed: int = 0
    strangers: int = 0
    unsent: int = 0


# --------------------------------------------------------------------------- a worker's side


class WorkerChannel:
    """A process's connection to the dispatcher.

    ``hello`` says who we are; its session is chosen anew at every connection. A `Welcome` at the
    head of what `receive` returns means a new epoch: everything before it is void.
    """

    def __init__(self, address: str, hello: Hello, wake_fd: int | None = None) -> None:
        self._hello = hello
        self._wake_fd = wake_fd
        self._link: Link | None = None
        self._session = 0
        self._hello_at: float | None = None
        self.counters = ChannelCounters()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _set(self._socket, LINGER=0, RECONNECT_IVL=10, MAXMSGSIZE=WORK_MAX_BYTES, HANDSHAKE_IVL=1000, IMMEDIATE=1)
        _set(self._socket, SNDHWM=WORK_QUEUE_MESSAGES, RCVHWM=WORK_QUEUE_MESSAGES)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        if wake_fd is not None:
            self._poller.register(wake_fd, zmq.POLLIN)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ChannelError(f"cannot connect to {address}: {error}") from error

    @property
    def epoch(self) -> int | None:
        """The dispatcher's epoch; None while there is no dispatcher."""
        return self._link.epoch if self._link is not None else None

    def receive(self, timeout_s: float) -> list[Internal]:
        """What has arrived in order, waiting up to ``timeout_s`` for something.

        May return early with nothing (a signal, an acknowledgement).
        """
        now = time.monotonic()
        self._send_due(now)
        ready = self._wait(timeout_s, now)
        now = time.monotonic()
        messages: list[Internal] = []
        if self._monitor in ready:
            self._watch_connection(now)
        if self._socket in ready:
            messages = self._drain(now)
        self._send_due(now)
        return messages

    def send(self, message: Internal) -> bool:
        """Send (in order, exactly once while this dispatcher lives). False, and dropped, while there
        is no dispatcher: its successor will say at `Welcome` what it wants."""
        if self._link is None:
            self.counters.unsent += 1
            return False
        now = time.monotonic()
        try:
            packet = self._link.send(message, now)
        except LinkFull:
            self._introduce(now)  # what is lost would leave a gap: begin again, as after a crash
            return False
        self._put(packet)
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Close; up to ``linger_ms`` is given to what is on its way (a last `Bye`)."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)
        self._context.term()

    def _wait(self, timeout_s: float, now: float) -> set[object]:
        dues = [at for at in (self._hello_at, self._link.next_due() if self._link else None) if at is not None]
        wait_s = min([timeout_s, *(at - now for at in dues)])
        ready: set[object] = {key for key, _ in self._poller.poll(_ms(wait_s))}
        if self._wake_fd in ready:
            _empty(self._wake_fd)
        return ready

    def _watch_connection(self, now: float) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._introduce(now)
            elif event == zmq.EVENT_DISCONNECTED:
                self._link, self._hello_at = None, None

    def _introduce(self, now: float) -> None:
        """Say hello with a new session; the answer makes the link."""
        self._link = None
        self._session = secrets.randbits(53) | 1
        self._say_hello(now)

    def _say_hello(self, now: float) -> None:
        hello = msgspec.structs.replace(self._hello, session=self._session)
        sent = self._put(Packet(self._session, 0, 0, 0, hello))
        self._hello_at = now + (HELLO_AGAIN_S if sent else HELLO_SOON_S)

    def _drain(self, now: float) -> list[Internal]:
        messages: list[Internal] = []
        for _ in range(WORK_BATCH):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            packet = _packet(frames)
            if packet is None:
                self.counters.malformed += 1
            elif isinstance(packet.message, Welcome):
                messages = self._welcomed(packet.message, messages)
            elif packet.epoch == 0:
                if packet.session == self._session and self._link is not None:
                    self._introduce(now)  # the dispatcher does not know this session (any more)
            elif self._link is not None:
                messages += self._link.receive(packet, now)
            else:
                self.counters.strangers += 1
        return messages

    def _welcomed(self, welcome: Welcome, messages: list[Internal]) -> list[Internal]:
        if welcome.session != self._session or self._link is not None:
            return messages  # an answer to an earlier or repeated hello
        self._link = Link(self._session, welcome.epoch)
        self._hello_at = None
        return [welcome]

    def _send_due(self, now: float) -> None:
        if self._link is not None:
            for packet in self._link.due(now):
                self._put(packet)
        elif self._hello_at is not None and now >= self._hello_at:
            self._say_hello(now)

    def _put(self, packet: Packet) -> bool:
        """Give the packet to the socket; the link (or the next hello) repeats what it refuses."""
        try:
            self._socket.send(encode_packet(packet), zmq.NOBLOCK)
        except zmq.Again:
            self.counters.unsent += 1
            return False
        return True


# --------------------------------------------------------------------------- the dispatcher's side


@dataclass
class _Connection:
    peer: Peer
    link: Link
    route: bytes


@dataclass
class DispatcherSockets:
    """The two sockets that the dispatcher binds.

    ``work`` and ``text`` are addresses (``tcp://127.0.0.1:0`` takes a free port, see `bound_text`),
    ``curve`` a folder with ``server.key_secret`` and the allowed programs' ``clients/*.key`` (empty:
    no encryption). Raises `ChannelError`.
    """

    work: str
    text: str
    epoch: int
    curve: str = ""
    wake_fd: int | None = None
    bound_text: str = field(default="", init=False)
    counters: ChannelCounters = field(default_factory=ChannelCounters, init=False)

    def __post_init__(self) -> None:
        self._routes: dict[bytes, _Connection] = {}
        self._peers: dict[Peer, _Connection] = {}
        self._context = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._work = self._context.socket(zmq.ROUTER)
        self._text = self._context.socket(zmq.ROUTER)
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._work, zmq.POLLIN)
        self._poller.register(self._text, zmq.POLLIN)
        if self.wake_fd is not None:
            self._poller.register(self.wake_fd, zmq.POLLIN)

    @property
    def peers(self) -> list[Peer]:
        """Every process that has been welcomed and not forgotten."""
        return list(self._peers)

    def poll(self, timeout_s: float) -> list[FromWorker | FromClient | Malformed]:
        """What has arrived, waiting up to ``timeout_s`` for something; workers' messages first.

        Takes a bounded number from each socket, so that no flood on one starves the other. A
        `Hello` is passed on after its `Welcome` went out. May return early with nothing.
        """
        now = time.monotonic()
        wait_s = min(timeout_s, self._send_due(now) - now)
        ready = {key for key, _ in self._poller.poll(_ms(wait_s))}
        if self.wake_fd in ready:
            _empty(self.wake_fd)
        arrived: list[FromWorker | FromClient | Malformed] = []
        if self._work in ready:
            arrived += self._drain_work()
        if self._text in ready:
            arrived += self._drain_text()
        return arrived

    def send_worker(self, peer: Peer, message: Internal) -> bool:
        """Send in order, exactly once while both live. False, and dropped, when the peer is not (any
        more) known; it is void then, and what it had must be given to another."""
        connection = self._peers.get(peer)
        if connection is None:
            self.counters.unsent += 1
            return False
        try:
            packet = connection.link.send(message, time.monotonic())
        except LinkFull:
            self.forget(peer)
            return False
        self._put(connection.route, packet)
        return True

    def send_client(self, client: bytes, req: bool, frames: Sequence[bytes | memoryview]) -> Sent:
        """Send an answer to a program: ``"full"`` when it does not read (keep it, try again later),
        ``"gone"`` when it has left."""
        parts = [client, b"", *frames] if req else [client, *frames]
        try:
            self._text.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH:
                return "gone"
            raise
        return "sent"

    def forget(self, peer: Peer) -> None:
        """Drop what is kept for a process that has exited; unknown peers are ignored. One that still
        lives will introduce itself again."""
        connection = self._peers.pop(peer, None)
        if connection is not None and self._routes.get(connection.route) is connection:
            del self._routes[connection.route]

    def close(self, linger_ms: int = 0) -> None:
        """Close both sockets; up to ``linger_ms`` is given to what is on its way."""
        if self._authenticator is not None:
            self._authenticator.stop()
        self._text.close(linger=linger_ms)
        self._work.close(linger=linger_ms)
        self._context.term()

    def _open(self) -> None:
        for socket in (self._work, self._text):
            _set(socket, LINGER=0, ROUTER_MANDATORY=1, HANDSHAKE_IVL=1000, BACKLOG=BACKLOG)
        _set(self._work, MAXMSGSIZE=WORK_MAX_BYTES, SNDHWM=WORK_QUEUE_MESSAGES, RCVHWM=WORK_QUEUE_MESSAGES)
        _set(self._text, MAXMSGSIZE=TEXT_MAX_BYTES, ROUTER_HANDOVER=1, TCP_KEEPALIVE=1, TCP_KEEPALIVE_IDLE=30)
        _set(self._text, SNDHWM=TEXT_SEND_MESSAGES, SNDBUF=TEXT_SEND_BYTES, RCVHWM=TEXT_RECEIVE_MESSAGES)
        # A peer without a ZeroMQ greeting would count as ZMTP 1.0, and so any web page could put requests into
        # an HTTP body. libzmq refuses ZMTP 1.0 and 2.0 where there is a domain or encryption.
        self._text.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        if self.curve:
            self._authenticator = _guard(self._context, self._text, Path(self.curve).expanduser())
        _bind(self._work, self.work, "the work socket", "is supervise.run_dir writable?")
        _bind(self._text, self.text, "text.bind", "is another pipeline running? Stop it or set text.bind")
        self.bound_text = self._text.getsockopt_string(zmq.LAST_ENDPOINT)

    def _send_due(self, now: float) -> float:
        """Send what links owe; when the next is due (infinity: nothing is owed)."""
        next_due = float("inf")
        for connection in self._peers.values():
            due = connection.link.next_due()
            if due is not None and due <= now:
                for packet in connection.link.due(now):
                    self._put(connection.route, packet)
                due = connection.link.next_due()
            if due is not None and due < next_due:
                next_due = due
        return next_due

    def _drain_work(self) -> list[FromWorker | FromClient | Malformed]:
        arrived: list[FromWorker | FromClient | Malformed] = []
        for _ in range(WORK_BATCH):
            try:
                route, *frames = self._work.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            now = time.monotonic()
            packet = _packet(frames)
            if packet is None:
                self.counters.malformed += 1
            elif isinstance(packet.message, Hello):
                arrived += self._greet(route, packet.message)
            elif (connection := self._routes.get(route)) is None or connection.peer.session != packet.session:
                self.counters.strangers += 1
                self._put(route, Packet(packet.session, 0, 0, 0))
            else:
                arrived += [FromWorker(connection.peer, m) for m in connection.link.receive(packet, now)]
        return arrived

    def _greet(self, route: bytes, hello: Hello) -> list[FromWorker]:
        """Welcome a process; its earlier connection, if any, is void."""
        peer = Peer(hello.role, hello.index, hello.pid, hello.session)
        known = peer in self._peers
        if not known:
            for older in [p for p in self._peers if (p.role, p.index, p.pid) == (peer.role, peer.index, peer.pid)]:
                self.forget(older)
            connection = _Connection(peer, Link(peer.session, self.epoch), route)
            self._peers[peer] = self._routes[route] = connection
        self._put(route, Packet(peer.session, self.epoch, 0, 0, Welcome(self.epoch, peer.session)))
        return [] if known else [FromWorker(peer, hello)]

    def _drain_text(self) -> list[FromWorker | FromClient | Malformed]:
        arrived: list[FromWorker | FromClient | Malformed] = []
        for _ in range(TEXT_BATCH):
            try:
                frames = [self._text.recv(zmq.NOBLOCK)]
            except zmq.Again:
                break
            excess = 0
            while self._text.getsockopt(zmq.RCVMORE):
                # A message may have any number of frames: keep only what a request can have.
                frame = self._text.recv(zmq.NOBLOCK)
                if len(frames) < TEXT_FRAMES:
                    frames.append(frame)
                else:
                    excess += 1
            arrived.append(self._from_client(frames, excess))
        return arrived

    def _from_client(self, frames: list[bytes], excess: int) -> FromClient | Malformed:
        client, *rest = frames
        req = len(rest) > 1 and not rest[0]
        payload = rest[1:] if req else rest
        if len(payload) == 1 and not excess:
            return FromClient(client, req, payload[0])
        self.counters.malformed += 1
        count = len(payload) + excess
        return Malformed(client, req, f"a request is one frame (after an empty delimiter for REQ), not {count}")

    def _put(self, route: bytes, packet: Packet) -> None:
        """Give the packet to the socket; the link repeats what it refuses."""
        try:
            self._work.send_multipart((route, encode_packet(packet)), zmq.NOBLOCK)
        except zmq.Again:
            self.counters.unsent += 1
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self.counters.unsent += 1  # it left; the supervisor will tell


# --------------------------------------------------------------------------- helpers


def _set(socket: zmq.Socket[bytes], **options: int) -> None:
    for name, value in options.items():
        socket.setsockopt(getattr(zmq, name), value)


def _bind(socket: zmq.Socket[bytes], address: str, name: str, hint: str) -> None:
    others = os.umask(0o077)  # a socket file is for this user alone
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise ChannelError(f"{name}: cannot bind {address}: {error}; {hint}") from error
    finally:
        os.umask(others)


def new_pair() -> tuple[bytes, bytes]:
    """A new public key and its secret key."""
    return zmq.curve_keypair()


def _guard(context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], folder: Path) -> ThreadAuthenticator:
    """Encrypt the socket and let in only programs whose public key lies in ``clients``."""
    try:
        public_key, secret_key, allowed = server_keys(folder)
    except KeyFileError as error:
        raise ChannelError(str(error)) from error
    if warning := open_to_others(secret_file(folder, SERVER)):
        print(f"text.curve: {warning}", file=sys.stderr, flush=True)
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(domain=ZAP_DOMAIN, credentials_provider=allowed)
    socket.curve_secretkey, socket.curve_publickey, socket.curve_server = secret_key, public_key, True
    return authenticator


def _packet(frames: list[bytes]) -> Packet | None:
    """The packet in these frames; None when it is none of ours."""
    if len(frames) != 1:
        return None
    try:
        return decode_packet(frames[0])
    except ProtocolError:
        return None


def _ms(wait_s: float) -> int:
    """Milliseconds for a poll, rounded up so that a timer that is almost due does not spin."""
    return max(0, min(int(wait_s * 1000) + (wait_s > 0), 60_000))


def _empty(wake_fd: int | None) -> None:
    """Take what signals have written into the wake-up pipe."""
    if wake_fd is not None:
        try:
            os.read(wake_fd, 4096)
        except BlockingIOError:
            return
