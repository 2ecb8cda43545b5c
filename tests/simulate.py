"""``python -m tests.simulate``: many random schedules of the whole pipeline on all cores (``make simulate``).

    python -m tests.simulate --schedules 100000     seeds 0 … 99999
    python -m tests.simulate --seed 4711            one of them: what it breaks, and the least that does

Exit code 1: a promise was broken.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator

from tests.pipeline import simulation
from tests.pipeline.simulation import Outcome, Schedule

BATCH = 25
REPORT_S = 5.0
SHOWN = 10
TRACE_LINES = 40


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__.split("\n")[0])
    parser.add_argument("--schedules", type=int, default=2000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="only this one, and shrink it if it breaks something")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: %(default)s")
    asked = parser.parse_args(arguments)
    if asked.seed is not None:
        return replay(asked.seed)
    return survey(range(asked.first, asked.first + asked.schedules), asked.processes)


def replay(seed: int) -> int:
    """One seed: print the verdict, the least schedule that has it, and what happened last in that."""
    plan = simulation.schedule(seed)
    verdict = simulation.verdict(plan)
    if not verdict:
        print(f"{plan}\nseed {seed}: every promise was kept")
        return 0
    print(f"seed {seed}: {verdict}\n\n{explain(plan)}")
    return 1


def explain(plan: Schedule) -> str:
    """The least schedule that breaks the same promise, and its last events."""
    least = simulation.shrink(plan)
    trace: deque[str] = deque(maxlen=TRACE_LINES)
    try:
        simulation.run(least, trace)
    except Exception as error:  # noqa: BLE001
        end = f"{type(error).__name__}: {error}"
    return "\n".join(["shrunk to", str(least), "", "its last events", *trace, end])


def survey(seeds: range, processes: int) -> int:
    """All of these seeds: progress, and a summary."""
    began_s = told_s = time.monotonic()
    total, broken = Counter[str](), []
    for outcomes, verdicts in _batches(seeds, processes):
        broken += verdicts
        for seed, verdict in verdicts:
            print(f"seed {seed}: {verdict:.300}\n    replay and shrink it: make simulate SEED={seed}", flush=True)
        for outcome in outcomes:
            total += _counted(outcome)
        if time.monotonic() >= told_s + REPORT_S:
            told_s = time.monotonic()
            done = total["schedules"] + len(broken)
            rate = done / (told_s - began_s)
            print(f"{done:,} of {len(seeds):,} schedules, {rate:.0f} a second, {len(broken)} violations", flush=True)
    print(f"{total['schedules'] + len(broken):,} schedules in {time.monotonic() - began_s:.0f} s:", end=" ")
    print(", ".join(f"{count:,} {name}" for name, count in total.items() if name != "schedules"))
    print(f"{len(broken)} violations, of seeds {[seed for seed, _ in broken[:SHOWN]]}" if broken else "no violations")
    return 1 if broken else 0


def _counted(outcome: Outcome) -> Counter[str]:
    counted = Counter(schedules=1, turns=outcome.turns, commands=outcome.commands, utterances=outcome.utterances)
    counted.update({f"deaths of {role}": count for role, count in outcome.deaths.items()})
    counted.update({f"{ending.lower()}": count for ending, count in outcome.endings.items()})
    return counted


def _batches(seeds: range, processes: int) -> Iterator[tuple[list[Outcome], list[tuple[int, str]]]]:
    parts = [seeds[at : at + BATCH] for at in range(0, len(seeds), BATCH)]
    with multiprocessing.Pool(processes) as pool:
        yield from pool.imap_unordered(batch, parts)


def batch(seeds: range) -> tuple[list[Outcome], list[tuple[int, str]]]:
    """Run these seeds: what they saw, and which of them broke what."""
    outcomes: list[Outcome] = []
    broken: list[tuple[int, str]] = []
    for seed in seeds:
        try:
            outcomes.append(simulation.run(simulation.schedule(seed)))
        except Exception as error:  # noqa: BLE001
            broken.append((seed, f"{type(error).__name__}: {error}"))
    return outcomes, broken


if __name__ == "__main__":
    sys.exit(main())
