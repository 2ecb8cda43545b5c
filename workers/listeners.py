"""Sound for remote listeners: from their ring slots to their sockets, each at its own pace.

A listener that does not read stops its own slot and nobody else's: nothing is sent while its socket
is full, the ring fills, and credit ends. What a killed dispatcher had sent and what had not arrived
(it stood in a socket, or on the network) is sent again by its successor, from the ring, so the ring's
read cursor trails: by what the listener has not confirmed, or, for one that never confirms, by
`TRAIL_S`. Clients drop what they have by ``first_sample``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ipc.channels import Sent
from ipc.messages import SAMPLE_RATE, Audio, Event
from ipc.ring import Arena, RingReader
from pipeline.events import Confirm, Listen, Reattach, Unlisten

PIECE_SAMPLES = SAMPLE_RATE // 10
TRAIL_S = 1.0
SETTLE_S = 0.25
"""After this long without anything to send, a listener that does not confirm has got all of it."""

SendAudio = Callable[[bytes, Event, bytes], Sent]


@dataclass
class _Stream:
    """One utterance's way to its listener. Samples are the utterance's."""

    uid: int
    client: bytes
    id: str
    confirms: bool
    sent: int = 0
    confirmed: int = 0
    skip_until: int = 0
    retained: deque[tuple[int, bytes]] = field(default_factory=deque)
    retained_samples: int = 0
    again: deque[tuple[int, bytes]] = field(default_factory=deque)

    @property
    def oldest(self) -> int:
        """The first sample that can be sent again."""
        return self.retained[0][0] if self.retained else self.sent

    def retain(self, first_sample: int, pcm: bytes, most_samples: int) -> None:
        """Keep a piece for a listener that attaches again."""
        self.retained.append((first_sample, pcm))
        self.retained_samples += len(pcm) // 2
        while self.retained and self.retained_samples - len(self.retained[0][1]) // 2 >= most_samples:
            self.retained_samples -= len(self.retained.popleft()[1]) // 2


@dataclass(frozen=True)
class _Piece:
    """Ring samples ``begin`` … ``end``; ``after`` is the utterance's sample at ``end``."""

    uid: int
    after: int
    begin: int
    end: int


@dataclass
class _Slot:
    reader: RingReader
    position: int
    trail_samples: int
    places: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """epoch → (utterance, ring sample, the utterance's sample there)"""
    unconfirmed: deque[_Piece] = field(default_factory=deque)
    """What was sent and is still in the ring, in order."""
    sent_s: float = 0.0
    blocked: bool = False


