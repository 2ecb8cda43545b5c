"""ElevenLabs' own client, unmodified, and its WebSockets, against the real process chain with the embedded voice."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import av
import elevenlabs
import httpx
import numpy as np
import pytest
from elevenlabs.core.api_error import ApiError
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ipc.messages import Aligned
from tests.harness import Pipeline, pcm, until
from tests.workers.gateway.standalone import WEB

TEXT = "Hello there. This is the second sentence, and it is longer than the first one."
VOICE = "JBFqnCBsd6RMkjVDRZzb"
LONG = " ".join([TEXT] * 400)
RATES = (16_000, 22_050, 24_000, 44_100)


@pytest.fixture
def client(speaking: Pipeline) -> Iterator[elevenlabs.ElevenLabs]:
    with httpx.Client(timeout=30) as connections:
        client = elevenlabs.ElevenLabs(base_url=speaking.url, api_key="any", httpx_client=connections)
        # It takes wss:// for granted, so its WebSocket has to be pointed at what is there.
        client.text_to_speech._ws_base_url = speaking.url.replace("http://", "ws://")
        yield client


@pytest.fixture(scope="module")
def samples(speaking: Pipeline) -> int:
    """How many the text has, as any program hears it."""
    with speaking.client() as direct:
        return len(pcm(direct.speak(TEXT, voice="en-us", output="stream").audio()))


@pytest.fixture(scope="module")
def words(speaking: Pipeline) -> list[Aligned]:
    """When the engine itself says that the text's words sound."""
    with speaking.client() as direct:
        events = direct.speak(TEXT, voice="en-us", output="stream").events()
        return [event for event in events if isinstance(event, Aligned)]


def test_every_rate_has_the_right_number_of_samples(client: elevenlabs.ElevenLabs, samples: int) -> None:
    for rate in RATES:
        data = b"".join(client.text_to_speech.convert("en-us", text=TEXT, output_format=f"pcm_{rate}"))
        assert len(data) == 2 * round(samples * rate / 24_000)


def test_mp3_is_what_is_not_asked_for(client: elevenlabs.ElevenLabs, samples: int) -> None:
    data = b"".join(client.text_to_speech.stream(VOICE, text=TEXT, voice_settings={"speed": 1.0, "stability": 0.5}))
    with av.open(io.BytesIO(data)) as file:
        frames = list(file.decode(audio=0))
    assert frames[0].sample_rate == 44_100
    assert sum(frame.samples for frame in frames) / 44_100 == pytest.approx(samples / 24_000, rel=0.3)


def test_a_speed_is_heeded(client: elevenlabs.ElevenLabs, samples: int) -> None:
    data = b"".join(
        client.text_to_speech.convert("en-us", text=TEXT, output_format="pcm_24000", voice_settings={"speed": 2.0})
    )
    assert len(data) < 2 * 0.7 * samples


def test_the_lists_are_there(client: elevenlabs.ElevenLabs) -> None:
    voices = client.voices.get_all().voices
    assert {"de", "en-us+f3"} <= {voice.voice_id for voice in voices}
    assert client.voices.get("en-us+f3").name
    assert client.voices.get(VOICE).name == "George"
    first = client.voices.search(page_size=100)
    second = client.voices.search(page_size=100, next_page_token=first.next_page_token)
    assert first.has_more
    assert not {voice.voice_id for voice in first.voices} & {voice.voice_id for voice in second.voices}
    assert client.models.list()[0].can_do_text_to_speech


@pytest.mark.parametrize(
    ("voice", "asked", "status"),
    [
        ("nobody", {"text": "Hi."}, 404),
        ("en-us", {"text": ""}, 400),
        ("en-us", {"text": "Hi.", "output_format": "mp3_1_2"}, 400),
        ("en-us", {"text": "Hi.", "language_code": "xx"}, 400),
        ("en-us", {"text": "Hi.", "voice_settings": {"speed": 9.0}}, 400),
    ],
)
def test_a_refusal_is_in_their_form(
    client: elevenlabs.ElevenLabs, voice: str, asked: dict[str, Any], status: int
) -> None:
    with pytest.raises(ApiError) as refused:
        b"".join(client.text_to_speech.convert(voice, **asked))
    assert refused.value.status_code == status
    assert set(refused.value.body["detail"]) == {"status", "message"}


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "a%00b", "en-us%2f..%2fde"])
def test_a_path_is_no_voice(speaking: Pipeline, name: str) -> None:
    answer = WEB.post(f"{speaking.url}/v1/text-to-speech/{name}", json={"text": "Hi."})
    assert answer.status_code == 404


