"""Every message that crosses a process boundary, as plain data.

Three vocabularies, each a tagged union:

- `Request`: what a program sends to the text socket (JSON, kind under ``"type"``);
- `Event`: what the text socket answers (JSON; `Audio` is followed by a binary frame of PCM);
- `Internal`: what dispatcher, workers and supervisor say to each other (msgpack arrays).

Commands are imperative (`Generate`, `CancelStream`), facts are past tense or nouns (`Rendered`,
`TokenChunk`). Every unit stands in its field's name. Nothing here imports anything of ours, and
nothing here does I/O: encoding lives in `ipc.codec`.

Adding a message: define the struct, add it to its union at the foot of the section, and give it a
sample in ``tests/ipc/test_messages.py`` (the round-trip test discovers every type and fails
without one).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

SAMPLE_RATE = 24_000
"""Samples per second of everything between the audio half of an engine and the listener."""

PROTOCOL_VERSION = 1

Role = Literal["dispatcher", "player", "s3gen", "t3", "gateway", "supervisor"]
Output = Literal["speaker", "stream"]
Priority = Literal["low", "normal", "high", "interrupt"]
UtteranceState = Literal["queued", "speaking", "finished", "cancelled", "failed"]
Boundary = Literal["clause", "sentence", "paragraph", "pause", "end"]

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Count = Annotated[int, Meta(ge=0, le=2**53)]

# --------------------------------------------------------------------------- public: requests


class _Request(Struct, frozen=True, tag_field="type", forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A request on the text socket."""


class Speak(_Request, frozen=True, tag="speak"):
    """Speak a text. With ``final: false`` the text is still growing (`Text`…, then `End`).

    Idempotent by ``id`` within a client: the same id again answers with the utterance's state.
    ``confirms``: the client of a stream will say with `Received` what has arrived.
    """

    id: Name
    text: str = ""
    voice: Name | None = None
    language: Name | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4.0)] | None = None
    output: Output = "speaker"
    conversation: Name = "default"
    priority: Priority = "normal"
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    settings: dict[Name, bool | int | float | str] = field(default_factory=dict)
    final: bool = True
    confirms: bool = False


class Text(_Request, frozen=True, tag="text"):
    """More of a growing text.

    ``offset``: where in the text as given the piece stands. What the dispatcher has already is
    skipped, a gap is rejected (field ``offset``): so a client may repeat itself after a crash.
    """

    id: Name
    text: str
    offset: Count | None = None


class Flush(_Request, frozen=True, tag="flush"):
    """Speak what is pending of a growing text now, complete clause or not."""

    id: Name


class End(_Request, frozen=True, tag="end"):
    """The growing text is complete; ``offset``, if given, is its length (see `Text`)."""

    id: Name
    offset: Count | None = None


class Cancel(_Request, frozen=True, tag="cancel"):
    """Silence one utterance, a conversation, or (``all: true``) everything of everybody."""

    id: Name | None = None
    conversation: Name | None = None
    all: bool = False


class Attach(_Request, frozen=True, tag="attach"):
    """Send the audio of a streamed utterance (again) from this sample, to this client."""

    id: Name
    from_sample: Count = 0
    confirms: bool = False


class Received(_Request, frozen=True, tag="received"):
    """The first ``samples`` samples of the utterance have arrived: they need not be kept any more."""

    id: Name
    samples: Count


class Played(_Request, frozen=True, tag="played"):
    """A remote listener has played this many samples of the utterance."""

    id: Name
    samples: Count


class Pause(_Request, frozen=True, tag="pause"):
    """Hold the speaker."""


class Resume(_Request, frozen=True, tag="resume"):
    """Go on where `Pause` held."""


class Voices(_Request, frozen=True, tag="voices"):
    """List the engine's voices, languages and settings."""


