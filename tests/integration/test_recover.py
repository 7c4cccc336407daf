"""Redis is gone for good: what lies in the store brings its jobs back. The jobs are those that each release wrote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import golden
import pytest
import redis
from command import gradcam
from fault_proxy import FaultProxy
from in_process_worker import InProcessWorker

from deploy.stack import Stack
from producer.client.client import Client
from producer.jobs.model.errors import UnknownJob, UsageError
from producer.jobs.model.history import user_and_host
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.redaction import redact
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState, WaitReason

VERSIONS = golden.versions()
LATEST = VERSIONS[-1:]
PHOTOS = [f"s3://gradcam-tests/in/{number}.jpg" for number in range(24)]
MANIFEST = "jobs/worked/manifest/"
#: What a signed address looks like in a record.
SECRET = "https://127.0.0.1/{}.jpg?X-Amz-Signature=secret"


@pytest.fixture
def stored(unattended: Client, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client of an empty Redis, and of a store in which a release worked: `worked` had ended, `half` had not."""
    golden.load_objects(unattended.storage, request.node.callspec.params["version"])
    monkeypatch.setenv("GRADCAM_JOB_LIFETIME_DAYS", "3650")  # the releases did so some time ago
    return Client.from_env()


@pytest.fixture
def alone(unattended: Client) -> Client:
    """A client of an empty Redis, and of a store without any job."""
    held = [key for key in unattended.storage.keys("jobs/") if not key.startswith("jobs/_system/")]
    unattended.storage.delete(held)
    return unattended


def lost(client: Client, job: str, *, images: int = 6, gone: int = 1, size: int = 2) -> bytes:
    """A job whose images have secret addresses has ended, the first ones failed, and Redis is empty; its summary."""
    addresses = [SECRET.format(number) for number in range(images)]
    client.submit(addresses, name=job, chunk_size=size, network="resnet18", outputs=["cam"])
    hands = InProcessWorker(client)
    hands.gone = set(addresses[:gone])
    hands.explain_all(job)
    assert client.status(job).ended
    client.table.redis.flushdb()
    return summary(client, job)


def summary(client: Client, job: str) -> bytes:
    return client.storage.get(f"jobs/{job}/job.json")


def change_status(client: Client, job: str, **changes: object) -> None:
    """Its summary says something else of its end."""
    found = json.loads(summary(client, job))
    found["status"] |= changes
    client.storage.put(f"jobs/{job}/job.json", json.dumps(found).encode())


def listed(client: Client, job: str) -> dict[str, object]:
    """What the list has of a job."""
    return next(found for found in client.stored() if found.job == job).model_dump()


@contextlib.contextmanager
def greedy_worker(client: Client, job: str) -> Iterator[list[int]]:
    """Somebody takes whatever waits, as if messages of other jobs never ended; the chunks of the job that it got."""
    over, got = threading.Event(), list[int]()

    def take() -> None:
        while not over.is_set():
            found = client.table.next_chunk("default", "another", 0, exact=False)
            if isinstance(found, tuple) and found[0] == job:
                got.append(found[1])

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield got
    finally:
        over.set()
        thread.join()


def break_off(client: Client, job: str) -> None:
    """A `gradcam recover` is killed amidst its work; anew where it was quicker."""
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-m", "producer.cli", "recover", job], stdout=subprocess.DEVNULL)
        try:
            ends = time.monotonic() + 60
            while time.monotonic() < ends and client.table.redis.hget(f"gradcam:job:{job}", "done") in {None, b"0"}:
                time.sleep(0.001)
        finally:
            process.kill()
            process.wait()
        status = client.status(job)
        if not status.ended:
            break
        client.delete(job)
    assert (status.state, status.ingest, 0 < status.done < 100) == ("paused", "open", True)


def ours(client: Client) -> dict[str, str | None]:
    """The jobs of the golden files, with what brings them back; other tests have theirs in this store."""
    return {found.job: found.command for found in client.stored() if found.job in {"worked", "half", "many", "plain"}}


