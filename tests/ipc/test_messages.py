"""Every message type survives its encoding; a new type without a sample fails here."""

from __future__ import annotations

import inspect
from typing import Any, get_args

import msgspec
import pytest

from ipc import codec
from ipc import messages as m

VOICE = m.Voice("en-us+f3", "English", "en-us", "female")
SETTING = m.Setting("pitch", "int", 50, "Pitch.", 0, 100, ())
STAGE = m.StageShare("t3[0]", "RUNNING", 0.5, 0.25, 0.25, 3, 1, 4711, 10**8, 12.5, 40.0)
UTTERANCE = m.UtteranceStatus("a1", "default", "stream", "high", "speaking", 100, 40, "Hello …")
REPORT: dict[str, Any] = {
    "engine": "espeak",
    "engine_reason": "as configured",
    "uptime_s": 12.25,
    "paused": False,
    "healthy": True,
    "stages": (STAGE,),
    "queues": {"ring": m.QueueFill(1.0, 2.0, 3.0, None, "s", 12.5)},
    "latencies": {"first_sample": m.Latency(3, 1.0, 2.0, 3.0, 1.5)},
    "counters": {"malformed": 1},
    "speaking": (UTTERANCE,),
    "queued": 2,
    "player": {"output": "speaker", "underruns": 0, "latency_ms": 21.5, "open": True},
}
SETTINGS: dict[str, bool | int | float | str] = {"pitch": 50, "rate": 1.5, "loud": True, "style": "calm"}

REQUESTS: list[Any] = [
    m.Speak(id="a1", text="Grüße, 世界 😀"),
    m.Speak(
        id="a2",
        text="x",
        voice="v",
        language="de",
        speed=1.5,
        output="stream",
        conversation="c",
        priority="interrupt",
        seed=2**63 - 1,
        settings=SETTINGS,
        final=False,
    ),
    m.Text(id="a1", text="more"),
    m.Flush(id="a1"),
    m.End(id="a1"),
    m.Cancel(id="a1"),
    m.Cancel(all=True),
    m.Attach(id="a1", from_sample=48_000),
    m.Received(id="a1", samples=48_000),
    m.Played(id="a1", samples=2**53),
    m.Pause(),
    m.Resume(),
    m.Voices(),
    m.VoiceAdd(voice="mine", offset=3, total_bytes=9, data=b"\x00\xffRIFF"),
    m.Status(),
    m.Watch(every_ms=100, timeline=True),
    m.Ping(),
]

EVENTS: list[Any] = [
    m.Accepted(id="a1", voice="v", language="de", seed=7, state="speaking"),
    m.Rejected(request="speak", field="text", reason="too long", id="a1"),
    m.Rejected(request="", field="type", reason="unknown"),
    m.Ok(request="flush", id="a1"),
    m.Started(id="a1", latency_ms=8.5),
    m.Audio(id="a1", first_sample=960, samples=3),
    m.Aligned(id="a1", chars=(0, 5), samples=(0, 9600), exact=True),
    m.Progress(id="a1", chars=12, seconds=1.5),
    m.Finished(id="a1", seconds=2.5, samples=60_000, chars=40, first_audio_ms=7.5, started_ms=30.0, underruns=1),
    m.Cancelled(id="a1", heard="Hello", chars=5, exact=False, seconds=0.5),
    m.Failed(id="a1", reason="poison", chars=(3, 9), final=False),
    m.Paused(),
    m.Resumed(),
    m.VoiceList(engine="espeak", default="v", voices=(VOICE,), languages=("de",), settings=(SETTING,), cloning=False),
    m.VoiceAdded(voice="mine", received_bytes=9, complete=True),
    m.StatusReport(**REPORT),
    m.State(**REPORT, timeline=(m.Work("t3-0", "a1", 1.5, 1.75, 0.4),)),
    m.Pong(workers_ms={"t3[0]": 0.25}),
]