class VoiceAdd(_Request, frozen=True, tag="voice_add"):
    """A piece of a reference recording (WAV, FLAC…) for a new voice; base64 in ``data``.

    Pieces come in order; ``offset`` counts decoded bytes; the piece that reaches ``total_bytes``
    completes the voice.
    """

    voice: Name
    offset: Count
    total_bytes: Count
    data: bytes


class Status(_Request, frozen=True, tag="status"):
    """One `StatusReport`."""


class Watch(_Request, frozen=True, tag="watch"):
    """A `State` event every so often; 0 stops them. ``timeline``: with what each stage did meanwhile."""

    every_ms: Annotated[int, Meta(ge=0, le=60_000)] = 500
    timeline: bool = False


class Ping(_Request, frozen=True, tag="ping"):
    """A round trip through the work loops of every engine worker, which say how they have spent their time until
    now: a `Status` asked for after the answer has it."""


Request = (
    Speak
    | Text
    | Flush
    | End
    | Cancel
    | Attach
    | Received
    | Played
    | Pause
    | Resume
    | Voices
    | VoiceAdd
    | Status
    | Watch
    | Ping
)

# --------------------------------------------------------------------------- public: events


class _Event(Struct, frozen=True, tag_field="type", kw_only=True):
    """An answer or a fact from the text socket."""


class Accepted(_Event, frozen=True, tag="accepted"):
    """The utterance is journaled and will be spoken; ``state`` tells how far it is."""

    id: str
    voice: str
    language: str
    seed: int
    state: UtteranceState = "queued"


class Rejected(_Event, frozen=True, tag="rejected"):
    """The request named by ``request`` was not taken: ``field`` is at fault, ``reason`` says why."""

    request: str
    field: str
    reason: str
    id: str | None = None


class Ok(_Event, frozen=True, tag="ok"):
    """A request with no other answer was taken (sent to REQ clients, which must get one)."""

    request: str
    id: str | None = None


class Started(_Event, frozen=True, tag="started"):
    """The first sample left the loudspeaker (speaker) or for the listener (stream)."""

    id: str
    latency_ms: float


class Audio(_Event, frozen=True, tag="audio"):
    """A piece of sound; the next frame holds ``samples`` of s16le mono 24 kHz PCM."""

    id: str
    first_sample: int
    samples: int


class Aligned(_Event, frozen=True, tag="aligned"):
    """The characters ``chars`` (from, to) of the text as given sound in ``samples`` (from, to).

    ``exact`` is false where the engine does not know and the position is interpolated.
    """

    id: str
    chars: tuple[int, int]
    samples: tuple[int, int]
    exact: bool


class Progress(_Event, frozen=True, tag="progress"):
    """The text as given has been heard up to ``chars``."""

    id: str
    chars: int
    seconds: float


class Finished(_Event, frozen=True, tag="finished"):
    """Everything has been heard (speaker) or handed over (stream).

    ``first_audio_ms``: request received to first sample in the ring (at the latest, to ``started_ms``: a worker may say
    so after it was heard).
    """

    id: str
    seconds: float
    samples: int
    chars: int
    first_audio_ms: float | None = None
    started_ms: float | None = None
    failed_segments: int = 0
    underruns: int = 0


class Cancelled(_Event, frozen=True, tag="cancelled"):
    """The utterance was silenced. ``heard`` is the part of the text that was heard."""

    id: str
    heard: str
    chars: int
    exact: bool
    seconds: float


class Failed(_Event, frozen=True, tag="failed"):
    """Part (``chars``) or, with ``final``, all that was left of an utterance could not be spoken."""

    id: str
    reason: str
    chars: tuple[int, int]
    final: bool


class Paused(_Event, frozen=True, tag="paused"):
    """The speaker is held."""


class Resumed(_Event, frozen=True, tag="resumed"):
    """The speaker goes on."""


class Voice(Struct, frozen=True):
    """A voice of the engine. ``language`` is a BCP-47-like tag; ``gender`` may be empty."""

    id: str
    name: str
    language: str
    gender: str = ""