def typed(command: str | None, *images: str) -> list[str]:
    """A command as it was printed, with images in the place that is kept for them."""
    assert command is not None
    words = shlex.split(command)
    at = words.index("IMAGES")
    return [*words[1:at], *images, *words[at + 1 :]]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_of_each_release_that_had_ended_comes_back_as_it_was(version: str, stored: Client) -> None:
    assert ours(stored)["worked"] == "gradcam recover worked"
    assert gradcam("recover", "worked").stdout == "worked\tcompleted_with_errors\t2 done, 1 failed\n"
    status = stored.status("worked")
    assert (status.state, status.total, status.failures) == (JobState.COMPLETED_WITH_ERRORS, 3, {"fetch": 1})
    assert [(result.index, result.state, result.id) for result in stored.results("worked")] == [
        (0, "done", "cat 0"),
        (1, "done", "cat 1"),
        (2, "failed", "cat 2"),
    ]
    assert [failure.item.uri for failure in stored.failures("worked")] == [f"{PHOTOS[2]}.gone"]
    assert list(stored.audit("worked")) == []
    assert ours(stored)["worked"] is None
    # It is a job like any other: what failed is tried again.
    assert stored.retry("worked") == 1


@pytest.mark.parametrize("version", LATEST)
def test_a_job_that_came_back_is_the_one_that_was_submitted(version: str, stored: Client) -> None:
    """Its user may type the same command again: nothing is sent, nothing differs."""
    stored.recover("worked")
    before = stored.table.queries.chunks("worked")
    held = golden.read(version, "worked")["gradcam:job:worked:chunks"]["value"]
    assert {str(number): entry for number, entry in before.items()} == held


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_that_was_at_work_comes_back_by_the_command_that_is_shown(version: str, stored: Client) -> None:
    command = ours(stored)["half"]
    with pytest.raises(
        UsageError, match=r"had not ended: only its source knows all of its images; submit it again: gr"
    ):
        stored.recover("half")
    gradcam(*typed(command, *PHOTOS))
    status = stored.status("half")
    recorded = sum(key.startswith("jobs/half/manifest/") for key in golden.read(version, "objects"))
    assert (status.state, status.done, status.total) == (JobState.RUNNING, recorded, 24)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_command_that_is_shown_has_every_parameter(version: str, stored: Client) -> None:
    commands = ours(stored)
    for job in ("many", "plain"):
        gradcam(*typed(commands[job], *PHOTOS[:3]))
        spec = JobSpec.model_validate_json(golden.field(version, "queued", f"gradcam:job:{job}", "spec"))
        assert stored.table.queries.existing_spec(job) == spec


@pytest.mark.parametrize("version", LATEST)
def test_all_jobs_that_had_ended_come_back_at_once_and_the_others_are_told(version: str, stored: Client) -> None:
    names = {job.job for job in stored.stored()}
    for job in names - {"worked", "half", "many", "plain"}:  # of other tests
        stored.storage.delete(list(stored.storage.keys(f"jobs/{job}/")))
    ended = json.loads(summary(stored, "worked"))["status"]["finished_at"]
    before = gradcam("recover")
    assert (
        f"worked\tcompleted_with_errors\tsqueezenet1_1\t2 done, 1 failed of 3\t{ended[:19].replace('T', ' ')} UTC\t"
        "not in Redis\tgradcam recover worked\n"
    ) in before.stdout
    assert before.stderr == (
        "in the commands IMAGES stands for what the job was made from\n"
        "4 jobs are not in Redis, or in part; those that had ended come back by `gradcam recover --all`\n"
    )
    run = gradcam("recover", "--all", code=1)
    assert "worked\tcompleted_with_errors\t2 done, 1 failed\n" in run.stdout
    assert (
        "half\topen\tsqueezenet1_1\t-\t-\tnot in Redis\tgradcam submit IMAGES --name half --network squeezenet1_1 "
        in (run.stdout)
    )
    assert run.stderr.endswith("\n3 jobs are left: submit their images again\n")
    after = {found["job"]: found for found in map(json.loads, gradcam("recover", "--json").stdout.splitlines())}
    assert {job: found["in_redis"] for job, found in after.items()} == {
        "worked": True,
        "half": False,
        "many": False,
        "plain": False,
    }


