"""OpenAI's own client, unmodified, against the real process chain with the embedded voice."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterator

import av
import numpy as np
import openai
import pytest

from ipc.messages import SAMPLE_RATE
from tests.harness import Pipeline, pcm, until
from tests.workers.gateway.standalone import WEB

TEXT = "Hello there. This is the second sentence, and it is longer than the first one."
LONG = " ".join([TEXT] * 400)


@pytest.fixture
def client(speaking: Pipeline) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{speaking.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def sound(speaking: Pipeline) -> np.ndarray:  # type: ignore[type-arg]
    """The text as any program hears it over the text protocol."""
    with speaking.client() as direct:
        return pcm(direct.speak(TEXT, output="stream", seed=7).audio())


def spoken(client: openai.OpenAI, **asked: object) -> bytes:
    extra = {"seed": 7} | dict(asked.pop("extra_body", {}))  # type: ignore[call-overload]
    request = {"model": "tts-1", "voice": "default", "input": TEXT} | asked
    with client.audio.speech.with_streaming_response.create(**request, extra_body=extra) as answer:  # type: ignore[arg-type]
        return b"".join(answer.iter_bytes())


def samples_in(data: bytes) -> float:
    """Seconds of sound."""
    with av.open(io.BytesIO(data)) as file:
        return sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))


def test_pcm_is_what_every_program_hears(client: openai.OpenAI, sound: np.ndarray) -> None:  # type: ignore[type-arg]
    assert spoken(client, response_format="pcm") == sound.astype("<i2").tobytes()


def test_wav_is_the_same_with_a_header(client: openai.OpenAI, sound: np.ndarray) -> None:  # type: ignore[type-arg]
    with wave.open(io.BytesIO(spoken(client, response_format="wav"))) as file:
        assert file.getframerate() == SAMPLE_RATE
        assert file.readframes(file.getnframes()) == sound.astype("<i2").tobytes()


@pytest.mark.parametrize(
    ("name", "media", "begins"),
    [
        ("mp3", "audio/mpeg", b"\xff"),
        ("opus", "audio/ogg", b"OggS"),
        ("aac", "audio/aac", b"\xff"),
        ("flac", "audio/flac", b"fLaC"),
    ],
)
def test_every_format_is_what_it_says(
    client: openai.OpenAI,
    sound: np.ndarray,  # type: ignore[type-arg]
    name: str,
    media: str,
    begins: bytes,
) -> None:
    answer = client.audio.speech.with_raw_response.create(
        model="gpt-4o-mini-tts",
        voice="alloy",
        input=TEXT,
        response_format=name,  # type: ignore[arg-type]
    )
    assert answer.headers["content-type"] == media
    assert answer.content.startswith(begins)
    exact = 0.001 if name in ("flac", "opus") else 0.15
    expected_s = samples_in(spoken(client, voice="alloy", response_format="wav"))
    assert samples_in(answer.content) == pytest.approx(expected_s, abs=exact)


def test_mp3_is_what_is_not_asked_for(client: openai.OpenAI, speaking: Pipeline) -> None:
    plain = {"model": "x", "voice": "alloy", "input": "Hi.", "seed": 7}
    bare = WEB.post(f"{speaking.url}/v1/audio/speech", json=plain)
    assert bare.headers["content-type"] == "audio/mpeg"
    odd = {"instructions": None, "voice": {"id": "alloy"}, "unheard_of": [1], "response_format": None, "speed": None}
    assert WEB.post(f"{speaking.url}/v1/audio/speech", json=plain | odd).content == bare.content


def test_the_body_decides_and_not_the_accept_header(speaking: Pipeline) -> None:
    body = {"input": "Hi.", "response_format": "flac"}
    answer = WEB.post(f"{speaking.url}/v1/audio/speech", json=body, headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"] == "audio/flac"


def test_sound_comes_while_it_is_made(client: openai.OpenAI, speaking: Pipeline) -> None:
    asked = client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=LONG, response_format="pcm"
    )
    with asked as answer, speaking.client() as direct:
        pieces = answer.iter_bytes()  # the connection is closed when this is forgotten
        assert next(pieces)
        assert direct.status().queued == 1  # it has begun to arrive and is far from over


@pytest.mark.parametrize("name", ["pcm", "mp3", "flac"])
def test_events_carry_the_same_sound_in_the_asked_format(client: openai.OpenAI, name: str) -> None:
    data = spoken(client, response_format=name, stream_format="sse").decode()
    events = [json.loads(block.removeprefix("data: ")) for block in data.split("\n\n") if block]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert events[-1]["type"] == "speech.audio.done"
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > usage["input_tokens"] > 0
    whole = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert whole == spoken(client, response_format=name)


def test_speed_and_voice_are_heeded(client: openai.OpenAI) -> None:
    plain, quick = spoken(client, response_format="pcm"), spoken(client, response_format="pcm", speed=2.0)
    assert len(quick) < 0.7 * len(plain)
    assert spoken(client, response_format="pcm", voice="onyx") != spoken(client, response_format="pcm", voice="nova")
    kokoro = spoken(client, response_format="pcm", voice="ff_siwis", speed=0.8)
    same = {"voice": "fr", "extra_body": {"language": "fr-fr"}}
    assert kokoro == spoken(client, response_format="pcm", speed=0.8, **same)


def test_who_hangs_up_is_spoken_to_no_more(client: openai.OpenAI, speaking: Pipeline) -> None:
    asked = client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=LONG, response_format="pcm"
    )
    with speaking.client() as direct:
        before = direct.status().counters.get("cancelled", 0)
        with asked as answer:
            assert next(answer.iter_bytes())
        until(lambda: direct.status().queued == 0, "the speech has ended with its listener")
        assert direct.status().counters.get("cancelled", 0) == before + 1


def test_the_lists_are_there(client: openai.OpenAI, speaking: Pipeline) -> None:
    names = [model.id for model in client.models.list()]
    assert {"tts-1", "tts-1-hd", "gpt-4o-mini-tts", "espeak"} <= set(names)
    assert client.models.retrieve("tts-1").id == "tts-1"
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("gpt-9")
    voices = WEB.get(f"{speaking.url}/v1/audio/voices").json()["voices"]
    assert all(voice["id"] and voice["name"] for voice in voices)
    assert {"alloy", "shimmer", "de", "en-us+f3"} <= {voice["id"] for voice in voices}
    models = WEB.get(f"{speaking.url}/v1/audio/models").json()["models"]
    assert [model["id"] for model in models] == names


@pytest.mark.parametrize(
    ("asked", "kind", "param"),
    [
        ({"voice": "nobody"}, openai.NotFoundError, "voice"),
        ({"voice": "../../../etc/passwd"}, openai.NotFoundError, "voice"),
        ({"input": " \n"}, openai.BadRequestError, "input"),
        ({"input": "x" * 100_001}, openai.BadRequestError, "input"),
        ({"speed": 5}, openai.BadRequestError, "speed"),
        ({"speed": "fast"}, openai.BadRequestError, "speed"),
        ({"response_format": "mp4"}, openai.BadRequestError, "response_format"),
        ({"stream_format": "ws"}, openai.BadRequestError, "stream_format"),
        ({"extra_body": {"language": "xx"}}, openai.BadRequestError, "language"),
        ({"extra_body": {"settings": {"pitch": 1000}}}, openai.BadRequestError, "settings.pitch"),
        ({"extra_body": {"settings": {"no_such": 1}}}, openai.BadRequestError, "settings.no_such"),
    ],
)
def test_a_refusal_names_the_field(
    client: openai.OpenAI, asked: dict[str, object], kind: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(kind) as refused:
        spoken(client, **asked)
    refused.value.response.read()
    error = refused.value.response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"input": 3}', b"{}", b"\xff\xfe", b"[" * 100_000, b'"x"'])
def test_what_is_no_request_is_told(speaking: Pipeline, body: bytes) -> None:
    answer = WEB.post(f"{speaking.url}/v1/audio/speech", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_many_at_once_are_each_their_own(client: openai.OpenAI, speaking: Pipeline) -> None:
    import concurrent.futures

    texts = [f"Number {number} says its own name, {number}." for number in range(12)]
    alone = [spoken(client, response_format="pcm", input=text) for text in texts]
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        together = list(threads.map(lambda text: spoken(client, response_format="pcm", input=text), texts))
    assert together == alone
