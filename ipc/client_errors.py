"""What can go wrong for a program that uses the client, as exceptions that say what to do."""

from __future__ import annotations

from ipc.messages import Cancelled, Failed, Rejected


class ChatterlineError(Exception):
    """Anything that the client raises on purpose."""


class PipelineError(ChatterlineError, ConnectionError):
    """No pipeline answers, or it went away and did not come back."""


class RequestError(ChatterlineError):
    """The pipeline refused a request; ``event`` names the field at fault and the reason."""

    def __init__(self, event: Rejected) -> None:
        super().__init__(f"{event.field}: {event.reason}" if event.field else event.reason)
        self.event = event


class SpeechError(ChatterlineError):
    """An utterance was refused, failed, was silenced or cannot be followed any more.

    ``event`` is what the pipeline said (None: it said nothing, the message tells why).
    """

    def __init__(self, message: str, event: Rejected | Failed | Cancelled | None = None) -> None:
        super().__init__(message)
        self.event = event


class SpeechCancelled(SpeechError):
    """The utterance was silenced; ``heard`` is the part of its text that was heard."""

    def __init__(self, event: Cancelled) -> None:
        super().__init__(f"the utterance was cancelled after {event.seconds:.1f} s", event)
        self.heard = event.heard


def failure_of(event: Rejected | Failed | Cancelled) -> SpeechError:
    """The exception for an utterance that ended like this."""
    match event:
        case Cancelled():
            return SpeechCancelled(event)
        case Failed(reason=reason):
            return SpeechError(reason, event)
        case Rejected(field=name, reason=reason):
            return SpeechError(f"{name}: {reason}" if name else reason, event)
