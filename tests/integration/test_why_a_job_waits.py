"""Why a job waits, in one line of its status: each reason is caused on a real job table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest
import redis
from stacks import eventually

from producer.client import watch
from producer.client.client import Client
from producer.input.source import Source
from producer.jobs.model import keys
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import WaitReason
from producer.jobs.model.status import JobStatus
from producer.jobs.model.waits import STORE
from producer.jobs.model.why import SENDER_SILENT_S
from producer.jobs.table.claims import Claim
from producer.jobs.table.table import JobTable
from producer.jobs.table.troubles import Kind
from producer.submission import sender

JOB = "mine"


@pytest.fixture
def table(redis_client: redis.Redis) -> JobTable:
    return JobTable(redis_client)


def make(table: JobTable, job: str = JOB, *, queue: str = "default", images: int = 6, sent: bool = True) -> JobSpec:
    spec = JobSpec(chunk_size=2, queue=queue)
    table.create(job, spec, lifetime_s=60)
    for number in range(images // 2):
        table.add_chunk(job, Chunk.compress(number, [uri_line(f"s3://b/{number}-{n}.jpg") for n in range(2)]))
    if sent:
        table.close(job, chunks=images // 2, items=images)
    return spec


def take(table: JobTable, spec: JobSpec, job: str = JOB, chunk: int = 0) -> Claim:
    claim = table.claim(job, chunk, spec, claim_id=f"{job}{chunk}", lease_s=30)
    assert claim is not None
    return claim


def waits(table: JobTable, job: str = JOB) -> tuple[WaitReason | None, str]:
    status = table.queries.status(job)
    # What a person reads has the sentence, too.
    assert status.waits is None or status.waits in watch.summary(status)
    return status.waits_reason, status.waits or ""


def test_a_job_waits_for_a_worker_where_there_is_none(table: JobTable) -> None:
    make(table)
    assert waits(table) == (WaitReason.NO_WORKER, "no worker is running: start `gradcam-worker`")


def test_a_job_whose_priority_nobody_reads_says_so_and_what_to_start(table: JobTable) -> None:
    make(table, queue="low")
    table.registry.heartbeat("a", ("high", "default"))
    reason, said = waits(table)
    assert reason is WaitReason.PRIORITY_UNREAD
    assert said == ("no worker reads the priority `low`, 1 worker reads others: start `gradcam-worker --queues low`")
    table.registry.heartbeat("b", ("low",))
    assert waits(table)[0] is WaitReason.SOON
    # One that says nothing of its priorities reads all.
    table.registry.deregister("b")
    table.registry.heartbeat("c")
    assert waits(table)[0] is WaitReason.SOON


def test_a_worker_that_is_silent_reads_nothing(table: JobTable, redis_client: redis.Redis) -> None:
    make(table)
    table.registry.heartbeat("a", ("high",))
    table.registry.heartbeat("b", ("default",))
    redis_client.zadd(keys.WORKERS, {"b": table.registry.now() - 61})
    assert waits(table)[0] is WaitReason.PRIORITY_UNREAD


def test_a_paused_job_waits_for_its_user_whatever_else_is_wrong(table: JobTable) -> None:
    make(table)
    table.actions.pause(JOB)
    reason, said = waits(table)
    assert reason is WaitReason.PAUSED
    assert f"`gradcam resume {JOB}`" in said


def test_all_workers_faulty_is_said_with_the_words_of_one(table: JobTable) -> None:
    """One that can work is enough: then it is the job's turn, or soon is."""
    make(table)
    for worker in ("a", "b"):
        table.registry.heartbeat(worker, ("default",))
        table.registry.report_problem(worker, "the object store refuses the credentials")
    table.registry.heartbeat("c", ("high",))
    assert waits(table) == (
        WaitReason.WORKERS_FAULTY,
        "all 2 workers that read `default` cannot work: the object store refuses the credentials",
    )
    table.registry.recovered("b")
    assert waits(table)[0] is WaitReason.SOON


