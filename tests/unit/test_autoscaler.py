"""How many workers KEDA and Kubernetes make of what the chart says; docs/deploy.md tells these numbers."""

from __future__ import annotations

from typing import Any

import pytest
from autoscaler import SYNC_EVERY_S, Autoscaler
from charts import VALUES, find, manifests, merged

HOUR_S = 3600.0


def scaled_object(**keda: Any) -> dict[str, Any]:
    values = merged(VALUES["gpu"], {"keda": {"enabled": True, "maxReplicas": 16, **keda}})
    spec: dict[str, Any] = find(manifests(values), "ScaledObject", "-worker")["spec"]
    return spec


class Hand:
    """An autoscaler whose clock and value are set by hand."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.now, self.value = 0.0, 0.0
        self.error = False
        self.scaler = Autoscaler(spec, lambda: None if self.error else self.value, lambda: self.now)

    def after(self, seconds: float, value: float) -> int:
        """Look again, as KEDA and then Kubernetes do."""
        self.now += seconds
        self.value = value
        self.scaler.poll()
        self.scaler.sync()
        return self.scaler.replicas


def test_nothing_left_is_no_worker_and_one_image_is_one() -> None:
    hand = Hand(scaled_object())
    assert hand.after(15, 0.0) == 0
    assert hand.after(15, 0.01) == 1


def test_what_is_wanted_is_rounded_up_and_bounded() -> None:
    hand = Hand(scaled_object())
    assert hand.after(15, 3.2) == 4
    assert hand.after(15, 7.01) == 8
    assert hand.after(15, 99.0) == 16


def test_pods_of_two_gpus_are_half_as_many() -> None:
    values = merged(VALUES["keda"], {"keda": {"hours": 1}})
    hand = Hand(find(manifests(values), "ScaledObject", "-worker")["spec"])
    assert hand.after(15, 3.2) == 2


def test_a_tenth_more_starts_no_worker() -> None:
    hand = Hand(scaled_object())
    assert [hand.after(15, value) for value in (4.0, 4.39, 4.41)] == [4, 4, 5]


def test_at_each_look_there_are_at_most_twice_as_many_or_four_more() -> None:
    hand = Hand(scaled_object())
    assert [hand.after(SYNC_EVERY_S, 16.0) for _ in range(3)] == [5, 10, 16]


def test_fewer_are_enough_only_after_they_have_been_for_an_hour() -> None:
    hand = Hand(scaled_object())
    hand.after(15, 4.0)
    assert hand.after(15, 2.0) == 4
    assert hand.after(HOUR_S - 30, 2.0) == 4
    assert hand.after(60, 2.0) == 2


def test_the_last_workers_stop_when_nothing_has_been_left_for_the_cooldown() -> None:
    hand = Hand(scaled_object())
    hand.after(15, 4.0)
    assert hand.after(15, 0.0) == 4
    assert hand.after(280, 0.0) == 4
    assert hand.after(15, 0.01) == 4, "work that comes meanwhile finds them"
    assert hand.after(290, 0.0) == 4
    assert hand.after(30, 0.0) == 0
    assert hand.after(15, 2.0) == 2


def test_an_exporter_that_is_away_changes_nothing() -> None:
    """Who took no answer for "nothing is left" would stop workers that are at work."""
    hand = Hand(scaled_object())
    hand.after(15, 4.0)
    hand.error = True
    assert hand.after(7200, 0.0) == 4
    hand.error = False
    assert hand.after(15, 4.0) == 4


def test_a_least_number_stays() -> None:
    hand = Hand(scaled_object(minReplicas=2))
    assert hand.after(15, 0.0) == 2
    hand.after(15, 8.0)
    assert hand.after(2 * HOUR_S, 0.0) == 2


def hours_for(gpu_hours: float, spec: dict[str, Any], hours: float) -> tuple[float, float]:
    """Work off so many GPU-hours. Returns hours until nothing is left, and GPU-hours paid."""
    left, paid, now = gpu_hours, 0.0, 0.0
    hand = Hand(spec)
    while left > 0 and now < 100 * HOUR_S:
        done = hand.after(SYNC_EVERY_S, left / hours) * SYNC_EVERY_S / HOUR_S
        left, paid, now = left - done, paid + done, now + SYNC_EVERY_S
    return now / HOUR_S, paid


@pytest.mark.parametrize(
    ("hours", "only_to_zero", "took"),
    [(1, False, 1.0), (4, False, 8.8), (4, True, 4.0), (1, True, 1.0)],
)
def test_work_is_done_within_the_wanted_hours_where_workers_stay_for_so_long(
    hours: float, only_to_zero: bool, took: float
) -> None:
    """What is left shrinks, and what is wanted with it: who follows at once has one worker for the last hours."""
    spec = scaled_object(hours=hours, scaleDown={"onlyToZero": only_to_zero})
    found, paid = hours_for(10 * hours, spec, hours)
    assert found == pytest.approx(took, rel=0.01)
    assert paid == pytest.approx(10 * hours, rel=0.05), "nobody waits idle, however long it takes"