def check_times(characters: list[str], starts: list[float], words: list[Aligned]) -> None:
    """The characters are the text's, and each word begins where the engine says, within one word."""
    assert "".join(characters) == TEXT
    for before, word, after in zip(words, words[1:], words[2:], strict=False):
        assert before.samples[0] / 24_000 - 0.01 <= starts[word.chars[0]] <= after.samples[1] / 24_000 + 0.01
        assert starts[word.chars[0]] == pytest.approx(word.samples[0] / 24_000, abs=0.02)


def test_times_are_the_engines_own(client: elevenlabs.ElevenLabs, samples: int, words: list[Aligned]) -> None:
    told = client.text_to_speech.convert_with_timestamps("en-us", text=TEXT, output_format="pcm_24000")
    assert told.alignment is not None
    assert len(base64.b64decode(told.audio_base_64)) == 2 * samples
    check_times(told.alignment.characters, told.alignment.character_start_times_seconds, words)


def test_times_come_with_their_sound(client: elevenlabs.ElevenLabs, samples: int, words: list[Aligned]) -> None:
    pieces = list(client.text_to_speech.stream_with_timestamps("en-us", text=TEXT, output_format="pcm_24000"))
    # A piece is what has come since the gateway last looked, however much that is: but no time comes before its sound.
    assert len(pieces) > 1
    sent_s = 0.0
    for piece in pieces:
        sent_s += len(base64.b64decode(piece.audio_base_64)) / 48_000
        assert piece.alignment is None or max(piece.alignment.character_start_times_seconds) < sent_s + 0.001
    assert sent_s == pytest.approx(samples / 24_000)
    spans = [piece.alignment for piece in pieces if piece.alignment is not None]
    characters = [char for span in spans for char in span.characters]
    check_times(characters, [at for span in spans for at in span.character_start_times_seconds], words)


@pytest.mark.filterwarnings("ignore:ConnectionClosed:DeprecationWarning")  # how it reads the close code and reason
def test_speech_in_real_time_from_a_growing_text(client: elevenlabs.ElevenLabs, samples: int) -> None:
    pieces = client.text_to_speech.convert_realtime(
        "en-us", text=(f"{word} " for word in TEXT.split()), model_id="eleven_flash_v2_5", output_format="pcm_24000"
    )
    sound = np.frombuffer(b"".join(pieces), "<i2")
    assert len(sound) == pytest.approx(samples, rel=0.1)
    with pytest.raises(ApiError, match="nobody"):
        list(client.text_to_speech.convert_realtime("nobody", text=iter(["Hi. "]), model_id="x"))


# --------------------------------------------------------------------------- the WebSockets


@pytest.fixture
def stream(speaking: Pipeline) -> Iterator[ClientConnection]:
    query = "output_format=pcm_24000&sync_alignment=true"
    with connect(f"{_ws(speaking)}/v1/text-to-speech/en-us/stream-input?{query}") as socket:
        yield socket


@pytest.fixture
def streams(speaking: Pipeline) -> Iterator[ClientConnection]:
    query = "output_format=pcm_24000&sync_alignment=true"
    with connect(f"{_ws(speaking)}/v1/text-to-speech/en-us/multi-stream-input?{query}") as socket:
        yield socket


def _ws(speaking: Pipeline) -> str:
    return speaking.url.replace("http://", "ws://")


def say(socket: ClientConnection, **message: object) -> None:
    socket.send(json.dumps(message))


def received(socket: ClientConnection) -> list[dict[str, Any]]:
    """Everything until the other side closes with 1000."""
    messages = [json.loads(message) for message in socket]
    assert socket.protocol.close_code == 1000, messages[-1:]
    return messages


def until_final(socket: ClientConnection, context: str) -> list[dict[str, Any]]:
    """Everything until a context's last message."""
    messages: list[dict[str, Any]] = []
    while not messages or not (messages[-1]["isFinal"] and messages[-1]["contextId"] == context):
        messages.append(json.loads(socket.recv(timeout=20)))
    return messages


