from __future__ import annotations

import os
import subprocess
import sys

import pytest

from worker.supervise.cores import pinned, share_out, threads, usable


@pytest.mark.parametrize(("cores", "processes"), [(8, 1), (8, 2), (8, 3), (5, 2), (64, 7), (2, 2)])
def test_shares_are_disjoint_and_differ_by_one_core_at_most(cores: int, processes: int) -> None:
    shares = share_out(range(cores), processes)
    assert sorted(core for share in shares for core in share) == list(range(cores))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_cores_have_a_core_each_in_turn() -> None:
    assert share_out([3, 7], 5) == [(3,), (7,), (3,), (7,), (3,)]


def test_a_container_starts_as_many_threads_as_it_is_granted() -> None:
    """Two cores' time on a machine with 64 cores."""
    assert threads(64, 1, 2.0) == 2
    assert threads(32, 2, 2.5) == 1
    assert threads(64, 1, 0.5) == 1
    assert threads(8, 1, 16.0) == 8
    assert threads(8, 1, None) == 8
    assert threads(0, 4, None) == 1


def test_the_cores_that_may_be_used_are_those_of_the_affinity() -> None:
    assert set(usable()) == os.sched_getaffinity(0)


def test_a_pinned_process_has_its_cores_from_its_first_instruction_and_we_keep_ours() -> None:
    ours = os.sched_getaffinity(0)
    core = usable()[-1]
    program = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
    with pinned([core]):
        run = subprocess.run(program, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(core)]
    assert os.sched_getaffinity(0) == ours
    with pinned([10_000]):  # there is no such core
        assert os.sched_getaffinity(0) == ours