@pytest.mark.parametrize("version", LATEST)
def test_a_copy_in_another_bucket_is_taken_as_this_one(version: str, stored: Client) -> None:
    """The bucket is lost, too, and its replica has another name."""
    for job in ("worked", "half"):
        summary = json.loads(stored.storage.get(f"jobs/{job}/job.json"))
        summary["spec"]["store"] = "lost-bucket/jobs"
        stored.storage.put(f"jobs/{job}/job.json", json.dumps(summary).encode())
    assert stored.recover("worked").done == 2
    assert [result.state for result in stored.results("worked")] == ["done", "done", "failed"]
    gradcam(*typed(ours(stored)["half"], *PHOTOS))
    assert stored.status("half").done > 0
    for job in ("worked", "half"):
        summary = json.loads(stored.storage.get(f"jobs/{job}/job.json"))
        assert summary["spec"]["store"] == stored.storage.place


def test_weights_that_were_copied_along_are_known_by_their_content(unattended: Client, tmp_path: Path) -> None:
    """A job that was at work in the lost bucket: its user has the weights still, whose address was there."""
    weights = tmp_path / "best.pth"
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    address = f"s3://lost-bucket/jobs/_system/weights/{digest}"
    written = JobSpec(weights=address, weights_sha256=digest, store="lost-bucket/jobs").model_dump(mode="json")
    unattended.storage.put("jobs/copied/job.json", json.dumps({"spec": written, "since": 1}).encode())
    with pytest.raises(UsageError, match=r"other parameters \(--weight-path\)"):
        unattended.submit(PHOTOS[:2], name="copied", weight_path="random")
    unattended.submit(PHOTOS[:2], name="copied", weight_path=weights)
    summary = json.loads(unattended.storage.get("jobs/copied/job.json"))
    assert (summary["spec"]["store"], summary["since"]) == (unattended.storage.place, 1)
    assert summary["spec"]["weights"] == f"s3://{unattended.storage.place}/_system/weights/{digest}"


@pytest.mark.parametrize("version", LATEST)
def test_what_the_store_does_not_have_whole_is_not_made_up(version: str, stored: Client) -> None:
    parts = list(stored.storage.keys(MANIFEST))
    line = stored.storage.get(parts[-1]).decode()
    assert ".gone" in line
    stored.storage.put(parts[-1], line.replace("jpg.gone", "jpg?X-Amz-Signature=***").encode())
    assert "1 failed image cannot be tried again" in gradcam("recover", "worked").stderr
    with pytest.raises(UsageError, match="Redis knows job worked: nothing needs to be recovered"):
        stored.recover("worked")
    stored.delete("worked")
    stored.storage.delete(parts[-1:])
    assert "of 3 images of job worked only the first 2 have a record" in gradcam("recover", "worked", code=2).stderr
    with pytest.raises(UnknownJob):
        stored.table.queries.status("worked")
    with pytest.raises(UnknownJob):
        stored.recover("never-was")
    assert "give names of jobs, or --all" in gradcam("recover", "worked", "--all", code=2).stderr


@pytest.mark.parametrize("version", LATEST)
def test_folders_without_a_summary_or_with_a_torn_one_are_told(version: str, stored: Client) -> None:
    stored.storage.put("jobs/half/job.json", b'{"spec": {')
    stored.storage.delete(["jobs/many/job.json"])
    stored.storage.put("jobs/many/images/00000000/a.jpg", b"-")
    found = {one.job: one for one in stored.stored()}
    assert (found["half"].state, found["many"].state) == ("unreadable", "unknown")
    assert "cannot be read, it is torn or not ours" in str(found["half"].problem)
    assert found["many"].problem == "it had no --name and had not ended: submit its images again"
    assert not {name for name in found if name.startswith("_")}


