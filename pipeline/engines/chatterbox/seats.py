"""Which stream has which rows of the KV cache, and keeping those that speak together at the front.

A seat is a slot (its small state, which never moves) and one row of the cache, or two where the unconditional text is
computed as well. Rows of those that pause stay where they are until somebody who speaks would fit into a smaller batch
in their place: pausing is frequent and usually costs nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.engines.chatterbox.backbone import Cache

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


def bucket(wanted: int, sizes: Sequence[int]) -> int:
    """The smallest size that is enough, or the largest there is."""
    return sizes[min(bisect_left(sizes, wanted), len(sizes) - 1)]


@dataclass(eq=False)
class Seat:
    """``base``: the cache position of its next input when it has sampled nothing; ``sampled``: how many tokens it has
    sampled, what is still under way included. ``most``: how much of its logits has to be sorted."""

    slot: int
    rows: list[int]
    base: int
    sampled: int = 0
    most: int = 0

    @property
    def next_position(self) -> int:
        return self.base + self.sampled


@dataclass
class Seats:
    """Slots and rows, free and taken. ``exact``: batches have no fixed sizes, so that nobody pausing is stepped."""

    cache: Cache
    slots: int
    exact: bool
    owners: list[Seat | None] = field(init=False)
    free_slots: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.owners = [None] * self.cache.rows
        self.free_slots = list(range(self.slots))[::-1]

    @property
    def sizes(self) -> list[int]:
        """Numbers of rows that a batch may have."""
        rows = self.cache.rows
        if self.exact:
            return list(range(1, rows + 1))
        return [*(size for size in BUCKETS if size < rows), rows]

    def take(self, rows: int, base: int) -> Seat:
        """The first free places. Raises `IndexError` when there are not as many."""
        free = [row for row, owner in enumerate(self.owners) if owner is None][:rows]
        if len(free) < rows or not self.free_slots:
            raise IndexError(f"{rows} rows and a slot are wanted, {len(free)} and {len(self.free_slots)} are free")
        seat = Seat(self.free_slots.pop(), free, base)
        for row in free:
            self.owners[row] = seat
        return seat

    def leave(self, seat: Seat) -> None:
        """Its places are free at once: whatever is under way on them reaches the device before their next use."""
        self.free_slots.append(seat.slot)
        for row in seat.rows:
            self.owners[row] = None

    def together(self, speaking: Sequence[Seat]) -> int:
        """Bring their rows into the first rows, if that makes the batch smaller; the size of the batch."""
        wanted = {id(seat) for seat in speaking}
        size = bucket(sum(len(seat.rows) for seat in speaking), self.sizes)
        beyond = [row for row in range(size, self.cache.rows) if id(self.owners[row]) in wanted]
        places = iter([row for row in range(size) if id(self.owners[row]) not in wanted])
        for row in reversed(beyond):
            self._move(row, next(places))
        return size

    def _move(self, source: int, target: int) -> None:
        mover, other = self.owners[source], self.owners[target]
        assert mover is not None
        if other is None:
            self.cache.move(source, target, mover.next_position)
        else:
            self.cache.swap(source, target, max(mover.next_position, other.next_position))
            other.rows[other.rows.index(target)] = source
        mover.rows[mover.rows.index(source)] = target
        self.owners[source], self.owners[target] = other, mover
