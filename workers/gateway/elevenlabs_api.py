"""The door for ElevenLabs' clients over HTTP: text to speech, whole, streamed and with times, and the lists.

``output_format`` stands in the query, as in mp3_44100_128 or pcm_24000. Of ``voice_settings`` the speed
counts; models, stability and the like have no meaning here and are taken without a word.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ipc.messages import Voice
from workers.gateway.aliases import ELEVENLABS
from workers.gateway.answering import SpeechResponse, encoded, read_json, say_door
from workers.gateway.char_times import CharTimes, Span, with_times
from workers.gateway.encoding import Codec, Format, encoder
from workers.gateway.errors import GatewayError
from workers.gateway.speaking import Speech

if TYPE_CHECKING:
    from workers.gateway.app import Gateway

DOOR = "elevenlabs"
DEFAULT_FORMAT = "mp3_44100_128"
FORMATS = (
    *(f"mp3_{rate}_{kbps}" for rate, kbps in ((22050, 32), (24000, 48))),
    *(f"mp3_44100_{kbps}" for kbps in (32, 64, 96, 128, 192)),
    *(f"pcm_{rate}" for rate in (8000, 16000, 22050, 24000, 32000, 44100, 48000)),
    *(f"wav_{rate}" for rate in (8000, 16000, 22050, 24000, 32000, 44100, 48000)),
    *(f"opus_48000_{kbps}" for kbps in (32, 64, 96, 128, 192)),
    "ulaw_8000",
    "alaw_8000",
)

Speed = Annotated[float, Meta(ge=0.25, le=4.0)]


class VoiceSettings(Struct, frozen=True):
    """Of these the speed counts."""

    speed: Speed | None = None


class TextBody(Struct, frozen=True):
    """What `POST /v1/text-to-speech/{voice}` takes."""

    text: Annotated[str, Meta(description="the text to speak")]
    model_id: Annotated[str | None, Meta(description="any name; there is one engine")] = None
    language_code: Annotated[str | None, Meta(description="such as en, de, pt-br; else the voice's")] = None
    voice_settings: VoiceSettings | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None


class ElevenLabs:
    """The handlers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def speech(self, request: Request) -> SpeechResponse:
        """Speak a text; the sound is the answer, as it comes."""
        wanted, begin, _asked = await self._asked(request)
        return SpeechResponse(begin, partial(encoded, wanted=wanted), wanted.media_type, self._gateway.config.stall_s)

    async def with_times(self, request: Request) -> SpeechResponse:
        """The same as one JSON object: the sound in base64, and when each character is heard."""
        wanted, begin, asked = await self._asked(request)
        body = partial(_timed_whole, wanted=wanted, text=asked.text)
        return SpeechResponse(begin, body, "application/json", self._gateway.config.stall_s)

    async def stream_with_times(self, request: Request) -> SpeechResponse:
        """The same piece by piece: one JSON object a line."""
        wanted, begin, asked = await self._asked(request)
        body = partial(_timed_lines, wanted=wanted, text=asked.text)
        return SpeechResponse(begin, body, "application/json", self._gateway.config.stall_s)

    async def voices(self, _request: Request) -> Response:
        """All voices."""
        say_door(DOOR)
        listed = (await self._gateway.speaking.voices()).voices
        return JSONResponse({"voices": [_described(voice) for voice in listed]})

    async def search(self, request: Request) -> Response:
        """Voices page by page, as the newer clients ask."""
        say_door(DOOR)
        query = request.query_params
        size = _number(query.get("page_size"), 10, 1, 100, "page_size")
        start = _number(query.get("next_page_token"), 0, 0, 10**6, "next_page_token")
        wanted = query.get("search", "").casefold()
        listed = (await self._gateway.speaking.voices()).voices
        found = [voice for voice in listed if wanted in f"{voice.id} {voice.name} {voice.language}".casefold()]
        shown = [_described(voice) for voice in found[start : start + size]]
        more = start + size < len(found)
        token = str(start + size) if more else None
        return JSONResponse({"voices": shown, "has_more": more, "total_count": len(found), "next_page_token": token})

    async def voice(self, request: Request) -> Response:
        """One voice, by its id or another name."""
        say_door(DOOR)
        name = request.path_params["voice"]
        chosen = await self._gateway.speaking.choose(name, None)
        listed = await self._gateway.speaking.voices()
        wanted = chosen.voice or listed.default
        found = next((one for one in listed.voices if one.id == wanted), Voice(wanted, wanted, ""))
        return JSONResponse(_described(found) | {"voice_id": name, "name": ELEVENLABS.get(name, (found.name,))[0]})

    async def _asked(self, request: Request) -> tuple[Format, Any, TextBody]:
        say_door(DOOR)
        wanted = format_of(request.query_params.get("output_format"))
        asked = await read_json(request, TextBody)
        if not asked.text.strip():
            raise GatewayError(400, "text: there is nothing to speak", param="text")
        begin = partial(
            self._gateway.speak,
            asked.text,
            voice=request.path_params["voice"],
            language=asked.language_code,
            speed=asked.voice_settings.speed if asked.voice_settings else None,
            seed=asked.seed,
            door=DOOR,
        )
        return wanted, begin, asked


