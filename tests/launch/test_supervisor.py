"""The supervisor with real processes that are cheap to start, and a dispatcher that the test plays."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ipc.messages import Drain, Drained, Excuse, Exited, Internal, Processes, ProcessState, Role, Welcome
from launch.lifecycle import Limits
from launch.process import Spec
from launch.supervisor import FAILED, OK, UNFINISHED, Outside, Phase, SteadyClock, Supervisor

pytestmark = pytest.mark.slow  # each test starts processes and waits for what becomes of them

TOY = Path(__file__).with_name("toy.py")
LIMITS = Limits(hang_s=4, start_timeout_s=20, stop_timeout_s=5, max_restarts=3, within_s=60)
SHORT = replace(LIMITS, hang_s=0.5, stop_timeout_s=0.6)
"""For tests that wait for a limit; elsewhere a busy machine must not reach one."""

DEADLINE_S = 30.0

Turn = Callable[["Stage"], list[Internal]]


def toy(role: Role, behaviour: str = "work", index: int = 0, cpus: tuple[int, ...] = ()) -> Spec:
    return Spec(
        role,
        index,
        lambda fds: [sys.executable, str(TOY), behaviour, str(fds.progress), str(fds.death)],
        cpus,
    )


class Stage:
    """A supervisor, and the dispatcher's side of its channel, played by ``turn`` once per loop."""

    def __init__(
        self, tmp_path: Path, specs: list[Spec], turn: Turn, limits: Limits = LIMITS, **outside: object
    ) -> None:
        self.turn = turn
        self.epoch: int | None = 1
        self.sent: list[Internal] = []
        self.lines: list[str] = []
        self.signalled: set[int] = set()
        self.logs = tmp_path / "logs"
        self._until = time.monotonic() + DEADLINE_S
        arena = os.open(tmp_path, os.O_RDONLY)
        given = Outside(channel=self, say=self._say, arena=arena, logs=self.logs)
        self.supervisor = Supervisor(specs, limits, replace(given, **outside))  # type: ignore[arg-type]
        try:
            self.code = self.supervisor.run()
        finally:
            os.close(arena)

    def receive(self, timeout_s: float) -> list[Internal]:
        if time.monotonic() > self._until:
            raise TimeoutError("\n".join(self.lines))
        return self.turn(self)

    def send(self, message: Internal) -> bool:
        self.sent.append(message)
        return True

    def _say(self, who: str, text: str) -> None:
        self.lines.append(f"{who}  {text}")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def running(self) -> bool:
        return self.supervisor.phase is Phase.RUNNING

    def state(self, role: Role, index: int = 0) -> ProcessState:
        return next(one for one in self.supervisor.table if (one.role, one.index) == (role, index))

    def kill(self, role: Role, number: int = signal.SIGKILL) -> int:
        """Signal the process if it runs; returns its pid, 0 when there was none to signal."""
        found = [one for one in self.supervisor.table if one.role == role and one.state == "RUNNING" and one.pid > 1]
        if self.supervisor.phase not in (Phase.RUNNING, Phase.DRAINING) or not found or found[0].pid in self.signalled:
            return 0
        self.signalled.add(found[0].pid)
        os.kill(found[0].pid, number)
        return found[0].pid

    def exits(self, role: Role) -> list[Exited]:
        return [message for message in self.sent if isinstance(message, Exited) and message.role == role]


def interrupt(number: int = signal.SIGINT) -> list[Internal]:
    os.kill(os.getpid(), number)
    return []


def stop_when(done: Callable[[Stage], bool]) -> Turn:
    """Interrupt once ``done``, and drain at once."""
    state = {"asked": False}

    def turn(stage: Stage) -> list[Internal]:
        if not state["asked"] and done(stage):
            state["asked"] = True
            return interrupt()
        return [Drained()] if stage.supervisor.phase is Phase.DRAINING else []

    return turn


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """None of those that the test started; pipelines that several modules share may run beside it."""
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) - before == set()


ALL = [toy("dispatcher"), toy("player"), toy("s3gen"), toy("t3")]


