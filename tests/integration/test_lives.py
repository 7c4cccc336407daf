"""Done means that its pictures are there: whatever verbs, lives of a name, and holders of chunks race each other."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from command import gradcam
from in_process_worker import InProcessWorker

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import StoreError, UnknownJob, UsageError
from producer.jobs.model.items import Item
from producer.jobs.model.states import JobState
from producer.maintenance import deletion
from producer.maintenance.maintenance_lease import MaintenanceLease
from producer.output.objects import Objects
from worker.chunks.lease import LeaseLost

IMAGES = [f"s3://photos/{number}.jpg" for number in range(6)]
PLAIN = {"chunk_size": 2, "outputs": ["cam"], "network": "resnet18"}


@pytest.fixture
def own(unattended: Client) -> Client:
    return unattended


def submit(client: Client, name: str, images: list[str] = IMAGES, **parameters: object) -> str:
    client.submit(images, name=name, **{**PLAIN, **parameters})  # type: ignore[arg-type]
    return name


def done(client: Client, job: str) -> set[int]:
    states = b"".join(piece for _, piece in client.table.queries.states(job))
    return {index for index, state in enumerate(states) if state == 1}


def pictures(client: Client, job: str) -> list[str]:
    prefix = keys.job_prefix(client.storage.prefix, job)
    return [key for key in client.storage.keys(prefix) if "/images/" in key or "/shards/" in key]


def missing(client: Client, job: str) -> list[str]:
    return [finding.key for finding in client.audit(job) if finding.kind == "missing"]


# -- lives of a name ---------------------------------------------------------------------------------------------------


def test_what_a_worker_did_for_a_deleted_job_does_not_count_for_the_next_one_of_its_name(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "second-life")
    chunk = hands.claim(job, 0)
    assert chunk is not None
    for offset in chunk.claim.pending:
        hands.write(chunk, offset)
    own.cancel(job)
    own.delete(job, objects=True)
    submit(own, job)
    with pytest.raises(LeaseLost):
        hands.record(chunk)
    chunk.open.close()
    assert done(own, job) == set()
    hands.explain_all(job)
    assert own.status(job).state is JobState.SUCCEEDED
    assert missing(own, job) == []


def test_a_job_deleted_and_submitted_again_owes_nothing_to_records_that_a_late_worker_writes(own: Client) -> None:
    """Its manifest part arrives after the deletion: Redis is wiped, and a rebuild must not believe it."""
    hands, job = InProcessWorker(own), submit(own, "late-record")
    chunk = hands.claim(job, 1)
    assert chunk is not None
    for offset in chunk.claim.pending:
        hands.write(chunk, offset)
    own.cancel(job)
    own.delete(job, objects=True)
    submit(own, job)
    with pytest.raises(LeaseLost):
        hands.record(chunk)  # the part is written, the commit refused
    chunk.open.close()
    own.table.redis.flushdb()
    submit(own, job)
    assert done(own, job) == set()
    hands.explain_all(job)
    assert sorted(result.index for result in own.results(job)) == list(range(6))


def test_a_late_verdict_does_not_fail_the_next_generation(own: Client) -> None:
    """Two workers ask for the weights; one hears 404 at once, the other much later, when that is mended."""
    first, second = InProcessWorker(own, "first"), InProcessWorker(own, "second")
    job = submit(own, "late-verdict")
    one, other = first.claim(job, 0), second.claim(job, 1)
    assert one is not None
    assert other is not None
    own.table.fail(job, "the weights are not there", claim=one.claim)
    own._services.finalize_if_due(job)
    assert own.status(job).state is JobState.FAILED
    assert own.retry(job) == 0
    own.table.fail(job, "the weights are not there", claim=other.claim)
    assert own.status(job).state is JobState.RUNNING
    one.open.close()
    other.open.close()
    InProcessWorker(own).explain_all(job)
    assert own.status(job).done == 6


def test_a_verdict_counts_for_as_long_as_its_worker_holds_the_chunk(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "verdict")
    chunk = hands.claim(job, 0)
    assert chunk is not None
    hands.release(chunk)
    own.table.fail(job, "no such layer", claim=chunk.claim)
    assert own.status(job).state is JobState.RUNNING
    again = hands.claim(job, 0)
    assert again is not None
    own.table.fail(job, "no such layer", claim=again.claim)
    again.open.close()
    own._services.finalize_if_due(job)
    assert own.status(job).error == "no such layer"


# -- maintenance -------------------------------------------------------------------------------------------------------


def test_a_job_that_is_being_repaired_is_refused_to_every_other_verb(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "repairing")
    hands.gone = {IMAGES[1], IMAGES[4]}
    hands.explain_all(job)
    own.storage.put(keys.picture(own.storage.prefix, job, 1, "x-resnet18-cam.jpg"), b"a picture of no done image")
    hands.gone = set()
    repair = own.audit(job, repair=True)
    assert next(repair).kind == "extra"
    for verb in (own.retry, own.cancel, own.pause, own.resume, own.delete):
        with pytest.raises(UsageError, match=f"job {job} is being repaired"):
            verb(job)
    with pytest.raises(UsageError, match="is being repaired"):
        own.delete(job, objects=True)
    with pytest.raises(UsageError, match="is being repaired"):
        next(own.audit(job, repair=True))
    with pytest.raises(UsageError, match="is being repaired"):
        submit(own, job)
    assert own.status(job).state is JobState.REPAIRING
    assert list(repair) == []
    assert own.status(job).state is JobState.COMPLETED_WITH_ERRORS
    assert own.retry(job) == 2
    hands.explain_all(job)
    assert own.status(job).done == 6
    assert missing(own, job) == []


def test_a_job_whose_objects_are_being_deleted_is_refused_to_retry_and_submit(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "deleting")
    hands.gone = {IMAGES[0]}
    hands.explain_all(job)
    refused = []

    def meanwhile(_count: int) -> None:
        for verb in (own.retry, lambda job: submit(own, job), lambda job: list(own.audit(job, repair=True))):
            with pytest.raises(UsageError, match="is being deleted") as found:
                verb(job)
            refused.append(str(found.value))

    own.delete(job, objects=True, progress=meanwhile)
    assert len(refused) == 2 * 3  # its summary goes by itself
    assert pictures(own, job) == []
    with pytest.raises(UnknownJob):
        own.status(job)


def test_a_deletion_whose_client_died_is_told_and_gone_on_with(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "half-deleted")
    hands.explain_all(job)
    own.table.actions.maintain(job, JobState.DELETING, "a client that dies", lease_s=0.001)
    own.storage.delete(pictures(own, job)[:3])
    own.table.recovery.reconcile(job)
    status = own.status(job)
    assert status.state is JobState.DELETING
    assert "its deletion was broken off" in str(status.problem)
    with pytest.raises(UsageError, match="goes on with a deletion that was broken off"):
        own.retry(job)
    assert own.delete(job, objects=True) > 0
    with pytest.raises(UnknownJob):
        own.status(job)


@pytest.mark.parametrize("pack", ["none", "tar"])
def test_a_deletion_that_is_broken_off_can_be_repeated_also_for_a_job_that_redis_has_forgotten(
    own: Client, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    """Its summary went before manifest and shards, and nobody could name the job any more: they stayed for ever."""
    job = submit(own, f"forgotten-{pack}", pack=pack)
    InProcessWorker(own).explain_all(job)
    own.delete(job)
    folder = keys.job_prefix(own.storage.prefix, job)
    there = len(list(own.storage.keys(folder)))
    monkeypatch.setattr(deletion, "DELETED_AT_ONCE", 1)

    def broken_off(_count: int) -> None:
        raise KeyboardInterrupt

    for left in range(there - 1, 0, -1):
        with pytest.raises(KeyboardInterrupt):
            own.delete(job, objects=True, progress=broken_off)
        assert len(list(own.storage.keys(folder))) == left
    assert own.delete(job, objects=True) == 1
    assert list(own.storage.keys(folder)) == []


def test_who_says_no_to_the_deletion_of_one_job_is_asked_for_the_next(own: Client) -> None:
    for job in ("kept", "forgotten"):
        submit(own, job)
        own.cancel(job)
    keyboard, terminal = os.openpty()
    command = [sys.executable, "-m", "producer.cli", "delete", "kept", "forgotten"]
    with subprocess.Popen(command, stdin=terminal, stderr=subprocess.PIPE, text=True) as process:
        os.write(keyboard, b"n\ny\n")
        _, said = process.communicate(timeout=60)
    os.close(keyboard)
    os.close(terminal)
    assert process.returncode == 0
    assert "job kept stays\n" in said
    assert "job forgotten is forgotten" in said
    assert own.status("kept").state is JobState.CANCELLED
    with pytest.raises(UnknownJob):
        own.status("forgotten")


def test_a_job_whose_deletion_was_broken_off_is_not_waited_for(own: Client) -> None:
    """It never ends by itself; where no worker looks for what is lost either."""
    hands, job = InProcessWorker(own), submit(own, "half-deleted-and-waited-for")
    hands.explain_all(job)
    own.table.actions.maintain(job, JobState.DELETING, "a client that dies", lease_s=1.0)
    assert own.status(job).problem is None
    with pytest.raises(TimeoutError):
        own.wait(job, timeout_s=0)
    said = f"its deletion was broken off, some of its objects are gone: `gradcam delete {job} --objects` goes on"
    assert said in gradcam("wait", job, code=2).stderr
    assert said in gradcam("status", job, "--watch", code=2).stderr
    with pytest.raises(UsageError, match="its deletion was broken off"):
        own.wait(job, timeout_s=60)
    assert own.status(job).problem == said
    own.delete(job, objects=True)


def test_a_repair_whose_client_died_is_over_when_the_reconciler_looks(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "half-repaired")
    hands.explain_all(job)
    own.table.actions.maintain(job, JobState.REPAIRING, "a client that dies", lease_s=0.001)
    assert own.status(job).state is JobState.REPAIRING
    time.sleep(0.01)
    own.table.recovery.reconcile(job)
    assert own.status(job).state is JobState.SUCCEEDED
    assert own.table.recovery.active() == []


def test_maintenance_is_held_for_as_long_as_it_takes_and_tells_when_it_was_lost(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "held")
    hands.explain_all(job)
    with MaintenanceLease(own.table, job, JobState.REPAIRING, lease_s=0.3) as held:
        time.sleep(0.6)  # twice the lease, kept by its thread
        held.check()
        with pytest.raises(UsageError, match="is being repaired"):
            own.retry(job)
        own.table.redis.hset(f"gradcam:job:{job}", "maintainer", "another client")
        time.sleep(0.2)
        with pytest.raises(UsageError, match="is being repaired"):
            held.check()


# -- shards ------------------------------------------------------------------------------------------------------------


def test_a_shard_of_an_earlier_generation_is_never_overwritten_also_when_redis_was_wiped(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "packed", chunk_size=6, pack="tar")
    hands.gone = {IMAGES[0], IMAGES[1]}
    hands.explain_all(job)
    hands.gone = {IMAGES[1]}
    assert own.retry(job) == 2
    hands.explain_all(job)  # a second shard, of image 0
    own.table.redis.flushdb()
    submit(own, job, chunk_size=6, pack="tar")
    own._services.finalize_if_due(job)
    hands.gone = set()
    assert own.retry(job) == 1
    hands.explain_all(job)  # the second generation again
    assert own.status(job).done == 6
    assert missing(own, job) == []
    objects = Objects(own.storage, job)
    for result in own.results(job):
        assert objects.get(result.objects["cam"]) == f"picture of {IMAGES[result.index]}".encode()


@pytest.mark.parametrize("pack", ["tar", "none"])
def test_a_worker_that_lost_its_lease_writes_no_shard_and_no_picture(own: Client, pack: str) -> None:
    """Cut off from Redis for longer than its lease, while another worker explains the chunk."""
    slow, quick = InProcessWorker(own, "slow", lease_s=0.3), InProcessWorker(own, "quick")
    job = submit(own, f"cut-off-{pack}", chunk_size=6, pack=pack)
    chunk = slow.claim(job, 0)
    assert chunk is not None
    chunk.lease.__exit__()  # renews no more
    slow.gone = {IMAGES[5]}
    for offset in range(6):
        slow.write(chunk, offset)
    time.sleep(0.4)
    own.table.recovery.reconcile(job)
    quick.explain_all(job)
    before = {key: own.storage.get(key) for key in pictures(own, job)}
    with pytest.raises(LeaseLost):
        slow.write(chunk, 0)
    if pack == "tar":
        with pytest.raises(LeaseLost):
            slow.record(chunk)
    chunk.open.close()
    assert {key: own.storage.get(key) for key in pictures(own, job)} == before
    assert own.status(job).done == 6


# -- the same command goes on ------------------------------------------------------------------------------------------


def test_a_job_that_failed_while_it_was_being_sent_is_continued_by_the_same_command(own: Client) -> None:
    hands = InProcessWorker(own)

    def fails(sent: int, _total: int | None) -> None:
        if sent == 4:
            chunk = hands.claim("broken-off", 0)
            assert chunk is not None
            own.table.fail("broken-off", "the weights are not there", claim=chunk.claim)
            chunk.open.close()

    with pytest.raises(UsageError, match=r"failed while it was being sent \(the weights are not there\): mend that"):
        submit(own, "broken-off", progress=fails)
    assert own.status("broken-off").state is JobState.FAILED
    with pytest.raises(UsageError, match="submit it again"):
        own.retry("broken-off")
    submit(own, "broken-off")
    hands.explain_all("broken-off")
    status = own.status("broken-off")
    assert (status.state, status.done, status.error) == (JobState.SUCCEEDED, 6, None)


def test_a_source_that_lost_whole_chunks_is_told_and_the_job_keeps_what_it_had(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "shorter")
    with pytest.raises(UsageError, match="it had 6 images or more, it has 2 now"):
        submit(own, job, IMAGES[:2])
    hands.explain_all(job)
    assert own.status(job).done == 6


def test_a_half_sent_job_whose_source_became_shorter_ends(own: Client) -> None:
    def breaks_off(sent: int, _total: int | None) -> None:
        if sent == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit(own, "half-sent", progress=breaks_off)
    with pytest.raises(UsageError, match="it had 4 images or more, it has 2 now"):
        submit(own, "half-sent", IMAGES[:2])
    InProcessWorker(own).explain_all("half-sent")
    status = own.status("half-sent")
    assert (status.state, status.done) == (JobState.SUCCEEDED, 4)


def test_a_name_that_the_store_has_with_other_parameters_leaves_no_job_behind(own: Client) -> None:
    InProcessWorker(own).explain_all(submit(own, "taken"))
    own.table.redis.flushdb()
    with pytest.raises(UsageError, match="the store holds a job named taken with other parameters"):
        submit(own, "taken", network="vgg16")
    assert own.list() == []


# -- a Redis that loses a part -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["items", "chunks", "bits", "waiting", "failures", "leases"])
def test_a_job_of_which_redis_has_evicted_a_key_ends_with_a_sentence(own: Client, part: str) -> None:
    hands, job = InProcessWorker(own), submit(own, f"evicted-{part}")
    hands.gone = {IMAGES[0]}
    hands.explain(job, 0)
    chunk = hands.claim(job, 1)
    assert chunk is not None
    own.table.redis.delete(f"gradcam:job:{job}:{part}")
    own.table.recovery.reconcile(job)
    chunk.open.close()
    own._services.finalize_if_due(job)
    status = own.status(job)
    assert status.state is JobState.FAILED
    assert f"`gradcam delete {job}`, then submit it again" in str(status.error)
    with pytest.raises(UsageError, match="Redis has lost a part of this job"):
        own.retry(job)
    own.delete(job)
    submit(own, job)
    hands.gone = set()
    hands.explain_all(job)
    if own.status(job).failed:
        own.retry(job)
        hands.explain_all(job)
    assert own.status(job).done == 6


def test_a_job_whose_hash_redis_has_evicted_leaves_nothing_behind(own: Client) -> None:
    job = submit(own, "evicted")
    own.table.redis.delete(f"gradcam:job:{job}")
    assert own.table.recovery.reconcile(job).expired == []
    own.table.recovery.forget_active(job)
    assert not own.table.redis.keys(f"gradcam:job:{job}*")
    assert own.table.recovery.active() == []


def test_jobs_that_redis_forgot_to_be_active_are_looked_after_again(own: Client) -> None:
    job = submit(own, "not-active")
    own.table.redis.delete("gradcam:active", "gradcam:round-robin:default")
    own.table.recovery.restore_active()
    assert own.table.recovery.active() == [job]
    own.table.recovery.reconcile(job)
    assert own.table.next_chunk("default", job, 0, exact=False) == (job, 0)


def test_a_deleted_job_that_redis_brings_back_says_that_its_objects_are_gone_and_can_be_deleted(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "from-the-past")
    hands.explain_all(job)
    assert own.status(job).problem is None
    redis, names = own.table.redis, own.table.redis.keys("gradcam:*")
    copy = {name: redis.dump(name) for name in names}
    own.delete(job, objects=True)
    for name, content in copy.items():
        assert content is not None
        redis.restore(name, 0, content, replace=True)
    status = own.status(job)
    assert (status.state, status.objects_gone) == (JobState.SUCCEEDED, True)
    assert "its objects are gone from the store" in str(status.problem)
    assert [listed.objects_gone for listed in own.list()] == [True]
    with pytest.raises(StoreError, match="of 6 images nothing is known: their manifests are gone"):
        list(own.results(job))
    own.delete(job, objects=True)
    assert own.list() == []


def test_a_client_of_an_earlier_life_reopens_nothing_of_the_next_one(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "reopened")
    hands.gone = set(IMAGES)
    hands.explain_all(job)
    stale = own.table.actions.retry(job, "default", retry_id="a client that stands still")
    own.cancel(job)
    own.delete(job, objects=True)
    submit(own, job)
    hands.explain_all(job)
    own.table.actions.retry(job, "default", retry_id="another client")
    items = {0: Item(uri=IMAGES[0])}
    assert own.table.actions.reopen(job, stale, 0, items, {0: ""}) is None
    own.table.actions.reopened(job, stale)
    assert (own.status(job).failed, own.status(job).pending) == (6, 0)


def test_a_repair_deletes_nothing_when_redis_was_wiped_and_the_job_submitted_again(own: Client) -> None:
    hands, job = InProcessWorker(own), submit(own, "wiped-meanwhile")
    hands.gone = {IMAGES[0]}
    hands.explain_all(job)
    with MaintenanceLease(own.table, job, JobState.REPAIRING) as held:
        own.table.redis.flushdb()
        submit(own, job)
        own._services.finalize_if_due(job)
        assert own.status(job).ended
        with pytest.raises(UsageError, match="was deleted and submitted again meanwhile"):
            held.check()
    assert own.status(job).state is JobState.COMPLETED_WITH_ERRORS
