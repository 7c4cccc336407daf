"""Every release's jobs are read by today's code: what it wrote into Redis and the store lies in tests/golden/."""

from __future__ import annotations

import json
from typing import Any, cast

import golden
import pytest
import redis
from command import Run, gradcam
from releases import own_version

from producer.client.client import Client
from producer.jobs.broker.celery_app import BadMessage, Pointer, read_pointer
from producer.jobs.model.errors import OtherVersion, UsageError
from producer.jobs.model.items import decompress_items
from producer.jobs.model.results import Failure, Result
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState

VERSIONS = golden.versions()
#: The keys of 0.1.0 in Redis had other names: its jobs end before the update, or are submitted again by name.
IN_REDIS = VERSIONS[1:]
PHOTOS = [f"s3://gradcam-tests/in/{number}.jpg" for number in range(24)]
SMALL = ("--network", "squeezenet1_1", "--weight-path", "random", "--outputs", "cam")
LISTED = "uri,id\n" + "".join(
    f"{uri},cat {number}\n" for number, uri in enumerate([PHOTOS[0], PHOTOS[1], f"{PHOTOS[2]}.gone"])
)
#: What a release wrote, and what it wrote of it otherwise than today's.
PLAIN = JobSpec(store=golden.PLACE)


@pytest.fixture
def loaded(unattended: Client, redis_client: redis.Redis, request: pytest.FixtureRequest) -> Client:
    """A client of a Redis and a store that hold what a release wrote while it worked."""
    version = request.node.callspec.params["version"]
    golden.load_objects(unattended.storage, version)
    golden.load_redis(redis_client, golden.read(version, "worked"))
    return unattended


@pytest.fixture
def queued(unattended: Client, redis_client: redis.Redis, request: pytest.FixtureRequest) -> Client:
    """The same, of jobs that no worker has seen."""
    golden.load_redis(redis_client, golden.read(request.node.callspec.params["version"], "queued"))
    return unattended


@pytest.fixture
def listed(tmp_path: Any) -> str:
    """The list that `worked` was made from."""
    path = tmp_path / "list.csv"
    path.write_text(LISTED)
    return str(path)


def again(source: tuple[str, ...], name: str, *more: str) -> Run:
    """What its user would type again."""
    return gradcam("submit", *source, "--name", name, *SMALL, *more)


# -- the next release cannot be forgotten ------------------------------------------------------------------------------


def test_this_version_has_golden_files() -> None:
    """`make release-files` makes them; a release without them could be broken by the next one unseen."""
    assert own_version() in VERSIONS


def test_a_job_that_asks_for_nothing_new_is_written_as_the_last_release_wrote_it() -> None:
    """So its workers do it. A new parameter is written where somebody asks for it: `exclude_if` of its field."""
    latest = golden.field(VERSIONS[-1], "queued", "gradcam:job:plain", "spec")
    assert PLAIN.model_dump_json() == latest


@pytest.mark.parametrize("version", VERSIONS)
def test_a_default_means_today_what_it_meant_to_the_release(version: str) -> None:
    """A job that names no parameter is the same job in all releases: what was left out is what it was."""
    assert JobSpec.model_validate_json(golden.field(version, "queued", "gradcam:job:plain", "spec")) == PLAIN


