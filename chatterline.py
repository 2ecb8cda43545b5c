"""Chatterline for other programs: text in, speech out of a running pipeline.

    from chatterline import Client

    with Client() as client:
        client.speak("Hello.").wait()
        with client.utterance() as speech:          # a text that is still being written
            for piece in ("It is ", "spoken ", "as it comes."):
                speech.write(piece)
        sound = client.speak("To me.", output="stream").audio()   # float32, 24 kHz

`AsyncClient` is the same for asyncio; `Chat` speaks a language model's answers through it. `Provider` takes text and
gives sound through the gateway, with HTTP and WebSocket. The protocol underneath, for other languages, is in
docs/protocol.md; the events that a speech tells of are the classes below.
"""

from __future__ import annotations

from ipc.chat import Chat
from ipc.chat_endpoint import ChatEndpoint, ChatError
from ipc.chat_exchange import Answer
from ipc.chat_memory import Memory, Question
from ipc.client import DEFAULT_TO, AsyncClient, SpeakOptions
from ipc.client_blocking import Client, Speech
from ipc.client_errors import ChatterlineError, PipelineError, RequestError, SpeechCancelled, SpeechError
from ipc.client_speech import AsyncSpeech
from ipc.client_track import Ending, Sound
from ipc.messages import (
    SAMPLE_RATE,
    Accepted,
    Aligned,
    Cancelled,
    Event,
    Failed,
    Finished,
    Progress,
    Rejected,
    Setting,
    Started,
    State,
    StatusReport,
    Voice,
    VoiceList,
)
from ipc.provider import Provider, ProviderError

__all__ = [
    "DEFAULT_TO",
    "SAMPLE_RATE",
    "Accepted",
    "Aligned",
    "Answer",
    "AsyncClient",
    "AsyncSpeech",
    "Cancelled",
    "Chat",
    "ChatEndpoint",
    "ChatError",
    "ChatterlineError",
    "Client",
    "Ending",
    "Event",
    "Failed",
    "Finished",
    "Memory",
    "PipelineError",
    "Progress",
    "Provider",
    "ProviderError",
    "Question",
    "Rejected",
    "RequestError",
    "Setting",
    "Sound",
    "SpeakOptions",
    "Speech",
    "SpeechCancelled",
    "SpeechError",
    "Started",
    "State",
    "StatusReport",
    "Voice",
    "VoiceList",
]