class Setting(Struct, frozen=True):
    """An engine's own setting: its type, range and default, with a plain explanation."""

    name: str
    kind: Literal["bool", "int", "float", "str"]
    default: bool | int | float | str
    help: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()


class VoiceList(_Event, frozen=True, tag="voices"):
    """What can be asked for in `Speak`."""

    engine: str
    default: str
    voices: tuple[Voice, ...]
    languages: tuple[str, ...]
    settings: tuple[Setting, ...]
    cloning: bool


class VoiceAdded(_Event, frozen=True, tag="voice_added"):
    """A voice is complete and can be used; or ``received_bytes`` of it have arrived."""

    voice: str
    received_bytes: int
    complete: bool


class QueueFill(Struct, frozen=True):
    """Time-weighted fill of one queue since start and now. ``unit``: s, utterances, characters…

    ``mean`` is over the last ``over_s`` seconds, exact enough that two reports tell the mean between them.
    """

    now: float
    mean: float
    most: float
    bound: float | None
    unit: str
    over_s: float = 0.0


class StageShare(Struct, frozen=True):
    """How one worker spent its time since READY, in shares of 1, and how it stands now.

    ``over_s``: the seconds that the shares are of, exact enough that two reports tell those between them.
    """

    worker: str
    state: str
    busy: float
    starved: float
    blocked: float
    streams: int
    restarts: int = 0
    pid: int = 0
    rss_bytes: int = 0
    cpu_s: float = 0.0
    over_s: float = 0.0


class Latency(Struct, frozen=True):
    """Milliseconds of one hop over the last utterances."""

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    last_ms: float


class UtteranceStatus(Struct, frozen=True):
    """One utterance that is not over. ``text`` is an excerpt that begins at character ``text_from``."""

    id: str
    conversation: str
    output: Output
    priority: Priority
    state: UtteranceState
    chars: int
    heard_chars: int
    text: str
    text_from: int = 0


class Work(Struct, frozen=True):
    """``worker`` was at utterance ``id`` from ``from_s`` to ``to_s`` (as `uptime_s` counts) and made, or
    played, ``speech_s`` of speech."""

    worker: str
    id: str
    from_s: float
    to_s: float
    speech_s: float


class _Report(_Event, frozen=True):
    engine: str
    engine_reason: str
    uptime_s: float
    paused: bool
    healthy: bool
    stages: tuple[StageShare, ...]
    queues: dict[str, QueueFill]
    latencies: dict[str, Latency]
    counters: dict[str, int]
    speaking: tuple[UtteranceStatus, ...]
    queued: int
    player: dict[str, str | int | float | bool]
    version: int = PROTOCOL_VERSION


class StatusReport(_Report, frozen=True, tag="status"):
    """The answer to `Status`."""


class State(_Report, frozen=True, tag="state"):
    """The pipeline's state, sent to those who asked to `Watch`. ``timeline`` is the work done since the
    last one, where it was asked for; of very much, the latest."""

    timeline: tuple[Work, ...] = ()


class Pong(_Event, frozen=True, tag="pong"):
    """The ping came back from these workers' loops, each with its round trip."""

    workers_ms: dict[str, float]


Event = (
    Accepted
    | Rejected
    | Ok
    | Started
    | Audio
    | Aligned
    | Progress
    | Finished
    | Cancelled
    | Failed
    | Paused
    | Resumed
    | VoiceList
    | VoiceAdded
    | StatusReport
    | State
    | Pong
)

# --------------------------------------------------------------------------- internal


class _Internal(Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True):
    """A message between dispatcher, workers and supervisor.

    ``stream`` numbers one attempt at one segment; a retried segment has a new stream.
    """


class TokenSpan(Struct, frozen=True, array_like=True):
    """From ``first_token`` of its stream on, until the next span, tokens speak
    ``text[first_char:last_char]`` of the segment. ``exact`` is false where that is a guess."""

    first_token: int
    first_char: int
    last_char: int
    exact: bool


