"""A job that does not go on: its status says since when, and what is waited for, and measures nothing that is over."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from producer.client import watch
from producer.client.talk import Talk
from producer.jobs.model import waits
from producer.jobs.model.states import WaitReason
from producer.jobs.model.status import ChunkCounts, JobStatus, Wait, make_status
from producer.jobs.model.waits import STORE, Waiting, waiting

FIELDS = {
    "name": "", "state": "running", "ingest": "closed", "network": "resnet50", "total": "100", "done": "40",
    "failed": "0", "created_at": "1000", "started_at": "1010", "progress_at": "1100", "generation": "1",
    "chunk_size": "10",
}  # fmt: skip
TIMINGS = {"explain": 95.0, "explain:idle": 5.0}


def status(now: float, *, workers: int = 1, in_hand: int = 1, **fields: str | None) -> JobStatus:
    kept = {name: value for name, value in {**FIELDS, **fields}.items() if value is not None}
    chunks = ChunkCounts(total=10, waiting=5, in_flight=in_hand, complete=4)
    return make_status("job", kept, {}, chunks, TIMINGS, workers, None, now)


def test_speed_busy_share_and_time_left_are_over_when_nothing_was_recorded_for_half_a_minute() -> None:
    fresh = status(1129.0)
    assert (fresh.images_per_s, fresh.device_busy, fresh.stalled_s) == (0.444, 0.95, None)
    assert fresh.eta_s is not None
    still = status(1190.0)
    assert (still.images_per_s, still.device_busy, still.eta_s, still.stalled_s) == (None, None, None, 90.0)
    told = watch.summary(still)
    assert "no progress for 90 s" in told
    assert "busy" not in told
    assert "images/s" not in told


def test_only_a_job_that_should_go_on_is_called_still() -> None:
    assert status(9000.0, state="paused").stalled_s is None
    assert status(9000.0, state="paused").images_per_s is None
    assert status(9000.0, done="100").stalled_s is None
    ended = status(9000.0, state="succeeded", done="100", finished_at="1100")
    assert (ended.stalled_s, ended.images_per_s, ended.device_busy) == (None, 1.111, 0.95)
    assert status(1075.0, progress_at=None).stalled_s == 65.0
    assert status(1075.0, progress_at=None, started_at=None).stalled_s == 75.0


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        ("the disk is full", "a worker cannot work: the disk is full"),
        # It can work, and not at this job.
        ("worker a cannot do this job: timm is missing here", "worker a cannot do this job: timm is missing here"),
        ("a process ended while it loaded the model", "a process ended while it loaded the model"),
    ],
)
def test_a_worker_that_cannot_do_one_job_is_not_said_to_be_unable_to_work(problem: str, told: str) -> None:
    seen = status(1129.0).model_copy(update={"problem": problem})
    assert f"problem   {told}\n" in watch.summary(seen)


def test_what_a_job_waits_for_is_a_line_as_soon_as_it_changes() -> None:
    """The demo said `running 0/10` for most of its time."""
    new = status(1001.0, done="0", started_at=None, progress_at=None)
    starts = {"waits": "the worker starts", "waits_reason": WaitReason.NO_WORKER}
    loads = {"waits": "its model is being loaded", "waits_reason": WaitReason.MODEL_LOADING}
    seen = [new.model_copy(update=starts), new, new, new.model_copy(update=loads), new.model_copy(update=loads)]
    said = io.StringIO()
    ended = status(1101.0, state="succeeded", done="100", finished_at="1100")
    assert watch.follow([*seen, ended], Talk(file=said)) == ended
    assert said.getvalue().splitlines() == [
        "running 0/100 the worker starts",
        "running 0/100 a worker has its first images in hand",
        "running 0/100 its model is being loaded",
    ]


def test_what_is_waited_for_is_said() -> None:
    still = status(1190.0)
    assert "no worker says what it waits for" in watch.summary(still)
    assert "no worker works at it" in watch.note(status(1190.0, in_hand=0))
    assert "no worker is running" in watch.note(status(1190.0, workers=0))
    waits_for = (Wait(what=STORE, workers=2, longest_s=80.0), Wait(what="Redis", workers=1, longest_s=20.0))
    said = "no progress for 90 s: 2 workers wait for the object store, at most 80 s by now; 1 worker waits for Redis"
    assert said in watch.note(still.model_copy(update={"waited_for": waits_for}))


# -- what a process waits for -----------------------------------------------------------------------------------------


@pytest.fixture
def under_way() -> Iterator[ExitStack]:
    assert waits.longest() is None
    with ExitStack() as stack:
        yield stack
    assert waits.longest() is None


def begin(stack: ExitStack, what: str, age_s: float, *, server: bool = True) -> Waiting:
    entry = stack.enter_context(waiting(what, server=server))
    entry.since = time.monotonic() - age_s
    return entry


def test_the_longest_wait_is_that_of_a_server_once_one_has_been_waited_for_long(under_way: ExitStack) -> None:
    begin(under_way, "the device", 60, server=False)
    store = begin(under_way, STORE, 5)
    found = waits.longest()
    assert found is not None
    assert found.what == "the device"
    store.since -= 10
    assert waits.longest() is store
    begin(under_way, "Redis", 20)
    found = waits.longest()
    assert found is not None
    assert found.what == "Redis"


def test_what_goes_on_is_not_waited_for(under_way: ExitStack) -> None:
    upload = begin(under_way, STORE, 300)
    upload.moved(65_536)
    assert upload.age_s < 1


def test_a_wait_that_breaks_off_is_over_and_each_thread_has_its_own() -> None:
    @waiting(STORE)
    def fails() -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        fails()
    assert waits.longest() is None
    threads = [threading.Thread(target=waiting("Redis")(lambda: time.sleep(0.001))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waits.longest() is None
