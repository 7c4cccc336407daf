"""`gradcam workers`: what processes tell of themselves, and how they are asked to leave."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import redis
from command import gradcam
from stacks import SMALL, eventually, frozen, mains_of, own_stack

from deploy.programs import free_ports
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


@pytest.mark.parametrize("gone", ["stopped", "killed"])
def test_what_a_worker_told_that_is_gone_is_held_against_nobody(unattended: Client, gone: str) -> None:
    """`doctor` warned of the policy of a worker that had left, below `none is running`."""
    table = unattended.table
    table.redis.delete(keys.WORKERS)
    table.registry.heartbeat("a", warnings=["all addresses are open"])
    table.registry.report_problem("a", "no disk")
    job = unattended.submit([str(PHOTO)], network="resnet50")

    def told() -> str:
        return "\n".join(gradcam(*command).stdout for command in (["doctor"], ["status", job]))

    assert told().count("no disk") == 3
    assert "warn  policy       all addresses are open (a)" in told()
    if gone == "stopped":
        table.registry.deregister("a")
    else:
        table.redis.zadd(keys.WORKERS, {"a": table.registry.now() - 61})
    assert "no disk" not in told()
    assert "warn  workers      none is running" in told()
    assert "warn  policy" not in told()


def test_problems_stand_below_the_table_and_who_is_silent_says_so(unattended: Client) -> None:
    """A problem made the table wider than 300 columns; a process that was killed looked as alive as the others."""
    registry = unattended.table.registry
    unattended.table.redis.delete(keys.WORKERS)
    problem = "the object store refuses the credentials of this worker: " + "look at its AWS_ACCESS_KEY_ID, " * 5
    for name in ("a", "b", "c"):
        registry.heartbeat(name, facts=FACTS)
    registry.report_problem("a", problem)
    unattended.table.redis.zadd(keys.WORKERS, {"b": registry.now() - 31})
    head, *rows = gradcam("workers").stdout.splitlines()
    assert rows.pop() == f"a: {problem}"
    assert len(head) < 120
    assert [row.split()[0] for row in rows] == ["a", "b", "c"]
    assert rows[0].rstrip().endswith("has a problem")
    assert re.search(r"silent for 3[1-9] s\s*$", rows[1])
    assert "silent" not in rows[0] + rows[2]


def test_a_list_of_workers_shows_which_gpu_each_has_and_of_earlier_releases_what_they_tell(unattended: Client) -> None:
    unattended.table.redis.delete(keys.WORKERS)
    for name, device in (("a", "gpu0"), ("b", "gpu1-mig3"), ("c", "cuda")):
        unattended.table.registry.heartbeat(name, facts=FACTS.model_copy(update={"device": device}))
    _, *rows = gradcam("workers").stdout.splitlines()
    assert [row.split()[3] for row in rows] == ["gpu0", "gpu1-mig3", "cuda"]


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


def name_of(main: psutil.Process) -> str:
    return main.environ()["GRADCAM_WORKER_NAME"]


def listed(client: Client) -> set[str]:
    return {found.name for found in client.workers()}


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def two(own: Stack, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A launcher of two processes, with metrics."""
    log, options = tmp_path_factory.mktemp("two") / "log", ["--metrics-port", str(port)]
    worker = Worker(log, own.environment(), processes=2, devices="cpu", options=options)
    worker.start()
    yield worker
    worker.stop()


def deaths(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = re.search(rb"^gradcam_process_deaths_total (\S+)$", answer.read(), re.MULTILINE)
    assert found
    return float(found[1])


def test_processes_whose_launcher_saw_them_die_are_not_called_alive_for_a_minute(
    own: Stack, two: Worker, port: int
) -> None:
    """A job that all who are alive refuse would wait for the word of the dead. The second death leaves nobody."""
    client = Client.from_env()
    eventually(lambda: len(listed(client)) == 2)
    first, second = mains_of(two)
    dead, alive = name_of(first), name_of(second)
    client.table.registry.report_problem(dead, "the disk is full")
    with frozen(second):  # one that is only slow is alive
        first.kill()
        assert eventually(lambda: dead not in listed(client)) < 20
        assert alive in listed(client)
    for key in (keys.WORKERS, keys.QUEUES, keys.RECORDS, keys.PROBLEMS):
        found = client.table.redis.zrange(key, 0, -1) if key == keys.WORKERS else client.table.redis.hkeys(key)
        assert dead.encode() not in found
    second.kill()
    assert eventually(lambda: alive not in listed(client)) < 20
    assert deaths(port) == 2


def test_a_process_that_is_asked_to_leave_finishes_and_is_not_started_again(two: Worker, port: int) -> None:
    """Its launcher stays for the others; nothing of a job is lost, and nobody counts it among the dead."""
    client = Client.from_env()
    eventually(lambda: len([found for found in client.workers() if found.known]) == 2)
    first, second = client.workers()
    job = client.submit([str(PHOTO)] * 400, chunk_size=20, input_size=(64, 64), **SMALL)
    eventually(lambda: any(found.in_hand and found.images_per_s for found in client.workers()))
    gradcam("workers", "drain", first.name)
    eventually(lambda: len(mains_of(two)) == 1)
    eventually(lambda: [found.name for found in client.workers()] == [second.name])
    eventually(lambda: "action=left " in two.log.read_text())
    assert deaths(port) == 2
    status = client.wait(job, timeout_s=60)
    assert (status.done, status.failed) == (400, 0)
    assert len(mains_of(two)) == 1


def test_a_wish_to_leave_is_not_lost_where_the_launchers_folder_cannot_be_written(two: Worker) -> None:
    """The launcher leaves with its last process."""
    client = Client.from_env()
    (second,) = client.workers()
    assert second.launcher is not None
    folder = Path(mains_of(two)[0].environ()["GRADCAM_WORKER_DRAIN_FILE"]).parent
    assert two.process is not None
    with frozen(psutil.Process(two.process.pid)):  # it would make the folder again
        shutil.rmtree(folder)
        folder.write_text("in the way")
    assert "with its 1 process:" in gradcam("workers", "drain", second.launcher).stdout
    eventually(lambda: "action=cannot_leave" in two.log.read_text(), within_s=20)
    assert two.alive
    folder.unlink()
    assert two.process.wait(30) == 0
    assert client.workers() == []
