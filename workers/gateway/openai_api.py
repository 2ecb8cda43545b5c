"""The door for OpenAI's clients: `POST /v1/audio/speech`, and the lists that they ask for.

Beyond OpenAI's fields a request may have `language`, `seed` and `settings` (the engine's own). What a
request has besides is ignored, as is `instructions`.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ipc.messages import SAMPLE_RATE
from workers.gateway.answering import SpeechResponse, encoded, read_json, say_door
from workers.gateway.encoding import Codec, Format
from workers.gateway.errors import GatewayError
from workers.gateway.speaking import Speech

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

DOOR = "openai"
MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""What is asked for by these names, or any other, is spoken by the engine that there is."""

FORMATS: dict[str, Codec] = {"mp3": "mp3", "opus": "opus", "aac": "aac", "flac": "flac", "wav": "wav", "pcm": "pcm"}
CHARS_A_TOKEN = 4
TOKENS_A_SECOND = 25


class VoiceRef(Struct, frozen=True):
    """A voice as an object."""

    id: str


class SpeechBody(Struct, frozen=True):
    """What `POST /v1/audio/speech` takes."""

    input: Annotated[str, Meta(description="the text to speak")]
    model: Annotated[str | None, Meta(description="any name; there is one engine")] = None
    voice: Annotated[str | VoiceRef | None, Meta(description="a voice's id, or one of its other names")] = None
    instructions: Annotated[str | None, Meta(description="ignored")] = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4.0)] | None = None
    stream_format: Literal["audio", "sse"] | None = None
    language: Annotated[str | None, Meta(description="such as en, de, pt-br; else the voice's")] = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    settings: Annotated[dict[str, bool | int | float | str], Meta(description="the engine's own")] | None = None


class OpenAi:
    """The handlers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._began_s = int(time.time())

    async def speech(self, request: Request) -> SpeechResponse:
        """Speak a text; the sound is the answer."""
        say_door(DOOR)
        asked = await read_json(request, SpeechBody)
        if not asked.input.strip():
            raise GatewayError(400, "input: there is nothing to speak", param="input")
        voice = asked.voice.id if isinstance(asked.voice, VoiceRef) else asked.voice
        begin = partial(
            self._gateway.speak,
            asked.input,
            voice=voice,
            language=asked.language,
            speed=asked.speed,
            seed=asked.seed,
            settings=asked.settings,
            door=DOOR,
        )
        wanted = Format(FORMATS[asked.response_format or "mp3"])
        stall_s = self._gateway.config.stall_s
        if asked.stream_format == "sse":
            body = partial(_events, wanted=wanted, chars=len(asked.input))
            return SpeechResponse(begin, body, "text/event-stream; charset=utf-8", stall_s)
        return SpeechResponse(begin, partial(encoded, wanted=wanted), wanted.media_type, stall_s)

    async def models(self, request: Request) -> Response:
        """The models by their names (and for ElevenLabs' clients, in their form)."""
        say_door(DOOR)
        if "xi-api-key" in request.headers:
            return JSONResponse([await self._elevenlabs_model()])
        return JSONResponse({"object": "list", "data": [self._model(name) for name in await self._names()]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        say_door(DOOR)
        name = request.path_params["model"]
        if name not in await self._names():
            raise GatewayError(404, f"there is no model {name[:100]!r}", param="model", code="model_not_found")
        return JSONResponse(self._model(name))

    async def audio_models(self, _request: Request) -> Response:
        """The models that speak: all."""
        say_door(DOOR)
        names = await self._names()
        return JSONResponse(
            {
                "object": "list",
                "models": [{"id": name, "name": name} for name in names],
                "data": list(map(self._model, names)),
            }
        )

    async def voices(self, _request: Request) -> Response:
        """The voices, with their further names first."""
        say_door(DOOR)
        aliases = await self._gateway.speaking.aliases()
        by_id = {voice.id: voice for voice in aliases.listed.voices}
        listed = [_voice(name, f"{name} ({target})", by_id.get(target)) for name, target in aliases.named()]
        listed += [_voice(voice.id, voice.name, voice) for voice in aliases.listed.voices]
        return JSONResponse({"object": "list", "voices": listed, "data": listed})

    async def _names(self) -> list[str]:
        return [*MODELS, (await self._gateway.speaking.voices()).engine]

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began_s, "owned_by": "chatterline"}

    async def _elevenlabs_model(self) -> dict[str, Any]:
        listed = await self._gateway.speaking.voices()
        return {
            "model_id": listed.engine,
            "name": listed.engine,
            "can_be_finetuned": False,
            "can_do_text_to_speech": True,
            "can_do_voice_conversion": False,
            "can_use_style": False,
            "can_use_speaker_boost": False,
            "serves_pro_voices": False,
            "token_cost_factor": 0.0,
            "description": "the engine of this pipeline",
            "requires_alpha_access": False,
            "max_characters_request_free_user": self._gateway.pipeline.text.max_chars,
            "max_characters_request_subscribed_user": self._gateway.pipeline.text.max_chars,
            "maximum_text_length_per_request": self._gateway.pipeline.text.max_chars,
            "languages": [{"language_id": language, "name": language} for language in listed.languages],
            "concurrency_group": "standard",
        }


def routes(gateway: Gateway) -> list[BaseRoute]:
    """The paths."""
    door = OpenAi(gateway)
    return [
        Route("/v1/audio/speech", door.speech, methods=["POST"]),
        Route("/v1/audio/voices", door.voices),
        Route("/v1/audio/models", door.audio_models),
        Route("/v1/models", door.models),
        Route("/v1/models/{model:path}", door.model),
    ]


def _voice(id: str, name: str, voice: Any) -> dict[str, Any]:
    return {
        "id": id,
        "name": name,
        "language": voice.language if voice is not None else "",
        "gender": voice.gender if voice is not None else "",
    }


async def _events(speech: Speech, wanted: Format, chars: int) -> AsyncGenerator[bytes, None]:
    """The sound as server-sent events. What fails after the first is told as one, too."""
    begun = False
    try:
        async with aclosing(encoded(speech, wanted)) as pieces:
            async for data in pieces:
                if data:
                    begun = True
                    yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    except GatewayError as error:
        if not begun:
            raise
        yield _event({"type": "error", **error.openai()})
        raise
    spoken = round(speech.samples / SAMPLE_RATE * TOKENS_A_SECOND)
    written = -(-chars // CHARS_A_TOKEN)
    usage = {"input_tokens": written, "output_tokens": spoken, "total_tokens": written + spoken}
    yield _event({"type": "speech.audio.done", "usage": usage})


def _event(told: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(told) + b"\n\n"
