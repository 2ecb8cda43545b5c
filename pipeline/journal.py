"""The dispatcher's journal: what must be known to go on after a crash.

Records are small structures under a key (kind, utterance, segment, number). The state machine only
says what to write (`Put`) and what to forget (`Drop`); `Journal` keeps it in SQLite (WAL,
synchronous off: it survives the death of processes, not of the machine).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from ipc.messages import Boundary, Output, Priority, TokenSpan


class Record(Struct, frozen=True, tag=True, array_like=True):
    """Something to remember. ``uid`` numbers the utterance."""

    uid: int


class UtteranceRecord(Record, frozen=True):
    """An accepted utterance; its text follows in `TextRecord`s. ``received_s`` is monotonic."""

    client: bytes
    id: str
    req: bool
    voice: str
    language: str
    speed: float
    output: Output
    conversation: str
    priority: Priority
    seed: int
    settings: dict[str, bool | int | float | str]
    received_s: float
    confirms: bool = False
    opened_by: bytes = b""
    """The client that it was accepted from, where another has attached to it since."""


class TextRecord(Record, frozen=True):
    """A piece of the text as given, from character ``first_char`` on."""

    first_char: int
    text: str


class EndRecord(Record, frozen=True):
    """The text is complete."""


class CutRecord(Record, frozen=True):
    """Where segmentation stands: characters fed, the segmenter's state, and whether it is done."""

    fed_chars: int
    segmenter: bytes
    done: bool


class SegmentRecord(Record, frozen=True):
    """A segment as it was cut. ``offsets``: uint32 positions relative to ``start``."""

    index: int
    text: str
    offsets: bytes
    start: int
    end: int
    boundary: Boundary
    pause_ms: int


class TokensRecord(Record, frozen=True):
    """A chunk of tokens as t3 made it."""

    index: int
    first_token: int
    tokens: int
    data: bytes
    seconds: float
    alignment: tuple[TokenSpan, ...]
    final: bool


class PlacedRecord(Record, frozen=True):
    """A segment's place: its first sample in the ring and in the utterance, its stint, its ladder."""

    index: int
    slot: int
    ring_start: int
    base: int
    epoch: int
    rungs: tuple[int, ...]


class MarkRecord(Struct, frozen=True, array_like=True):
    """Characters of the text as given that begin to sound at this sample of the segment."""

    sample: int
    first_char: int
    last_char: int
    exact: bool


class CheckpointRecord(Record, frozen=True):
    """How far a segment is rendered, and what its successor goes on from."""

    index: int
    samples: int
    done_tokens: int
    checkpoint: bytes
    marks: tuple[MarkRecord, ...]
    final: bool


class HeardRecord(Record, frozen=True):
    """Segments below ``index`` have been heard; ``samples`` of the utterance and ``chars``."""

    index: int
    samples: int
    chars: int
    exact: bool
    failed_segments: int
    epoch: int


class BegunRecord(Record, frozen=True):
    """When the utterance's first sample was in the ring, and at the ear (None: not yet)."""

    first_audio_ms: float | None
    started_ms: float | None


class ToldRecord(Record, frozen=True):
    """The last event was sent; what was sent before it may still be on its way."""


class FailedRecord(Record, frozen=True):
    """A segment that cannot be spoken."""

    index: int
    reason: str


class DoneRecord(Record, frozen=True):
    """The utterance is over; ``event`` is its last event, for those who ask again. Until it was sent
    (``told``) a successor sends it."""

    client: bytes
    id: str
    event: bytes
    told: bool = True


_RECORDS = (
    UtteranceRecord
    | TextRecord
    | EndRecord
    | CutRecord
    | SegmentRecord
    | TokensRecord
    | PlacedRecord
    | CheckpointRecord
    | HeardRecord
    | BegunRecord
    | FailedRecord
    | ToldRecord
    | DoneRecord
)
AnyRecord = _RECORDS


class Put(Struct, frozen=True):
    """Write a record, in place of an earlier one with the same key."""

    record: AnyRecord


class Drop(Struct, frozen=True):
    """Forget records of an utterance: of the kinds named, in segments ``first`` … ``last``
    (default: all)."""

    uid: int
    kinds: tuple[type[Record], ...] = ()
    first: int = 0
    last: int = 2**62


Op = Put | Drop


def _key(record: Record) -> tuple[str, int, int, int]:
    """Kind, utterance, segment, number: what a later record with the same key replaces."""
    kind = type(record).__name__
    match record:
        case TokensRecord():
            return kind, record.uid, record.index, record.first_token + int(record.tokens == 0)
        case SegmentRecord() | PlacedRecord() | CheckpointRecord() | FailedRecord():
            return kind, record.uid, record.index, 0
        case TextRecord():
            return kind, record.uid, 0, record.first_char
        case _:
            return kind, record.uid, 0, 0


class Journal:
    """Records in one SQLite file, owned by one process."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS records (kind TEXT, uid INTEGER, segment INTEGER, number INTEGER, body BLOB,"
            " PRIMARY KEY (uid, kind, segment, number)) WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER)")
        self._db.execute("CREATE TABLE IF NOT EXISTS set_aside (uid INTEGER, reason TEXT, body BLOB)")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[AnyRecord] = msgspec.msgpack.Decoder(AnyRecord)

    def write(self, ops: Iterable[Op]) -> None:
        """Apply all of ``ops``, or none. Raises `sqlite3.Error` (disk full, for one)."""
        self._db.execute("BEGIN")
        try:
            for op in ops:
                self._apply(op)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _apply(self, op: Op) -> None:
        if isinstance(op, Put):
            body = self._encoder.encode(op.record)
            self._db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?)", (*_key(op.record), body))
        elif not op.kinds:
            self._db.execute("DELETE FROM records WHERE uid = ?", (op.uid,))
        else:
            for kind in op.kinds:
                self._db.execute(
                    "DELETE FROM records WHERE uid = ? AND kind = ? AND segment BETWEEN ? AND ?",
                    (op.uid, kind.__name__, op.first, op.last),
                )

    def fact(self, name: str, default: int = 0) -> int:
        """A number kept beside the records (the utterance under suspicion)."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else int(row[0])

    def set_fact(self, name: str, value: int) -> None:
        """Keep a number."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def utterances(self) -> list[int]:
        """Numbers of the utterances that have records, oldest first."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT uid FROM records ORDER BY uid")]

    def load(self, uid: int) -> list[AnyRecord]:
        """All records of an utterance, by kind, segment and number.

        Raises `msgspec.DecodeError` where one cannot be read.
        """
        rows = self._db.execute("SELECT body FROM records WHERE uid = ? ORDER BY kind, segment, number", (uid,))
        return [self._decoder.decode(row[0]) for row in rows]

    def set_aside(self, uid: int, reason: str) -> None:
        """Take an utterance's records out of use, but keep them for whoever looks into it."""
        self._db.execute("BEGIN")
        self._db.execute("INSERT INTO set_aside SELECT uid, ?, body FROM records WHERE uid = ?", (reason, uid))
        self._db.execute("DELETE FROM records WHERE uid = ?", (uid,))
        self._db.execute("COMMIT")

    def count(self) -> int:
        """How many records there are."""
        return int(self._db.execute("SELECT count(*) FROM records").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