INTERNALS: list[Any] = [
    m.Hello("t3", 0, 4711, 99),
    m.Welcome(3, 99),
    m.Ready(
        m.TokenFacts(
            engine="espeak",
            voices=(VOICE,),
            default_voice="en-us+f3",
            languages=("en-us", "de"),
            settings=(SETTING,),
            shortest_chars=1,
            longest_chars=300,
            seconds_per_char=0.07,
            max_batch=64,
            longest_chunk_s=0.6,
            sentence_pause_ms=300,
            cloning=True,
            device="cuda:0",
            load_s=1.5,
        )
    ),
    m.Ready(
        m.AudioFacts(
            engine="espeak",
            lookahead_tokens=3,
            ladder=True,
            max_batch=16,
            seconds_per_token=0.04,
            device="cpu",
            load_s=0.2,
        )
    ),
    m.Ready(m.PlayerFacts("speaker", "pulse", 44100, 512, 21.5, "no PortAudio: install libportaudio2")),
    m.Generate(
        stream=1,
        text="Hello.",
        boundary="sentence",
        voice="v",
        language="de",
        speed=1.0,
        seed=7,
        settings=SETTINGS,
        credit_s=4.0,
        history_tokens=3,
        history_s=0.12,
    ),
    m.History(1, 0, 3, b"abc"),
    m.Grant(1, 6.5),
    m.CancelStream(1),
    m.StreamClosed(1),
    m.TokenChunk(1, 3, 2, b"de", 0.08, (m.TokenSpan(3, 0, 5, True),), True, "stopped early"),
    m.OpenStream(
        stream=1,
        slot=0,
        lease=2,
        epoch=5,
        segment=7,
        first_sample=10**12,
        voice="v",
        language="de",
        speed=1.0,
        seed=7,
        settings=SETTINGS,
        boundary="end",
        pause_samples=4800,
        rungs=(12, 25, 50),
        done_tokens=12,
        done_samples=11_520,
        checkpoint=b"\x00state",
    ),
    m.Tokens(1, 0, 3, b"abc", False),
    m.Rendered(1, 960, 1, None),
    m.Rendered(1, 1920, 2, b"state", (m.TokenSample(1, 960, False),), 0.01, True),
    m.StreamFailed(1, "cannot be spoken"),
    m.WorkerStats(1.0, 2.0, 3.0, 4, {"rungs": 5}),
    m.PlayerStats(1, 2, 3, 21.5, "playing", "speaker", "pulse", "note"),
    m.Probe(7),
    m.Probed(7),
    m.Processes((m.ProcessState("t3", 0, 4711, "RUNNING", 1, 10**8, 12.5),)),
    m.Exited("t3", 0, 4711, "killed by signal 9"),
    m.Excuse("t3", 0, 4711),
    m.Drain(),
    m.Drained(),
    m.Stop(),
    m.Bye(),
]

CARRIED: set[type] = {m.TokenFacts, m.AudioFacts, m.PlayerFacts}
"""Tagged like messages to be told apart, but sent only inside `Ready`."""

VOCABULARIES = [(m.Request, m._Request, REQUESTS), (m.Event, m._Event, EVENTS), (m.Internal, m._Internal, INTERNALS)]


def _discovered(base: type) -> set[type]:
    """Every public struct that the module defines on top of ``base``."""
    kinds = {kind for _, kind in inspect.getmembers(m, inspect.isclass) if issubclass(kind, base)}
    return {kind for kind in kinds if kind.__module__ == m.__name__ and not kind.__name__.startswith("_")}


@pytest.mark.parametrize(("union", "base", "samples"), VOCABULARIES, ids=["requests", "events", "internal"])
def test_every_message_type_is_in_its_union_and_has_a_sample(union: Any, base: type, samples: list[Any]) -> None:
    discovered = _discovered(base) - CARRIED
    assert discovered, "nothing was discovered"
    assert discovered == set(get_args(union))
    assert discovered == {type(sample) for sample in samples}, "add a sample to this file"


def test_every_struct_of_the_module_is_in_some_sample() -> None:
    def kinds_in(value: Any) -> set[type]:
        if isinstance(value, msgspec.Struct):
            parts = [getattr(value, name) for name in value.__struct_fields__]
            return {type(value)}.union(*map(kinds_in, parts))
        if isinstance(value, dict):
            return set().union(*map(kinds_in, value.values()))
        return set().union(*map(kinds_in, value)) if isinstance(value, tuple | list) else set()

    assert kinds_in(REQUESTS + EVENTS + INTERNALS) == _discovered(msgspec.Struct)


@pytest.mark.parametrize("message", REQUESTS, ids=repr)
def test_requests_survive_the_wire(message: Any) -> None:
    assert codec.decode_request(codec.encode_request(message)) == message


@pytest.mark.parametrize("message", EVENTS, ids=lambda message: type(message).__name__)
def test_events_survive_the_wire(message: Any) -> None:
    pcm = b"\x01\x02\x03\x04\x05\x06" if isinstance(message, m.Audio) else None
    decoded, received = codec.decode_event([bytes(frame) for frame in codec.encode_event(message, pcm)])
    assert decoded == message
    assert (None if received is None else bytes(received)) == pcm


@pytest.mark.parametrize("message", INTERNALS, ids=lambda message: type(message).__name__)
def test_internal_messages_survive_the_wire(message: Any) -> None:
    assert codec.decode_internal(codec.encode_internal(message)) == message


@pytest.mark.parametrize("message", REQUESTS + EVENTS + INTERNALS, ids=lambda message: type(message).__name__)
def test_messages_are_frozen(message: Any) -> None:
    for name in message.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(message, name, getattr(message, name))


def test_tags_are_unique_and_lower_case_on_the_text_socket() -> None:
    for union in (m.Request, m.Event):
        tags = [kind.__struct_config__.tag for kind in get_args(union)]
        assert len(set(tags)) == len(tags)
        assert all(tag == tag.lower() for tag in tags)
