"""A continuous sine as the engine's output, through every door and format: what is added, dropped or glued shows."""

from __future__ import annotations

import base64
import io
import json

import av
import numpy as np
import numpy.typing as npt
import pytest
from websockets.sync.client import connect

from tests.engines.sine import expected
from tests.harness import Pipeline
from tests.workers.gateway.standalone import WEB
from workers.gateway.elevenlabs_api import FORMATS, format_of

ENGINE = "sine"
TEXT = "one long breath without a single pause that goes on and on until nobody listens any more to the tone"
SOUND = expected(len(TEXT))
RATE = 24_000


def decoded(data: bytes) -> tuple[npt.NDArray[np.float64], int]:
    """Samples within ±1 and their rate, as libav hears them."""
    parts: list[npt.NDArray[np.float64]] = []
    rate = 0
    with av.open(io.BytesIO(data)) as file:
        resampler = av.AudioResampler(format="dblp", layout="mono")
        for frame in file.decode(audio=0):
            parts += [one.to_ndarray()[0] for one in resampler.resample(frame)]
            rate = frame.sample_rate
    return np.concatenate(parts), rate


def check_smooth(sound: npt.NDArray[np.float64], rate: int, slack: float = 1.5) -> None:
    """No sample is further from the line through its neighbours than a sine of 440 Hz bends. The first and last
    0.1 s are left out: a codec rings where the sound begins and ends."""
    inner = sound[rate // 10 : -rate // 10]
    assert np.abs(np.diff(inner, 2)).max() < 0.5 * (2 * np.pi * 440 / rate) ** 2 * slack + 2 / 32767
    assert np.abs(inner).max() == pytest.approx(0.5, abs=0.05)


def openai(speaking: Pipeline, name: str) -> bytes:
    body = {"input": TEXT, "response_format": name}
    return WEB.post(f"{speaking.url}/v1/audio/speech", json=body).raise_for_status().content


def test_pcm_through_the_openai_door_is_the_sine_to_the_sample(speaking: Pipeline) -> None:
    assert openai(speaking, "pcm") == SOUND.tobytes()


def test_lossless_files_are_the_sine_to_the_sample(speaking: Pipeline) -> None:
    for name, scale in (("wav", 32768), ("flac", 32768)):
        sound, rate = decoded(openai(speaking, name))
        assert rate == RATE
        assert np.array_equal(np.rint(sound * scale).astype(np.int16), SOUND)


@pytest.mark.parametrize("name", ["mp3", "opus", "aac"])
def test_a_lossy_file_has_no_click_and_the_right_length(speaking: Pipeline, name: str) -> None:
    sound, rate = decoded(openai(speaking, name))
    check_smooth(sound, rate)
    assert len(sound) / rate == pytest.approx(len(SOUND) / RATE, abs=0.0001 if name == "opus" else 0.12)


@pytest.mark.parametrize("name", ["pcm", "flac", "mp3"])
def test_events_put_together_are_the_same_file(speaking: Pipeline, name: str) -> None:
    body = {"input": TEXT, "response_format": name, "stream_format": "sse"}
    text = WEB.post(f"{speaking.url}/v1/audio/speech", json=body).raise_for_status().text
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert b"".join(base64.b64decode(event.get("audio", "")) for event in events) == openai(speaking, name)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_elevenlabs_door(speaking: Pipeline, name: str) -> None:
    address = f"{speaking.url}/v1/text-to-speech/default/stream?output_format={name}"
    check_format(name, WEB.post(address, json={"text": TEXT}).raise_for_status().content)


@pytest.mark.parametrize("name", ["pcm_24000", "pcm_16000", "mp3_44100_128", "opus_48000_64"])
@pytest.mark.parametrize("way", ["stream-input", "multi-stream-input"])
def test_the_elevenlabs_websockets(speaking: Pipeline, way: str, name: str) -> None:
    address = f"{ws(speaking)}/v1/text-to-speech/default/{way}?output_format={name}&sync_alignment=true"
    data, told = b"", ""
    with connect(address) as socket:
        for word in TEXT.split(" "):
            socket.send(json.dumps({"text": word + (" " if word != "tone" else "")}))
        socket.send(json.dumps({"text": "", "close_socket": way == "multi-stream-input"}))
        for message in map(json.loads, socket):
            data += base64.b64decode(message["audio"] or "")
            told += "".join((message.get("alignment") or {"chars": ()})["chars"])
    check_format(name, data)
    assert told == TEXT


@pytest.mark.parametrize("framing", ["json", "binary"])
def test_the_live_websocket(speaking: Pipeline, framing: str) -> None:
    with connect(f"{ws(speaking)}/ws/tts/live") as socket:
        socket.send(json.dumps({"framing": framing}))
        for word in TEXT.split(" "):
            socket.send(word + (" " if word != "tone" else ""))
        socket.send("")
        messages = list(socket)
    assert b"".join(message for message in messages if isinstance(message, bytes)) == SOUND.tobytes()


def check_format(name: str, data: bytes) -> None:
    wanted = format_of(name)
    samples = round(len(SOUND) * wanted.rate / RATE)
    if wanted.codec == "pcm":
        sound = np.frombuffer(data, "<i2")
        assert len(sound) == samples
        assert wanted.rate != RATE or np.array_equal(sound, SOUND)
        check_smooth(sound / 32767, wanted.rate, 1.1)
    elif wanted.codec in ("ulaw", "alaw"):
        assert len(data) == samples
    else:
        sound, rate = decoded(data)
        check_smooth(sound, rate)
        lossless = wanted.codec in ("wav", "opus")
        assert len(sound) / rate == pytest.approx(len(SOUND) / RATE, abs=0.0001 if lossless else 0.12)


def ws(speaking: Pipeline) -> str:
    return speaking.url.replace("http://", "ws://")
