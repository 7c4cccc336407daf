from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

import pytest

from worker.device.batch_queue import Batch, BatchKey, BatchQueue, Stream
from worker.device.thread import DeviceThread, DeviceTime


@dataclass
class Launched:
    """One image, that the device works at until its gate opens."""

    image: str
    overlaps: bool
    launched_by: int
    gate: threading.Event = field(default_factory=threading.Event)


@dataclass
class Ended:
    image: str
    time: DeviceTime
    launched_by: int
    finished_by: int


class Device:
    """Takes note of what it computes; one that overlaps works at a batch until it is told to end."""

    def __init__(self, *, overlaps: bool) -> None:
        self.queue: BatchQueue[str] = BatchQueue(lambda _key: 1)
        self.overlaps = overlaps
        self.launched: SimpleQueue[Launched] = SimpleQueue()
        self.ended: SimpleQueue[Ended] = SimpleQueue()
        self.takes_s = 0.0
        #: Opened at the end: a thread that gave up waiting would disturb whatever test runs then.
        self.gates: list[threading.Event] = []
        DeviceThread(self.queue, self._launch, self._finish)

    def _launch(self, batch: Batch[str]) -> Iterator[Launched]:
        if batch.items[0] == "broken at launch":
            raise ValueError("no")
        for image in batch.items[0].split("+"):
            launched = Launched(image, self.overlaps, threading.get_ident())
            self.gates.append(launched.gate)
            if not self.overlaps:
                time.sleep(self.takes_s)
                launched.gate.set()
            self.launched.put(launched)
            yield launched

    def _finish(self, launched: Launched, ended: Callable[[], DeviceTime]) -> None:
        launched.gate.wait()
        time_ = ended()
        self.queue.finished(BatchKey("key", 0, "input"))
        if launched.image == "broken":
            raise ValueError("no")
        self.ended.put(Ended(launched.image, time_, launched.launched_by, threading.get_ident()))

    def open(self, job: str, count: int, *, order: int = 0) -> Stream[str]:
        return self.queue.open(
            BatchKey("key", 0, "input"), order=(0, order), count=count, job=job, since=time.monotonic()
        )

    def send(self, stream: Stream[str], *items: str) -> None:
        for item in items:
            self.queue.dispatch(stream)
            self.queue.put(stream, item)

    def next(self) -> Ended:
        return self.ended.get(timeout=10)


@pytest.fixture
def overlapping() -> Iterator[Device]:
    """One that works by itself until a test opens its gates."""
    made = Device(overlaps=True)
    yield made
    for gate in made.gates:
        gate.set()


@pytest.fixture(params=[False, True], ids=["computes itself", "overlaps"])
def device(request: pytest.FixtureRequest, overlapping: Device) -> Device:
    if not request.param:
        return Device(overlaps=False)

    # Whatever is launched ends at once.
    def open_gates() -> None:
        while True:
            overlapping.launched.get().gate.set()

    threading.Thread(target=open_gates, daemon=True).start()
    return overlapping


def test_all_batches_are_launched_by_one_thread_that_is_not_the_callers(device: Device) -> None:
    device.send(device.open("a", 3), "1", "2", "3")
    threads = {device.next().launched_by for _ in range(3)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("broken", ["broken", "broken at launch"])
def test_a_batch_that_breaks_the_rule_does_not_end_the_thread(device: Device, broken: str) -> None:
    device.send(device.open("a", 2), broken, "next")
    assert device.next().image == "next"


def test_a_batch_may_become_several(device: Device) -> None:
    device.send(device.open("a", 2), "1+2+3", "4")
    assert [device.next().image for _ in range(4)] == ["1", "2", "3", "4"]


def test_the_time_without_a_batch_is_told_within_a_job(device: Device) -> None:
    stream = device.open("a", 2)
    device.send(stream, "1")
    device.next()
    time.sleep(0.2)
    device.send(stream, "2")
    assert device.next().time.idle_s >= 0.2


def test_before_another_job_only_the_time_since_its_chunk_came_counts(device: Device) -> None:
    device.send(device.open("a", 1), "1")
    device.next()
    time.sleep(0.2)
    device.send(device.open("b", 1, order=1), "2")
    assert device.next().time.idle_s < 0.1


def test_a_device_that_always_has_a_batch_ready_is_never_idle() -> None:
    device = Device(overlaps=False)
    device.takes_s = 0.02
    device.send(device.open("a", 5), *"12345")
    times = [device.next().time for _ in range(5)]
    assert sum(each.idle_s for each in times[1:]) < 0.05
    assert all(each.seconds >= 0.02 for each in times)


def test_a_device_that_works_by_itself_gets_the_next_batch_before_it_is_done(overlapping: Device) -> None:
    device = overlapping
    device.send(device.open("a", 3), "1", "2", "3")
    first, second = device.launched.get(timeout=10), device.launched.get(timeout=10)
    assert not first.gate.is_set()
    # Its time counts from the end of the one before: it waited behind it.
    time.sleep(0.1)
    first.gate.set()
    ended = device.next()
    assert ended.image == "1"
    assert ended.time.seconds >= 0.1
    assert ended.finished_by != ended.launched_by
    second.gate.set()
    ended = device.next()
    assert ended.image == "2"
    assert ended.time.seconds < 0.1
    assert ended.time.idle_s < 0.1


def test_no_more_batches_are_under_way_than_the_queue_lets_go(overlapping: Device) -> None:
    device = overlapping
    device.send(device.open("a", 6), *"123456")
    under_way = [device.launched.get(timeout=10) for _ in range(3)]
    time.sleep(0.2)
    assert device.launched.empty()
    under_way[0].gate.set()
    assert device.launched.get(timeout=10).image == "4"
