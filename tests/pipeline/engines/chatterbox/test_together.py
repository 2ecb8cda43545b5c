"""Jobs in groups, in as many rows as memory bears."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("torch")

import torch

from pipeline.engines.chatterbox.together import Memory, OutOfMemory, is_memory, together

pytestmark = pytest.mark.chatterbox


class Network:
    """Doubles numbers; holds ``most`` rows."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.calls: list[list[int]] = []

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        self.calls.append(list(jobs))
        if len(jobs) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [2 * job for job in jobs]


def parity(job: int) -> int:
    return job % 2


def test_equal_keys_go_together_and_results_keep_their_places() -> None:
    network = Network()
    assert together([3, 4, 5, 6, 7], parity, network, Memory(2)) == [6, 8, 10, 12, 14]
    assert network.calls == [[3, 5], [7], [4, 6]]
    assert together([], parity, network, Memory(2)) == []


def test_graphs_get_the_rows_that_they_were_made_for() -> None:
    network = Network()
    assert together([1, 3, 5], parity, network, Memory(8, powers=True)) == [2, 6, 10]
    assert together([1, 3, 5], parity, network, Memory(3, powers=True)) == [2, 6, 10]
    assert network.calls == [[1, 3, 5, 5], [1, 3, 5]]


def test_what_does_not_fit_is_split_for_good() -> None:
    network, memory = Network(most=2), Memory(8)
    assert together([1, 3, 5, 7, 9], parity, network, memory) == [2, 6, 10, 14, 18]
    assert network.calls == [[1, 3, 5, 7, 9], [1, 3], [5, 7], [9]]
    assert (memory.rows, memory.splits) == (2, 1)


def test_a_job_that_never_fits_is_told_and_the_others_go_on() -> None:
    class Picky(Network):
        def __call__(self, jobs: Sequence[int]) -> list[int]:
            self.most = 0 if 3 in jobs else 100
            return super().__call__(jobs)

    made = together([1, 3, 5], parity, Picky(), Memory(1))
    assert made[0] == 2
    assert isinstance(made[1], OutOfMemory)
    assert made[2] == 10


def test_other_errors_are_not_taken_for_a_want_of_memory() -> None:
    def broken(jobs: Sequence[int]) -> list[int]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        together([1], parity, broken, Memory(4))
    assert is_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 GB"))