def test_a_job_whose_objects_were_all_deleted_is_not_listed(unattended: Client) -> None:
    """SeaweedFS keeps its folder for a while."""
    part = "jobs/gone/manifest/00000000-01795759801066-0000-01795759792896.jsonl"
    unattended.storage.put(part, b"")
    assert "gone" in {job.job for job in unattended.stored()}
    unattended.storage.delete([part])
    assert "gone" not in {job.job for job in unattended.stored()}


# -- while it is done --------------------------------------------------------------------------------------------------


def test_no_worker_gets_an_image_of_a_job_that_is_being_recovered(alone: Client) -> None:
    """It would explain it again, from an address that lacks its secret: what was done would have failed."""
    before = lost(alone, "busy")
    with greedy_worker(alone, "busy") as got:
        assert alone.recover("busy").done == 5
    assert got == []
    assert alone.status("busy").failures == {"fetch": 1}
    assert summary(alone, "busy") == before


def test_no_worker_gets_an_image_that_a_submission_takes_over(alone: Client) -> None:
    """Redis was wiped amidst a job: all but the last two images are known."""
    lost(alone, "again", images=60, size=1)
    addresses = [SECRET.format(number) for number in range(62)]
    with greedy_worker(alone, "again") as got:
        alone.submit(addresses, name="again", chunk_size=1, network="resnet18", outputs=["cam"])
    assert set(got) <= {60, 61}
    assert (alone.status("again").done, alone.status("again").pending) == (59, 2)
    InProcessWorker(alone).explain_all("again")
    assert alone.status("again").done == 61


def test_what_a_submission_takes_over_of_a_paused_job_is_no_worker_s_either(alone: Client) -> None:
    addresses = [SECRET.format(number) for number in range(6)]
    lost(alone, "paused", images=4, size=1)
    submitted = {"name": "paused", "chunk_size": 1, "network": "resnet18", "outputs": ["cam"]}
    alone.table.create("paused", json_spec(alone, "paused"), name="paused", lifetime_s=60)
    alone.pause("paused")
    alone.submit(addresses, **submitted)  # type: ignore[arg-type]
    status = alone.status("paused")
    assert (status.state, status.done, status.failed, status.chunks.waiting) == (JobState.PAUSED, 3, 1, 2)


def json_spec(client: Client, job: str) -> JobSpec:
    return JobSpec.model_validate(json.loads(summary(client, job))["spec"])


def test_a_recovery_that_was_killed_goes_on(alone: Client) -> None:
    before = lost(alone, "broken", images=100, size=1)
    break_off(alone, "broken")
    status = alone.status("broken")
    assert status.waits_reason is WaitReason.PAUSED
    assert "`gradcam recover broken` goes on with it" in str(status.waits)
    found = listed(alone, "broken")
    assert (found["in_redis"], found["can_be_recovered"], found["command"]) == (True, True, "gradcam recover broken")
    run = gradcam("recover", "--all")
    assert run.stdout == "broken\tcompleted_with_errors\t99 done, 1 failed\n"
    assert summary(alone, "broken") == before
    assert list(alone.audit("broken")) == []
    assert gradcam("recover").stderr == "Redis has every job of the store\n"


def begin_again(client: Client, job: str, chunks: list[str], *, held: bool) -> None:
    """Whoever makes the job again dies when so many chunks of one image are there, and of none of them more."""
    known = json.loads(summary(client, job))
    created = client.table.create(job, json_spec(client, job), name=job, lifetime_s=60)
    client.table.adopt(job, created.life, known["since"])
    for number, uri in enumerate(chunks):
        claim_id = f"adopt/{created.life}" if held else ""
        client.table.add_chunk(
            job, Chunk.compress(number, [uri_line(uri)]), life=created.life, claim_id=claim_id, lease_s=30
        )


