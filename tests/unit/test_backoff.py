from __future__ import annotations

from worker.supervise.backoff import HEALTHY_AFTER_S, Backoff


def test_a_program_that_keeps_dying_waits_longer_each_time_up_to_a_limit() -> None:
    backoff = Backoff()
    assert [backoff.after(0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_program_that_ran_well_waits_as_after_its_first_death() -> None:
    backoff = Backoff()
    assert [backoff.after(lived_s) for lived_s in (0, 0, HEALTHY_AFTER_S + 1, 0)] == [1, 2, 1, 2]
