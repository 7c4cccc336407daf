from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.device.batch_queue import Batch, BatchKey, BatchQueue, Stream

LONG_S = 60.0


def key(name: str) -> BatchKey:
    return BatchKey(name, 0, "input")


def queue_of(size: int = 4, *, linger_s: float = LONG_S) -> BatchQueue[str]:
    return BatchQueue(lambda _key: size, linger_s=linger_s)


def arrive(queue: BatchQueue[str], stream: Stream[str], *items: str) -> None:
    for item in items:
        queue.dispatch(stream)
        queue.put(stream, item)


def taken(queue: BatchQueue[str]) -> Batch[str]:
    """The next batch, which must be there."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(queue.take).result(10)


def nothing_leaves(queue: BatchQueue[str]) -> bool:
    """Whether `take` waits."""
    left = threading.Event()

    def take() -> None:
        queue.take()
        left.set()

    threading.Thread(target=take, daemon=True).start()
    return not left.wait(0.2)


def test_a_full_batch_leaves_and_the_rest_waits_for_more() -> None:
    queue = queue_of()
    stream = queue.open(key("a"), order=(0, 0), count=6)
    arrive(queue, stream, *"12345")
    batch = taken(queue)
    assert (batch.items, batch.telling) == (list("1234"), True)
    assert nothing_leaves(queue)


def test_the_last_images_leave_when_nothing_more_comes() -> None:
    queue = queue_of()
    stream = queue.open(key("a"), order=(0, 0), count=3)
    arrive(queue, stream, "1", "2")
    queue.dispatch(stream)
    queue.lose(stream)
    batch = taken(queue)
    assert (batch.items, batch.telling) == (["1", "2"], True)


def test_small_chunks_of_one_model_fill_a_batch_together() -> None:
    queue = queue_of()
    for order, items in enumerate(("ab", "c", "de")):
        arrive(queue, queue.open(key("model"), order=(0, order), count=len(items)), *items)
    first, second = taken(queue), taken(queue)
    assert first.items == list("abcd")
    assert [stream.order[1] for stream in first.streams] == [0, 1, 2]
    assert second.items == ["e"]


def test_images_of_another_model_are_in_another_batch() -> None:
    queue = queue_of()
    arrive(queue, queue.open(key("one"), order=(0, 0), count=2), "a", "b")
    arrive(queue, queue.open(key("other"), order=(0, 1), count=2), "c", "d")
    assert [taken(queue).items, taken(queue).items] == [["a", "b"], ["c", "d"]]


def test_the_chunk_taken_first_goes_first_whenever_its_images_arrived() -> None:
    queue = queue_of(2)
    later = queue.open(key("a"), order=(0, 2), count=2)
    earlier = queue.open(key("a"), order=(0, 1), count=2)
    arrive(queue, later, "c", "d")
    arrive(queue, earlier, "a", "b")
    assert [taken(queue).items, taken(queue).items] == [["a", "b"], ["c", "d"]]


def test_an_urgent_chunk_goes_before_those_taken_earlier() -> None:
    queue = queue_of(2)
    arrive(queue, queue.open(key("a"), order=(1, 0), count=2), "c", "d")
    arrive(queue, queue.open(key("a"), order=(0, 1), count=2), "a", "b")
    assert [taken(queue).items, taken(queue).items] == [["a", "b"], ["c", "d"]]


def test_the_device_takes_another_models_full_batch_rather_than_wait() -> None:
    queue = queue_of(2)
    slow = queue.open(key("slow"), order=(0, 0), count=2)
    arrive(queue, slow, "a")
    arrive(queue, queue.open(key("ready"), order=(0, 1), count=2), "c", "d")
    assert taken(queue).items == ["c", "d"]


def test_an_image_waits_no_longer_than_the_linger_for_others() -> None:
    queue = queue_of(linger_s=0.1)
    stream = queue.open(key("a"), order=(0, 0), count=4)
    arrive(queue, stream, "1")
    began = time.monotonic()
    batch = taken(queue)
    assert time.monotonic() - began >= 0.05
    assert (batch.items, batch.telling) == (["1"], False)


def test_no_batch_leaves_while_two_are_unfinished_behind_the_device() -> None:
    queue = queue_of(2)
    arrive(queue, queue.open(key("a"), order=(0, 0), count=8), *"12345678")
    for _ in range(3):
        assert len(taken(queue).items) == 2
    assert nothing_leaves(queue)  # six are behind, four may be


def test_finished_images_make_room_again() -> None:
    queue = queue_of(2)
    arrive(queue, queue.open(key("a"), order=(0, 0), count=8), *"12345678")
    for _ in range(3):
        taken(queue)
    queue.finished(key("a"))
    queue.finished(key("a"))
    assert taken(queue).items == ["7", "8"]


def test_results_of_one_model_that_go_out_slowly_do_not_hold_up_another() -> None:
    queue = queue_of(2)
    arrive(queue, queue.open(key("slow"), order=(1, 0), count=8), *"12345678")
    for _ in range(3):
        taken(queue)
    arrive(queue, queue.open(key("urgent"), order=(0, 1), count=1, most=1), "x")
    assert taken(queue).items == ["x"]


def test_what_waits_of_a_closed_chunk_is_dropped() -> None:
    queue = queue_of()
    gone, stays = queue.open(key("a"), order=(0, 0), count=3), queue.open(key("a"), order=(0, 1), count=1)
    arrive(queue, gone, "1", "2")
    queue.close(gone)
    queue.put(gone, "3")
    queue.lose(gone)
    arrive(queue, stays, "x")
    assert taken(queue).items == ["x"]


def test_a_chunk_with_a_smaller_limit_makes_smaller_batches() -> None:
    queue = queue_of()
    arrive(queue, queue.open(key("a"), order=(0, 0), count=3, most=1), "1", "2", "3")
    assert [taken(queue).items for _ in range(2)] == [["1"], ["2"]]


def test_what_is_ahead_of_the_device_is_counted_until_it_leaves_or_is_lost() -> None:
    queue = queue_of(2)
    stream = queue.open(key("a"), order=(0, 0), count=4)
    assert queue.hungry()
    for _ in range(3):
        queue.dispatch(stream)
    assert (queue.ahead(stream), queue.hungry()) == (3, False)
    queue.lose(stream)
    queue.put(stream, "1")
    queue.put(stream, "2")
    taken(queue)
    assert (queue.ahead(stream), queue.hungry()) == (0, True)


@pytest.mark.parametrize("threads", [2, 8])
def test_every_image_leaves_exactly_once_whoever_brings_it(threads: int) -> None:
    queue, count = queue_of(7, linger_s=0.01), 500
    streams = [queue.open(key(f"key{n % 2}"), order=(0, n), count=count) for n in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for stream in streams:
            pool.submit(arrive, queue, stream, *(f"{stream.order[1]}-{n}" for n in range(count)))
        left: list[str] = []
        while len(left) < threads * count:
            batch = queue.take()
            left += batch.items
            for _ in batch.items:
                queue.finished(batch.streams[0].key)
    assert sorted(left) == sorted(f"{order}-{n}" for order in range(threads) for n in range(count))