def routes(gateway: Gateway) -> list[BaseRoute]:
    """The paths. What is more special comes first, as names of voices may hold slashes."""
    door = ElevenLabs(gateway)
    speech = "/v1/text-to-speech/{voice:path}"
    return [
        Route(f"{speech}/stream/with-timestamps", door.stream_with_times, methods=["POST"]),
        Route(f"{speech}/with-timestamps", door.with_times, methods=["POST"]),
        Route(f"{speech}/stream", door.speech, methods=["POST"]),
        Route(speech, door.speech, methods=["POST"]),
        Route("/v1/voices", door.voices),
        Route("/v1/voices/{voice:path}", door.voice),
        Route("/v2/voices", door.search),
    ]


def format_of(name: str | None) -> Format:
    """The format that goes by this name. Raises `GatewayError`."""
    name = name or DEFAULT_FORMAT
    if name not in FORMATS:
        allowed = ", ".join(FORMATS)
        raise GatewayError(400, f"output_format: {name[:50]!r} is not one of {allowed}", param="output_format")
    codec, *numbers = name.split("_")
    known: dict[str, Codec] = {"mp3": "mp3", "pcm": "pcm", "wav": "wav", "opus": "opus", "ulaw": "ulaw", "alaw": "alaw"}
    return Format(known[codec], int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0)


def _number(text: str | None, default: int, least: int, most: int, name: str) -> int:
    if text is None or text == "":
        return default
    if not re.fullmatch(r"\d{1,7}", text) or not least <= int(text) <= most:
        raise GatewayError(400, f"{name}: {text[:20]!r} is no number from {least} to {most}", param=name)
    return int(text)


def _described(voice: Voice) -> dict[str, Any]:
    labels = {"language": voice.language} | ({"gender": voice.gender} if voice.gender else {})
    return {
        "voice_id": voice.id,
        "name": voice.name,
        "category": "premade",
        "labels": labels,
        "description": f"{voice.name} ({voice.language})",
        "preview_url": None,
        "available_for_tiers": [],
        "settings": None,
        "high_quality_base_model_ids": [],
        "is_owner": False,
        "is_legacy": False,
        "is_mixed": False,
        "samples": None,
    }


async def _timed_whole(speech: Speech, wanted: Format, text: str) -> AsyncGenerator[bytes, None]:
    """All at once: sound and times."""
    parts, whole = [], Span()
    async with aclosing(_timed_pieces(speech, wanted, text)) as pieces:
        async for data, span in pieces:
            parts.append(data)
            whole.extend(span)
    yield _timed(b"".join(parts), whole)


async def _timed_lines(speech: Speech, wanted: Format, text: str) -> AsyncGenerator[bytes, None]:
    """One object a line, as the sound comes."""
    async with aclosing(_timed_pieces(speech, wanted, text)) as pieces:
        async for data, span in pieces:
            if data or span:
                yield _timed(data, span) + b"\n"


async def _timed_pieces(speech: Speech, wanted: Format, text: str) -> AsyncGenerator[tuple[bytes, Span], None]:
    times, stream = CharTimes(), encoder(wanted)
    times.wrote(text)
    try:
        async with aclosing(with_times(speech, times)) as pieces:
            async for piece in pieces:
                yield stream.feed(piece.pcm) + (stream.end() if piece.last else b""), piece.span
    finally:
        stream.close()


def _timed(data: bytes, span: Span) -> bytes:
    alignment = span.seconds() if span else None
    told = {"audio_base64": base64.b64encode(data).decode(), "alignment": alignment, "normalized_alignment": alignment}
    return msgspec.json.encode(told)