def test_the_dispatcher_starts_first_and_stops_last(tmp_path: Path) -> None:
    stage = Stage(tmp_path, ALL, stop_when(lambda stage: stage.running))
    assert stage.code == OK
    ready = [line.split("  ")[0] for line in stage.lines if "ready in" in line]
    assert ready[0] == "dispatcher 0"
    assert ready[-1] == "supervisor"
    assert [message.role for message in stage.sent if isinstance(message, Exited)] == [
        "t3",
        "s3gen",
        "player",
        "dispatcher",
    ]
    assert {message.reason for message in stage.sent if isinstance(message, Exited)} == {"exit code 0"}
    assert "died" not in stage.text


def test_the_others_wait_for_the_dispatcher(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def turn(stage: Stage) -> list[Internal]:
        if stage.supervisor.table and stage.state("dispatcher").state == "STARTING":
            seen.append({one.state for one in stage.supervisor.table if one.role != "dispatcher"})
        return stop(stage)

    stop = stop_when(lambda stage: stage.running)
    Stage(tmp_path, ALL, turn)
    assert seen
    assert all(states == {"BACKOFF"} for states in seen)


def door(behaviour: str = "work") -> Spec:
    """A process without which the others go on."""
    return replace(toy("gateway", behaviour), vital=False)


def test_what_is_not_vital_starts_once_the_rest_is_ready_and_stops_first(tmp_path: Path) -> None:
    stop = stop_when(lambda stage: stage.running and stage.state("gateway").state == "RUNNING")
    stage = Stage(tmp_path, [*ALL, door()], stop)
    assert stage.code == OK
    ready = [line.split("  ")[0] for line in stage.lines if "ready in" in line]
    assert ready[-2:] == ["supervisor", "gateway 0"]
    assert next(message.role for message in stage.sent if isinstance(message, Exited)) == "gateway"


@pytest.mark.parametrize("behaviour", ["error", "crash", "once"])
def test_what_is_not_vital_may_be_lost_for_good(tmp_path: Path, behaviour: str) -> None:
    stop = stop_when(lambda stage: stage.running and stage.state("gateway").state == "FATAL")
    stage = Stage(tmp_path, [*ALL, door(behaviour)], stop, replace(LIMITS, max_restarts=1))
    assert stage.code == OK
    assert "is lost" not in stage.text
    told = "it cannot start here" if behaviour == "error" else "given up after 1 restarts"
    assert sum(told in line for line in stage.lines) == 1
    assert not stage.exits("t3") or stage.exits("t3")[0].reason == "exit code 0"


def test_a_killed_process_is_reported_and_replaced_while_the_others_stay(tmp_path: Path) -> None:
    pids: dict[str, int] = {}

    def turn(stage: Stage) -> list[Internal]:
        if stage.running and not pids:
            pids.update({one.role: one.pid for one in stage.supervisor.table})
            stage.kill("t3")
        return stop(stage)

    stop = stop_when(
        lambda stage: bool(pids) and stage.state("t3").state == "RUNNING" and stage.state("t3").restarts == 1
    )
    stage = Stage(tmp_path, ALL, turn)
    assert stage.exits("t3")[0] == Exited("t3", 0, pids["t3"], "killed by SIGKILL")
    assert [message.pid for message in stage.exits("player")] == [pids["player"]]
    assert f"t3 0  died (pid {pids['t3']}): killed by SIGKILL; restart 1 in 0.1 s" in stage.text
    assert "t3 0  | work begins" in stage.text
    tables = [message for message in stage.sent if isinstance(message, Processes)]
    at = stage.sent.index(stage.exits("t3")[0])
    after = next(message for message in stage.sent[at:] if isinstance(message, Processes))
    assert pids["t3"] not in {one.pid for one in after.processes}
    assert all(table.processes for table in tables)


def test_a_killed_dispatcher_is_replaced_and_told_everything_at_its_welcome(tmp_path: Path) -> None:
    first: dict[str, int] = {}
    welcomed: list[int] = []

    def turn(stage: Stage) -> list[Internal]:
        if stage.running and not first:
            first.update({one.role: one.pid for one in stage.supervisor.table})
            stage.kill("dispatcher")
            return []
        if (
            first
            and not welcomed
            and stage.state("dispatcher").restarts
            and stage.state("dispatcher").state == "RUNNING"
        ):
            welcomed.append(len(stage.sent))
            return [Welcome(2, 1)]
        return stop(stage)

    stop = stop_when(lambda stage: bool(welcomed) and len(stage.sent) > welcomed[0])
    stage = Stage(tmp_path, ALL, turn)
    table = stage.sent[welcomed[0]]
    assert isinstance(table, Processes)
    assert {one.role: one.pid for one in table.processes if one.role != "dispatcher"} == {
        role: pid for role, pid in first.items() if role != "dispatcher"
    }


def test_a_hang_is_killed_with_what_it_was_doing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [toy("t3", "hang")], stop_when(lambda stage: bool(stage.exits("t3"))), SHORT)
    assert "while counting sheep (killed by SIGKILL)" in stage.exits("t3")[0].reason


