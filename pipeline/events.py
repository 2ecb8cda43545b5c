"""What goes into the dispatcher's state machine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from ipc.messages import Event, Internal, Request
from pipeline.crew import Peer
from pipeline.journal import Op
from pipeline.output import RingView

# ------------------------------------------------------------------------------------ in


@dataclass(frozen=True)
class Requested:
    """A program sent a request. ``req``: it is a REQ client and must get exactly one answer."""

    client: bytes
    req: bool
    request: Request


@dataclass(frozen=True)
class ClientGone:
    """Nothing can be sent to this client any more (it may come back)."""

    client: bytes


@dataclass(frozen=True)
class ClientBack:
    """A client that was gone takes what is sent again (it may not have said anything)."""

    client: bytes


@dataclass(frozen=True)
class Joined:
    """A worker or the supervisor said hello and was welcomed."""

    peer: Peer


@dataclass(frozen=True)
class Said:
    """A message of a worker or the supervisor, in order and once."""

    peer: Peer
    message: Internal


@dataclass(frozen=True)
class Observed:
    """Cursors of rings, as they stand now. Comes before any message that speaks of them.

    ``more``: messages have arrived with it; until the next look, whoever seems to be silent may not be.
    """

    views: dict[int, RingView]
    more: bool = False


@dataclass(frozen=True)
class VoiceStored:
    """The answer to `StoreVoice`; ``error`` says why it was refused (empty: stored)."""

    client: bytes
    req: bool
    voice: str
    received_bytes: int
    complete: bool
    error: str = ""
    field: str = "data"


@dataclass(frozen=True)
class VoicesFound:
    """The recordings that are in the voices' folder now, all of them."""

    voices: tuple[str, ...]


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""


Input = Requested | ClientGone | ClientBack | Joined | Said | Observed | VoiceStored | VoicesFound | Ticked

# ------------------------------------------------------------------------------------ out


@dataclass(frozen=True)
class Write:
    """To the journal, before anything else of the same batch leaves the process; with ``late``
    after it."""

    op: Op
    late: bool = False


@dataclass(frozen=True)
class ToWorker:
    """Send to a worker or the supervisor."""

    peer: Peer
    message: Internal


@dataclass(frozen=True)
class ToClient:
    """Send an event. ``droppable``: better lost than queued for a client that does not read."""

    client: bytes
    req: bool
    event: Event
    droppable: bool = False


@dataclass(frozen=True)
class GrantLease:
    """Let the holder of ``lease`` write into the slot."""

    slot: int
    lease: int


@dataclass(frozen=True)
class DiscardBelow:
    """The reader of the slot drops spans of epochs below ``epoch``."""

    slot: int
    epoch: int


@dataclass(frozen=True)
class DiscardOne:
    """The reader of the slot drops the spans of this epoch."""

    slot: int
    epoch: int


@dataclass(frozen=True)
class HoldSpeaker:
    """Hold the speaker, or let it go on."""

    paused: bool


@dataclass(frozen=True)
class Listen:
    """Samples of ``epoch`` in the slot go to this client; ring sample ``start`` is the
    utterance's sample ``base``. ``confirms``: see `Confirm`."""

    slot: int
    epoch: int
    uid: int
    client: bytes
    id: str
    start: int
    base: int
    confirms: bool = False


@dataclass(frozen=True)
class Reattach:
    """Send the utterance's audio to this client from ``from_sample`` on, which is retained."""

    uid: int
    client: bytes
    from_sample: int
    confirms: bool = False


@dataclass(frozen=True)
class Confirm:
    """The first ``samples`` samples of the utterance have arrived at its client; the ring keeps what is
    not confirmed."""

    uid: int
    samples: int


@dataclass(frozen=True)
class Unlisten:
    """The utterance is over: what is retained of it can go."""

    slot: int
    uid: int


@dataclass(frozen=True)
class StoreVoice:
    """Write a piece of a reference recording; answered by `VoiceStored`."""

    client: bytes
    req: bool
    voice: str
    offset: int
    total_bytes: int
    data: bytes


Command = (
    Write
    | ToWorker
    | ToClient
    | GrantLease
    | DiscardBelow
    | DiscardOne
    | HoldSpeaker
    | Listen
    | Reattach
    | Confirm
    | Unlisten
    | StoreVoice
)