def test_words_of_a_stranger_in_redis_stay_on_one_line_and_short(table: JobTable) -> None:
    make(table)
    table.registry.heartbeat("a")
    table.registry.report_problem("a", "\x1b[2Jgone\nstate     succeeded" + "x" * 10_000)
    _, said = waits(table)
    assert said.isprintable()
    assert len(said) < 400


def test_a_job_that_all_workers_refuse_or_cannot_read_says_so(table: JobTable) -> None:
    make(table)
    for worker in ("a", "b"):
        table.registry.heartbeat(worker)
    table.troubles.tell("a", "h", JOB, Kind.VERSION, "another version wrote it")
    assert waits(table)[0] is WaitReason.SOON
    table.troubles.tell("b", "h", JOB, Kind.VERSION, "another version wrote it")
    assert waits(table) == (
        WaitReason.WORKERS_REFUSE, "no worker takes it, they refuse it or are faulty: another version wrote it"
    )  # fmt: skip


def test_a_job_in_trouble_is_delayed(table: JobTable) -> None:
    make(table)
    for worker in ("a", "b"):
        table.registry.heartbeat(worker)
    table.troubles.tell("a", "h", JOB, Kind.ERROR, "it broke")
    reason, said = waits(table)
    assert reason is WaitReason.DELAYED
    assert "others go first for" in said


def test_a_job_waits_its_turn_behind_the_images_before_it(table: JobTable) -> None:
    """All of a higher priority; of its own priority a chunk of each job before it; what workers have in hand."""
    table.registry.heartbeat("a")
    urgent, _, busy = make(table, "urgent", queue="high", images=8), make(table, "older"), make(table, "busy")
    make(table)
    make(table, "newer", images=20)
    make(table, "least", queue="low")
    take(table, busy, "busy")
    take(table, urgent, "urgent")
    # 6 of `urgent`, 2 each of `older` and `busy`; 2 each of `urgent` and `busy` are in hand.
    assert waits(table) == (WaitReason.TURN, "waits its turn behind 14 images, workers have 4 of them")
    table.actions.pause("urgent")
    assert waits(table)[1] == "waits its turn behind 6 images, workers have 2 of them"


def test_more_jobs_than_are_looked_at_make_it_at_least_so_many(table: JobTable) -> None:
    table.registry.heartbeat("a")
    for number in range(52):
        make(table, f"job-{number}", images=2)
    make(table)
    assert waits(table)[1] == "waits its turn behind at least 100 images, workers have 0 of them"


def test_a_job_whose_model_is_being_loaded_says_so_until_it_is(table: JobTable) -> None:
    spec = make(table)
    table.registry.heartbeat("a")
    claim = take(table, spec)
    assert waits(table) == (None, "")
    table.renew(claim, lease_s=30, loading=True)
    assert waits(table) == (WaitReason.MODEL_LOADING, "its model is being loaded")
    table.renew(claim, lease_s=30, marked=[0])
    assert waits(table) == (None, "")


def test_a_job_at_work_or_ended_waits_for_nothing(table: JobTable) -> None:
    spec = make(table, images=2)
    table.registry.heartbeat("a")
    claim = take(table, spec)
    table.commit(claim, done=[0], failed=[], lease_s=30)
    assert waits(table) == (None, "")
    table.commit(claim, done=[1], failed=[], lease_s=30)
    mine = table.finalize(JOB, "me")
    assert mine is not None
    table.finish(JOB, "me", mine)
    assert waits(table) == (None, "")


def test_a_store_that_does_not_answer_is_what_a_job_in_hand_waits_for(table: JobTable) -> None:
    spec = make(table)
    table.registry.heartbeat("a")
    take(table, spec)
    table.registry.waits_for("a", STORE, 34)
    reason, said = waits(table)
    assert reason is WaitReason.STORE_UNWELL
    assert said.startswith("1 worker waits for the object store, 34 s")