class TokenSample(Struct, frozen=True, array_like=True):
    """Token ``token`` of the stream begins at sample ``sample``, counted from the stream's first
    sample. ``exact`` is false where that is interpolated."""

    token: int
    sample: int
    exact: bool


class TokenFacts(_Internal, frozen=True):
    """What a token half declares (see `pipeline.engines.base.TokenModel`)."""

    engine: str
    voices: tuple[Voice, ...]
    default_voice: str
    languages: tuple[str, ...]
    settings: tuple[Setting, ...]
    shortest_chars: int
    longest_chars: int
    seconds_per_char: float
    max_batch: int
    longest_chunk_s: float
    sentence_pause_ms: int
    cloning: bool = False
    device: str = "cpu"
    load_s: float = 0.0


class AudioFacts(_Internal, frozen=True):
    """What an audio half declares (see `pipeline.engines.base.AudioModel`).

    ``ladder`` is false when the engine cuts its own rungs (each `TokenChunk` is one).
    """

    engine: str
    lookahead_tokens: int
    ladder: bool
    max_batch: int
    seconds_per_token: float
    device: str = "cpu"
    load_s: float = 0.0


class PlayerFacts(_Internal, frozen=True):
    """Where sound goes: a device, a file or nowhere. ``note`` tells a fallback and its fix."""

    output: str
    device: str
    device_rate_hz: int
    block_samples: int
    latency_ms: float
    note: str = ""


class Hello(_Internal, frozen=True):
    """A process introduces itself. ``session`` is new in every process and every reconnection."""

    role: Role
    index: int
    pid: int
    session: int


class Welcome(_Internal, frozen=True):
    """The dispatcher of ``epoch`` knows the process; streams of older epochs are void."""

    epoch: int
    session: int


class Ready(_Internal, frozen=True):
    """The worker is loaded and takes work; ``facts`` is what it declares."""

    facts: TokenFacts | AudioFacts | PlayerFacts


class Generate(_Internal, frozen=True):
    """To t3: speak ``text``; go on after the first ``history_tokens`` tokens (sent as `History`),
    which are ``history_s`` seconds of speech."""

    stream: int
    text: str
    boundary: Boundary
    voice: str
    language: str
    speed: float
    seed: int
    settings: dict[str, bool | int | float | str]
    credit_s: float
    history_tokens: int = 0
    history_s: float = 0.0


class History(_Internal, frozen=True):
    """To t3: tokens already made for this stream, in order, before it goes on."""

    stream: int
    first_token: int
    tokens: int
    data: bytes


class Grant(_Internal, frozen=True):
    """To t3: the stream may have made ``credit_s`` seconds of speech in all, history included."""

    stream: int
    credit_s: float


class CancelStream(_Internal, frozen=True):
    """To t3 or s3gen: forget the stream and free what it holds (s3gen answers `StreamClosed`)."""

    stream: int


class TokenChunk(_Internal, frozen=True):
    """From t3: tokens ``first_token`` … + ``tokens``, in the engine's encoding.

    ``seconds`` estimates the chunk's speech; ``final`` ends the stream (``tokens`` may be 0).
    """

    stream: int
    first_token: int
    tokens: int
    data: bytes
    seconds: float
    alignment: tuple[TokenSpan, ...] = ()
    final: bool = False
    note: str = ""


class OpenStream(_Internal, frozen=True):
    """To s3gen: render a segment into ``slot`` under ``lease``.

    The stream's sample 0 stands at ring position ``first_sample``. From a checkpoint, rendering
    resumes after ``done_tokens`` tokens and ``done_samples`` samples of the stream; what the ring
    already holds beyond that is made again and not written again. ``pause_samples`` of silence
    follow the last token. ``rungs`` are the ladder's token counts, the last one repeating.
    """

    stream: int
    slot: int
    lease: int
    epoch: int
    segment: int
    first_sample: int
    voice: str
    language: str
    speed: float
    seed: int
    settings: dict[str, bool | int | float | str]
    boundary: Boundary
    pause_samples: int
    rungs: tuple[int, ...]
    done_tokens: int = 0
    done_samples: int = 0
    checkpoint: bytes = b""