def test_a_stopped_process_is_a_hang_too(tmp_path: Path) -> None:
    def turn(stage: Stage) -> list[Internal]:
        stage.kill("t3", signal.SIGSTOP)
        return stop(stage)

    stop = stop_when(lambda stage: bool(stage.exits("t3")))
    stage = Stage(tmp_path, [toy("t3")], turn, SHORT)
    assert "hung for" in stage.exits("t3")[0].reason


def test_never_ready_is_killed_at_the_start_timeout(tmp_path: Path) -> None:
    limits = replace(LIMITS, start_timeout_s=0.5)
    stage = Stage(tmp_path, [toy("t3", "never-ready")], stop_when(lambda stage: bool(stage.exits("t3"))), limits)
    assert "not ready within 0.5 s (supervise.start_timeout_s)" in stage.exits("t3")[0].reason


def test_what_cannot_start_here_ends_the_launch_with_its_own_words(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [toy("player"), toy("t3", "error")], lambda _: [])
    assert stage.code == FAILED
    assert "exit code 2: no weights here; it cannot start here" in stage.text
    assert stage.state("t3").state == "FATAL"
    assert len(stage.exits("t3")) == 1


@pytest.mark.slow
def test_too_many_deaths_are_fatal_and_what_is_made_is_still_heard(tmp_path: Path) -> None:
    heard = iter(range(6))

    def turn(stage: Stage) -> list[Internal]:
        stage.kill("t3")
        return []

    stage = Stage(
        tmp_path, [toy("player"), toy("t3")], turn, replace(SHORT, max_restarts=1), moved=lambda: next(heard, 4)
    )
    assert stage.code == FAILED
    assert "given up after 1 restarts within 60 s" in stage.text
    assert Drain() in stage.sent
    fatal = [message for message in stage.sent if isinstance(message, Processes)]
    assert any(one.state == "FATAL" for table in fatal for one in table.processes)


def test_a_lost_player_stops_at_once(tmp_path: Path) -> None:
    def turn(stage: Stage) -> list[Internal]:
        stage.kill("player")
        return []

    stage = Stage(tmp_path, [toy("player"), toy("t3")], turn, replace(LIMITS, max_restarts=0))
    assert stage.code == FAILED
    assert Drain() not in stage.sent


def test_excused_deaths_do_not_end_the_pipeline(tmp_path: Path) -> None:
    killed: list[int] = []

    def turn(stage: Stage) -> list[Internal]:
        if len(killed) < 4 and (pid := stage.kill("t3")):
            killed.append(pid)
            return [Excuse("t3", 0, pid) for pid in killed[:-1]]
        return stop(stage)

    def all_killed(stage: Stage) -> bool:
        return len(killed) == 4 and stage.state("t3").restarts == 4 and stage.state("t3").state == "RUNNING"

    stop = stop_when(all_killed)
    stage = Stage(tmp_path, [toy("dispatcher"), toy("t3")], turn, replace(LIMITS, max_restarts=1))
    assert stage.code == OK


