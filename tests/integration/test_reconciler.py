"""The reconciler on a real server: what is lost is published again, and nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import redis

from producer.jobs.broker import celery_app
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.keys import QUEUE_PREFIX
from producer.jobs.model.settings import Connections, read
from producer.jobs.model.spec import JobSpec
from producer.jobs.store.bucket import Storage
from producer.jobs.table.table import JobTable
from worker.recover.reconciler import reconcile

if TYPE_CHECKING:
    from celery import Celery

    from deploy.stack import Stack

GRACE_S = 0.1


class Bench:
    """A table, a queue and a reconciler on a database of their own."""

    def __init__(self, stack: Stack, client: redis.Redis) -> None:
        self.client = client
        self.table = JobTable(client)
        self.app: Celery = celery_app.make_app(stack.redis.url.removesuffix("/0") + "/1")
        self.storage = Storage.from_settings(read(Connections))

    def add(self, job: str, *, send: bool = True, chunk: int = 0) -> None:
        self.table.create(job, JobSpec(chunk_size=1), lifetime_s=60)
        published_at = self.table.add_chunk(job, Chunk.compress(chunk, [uri_line("s3://b/a.jpg")]))
        assert published_at is not None
        if send:
            celery_app.publish(self.app, job, chunk, queue="default", published_at=published_at)

    def reconcile(self) -> int:
        def republish(job: str, chunk: int, published_at: float) -> None:
            celery_app.publish(self.app, job, chunk, queue="recovery", published_at=published_at)

        def publish(name: str, job: str, chunk: int, published_at: float) -> None:
            celery_app.publish(self.app, job, chunk, queue=name, published_at=published_at)

        return reconcile(self.table, self.storage, republish, publish=publish, who="test", grace_s=GRACE_S)

    def reconcile_twice(self) -> int:
        """What is missing must be so for a while."""
        first = self.reconcile()
        time.sleep(2 * GRACE_S)
        return first + self.reconcile()

    def length(self, name: str) -> int:
        return int(self.client.llen(QUEUE_PREFIX + name))


@pytest.fixture
def bench(stack: Stack, redis_client: redis.Redis) -> Bench:
    return Bench(stack, redis_client)


def test_messages_that_wait_their_turn_are_not_published_again(bench: Bench) -> None:
    for chunk in range(3):
        bench.add("job", chunk=chunk)
    assert bench.reconcile_twice() == 0


def test_lost_messages_are_sent_again_and_no_others(bench: Bench) -> None:
    for chunk in range(5):
        bench.add("job", chunk=chunk, send=chunk > 1)
    assert bench.reconcile_twice() == 2
    assert bench.reconcile_twice() == 0
    assert bench.length("default") == 5


def test_a_small_jobs_chunk_has_its_turn_without_its_message_while_a_big_job_keeps_the_queue_full(bench: Bench) -> None:
    """A message is leave to work at a chunk whose turn it is; which message was lost does not matter."""
    for chunk in range(5):
        bench.add("big", chunk=chunk)
    bench.add("small", send=False)  # the producer died between the table and the queue
    chunks = [bench.table.next_chunk("default", "big", chunk, exact=False) for chunk in range(2)]
    assert ("small", 0) in chunks


def test_a_chunk_whose_lease_ran_out_is_published_again_and_one_at_work_is_not(bench: Bench) -> None:
    for job in ("dead", "alive"):
        bench.add(job)
    bench.client.delete(QUEUE_PREFIX + "default")
    bench.table.claim("dead", 0, JobSpec(chunk_size=1), claim_id="a", lease_s=0.05)
    bench.table.claim("alive", 0, JobSpec(chunk_size=1), claim_id="b", lease_s=30)
    time.sleep(2 * GRACE_S)
    assert bench.reconcile_twice() == 1
    assert bench.length("recovery") == 1
    assert bench.table.next_chunk("recovery", "dead", 0, exact=True) == ("dead", 0)


def test_a_key_of_another_kind_in_a_queues_place_stops_no_repair(bench: Bench) -> None:
    bench.add("job", send=False)
    bench.client.set(QUEUE_PREFIX + "high", b"no list")
    assert bench.reconcile_twice() == 1


def test_a_job_whose_finalizer_died_gets_its_end(bench: Bench) -> None:
    bench.add("job")
    bench.table.close("job", chunks=1, items=1)
    claim = bench.table.claim("job", 0, JobSpec(chunk_size=1), claim_id="a", lease_s=30)
    assert claim is not None
    bench.table.commit(claim, done=[0], failed=[], lease_s=30)
    assert bench.table.queries.status("job").state == "finalizing"
    bench.reconcile()
    assert bench.table.queries.status("job").state == "succeeded"
    assert bench.table.recovery.active() == []


def test_one_worker_reconciles_at_a_time(bench: Bench) -> None:
    assert bench.table.registry.try_lead("a", 10)
    assert not bench.table.registry.try_lead("b", 10)