def test_a_job_that_was_not_sent_whole_waits_for_its_submission(table: JobTable) -> None:
    make(table, images=0, sent=False)
    table.registry.heartbeat("a")
    assert waits(table)[0] is WaitReason.SENDING


def test_a_submission_that_is_silent_for_minutes_was_interrupted(table: JobTable, redis_client: redis.Redis) -> None:
    """It was `still being sent` for ever; with images that wait it goes on, and says so."""
    table.create(JOB, JobSpec(chunk_size=2), name=JOB, lifetime_s=60)
    redis_client.hset(JobKeys(JOB).hash, "ingest_at", table.registry.now() - 299)
    table.registry.heartbeat("a")
    assert waits(table)[0] is WaitReason.SENDING
    redis_client.hset(JobKeys(JOB).hash, "ingest_at", table.registry.now() - 301)
    said = (
        "the program that sends its images has not been heard of for 5 min: submit it again under this name to go on, "
        f"or `gradcam cancel {JOB}`"
    )
    assert waits(table) == (WaitReason.SENDER_SILENT, said)
    table.registry.deregister("a")  # a worker would find nothing to do
    assert waits(table) == (WaitReason.SENDER_SILENT, said)
    table.add_chunk(JOB, Chunk.compress(0, [uri_line("s3://b/0.jpg")]))
    assert waits(table)[0] is WaitReason.NO_WORKER


def test_a_submission_that_uploads_or_reads_for_minutes_is_not_called_interrupted(
    unattended: Client, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 photos of 10 MB take 640 s at 1 MB/s, and its owner was told to cancel it."""
    assert 2 * sender._TELL_EVERY_S < SENDER_SILENT_S
    monkeypatch.setattr(sender, "_TELL_EVERY_S", 0.05)
    table, spec = unattended.table, JobSpec(chunk_size=2)
    life = table.create(JOB, spec, name=JOB, lifetime_s=60).life

    def heard_s() -> float:
        return float(redis_client.hget(JobKeys(JOB).hash, "ingest_at") or 0)

    def heard_since(before: float) -> bool:
        return heard_s() > before

    def slow() -> Iterator[Source]:
        for number in range(4):
            long_ago = table.registry.now() - 301
            redis_client.hset(JobKeys(JOB).hash, "ingest_at", long_ago)
            eventually(partial(heard_since, long_ago), within_s=5)
            if not number:
                assert waits(table)[0] is not WaitReason.SENDER_SILENT
            yield Source(uri=f"s3://b/{number}.jpg")

    def submit() -> None:
        sender.send(table, unattended.storage, lambda chunk, at: None, job=JOB, life=life, spec=spec, sources=slow())

    submit()
    table.create(JOB, spec, name=JOB, lifetime_s=60)  # all of it is there: nothing is added
    submit()
    closed_at = heard_s()
    time.sleep(0.3)
    assert heard_s() == closed_at


def test_a_full_redis_is_told_before_everything_that_follows_from_it(
    table: JobTable, redis_client: redis.Redis
) -> None:
    """No worker can say that it is alive then, which would be told in its place."""
    make(table)
    used = int(redis_client.info("memory")["used_memory"])
    before = str(redis_client.config_get("maxmemory")["maxmemory"])
    redis_client.config_set("maxmemory", used)
    try:
        assert waits(table)[0] is WaitReason.REDIS_FULL
    finally:
        redis_client.config_set("maxmemory", before)


def test_a_second_look_costs_the_same_whatever_the_size_of_the_job(table: JobTable) -> None:
    """Scripts run in Redis' one thread: whoever asks why a job waits must not hold up the others."""
    table.registry.heartbeat("a")
    for number in range(20):
        make(table, f"job-{number}", images=2)
    make(table, "small", images=2)
    make(table, "large", images=4000)

    def least_s(job: str) -> float:
        def once() -> float:
            started = time.perf_counter()
            status: JobStatus = table.queries.status(job)
            assert status.waits_reason is WaitReason.TURN
            return time.perf_counter() - started

        return min(once() for _ in range(20))

    assert least_s("large") < 2 * least_s("small")
