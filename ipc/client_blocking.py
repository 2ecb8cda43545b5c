"""`Client`: the client without asyncio.

    with Client() as client:
        client.speak("Hello.").wait()

A `Client` runs an `AsyncClient` in a thread of its own, which owns every socket. All methods may be
called from any thread; each blocks only its caller. Iterating over a stream's sound does not hold up
the others: what is not read stays in the pipeline. A client does not survive `os.fork`.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from ipc.client import BUFFER_S, TIMEOUT_S, AsyncClient, SpeakOptions, _speak
from ipc.client_errors import PipelineError
from ipc.client_speech import AsyncSpeech
from ipc.client_track import Ending, Samples, Sound
from ipc.messages import SAMPLE_RATE, Accepted, Event, Finished, State, StatusReport, VoiceAdded, VoiceList

_T = TypeVar("_T")

CLOSE_S = 5.0


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="chatterline-client", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run it there and wait; an interrupt here cancels it there."""
        if not self._thread.is_alive():
            work.close()
            raise PipelineError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def finish(self, last: Coroutine[Any, Any, None]) -> None:
        """Run ``last`` there and end the thread."""
        if self._thread is threading.current_thread():  # the garbage collector came by here
            self._loop.create_task(last).add_done_callback(lambda _: self._loop.stop())
        else:
            try:
                self.call(last)
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(CLOSE_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            rest = asyncio.all_tasks(self._loop)
            for task in rest:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


class Speech:
    """An utterance: wait for it, follow it, take its sound, add to its text, silence it."""

    sample_rate = SAMPLE_RATE

    def __init__(self, loop: _Loop, speech: AsyncSpeech) -> None:
        self._loop = loop
        self._speech = speech

    @property
    def id(self) -> str:
        """The utterance's id."""
        return self._speech.id

    @property
    def accepted(self) -> Accepted | None:
        """The voice, language and seed that were chosen."""
        return self._speech.accepted

    @property
    def ending(self) -> Ending | None:
        """How it ended; None while it goes on."""
        return self._speech.ending

    @property
    def sent_chars(self) -> int:
        """Characters of the text sent so far."""
        return self._speech.sent_chars

    @property
    def made_chars(self) -> int:
        """Characters of the text as given that are sound by now, as far as is known here."""
        return self._speech.made_chars

    @property
    def heard_chars(self) -> int:
        """Characters of the text as given that were heard so far, as far as is known here."""
        return self._speech.heard_chars

    def wait(self) -> Finished:
        """Wait until all of it was heard (speaker) or handed over (stream).

        Raises `SpeechError` when it was refused, failed or (`SpeechCancelled`) was silenced. Sound
        of a stream that the calling thread has not read by then is dropped; what another thread
        reads is left to it.
        """
        return self._loop.call(self._speech.wait(threading.get_ident()))

    def cancel(self) -> Ending:
        """Silence it. How it ended: `Cancelled` with the text that was ``heard``, or what had
        happened before the cancel arrived."""
        return self._loop.call(self._speech.cancel())

    def events(self) -> Iterator[Event | Sound]:
        """Everything that happens, in order, `Sound` in the place of audio events; ends after the
        event that ends the utterance. Read a speech in one place."""
        while (item := self._loop.call(self._speech.next(threading.get_ident()))) is not None:
            yield item

    def sounds(self) -> Iterator[Sound]:
        """The sound of a stream as it comes. Ends with the utterance; raises `SpeechError` when it
        fails or is silenced by somebody else."""
        while (sound := self._loop.call(self._speech.next_sound(threading.get_ident()))) is not None:
            yield sound

    def __iter__(self) -> Iterator[Samples]:
        """The sound as it comes, float32 within ±1."""
        return (sound.samples for sound in self.sounds())

    def pcm(self) -> Iterator[bytes]:
        """The sound as it comes, as s16le bytes."""
        return (sound.pcm for sound in self.sounds())

    def audio(self) -> Samples:
        """All of the sound at once, float32 within ±1."""
        return self._loop.call(self._speech.audio(threading.get_ident()))

    def write(self, text: str) -> None:
        """More of a growing text. Waits while it runs far ahead of the voice.

        Raises `SpeechError` once the utterance is over (`SpeechCancelled`: somebody silenced it).
        """
        self._loop.call(self._speech.write(text))

    def flush(self) -> None:
        """Speak what is pending now, complete clause or not."""
        self._loop.call(self._speech.flush())

    def end(self) -> None:
        """The text is complete. Does nothing when it was already."""
        self._loop.call(self._speech.end())

    def played(self, samples: int) -> None:
        """Say how many samples of the stream your own loudspeaker has played; what was heard is
        then told by that."""
        self._loop.call(self._speech.played(samples))

    def abandon(self) -> None:
        """Silence it without waiting for the answer."""
        self._loop.call(self._speech.abandon())


class Client:
    """A program's access to a pipeline. See `AsyncClient` for what the arguments mean.

    Nothing is connected before the first request. Close it (or use ``with``): what was sent last
    then still leaves.
    """

    def __init__(
        self,
        to: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        curve: str | Path | None = None,
        buffer_s: float = BUFFER_S,
    ) -> None:
        self._loop = _Loop()
        try:
            self._client = self._loop.call(_make(to, timeout_s, curve, buffer_s))
        except BaseException:
            self._loop.finish(asyncio.sleep(0))
            raise
        self._finalizer = weakref.finalize(self, _close, self._loop, self._client)

    @property
    def to(self) -> str:
        """The pipeline's text socket."""
        return self._client.to

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Speaker utterances that were accepted go on; streams lose their
        listener."""
        self._finalizer()

    def speak(self, text: str, **options: Unpack[SpeakOptions]) -> Speech:
        """Speak a text. Returns once it is accepted (and journaled: it will be spoken).

        Raises `SpeechError` when it is refused and `PipelineError` when nobody answers.
        """
        return self._begin(text, True, options)

    @contextmanager
    def utterance(self, **options: Unpack[SpeakOptions]) -> Iterator[Speech]:
        """A text that is still growing: ``write`` to it; it ends with the block, and an exception
        in the block silences it."""
        speech = self._begin("", False, options)
        try:
            yield speech
            if speech.ending is None:
                speech.end()
        except BaseException:
            speech.abandon()
            raise

    def speak_stream(self, pieces: Iterable[str], **options: Unpack[SpeakOptions]) -> Speech:
        """Speak a text as it comes: an LLM's tokens. Returns when the last piece was sent; what
        ``pieces`` raises silences the utterance."""
        with self.utterance(**options) as speech:
            for piece in pieces:
                speech.write(piece)
        return speech

    def _begin(self, text: str, final: bool, options: SpeakOptions) -> Speech:
        return Speech(self._loop, self._loop.call(self._client.begin(_speak(text, final, options))))

    def cancel(self, *, all: bool = False, conversation: str | None = None, id: str | None = None) -> None:
        """Silence everything of everybody, or a conversation. (`Speech.cancel` silences one
        utterance and tells what was heard.)

        Raises `RequestError` when there is nothing of that name to silence.
        """
        self._loop.call(self._client.cancel(all=all, conversation=conversation, id=id))

    def pause(self) -> None:
        """Hold the speaker."""
        self._loop.call(self._client.pause())

    def resume(self) -> None:
        """Go on where `pause` held."""
        self._loop.call(self._client.resume())

    def voices(self) -> VoiceList:
        """The engine's voices, languages and settings."""
        return self._loop.call(self._client.voices())

    def status(self) -> StatusReport:
        """The pipeline's state."""
        return self._loop.call(self._client.status())

    def ping(self) -> dict[str, float]:
        """A round trip through every engine worker's work loop: milliseconds by worker. One that
        did not answer is missing."""
        return self._loop.call(self._client.ping())

    def watch(self, every_ms: int = 500, *, timeline: bool = False) -> Iterator[State]:
        """The pipeline's state, again and again; whoever reads slowly misses some. ``timeline``: with
        what each stage did since the last one."""
        states = self._client.watch(every_ms, timeline=timeline)
        try:
            while True:
                yield self._loop.call(anext(states))
        finally:
            self._loop.call(states.aclose())

    def add_voice(self, name: str, recording: str | Path | bytes) -> VoiceAdded:
        """Send a reference recording (WAV, FLAC…; a file or its content) for a new voice."""
        return self._loop.call(self._client.add_voice(name, recording))


async def _make(to: str | None, timeout_s: float, curve: str | Path | None, buffer_s: float) -> AsyncClient:
    return AsyncClient(to, timeout_s=timeout_s, curve=curve, buffer_s=buffer_s)


def _close(loop: _Loop, client: AsyncClient) -> None:
    loop.finish(client.close())
