"""Random schedules of a whole pipeline: whatever dies, whenever, every promise is kept."""

from __future__ import annotations

import pytest

from tests.pipeline import simulation
from tests.pipeline.simulation import Schedule
from tests.simulate import explain

QUICK = 40
IN_ALL = 2000
BATCHES = 20


def keep_every_promise(seeds: range) -> None:
    for seed in seeds:
        plan = simulation.schedule(seed)
        verdict = simulation.verdict(plan)
        if verdict:
            pytest.fail(f"seed {seed}: {verdict}\nreplay it with: make simulate SEED={seed}\n\n{explain(plan)}")


@pytest.mark.slow
def test_a_few_random_schedules_break_no_promise() -> None:
    keep_every_promise(range(QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(BATCHES))
def test_thousands_of_random_schedules_break_no_promise(number: int) -> None:
    each = (IN_ALL - QUICK) // BATCHES
    keep_every_promise(range(QUICK + number * each, QUICK + (number + 1) * each))


def test_a_seed_makes_the_same_schedule_and_the_same_run_again() -> None:
    seeds = range(5)
    assert [simulation.schedule(seed) for seed in seeds] == [simulation.schedule(seed) for seed in seeds]
    for seed in seeds:
        assert simulation.run(simulation.schedule(seed)) == simulation.run(simulation.schedule(seed))


def test_shrinking_keeps_the_actions_that_matter_and_no_others() -> None:
    plan = next(plan for plan in map(simulation.schedule, range(100)) if len(plan.actions) > 12)
    wanted = {plan.actions[3], plan.actions[8]}

    def broken(fewer: Schedule) -> bool:
        return wanted <= set(fewer.actions)

    assert set(simulation.shrink(plan, broken).actions) == wanted


def test_the_schedules_of_the_suite_contain_every_kind_of_action() -> None:
    kinds = {action.what for seed in range(300) for action in simulation.schedule(seed).actions}
    requests = {"speak", "text", "flush", "end", "cancel", "pause", "resume", "attach"}
    behaviour = {"deaf", "listen", "leave", "return", "drain"}
    faults = {"kill", "cut", "stall", "refuse", "slow", "poison", "bad"}
    assert kinds == requests | behaviour | faults
