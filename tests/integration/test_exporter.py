"""`gradcam metrics` against a real Redis: what it counts, and what it says to a scaler."""

from __future__ import annotations

import errno
import http.client
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest
import redis
from command import gradcam
from exporters import serving
from prometheus_client.parser import text_string_to_metric_families
from stacks import eventually

from deploy.programs import free_ports
from producer.jobs.model import keys, why
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.results import Failure
from producer.jobs.model.spec import PRIORITIES, JobSpec
from producer.jobs.model.states import WaitReason
from producer.jobs.model.waits import STORE
from producer.jobs.table import overview
from producer.jobs.table.overview import device_of
from producer.jobs.table.table import JobTable
from producer.jobs.table.troubles import Kind
from producer.monitoring import exporter
from producer.monitoring.metrics import METRICS, STALL, WAITS, measure
from worker.supervise import gpus, process_plan

LEASE_S = 30.0
NO_HOURS = ("0", "-1", "nan", "inf", "1e308", "x", "")


def add_job(
    table: JobTable, job: str, *, images: int = 8, queue: str = "default", network: str = "resnet50"
) -> JobSpec:
    spec = JobSpec(chunk_size=2, queue=queue, network=network)
    table.create(job, spec, lifetime_s=3600)
    for number in range(images // 2):
        table.add_chunk(job, Chunk.compress(number, [uri_line(f"s3://b/{number}-{n}.jpg") for n in range(2)]))
    table.close(job, chunks=images // 2, items=images)
    return spec


def explain(table: JobTable, job: str, spec: JobSpec, chunk: int = 0, *, failed: bool = False) -> None:
    claim = table.claim(job, chunk, spec, claim_id="me", lease_s=LEASE_S)
    assert claim is not None
    failure = [Failure(index=claim.index(1), item=claim.items[1], reason="fetch", message="gone")] if failed else []
    done = {0: "281 tabby"} if failed else {0: "281 tabby", 1: "281 tabby"}
    table.commit(claim, done=done, failed=failure, lease_s=LEASE_S)


def end(table: JobTable, job: str) -> None:
    mine = table.finalize(job, "me")
    assert mine is not None
    assert table.finish(job, "me", mine)


def get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(address: str) -> dict[str, float]:
    """`name{label="value"}` → value."""
    status, text = get(f"{address}/metrics")
    assert status == 200
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line and line[0] != "#"
    }


@pytest.fixture
def table(unattended: object, redis_client: redis.Redis) -> JobTable:
    """A table that no worker process looks at; this process's environment points at it."""
    return JobTable(redis_client)


def test_jobs_are_counted_by_state_and_priority_and_images_as_they_are_done(
    table: JobTable, redis_client: redis.Redis
) -> None:
    spec = add_job(table, "one", images=8)
    add_job(table, "two", images=4, queue="high")
    add_job(table, "three", images=4)
    table.actions.pause("three")
    explain(table, "one", spec)
    table.claim("one", 1, spec, claim_id="me", lease_s=LEASE_S)
    with serving() as address:
        found = samples(address)
    assert found['gradcam_jobs{priority="default",state="running"}'] == 1
    assert found['gradcam_jobs{priority="default",state="paused"}'] == 1
    assert found['gradcam_jobs{priority="high",state="running"}'] == 1
    assert found['gradcam_jobs{priority="low",state="running"}'] == 0
    assert found['gradcam_open_images{priority="default",state="running"}'] == 6
    assert found['gradcam_open_images{priority="default",state="paused"}'] == 4
    assert found['gradcam_images_in_flight{priority="default"}'] == 2
    assert found['gradcam_chunks_waiting{priority="default"}'] == 2
    assert found['gradcam_chunks_leased{priority="default"}'] == 1
    assert found['gradcam_images_per_second{priority="default"}'] > 0
    assert 0 < found['gradcam_oldest_waiting_seconds{priority="high"}'] < 60
    assert found["gradcam_jobs_kept"] == 3
    assert found["gradcam_redis_up"] == 1
    assert found["gradcam_redis_memory_bytes"] > 0
    redis_client.hdel("gradcam:job:one", "n_open")  # as of release 0.1.0
    with serving() as address:
        assert samples(address)['gradcam_chunks_waiting{priority="default"}'] == 2


def test_ends_and_what_the_reconciler_did_are_counted_once(table: JobTable, redis_client: redis.Redis) -> None:
    spec = add_job(table, "one", images=2)
    explain(table, "one", spec)
    end(table, "one")
    other = add_job(table, "two", images=4)
    explain(table, "two", other, failed=True)
    table.claim("two", 1, other, claim_id="dead", lease_s=LEASE_S)
    table.reclaim_from_dead("two", 1, claim_id="dead", weight=1)
    table.reclaim_from_dead("two", 1, claim_id="dead", weight=1)
    table.claim("two", 1, other, claim_id="silent", lease_s=0.01)
    time.sleep(0.02)
    with serving() as address:
        assert samples(address)['gradcam_chunks_overdue{priority="default"}'] == 1
        table.recovery.reconcile("two")
        table.recovery.reconcile("two")
        assert samples(address)['gradcam_messages_missing{priority="default"}'] == 0
        table.recovery.missing_messages("default", grace_s=60)
        assert samples(address)['gradcam_messages_missing{priority="default"}'] == 1
        assert table.recovery.missing_messages("default", grace_s=0) == [("two", 1)]
        redis_client.lpush(keys.QUEUE_PREFIX + "default", "a message")
        found = samples(address)
    assert found['gradcam_jobs_ended_total{state="succeeded"}'] == 1
    assert found['gradcam_jobs_ended_total{state="failed"}'] == 0
    assert found["gradcam_chunks_reclaimed_total"] == 1
    assert found["gradcam_leases_expired_total"] == 1
    assert found["gradcam_messages_resent_total"] == 1
    assert found['gradcam_messages{queue="default"}'] == 1
    assert found['gradcam_chunks_overdue{priority="default"}'] == 0


def test_workers_are_counted_by_state_and_by_the_priorities_they_read(
    table: JobTable, redis_client: redis.Redis
) -> None:
    for name in ("a-gpu0-0-00aa", "a-gpu0-1-00bb", "a-gpu1-0-00cc", "b-cpu-00dd"):
        table.registry.heartbeat(name, ["high"] if name.startswith("b") else ["default", "low"])
    table.registry.report_problem("a-gpu1-0-00cc", "the device is gone")
    table.registry.waits_for("b-cpu-00dd", "the object store", 20)
    redis_client.zadd(keys.WORKERS, {"c-cpu-00ee": time.time() - 120})
    with serving() as address:
        found = samples(address)
    states = {state: found[f'gradcam_workers{{state="{state}"}}'] for state in ("ready", "waiting", "faulty", "silent")}
    assert states == {"ready": 2, "waiting": 1, "faulty": 1, "silent": 1}
    reading = {priority: found[f'gradcam_workers_reading{{priority="{priority}"}}'] for priority in PRIORITIES}
    assert reading == {"high": 1, "default": 2, "low": 2}
    assert found["gradcam_devices"] == 3
    assert found["gradcam_worker_releases"] == 1


def test_the_device_is_read_out_of_every_name_that_a_launcher_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [gpus.Place(0, "GPU-a"), gpus.Place(1, "MIG-b", 0), gpus.Place(1, "MIG-c", 3)]
    for found, each in ((places, 1), (places, 2), ([], 1), ([], 2)):
        monkeypatch.setattr(gpus, "find_gpus", lambda _, found=found: found)
        planned = process_plan.plan("auto", each)
        devices = {device_of(f"{process.name}-1f3a") for process in planned}
        assert len(devices) == len(planned) / each
        assert all(process.name.startswith(tuple(devices)) for process in planned)


def aged(client: redis.Redis, job: str, age_s: float, *fields: str) -> None:
    """Let a job have been made, or whatever the fields say, so long ago."""
    client.hset(f"gradcam:job:{job}", mapping=dict.fromkeys(fields or ("created_at", "ready_at"), time.time() - age_s))


def stalls(address: str) -> dict[str, int]:
    """priority → hundreds of seconds"""
    found = samples(address)
    return {one: round(found[f'gradcam_longest_stall_seconds{{priority="{one}"}}'] / 100) for one in PRIORITIES}


def pick(table: JobTable, spec: JobSpec, worker: str = "a", queue: str = "default") -> str | None:
    """What a worker does with a message: it takes the chunk whose turn it is, and explains that."""
    found = table.next_chunk(queue, "nothing", 0, exact=False, worker=worker)
    if not isinstance(found, tuple):
        return None
    explain(table, found[0], spec, found[1])
    return found[0]


def test_a_job_that_waits_its_turn_is_not_stuck_and_one_whose_chunk_is_held_is(
    table: JobTable, redis_client: redis.Redis
) -> None:
    spec = add_job(table, "held")
    add_job(table, "behind")
    add_job(table, "urgent", queue="high")
    add_job(table, "later", queue="low")
    for job, age_s in {"held": 1000, "behind": 2000, "urgent": 500, "later": 3000}.items():
        aged(redis_client, job, age_s)
    with serving() as address:
        assert stalls(address) == {"high": 5, "default": 20, "low": 30}  # nobody is there
        table.registry.heartbeat("a", PRIORITIES)
        assert stalls(address) == {"high": 5, "default": 20, "low": 30}  # nobody takes any
        table.claim("held", 0, spec, claim_id="me", lease_s=LEASE_S)
        aged(redis_client, "held", 900, "started_at")
        assert stalls(address) == {"high": 5, "default": 9, "low": 9}  # its worker has recorded nothing
        explain(table, "behind", spec, 0)
        assert stalls(address) == {"high": 5, "default": 9, "low": 0}  # low ones wait their turn
        table.actions.pause("held")
        assert stalls(address) == {"high": 5, "default": 0, "low": 0}


def test_jobs_that_are_made_again_and_again_do_not_hide_that_nobody_takes_any(
    table: JobTable, redis_client: redis.Redis
) -> None:
    table.registry.heartbeat("a", PRIORITIES)
    add_job(table, "one")
    aged(redis_client, "one", 3000)
    add_job(table, "two")
    with serving() as address:
        assert stalls(address)["default"] == 30


def test_a_job_that_is_passed_over_is_stuck_however_busy_the_others_of_its_priority_are(
    table: JobTable, redis_client: redis.Redis
) -> None:
    """A job still for a day beside a busy one counted as one that waits its turn: nobody was ever called."""
    for worker in "ab":
        table.registry.heartbeat(worker, PRIORITIES)
    spec = add_job(table, "alone")
    for job in ("busy", "other"):
        add_job(table, job, images=40)
    aged(redis_client, "alone", 86_400)
    with serving() as address:
        assert [pick(table, spec) for _ in range(3)] == ["alone", "busy", "other"]
        # Since then it has its turn behind the others, however long theirs take.
        aged(redis_client, "alone", 3000, "progress_at", "started_at")
        assert stalls(address)["default"] == 0
        # All workers leave it alone: the next of its priority are taken in its place.
        for worker in "ab":
            table.troubles.tell(worker, "h", "alone", Kind.VERSION, "another version wrote it")
        assert pick(table, spec) == "busy"
        assert stalls(address)["default"] == 30
        assert [pick(table, spec) for _ in range(3)] == ["other", "busy", "other"]
        assert stalls(address)["default"] == 30
        # One that takes it is enough.
        table.troubles.over("alone", "b")
        assert pick(table, spec, "b") == "alone"
        assert stalls(address)["default"] == 0
        assert [pick(table, spec, "b") for _ in range(3)] == ["busy", "other", "alone"]
        assert stalls(address)["default"] == 0


def test_a_job_that_was_paused_or_had_nothing_to_do_could_not_go_on_meanwhile(
    table: JobTable, redis_client: redis.Redis
) -> None:
    table.registry.heartbeat("a", PRIORITIES)
    spec = add_job(table, "paused")
    table.create("slow", spec, lifetime_s=3600)
    add_job(table, "busy", images=40)
    for job in ("paused", "slow"):
        aged(redis_client, job, 86_400)
    table.actions.pause("paused")
    assert [pick(table, spec) for _ in range(3)] == ["busy"] * 3
    table.actions.resume("paused")
    table.add_chunk("slow", Chunk.compress(0, [uri_line("s3://b/0.jpg")]))
    with serving() as address:
        assert stalls(address)["default"] == 0
        aged(redis_client, "slow", 2000, "ready_at")
        assert stalls(address)["default"] == 20


def test_a_submission_that_is_silent_is_a_job_that_does_not_go_on(table: JobTable, redis_client: redis.Redis) -> None:
    """All that was sent has its end, and the job would be `running` for ever."""
    table.registry.heartbeat("a", PRIORITIES)
    table.create("one", JobSpec(chunk_size=2, queue="low"), name="one", lifetime_s=3600)
    aged(redis_client, "one", 5000)
    with serving() as address:
        assert stalls(address)["low"] == 0
        aged(redis_client, "one", 4000, "ingest_at")
        assert stalls(address)["low"] == 40
        table.close("one", chunks=0, items=0)
        assert stalls(address)["low"] == 50  # since it was made: its summary is not written


def test_only_what_every_reader_of_a_priority_reads_before_it_goes_before_its_jobs(
    table: JobTable, redis_client: redis.Redis
) -> None:
    """Work at `high` says nothing of `default` where another worker reads that alone, and takes none of it."""
    spec = add_job(table, "urgent", queue="high")
    add_job(table, "one")
    aged(redis_client, "one", 3000)
    table.registry.heartbeat("a", ["high", "default"])
    explain(table, "urgent", spec)
    with serving() as address:
        assert stalls(address)["default"] == 0
        table.registry.heartbeat("b", ["default", "high"])
        assert stalls(address)["default"] == 30
        table.registry.report_problem("b", "its device is gone")
        assert stalls(address)["default"] == 0
        table.registry.deregister("a")
        assert stalls(address)["default"] == 30


def told_reasons(address: str) -> dict[str, int]:
    found = samples(address)
    counts = {reason: int(found[f'gradcam_waiting_jobs{{reason="{reason}"}}']) for reason in WaitReason}
    return {str(reason): count for reason, count in counts.items() if count}


def test_jobs_that_do_not_go_on_are_counted_by_the_reasons_that_their_status_gives(
    table: JobTable, redis_client: redis.Redis
) -> None:
    """Each step makes another reason come up; the counts are always those of all statuses."""
    specs = {job: add_job(table, job) for job in ("goes-on", "loads", "alone", "broken", "next", "last")}
    add_job(table, "paused")
    table.actions.pause("paused")
    add_job(table, "urgent", queue="high")
    table.create("silent", JobSpec(chunk_size=2), name="silent", lifetime_s=3600)
    aged(redis_client, "silent", 400, "created_at", "ingest_at")
    table.create("sent", JobSpec(chunk_size=2), lifetime_s=3600)
    seen: set[str] = set()

    def compare() -> None:
        statuses = [table.queries.status(job).waits_reason for job in (*specs, "paused", "urgent", "silent", "sent")]
        told = told_reasons(address)
        assert told == dict(Counter(str(reason) for reason in statuses if reason))
        seen.update(told)

    with serving() as address:
        compare()  # no_worker
        table.registry.heartbeat("a", ["high"])
        compare()  # priority_unread
        for worker in "bc":
            table.registry.heartbeat(worker, ["default", "low"])
            table.registry.report_problem(worker, "its device is gone")
        compare()  # workers_faulty
        table.registry.recovered("b")
        compare()  # turn, soon
        for worker, kind in (("b", Kind.REFUSED), ("c", Kind.VERSION)):
            table.troubles.tell(worker, "h", "alone", kind, "no")
        compare()  # workers_refuse
        table.registry.recovered("c")
        compare()
        table.troubles.tell("b", "h", "broken", Kind.ERROR, "it broke")
        compare()  # delayed
        explain(table, "goes-on", specs["goes-on"])
        table.claim("goes-on", 1, specs["goes-on"], claim_id="me", lease_s=LEASE_S)
        claim = table.claim("loads", 0, specs["loads"], claim_id="b", lease_s=LEASE_S)
        assert claim is not None
        compare()
        table.renew(claim, lease_s=LEASE_S, loading=True)
        compare()  # model_loading
        table.renew(claim, lease_s=LEASE_S, marked=[0])
        table.registry.waits_for("b", STORE, 34)
        compare()  # store_unwell
        table.registry.waits_no_more("b")
        table.registry.waits_for("b", "images of a host", 34)
        compare()  # workers_wait
    assert seen == set(WaitReason) - {WaitReason.REDIS_FULL}


def test_a_look_costs_the_same_commands_however_many_images_jobs_have_and_is_bounded_in_jobs(
    table: JobTable, redis_client: redis.Redis
) -> None:
    """Redis has one thread, and whoever asks for metrics is not to hold up workers."""
    table.registry.heartbeat("a", PRIORITIES)

    def commands() -> int:
        """How many commands a look makes, those in scripts included."""

        def calls() -> int:
            told = redis_client.info("commandstats")
            return sum(int(told[name]["calls"]) for name in told.keys() - {"cmdstat_info"})

        reader = JobTable(redis_client).overview
        reader.read()  # what is new is looked at whole
        counts = []
        for _ in range(5):
            before = calls()
            reader.read()
            counts.append(calls() - before)
        return min(counts)  # workers of the same server may ask in the same moment

    add_job(table, "small", images=2)
    small = commands()
    table.actions.cancel("small")
    end(table, "small")
    add_job(table, "large", images=4000)
    assert commands() == small
    for number in range(overview._JOBS_AGAIN):
        add_job(table, f"job{number}", images=2)
    many = commands()
    assert many <= small + 4 * overview._JOBS_AGAIN
    for number in range(overview._JOBS_AGAIN):
        add_job(table, f"more{number}", images=2)
    assert commands() == many


def test_a_scaler_is_told_the_gpus_for_what_is_open_in_hand_included(table: JobTable) -> None:
    spec = add_job(table, "one", images=720)
    table.claim("one", 0, spec, claim_id="me", lease_s=LEASE_S)
    add_job(table, "two", images=80, queue="low", network="vgg16")
    with serving() as address:
        status, text = get(f"{address}/scale?hours=0.1&images_per_s=2")
        assert status == 200
        found = json.loads(text)
        assert found["open_images"] == 800
        assert found["in_flight_images"] == 2
        assert found["gpus_wanted"] == pytest.approx(800 / 2 / 360, abs=1e-3)
        assert found["measured_images"] == 0
        # Two processes share a GPU; each does 5 images/s with this network, as was measured.
        for name in ("a-gpu0-0-00aa", "a-gpu0-1-00bb"):
            table.registry.heartbeat(name)
        table.registry.note_speed("resnet50", 5.0, processes=2)
        found = json.loads(get(f"{address}/scale?hours=0.1&images_per_s=2")[1])
        assert found["measured_images"] == 720
        assert found["gpu_seconds"] == pytest.approx(720 / 10 + 80 / 2)
        assert found["images_per_s_per_gpu"] == pytest.approx(800 / 112, abs=1e-3)
        assert found["gpus_wanted"] == pytest.approx(112 / 360, abs=1e-3)
        assert found["gpus"] == 1
        assert json.loads(get(f"{address}/scale?priority=low")[1])["open_images"] == 80
        gauges = samples(address)
        assert gauges['gradcam_forecast_gpu_seconds{priority="default"}'] == pytest.approx(72)


def test_from_none_a_scaler_counts_by_the_speed_that_was_measured_before(table: JobTable) -> None:
    """Who counts by a slow default orders many times the workers, and keeps them for an hour."""
    table.registry.note_speed("resnet50", 200.0, processes=2)
    add_job(table, "one", images=720)
    add_job(table, "two", images=720, network="vgg16")
    with serving() as address:
        found = json.loads(get(f"{address}/scale?hours=0.1&images_per_s=20")[1])
        assert (found["gpus"], found["measured_images"]) == (0, 720)
        assert found["gpu_seconds"] == pytest.approx(720 / 400 + 720 / 20)
        # Two processes of one device say nothing new.
        for name in ("a-gpu0-0-00aa", "a-gpu0-1-00bb"):
            table.registry.heartbeat(name)
        assert json.loads(get(f"{address}/scale?hours=0.1&images_per_s=20")[1])["gpu_seconds"] == found["gpu_seconds"]


def test_a_speed_that_a_worker_of_an_earlier_release_kept_counts_without_workers(
    table: JobTable, redis_client: redis.Redis
) -> None:
    """It is of one process: too slow where two shared a GPU, and nearer than a default."""
    redis_client.hset(keys.SPEEDS, "resnet50", "200.00")
    add_job(table, "one", images=720)
    with serving() as address:
        assert json.loads(get(f"{address}/scale")[1])["gpu_seconds"] == pytest.approx(720 / 200, abs=1e-3)


def test_a_scaler_is_told_0_only_when_the_last_summary_is_written(table: JobTable) -> None:
    """A job whose images are done needs a worker for its summary; one image in hand is not nothing."""
    spec = add_job(table, "one", images=2)
    with serving() as address:

        def wanted() -> float:
            return float(json.loads(get(f"{address}/scale?hours=100")[1])["gpus_wanted"])

        claim = table.claim("one", 0, spec, claim_id="me", lease_s=LEASE_S)
        assert claim is not None
        assert wanted() >= 0.01
        table.commit(claim, done={0: "", 1: ""}, failed=[], lease_s=LEASE_S)
        assert wanted() >= 0.01
        end(table, "one")
        assert wanted() == 0


def test_paused_jobs_want_no_gpu(table: JobTable) -> None:
    add_job(table, "one")
    table.actions.pause("one")
    with serving() as address:
        assert json.loads(get(f"{address}/scale")[1])["gpus_wanted"] == 0


@pytest.mark.parametrize(
    ("query", "said"),
    [
        *[(f"hours={word}", f"hours '{word}' is no number from 0.000001 to 1000000000") for word in NO_HOURS],
        ("images_per_s=0", "images_per_s '0' is no number from 0.000001 to 1000000000"),
        ("&".join(["priority=high"] * 21), "more than 20 parameters are given: leave some out"),
        ("hours=1&hours=2", "hours is given 2 times: give it once"),
        ("priority=x", "priority 'x' is none: use high, default, low"),
        ("hour=4", "'hour' is not understood: there are hours, images_per_s and priority"),
    ],
)
def test_what_a_scaler_asks_wrongly_is_a_sentence(table: JobTable, query: str, said: str) -> None:
    """A misspelt `hour` that counts as 4 hours would start the wrong number of GPUs for months."""
    with serving() as address:
        status, text = get(f"{address}/scale?{query}")
    assert status == 400
    assert json.loads(text) == {"error": said}


def test_without_redis_metrics_say_so_and_a_scaler_is_told_no_number(
    table: JobTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes 0 for an answer stops workers that are at work."""
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://127.0.0.1:1/0")
    told: list[str] = []
    with serving(told=told) as address:
        assert samples(address) == {"gradcam_redis_up": 0}
        assert get(f"{address}/scale")[0] == 503
        assert get(f"{address}/healthz") == (200, "ok\n")
        samples(address)
    assert len(told) == 1, "once, not each time"
    assert "Redis has been away" in told[0]


def test_other_paths_and_methods_are_answered_with_a_sentence(table: JobTable) -> None:
    with serving() as address:
        assert get(address)[0] == 404
        for path in ("metrics", "scale", "healthz"):
            request = urllib.request.Request(f"{address}/{path}", data=b"x", method="POST")
            with pytest.raises(urllib.error.HTTPError, match="405") as refused:
                urllib.request.urlopen(request, timeout=30)
            with refused.value as answer:
                assert answer.headers["Allow"] == "GET, HEAD"
                assert answer.read() == b"POST is not answered: use GET or HEAD\n"


@pytest.mark.parametrize("path", ["metrics", "scale", "healthz", "nothing"])
def test_a_head_is_answered_as_a_get_without_its_text(table: JobTable, path: str) -> None:
    """Probes and proxies ask so."""
    with serving(keep_s=60) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
        answers = []
        for method in ("GET", "HEAD"):
            connection.request(method, f"/{path}")
            with connection.getresponse() as answer:
                answers.append((answer.status, answer.headers["Content-Type"], len(answer.read())))
                told = int(answer.headers["Content-Length"])
            connection.close()
    (status, kind, length), head = answers
    assert head == (status, kind, 0)
    assert told == length


def test_who_asks_again_within_some_seconds_costs_redis_nothing(table: JobTable, redis_client: redis.Redis) -> None:
    def commands() -> int:
        return int(redis_client.info("stats")["total_commands_processed"])

    def asked() -> int:
        before = commands()
        for _ in range(20):
            samples(address)
            get(f"{address}/scale")
        return commands() - before

    add_job(table, "one")
    with serving(keep_s=60) as address:
        samples(address)
        # The INFO of this test is one. A worker of the same server may ask in the same moment, but not each time.
        eventually(lambda: asked() == 1, within_s=10)


def test_what_others_wrote_into_redis_takes_nothing_from_the_rest(table: JobTable, redis_client: redis.Redis) -> None:
    add_job(table, "good")
    for number, (field, value) in enumerate(
        [("total", "many"), ("total", "9" * 400), ("created_at", "nan"), ("state", "dancing"), ("done", "-1")]
    ):
        add_job(table, f"bad{number}")
        redis_client.hset(f"gradcam:job:bad{number}", field, value)
    add_job(table, "kind")
    redis_client.delete("gradcam:job:kind:waiting")
    redis_client.set("gradcam:job:kind:waiting", "x")
    redis_client.sadd(keys.ACTIVE, "gone", "../../etc")
    redis_client.set(keys.COUNTS, "x")
    redis_client.set(keys.SPEEDS, "x")
    redis_client.hset(keys.DEVICE_SPEEDS, mapping={"resnet50": "-3", "vgg16": "fast", b"\xff": "nan"})
    redis_client.set(keys.QUEUE_PREFIX + "low", "x")
    redis_client.hset(keys.WAITS, "w", "{")
    redis_client.hset(keys.QUEUES, "w", b"\xff,high")
    redis_client.zadd(keys.WORKERS, {b"w": time.time(), b"\xff\n": 5.0})
    with serving() as address:
        found = samples(address)
        assert found['gradcam_jobs{priority="default",state="running"}'] == 1
        assert found['gradcam_jobs{priority="unknown",state="unknown"}'] == 6
        assert found['gradcam_workers_reading{priority="high"}'] == 1
        assert get(f"{address}/scale")[0] == 200
    explained = table.queries.spec("good")
    assert explained is not None
    for chunk in range(4):
        explain(table, "good", explained[0], chunk)
    end(table, "good")  # also where its end cannot be counted
    assert table.queries.status("good").ended


def test_every_declared_metric_is_served_as_it_is_declared_and_no_job_is_named(table: JobTable) -> None:
    add_job(table, "a-name-to-be-found")
    with serving() as address:
        text = get(f"{address}/metrics")[1]
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == {metric.name for metric in METRICS}
    for metric in METRICS:
        family = families[metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.words)
        assert all(set(sample.labels) == set(metric.labels) for sample in family.samples)
    assert "a-name-to-be-found" not in text


def test_the_number_of_series_does_not_grow_with_jobs_or_workers(table: JobTable) -> None:
    with serving() as address:
        before = len(samples(address))
        for number in range(30):
            add_job(table, f"job{number}", images=2, network=f"network{number}")
            table.registry.heartbeat(f"host{number}-cpu-00aa")
        assert len(samples(address)) == before


def test_a_client_that_says_nothing_keeps_nobody_waiting(table: JobTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter._Handler, "timeout", 1.0)
    with serving() as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as silent:
            silent.sendall(b"GET /metrics HT")
            assert samples(address)["gradcam_redis_up"] == 1
            assert silent.recv(1) == b""  # cut off


def test_of_many_jobs_a_look_looks_at_some_and_forgets_those_that_are_gone(
    table: JobTable, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a look costs the same with a thousand jobs; each is told from the first look on, and comes up again."""
    monkeypatch.setattr(overview, "_JOBS_AGAIN", 4)
    monkeypatch.setattr(overview, "_JOBS_AT_ONCE", 3)
    specs = {f"job{number}": add_job(table, f"job{number}", images=4) for number in range(10)}

    def open_images() -> int:
        return sum(job.left for job in table.overview.read().jobs)

    assert open_images() == 40
    for job, spec in specs.items():
        explain(table, job, spec)
    assert [open_images() for _ in range(3)] == [32, 24, 20]
    explain(table, "job3", specs["job3"], 1)
    end(table, "job3")
    assert open_images() == 18
    redis_client.delete("gradcam:job:job4")
    add_job(table, "new", images=6)
    for _ in range(3):
        found = open_images()
    assert found == 16 + 6


def test_a_job_that_was_not_looked_at_for_a_while_is_not_told_to_have_stood_still_meanwhile(
    table: JobTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With some thousand jobs minutes lie between two looks at one: those that a worker held counted as stuck."""
    monkeypatch.setattr(overview, "_JOBS_AGAIN", 1)
    monkeypatch.setattr(why, "MOVES_S", 2.0)
    table.registry.heartbeat("a", PRIORITIES)
    spec = {job: add_job(table, job) for job in ("first", "later")}["later"]
    for job in ("first", "later"):
        explain(table, job, spec, 0)
        table.claim(job, 1, spec, claim_id="me", lease_s=LEASE_S)
    table.overview.read()
    time.sleep(3)
    for job in ("first", "later"):
        explain(table, job, spec, 1)
        table.claim(job, 2, spec, claim_id="me", lease_s=LEASE_S)
    table.registry.waits_for("a", "pictures.example", 0)
    found = table.overview.read()
    assert [round(found.at - job.seen_at) for job in found.jobs] == [3, 0]
    measured = dict(measure(found, 20))
    assert measured[STALL]["default",] < 2
    assert measured[WAITS][WaitReason.WORKERS_WAIT,] == 0


@pytest.mark.parametrize("address", ["..", "x" * 64 + ".example", "nobody.invalid", "192.0.2.1"])
def test_an_address_that_is_not_of_this_machine_is_a_sentence_that_names_the_address(
    table: JobTable, address: str
) -> None:
    """Names that no host can have are another error to Python than names that nobody knows: a traceback."""
    said = " ".join(gradcam("metrics", "--address", address, "--port", str(free_ports(1)[0]), code=2).stderr.split())
    assert f"no metrics can be served at '{address}' (" in said
    assert "name an address of this machine" in said
    assert "another port" not in said


def reached(host: str) -> bool:
    """Whether this machine has an address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as made:
        return made.connect_ex((host, 9)) != errno.EADDRNOTAVAIL


@pytest.mark.usefixtures("table")
def test_all_addresses_are_those_of_ipv4_and_of_ipv6() -> None:
    """The chart serves there: a pod's address may be one of either kind."""
    with serving(place="::") as address:
        port = address.rpartition(":")[2]
        assert get(f"http://127.0.0.1:{port}/healthz") == (200, "ok\n")
        if socket.has_dualstack_ipv6() and reached("::1"):
            assert get(f"http://[::1]:{port}/healthz") == (200, "ok\n")


@pytest.mark.usefixtures("table")
def test_all_addresses_of_a_machine_without_ipv6_are_those_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with serving(place="::") as address:
        assert get(f"{address}/healthz") == (200, "ok\n")
        with pytest.raises(OSError, match=r"."):  # refused, or there is no such address
            socket.create_connection(("::1", int(address.split(":")[2])), timeout=5)


def test_the_command_serves_until_it_is_stopped_and_a_port_in_use_is_a_sentence(table: JobTable) -> None:
    add_job(table, "one")
    port = str(free_ports(1)[0])
    command = [sys.executable, "-m", "producer.cli", "metrics", "--port", port]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == f"http://127.0.0.1:{port}/metrics\n"
            assert samples(f"http://127.0.0.1:{port}")["gradcam_jobs_kept"] == 1
            assert "choose another port" in gradcam("metrics", "--port", port, code=2).stderr
        finally:
            process.terminate()
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_in_containers_the_exporter_writes_its_lines_as_json(
    table: JobTable, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What collects the lines of workers reads these, too."""
    monkeypatch.setenv("GRADCAM_LOG", "json")
    port = str(free_ports(1)[0])
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://127.0.0.1:1/0")
    command = [sys.executable, "-m", "producer.cli", "metrics", "--port", port]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = [json.loads(process.stderr.readline())]
            assert samples(f"http://127.0.0.1:{port}") == {"gradcam_redis_up": 0}
            lines.append(json.loads(process.stderr.readline()))
        finally:
            process.terminate()
    assert [(line["level"], line["action"]) for line in lines] == [("INFO", "serving"), ("WARNING", "redis_away")]
    assert lines[0]["message"] == f"http://127.0.0.1:{port}/metrics"
    assert "Redis has been away" in lines[1]["message"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)


def test_answers_go_on_where_nobody_reads_the_exporters_lines_any_more(
    table: JobTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = str(free_ports(1)[0])
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://127.0.0.1:1/0")
    command = [sys.executable, "-m", "producer.cli", "metrics", "--port", port]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()
            process.stderr.close()
            assert samples(f"http://127.0.0.1:{port}") == {"gradcam_redis_up": 0}
            assert process.poll() is None
        finally:
            process.terminate()
