from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from worker.device.thread import DeviceThread, Ran


@pytest.fixture
def device() -> DeviceThread:
    return DeviceThread()


def hold(device: DeviceThread) -> tuple[threading.Event, Future[Ran[Any]]]:
    """Keep the device busy until the event is set."""
    go_on, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(10)

    future = device.submit(wait, order=0, job="a", since=0.0)
    assert begun.wait(10)
    return go_on, future


def test_all_batches_run_in_one_thread(device: DeviceThread) -> None:
    threads = [device.submit(threading.get_ident, order=n, job="a", since=0.0) for n in range(3)]
    assert len({future.result(10).value for future in threads}) == 1
    assert threads[0].result().value != threading.get_ident()


def test_batches_of_the_chunk_taken_first_go_first(device: DeviceThread) -> None:
    go_on, _ = hold(device)
    ran: list[str] = []
    futures = [
        device.submit(lambda name=name: ran.append(name), order=order, job="a", since=0.0)  # type: ignore[misc]
        for order, name in [(2, "later"), (1, "first"), (2, "latest"), (1, "second")]
    ]
    go_on.set()
    for future in futures:
        future.result(10)
    assert ran == ["first", "second", "later", "latest"]


def test_what_a_batch_raises_is_its_own(device: DeviceThread) -> None:
    def fail() -> None:
        raise ValueError("no")

    broken = device.submit(fail, order=0, job="a", since=0.0)
    with pytest.raises(ValueError, match="no"):
        broken.result(10)
    assert device.submit(lambda: 7, order=0, job="a", since=0.0).result(10).value == 7


def test_a_batch_that_waits_can_be_taken_back(device: DeviceThread) -> None:
    go_on, _ = hold(device)
    ran: list[int] = []
    taken_back = device.submit(lambda: ran.append(1), order=0, job="a", since=0.0)
    assert taken_back.cancel()
    go_on.set()
    device.submit(lambda: None, order=0, job="a", since=0.0).result(10)
    assert ran == []


def test_the_time_without_a_batch_is_told_within_a_job(device: DeviceThread) -> None:
    device.submit(lambda: None, order=0, job="a", since=0.0).result(10)
    time.sleep(0.2)
    assert device.submit(lambda: None, order=0, job="a", since=time.monotonic()).result(10).idle_s >= 0.2


def test_before_another_job_only_the_time_since_its_chunk_came_counts(device: DeviceThread) -> None:
    device.submit(lambda: None, order=0, job="a", since=0.0).result(10)
    time.sleep(0.2)
    assert device.submit(lambda: None, order=0, job="b", since=time.monotonic()).result(10).idle_s < 0.1


def test_a_device_that_always_has_a_batch_ready_is_never_idle(device: DeviceThread) -> None:
    go_on, _ = hold(device)
    futures = [device.submit(lambda: time.sleep(0.02), order=0, job="a", since=0.0) for _ in range(5)]
    go_on.set()
    assert sum(future.result(10).idle_s for future in futures) < 0.05
