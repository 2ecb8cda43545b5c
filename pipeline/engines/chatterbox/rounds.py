"""What a decoder has queued, and what comes of it once the device is there."""

from __future__ import annotations

import torch

from pipeline.engines.chatterbox.seats import Seat
from pipeline.engines.chatterbox.speaking import Told


class Round:
    """What one `launch` makes: ``steps`` tokens for each of its seats, once they have arrived."""

    def __init__(self, made: torch.Tensor, seats: list[Seat]) -> None:
        self._seats = seats
        self._arrived: torch.cuda.Event | None = None
        if made.device.type == "cuda":
            self._table = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
            self._table.copy_(made, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._table = made.cpu()

    def wait(self) -> list[tuple[Seat, list[Told]]]:
        """Per seat what it was told, in order."""
        if self._arrived is not None:
            self._arrived.synchronize()
        lines: list[list[list[int]]] = self._table.tolist()
        return [
            (seat, [Told(tokens[entry], places[entry], bool(certain[entry])) for tokens, places, certain in lines])
            for entry, seat in enumerate(self._seats)
        ]
