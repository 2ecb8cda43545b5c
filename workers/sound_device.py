"""The sound card as an output: opened, looked after, opened again when it went away.

One stream runs from opening to closing and is never stopped in mid-sound: PortAudio drops what it
has buffered. When the device is pulled out or the sound server dies (the stream ends by itself) or
hangs (no callback for `HUNG_S`), it is opened again, with back-off, until the device is back.
Meanwhile nothing is taken from the ring; what was in the device's own buffer (some 60 ms) is lost,
nothing else.

Opening and closing may block for as long as a hung sound server likes, so they run in a thread of
their own and the player's loop goes on.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable

from ipc.messages import SAMPLE_RATE, PlayerFacts
from workers.playback import Playback
from workers.sound import OutputStatus, SoundError
from workers.sound_stream import HUNG_S, LEAD_S, Backend, DeviceStream, find_device

_BACKOFF_S = (0.1, 2.0)
_OPEN_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 1.0


class DeviceOutput:
    """The sound card as an `workers.sound.Output`."""

    def __init__(self, load: Callable[[], Backend], playback: Playback, wanted: str | int, block_samples: int) -> None:
        """``load`` gives the module sounddevice (see `load_backend`); called in the thread, as it may block."""
        self._load = load
        self._backend: Backend | None = None
        self._playback = playback
        self._wanted = wanted
        self._block_samples = block_samples
        self._stream: DeviceStream | None = None
        self._job: threading.Thread | None = None
        self._job_since = 0.0
        self._opened: DeviceStream | None = None
        self._failure: SoundError | None = None
        self._broken: BaseException | None = None
        self._retry_at = 0.0
        self._backoff_s = _BACKOFF_S[0]
        self._underflows = 0
        self._reopens = -1
        self._note = ""
        self._facts = PlayerFacts("speaker", str(wanted), SAMPLE_RATE, block_samples, 0.0)

    @property
    def facts(self) -> PlayerFacts:
        """The device that is open, or was last."""
        return self._facts

    def open(self, patient: bool) -> None:
        """Open for the first time. ``patient``: a missing device is waited for (a restarted player),
        else it raises `SoundError`."""
        self._begin(self._open)
        assert self._job is not None
        self._job.join(_OPEN_TIMEOUT_S)
        if not self._job.is_alive():
            self._end_job()
            if self._failure is not None and not patient:
                raise self._failure
        elif not patient:
            self._leave_behind()
            raise SoundError("the sound server does not answer; restart it")

    def tend(self) -> None:
        """Notice a lost device, open it again when it is back. Raises what broke the callback."""
        if self._job is not None:
            if self._job.is_alive():
                if time.monotonic() - self._job_since > HUNG_S:
                    self._note = "the sound server does not answer; speech waits for it"
                self._playback.hold(time.monotonic_ns())
                return
            self._end_job()
        stream = self._stream
        if stream is None:
            self._playback.hold(time.monotonic_ns())
            if time.monotonic() >= self._retry_at:
                self._begin(self._reopen)
        elif stream.error is not None:
            raise stream.error
        elif lost := stream.lost():
            stream.live = False
            if not stream.inside:  # else next time
                self._lose(stream, lost)

    def status(self) -> OutputStatus:
        """How it stands."""
        stream = self._stream
        return OutputStatus(
            available=stream is not None,
            device=self._facts.device,
            underflows=self._underflows + (stream.underflows if stream else 0),
            reopens=max(self._reopens, 0),
            callback_p99_ms=stream.intervals.p99_ms() if stream else 0.0,
            note=self._note,
        )

    def close(self) -> None:
        """Fade, play silence until all was heard, and close; a hung sound server is left behind."""
        self._playback.closing = True
        if (stream := self._stream) is not None:
            until = time.monotonic() + stream.latency_s + LEAD_S
            while not stream.lost() and (left_s := until - time.monotonic()) > 0:
                time.sleep(min(left_s, 0.05))
            self._stream = None
            self._begin(stream.close)
        if self._job is not None:
            self._job.join(_CLOSE_TIMEOUT_S)
            if self._job.is_alive():
                self._leave_behind()

    def _leave_behind(self) -> None:
        """The sound server hangs: sounddevice must not wait for it once more when the interpreter ends."""
        if self._backend is not None:
            atexit.unregister(self._backend._exit_handler)  # noqa: SLF001

    def _begin(self, work: Callable[[], None]) -> None:
        self._job_since = time.monotonic()
        self._failure = None
        self._job = threading.Thread(target=self._work, args=(work,), name="sound device", daemon=True)
        self._job.start()

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except SoundError as error:
            self._failure = error
        except BaseException as error:  # noqa: BLE001 - the player's loop raises it
            if self._backend is not None and isinstance(error, self._backend.PortAudioError):
                self._failure = SoundError(f"the output device cannot be opened: {error}")
            else:
                self._broken = error

    def _lose(self, stream: DeviceStream, why: str) -> None:
        self._stream = None
        self._underflows += stream.underflows
        self._note = f"{why}; speech waits until it is back"
        self._playback.hold(time.monotonic_ns())
        self._begin(lambda: self._reopen(stream))

    def _end_job(self) -> None:
        """Take over what the thread did; the new stream begins to take samples."""
        self._job = None
        if self._broken is not None:
            raise self._broken
        stream, self._opened = self._opened, None
        if stream is None:
            self._retry_at = time.monotonic() + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, _BACKOFF_S[1])
            if self._failure is not None:
                self._note = f"{self._failure}; speech waits until there is one"
            return
        self._backoff_s = _BACKOFF_S[0]
        self._note = ""
        self._reopens += 1
        device = stream.device
        self._facts = PlayerFacts(
            "speaker", device.name, device.rate_hz, stream.block_samples, round(stream.latency_s * 1e3, 1)
        )
        self._stream = stream
        stream.live = True

    def _reopen(self, old: DeviceStream | None = None) -> None:
        """In the thread. Only a PortAudio that is started anew sees devices come and go."""
        if old is not None:
            old.close()
        if self._backend is not None:
            if self._backend._initialized:  # noqa: SLF001 - sounddevice has no public name for these
                self._backend._terminate()  # noqa: SLF001
            self._backend._initialize()  # noqa: SLF001
        self._open()

    def _open(self) -> None:
        """In the thread."""
        if self._backend is None:
            self._backend = self._load()
        device = find_device(self._backend, self._wanted)
        self._opened = DeviceStream(self._backend, device, self._playback, self._block_samples)
