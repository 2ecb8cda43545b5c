"""One stream on its way out: from what T3 is told to have sampled to the steps that are handed out.

Plain data, no tensors. Everything is decided token by token in order, so that it comes out the same whatever rounds the
tokens came in, and the same again when a successor takes the tokens handed out so far as history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ipc.messages import TokenSpan
from pipeline.engines.base import StreamError, TokenStep
from pipeline.engines.chatterbox import wire
from pipeline.engines.chatterbox.alignment import Words
from pipeline.engines.chatterbox.guards import Guard
from pipeline.engines.chatterbox.variants import (
    SILENCE_TOKEN,
    SPEECH_TOKENS,
    STOP_SPEECH,
    TOKENS_PER_S,
    Variant,
)

NOTHING_LEFT = -1
"""Instead of a token: every id was filtered out."""

NOT_A_NUMBER = -2
"""Instead of a token: the logits are broken."""


@dataclass(frozen=True)
class Told:
    """Per token: its id (or one of the two above), the text token it speaks, whether that is certain."""

    token: int
    place: int = 0
    certain: bool = False


@dataclass(eq=False)
class Stream:
    """A segment being spoken. ``ids``: all that T3 made, of which the first ``sent`` were handed out; ``sounds`` and
    ``heard`` count those of either that sound. ``spans`` wait for their tokens to be handed out. ``speed``: of the
    sound, which the audio half stretches.
    """

    number: int
    variant: Variant
    words: Words
    guard: Guard
    speed: float = 1.0
    ids: list[int] = field(default_factory=list)
    sent: int = 0
    sounds: int = 0
    heard: int = 0
    spans: list[TokenSpan] = field(default_factory=list)
    ended: bool = False
    note: str = ""
    broken: str = ""

    def recall(self, history: Sequence[Told]) -> None:
        """Take what was handed out before; it is not handed out again."""
        self.take(history)
        self.sent, self.heard = len(self.ids), self.sounds
        self.spans.clear()

    def take(self, told: Sequence[Told]) -> None:
        """The next tokens; what comes after the end is dropped."""
        for one in told:
            if self.ended:
                return
            self._take(one)

    def _take(self, one: Told) -> None:
        if one.token == NOT_A_NUMBER:
            self.ended, self.broken = True, f"T3's output is no number at token {len(self.ids)}"
        elif one.token == NOTHING_LEFT:
            self.ended, self.note = True, f"stopped after {len(self.ids)} tokens: no token was left to choose"
        elif one.token == STOP_SPEECH and (self.ids or not self.variant.turbo):
            # The stock Turbo does not look at its first token: a stop there is one more token that is no sound.
            self.ended = True
        else:
            self._keep(one)

    def _keep(self, one: Told) -> None:
        self.ids.append(one.token)
        if one.token < SPEECH_TOKENS:
            if span := self.words.at(self.sounds, one.place, one.certain):
                self.spans.append(span)
            self.sounds += 1
        self.note = self.guard.look(one.token)
        self.ended = bool(self.note)

    def step(self) -> TokenStep | StreamError:
        """What can be handed out now. The last one is final."""
        if self.broken:
            return StreamError(self.number, self.broken)
        waiting = self.ids[self.sent :]
        passed, count = self._pass(waiting)
        data = waiting[:passed]
        self.sent, self.heard = self.sent + passed, self.heard + count
        spans = tuple(span for span in self.spans if span.first_token < self.heard)
        self.spans = self.spans[len(spans) :]
        silence = self.variant.end_silence_tokens if self.ended else 0
        return TokenStep(
            stream=self.number,
            tokens=count + silence,
            data=wire.encode(data + [SILENCE_TOKEN] * silence),
            seconds=(count + silence) / TOKENS_PER_S / self.speed,
            alignment=spans,
            final=self.ended,
            note=self._final_note() if self.ended else "",
        )

    @staticmethod
    def _pass(waiting: Sequence[int]) -> tuple[int, int]:
        """How many ids may go, and how many of them sound: ids that are no sound go with the next one that is."""
        passed = count = 0
        for place, token in enumerate(waiting, start=1):
            if token < SPEECH_TOKENS:
                passed, count = place, count + 1
        return passed, count

    def _final_note(self) -> str:
        return self.note or ("" if self.sounds else "the model said nothing to this text")