def sound_of(messages: list[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(message["audio"]) for message in messages if message.get("audio"))


def test_one_text_ends_with_is_final_and_a_normal_close(stream: ClientConnection, words: list[Aligned]) -> None:
    say(stream, text=" ", voice_settings={"stability": 0.5}, generation_config={"chunk_length_schedule": [50]})
    say(stream, text=TEXT, try_trigger_generation=True)
    say(stream, text="")
    messages = received(stream)
    assert [message["isFinal"] for message in messages] == [None] * (len(messages) - 1) + [True]
    characters, starts, before = [], [], 0
    for message in messages:
        if alignment := message.get("alignment"):
            assert message["normalizedAlignment"] == alignment
            characters += alignment["chars"]
            starts += [before / 24_000 + ms / 1000 for ms in alignment["charStartTimesMs"]]
            assert len(alignment["chars"]) == len(alignment["charDurationsMs"])
        before += len(base64.b64decode(message["audio"] or "")) // 2
    check_times(characters, starts, words)


def test_a_flush_is_spoken_before_the_text_ends(stream: ClientConnection) -> None:
    say(stream, text="No clause ends here ", flush=True)
    assert json.loads(stream.recv(timeout=10))["audio"]
    say(stream, text="")
    received(stream)


def test_contexts_are_each_their_own(streams: ClientConnection, speaking: Pipeline) -> None:
    texts = {name: f"This is context {name}, and nothing of another one. " for name in ("one", "two", "three")}
    for name in texts:
        say(streams, text=" ", context_id=name)
    for name, text in texts.items():
        say(streams, text=text, context_id=name, flush=True)
        say(streams, context_id=name, text="")  # keeps it alive
    for name in texts:
        say(streams, context_id=name, close_context=True)
    say(streams, close_socket=True)
    messages = received(streams)
    with speaking.client() as direct:
        for name, text in texts.items():
            own = [message for message in messages if message["contextId"] == name]
            assert own[-1]["isFinal"] is True
            told = "".join("".join(message["alignment"]["chars"]) for message in own if message.get("alignment"))
            assert told == text
            alone = direct.speak(text, voice="en-us", output="stream").audio()
            assert len(sound_of(own)) == pytest.approx(2 * len(alone), rel=0.2)


def test_closing_a_context_that_was_not_flushed_ends_it_at_once(streams: ClientConnection, speaking: Pipeline) -> None:
    say(streams, text=LONG, context_id="long")
    assert json.loads(streams.recv(timeout=10))["audio"]
    say(streams, context_id="long", close_context=True)
    until_final(streams, "long")
    with speaking.client() as direct:
        until(lambda: direct.status().queued == 0, "nothing of it goes on")
    say(streams, text="Still there. ", context_id="long", flush=True)  # the name may be used again
    say(streams, context_id="long", close_context=True)
    assert sound_of(until_final(streams, "long"))


def test_what_is_no_message_is_told_and_closed(speaking: Pipeline) -> None:
    address = f"{_ws(speaking)}/v1/text-to-speech/en-us/stream-input"
    for data in ("{", "[]", '{"text": 1}', b"\xff"):
        with connect(address) as socket:
            socket.send(data)
            assert set(json.loads(socket.recv(timeout=5))) == {"message", "error", "code"}
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=5)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize("query", ["output_format=mp4", "inactivity_timeout=0", "seed=x", "language_code=xx"])
def test_what_the_address_asks_for_is_checked(speaking: Pipeline, query: str) -> None:
    with connect(f"{_ws(speaking)}/v1/text-to-speech/en-us/stream-input?{query}") as socket:
        if query.startswith("language"):  # what the pipeline refuses is known once there is something to speak
            say(socket, text="Hello. ")
            say(socket, text="")
        assert query.split("=")[0].removesuffix("_code") in json.loads(socket.recv(timeout=5))["message"]


def test_a_client_that_says_nothing_is_hung_up_on(speaking: Pipeline) -> None:
    with connect(f"{_ws(speaking)}/v1/text-to-speech/en-us/stream-input?inactivity_timeout=1") as socket:
        say(socket, text=" ")
        assert json.loads(socket.recv(timeout=10))["error"] == "input_timeout_exceeded"


def test_who_goes_away_is_spoken_to_no_more(speaking: Pipeline) -> None:
    with speaking.client() as direct:
        for way in ("stream-input", "multi-stream-input"):
            with connect(f"{_ws(speaking)}/v1/text-to-speech/en-us/{way}") as socket:
                say(socket, text=LONG, context_id="a")
                assert json.loads(socket.recv(timeout=10))["audio"] is not None
            until(lambda: direct.status().queued == 0, f"nothing goes on after {way}")
