"""Random schedules: what programs ask for and what goes wrong, as data made from a seed."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.pipeline.simulated.setup import Setup

PAUSE = "[pause:80ms] "
LETTERS = "".join(
    chr(code)
    for code in range(ord("A"), 4096)
    if unicodedata.category(chr(code)) in ("Ll", "Lu")
    and unicodedata.normalize("NFKC", chr(code)) == chr(code)
    and chr(code) not in PAUSE
)
"""Each is used once in a schedule, so that sound tells whose it is and from where in the text."""


@dataclass(frozen=True)
class Action:
    """Something that happens ``at_s`` after the start: a request of a program, or a fault."""

    at_s: float
    what: str
    who: str = ""
    more: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """One run."""

    setup: Setup
    actions: tuple[Action, ...]

    def __str__(self) -> str:
        default = Setup()
        setup = ", ".join(
            f"{name}={value!r}" for name, value in vars(self.setup).items() if value != getattr(default, name)
        )
        lines = [f"  {a.at_s:7.3f} s  {a.what:16} {a.who:10} {' '.join(map(repr, a.more))}" for a in self.actions]
        return "\n".join([f"Setup({setup})", *lines])


class _Maker:
    """Makes the actions of one schedule."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.letters: Iterator[str] = iter(self.rng.sample(LETTERS, len(LETTERS)))
        self.actions: list[Action] = []
        self.ids: list[tuple[str, str, str]] = []
        """(id, program, output) of each utterance."""
        self.at_s = 0.0

    def make(self) -> Schedule:
        rng = self.rng
        setup = self._setup()
        calm = rng.random() < 0.1
        for number in range(rng.randint(1, 5)):
            self._utterance(number)
            for _ in range(rng.choice((0, 1, 1, 2, 3))):
                self._later(0.5)
                self._meddle(calm)
            self._later(rng.choice((0.01, 0.3, 1.5)))
        if rng.random() < 0.1:
            self._add("drain")
        return Schedule(setup, tuple(sorted(self.actions, key=lambda action: action.at_s)))

    def _setup(self) -> Setup:
        rng = self.rng
        ring_s = rng.choice((1.0, 2.0, 4.0))
        return Setup(
            seed=self.seed,
            t3=rng.choice((1, 1, 2)),
            s3gen=rng.choice((1, 1, 2)),
            ring_s=ring_s,
            stream_ring_s=rng.choice((0.5, 2.0, 2.0)),
            ahead_s=rng.choice((0.5, 0.75 * ring_s)),
            first_chunk=rng.choice((1, 4)),
            chunk=rng.choice((4, 12, 25)),
            ladder=rng.random() < 0.7,
            lookahead=rng.choice((0, 0, 2)),
            t3_batch=rng.choice((1, 2, 8)),
            t3_tokens=rng.choice((2, 5, 12)),
            t3_step_s=rng.choice((0.005, 0.05, 0.2)),
            render_ratio=rng.choice((0.02, 0.2, 0.6)),
            guess=rng.choice((1.0, 1.0, 0.7, 1.5)),
            empty_final=rng.random() < 0.3,
            block_s=rng.choice((0.05, 0.1)),
            device_s=rng.choice((0.0, 0.0, 0.05)),
            latency_s=rng.choice((0.0003, 0.0003, 0.01)),
            load_s=rng.choice((0.05, 0.05, 0.6)),
            restart_s=rng.choice((0.05, 0.3)),
            streams=rng.choice((1, 3)),
            detach_s=2.0,
            idle_s=rng.choice((0.8, 3.0)),
            flush_ms=rng.choice((100, 400)),
            pause_ms=rng.choice((0, 0, 50)),
            free_pace=rng.random() < 0.2,
        )

    def _later(self, most_s: float) -> None:
        self.at_s += round(self.rng.random() * most_s, 3)

    def _add(self, what: str, who: str = "", *more: Any, after_s: float = 0.0) -> None:
        self.actions.append(Action(round(self.at_s + after_s, 3), what, who, more))

    def _words(self, words: int) -> str:
        rng, text = self.rng, ""
        for _ in range(words):
            text += "".join(next(self.letters) for _ in range(rng.randint(1, 6)))
            text += rng.choice((" ", " ", ", ", ". ", "; ", "! "))
        if rng.random() < 0.1:
            text += PAUSE
        return text

    def _utterance(self, number: int) -> None:
        rng = self.rng
        id_, program = f"u{number}", rng.choice("ppq")
        output = rng.choice(("speaker", "speaker", "stream"))
        if output == "stream":
            program = rng.choice(("r", "s", program))
        priority = rng.choice(("low", "normal", "normal", "normal", "high", "interrupt"))
        conversation = rng.choice("xxy")
        growing = rng.random() < 0.35
        text = self._words(rng.choice((0, 1, 3)) if growing else rng.choice((1, 3, 6, 10)))
        self.ids.append((id_, program, output))
        self._add("speak", program, id_, text, output, conversation, priority, not growing)
        if growing:
            later_s = 0.0
            for _ in range(rng.randint(0, 4)):
                later_s += rng.choice((0.0, 0.05, 0.2, 0.6))
                self._add("text", program, id_, self._words(rng.randint(1, 3)), after_s=later_s)
                if rng.random() < 0.2:
                    self._add("flush", program, id_, after_s=later_s)
            if rng.random() < 0.8:
                self._add("end", program, id_, after_s=later_s + rng.choice((0.0, 0.3)))

    def _meddle(self, calm: bool) -> None:
        """One thing that goes wrong, or that a program asks for."""
        chance = self.rng.random()
        (self._ask if calm or chance < 0.35 else self._fault if chance < 0.85 else self._both)()

    def _ask(self) -> None:
        rng = self.rng
        id_, program, _ = rng.choice(self.ids)
        match rng.randrange(8):
            case 0 | 1:
                self._add("cancel", program, "id", id_)
            case 2:
                self._add("cancel", program, "conversation", rng.choice("xy"))
            case 3:
                self._add("cancel", program, "all")
            case 4:
                self._add("pause", program)
                self._add("resume", program, after_s=rng.random())
            case 5:
                self._add("deaf", rng.choice("pqrs"))
                self._add("listen", self.actions[-1].who, rng.choice((0.0, 0.05)), after_s=3 * rng.random())
            case 6:
                streams = [id_ for id_, _, output in self.ids if output == "stream"]
                if streams:
                    self._add("attach", rng.choice("rst"), rng.choice(streams))
            case 7:
                self._add("leave", rng.choice("rs"))
                if rng.random() < 0.7:
                    self._add("return", self.actions[-1].who, after_s=3 * rng.random())

    def _both(self) -> None:
        """Things that hurt most when they come together."""
        rng, role = self.rng, self.rng.choice(("t3", "s3gen"))
        match rng.randrange(5):
            case 0:  # the dispatcher dies while it carries a request out
                self._add("kill", "dispatcher", rng.randint(1, 6), 0)
                self._ask()
            case 1:  # a death is reported late, or the report is lost
                self._add(rng.choice(("cut", "slow")), "supervisor-0", 0.5, 0.2)
                self._add("kill", f"{role}-0", "now", 0.0, after_s=rng.choice((0.0, 0.005, 0.02)))
            case 2:  # a worker does not hear of a cancel before it has done more
                self._add("slow", "s3gen-0", 0.5, rng.choice((0.02, 0.1)))
                self._later(0.2)
                self._ask()
            case 3:  # what killed a worker is tried again alone, and is not wanted any more
                self._add("kill", f"{role}-0", rng.choice(("now", "step")), 0.0)
                self._later(0.8)
                self._ask()
            case 4:  # a new dispatcher meets a worker that is still busy for the old one
                self._add("stall", f"{role}-{rng.choice((0, 0, 1))}", 0.6)
                self._add("kill", "dispatcher", rng.randrange(6), 0)

    def _fault(self) -> None:
        rng = self.rng
        role = rng.choice(("t3", "s3gen", "s3gen"))
        index = rng.choice((0, 0, 1))
        match rng.randrange(12):
            case 0 | 1 | 2:
                moment = rng.choice(("now", "kept", "step")) if role == "t3" else rng.choice(_S3GEN_DEATHS)
                down_s = rng.choice((0.0, 0.0, 0.5))
                self._add("kill", f"{role}-{index}", moment, down_s)
            case 3 | 4 | 5:
                self._add("kill", "dispatcher", rng.randrange(12), rng.choice((0, 2, 8)))
            case 6:
                self._add("kill", "player-0", "now", 0.0)
            case 7:
                self._add("cut", rng.choice((f"{role}-{index}", "supervisor-0")))
            case 8:
                self._add("stall", rng.choice((f"{role}-{index}", "dispatcher")), rng.choice((0.05, 0.3, 1.0)))
            case 9:
                self._add("refuse", rng.choice((f"{role}-{index}", "supervisor-0")), rng.choice((0.2, 0.7)))
            case 10:
                self._add("slow", rng.choice((f"{role}-{index}", "supervisor-0")), 1.0, rng.choice((0.02, 0.2)))
            case 11:
                letters = [a.more[1] for a in self.actions if a.what in ("speak", "text")]
                found = [letter for letter in rng.choice(letters) if letter in LETTERS]
                if found and rng.random() < 0.5:
                    self._add(rng.choice(("poison", "bad")), role, rng.choice(found))


_S3GEN_DEATHS = ("now", "kept", "step", "span", "write")


def schedule(seed: int) -> Schedule:
    """The schedule of a seed."""
    return _Maker(seed).make()
