"""The program's side of the text socket: `AsyncClient`, and the connections under it.

    async with AsyncClient() as client:
        speech = await client.speak("Hello.")
        await speech.wait()

One connection carries all speaker utterances, each stream has its own (see `ipc.client_speech`),
and questions (`status`, `voices`…) go as a REQ client asks them: one request, one answer. A
connection has a name of its own making, so that a restarted dispatcher finds it again; what may
have been lost in between is said again. `Client` (`ipc.client_blocking`) is the same without
asyncio.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from ipc.client_desks import Connect, Desk, Listener, States, Voice
from ipc.client_errors import PipelineError
from ipc.client_speech import AsyncSpeech
from ipc.codec import ProtocolError, decode_event, encode_request
from ipc.keys import CLIENT, SERVER, open_to_others, public_file, read_keys, secret_file
from ipc.messages import (
    Cancel,
    Event,
    Output,
    Pause,
    Ping,
    Pong,
    Priority,
    Request,
    Resume,
    Speak,
    State,
    Status,
    StatusReport,
    VoiceAdd,
    VoiceAdded,
    VoiceList,
    Voices,
    Watch,
)

log = logging.getLogger("chatterline")

DEFAULT_TO = "tcp://127.0.0.1:5570"
TIMEOUT_S = 30.0
FIRST_ANSWER_S = 2.0
"""A pipeline that runs takes a connection far sooner than this."""

BUFFER_S = 2.0
VOICE_PIECE_BYTES = 256 * 1024
RECEIVE_MESSAGES = 8
RECEIVE_BYTES = 64 * 1024
LINGER_MS = 500
MAX_ANSWER_BYTES = 16 * 2**20

_EventT = TypeVar("_EventT", bound=Event)
_Keys = tuple[bytes, bytes, bytes]


class SpeakOptions(TypedDict, total=False):
    """What may be asked for besides the text; what is left out is the pipeline's choice.

    ``settings`` are the engine's own (`AsyncClient.voices` lists them). ``id`` names the utterance.
    """

    voice: str | None
    language: str | None
    speed: float | None
    output: Output
    conversation: str
    priority: Priority
    seed: int | None
    settings: dict[str, bool | int | float | str]
    id: str


class Line:
    """One connection: a DEALER socket with a name, read by one task and watched by another.

    ``req``: speak as a REQ client does, so that every request has exactly one answer.
    """

    def __init__(
        self, socket: zmq.asyncio.Socket, to: str, timeout_s: float, listener: Listener, name: str, req: bool
    ) -> None:
        self._socket, self._to, self._timeout_s = socket, to, timeout_s
        self._listener = listener
        self._delimiter = [b""] if req else []
        self._connected = asyncio.Event()
        self._met = False
        self._closed = False
        self._problem = ""
        self._tasks: set[asyncio.Task[None]] = set()
        _set(socket, IDENTITY=name.encode(), LINGER=LINGER_MS, SNDTIMEO=1000, HANDSHAKE_IVL=1000)
        _set(socket, IMMEDIATE=1, RECONNECT_IVL=20, RECONNECT_IVL_MAX=500)
        _set(socket, RCVHWM=RECEIVE_MESSAGES, RCVBUF=RECEIVE_BYTES, MAXMSGSIZE=MAX_ANSWER_BYTES)
        _set(socket, TCP_KEEPALIVE=1, TCP_KEEPALIVE_IDLE=10, TCP_KEEPALIVE_INTVL=3, TCP_KEEPALIVE_CNT=3)
        failures = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        failures |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        self._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | failures)

    async def open(self) -> None:
        """Connect; raises `PipelineError` when nobody is there."""
        try:
            self._socket.connect(self._to)
        except zmq.ZMQError as error:
            raise PipelineError(f"{self._to!r} is no address to connect to ({error}); one is {DEFAULT_TO}") from error
        self._spawn(self._read)
        self._spawn(self._watch)
        try:
            async with asyncio.timeout(min(FIRST_ANSWER_S, self._timeout_s)):
                await self._connected.wait()
        except TimeoutError:
            raise PipelineError(
                f"no pipeline answers at {self._to}: start one with `launch pipeline.yaml`{self._problem}"
            ) from None

    async def send(self, request: Request) -> None:
        """Hand a request to the connection, waiting while there is none."""
        frames = [*self._delimiter, encode_request(request)]
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    await self._connected.wait()
                    try:
                        await self._socket.send_multipart(frames)
                    except zmq.Again:
                        continue
                    return
        except TimeoutError:
            raise PipelineError(f"the pipeline at {self._to} takes no requests for {self._timeout_s:g} s") from None

    async def close(self) -> None:
        """Close; what was sent still leaves, within `LINGER_MS`."""
        if self._closed:
            return
        self._closed = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()

    async def _read(self) -> None:
        while True:
            try:
                frames = await self._socket.recv_multipart()
            except zmq.Again:  # the connection broke between the two frames of a message
                continue
            try:
                event, pcm = decode_event(frames[len(self._delimiter) :])
            except ProtocolError as error:
                log.warning("the pipeline at %s sent what is no event: %s", self._to, error)
                continue
            await self._listener.arrived(event, pcm)

    async def _watch(self) -> None:
        lost: asyncio.Task[None] | None = None
        while True:
            happened = parse_monitor_message(await self._monitor.recv_multipart())["event"]
            if happened == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected.set()
                if lost is not None:
                    lost.cancel()
                    lost = None
                if self._met:
                    self._spawn(self._listener.back)
                self._met = True
            elif happened == zmq.EVENT_DISCONNECTED and self._met:
                self._connected.clear()
                lost = lost or self._spawn(self._give_up)
            elif happened == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._problem = " (what is there refused our keys: see curve)"
            elif happened == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._problem = " (what is there wants other keys or none, see curve, or is no pipeline)"
            elif happened == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and not self._problem:
                self._problem = " (what is there hung up: it has another key than server.key, see curve, or is none)"

    async def _give_up(self) -> None:
        await asyncio.sleep(self._timeout_s)
        await self._listener.fail(
            PipelineError(f"the pipeline at {self._to} went away and did not come back within {self._timeout_s:g} s")
        )

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """What goes wrong in the background belongs to the listener."""
        try:
            await work()
        except Exception as error:
            if not isinstance(error, PipelineError):
                log.exception("the connection to %s broke", self._to)
            await self._listener.fail(error)


class AsyncClient:
    """A program's access to a pipeline, for asyncio. Use it in one event loop.

    ``to`` is the pipeline's text socket. ``timeout_s`` bounds every wait for an answer of a pipeline
    that is there (its engine may be loading) or was there (it may be restarting); that there is none
    is noticed in 2 s. ``curve`` is a folder with ``server.key`` and ``client.key_secret``.
    ``buffer_s`` is how much unread sound of a stream waits here.
    """

    def __init__(
        self,
        to: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        curve: str | Path | None = None,
        buffer_s: float = BUFFER_S,
    ) -> None:
        self.to = to or DEFAULT_TO
        self.timeout_s = timeout_s
        self.buffer_s = buffer_s
        self._keys = _keys(Path(curve).expanduser()) if curve else None
        self._name = f"chatterline-{uuid.uuid4().hex[:16]}"
        self._count = 0
        self._context = zmq.asyncio.Context()
        self._speaker: Voice | None = None
        self._ends: set[Voice | Desk | States] = set()
        self._idle: list[Desk] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._speeches: weakref.WeakSet[AsyncSpeech] = weakref.WeakSet()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Speaker utterances that were accepted go on; streams lose their
        listener."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(speech.close() for speech in list(self._speeches)))
        await asyncio.gather(*(end.close() for end in list(self._ends)))
        while self._retiring:
            await asyncio.gather(*self._retiring)
        self._context.term()

    # ---------------------------------------------------------------- speech

    async def speak(self, text: str, **options: Unpack[SpeakOptions]) -> AsyncSpeech:
        """Speak a text. Returns once it is accepted (and journaled: it will be spoken).

        Raises `SpeechError` when it is refused and `PipelineError` when nobody answers.
        """
        return await self.begin(_speak(text, True, options))

    @asynccontextmanager
    async def utterance(self, **options: Unpack[SpeakOptions]) -> AsyncIterator[AsyncSpeech]:
        """A text that is still growing: ``write`` to it; it ends with the block, and an exception
        in the block silences it."""
        speech = await self.begin(_speak("", False, options))
        try:
            yield speech
            if speech.ending is None:
                await speech.end()
        except BaseException:
            await speech.abandon()
            raise

    async def speak_stream(self, pieces: AsyncIterable[str], **options: Unpack[SpeakOptions]) -> AsyncSpeech:
        """Speak a text as it comes, in the background: an LLM's tokens. What ``pieces`` raises
        silences the utterance and is raised where the speech is waited for."""
        speech = await self.begin(_speak("", False, options))
        speech.write_from(pieces)
        return speech

    async def begin(self, request: Speak) -> AsyncSpeech:
        """Send a `Speak` as it is; returns once it is accepted."""
        voice = self._voice(request.output)
        speech = AsyncSpeech(voice, request, self.timeout_s, self.buffer_s)
        voice.add(speech)
        self._speeches.add(speech)
        try:
            await voice.open()
            await speech.begin()
        except BaseException as error:
            if not isinstance(error, PipelineError):
                await speech.abandon()
            elif voice is self._speaker:
                self._speaker = None
            voice.release(speech)
            raise
        return speech

    def _voice(self, output: Output) -> Voice:
        """The connection for a new utterance."""
        self._check_open()
        shared = output != "stream"
        if shared and self._speaker is not None:
            return self._speaker
        voice = Voice(self._connect(output), shared, self._retire)
        self._ends.add(voice)
        if shared:
            self._speaker = voice
        return voice

    # ---------------------------------------------------------------- questions

    async def cancel(self, *, all: bool = False, conversation: str | None = None, id: str | None = None) -> None:
        """Silence everything of everybody, or a conversation. (`AsyncSpeech.cancel` silences one
        utterance and tells what was heard.)

        Raises `RequestError` when there is nothing of that name to silence.
        """
        await self._ask(Cancel(id=id, conversation=conversation, all=all))

    async def pause(self) -> None:
        """Hold the speaker."""
        await self._ask(Pause())

    async def resume(self) -> None:
        """Go on where `pause` held."""
        await self._ask(Resume())

    async def voices(self) -> VoiceList:
        """The engine's voices, languages and settings."""
        return _expect(VoiceList, await self._ask(Voices()))

    async def status(self) -> StatusReport:
        """The pipeline's state."""
        return _expect(StatusReport, await self._ask(Status()))

    async def ping(self) -> dict[str, float]:
        """A round trip through every engine worker's work loop: milliseconds by worker. One that
        did not answer is missing."""
        return _expect(Pong, await self._ask(Ping())).workers_ms

    async def watch(self, every_ms: int = 500, *, timeline: bool = False) -> AsyncGenerator[State, None]:
        """The pipeline's state, again and again; whoever reads slowly misses some. ``timeline``: with
        what each stage did since the last one."""
        self._check_open()
        states = States(self._connect("watch"), Watch(every_ms=every_ms, timeline=timeline))
        self._ends.add(states)
        try:
            await states.open()
            while True:
                yield await states.next()
        finally:
            await self._drop(states)

    async def add_voice(self, name: str, recording: str | Path | bytes) -> VoiceAdded:
        """Send a reference recording (WAV, FLAC…; a file or its content) for a new voice."""
        data = recording if isinstance(recording, bytes) else await asyncio.to_thread(Path(recording).read_bytes)
        async with self._desk() as desk:
            for offset in range(0, max(len(data), 1), VOICE_PIECE_BYTES):
                piece = data[offset : offset + VOICE_PIECE_BYTES]
                added = await desk.ask(VoiceAdd(voice=name, offset=offset, total_bytes=len(data), data=piece))
        return _expect(VoiceAdded, added)

    async def _ask(self, request: Request) -> Event:
        async with self._desk() as desk:
            return await desk.ask(request)

    @asynccontextmanager
    async def _desk(self) -> AsyncIterator[Desk]:
        """A connection for questions that nobody else uses."""
        self._check_open()
        desk = self._idle.pop() if self._idle else Desk(self._connect("ask"), self.timeout_s)
        self._ends.add(desk)
        try:
            yield desk
        finally:
            if desk.usable and not self._closed:
                self._idle.append(desk)
            else:
                await self._drop(desk)

    # ---------------------------------------------------------------- connections

    def _connect(self, kind: str) -> Connect:
        """How to make one more connection."""
        self._count += 1
        name = f"{self._name}-{kind}-{self._count}"
        return lambda listener: Line(self._socket(), self.to, self.timeout_s, listener, name, kind == "ask")

    def _socket(self) -> zmq.asyncio.Socket:
        socket = self._context.socket(zmq.DEALER)
        if self._keys is not None:
            socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = self._keys
        return socket

    def _retire(self, end: Voice | Desk | States) -> asyncio.Task[None]:
        """The connection is of no use any more: close it soon."""
        if self._speaker is end:
            self._speaker = None
        self._ends.discard(end)
        task = asyncio.get_running_loop().create_task(end.close())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def _drop(self, end: Voice | Desk | States) -> None:
        """Close a connection, to its end even when whoever waits here is cancelled (again and again, as anyio does):
        a socket that is left open would hold up the context's end."""
        await asyncio.shield(self._retire(end))

    def _check_open(self) -> None:
        if self._closed:
            raise PipelineError("the client is closed")


