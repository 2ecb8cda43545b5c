"""LiveKit's plugins and pipecat's services, unmodified, against the real process chain.

They bring hundreds of megabytes, so they have an environment of their own: ``make bots``.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness import Pipeline

aiohttp = pytest.importorskip("aiohttp")

# What these clients themselves do is not looked at.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")

TEXT = "Hello there, from a voice bot. It streams its text."
VOICE = "JBFqnCBsd6RMkjVDRZzb"
RATE_HZ = 24_000
SHORTEST_S, LONGEST_S = 2, 10

# --------------------------------------------------------------------------- LiveKit


async def livekit_seconds(stream: Any) -> float:
    """How much sound a plugin hears."""
    async with stream:
        return sum([event.frame.samples_per_channel async for event in stream]) / RATE_HZ


async def test_livekits_openai_plugin_speaks(speaking: Pipeline) -> None:
    openai = pytest.importorskip("livekit.plugins.openai", reason="LiveKit's plugins are not installed")
    tts = openai.TTS(base_url=f"{speaking.url}/v1", api_key="none", voice="alloy", model="tts-1", response_format="pcm")
    assert SHORTEST_S < await livekit_seconds(tts.synthesize(TEXT)) < LONGEST_S
    await tts.aclose()


async def test_livekits_elevenlabs_plugin_speaks_whole_and_growing_texts(speaking: Pipeline) -> None:
    elevenlabs = pytest.importorskip("livekit.plugins.elevenlabs", reason="LiveKit's plugins are not installed")
    async with aiohttp.ClientSession() as session:
        tts = elevenlabs.TTS(
            base_url=f"{speaking.url}/v1", api_key="none", voice_id=VOICE, encoding="pcm_24000", http_session=session
        )
        assert SHORTEST_S < await livekit_seconds(tts.synthesize(TEXT)) < LONGEST_S
        stream = tts.stream()
        for word in TEXT.split():
            stream.push_text(f"{word} ")
        stream.end_input()
        assert SHORTEST_S < await livekit_seconds(stream) < LONGEST_S
        await tts.aclose()


# --------------------------------------------------------------------------- pipecat


async def pipecat_seconds(service: Any) -> float:
    """How much sound a service of a pipecat pipeline makes of the text; nothing else went wrong in it."""
    frames = pytest.importorskip("pipecat.frames.frames")
    utils = pytest.importorskip("pipecat.tests.utils")
    worker = pytest.importorskip("pipecat.pipeline.worker")
    down, up = await utils.run_test(
        service,
        frames_to_send=[frames.TTSSpeakFrame(text=TEXT), utils.SleepFrame(sleep=3.0)],
        pipeline_params=worker.PipelineParams(audio_out_sample_rate=RATE_HZ),
        start_timeout=10.0,
    )
    assert not [frame for frame in (*down, *up) if isinstance(frame, frames.ErrorFrame)]
    sound = [frame for frame in down if isinstance(frame, frames.TTSAudioRawFrame)]
    assert {frame.sample_rate for frame in sound} == {RATE_HZ}
    return sum(len(frame.audio) for frame in sound) / 2 / RATE_HZ


async def test_pipecats_openai_service_speaks(speaking: Pipeline) -> None:
    openai = pytest.importorskip("pipecat.services.openai.tts", reason="pipecat is not installed")
    service = openai.OpenAITTSService(
        base_url=f"{speaking.url}/v1", api_key="none", settings=openai.OpenAITTSService.Settings(voice="alloy")
    )
    assert SHORTEST_S < await pipecat_seconds(service) < LONGEST_S


async def test_pipecats_elevenlabs_services_speak(speaking: Pipeline) -> None:
    elevenlabs = pytest.importorskip("pipecat.services.elevenlabs.tts", reason="pipecat is not installed")
    socket = elevenlabs.ElevenLabsTTSService(
        url=speaking.url.replace("http", "ws", 1),
        api_key="none",
        settings=elevenlabs.ElevenLabsTTSService.Settings(voice=VOICE),
    )
    assert SHORTEST_S < await pipecat_seconds(socket) < LONGEST_S
    async with aiohttp.ClientSession() as session:
        http = elevenlabs.ElevenLabsHttpTTSService(
            base_url=speaking.url,
            api_key="none",
            aiohttp_session=session,
            settings=elevenlabs.ElevenLabsHttpTTSService.Settings(voice=VOICE),
        )
        assert SHORTEST_S < await pipecat_seconds(http) < LONGEST_S
