"""The state machine under attack: it is killed between any two of its commands, its messages are late,
workers die at any moment, and programs cancel, interrupt and push in whenever it suits least.

Whatever happens, what was said is heard once and in order, what was cancelled is not heard again, and
nothing is left behind: no stream in a worker, no slot, no record but the memory of the last event.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ipc.messages import (
    Attach,
    Cancel,
    Cancelled,
    End,
    Event,
    Failed,
    Finished,
    Flush,
    Internal,
    Pause,
    Request,
    Resume,
    Speak,
    Text,
)
from pipeline.config import Config
from pipeline.events import Command, Write

if "world" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("world", Path(__file__).with_name("world.py"))
    assert _spec
    assert _spec.loader
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["world"] = _module
    _spec.loader.exec_module(_module)
world_module = sys.modules["world"]
TOKEN_SAMPLES: int = world_module.TOKEN_SAMPLES

SHORT = "One is short. Two follows it, at once. Three."
LONG = (
    "The first sentence is not long. The second one, which is a little longer, follows it. "
    "Then comes a third; it has two parts. And the fourth ends the text."
)


def plain(text: str) -> str:
    return text.replace(" ", "").replace("\n", "")


class Attacked(world_module.World):  # type: ignore[misc, name-defined]
    """A world whose dispatcher dies after ``die_after`` commands (journal writes that belong together
    count as one), and whose messages take up to ``delay_steps`` steps, in order."""

    def __init__(self, *arguments: object, die_after: int = -1, delay_steps: int = 0, seed: int = 0, **more: object):
        self.left = die_after
        self.dying = False
        self.commands = 0
        self.rng = random.Random(seed)
        self.delay_steps = delay_steps
        self.late: dict[int, deque[tuple[float, Internal]]] = {}
        super().__init__(*arguments, **more)

    def _do(self, commands: list[Command]) -> None:
        write_before = False
        for command in commands:
            write = isinstance(command, Write)
            if not (write and write_before):
                self.commands += 1
                if self.left == 0:
                    self.dying, self.left = True, -1
                if self.left > 0:
                    self.left -= 1
            write_before = write
            if self.dying:
                return
            super()._do([command])

    def start_dispatcher(self) -> None:
        self.dying = False
        super().start_dispatcher()

    def kill_dispatcher(self) -> None:
        self.late.clear()
        super().kill_dispatcher()

    def revive(self) -> bool:
        """Start a successor if the dispatcher died; whether it did."""
        if not self.dying:
            return False
        self.kill_dispatcher()
        return True

    def ask(self, request: Request, client: bytes = b"me") -> None:
        """A request of a program that repeats itself when its dispatcher died over it."""
        self.request(request, client)
        if self.revive():
            self.request(request, client)
            self.revive()

    def _handle(self, worker: object, message: Internal) -> None:
        if not self.delay_steps:
            super()._handle(worker, message)
            return
        waiting = self.late.setdefault(worker.peer.pid, deque())  # type: ignore[attr-defined]
        at_s = max(
            waiting[-1][0] if waiting else 0.0,
            self.now_s + self.rng.randrange(self.delay_steps) * world_module.STEP_S,
        )
        waiting.append((at_s, message))

    def step(self) -> None:
        for worker in list(self.workers):
            waiting = self.late.get(worker.peer.pid, deque())
            while waiting and waiting[0][0] <= self.now_s:
                super()._handle(worker, waiting.popleft()[1])
        super().step()
        self.revive()
        self.check_heard()

    def check_heard(self) -> None:
        """Nobody is told that more was heard than was."""
        state = self.machine.state
        told = sum(u.heard_samples for u in state.utterances.values() if u.output == "speaker")
        heard = len(self.rings[0].heard) * TOKEN_SAMPLES
        over = {e.id: e.samples for _, e in self.events if isinstance(e, Finished) and e.id not in self.streamed}
        assert told + sum(over.values()) <= heard, "more was told to be heard than was heard"

    def stream_text(self, id_: str) -> str:
        return plain("".join(label[0] for label in self.streamed.get(id_, []) if label))

    def over(self) -> set[str]:
        return {e.id for _, e in self.events if is_last(e)}  # type: ignore[union-attr]

    def finish(self, *ids: str, limit_s: float = 120.0) -> None:
        """Until all of these are over and nothing is left of them."""
        self.run_until(lambda: set(ids) <= self.over() and not self.machine.state.utterances, limit_s)
        self.run(0.3)
        assert_nothing_left(self)


def is_last(event: Event) -> bool:
    return isinstance(event, Finished | Cancelled) or (isinstance(event, Failed) and event.final)


def assert_nothing_left(world: Attacked) -> None:
    state = world.machine.state
    assert not state.utterances
    assert not state.by_key
    assert not state.owners
    assert not state.segmenters
    assert set(state.outputs) == {None}
    assert state.outputs[None].free
    assert sorted(state.free_slots) == list(range(1, world.config.text.max_streams + 1))
    assert {owner: lane for owner, lane in state.lanes.items() if lane} == {}
    for member in state.crew.members.values():
        assert not member.streams, member
        assert member.alone is None
    for worker in world.workers:
        assert not getattr(worker, "streams", None), worker
    assert {kind for kind, *_ in world.records} <= {"DoneRecord"}


def config(**text: object) -> Config:
    return msgspec.structs.replace(Config(), text=msgspec.structs.replace(Config().text, **text))


# ---------------------------------------------------------------- a dispatcher killed after any command


def _two_outputs(world: Attacked) -> None:
    world.ask(Speak(id="a", text=SHORT))
    world.ask(Speak(id="s", text=SHORT, output="stream"), b"listener")
    world.finish("a", "s")
    assert plain(world.heard()) == plain(SHORT)
    assert world.stream_text("s") == plain(SHORT)


def _cancelled(world: Attacked) -> None:
    world.ask(Speak(id="a", text=LONG))
    world.ask(Speak(id="b", text=SHORT, conversation="b"))
    world.run(0.5)
    world.ask(Cancel(id="a"))
    before = plain(world.heard())
    world.finish("a", "b")
    assert plain(world.heard()) == before + plain(SHORT)


def _pushed_in(world: Attacked) -> None:
    world.ask(Speak(id="a", text=SHORT, conversation="a"))
    world.run(0.5)
    world.ask(Speak(id="b", text="Urgent news.", conversation="b", priority="high"))
    world.finish("a", "b")
    assert plain(world.heard()).replace("Urgentnews.", "") == plain(SHORT)


def _interrupted(world: Attacked) -> None:
    world.ask(Speak(id="a", text="This is being said right now.", conversation="a"))
    world.ask(Speak(id="b", text="Made ahead.", conversation="b"))
    world.run(0.5)
    world.ask(Speak(id="c", text="Stop!", conversation="c", priority="interrupt"))
    before = plain(world.heard())
    world.finish("a", "b", "c")
    assert plain(world.heard()) == before + "Stop!" + "Madeahead."


def _growing(world: Attacked) -> None:
    world.ask(Speak(id="a", text="", final=False))
    at = 0
    for length in (7, 2, 19, 11, 3, 30, 200):
        world.ask(Text(id="a", text=SHORT[at : at + length], offset=at))
        at += length
        world.run(0.1)
    world.ask(Flush(id="a"))
    world.ask(End(id="a"))
    world.finish("a")
    assert plain(world.heard()) == plain(SHORT)


SCENES = [_two_outputs, _cancelled, _pushed_in, _interrupted, _growing]


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__[1:])
def test_a_dispatcher_killed_between_any_two_commands_costs_nothing(scene: Callable[[Attacked], None]) -> None:
    whole = Attacked()
    begin = whole.commands
    scene(whole)
    broken = []
    for die_after in range(begin, whole.commands):
        try:
            scene(Attacked(die_after=die_after))
        except AssertionError as error:
            broken.append((die_after, str(error).split("\n")[0]))
    assert not broken, f"{len(broken)} of {whole.commands - begin} kills, such as {broken[:5]}"


# ---------------------------------------------------------------- anything at any step


def _at_every_step(act: Callable[[Attacked], None], steps: int = 60) -> None:
    """Two outputs speak; ``act`` comes after k steps, for each k."""
    for k in range(1, steps):
        world = Attacked()
        world.ask(Speak(id="a", text=SHORT))
        world.ask(Speak(id="s", text=SHORT, output="stream"), b"listener")
        for _ in range(k):
            world.step()
        act(world)
        world.finish("a", "s")
        if not any(isinstance(e, Cancelled) for _, e in world.events):
            assert plain(world.heard()).replace("News.", "") == plain(SHORT), f"after {k} steps"
            assert world.stream_text("s") == plain(SHORT), f"after {k} steps"


@pytest.mark.slow
@pytest.mark.parametrize("role", ["t3", "s3gen"])
def test_one_death_at_any_step_stops_nobody(role: str) -> None:
    _at_every_step(lambda world: world.kill(role))


@pytest.mark.slow
@pytest.mark.parametrize("roles", [("t3", "s3gen"), ("s3gen", "t3")])
def test_two_deaths_in_a_row_at_any_step_stop_nobody(roles: tuple[str, str]) -> None:
    def act(world: Attacked) -> None:
        for role in roles:
            world.kill(role)
            world.run(0.05)

    _at_every_step(act)


@pytest.mark.slow
def test_a_new_session_of_a_worker_at_any_step_stops_nobody() -> None:
    def act(world: Attacked) -> None:
        for role in ("s3gen", "t3"):
            worker = world.worker(role)
            worker.inbox.clear()
            worker.outbox.clear()
            worker.streams.clear()
            peer = worker.peer
            worker.peer = world_module.SimPeer(peer.role, peer.index, peer.pid, next(world.sessions))
            world._join(worker)

    _at_every_step(act)


@pytest.mark.slow
def test_cancel_and_death_at_any_step_leave_nothing() -> None:
    def act(world: Attacked) -> None:
        world.ask(Cancel(all=True))
        world.kill("s3gen")

    _at_every_step(act)


@pytest.mark.slow
def test_something_urgent_and_a_death_at_any_step_lose_nothing() -> None:
    def act(world: Attacked) -> None:
        world.ask(Speak(id="n", text="News.", conversation="n", priority="high"))
        world.step()
        world.kill("s3gen")

    _at_every_step(act)


# ---------------------------------------------------------------- random schedules


def _random_run(seed: int) -> None:
    rng = random.Random(seed)
    world = Attacked(workers=rng.choice([1, 1, 2, 3]), delay_steps=rng.choice([0, 0, 5, 20]), seed=seed)
    world.play_blocks = rng.choice([1, 1, 5])
    texts: dict[str, str] = {}
    cancelled: set[str] = set()
    speaker: list[str] = []
    clients = {}
    for number in range(rng.randint(2, 14)):
        id_, text = f"u{number}", f"<{number}>" + rng.choice([SHORT, LONG, "Hm.", "[pause:300ms] Late."])
        stream = rng.random() < 0.4
        clients[id_] = b"c%d" % rng.randrange(3)
        fields: dict[str, object] = {"conversation": rng.choice("xyz"), "output": "stream" if stream else "speaker"}
        fields["priority"] = rng.choice(["low", "normal", "normal", "high"])
        world.ask(Speak(id=id_, text=text, **fields), clients[id_])  # type: ignore[arg-type]
        texts[id_] = plain(text.replace("[pause:300ms] ", ""))
        if not stream:
            speaker.append(id_)
        for _ in range(rng.randrange(40)):
            world.step()
        match rng.randrange(9):
            case 0 | 1:
                world.kill(rng.choice(["t3", "s3gen"]))
            case 2:
                world.kill_dispatcher()
            case 3:
                world.left = rng.randrange(30)
            case 4:
                victim = rng.choice(list(texts))
                cancelled.add(victim)
                world.ask(Cancel(id=victim), clients[victim])
            case 5:
                world.ask(Pause() if rng.random() < 0.5 else Resume())
    world.ask(Resume())
    world.finish(*texts, limit_s=300)
    sound = plain(world.heard())
    # Two deaths at the same place make a segment a suspect that is given up, whoever killed.
    cancelled |= {e.id for e in world.events_of(Failed)}
    for id_ in speaker:
        if id_ not in cancelled:
            _assert_once(sound, texts[id_], id_)
    if not cancelled:
        assert len(sound) == sum(len(texts[id_]) for id_ in speaker), sound
    for id_ in set(texts) - set(speaker) - cancelled:
        assert world.stream_text(id_) == texts[id_], id_


def _assert_once(sound: str, text: str, id_: str) -> None:
    """The segments of a text are there in order, whatever was said in between."""
    at = 0
    for piece in text.replace(",", ",|").replace(".", ".|").replace(";", ";|").replace(">", ">|").split("|"):
        found = sound.find(piece, at)
        assert found >= 0, f"{id_}: {piece!r} is missing after {at} in {sound!r}"
        at = found + len(piece)
    tag = text[: text.index(">") + 1]
    assert sound.count(tag) == 1, f"{id_} is heard twice: {sound!r}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(12), 1015, 1057])
def test_random_schedules_lose_and_repeat_nothing(seed: int) -> None:
    _random_run(seed)


# ---------------------------------------------------------------- particular traps


def _listeners(world: Attacked, count: int, text: str) -> list[str]:
    ids = [f"s{number}" for number in range(count)]
    for id_ in ids:
        world.ask(Speak(id=id_, text=text, output="stream"), id_.encode())
    return ids


def test_more_listeners_than_a_batch_holds_are_all_served() -> None:
    world = Attacked()
    ids = _listeners(world, 20, SHORT)
    world.finish(*ids)
    assert all(world.stream_text(id_) == plain(SHORT) for id_ in ids)


def test_as_many_deaf_listeners_as_a_batch_holds_keep_nobody_from_speaking() -> None:
    world = Attacked()
    ids = _listeners(world, 8, LONG * 4)
    world.stuck_clients.update(id_.encode() for id_ in ids)
    world.run(5.0)
    world.ask(Speak(id="loud", text=SHORT))
    world.run_until(lambda: "loud" in world.over(), 30)
    assert plain(world.heard()) == plain(SHORT)


@pytest.mark.parametrize("role", ["t3", "s3gen"])
def test_a_deaf_listener_keeps_no_suspect_from_being_tried_again(role: str) -> None:
    world = Attacked()
    _listeners(world, 1, LONG * 4)
    world.stuck_clients.add(b"s0")
    world.run(5.0)
    world.ask(Speak(id="loud", text=LONG))
    world.run(0.3)
    world.kill(role)
    world.run_until(lambda: "loud" in world.over(), 30)
    assert plain(world.heard()) == plain(LONG)


def test_a_pause_that_comes_first_in_a_slot_used_before_stands_at_the_ring_s_end() -> None:
    world = Attacked()
    world.ask(Speak(id="before", text=LONG, output="stream"))
    world.finish("before")
    world.ask(Speak(id="a", text="[pause:500ms] And then.", output="stream"))
    world.finish("a")
    pause = -(-12_000 // TOKEN_SAMPLES) * TOKEN_SAMPLES
    assert world.events_of(Finished, "a")[0].samples == pause + len("And then.") * TOKEN_SAMPLES


def test_a_cancel_does_not_wait_for_t3_to_load_again() -> None:
    world = Attacked()
    world.ask(Speak(id="a", text=LONG))
    world.run(1.0)
    world.kill("t3", restart=False)
    world.ask(Speak(id="b", text=LONG))
    world.ask(Cancel(all=True))
    before = world.heard()
    world.run(2.0)
    assert world.heard() == before
    world.start_worker("t3", 0)
    world.run(2.0)
    assert world.heard() == before, "what was not yet accepted is cancelled, too"
    assert {"a", "b"} <= world.over()


def test_one_of_two_streams_taken_over_by_another_client_survives_the_dispatcher() -> None:
    world = Attacked()
    world.stuck_clients.update({b"old", b"new"})
    world.ask(Speak(id="a", text="One is short.", output="stream"), b"old")
    world.ask(Speak(id="b", text="Two is short as well.", output="stream"), b"old")
    world.run(2.0)
    world.ask(Attach(id="a"), b"new")
    world.kill_dispatcher()
    world.stuck_clients.clear()
    world.finish("a", "b")
    assert (world.stream_text("a"), world.stream_text("b")) == ("Oneisshort.", "Twoisshortaswell.")


@pytest.mark.parametrize("role", ["t3", "s3gen"])
def test_a_death_whose_report_was_lost_shows_in_the_table_of_processes(role: str) -> None:
    world = Attacked()
    world.ask(Speak(id="a", text=LONG))
    world.run(0.5)
    world.workers.remove(world.worker(role))
    world.start_worker(role, 0)
    world.run(0.5)
    world._say(world.supervisor, None)
    world.finish("a")
    assert plain(world.heard()) == plain(LONG)


@pytest.mark.slow
def test_a_stint_in_which_nothing_was_written_is_not_numbered_again() -> None:
    """Its discard is in the ring, and would drop whoever gets its number."""
    for steps in range(1, 60):
        world = Attacked()
        world.ask(Speak(id="a", text=SHORT))
        for _ in range(steps):
            world.step()
        world.ask(Cancel(id="a"))
        world.kill_dispatcher()
        before = plain(world.heard())
        world.ask(Speak(id="b", text="Hm."))
        world.finish("b")
        assert plain(world.heard()) == before + "Hm.", f"after {steps} steps"


def test_what_killed_a_worker_and_was_taken_back_is_not_rendered_again() -> None:
    world = Attacked(poison={"s3gen": "POISON"})
    world.ask(
        Speak(id="a", text="Quite a long beginning of it all. Here it comes now POISON. After.", conversation="a")
    )
    world.run_until(lambda: bool(world.events_of(Failed, "a")), 20)
    deaths = world.machine.state.counters.counts["s3gen_exits"]
    world.ask(Speak(id="b", text="Now.", conversation="b", priority="high"))
    world.finish("a", "b")
    assert world.machine.state.counters.counts["taken_back"]
    assert world.machine.state.counters.counts["s3gen_exits"] == deaths
    assert len(world.events_of(Failed, "a")) == 1