# -- messages, chunks, specs, records ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_spec_with_every_parameter_of_the_release_is_read(version: str) -> None:
    spec = JobSpec.model_validate_json(golden.field(version, "queued", "gradcam:job:many", "spec"))
    assert (spec.layer, spec.method, spec.top_k, spec.pack, spec.queue) == (
        "last-features",
        "layercam",
        2,
        "tar",
        "high",
    )
    assert (
        json.loads(golden.field(version, "queued", "gradcam:job:many", "spec")).items()
        <= json.loads(spec.model_dump_json()).items()
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_chunk_is_unpacked(version: str) -> None:
    payload = golden.unpacked(golden.read(version, "queued")["gradcam:job:plain:items"]["value"]["0"])
    assert [item.uri for item in decompress_items(payload).values()] == PHOTOS[:3]


@pytest.mark.parametrize("version", IN_REDIS)
def test_a_message_points_to_its_chunk(version: str) -> None:
    (message,) = golden.read(version, "queued")["gradcam:queue:default"]["value"]
    pointer = read_pointer(message.encode())
    assert (pointer.job, pointer.chunk) == ("plain", 0)
    assert isinstance(pointer, Pointer)


def test_a_message_of_the_first_release_is_dropped_in_a_sentence() -> None:
    """Nothing is lost by that: its jobs are submitted again by name."""
    (message,) = golden.read(VERSIONS[0], "queued")["gradcam:queue:default"]["value"]
    with pytest.raises(BadMessage):
        read_pointer(message.encode())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_record_and_failure_is_read(version: str) -> None:
    objects, held = golden.read(version, "objects"), golden.read(version, "worked")
    lines = [
        line
        for key, text in objects.items()
        if "/manifest/" in key
        for line in text.splitlines()
        if key.startswith("jobs/worked/")
    ]
    found = [Result.model_validate_json(line) for line in lines]
    assert sorted((result.index, result.state, result.id) for result in found) == [
        (0, "done", "cat 0"),
        (1, "done", "cat 1"),
        (2, "failed", "cat 2"),
    ]
    failures = held["gradcam:job:worked:failures"]["value"]
    assert Failure.model_validate_json(failures["2"]).reason == "fetch"


# -- verbs on its jobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", IN_REDIS)
def test_jobs_of_the_release_are_listed_and_told(version: str, loaded: Client) -> None:
    worked, half = loaded.status("worked"), loaded.status("half")
    assert (worked.state, worked.done, worked.failed, worked.total) == (JobState.COMPLETED_WITH_ERRORS, 2, 1, 3)
    assert worked.failures == {"fetch": 1}
    assert worked.problem is None
    assert (half.state, half.total, half.failed) == (JobState.PAUSED, 24, 0)
    assert 0 < half.done < 24
    assert {job.job for job in loaded.list()} == {"worked", "half"}
    assert [failure.index for failure in loaded.failures("worked")] == [2]
    assert [(result.index, result.state) for result in loaded.results("worked")] == [
        (0, "done"),
        (1, "done"),
        (2, "failed"),
    ]
    assert list(loaded.audit("worked")) == []
    assert gradcam("doctor").stdout


@pytest.mark.parametrize("version", IN_REDIS)
def test_a_failed_image_of_the_release_is_tried_again(version: str, loaded: Client, redis_client: redis.Redis) -> None:
    assert loaded.retry("worked") == 1
    status = loaded.status("worked")
    assert (status.state, status.pending, status.generation) == (JobState.RUNNING, 1, 2)
    (message,) = cast("list[bytes]", redis_client.lrange("gradcam:queue:default", 0, -1))
    assert read_pointer(message).job == "worked"


@pytest.mark.parametrize("version", IN_REDIS)
def test_a_paused_job_of_the_release_goes_on_and_is_cancelled_and_deleted(version: str, loaded: Client) -> None:
    assert loaded.resume("half").state is JobState.RUNNING
    spec = loaded.table.queries.existing_spec("half")
    waiting = min(set(range(24)) - {result.index for result in loaded.results("half")})
    claim = loaded.table.claim("half", waiting, spec, claim_id="me", lease_s=30)
    assert claim is not None
    assert loaded.cancel("half").state is JobState.CANCELLED
    loaded.delete("half", objects=True)
    assert list(loaded.storage.keys("jobs/half/")) == []
    assert [job.job for job in loaded.list()] == ["worked"]


@pytest.mark.parametrize("version", IN_REDIS)
def test_a_missing_picture_of_the_release_is_made_again(version: str, loaded: Client) -> None:
    gone = "jobs/worked/images/00000001/1-squeezenet1_1-cam.jpg"
    loaded.storage.delete([gone])
    assert [(finding.kind, finding.key) for finding in loaded.audit("worked", repair=True)] == [("missing", gone)]
    assert loaded.status("worked").pending == 1


@pytest.mark.parametrize("version", IN_REDIS)
def test_a_job_is_submitted_again_while_redis_has_it(version: str, queued: Client) -> None:
    """Its spec has not all of today's parameters: what was not there is what it is by default."""
    gradcam("submit", *PHOTOS[:3], "--name", "plain")
    assert queued.status("plain").total == 3
    with pytest.raises(UsageError, match=r"other parameters \(--top-k\)"):
        queued.submit(PHOTOS[:3], name="plain", top_k=2)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_is_rebuilt_from_the_store_after_a_wipe(
    version: str, loaded: Client, redis_client: redis.Redis, listed: str
) -> None:
    redis_client.flushdb()
    again((listed, "--id-column", "id"), "worked", "--chunk-size", "2")
    again(tuple(PHOTOS), "half", "--chunk-size", "1")
    worked, half = loaded.status("worked"), loaded.status("half")
    assert (worked.state, worked.done, worked.failed) == (JobState.COMPLETED_WITH_ERRORS, 2, 1)
    recorded = sum("/manifest/" in key for key in golden.read(version, "objects") if key.startswith("jobs/half/"))
    assert (half.state, half.done, half.total) == (JobState.RUNNING, recorded, 24)


# -- what a newer release wrote ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS[-1:])
def test_a_job_of_a_newer_release_is_refused_where_its_spec_matters_and_told_where_not(
    version: str, loaded: Client, redis_client: redis.Redis
) -> None:
    spec = json.loads(golden.field(version, "worked", "gradcam:job:half", "spec")) | {"something": "new"}
    redis_client.hset("gradcam:job:half", "spec", json.dumps(spec))
    with pytest.raises(OtherVersion, match="job half was written by another version of gradcam-queue: update this one"):
        loaded.table.queries.spec("half")
    assert loaded.status("half").total == 24
    assert loaded.resume("half").state is JobState.RUNNING
    assert loaded.cancel("half").state is JobState.CANCELLED
    refused = gradcam("submit", *PHOTOS, "--name", "half", *SMALL, code=4)
    assert "written by another version" in refused.stderr
