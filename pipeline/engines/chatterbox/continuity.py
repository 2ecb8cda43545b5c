"""How a stream's chunks are made to continue each other. See docs/continuity.md for what each is worth.

``context``: each chunk sees the reference, the last tokens and *the mel frames that were made of them*, and continues
those; what was made is never made again. Cost per chunk is constant.
``overlap``: each chunk sees the reference and the last tokens, and makes their frames anew; the last of them are
blended with the ones made before. Constant cost. Without the blending this is what `chatterbox-streaming` does (its
``context_window`` of 50 tokens is `context_tokens`, its chunks the ladder), which also has no lookahead.
``recompute``: each chunk makes everything from the first token on and keeps what is new. Cost grows with the stream.
``masked``: the same with the networks' attention cut into seconds, so that what was made hardly changes when more
tokens come. Whether published weights sound right that way is not known: an experiment.

All of them take the noise by position in the stream, so that it never differs between two makings of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.variants import FRAMES_PER_TOKEN

METHODS = ("context", "overlap", "recompute", "masked")
CONTEXT_TOKENS = 25
BLENDED_TOKENS = 4


@dataclass(frozen=True)
class Window:
    """What to make for the tokens after ``done``: the sequence begins with ``first_token``, the first
    ``given_frames`` of its mel are known, and of the last ``revised_frames`` before ``done`` there are two versions to
    be blended."""

    first_token: int
    given_frames: int
    revised_frames: int
    chunked: bool


@dataclass(frozen=True)
class Continuity:
    """A method. ``context_tokens``: how many of the last tokens `context` and `overlap` see."""

    method: str = "context"
    context_tokens: int = CONTEXT_TOKENS

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise EngineError(f"continuity: {self.method!r} is not one of {', '.join(METHODS)}")
        if not 1 <= self.context_tokens <= 200:
            raise EngineError(f"context_tokens: {self.context_tokens} is not between 1 and 200")

    @property
    def windowed(self) -> bool:
        """Whether a chunk's cost depends on the chunk alone."""
        return self.method in ("context", "overlap")

    @property
    def revised_frames(self) -> int:
        """Frames at the end that the next chunk may still change; they cannot sound yet."""
        return FRAMES_PER_TOKEN * BLENDED_TOKENS if self.method == "overlap" else 0

    @property
    def given_frames(self) -> int:
        """Frames that must be kept to be given to the next chunk."""
        return FRAMES_PER_TOKEN * self.context_tokens if self.method == "context" else 0

    def window(self, done: int) -> Window:
        """For a chunk that begins at token ``done``."""
        first = max(0, done - self.context_tokens) if self.windowed else 0
        seen = FRAMES_PER_TOKEN * (done - first)
        return Window(
            first_token=first,
            given_frames=seen if self.method == "context" else 0,
            revised_frames=min(self.revised_frames, seen),
            chunked=self.method == "masked",
        )
