"""LiveKit's plugins, unmodified, against the real process chain. They bring hundreds of megabytes, so they are no part
of the development packages: `pip install livekit-plugins-openai livekit-plugins-elevenlabs` and run this file."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness import Pipeline

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("livekit.plugins.openai", reason="LiveKit's plugins are not installed")
pytest.importorskip("livekit.plugins.elevenlabs", reason="LiveKit's plugins are not installed")

# What the plugins themselves do is not looked at.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")

TEXT = "Hello there, from a voice bot. It streams its text."


async def samples(stream: Any) -> int:
    """How much sound a plugin hears, at 24 kHz."""
    async with stream:
        return sum([event.frame.samples_per_channel async for event in stream])


async def test_livekits_openai_plugin_speaks(speaking: Pipeline) -> None:
    from livekit.plugins import openai

    tts = openai.TTS(base_url=f"{speaking.url}/v1", api_key="none", voice="alloy", model="tts-1", response_format="pcm")
    assert 2 < await samples(tts.synthesize(TEXT)) / 24_000 < 10
    await tts.aclose()


async def test_livekits_elevenlabs_plugin_speaks_whole_and_growing_texts(speaking: Pipeline) -> None:
    from livekit.plugins import elevenlabs

    async with aiohttp.ClientSession() as session:
        tts = elevenlabs.TTS(
            base_url=f"{speaking.url}/v1", api_key="none", voice_id="JBFqnCBsd6RMkjVDRZzb", encoding="pcm_24000",
            http_session=session,
        )  # fmt: skip
        assert 2 < await samples(tts.synthesize(TEXT)) / 24_000 < 10
        stream = tts.stream()
        for word in TEXT.split():
            stream.push_text(f"{word} ")
        stream.end_input()
        assert 2 < await samples(stream) / 24_000 < 10
        await tts.aclose()
