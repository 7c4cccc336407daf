"""What the status says of a job's speed: which stage has a row in front of it."""

from __future__ import annotations

import pytest

from producer.client import watch
from producer.jobs.model.stage_times import device_busy, stage_times
from producer.jobs.model.states import Ingest, JobState
from producer.jobs.model.status import ChunkCounts, JobStatus, to_time


def status(**timings: float) -> JobStatus:
    seconds = {name.replace("_", ":"): value for name, value in timings.items()}
    return JobStatus(
        job="a", name=None, state=JobState.RUNNING, ingest=Ingest.CLOSED, network="resnet50", total=100, done=100,
        failed=0, cancelled=0, pending=0, failures={}, images_per_s=1.0, eta_s=None, created_at=to_time("0"),
        finished_at=None, chunks=ChunkCounts(total=1, waiting=0, in_flight=1, complete=0),
        stages=stage_times(seconds), device_busy=device_busy(seconds),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("timings", "said"),
    [
        ({"fetch": 2, "explain": 95, "explain_idle": 5, "explain_wait": 300, "render": 1}, "95% busy: they bound"),
        ({"fetch": 50, "fetch_wait": 400, "explain": 50, "explain_idle": 50, "render": 1}, "50% busy: fetching and"),
        ({"fetch": 5, "explain": 50, "explain_idle": 50, "render": 9, "render_wait": 400}, "50% busy: drawing and"),
        ({"fetch": 5, "explain": 5, "explain_idle": 95, "render": 1, "render_wait": 1}, "5% busy: images come"),
    ],
)  # fmt: skip
def test_the_status_says_what_bounds_the_speed(timings: dict[str, float], said: str) -> None:
    assert said in watch.summary(status(**timings))


def test_the_status_says_what_each_stage_takes_an_image() -> None:
    assert "fetch 20, explain 950 ms an image" in watch.summary(status(fetch=2, explain=95))


def test_before_the_first_batch_nothing_is_said_of_devices() -> None:
    shown = watch.summary(status())
    assert "devices" not in shown
    assert "stages" not in shown


@pytest.mark.parametrize(
    ("done", "images_per_s", "has_advice"),
    [(11, 5.0, False), (11, None, False), (199, 20.0, False), (200, 20.0, True), (35, 1.0, True)],
)
def test_advice_waits_until_enough_was_measured(done: int, images_per_s: float | None, has_advice: bool) -> None:
    """Of eleven images most of the time goes into loading the model: more processes would not help."""
    seen = status(fetch=5, explain=83, explain_idle=17, render=1)
    shown = watch.summary(seen.model_copy(update={"done": done, "images_per_s": images_per_s}))
    assert "83% busy" in shown
    assert ("give each device more processes" in shown) is has_advice