@pytest.mark.slow
def test_draining_lasts_as_long_as_sound_moves(tmp_path: Path) -> None:
    began: list[float] = []

    def turn(stage: Stage) -> list[Internal]:
        if stage.supervisor.phase is not Phase.DRAINING:
            return interrupt() if stage.running else []
        began.append(time.monotonic())
        return [Drained()] if began[-1] - began[0] > 3 * SHORT.stop_timeout_s else []

    stage = Stage(tmp_path, [toy("player"), toy("t3")], turn, SHORT, moved=lambda: time.monotonic_ns())
    assert stage.code == OK
    assert "all has been heard" in stage.text


def test_draining_without_progress_gives_up_and_says_so(tmp_path: Path) -> None:
    def turn(stage: Stage) -> list[Internal]:
        return interrupt() if stage.running else []

    stage = Stage(tmp_path, [toy("player")], turn, SHORT)
    assert stage.code == UNFINISHED
    assert "what is left stays unheard" in stage.text


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def turn(stage: Stage) -> list[Internal]:
        return interrupt() if stage.supervisor.phase in (Phase.RUNNING, Phase.DRAINING) else []

    stage = Stage(tmp_path, [toy("player")], turn, moved=lambda: time.monotonic_ns())
    assert stage.code == 128 + signal.SIGINT


def test_a_third_interrupt_kills(tmp_path: Path) -> None:
    def turn(stage: Stage) -> list[Internal]:
        return interrupt() if stage.supervisor.phase is not Phase.STARTING else []

    limits = replace(LIMITS, stop_timeout_s=20)
    stage = Stage(tmp_path, [toy("player", "stubborn")], turn, limits, moved=lambda: time.monotonic_ns())
    assert stage.code == 128 + signal.SIGINT
    assert stage.exits("player")[0].reason == "killed by SIGKILL"


def test_sigterm_drains_and_a_closed_terminal_stops_at_once(tmp_path: Path) -> None:
    def term(stage: Stage) -> list[Internal]:
        if stage.supervisor.phase is Phase.DRAINING:
            return [Drained()]
        return interrupt(signal.SIGTERM) if stage.running else []

    assert Stage(tmp_path, [toy("player")], term).code == OK

    def hang_up(stage: Stage) -> list[Internal]:
        return interrupt(signal.SIGHUP) if stage.running else []

    stage = Stage(tmp_path, [toy("player")], hang_up)
    assert stage.code == 128 + signal.SIGHUP
    assert Drain() not in stage.sent


def test_an_interrupt_while_starting_stops_at_once(tmp_path: Path) -> None:
    def turn(stage: Stage) -> list[Internal]:
        return interrupt() if stage.supervisor.phase is Phase.STARTING else []

    assert Stage(tmp_path, [toy("t3", "never-ready")], turn).code == 128 + signal.SIGINT


def test_a_drain_that_a_thread_asked_for_ends_with_its_code(tmp_path: Path) -> None:
    def turn(stage: Stage) -> list[Internal]:
        if stage.running:
            stage.supervisor.ask_drain(FAILED)
        return [Drained()] if stage.supervisor.phase is Phase.DRAINING else []

    assert Stage(tmp_path, [toy("player")], turn).code == FAILED


def test_the_dispatcher_that_dies_while_draining_is_asked_again(tmp_path: Path) -> None:
    killed: list[int] = []

    def turn(stage: Stage) -> list[Internal]:
        if stage.supervisor.phase is Phase.DRAINING:
            state = stage.state("dispatcher")
            if not killed:
                killed.append(stage.kill("dispatcher"))
            elif state.restarts == 1 and state.state == "RUNNING":
                return [Welcome(2, 1)] if stage.sent.count(Drain()) == 1 else [Drained()]
        return interrupt() if stage.running else []

    stage = Stage(tmp_path, [toy("dispatcher"), toy("player")], turn, moved=lambda: time.monotonic_ns())
    assert stage.code == OK
    assert stage.sent.count(Drain()) == 2


