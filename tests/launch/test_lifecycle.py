"""The life of one process, without processes: every time is given."""

import pytest

from launch.lifecycle import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Kill, Lifecycle, Limits, Spawn, State, Terminate

LIMITS = Limits(hang_s=5, start_timeout_s=120, stop_timeout_s=4, max_restarts=3, within_s=60)


def running(now: float = 0.0, limits: Limits = LIMITS) -> Lifecycle:
    life = Lifecycle(limits)
    assert life.due(now) == Spawn()
    life.spawned(10, now)
    life.ready(now)
    return life


def test_it_starts_and_runs_once_ready() -> None:
    life = Lifecycle(LIMITS)
    assert (life.state, life.due(0)) == (State.BACKOFF, Spawn())
    life.spawned(7, 0)
    assert (life.state, life.pid, life.due(1), life.live) == (State.STARTING, 7, None, True)
    life.ready(2)
    assert (life.state, life.due(2)) == (State.RUNNING, None)


def test_backoff_doubles_to_its_bound_and_is_short_again_after_a_steady_run() -> None:
    life = Lifecycle(Limits(hang_s=5, start_timeout_s=120, stop_timeout_s=4, max_restarts=100, within_s=60))
    now, waits = 0.0, []
    for pid in range(1, 9):
        life.spawned(pid, now)
        life.ready(now)
        life.exited("exit code 1", now)
        due = life.next_due()
        assert due is not None
        waits.append(round(due - now, 3))
        assert life.due(due - 0.001) is None
        assert life.due(due) == Spawn()
        now = due
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert LONGEST_BACKOFF_S == 5.0
    life.spawned(9, now)
    life.ready(now)
    life.progressed(1, "work", 1000, now)
    life.exited("exit code 1", now + 6)
    assert life.next_due() == pytest.approx(now + 6 + FIRST_BACKOFF_S)


def test_more_than_max_restarts_within_the_time_is_fatal() -> None:
    life, now = running(), 1.0
    for pid in (11, 12, 13):
        life.exited("exit code 1", now)
        assert life.state is State.BACKOFF
        life.spawned(pid, now)
        life.ready(now)
        now += 1
    life.exited("exit code 1", now)
    assert (life.state, life.restarts, life.due(now + 100)) == (State.FATAL, 3, None)
    life.stop(now)
    assert life.state is State.FATAL


def test_deaths_long_ago_do_not_count() -> None:
    life, now = running(), 0.0
    for pid in range(20, 40):
        now += 21.0  # never four within 60 s
        life.exited("exit code 1", now)
        assert life.state is State.BACKOFF
        life.spawned(pid, now)
        life.ready(now)


def test_excused_deaths_do_not_count() -> None:
    life = running()
    for pid in range(11, 40):
        died = life.pid
        life.exited("killed by SIGSEGV", 1.0)
        life.excused(died)
        assert life.state is State.BACKOFF
        life.spawned(pid, 1.0)
        life.ready(1.0)


def test_max_restarts_zero_means_the_first_death_is_the_last() -> None:
    life = running(limits=Limits(hang_s=5, start_timeout_s=120, stop_timeout_s=4, max_restarts=0, within_s=60))
    life.exited("exit code 1", 1)
    assert life.state is State.FATAL


def test_what_says_itself_that_it_cannot_start_is_not_tried_again() -> None:
    life = Lifecycle(LIMITS)
    life.spawned(7, 0)
    life.failed("model.weights: no such folder")
    assert life.exited("exit code 2", 1) == "exit code 2: model.weights: no such folder"
    assert life.state is State.FATAL


def test_an_error_after_it_was_ready_once_is_a_death_like_others() -> None:
    life = running()
    life.failed("CUDA error")
    life.exited("exit code 1", 1)
    assert life.state is State.BACKOFF
    life.spawned(8, 2)
    life.failed("CUDA error")
    life.exited("exit code 1", 3)
    assert life.state is State.BACKOFF


def test_a_crash_at_the_start_without_a_word_is_tried_again() -> None:
    life = Lifecycle(LIMITS)
    life.spawned(7, 0)
    life.exited("killed by SIGKILL", 1)
    assert life.state is State.BACKOFF


def test_a_counter_that_stands_still_is_a_hang_with_what_it_was_doing() -> None:
    life = running()
    life.progressed(1, "rendering", 0.5, 1.0)
    life.progressed(1, "rendering", 0.5, 5.0)  # the same count again: no sign of life
    assert life.due(5.9) is None
    action = life.due(6.1)
    assert isinstance(action, Kill)
    assert "hung for 5.1 s while rendering" in action.reason
    assert life.due(7) is None  # killed once
    assert life.exited("killed by SIGKILL", 7) == f"{action.reason} (killed by SIGKILL)"
    assert life.state is State.BACKOFF


def test_a_declared_deadline_is_waited_for_and_only_for_what_it_was_declared() -> None:
    life = running()
    life.progressed(1, "capturing graphs", 60, 0)
    assert life.due(59.9) is None
    assert isinstance(life.due(60.1), Kill)
    life = running()
    life.progressed(1, "capturing graphs", 60, 0)
    life.progressed(2, "work", 0.5, 30)
    assert life.due(34.9) is None
    assert isinstance(life.due(35.1), Kill)


def test_a_hang_while_loading_is_seen_before_the_start_timeout() -> None:
    life = Lifecycle(LIMITS)
    life.spawned(7, 0)
    life.progressed(1, "loading", 20, 1)
    assert life.due(20.9) is None
    action = life.due(21.1)
    assert isinstance(action, Kill)
    assert "while loading" in action.reason


def test_not_ready_in_time_names_the_key() -> None:
    life = Lifecycle(LIMITS)
    life.spawned(7, 0)
    assert life.due(119) is None
    life.progressed(1, "loading", 0.5, 119)
    action = life.due(120.1)
    assert isinstance(action, Kill)
    assert "supervise.start_timeout_s" in action.reason


def test_a_process_that_never_reports_lives_until_its_start_timeout() -> None:
    life = Lifecycle(LIMITS)
    life.spawned(7, 0)
    assert life.due(100) is None


def test_it_is_asked_once_to_leave_and_killed_when_it_does_not() -> None:
    life = running()
    life.stop(1)
    assert (life.state, life.due(1), life.due(2)) == (State.STOPPING, Terminate(), None)
    assert life.due(4.9) is None
    action = life.due(5.1)
    assert isinstance(action, Kill)
    assert life.due(6) is None
    assert life.exited("killed by SIGKILL", 6) == "did not leave within 4 s (killed by SIGKILL)"
    assert (life.state, life.live) == (State.EXITED, False)


def test_a_hang_is_not_looked_for_while_it_leaves() -> None:
    life = running(limits=Limits(hang_s=1, start_timeout_s=120, stop_timeout_s=10, max_restarts=3, within_s=60))
    life.progressed(1, "work", 0, 0)
    life.stop(0.5)
    life.due(0.5)
    assert life.due(9) is None


def test_stopping_what_waits_to_be_restarted_ends_it() -> None:
    life = running()
    life.exited("exit code 1", 1)
    life.stop(1)
    assert (life.state, life.due(100)) == (State.EXITED, None)


def test_failing_to_spawn_counts_as_a_death() -> None:
    life = Lifecycle(LIMITS)
    for _ in range(3):
        life.not_spawned(0)
        assert life.state is State.BACKOFF
    life.not_spawned(0)
    assert life.state is State.FATAL
