"""`gradcam workers`: what processes tell of themselves, and how they are asked to leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from command import gradcam
from stacks import SMALL, eventually, mains_of, own_stack

from deploy.stack import Worker
from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import UsageError
from producer.jobs.model.worker_record import WorkerFacts
from producer.jobs.table.table import JobTable
from worker.chunks.work_meter import WorkMeter

if TYPE_CHECKING:
    from deploy.stack import Stack

PHOTO = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"
FACTS = WorkerFacts(host="lab7", launcher="lab7-1-x", device="cpu", version="0.4.0", network="resnet50", batch_size=8)


@pytest.fixture
def table(redis_client: redis.Redis) -> JobTable:
    return JobTable(redis_client)


def test_a_worker_is_listed_with_what_it_told_until_it_is_silent(table: JobTable, redis_client: redis.Redis) -> None:
    table.registry.heartbeat("a", ("high",), facts=FACTS)
    table.registry.heartbeat("b")  # an earlier release
    table.registry.report_problem("a", "no disk")
    first, second = table.registry.workers()
    assert (first.name, first.known, first.host, first.network, first.queues) == ("a", True, "lab7", "resnet50", "high")
    assert (first.problem, first.draining) == ("no disk", False)
    assert (second.name, second.known, second.host, second.images_per_s) == ("b", False, "", None)
    redis_client.zadd(keys.WORKERS, {"a": table.registry.now() - 61})
    assert [worker.name for worker in table.registry.workers()] == ["b"]
    assert 0 < redis_client.ttl(keys.RECORDS) <= keys.PROBLEM_LIFETIME_S
    table.registry.deregister("a")
    assert not redis_client.exists(keys.RECORDS)


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"host": 1}', b"{" + b" " * 100_000 + b"}", b"null",
     FACTS.model_dump_json().replace("lab7-1-x", "x" * 500).encode(),
     FACTS.model_dump_json().replace('"in_hand":0', '"in_hand":-1').encode(),
     FACTS.model_dump_json().replace('"busy":0.0', '"busy":NaN').encode(),
     FACTS.model_dump_json().replace('"busy":0.0', '"busy":2').encode()],
)  # fmt: skip
def test_a_record_that_is_not_as_we_write_it_leaves_its_worker_unknown(
    table: JobTable, redis_client: redis.Redis, record: bytes
) -> None:
    table.registry.heartbeat("a", facts=FACTS)
    redis_client.hset(keys.RECORDS, "a", record)
    (worker,) = table.registry.workers()
    assert (worker.name, worker.known, worker.host) == ("a", False, "")


def test_a_record_of_a_newer_release_is_read_as_far_as_it_is_known(table: JobTable, redis_client: redis.Redis) -> None:
    table.registry.heartbeat("a", facts=FACTS)
    redis_client.hset(keys.RECORDS, "a", json.dumps(FACTS.model_dump() | {"version": "9.0.0", "watts": 300}))
    (worker,) = table.registry.workers()
    assert (worker.known, worker.version, worker.host) == (True, "9.0.0", "lab7")


def test_what_strangers_write_of_workers_stays_in_its_cell(unattended: Client, redis_client: redis.Redis) -> None:
    evil = "\x1b[2Jgone\nname  host " + "x" * 5000
    unattended.table.registry.heartbeat(evil[:100], facts=FACTS.model_copy(update={"host": evil[:200]}))
    redis_client.hset(keys.PROBLEMS, evil[:100], evil)
    told = gradcam("workers").stdout
    assert "\x1b" not in told
    assert len(told) < 5000
    (row,) = json.loads(gradcam("workers", "--json").stdout)
    assert len(row["problem"]) <= 500


def test_who_shall_leave_is_named_clearly_and_must_be_there(unattended: Client) -> None:
    registry = unattended.table.registry
    for name in ("a", "b"):
        registry.heartbeat(name, facts=FACTS)
    with pytest.raises(UsageError, match="no worker process or launcher"):
        unattended.drain("c")
    assert registry.asked_to_leave(["a", "lab7-1-x"]) == set()
    assert gradcam("workers", "drain", "a").stdout == "process a finishes its batch and leaves\n"
    assert [worker.draining for worker in registry.workers()] == [True, False]
    assert registry.asked_to_leave(["a", "lab7-1-x"]) == {"a"}
    assert gradcam("workers", "drain", "lab7-1-x").stdout == "launcher lab7-1-x leaves with its 2 processes: a, b\n"
    assert [worker.draining for worker in registry.workers()] == [True, True]
    assert "write `gradcam workers`" in gradcam("workers", "drian", "a", code=2).stderr


def test_speed_and_busy_share_are_over_the_last_minute() -> None:
    now = 1000.0
    meter = WorkMeter(lambda: now)
    assert meter.facts() == {"network": None, "batch_size": None, "images_per_s": 0.0, "busy": 0.0}
    for _ in range(10):
        now += 1.0
        meter.computed("resnet50", 8, 0.5)
    assert meter.facts() == {"network": "resnet50", "batch_size": 8, "images_per_s": 8.42, "busy": 0.526}
    now += 61
    assert meter.facts() == {"network": "resnet50", "batch_size": 8, "images_per_s": 0.0, "busy": 0.0}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with own_stack(tmp_path_factory.mktemp("workers")) as stack:
        yield stack


def test_a_process_that_is_asked_to_leave_finishes_and_is_not_started_again(own: Stack, tmp_path: Path) -> None:
    """Its launcher stays for the others, and leaves with the last; nothing of a job is lost."""
    client = Client.from_env()
    worker = Worker(tmp_path / "log", own.environment(), processes=2, devices="cpu")
    worker.start()
    try:
        eventually(lambda: len([found for found in client.workers() if found.known]) == 2)
        first, second = client.workers()
        job = client.submit([str(PHOTO)] * 400, chunk_size=20, input_size=(64, 64), **SMALL)
        eventually(lambda: any(found.in_hand and found.images_per_s for found in client.workers()))
        gradcam("workers", "drain", first.name)
        eventually(lambda: len(mains_of(worker)) == 1)
        eventually(lambda: [found.name for found in client.workers()] == [second.name])
        status = client.wait(job, timeout_s=60)
        assert (status.done, status.failed) == (400, 0)
        assert second.launcher is not None
        assert len(mains_of(worker)) == 1
        assert "with its 1 processes" in gradcam("workers", "drain", second.launcher).stdout
        assert worker.process is not None
        assert worker.process.wait(30) == 0
        assert client.workers() == []
    finally:
        worker.stop()