class Listeners:
    """All slots with remote listeners."""

    def __init__(self, arena: Arena, send: SendAudio, retain_s: float) -> None:
        self._arena = arena
        self._send = send
        self._retain_samples = round(retain_s * SAMPLE_RATE)
        self._slots: dict[int, _Slot] = {}
        self._streams: dict[int, _Stream] = {}

    @property
    def slots(self) -> list[int]:
        """Slots in use."""
        return list(self._slots)

    @property
    def blocked(self) -> bool:
        """Somebody has more to get than the socket takes."""
        return any(slot.blocked for slot in self._slots.values())

    def position(self, slot: int) -> int | None:
        """Ring sample up to which the slot's sound was sent; None for a slot not in use."""
        found = self._slots.get(slot)
        return None if found is None else found.position

    def listen(self, command: Listen) -> None:
        """Send a stint to a client."""
        slot = self._slots.get(command.slot)
        if slot is None:
            reader = self._arena.reader(command.slot)
            capacity = self._arena.control(command.slot).capacity
            trail = min(round(TRAIL_S * SAMPLE_RATE), capacity // 2)
            slot = self._slots[command.slot] = _Slot(reader, reader.read, trail)
        if not slot.places:
            self._commit(slot, min(command.start, slot.reader.written))
            slot.position = max(slot.position, command.start)
        slot.places[command.epoch] = (command.uid, command.start, command.base)
        if command.uid not in self._streams:
            stream = _Stream(command.uid, command.client, command.id, command.confirms)
            stream.sent = command.base + max(0, slot.position - command.start)  # not 0 after a predecessor's death
            self._streams[command.uid] = stream

    def unlisten(self, command: Unlisten) -> None:
        """The utterance is over."""
        self._streams.pop(command.uid, None)
        slot = self._slots.get(command.slot)
        if slot is None:
            return
        slot.places = {epoch: place for epoch, place in slot.places.items() if place[0] != command.uid}
        slot.unconfirmed = deque(piece for piece in slot.unconfirmed if piece.uid != command.uid)
        if not slot.places:
            self._commit(slot, slot.reader.written)
            del self._slots[command.slot]

    def oldest(self, slot: int) -> dict[int, int]:
        """By utterance of the slot, its first sample that is still retained."""
        found = self._slots.get(slot)
        uids = {place[0] for place in found.places.values()} if found is not None else ()
        return {uid: self._streams[uid].oldest for uid in uids}

    def resending(self, slot: int) -> bool:
        """Somebody who attached again has not got all yet that was sent before."""
        found = self._slots.get(slot)
        return found is not None and any(self._streams[place[0]].again for place in found.places.values())

    def reattach(self, command: Reattach) -> None:
        """This connection takes over, from a sample that is still retained."""
        stream = self._streams.get(command.uid)
        if stream is None:
            return
        stream.client, stream.confirms = command.client, command.confirms
        stream.skip_until = stream.confirmed = command.from_sample
        stream.again = deque(_from(stream.retained, command.from_sample))

    def confirm(self, command: Confirm) -> None:
        """So much has arrived at a client that confirms."""
        stream = self._streams.get(command.uid)
        if stream is not None:
            stream.confirmed = max(stream.confirmed, command.samples)

    def pump(self, now_s: float) -> bool:
        """Send what every listener takes; whether anything was sent."""
        sent = False
        for slot in self._slots.values():
            sent |= self._pump(slot, now_s)
        return sent

    def pump_new(self, now_s: float) -> None:
        """Send what has come into rings since, as far as it is known whose it is."""
        for slot in self._slots.values():
            if slot.reader.written > slot.position:
                self._pump(slot, now_s)

    def _pump(self, slot: _Slot, now_s: float) -> bool:
        slot.blocked = False
        any_sent = self._send_again(slot)
        while not slot.blocked:
            begin, span, first, second = slot.reader.peek(slot.position, PIECE_SAMPLES)
            slot.position = max(slot.position, begin)
            if span is None or not len(first):
                break
            for epoch in [epoch for epoch in slot.places if epoch < span.epoch]:
                del slot.places[epoch]
            place = slot.places.get(span.epoch)
            samples = len(first) + len(second)
            if place is None:
                slot.position += samples  # nobody's any more: cancelled between write and discard
                continue
            if not self._deliver(slot, place, begin, first, second):
                break
            slot.position += samples
            slot.sent_s, any_sent = now_s, True
        self._commit_arrived(slot, settled=not any_sent and not slot.blocked and now_s >= slot.sent_s + SETTLE_S)
        return any_sent

    def _commit_arrived(self, slot: _Slot, settled: bool) -> None:
        """What has arrived need not be kept."""
        trail = slot.position if settled else slot.position - slot.trail_samples
        while slot.unconfirmed:
            piece = slot.unconfirmed[0]
            stream = self._streams[piece.uid]
            if (stream.confirmed < piece.after) if stream.confirms else (trail < piece.end):
                self._commit(slot, piece.begin if stream.confirms else max(piece.begin, trail))
                return
            slot.unconfirmed.popleft()
        self._commit(slot, slot.position)

    def _send_again(self, slot: _Slot) -> bool:
        """Send what a newly attached listener missed, before anything new."""
        sent = False
        for uid in {uid for uid, _, _ in slot.places.values()}:
            stream = self._streams[uid]
            while stream.again and self._put(slot, stream, *stream.again[0]):
                stream.again.popleft()
                sent = True
        return sent

    def _deliver(
        self,
        slot: _Slot,
        place: tuple[int, int, int],
        begin: int,
        first: npt.NDArray[np.float32],
        second: npt.NDArray[np.float32],
    ) -> bool:
        """Send one piece; False when the listener does not take it now."""
        uid, start, base = place
        stream = self._streams[uid]
        at = base + begin - start
        pcm = to_s16(np.concatenate((first, second)))
        if at + len(pcm) // 2 > stream.skip_until:
            late = max(0, stream.skip_until - at)
            if not self._put(slot, stream, at + late, pcm[2 * late :]):
                return False
        stream.sent = at + len(pcm) // 2
        stream.retain(at, pcm, self._retain_samples)
        slot.unconfirmed.append(_Piece(uid, stream.sent, begin, begin + len(pcm) // 2))
        return True

    def _put(self, slot: _Slot, stream: _Stream, first_sample: int, pcm: bytes) -> bool:
        event = Audio(id=stream.id, first_sample=first_sample, samples=len(pcm) // 2)
        if self._send(stream.client, event, pcm) != "sent":
            slot.blocked = True
            return False
        return True

    def _commit(self, slot: _Slot, position: int) -> None:
        count = min(position, slot.reader.written) - slot.reader.read
        if count > 0:
            slot.reader.advance(count)


def to_s16(samples: npt.NDArray[np.float32]) -> bytes:
    """Float samples within ±1 as signed 16-bit little-endian PCM."""
    pcm: npt.NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2")
    return pcm.tobytes()


def _from(pieces: deque[tuple[int, bytes]], first_sample: int) -> list[tuple[int, bytes]]:
    """The pieces from a sample on, the first one cut to begin there."""
    found = []
    for at, pcm in pieces:
        late = max(0, first_sample - at)
        if late * 2 < len(pcm):
            found.append((at + late, pcm[2 * late :]))
    return found
