from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from producer.output.prefetch import prefetch_map


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_results_come_in_order_however_long_each_takes(pool: ThreadPoolExecutor) -> None:
    def slow_when_even(n: int) -> int:
        time.sleep(0.02 * (n % 2 == 0))
        return n

    assert list(prefetch_map(pool, slow_when_even, range(20), depth=8)) == list(range(20))


def test_no_more_is_read_than_the_depth_allows(pool: ThreadPoolExecutor) -> None:
    read = []

    def endless() -> Iterator[int]:
        n = 0
        while True:
            read.append(n)
            yield n
            n += 1

    stream = prefetch_map(pool, lambda n: n, endless(), depth=5)
    assert next(stream) == 0
    assert len(read) == 5
    stream.close()


def test_an_error_comes_where_its_result_would_have_come_and_cancels_the_rest(pool: ThreadPoolExecutor) -> None:
    started = threading.Semaphore(0)

    def fails_at_two(n: int) -> int:
        started.release()
        if n == 2:
            raise ValueError("two")
        return n

    stream = prefetch_map(pool, fails_at_two, range(100), depth=4)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(stream)
