from __future__ import annotations

from collections.abc import Callable

import pytest

from worker.device.batch_size import FIRST, LONGEST_S, BatchSizes

KIND = "resnet50 at layer4 224x224"


def work(sizes: BatchSizes, seconds: Callable[[int], float], batches: int = 60) -> int:
    """Run batches that take so long, and give the size that it comes to."""
    for _ in range(batches):
        size = sizes.size(KIND)
        sizes.ran(KIND, size, seconds(size))
    return sizes.size(KIND)


def test_the_search_begins_small() -> None:
    assert BatchSizes(64).size(KIND) == FIRST
    assert BatchSizes(2).size(KIND) == 2


def test_a_device_that_takes_the_same_time_for_any_batch_gets_the_largest() -> None:
    assert work(BatchSizes(64), lambda _: 0.03) == 64
    assert work(BatchSizes(48), lambda _: 0.03) == 48


def test_a_device_that_takes_as_long_an_image_in_any_batch_gets_the_smallest() -> None:
    assert work(BatchSizes(64), lambda size: 0.04 * size) == FIRST


def test_the_size_stays_where_growing_stops_to_pay() -> None:
    """A fixed cost a batch and one an image, until memory's bandwidth makes large batches slower."""
    assert work(BatchSizes(256), lambda size: 0.02 + 0.002 * size + (0.004 * size if size > 16 else 0)) == 16


def test_slow_batches_now_and_then_do_not_mislead_the_search() -> None:
    sizes, ran = BatchSizes(64), 0

    def seconds(_: int) -> float:
        nonlocal ran
        ran += 1
        return 1.0 if ran % 3 == 1 else 0.03

    assert work(sizes, seconds) == 64


def test_what_slows_the_machine_from_some_time_on_is_not_held_against_the_larger_sizes() -> None:
    """Nothing else ran while the small ones were tried first."""
    ran = 0

    def seconds(size: int) -> float:
        nonlocal ran
        ran += 1
        return (0.02 + 0.01 * size) * (1 if ran == 1 else 1.8)

    assert work(BatchSizes(32), seconds) == 32


def test_a_size_that_is_nearly_as_fast_is_taken_for_less_memory() -> None:
    assert work(BatchSizes(64), lambda size: 0.01 * size + (0.02 if size < 16 else 0.0)) == 16


def test_sizes_that_take_much_longer_an_image_are_not_gone_beyond() -> None:
    tried = set()

    def seconds(size: int) -> float:
        tried.add(size)
        return 0.01 * size * (10 if size > 16 else 1)

    work(BatchSizes(256), seconds)
    assert max(tried) == 32


def test_a_batch_that_did_not_fit_is_halved_and_never_tried_again() -> None:
    sizes = BatchSizes(64)
    for _ in range(60):
        size = sizes.size(KIND)
        if size > 16:
            sizes.too_large(KIND, size)
        else:
            sizes.ran(KIND, size, 0.03)
    assert sizes.size(KIND) == 16


def test_a_size_that_once_fitted_and_does_not_any_more_is_halved() -> None:
    sizes = BatchSizes(64)
    assert work(sizes, lambda _: 0.03) == 64
    sizes.too_large(KIND, 64)
    assert work(sizes, lambda _: 0.03) == 32


def test_memory_that_does_not_allow_it_ends_the_search() -> None:
    assert work(BatchSizes(64, allows=lambda: False), lambda _: 0.03) == FIRST


def test_the_last_batch_of_a_chunk_tells_nothing() -> None:
    sizes = BatchSizes(64)
    for _ in range(10):
        sizes.ran(KIND, FIRST - 1, 0.01)
    assert sizes.size(KIND) == FIRST


def test_what_was_found_is_remembered_and_where_it_is_known_nothing_is_tried() -> None:
    notes: dict[str, int] = {}
    work(BatchSizes(64, recall=notes.get, remember=notes.__setitem__), lambda _: 0.03)
    assert notes == {KIND: 64}
    again = BatchSizes(64, recall=notes.get)
    assert again.size(KIND) == 64
    again.ran(KIND, 64, 1.0)
    assert again.size(KIND) == 64


def test_what_is_remembered_does_not_exceed_todays_limit() -> None:
    assert BatchSizes(8, recall={KIND: 64}.get).size(KIND) == 8


@pytest.mark.parametrize("other", ["resnet50 at layer3 224x224", "vgg16 at features 224x224"])
def test_each_kind_of_work_has_its_own_size(other: str) -> None:
    sizes = BatchSizes(64)
    assert work(sizes, lambda _: 0.03) == 64
    assert sizes.size(other) == FIRST


def test_batches_never_take_so_long_that_a_stop_has_to_wait_for_them() -> None:
    assert work(BatchSizes(256), lambda size: 0.1 + 0.2 * size) * 0.2 <= LONGEST_S


def test_small_jobs_teach_nothing_that_later_large_ones_would_suffer_from() -> None:
    """The size is the most that leaves at once: a supply that does not fill it says nothing of the device."""
    told: list[tuple[str, int]] = []
    sizes = BatchSizes(64, remember=lambda key, size: told.append((key, size)))
    for _ in range(100):
        sizes.ran(KIND, 2, 0.03)
    assert (sizes.size(KIND), told) == (FIRST, [])
    assert work(sizes, lambda _: 0.03) == 64
    assert told == [(KIND, 64)]


def test_what_did_not_fit_later_is_not_told_to_others() -> None:
    notes: dict[str, int] = {}
    sizes = BatchSizes(64, remember=notes.__setitem__)
    work(sizes, lambda _: 0.03)
    sizes.too_large(KIND, 64)
    assert (sizes.size(KIND), notes) == (32, {KIND: 64})
