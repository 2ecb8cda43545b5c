"""Where in the text T3 is while it speaks, from the attention of three heads; and what that says about the end.

In the Llama models the heads `ALIGNED` look at the text token that is being spoken. The multilingual v2 model needs
that watched: the stock package forbids the end of speech while text is left and forces it when the model lingers on
the last tokens, goes back after them or says a token twice. `follow` and `decide` are those rules as tensor operations,
one entry a stream, so that they run on the device with everything else. A *frame* is one token to be sampled.

All of a frame's attention beyond text token ``frame`` is left out, as in the stock package: speech can't be further
in the text than it has tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.engines.chatterbox.backbone import Heads, Shape
from pipeline.engines.chatterbox.variants import STOP_SPEECH

ALIGNED: Heads = ((12, 15), (13, 11), (9, 2))
ALIGNED_LAYERS = 30
"""Of the model in which these heads were found."""

_FURTHEST_BACK, _FURTHEST_ON = -4, 7
_END_TOKENS = 3
_SHORTEST_TEXT = 5
_LINGERED = 5.0
_CERTAIN_SHARE = 0.3
_NEAR = 2
_BARRED = -(2.0**15)


def aligned_heads(shape: Shape) -> Heads:
    """Those of `ALIGNED` that a model of this shape has."""
    return tuple((layer, head) for layer, head in ALIGNED if layer < shape.layers and head < shape.heads)


@dataclass
class Followed:
    """What is known of each entry so far. ``place``: int64, the text token being spoken; ``complete``: bool, whether
    the end of the text was reached; since then ``lingered`` (entries, 3) and ``returned``: attention to the last three
    text tokens and, at its largest, to those before the last five."""

    place: torch.Tensor
    complete: torch.Tensor
    lingered: torch.Tensor
    returned: torch.Tensor

    @classmethod
    def zeros(cls, entries: int, device: torch.device | str) -> Followed:
        """At the beginning of the text."""
        return cls(
            torch.zeros(entries, dtype=torch.int64, device=device),
            torch.zeros(entries, dtype=torch.bool, device=device),
            torch.zeros(entries, _END_TOKENS, device=device),
            torch.zeros(entries, device=device),
        )

    def parts(self) -> tuple[torch.Tensor, ...]:
        """Its tensors, in a fixed order."""
        return self.place, self.complete, self.lingered, self.returned


@dataclass
class Frame:
    """One row of attention an entry: float32 (entries, columns). ``begin`` and ``size`` (entries,) say where its text
    lies in the columns, ``number`` which frame it is."""

    row: torch.Tensor
    begin: torch.Tensor
    size: torch.Tensor
    number: torch.Tensor


def follow(frame: Frame, known: Followed) -> tuple[Followed, torch.Tensor, torch.Tensor]:
    """What is known with this frame; the text token it looks at (int64) and whether it clearly does (bool)."""
    at = torch.arange(frame.row.shape[1], device=frame.row.device) - frame.begin[:, None]
    row = torch.where((at >= 0) & (at < frame.size[:, None]) & (at <= frame.number[:, None]), frame.row, 0.0)
    place = row.argmax(dim=-1) - frame.begin
    place = place.clamp(min=0)
    leap = place - known.place
    moved = torch.where((leap > _FURTHEST_BACK) & (leap < _FURTHEST_ON), place, known.place)
    last = torch.arange(_END_TOKENS, device=row.device) + (frame.begin + frame.size - _END_TOKENS)[:, None]
    before = torch.where(at < (frame.size - _SHORTEST_TEXT)[:, None], row, 0.0).amax(dim=-1)
    now = Followed(
        place=moved,
        complete=known.complete | (moved >= frame.size - _END_TOKENS),
        lingered=known.lingered + torch.where(known.complete[:, None], row.gather(1, last), 0.0),
        returned=known.returned + torch.where(known.complete, before, 0.0),
    )
    near = torch.where((at - moved[:, None]).abs() <= _NEAR, row, 0.0).sum(dim=-1)
    return now, place, (near >= _CERTAIN_SHARE) & (place == moved)


def decide(
    logits: torch.Tensor, frame: Frame, known: Followed, place: torch.Tensor, token: torch.Tensor, before: torch.Tensor
) -> torch.Tensor:
    """Logits with the end of speech barred or forced. ``token`` is the last one, ``before`` the one before it."""
    barred = (place < frame.size - _END_TOKENS) & (frame.size > _SHORTEST_TEXT)
    forced = (known.lingered.amax(dim=-1) >= _LINGERED) | (known.returned > _LINGERED)
    forced = forced | ((frame.number >= 2) & (token == before))
    ends = torch.arange(logits.shape[-1], device=logits.device) == STOP_SPEECH
    logits = torch.where(barred[:, None] & ends, _BARRED, logits)
    return torch.where(forced[:, None], torch.where(ends, -_BARRED, _BARRED), logits)


def replay(rows: torch.Tensor, begin: int) -> tuple[Followed, list[tuple[int, bool]]]:
    """What is known after frames 0 … n − 1, and place and certainty of each.

    ``rows``: float32 (n, columns) on the CPU, whose text is all that there is from ``begin`` on.
    """
    size = rows.shape[1] - begin
    known, places = Followed.zeros(1, "cpu"), []
    for number in range(rows.shape[0]):
        frame = Frame(rows[number : number + 1], torch.tensor([begin]), torch.tensor([size]), torch.tensor([number]))
        known, _, certain = follow(frame, known)
        places.append((int(known.place), bool(certain)))
    return known, places