def _set(socket: zmq.asyncio.Socket, **options: int | bytes) -> None:
    for name, value in options.items():
        socket.setsockopt(getattr(zmq, name), value)


def _speak(text: str, final: bool, options: SpeakOptions) -> Speak:
    """The request. JSON has no word for NaN and infinity, so they are refused here."""
    numbers = {"speed": options.get("speed"), **options.get("settings", {})}
    for name, value in numbers.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: {value} is not a finite number")
    return Speak(text=text, final=final, **{"id": uuid.uuid4().hex[:16], **options})  # type: ignore[arg-type]


def _keys(folder: Path) -> _Keys:
    """Server's public key, our public and secret key, from files as `launch --make-keys` makes them."""
    own = secret_file(folder, CLIENT)
    try:
        server, _ = read_keys(public_file(folder, SERVER))
        public, secret = read_keys(own)
        warning = open_to_others(own)
    except (OSError, ValueError) as error:
        raise PipelineError(f"curve: {folder} must hold server.key and client.key_secret: {error}") from error
    if secret is None:
        raise PipelineError(f"curve: {own} holds no secret key")
    if warning:
        log.warning("curve: %s", warning)
    return server, public, secret


def _expect(kind: type[_EventT], event: Event) -> _EventT:
    if not isinstance(event, kind):
        raise PipelineError(f"the pipeline answered with {type(event).__name__} instead of {kind.__name__}")
    return event
