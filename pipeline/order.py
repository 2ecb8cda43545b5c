"""Who speaks next: the order in which segments will enter an output's ring."""

from __future__ import annotations

from collections.abc import Iterator

from ipc.messages import SAMPLE_RATE
from pipeline.output import OutputState, Stint
from pipeline.state import Owner, State
from pipeline.utterance import PRIORITIES, Segment, Utterance

HEARD_SOON_SAMPLES = SAMPLE_RATE // 10
"""What the reader may have begun by the time a discard reaches it is not taken back."""


class Order:
    """The plan of every output."""

    def __init__(self, state: State) -> None:
        self.state = state

    def utterances(self, owner: Owner) -> Iterator[Utterance]:
        """The utterances of an output in the order in which they will enter its ring.

        A conversation's utterances keep their order; between conversations the higher priority
        goes first, then what has begun, then what came first.
        """
        lane = list(self.state.lanes.get(owner, ()))
        levels = self.levels(owner)
        output = self.state.outputs.get(owner)
        current = output.stints[-1].uid if output and output.stints else None
        while lane:
            heads: dict[tuple[bytes, str], Utterance] = {}
            for utterance in lane:
                heads.setdefault(utterance.conversation, utterance)
            able = [head for head in heads.values() if head.begun or self._has_work(head)]
            if not able:
                return
            best = min(
                able,
                key=lambda head: (
                    not _half_placed(head),
                    -levels[head.conversation],
                    head.uid != current,
                    head.order,
                ),
            )
            yield best
            if not best.cut_done:
                return
            lane.remove(best)

    def _has_work(self, utterance: Utterance) -> bool:
        return utterance.cut_done or bool(utterance.unrendered())

    def levels(self, owner: Owner) -> dict[tuple[bytes, str], int]:
        """How urgent each waiting conversation of an output is: as its most urgent utterance. Else a
        queued ``high`` would wait behind a ``low`` of its own conversation for ever."""
        levels: dict[tuple[bytes, str], int] = {}
        for utterance in self.state.lanes.get(owner, ()):
            levels[utterance.conversation] = max(levels.get(utterance.conversation, 0), utterance.level)
        return levels

    def yielding(self, output: OutputState, level: int) -> list[Stint]:
        """Stints at the ring's end, not begun to be heard, that yield to a higher priority; last first."""
        found: list[Stint] = []
        unheard = output.unheard(HEARD_SOON_SAMPLES)
        if not unheard or level <= PRIORITIES["low"]:
            return found
        levels = self.levels(output.owner)
        for stint in reversed(unheard):
            utterance = self.state.utterances.get(stint.uid)
            if utterance is None or max(utterance.level, levels.get(utterance.conversation, 0)) >= level:
                break
            found.append(stint)
        return found

    def plan(self, owner: Owner) -> Iterator[tuple[Utterance, Segment]]:
        """The segments of an output in the order in which they will enter its ring."""
        for utterance in self.utterances(owner):
            for segment in utterance.unrendered():
                yield utterance, segment


def _half_placed(utterance: Utterance) -> bool:
    """A segment of it stands in the ring in part: nothing can come before its rest."""
    unrendered = utterance.unrendered()
    return bool(unrendered) and unrendered[0].ring_start is not None
