from __future__ import annotations

import threading
import time
from queue import SimpleQueue

from worker.device.batch_queue import Batch, BatchKey, BatchQueue, Stream
from worker.device.thread import DeviceThread


class Device:
    """Takes note of what it computes."""

    def __init__(self) -> None:
        self.queue: BatchQueue[str] = BatchQueue(lambda _key: 1)
        #: What was computed, in which thread, and how long there was nothing to do before.
        self.computed: SimpleQueue[tuple[str, int, float]] = SimpleQueue()
        self.takes_s = 0.0
        DeviceThread(self.queue, self._compute)

    def _compute(self, batch: Batch[str], idle_s: float) -> None:
        self.computed.put((batch.items[0], threading.get_ident(), idle_s))
        self.queue.finished(batch.streams[0].key)
        time.sleep(self.takes_s)
        if batch.items[0] == "broken":
            raise ValueError("no")

    def open(self, job: str, count: int, *, order: int = 0) -> Stream[str]:
        return self.queue.open(
            BatchKey("key", 0, "input"), order=(0, order), count=count, job=job, since=time.monotonic()
        )

    def send(self, stream: Stream[str], *items: str) -> None:
        for item in items:
            self.queue.dispatch(stream)
            self.queue.put(stream, item)

    def next(self) -> tuple[str, int, float]:
        return self.computed.get(timeout=10)


def test_all_batches_run_in_one_thread_that_is_not_the_callers() -> None:
    device = Device()
    device.send(device.open("a", 3), "1", "2", "3")
    threads = {device.next()[1] for _ in range(3)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_batch_that_breaks_the_rule_does_not_end_the_thread() -> None:
    device = Device()
    stream = device.open("a", 2)
    device.send(stream, "broken", "next")
    assert [device.next()[0], device.next()[0]] == ["broken", "next"]


def test_the_time_without_a_batch_is_told_within_a_job() -> None:
    device = Device()
    stream = device.open("a", 2)
    device.send(stream, "1")
    device.next()
    time.sleep(0.2)
    device.send(stream, "2")
    assert device.next()[2] >= 0.2


def test_before_another_job_only_the_time_since_its_chunk_came_counts() -> None:
    device = Device()
    device.send(device.open("a", 1), "1")
    device.next()
    time.sleep(0.2)
    device.send(device.open("b", 1, order=1), "2")
    assert device.next()[2] < 0.1


def test_a_device_that_always_has_a_batch_ready_is_never_idle() -> None:
    device = Device()
    device.takes_s = 0.02
    device.send(device.open("a", 5), *"12345")
    assert sum([device.next()[2] for _ in range(5)][1:]) < 0.05
