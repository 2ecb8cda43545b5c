"""The journal's file, in memory."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pipeline.journal import AnyRecord, Op, Put, _key


class Pages:
    """What the journal's file keeps."""

    def __init__(self) -> None:
        self.records: dict[tuple[int, str, int, int], bytes] = {}
        self.facts: dict[str, int] = {}


class MemoryJournal:
    """`pipeline.journal.Journal` on `Pages`."""

    _encoder = msgspec.msgpack.Encoder()
    _decoder = msgspec.msgpack.Decoder(AnyRecord)

    def __init__(self, pages: Pages) -> None:
        self.pages = pages

    def write(self, ops: Iterable[Op]) -> None:
        records = self.pages.records
        for op in ops:
            if isinstance(op, Put):
                kind, uid, segment, number = _key(op.record)
                records[uid, kind, segment, number] = self._encoder.encode(op.record)
                continue
            kinds = {kind.__name__ for kind in op.kinds}
            for key in [key for key in records if key[0] == op.uid]:
                if not kinds or (key[1] in kinds and op.first <= key[2] <= op.last):
                    del records[key]

    def fact(self, name: str, default: int = 0) -> int:
        return self.pages.facts.get(name, default)

    def set_fact(self, name: str, value: int) -> None:
        self.pages.facts[name] = value

    def utterances(self) -> list[int]:
        return sorted({key[0] for key in self.pages.records})

    def load(self, uid: int) -> list[AnyRecord]:
        found = sorted((key, body) for key, body in self.pages.records.items() if key[0] == uid)
        return [self._decoder.decode(body) for _, body in found]

    def set_aside(self, uid: int, reason: str) -> None:
        raise AssertionError(f"utterance {uid} is set aside: {reason}")

    def close(self) -> None:
        pass