def test_what_does_not_leave_is_killed(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [toy("player", "stubborn")], stop_when(lambda stage: stage.running), SHORT)
    assert stage.exits("player")[0].reason == "did not leave within 0.6 s (killed by SIGKILL)"


def test_children_of_a_process_end_with_it(tmp_path: Path) -> None:
    grandchildren: list[int] = []

    def turn(stage: Stage) -> list[Internal]:
        if stage.running and not grandchildren:
            line = next(line for line in stage.lines if "child" in line)
            grandchildren.append(int(line.rsplit(maxsplit=1)[1]))
            assert alive(grandchildren[0])
            stage.kill("t3")
        return stop(stage)

    stop = stop_when(lambda stage: bool(stage.exits("t3")))
    Stage(tmp_path, [toy("t3", "parent")], turn)
    until = time.monotonic() + 5
    while alive(grandchildren[0]) and time.monotonic() < until:
        os.sched_yield()
    assert not alive(grandchildren[0])


def test_what_a_process_prints_is_in_its_log_and_the_last_lines_are_shown(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [toy("t3", "crash")], stop_when(lambda stage: bool(stage.exits("t3"))))
    log = (stage.logs / "t3-0.log").read_text()
    assert "about to crash" in log
    assert "--- t3 0 ended" in log
    assert "t3 0  | about to crash" in stage.text
    assert "killed by SIGSEGV" in stage.text


def test_a_flood_of_output_is_kept_and_stops_nobody(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [toy("t3", "flood")], stop_when(lambda stage: stage.running))
    log = (stage.logs / "t3-0.log").read_text()
    assert log.count("x" * 100) == 2000
    assert "leaving in order" in log


def test_a_program_that_does_not_exist_is_said_and_given_up(tmp_path: Path) -> None:
    missing = Spec("t3", 0, lambda _: ["/nowhere/program"])
    stage = Stage(tmp_path, [toy("player"), missing], lambda _: [], replace(LIMITS, max_restarts=1))
    assert stage.code == FAILED
    assert "cannot be started" in stage.text
    assert "/nowhere/program" in stage.text


def test_figures_of_memory_and_processor_time_are_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [toy("t3")], stop_when(lambda stage: stage.running and stage.state("t3").rss_bytes > 0))
    assert stage.code == OK


@pytest.mark.skipif(not hasattr(psutil.Process, "cpu_affinity"), reason="no processor affinity on this platform")
def test_a_process_is_pinned_and_the_supervisor_is_not(tmp_path: Path) -> None:
    before = psutil.Process().cpu_affinity()
    last = before[-1]
    stage = Stage(tmp_path, [toy("t3", cpus=(last,))], stop_when(lambda stage: stage.running))
    assert f"cpus [{last}]" in stage.text
    assert psutil.Process().cpu_affinity() == before


def test_exits_are_seen_without_pidfds(tmp_path: Path) -> None:
    def turn(stage: Stage) -> list[Internal]:
        if not stage.exits("t3"):
            stage.kill("t3")
        return stop(stage)

    stop = stop_when(lambda stage: bool(stage.exits("t3")) and stage.state("t3").restarts == 1)
    assert Stage(tmp_path, [toy("t3")], turn, pidfds=False).code == OK


def test_a_fault_of_the_supervisor_itself_leaves_no_process(tmp_path: Path) -> None:
    def turn(stage: Stage) -> list[Internal]:
        if stage.running:
            raise RuntimeError("a fault")
        return []

    with pytest.raises(RuntimeError, match="a fault"):
        Stage(tmp_path, ALL, turn)


def test_time_in_which_the_loop_itself_stood_still_does_not_count() -> None:
    times = iter([0.0, 0.5, 1.0, 100.0, 100.5, 101.0])
    clock = SteadyClock(lambda: next(times))
    assert [clock.read() for _ in range(5)] == [0.5, 1.0, 1.0, 1.5, 2.0]
