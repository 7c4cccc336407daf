"""Redis is gone for good: what lies in the store brings its jobs back. The jobs are those that each release wrote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import golden
import pytest
from command import gradcam
from in_process_worker import InProcessWorker

from producer.client.client import Client
from producer.jobs.model.errors import UnknownJob, UsageError
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState

VERSIONS = golden.versions()
LATEST = VERSIONS[-1:]
PHOTOS = [f"s3://gradcam-tests/in/{number}.jpg" for number in range(24)]
MANIFEST = "jobs/worked/manifest/"
#: What a signed address looks like in a record.
SECRET = "https://127.0.0.1/{}.jpg?X-Amz-Signature=secret"


@pytest.fixture
def stored(unattended: Client, request: pytest.FixtureRequest) -> Client:
    """A client of an empty Redis, and of a store in which a release worked: `worked` had ended, `half` had not."""
    golden.load_objects(unattended.storage, request.node.callspec.params["version"])
    return unattended


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
    before = gradcam("recover")
    assert (
        "worked\tcompleted_with_errors\tsqueezenet1_1\t2 done, 1 failed of 3\tnot in Redis\tgradcam recover worked\n"
    ) in before.stdout
    assert before.stderr == ("4 jobs are not in Redis; those that had ended come back by `gradcam recover --all`\n")
    run = gradcam("recover", "--all", code=1)
    assert "worked\tcompleted_with_errors\t2 done, 1 failed\n" in run.stdout
    assert "half\topen\tsqueezenet1_1\t-\tnot in Redis\tgradcam submit IMAGES --name half --network squeezenet1_1 " in (
        run.stdout
    )
    assert run.stderr.endswith("3 jobs are left: submit them again\n")
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
    assert "1 failed images cannot be tried again" in gradcam("recover", "worked").stderr
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


# -- what comes back ---------------------------------------------------------------------------------------------------


# -- many jobs ---------------------------------------------------------------------------------------------------------