class Tokens(_Internal, frozen=True):
    """To s3gen: the next tokens of a stream, as t3 made them."""

    stream: int
    first_token: int
    tokens: int
    data: bytes
    final: bool


class Rendered(_Internal, frozen=True):
    """From s3gen: the stream's samples up to ``samples`` are in the ring.

    Sent whenever something was written. At the end of a rung it carries a ``checkpoint`` from
    which a successor goes on after ``done_tokens`` tokens and ``samples`` samples; between rungs
    ``checkpoint`` is None. ``token_samples`` covers the tokens first heard in this report.
    ``render_s`` is what the rung took to compute.
    """

    stream: int
    samples: int
    done_tokens: int
    checkpoint: bytes | None
    token_samples: tuple[TokenSample, ...] = ()
    render_s: float = 0.0
    final: bool = False


class StreamFailed(_Internal, frozen=True):
    """From t3 or s3gen: the engine refused or broke this stream; the worker itself is well."""

    stream: int
    reason: str


class StreamClosed(_Internal, frozen=True):
    """From s3gen, the answer to `CancelStream`: nothing more of it enters the ring."""

    stream: int


class WorkerStats(_Internal, frozen=True):
    """Cumulative seconds since READY, and what the worker holds now."""

    busy_s: float
    starved_s: float
    blocked_s: float
    streams: int
    counters: dict[str, int] = {}


class PlayerStats(_Internal, frozen=True):
    """What the player saw since READY; the ring's reader state holds what is needed at once."""

    starvations: int
    output_underflows: int
    reopens: int
    callback_p99_ms: float
    state: str
    output: str
    device: str
    note: str = ""


class Probe(_Internal, frozen=True):
    """To a worker: answer from the work loop."""

    probe: int


class Probed(_Internal, frozen=True):
    """From a worker's loop: the answer to `Probe`."""

    probe: int


class ProcessState(Struct, frozen=True, array_like=True):
    """One supervised process as the supervisor sees it."""

    role: Role
    index: int
    pid: int
    state: str
    restarts: int = 0
    rss_bytes: int = 0
    cpu_s: float = 0.0


class Processes(_Internal, frozen=True):
    """From the supervisor: all processes; what is not listed with its pid does not live."""

    processes: tuple[ProcessState, ...]


class Exited(_Internal, frozen=True):
    """From the supervisor: this process is gone for certain."""

    role: Role
    index: int
    pid: int
    reason: str


class Excuse(_Internal, frozen=True):
    """To the supervisor: the death of this process was a segment's fault, now quarantined; it does
    not count towards the restart limit."""

    role: Role
    index: int
    pid: int


class Drain(_Internal, frozen=True):
    """From the supervisor: take no more requests, finish what is in flight, say `Drained`."""


class Drained(_Internal, frozen=True):
    """To the supervisor: nothing is in flight any more."""


class Stop(_Internal, frozen=True):
    """To a worker: finish the step and leave."""


class Bye(_Internal, frozen=True):
    """From a worker: it leaves on purpose."""


Internal = (
    Hello
    | Welcome
    | Ready
    | Generate
    | History
    | Grant
    | CancelStream
    | TokenChunk
    | OpenStream
    | Tokens
    | Rendered
    | StreamFailed
    | StreamClosed
    | WorkerStats
    | PlayerStats
    | Probe
    | Probed
    | Processes
    | Exited
    | Excuse
    | Drain
    | Drained
    | Stop
    | Bye
)


def fields_of(kind: type[Struct]) -> tuple[str, ...]:
    """Names of a message's fields, for errors that list what is allowed."""
    return kind.__struct_fields__


Json = dict[str, Any]
