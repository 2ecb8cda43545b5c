"""The decode loop: many streams at once through one T3, a few steps at a time.

A stream has a `Seat`: a slot of small state (last token, parameters, what was said, where in the text it is) in tensors
on the device, and rows of the KV cache. `admit` prefills everything but the last input; a step feeds each stream's last
token, and samples the next, all on the device. `launch` queues ``steps`` of them and a copy of what they made; `Round`
waits for that copy. While one round is waited for the next can be queued already, so that the device never waits for
Python. Nobody looks whether speech has ended before the round is there: what a stream makes after its end is dropped.

A step is two pieces of work of fixed shape, `_forward` (rows × cache length) and `_sample` (entries): with graphs both
are captured for every size that can occur, at warm-up. Without, the same functions are called on the exact sizes; on a
CPU the first is a compiled one (`cpu_step`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.engines.chatterbox.attention import Followed, Frame, decide, follow, replay
from pipeline.engines.chatterbox.backbone import Cache, Heads, Pass, T3Net
from pipeline.engines.chatterbox.conditionals import T3Conditionals
from pipeline.engines.chatterbox.conditioning import Conditioning
from pipeline.engines.chatterbox.cpu_step import MOST_ROWS, compiled
from pipeline.engines.chatterbox.graphs import Graphs
from pipeline.engines.chatterbox.prefixes import Prefixes
from pipeline.engines.chatterbox.rounds import Round
from pipeline.engines.chatterbox.sampling import (
    MOST,
    PARAMETERS,
    Parameters,
    Sampling,
    choose,
    log_exponential,
    processed,
    row_of,
    scattered,
    seed_keys,
)
from pipeline.engines.chatterbox.seats import Seat, Seats, bucket
from pipeline.engines.chatterbox.speaking import Told
from pipeline.engines.chatterbox.variants import START_SPEECH

LENGTH_STEP = 64
"""Cache lengths looked at are multiples of this: attention kernels want aligned masks."""


@dataclass(frozen=True)
class Sizes:
    """``streams`` at once; the longest conditioning prefix, text and speech, in tokens; ``steps`` a round."""

    streams: int
    prefix_tokens: int
    text_tokens: int
    speech_tokens: int
    steps: int

    @property
    def positions(self) -> int:
        """Of the cache. A stream that has ended is found out two rounds later at most, and steps on till then."""
        wanted = self.prefix_tokens + self.text_tokens + self.speech_tokens + 2 * self.steps + 2
        return -(-wanted // LENGTH_STEP) * LENGTH_STEP


@dataclass(frozen=True)
class Kind:
    """How a variant decodes. ``twice``: start of speech is fed twice, as the stock package does it in all but Turbo;
    ``heads``: whose attention is followed; ``analyzed``: whether it decides about the end."""

    turbo: bool
    twice: bool
    guided: bool
    heads: Heads = ()
    analyzed: bool = False


FIELDS = ("token", "before", "sampled", "base", "begin", "size")
"""Of a slot: its last token and the one before, how many it has sampled, the cache position of its next input had it
sampled none, and where its text begins in the cache and how long it is."""

SAMPLED = FIELDS.index("sampled")


class Decoder:
    """See above. All methods belong to one thread."""

    def __init__(
        self, net: T3Net, conditioning: Conditioning, kind: Kind, sizes: Sizes, graphs: bool, prefix_bytes: int
    ) -> None:
        self.net, self.kind, self.sizes = net, kind, sizes
        self.prefixes = Prefixes(net, conditioning, prefix_bytes)
        weight = net.speech_emb.weight
        self.device, self.dtype = weight.device, weight.dtype
        rows = sizes.streams * (2 if kind.guided else 1)
        self.cache = Cache(net.backbone.shape, rows, sizes.positions, self.device, self.dtype)
        self.seats = Seats(self.cache, sizes.streams, exact=self.device.type != "cuda" and not graphs)
        self.graphs = Graphs(graphs)
        self.vocabulary = net.head.out_features
        self.cpu_step = compiled(net, self.cache, kind.heads)
        self._make_state(rows, weight.shape[0])
        self._plan: tuple[object, ...] = ()

    def _make_state(self, rows: int, speech_ids: int) -> None:
        """State by slot, one more than there are: the last is nobody's, for the rest of a batch."""
        slots, where = self.sizes.streams + 1, self.device
        self._state = torch.zeros(slots, len(FIELDS), dtype=torch.int64, device=where)
        self._state[:, :2], self._state[:, FIELDS.index("size")] = START_SPEECH, 8
        self._parameters = torch.ones(slots, PARAMETERS, device=where)
        self._keys = torch.zeros(slots, 2, dtype=torch.int32, device=where)
        self._factor = torch.ones(slots, self.vocabulary, device=where)
        self._known = Followed.zeros(slots, where)
        self._ids = scattered(self.vocabulary, where)
        self._entries = torch.arange(rows, device=where)
        self._offsets = torch.arange(self.sizes.steps, device=where)
        # What a step reads of the plan, and leaves for the next piece of work: always in the same place.
        self._places = torch.zeros(5, rows, dtype=torch.int64, device=where)
        self._logits = torch.zeros(rows, self.vocabulary, device=where)
        columns = self.sizes.prefix_tokens + self.sizes.text_tokens
        self._attention = torch.zeros(rows, columns, device=where) if self.kind.heads else None
        self._noise = torch.zeros(rows, self.sizes.steps, self.vocabulary, device=where)
        self._noise_from = torch.zeros(rows, dtype=torch.int64, device=where)
        self._made = torch.zeros(3, rows, dtype=torch.int64, device=where)

    # ----------------------------------------------------------------------- admission

    @torch.inference_mode()
    def admit(
        self,
        voice: T3Conditionals,
        exaggeration: float,
        text: Sequence[int],
        history: Sequence[int],
        sampling: Sampling,
    ) -> tuple[Seat, list[Told]]:
        """Seat a stream that goes on after ``history``; what is told of the tokens in it.

        ``text``: with its start and stop tokens. Raises `IndexError` when there is no free place.
        """
        prefix = self.prefixes.of(voice, exaggeration)
        guided = self.kind.guided and sampling.cfg_weight > 0
        seat = self.seats.take(2 if guided else 1, prefix.shape[3] + len(text) + self.kind.twice)
        try:
            attention = self._prefill(seat, prefix, text, history)
            self._write_state(seat, prefix.shape[3], len(text), history, sampling)
            told = self._retrace(seat, attention, prefix.shape[3], len(text), history)
        except BaseException:
            self.seats.leave(seat)
            raise
        return seat, told

    def _prefill(
        self, seat: Seat, prefix: torch.Tensor, text: Sequence[int], history: Sequence[int]
    ) -> torch.Tensor | None:
        """Everything but the last input into the cache; attention of the conditional row, (inputs, length)."""
        for row in seat.rows:
            self.cache.put(row, prefix)
        ids = torch.tensor(text, device=self.device)
        spoken = [START_SPEECH] * self.kind.twice + ([START_SPEECH, *history[:-1]] if history else [])
        places = [0] * self.kind.twice + list(range(len(history)))
        speech = self.net.speech(
            *(torch.tensor(one, dtype=torch.int64, device=self.device) for one in (spoken, places))
        )
        inputs = [torch.cat((self.net.text(ids, row == seat.rows[0]), speech)) for row in seat.rows]
        x, first = torch.stack(inputs), prefix.shape[3]
        positions = torch.arange(first, first + x.shape[1], device=self.device).expand(len(seat.rows), -1)
        watched = self.kind.heads if history else ()
        run = Pass(
            self.cache,
            positions,
            self._length(first + x.shape[1]),
            rows=torch.tensor(seat.rows, device=self.device),
            watched=watched,
        )
        self.net.backbone(x, run)
        return None if run.attention is None else run.attention[0] / len(watched)

    def _write_state(self, seat: Seat, begin: int, size: int, history: Sequence[int], sampling: Sampling) -> None:
        slot, seat.sampled, seat.most = seat.slot, len(history), sampling.most
        spoken = [START_SPEECH, *history]
        before = spoken[-2] if history else START_SPEECH
        state = [spoken[-1], before, len(history), seat.base, begin, size]
        self._state[slot] = torch.tensor(state, device=self.device)
        self._parameters[slot] = torch.tensor(row_of(sampling, self.vocabulary), device=self.device)
        self._keys[slot] = torch.tensor(seed_keys(sampling.seed), dtype=torch.int32, device=self.device)
        said = history if history and self.kind.turbo else spoken
        self._factor[slot] = 1.0
        self._factor[slot, torch.tensor(sorted(set(said)), device=self.device)] = sampling.repetition_penalty

    def _retrace(
        self, seat: Seat, attention: torch.Tensor | None, begin: int, size: int, history: Sequence[int]
    ) -> list[Told]:
        """What was known after the history, from the attention that its prefill gave."""
        known, places = Followed.zeros(1, "cpu"), [(0, False)] * len(history)
        if attention is not None:
            known, places = replay(attention[size + self.kind.twice :, : begin + size].float().cpu(), begin)
        for store, value in zip(self._known.parts(), known.parts(), strict=True):
            store[seat.slot] = value[0].to(self.device)
        return [Told(token, *place) for token, place in zip(history, places, strict=True)]

    def leave(self, seat: Seat) -> None:
        """Free its places."""
        self.seats.leave(seat)

    # ----------------------------------------------------------------------- steps

    @torch.inference_mode()
    def launch(self, speaking: Sequence[Seat]) -> Round:
        """Queue a round for these seats; the others stay as they are."""
        rows = self.seats.together(speaking)
        entries = len(speaking) if self.seats.exact else rows
        self._write_plan(speaking, rows, entries)
        length = self._length(max(seat.next_position for seat in speaking) + self.sizes.steps)
        most = max(seat.most for seat in speaking)
        made = []
        self.graphs.run(("noise", entries), lambda: self._prepare_noise(entries))
        for _ in range(self.sizes.steps):
            self.graphs.run(("forward", rows, length), lambda: self._forward(rows, length))
            self.graphs.run(("sample", entries, most), lambda: self._sample(entries, most))
            made.append(self._made[:, :entries].clone())
        for seat in speaking:
            seat.sampled += self.sizes.steps
        return Round(torch.stack(made), list(speaking))

    def _write_plan(self, speaking: Sequence[Seat], rows: int, entries: int) -> None:
        """Whose each row is; slot, conditional row, unconditional row and life of each entry."""
        nobody = self.sizes.streams
        owners = [nobody if owner is None else owner.slot for owner in self.seats.owners[:rows]]
        idle = entries - len(speaking)
        plan = (
            owners,
            [seat.slot for seat in speaking] + [nobody] * idle,
            [seat.rows[0] for seat in speaking] + [0] * idle,
            [seat.rows[-1] for seat in speaking] + [0] * idle,
            [1] * len(speaking) + [0] * idle,
        )
        if plan == self._plan:
            return
        self._plan = plan
        table = torch.tensor([line + [0] * (rows - len(line)) for line in plan], pin_memory=self.device.type == "cuda")
        self._places[:, :rows].copy_(table, non_blocking=True)

    def _prepare_noise(self, entries: int) -> None:
        """Chance for the round: it depends on nothing that is sampled in it."""
        slot = self._places[1, :entries]
        sampled = self._state[slot, SAMPLED]
        self._noise_from[:entries] = sampled
        positions = sampled[:, None] + self._offsets
        self._noise[:entries] = log_exponential(self._keys[slot], positions, self._ids)

    def _forward(self, rows: int, length: int) -> None:
        """Each row's last token through the layers: logits, and attention where it is followed."""
        token, _, sampled, base, _, _ = self._state[self._places[0, :rows]].unbind(1)
        x, positions = self.net.speech(token, sampled), base + sampled
        if self.cpu_step is not None and rows <= MOST_ROWS:
            attention = None if self._attention is None else self._attention[:rows]
            self.cpu_step(x, positions, self._logits[:rows], attention)
            return
        run = Pass(self.cache, positions[:, None], length, watched=self.kind.heads)
        hidden = self.net.backbone(x[:, None], run)
        self._logits[:rows] = self.net.head(hidden[:, 0])
        if self._attention is not None and run.attention is not None:
            columns = min(length, self._attention.shape[1])
            self._attention[:rows, :columns] = run.attention[:, 0, :columns]

    def _sample(self, entries: int, most: int) -> None:
        """Each entry's next token from its logits, and its state with it."""
        slot, row, other, alive = self._places[1:, :entries].unbind(0)
        live, state = alive.bool(), self._state[slot]
        token, before, sampled, base, begin, size = state.unbind(1)
        by = Parameters.of(self._parameters[slot])
        logits = self._logits[row]
        if self.kind.guided:
            logits = logits + by.weight[:, None] * (logits - self._logits[other])
        if self._attention is not None:
            frame = Frame(self._attention[row] / len(self.kind.heads), begin, size, sampled)
            logits = self._follow(slot, live, logits, frame, token, before)
        logits = processed(logits, self._factor[slot], by, self.kind.turbo, most)
        step = (sampled - self._noise_from[:entries]).clamp(0, self.sizes.steps - 1)
        chosen = choose(logits, by.chance, self._noise[self._entries[:entries], step])
        self._made[0, :entries] = chosen
        chosen = chosen.clamp(min=0)
        if self.kind.turbo:  # the stock package hands over the start of speech only before there is anything else
            start = self._factor[slot, START_SPEECH]
            self._factor[slot, START_SPEECH] = torch.where(live & (sampled == 0), 1.0, start)
        self._factor[slot, chosen] = torch.where(live, by.penalty, self._factor[slot, chosen])
        following = torch.stack((chosen, token, sampled + 1, base, begin, size), dim=1)
        self._state[slot] = torch.where(live[:, None], following, state)

    def _follow(
        self,
        slot: torch.Tensor,
        live: torch.Tensor,
        logits: torch.Tensor,
        frame: Frame,
        token: torch.Tensor,
        before: torch.Tensor,
    ) -> torch.Tensor:
        """Where in the text each entry is; its logits with what that decides."""
        old = Followed(*(part[slot] for part in self._known.parts()))
        known, place, certain = follow(frame, old)
        entries = slot.shape[0]
        self._made[1, :entries], self._made[2, :entries] = known.place, certain
        if self.kind.analyzed:
            logits = decide(logits, frame, known, place, token, before)
        for store, value, was in zip(self._known.parts(), known.parts(), old.parts(), strict=True):
            alive = live if value.dim() == 1 else live[:, None]
            store[slot] = torch.where(alive, value, was)
        return logits

    # ----------------------------------------------------------------------- graphs

    def _length(self, wanted: int) -> int:
        """How much of the cache to look at: without graphs what is needed, with graphs a length that was captured."""
        exact = -(-wanted // LENGTH_STEP) * LENGTH_STEP
        if self.graphs.active:
            exact = bucket(wanted, self.lengths)
        return min(exact, self.sizes.positions)

    @property
    def lengths(self) -> list[int]:
        """Cache lengths that graphs are captured for."""
        return [*(size for size in (256, 512, 768, 1024, 1536) if size < self.sizes.positions), self.sizes.positions]

    def works(self) -> list[tuple[str, int, int]]:
        """Everything to capture: ("forward", rows, length), ("sample", entries, most), ("noise", entries, 0)."""
        sizes = self.seats.sizes
        forward = [("forward", rows, length) for rows in sizes for length in self.lengths]
        sample = [("sample", entries, most) for entries in sizes for most in MOST]
        return forward + sample + [("noise", entries, 0) for entries in sizes]

    @torch.inference_mode()
    def capture(self, work: tuple[str, int, int]) -> None:
        """Capture one of `works`. Only while nobody is seated: it runs on nobody's slot."""
        name, size, detail = work
        self._places.zero_()
        self._places[:2] = self.sizes.streams
        self._plan = ()
        if name == "forward":
            self.graphs.capture(work, lambda: self._forward(size, detail))
        elif name == "noise":
            self.graphs.capture((name, size), lambda: self._prepare_noise(size))
        else:
            self.graphs.capture(work, lambda: self._sample(size, detail))
