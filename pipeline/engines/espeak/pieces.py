"""What travels from the token half to the audio half: one clause, or a part of a long one, a line.

A token is a word of `Piece.phonemes`. A piece also holds where the token half goes on after it, so
that a successor needs nothing but the pieces made so far.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pipeline.engines.base import EngineError

Ending = Literal["pause", "join", "end"]


class Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``words`` words of a clause that begins at character ``at`` of the clean text.

    ``phonemes`` are as `spelling.respell` makes them, ``terminator`` ends them. What follows is the ``pause``
    that belongs to it, or more speech at once (``join``), or nothing (``end``: an echo dies away).
    It is part ``part`` of ``parts`` of its clause, ``next`` is where the next begins.
    """

    phonemes: str
    terminator: str
    ending: Ending
    words: int
    at: int
    part: int
    parts: int
    next: int


_decoder = msgspec.json.Decoder(Piece)


def encode(piece: Piece) -> bytes:
    """A line of JSON."""
    return msgspec.json.encode(piece) + b"\n"


def decode(data: bytes) -> list[Piece]:
    """Pieces that were joined in order. Raises `EngineError` for anything else."""
    try:
        pieces = [_decoder.decode(line) for line in data.splitlines()]
    except msgspec.DecodeError as error:
        raise EngineError(f"tokens: not made by espeak's token half: {error}") from error
    if any(piece.words != len(piece.phonemes.split()) for piece in pieces):
        raise EngineError("tokens: not made by espeak's token half: a piece counts its words wrongly")
    return pieces