def test_a_chunk_that_a_dead_recovery_holds_is_taken_over(alone: Client) -> None:
    """It died between the chunk and its images' ends; its lease goes on."""
    lost(alone, "held", size=1)
    begin_again(alone, "held", [redact(SECRET.format(0))], held=True)
    assert gradcam("recover", "held").stdout == "held\tcompleted_with_errors\t5 done, 1 failed\n"


def first_part(client: Client, job: str) -> str:
    return next(client.storage.keys(f"jobs/{job}/manifest/"))


def test_replies_of_redis_that_are_lost_meanwhile_cost_no_image(
    alone: Client, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk whose reply is lost is there, and held by nobody else: it must not be taken for one that is done."""
    before, port = lost(alone, "shaky", images=60, size=1), stack.redis.ports["redis"]
    with FaultProxy(port) as proxy:
        monkeypatch.setenv("GRADCAM_REDIS_URL", os.environ["GRADCAM_REDIS_URL"].replace(f":{port}/", f":{proxy.port}/"))
        shaky, over = Client.from_env(), threading.Event()

        def lose() -> None:
            while not over.wait(0.15):
                proxy.lose_replies()

        thread = threading.Thread(target=lose)
        thread.start()
        try:
            found = shaky.recover("shaky")
        finally:
            over.set()
            thread.join()
            shaky.table.redis.close()
        assert proxy.counts["lose_replies"]
    assert (found.state, found.done) == (JobState.COMPLETED_WITH_ERRORS, 59)
    assert summary(alone, "shaky") == before


def test_a_job_that_is_cancelled_while_it_is_recovered_loses_nothing(alone: Client) -> None:
    before = lost(alone, "cancelled", size=1)
    begin_again(alone, "cancelled", [redact(SECRET.format(0))], held=True)
    assert alone.cancel("cancelled").state is JobState.CANCELLED
    assert summary(alone, "cancelled") == before
    with pytest.raises(UsageError, match=r"`gradcam delete cancelled`, then recover it"):
        alone.recover("cancelled")
    alone.delete("cancelled")
    assert alone.recover("cancelled").done == 5


def test_a_submission_that_was_broken_off_is_completed_from_the_store(alone: Client) -> None:
    """Redis was wiped after the job had ended, and whoever submitted it again gave up; a worker has a part of it."""
    addresses = [f"s3://photos/{number}.jpg" for number in range(6)]
    alone.submit(addresses, name="given-up", chunk_size=1, network="resnet18", outputs=["cam"])
    hands = InProcessWorker(alone)
    hands.explain_all("given-up")
    alone.table.redis.flushdb()
    begin_again(alone, "given-up", addresses[:3], held=False)
    chunk = hands.claim("given-up", 0)
    assert chunk is not None
    found = alone.recover("given-up")
    assert (found.state, found.done) == (JobState.RUNNING, 5)
    hands.write(chunk, 0)
    hands.record(chunk)
    hands.release(chunk)
    hands.explain_all("given-up")
    assert alone.status("given-up").state is JobState.SUCCEEDED


def test_a_full_redis_is_told_while_it_is_waited_for(alone: Client, redis_client: redis.Redis) -> None:
    lost(alone, "squeezed")
    told: list[str] = []

    def more_memory(sentence: str) -> None:
        told.append(sentence)
        redis_client.config_set("maxmemory", 0)

    redis_client.config_set("maxmemory", int(int(redis_client.info("memory")["used_memory"]) / 0.9))
    try:
        assert alone.recover("squeezed", waiting=more_memory).done == 5
    finally:
        redis_client.config_set("maxmemory", 0)
    assert "full: waiting for workers to work something off" in told[0]


# -- what comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "total", "done"), [("failed", 0, 0), ("failed", 6, 6), ("cancelled", 6, 6), ("cancelled", 6, 4)]
)
def test_a_job_that_failed_or_was_cancelled_does_not_come_back_as_a_success(
    alone: Client, state: str, total: int, done: int
) -> None:
    """A submission that broke off before its first image left one with none."""
    lost(alone, "bad", gone=0)
    change_status(alone, "bad", state=state, total=total, done=done)
    found = listed(alone, "bad")
    assert found["can_be_recovered"] is False
    assert str(found["command"]).startswith("gradcam submit IMAGES --name bad ")
    with pytest.raises(UsageError, match=rf"job bad was {state}.*submit it again: gradcam submit IMAGES"):
        alone.recover("bad")
    with pytest.raises(UnknownJob):
        alone.status("bad")


def test_a_job_comes_back_with_its_weights_its_history_and_its_time(alone: Client) -> None:
    """A retry that did not know the weights could explain the rest by others."""
    addresses = [f"s3://photos/{number}.jpg" for number in range(3)]
    alone.submit(addresses, name="facts", chunk_size=1, network="resnet18", outputs=["cam"])
    alone.table.annotate("facts", weights_sha256="ab" * 32, layer="layer4.1")
    alone.pause("facts", because="until the review is done")
    alone.resume("facts")
    hands = InProcessWorker(alone)
    hands.gone = {addresses[2]}
    hands.explain_all("facts")
    before, status = json.loads(summary(alone, "facts")), alone.status("facts")
    alone.table.redis.flushdb()
    time.sleep(0.01)
    gradcam("recover", "facts", env={"GRADCAM_USER": "the night shift"})
    assert json.loads(summary(alone, "facts")) == before
    assert alone.table.queries.pinned_weights("facts") == "ab" * 32
    assert alone.status("facts").created_at == status.created_at
    done = [(action.verb, action.who, action.reason) for action in alone.history("facts")]
    assert done == [
        ("pause", user_and_host(), "until the review is done"),
        ("resume", user_and_host(), ""),
        ("recover", "the night shift", ""),
    ]
    alone.retry("facts")
    hands.gone = set()
    hands.explain_all("facts")
    after = json.loads(summary(alone, "facts"))
    assert (after["status"]["state"], after["found"]) == ("succeeded", before["found"])
    assert after["status"]["created_at"] == before["status"]["created_at"]
    assert [action["verb"] for action in after["history"]] == ["pause", "resume", "recover", "retry"]


def test_records_of_another_kind_in_a_summary_do_not_keep_a_job_from_coming_back(alone: Client) -> None:
    lost(alone, "odd")
    found = json.loads(summary(alone, "odd"))
    found |= {"found": {"layer": 4, "weights_sha256": "ab", "more": "x"}, "history": [1, {"verb": "pause"}, None]}
    alone.storage.put("jobs/odd/job.json", json.dumps(found).encode())
    change_status(alone, "odd", created_at="1960-01-01T00:00:00Z")
    assert alone.recover("odd").done == 5
    assert alone.table.queries.facts("odd") == {"weights_sha256": "ab"}
    assert [action.verb for action in alone.history("odd")] == ["recover"]
    assert alone.status("odd").created_at.year == 1970


def test_weights_whose_address_is_not_known_whole_are_told(alone: Client) -> None:
    lost(alone, "secret")
    found = json.loads(summary(alone, "secret"))
    found["spec"] |= {"weights": "https://127.0.0.1/w.pth?***"}
    alone.storage.put("jobs/secret/job.json", json.dumps(found).encode())
    run = gradcam("recover", "secret", "--json")
    assert json.loads(run.stdout)["weights_hidden"] is True
    assert "no record has the whole address of its weights, so nothing of it can be tried again" in run.stderr


# -- many jobs ---------------------------------------------------------------------------------------------------------


def test_a_job_that_does_not_come_back_stops_no_other(alone: Client) -> None:
    for job in ("first", "last"):
        lost(alone, job)
    alone.storage.put("jobs/torn/job.json", b'{"spec": {')
    run = gradcam("recover", "nobody", "first", "torn", "last", "--json", code=4)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(line["job"], line.get("state"), line.get("exit_code")) for line in lines] == [
        ("nobody", None, 2),
        ("first", "completed_with_errors", None),
        ("torn", None, 4),
        ("last", "completed_with_errors", None),
    ]
    assert "there is no job 'nobody'" in run.stderr


def test_a_job_whose_records_are_gone_stops_no_other_of_all(alone: Client) -> None:
    for job in ("first", "gaps", "last"):
        lost(alone, job)
    alone.storage.delete([first_part(alone, "gaps")])
    run = gradcam("recover", "--all", "--json", code=1)
    found = {line["job"]: line for line in map(json.loads, run.stdout.splitlines())}
    assert (found["first"]["done"], found["last"]["done"]) == (5, 5)
    assert "of 6 images of job gaps only the first 0 have a record" in found["gaps"]["error"]
    assert run.stderr.endswith("1 job is left: submit its images again\n")


def test_jobs_that_redis_would_have_forgotten_are_left_out_of_all(alone: Client) -> None:
    """Nobody can tell an old job from one that was deleted without its objects: neither comes back unasked."""
    for job in ("old", "new"):
        lost(alone, job, gone=0)
    change_status(alone, "old", finished_at="2020-02-02T20:20:20Z")
    assert gradcam("recover", "--all").stderr == (
        "1 job that is not in Redis ended longer ago than Redis keeps one (GRADCAM_JOB_LIFETIME_DAYS): "
        "`gradcam recover JOB` brings one back all the same\n"
    )
    run = gradcam("recover")
    assert "\t2020-02-02 20:20:20 UTC\tnot in Redis\tgradcam recover old\n" in run.stdout
    assert run.stderr.endswith("\nRedis has every other job of the store\n")
    assert listed(alone, "old")["expired"] is True
    assert alone.recover("old").done == 6


@pytest.mark.parametrize(
    "key", ["1.jpg", "images/a.jpg", "images/000000000139.jpg", "manifest/list.jsonl", "shards/train.tar"]
)
def test_a_folder_that_is_not_a_job_s_is_none(alone: Client, key: str) -> None:
    """With an empty prefix all folders of the bucket lie beside the jobs."""
    alone.storage.put(f"jobs/photos/{key}", b"x")
    assert list(alone.stored()) == []
    assert gradcam("recover", "--all").stderr == ""


@pytest.mark.parametrize(
    "key", ["images/00000000/a.jpg", "inputs/00000000/a.jpg", "manifest/00000000-1-0.jsonl", "shards/00000000-1-a.tar"]
)
def test_a_folder_with_an_object_of_a_job_is_one(alone: Client, key: str) -> None:
    alone.storage.put(f"jobs/unnamed/{key}", b"x")
    assert listed(alone, "unnamed")["problem"] == "it had no --name and had not ended: submit its images again"


def test_a_job_that_redis_has_and_nobody_can_read_hides_no_other(alone: Client, redis_client: redis.Redis) -> None:
    lost(alone, "other")
    alone.storage.put("jobs/strange/images/00000000/a.jpg", b"x")
    redis_client.set("gradcam:job:strange", "not a hash")
    assert listed(alone, "strange")["state"] == "unreadable"
    assert listed(alone, "other")["can_be_recovered"] is True


def test_what_is_to_be_replaced_in_a_command_is_told(alone: Client) -> None:
    spec = JobSpec(labels=("a", "b"), weights="https://127.0.0.1/w.pth?***", store="gradcam-tests/jobs")
    alone.storage.put("jobs/open/job.json", json.dumps({"spec": spec.model_dump(mode="json")}).encode())
    told = (
        "IMAGES stands for what the job was made from, LABELS stands for your file of class names, *** stands for what "
        "is secret in the address of the weights"
    )
    assert listed(alone, "open")["blanks"] == told
    assert gradcam("recover").stderr.startswith(f"in the commands {told}\n")
    assert f"({told})" in gradcam("recover", "open", code=2).stderr
