"""The job table on a real server: every transition, repeated, late and forged."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from budget import either
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob, UsageError
from producer.jobs.model.items import Chunk, Item, uri_line
from producer.jobs.model.results import Failure
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.jobs.table.claims import Claim, OnlyRefusedJobs
from producer.jobs.table.table import JobTable

LEASE_S = 30.0
LIFETIME_S = 3600.0


@pytest.fixture
def table(redis_client: redis.Redis) -> JobTable:
    return JobTable(redis_client)


@pytest.fixture(autouse=True)
def every_key_of_an_ended_job_has_a_lifetime(redis_client: redis.Redis) -> Iterator[None]:
    yield
    for name in redis_client.zrange(keys.JOBS, 0, -1):
        assert isinstance(name, bytes)
        job = name.decode()
        if JobTable(redis_client).queries.status(job).ended:
            for key in redis_client.scan_iter(f"gradcam:job:{job}*"):
                assert 0 < redis_client.ttl(key) <= LIFETIME_S, key


def make_job(table: JobTable, items: int, *, chunk_size: int = 4, job: str = "job") -> JobSpec:
    spec = JobSpec(chunk_size=chunk_size)
    table.create(job, spec, lifetime_s=LIFETIME_S)
    chunks = [
        Chunk.compress(n // chunk_size, [uri_line(f"s3://b/{i}.jpg") for i in range(n, min(n + chunk_size, items))])
        for n in range(0, items, chunk_size)
    ]
    for chunk in chunks:
        table.add_chunk(job, chunk)
    table.close(job, chunks=len(chunks), items=items)
    return spec


def take(table: JobTable, chunk: int, spec: JobSpec, *, lease_s: float = LEASE_S, claim_id: str = "me") -> Claim:
    claim = table.claim("job", chunk, spec, claim_id=claim_id, lease_s=lease_s)
    assert claim is not None
    return claim


def failure(claim: Claim, offset: int, reason: str = "fetch") -> Failure:
    return Failure(index=claim.index(offset), item=claim.items[offset], reason=reason, message="gone")


def test_a_job_goes_from_created_to_succeeded(table: JobTable) -> None:
    spec = make_job(table, 6)
    for chunk in (0, 1):
        claim = take(table, chunk, spec)
        table.commit(claim, done=claim.pending, failed=[], lease_s=LEASE_S)
    mine = table.finalize("job", "me")
    assert mine is not None
    assert table.finish("job", "me", mine)
    status = table.queries.status("job")
    assert (status.state, status.total, status.done, status.pending) == (JobState.SUCCEEDED, 6, 6, 0)


def test_a_job_with_a_failed_image_completes_with_errors_and_says_why(table: JobTable) -> None:
    spec = make_job(table, 3)
    claim = take(table, 0, spec)
    table.commit(claim, done=[0, 1], failed=[failure(claim, 2)], lease_s=LEASE_S)
    mine = table.finalize("job", "me")
    assert mine is not None
    table.finish("job", "me", mine)
    status = table.queries.status("job")
    assert status.state is JobState.COMPLETED_WITH_ERRORS
    assert status.failures == {"fetch": 1}
    assert [(f.index, f.item.uri, f.message) for f in table.queries.failures("job")] == [(2, "s3://b/2.jpg", "gone")]


def test_a_repeated_commit_counts_nothing_twice(table: JobTable) -> None:
    """A lost reply makes the client send the command again."""
    spec = make_job(table, 4)
    claim = take(table, 0, spec)
    for _ in range(3):
        table.commit(claim, done=[0, 1], failed=[failure(claim, 2)], lease_s=LEASE_S)
    status = table.queries.status("job")
    assert (status.done, status.failed, status.pending) == (2, 1, 1)


def test_creating_adding_and_closing_again_changes_nothing(table: JobTable) -> None:
    make_job(table, 6)
    before = table.queries.status("job")
    make_job(table, 6)
    assert table.queries.status("job") == before


def test_a_name_belongs_to_one_spec_and_one_source(table: JobTable) -> None:
    make_job(table, 4)
    with pytest.raises(UsageError, match="other parameters"):
        table.create("job", JobSpec(network="vgg16"), lifetime_s=LIFETIME_S)
    with pytest.raises(UsageError, match="another source"):
        table.add_chunk("job", Chunk.compress(0, [uri_line("s3://b/other.jpg")]))
    with pytest.raises(UsageError, match=r"takes no more"):
        table.add_chunk("job", Chunk.compress(1, [uri_line("s3://b/more.jpg")]))


def test_closing_notices_that_chunks_were_lost(table: JobTable) -> None:
    table.create("job", JobSpec(), lifetime_s=LIFETIME_S)
    table.add_chunk("job", Chunk.compress(0, [uri_line("s3://b/a.jpg")]))
    assert table.close("job", chunks=2, items=2) == 1
    assert table.queries.status("job").ingest == "open"


def test_a_chunk_under_a_live_lease_is_nobody_elses(table: JobTable) -> None:
    spec = make_job(table, 4)
    take(table, 0, spec, claim_id="me")
    assert table.claim("job", 0, spec, claim_id="other", lease_s=LEASE_S) is None


def test_a_claim_whose_reply_was_lost_gets_the_same_lease_again(table: JobTable) -> None:
    spec = make_job(table, 4)
    first, second = take(table, 0, spec, claim_id="me"), take(table, 0, spec, claim_id="me")
    assert (first.token, first.attempt) == (second.token, second.attempt)


def test_an_expired_lease_can_be_claimed_and_its_old_holder_may_only_say_done(table: JobTable) -> None:
    spec = make_job(table, 4)
    old = take(table, 0, spec, lease_s=0.05, claim_id="old")
    time.sleep(0.1)
    new = take(table, 0, spec, claim_id="new")
    assert new.token > old.token
    assert not table.renew(old, lease_s=LEASE_S)
    committed = table.commit(old, done=[0], failed=[failure(old, 1)], lease_s=LEASE_S)
    assert committed is not None
    assert (committed.done, committed.failed) == (1, 0)
    assert table.renew(new, lease_s=LEASE_S)


def test_done_beats_failed_and_the_counts_follow(table: JobTable) -> None:
    spec = make_job(table, 4)
    claim = take(table, 0, spec)
    table.commit(claim, done=[], failed=[failure(claim, 0, "store"), failure(claim, 1, "store")], lease_s=LEASE_S)
    table.commit(claim, done=[0], failed=[], lease_s=LEASE_S)
    status = table.queries.status("job")
    assert (status.done, status.failed, status.failures) == (1, 1, {"store": 1})
    table.commit(claim, done=[1], failed=[failure(claim, 0)], lease_s=LEASE_S)
    status = table.queries.status("job")
    assert (status.done, status.failed, status.failures) == (2, 0, {})


def test_a_partly_committed_chunk_is_released_with_its_rest(table: JobTable) -> None:
    spec = make_job(table, 4)
    claim = take(table, 0, spec)
    table.commit(claim, done=[1, 3], failed=[], lease_s=LEASE_S)
    assert table.release(claim) is not None
    assert table.release(claim) is None
    again = take(table, 0, spec, claim_id="other")
    assert again.pending == [0, 2]
    assert again.attempt == 1  # a release is held against no image


def test_a_complete_chunk_leaves_nothing_but_its_bits(table: JobTable, redis_client: redis.Redis) -> None:
    spec = make_job(table, 4)
    claim = take(table, 0, spec)
    table.commit(claim, done=claim.pending, failed=[], lease_s=LEASE_S)
    left = {key.decode().removeprefix("gradcam:job:job") for key in redis_client.scan_iter("gradcam:job:job*")}
    assert left == {"", ":chunks", ":bits"}
    assert table.claim("job", 0, spec, claim_id="late", lease_s=LEASE_S) is None


def test_the_end_is_entered_once_and_by_one(table: JobTable, redis_client: redis.Redis) -> None:
    spec = make_job(table, 1)
    assert table.finalize("job", "me") is None
    claim = take(table, 0, spec)
    table.commit(claim, done=[0], failed=[], lease_s=LEASE_S)
    mine = table.finalize("job", "me")
    assert mine is not None
    assert table.finalize("job", "other") is None
    assert not table.finish("job", "other", mine)
    assert table.finish("job", "me", mine)
    assert not table.finish("job", "me", mine)
    assert redis_client.hget("gradcam:job:job", "ends") == b"1"
    assert table.recovery.active() == []


def test_a_failed_job_takes_nothing_more_and_counts_the_rest_as_cancelled(table: JobTable) -> None:
    spec = make_job(table, 8)
    claim = take(table, 0, spec)
    table.commit(claim, done=[0], failed=[], lease_s=LEASE_S)
    table.fail("job", "the weights do not fit")
    assert not table.renew(claim, lease_s=LEASE_S)
    assert table.commit(claim, done=[1], failed=[], lease_s=LEASE_S) is None
    mine = table.finalize("job", "me")
    assert mine is not None
    table.finish("job", "me", mine)
    assert table.release(claim) is None
    table.annotate("job", layer="late")
    status = table.queries.status("job")
    assert (status.state, status.done, status.cancelled, status.pending) == (JobState.FAILED, 1, 7, 0)
    assert status.error == "the weights do not fit"


def test_the_reconciler_finds_expired_leases_and_nothing_else(table: JobTable) -> None:
    spec = make_job(table, 16)  # chunks 0..3
    take(table, 0, spec, lease_s=0.05)
    take(table, 1, spec, lease_s=LEASE_S, claim_id="alive")
    time.sleep(0.1)
    assert table.recovery.reconcile("job").expired == [0]
    assert table.recovery.reconcile("job").expired == []


def test_a_job_that_is_not_there_is_one_sentence(table: JobTable) -> None:
    with pytest.raises(UnknownJob, match="there is no job 'nothing'"):
        table.queries.status("nothing")
    with pytest.raises(UnknownJob):
        list(table.queries.failures("nothing"))
    assert table.queries.spec("nothing") is None
    assert table.claim("nothing", 0, JobSpec(), claim_id="x", lease_s=1) is None


def test_jobs_are_listed_newest_first(table: JobTable) -> None:
    for name in ("first", "second", "third"):
        make_job(table, 1, job=name)
    assert [status.job for status in table.queries.jobs(limit=2)] == ["third", "second"]


@settings(max_examples=either(20, 40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    calls=st.lists(
        st.tuples(st.booleans(), st.sets(st.integers(0, 8)), st.sets(st.integers(0, 8))), min_size=1, max_size=12
    )
)
def test_counters_equal_the_bits_whatever_is_committed_in_which_order(
    table: JobTable, redis_client: redis.Redis, calls: list[tuple[bool, set[int], set[int]]]
) -> None:
    redis_client.flushdb()
    spec = make_job(table, 9, chunk_size=9)
    stale = take(table, 0, spec, lease_s=0.001, claim_id="stale")
    time.sleep(0.003)
    live = take(table, 0, spec, claim_id="live")
    model = dict.fromkeys(range(9), "pending")
    for is_live, done, failed in calls:
        claim = live if is_live else stale
        committed = table.commit(
            claim, done=sorted(done), failed=[failure(claim, offset) for offset in sorted(failed)], lease_s=LEASE_S
        )
        if committed is None:
            break  # the job had come to its end
        model.update(dict.fromkeys(done, "done"))
        # Once the chunk is complete there is no holder any more, so the rest of `failed` finds nothing pending.
        if is_live:
            model.update({offset: "failed" for offset in failed if model[offset] == "pending"})
        if "pending" not in model.values():
            break
    status = table.queries.status("job")
    counts = [sum(value == word for value in model.values()) for word in ("done", "failed", "pending")]
    assert [status.done, status.failed, status.pending] == counts
    assert sum(status.failures.values()) == status.failed == len(list(table.queries.failures("job")))


def test_jobs_of_one_class_have_their_turns_in_a_circle(table: JobTable) -> None:
    """However many chunks one of them has, and whosever messages are read."""
    for job in ("big", "small", "other"):
        make_job(table, 40 if job == "big" else 12, job=job)
    taken = []
    for _ in range(9):
        turn = table.next_chunk("default", "big", 0, exact=False)
        assert isinstance(turn, tuple)
        taken.append(turn[0])
        claim = table.claim(*turn, JobSpec(chunk_size=4), claim_id=f"{turn}", lease_s=LEASE_S)
        assert claim is not None
    assert taken == ["big", "small", "other"] * 3
    assert {table.next_chunk("default", "big", 0, exact=False)[0] for _ in range(3)} == {"big"}  # type: ignore[index]


def test_classes_of_service_do_not_take_each_others_chunks(table: JobTable) -> None:
    make_job(table, 4)
    assert table.next_chunk("high", "job", 0, exact=False) is None
    assert table.next_chunk("default", "unknown", 7, exact=False) == ("job", 0)


def test_a_recovery_message_whose_chunk_was_taken_by_another_is_worth_one_of_the_same_class(table: JobTable) -> None:
    """Else the chunk whose message was used up for it would wait until the message counts as lost."""
    spec = make_job(table, 8)
    take(table, 0, spec)
    assert table.next_chunk("recovery", "job", 0, exact=True) == ("job", 1)
    take(table, 1, spec)
    assert table.next_chunk("recovery", "job", 0, exact=True) is None
    assert table.next_chunk("recovery", "unknown", 0, exact=True) is None


def test_a_paused_or_ended_job_has_no_turn(table: JobTable) -> None:
    make_job(table, 4)
    table.actions.pause("job")
    assert table.next_chunk("default", "job", 0, exact=True) is None
    table.actions.resume("job")
    table.actions.cancel("job")
    assert table.next_chunk("default", "job", 0, exact=False) is None


def test_messages_count_as_lost_when_they_were_missing_all_along(table: JobTable, redis_client: redis.Redis) -> None:
    make_job(table, 12)  # three chunks
    queue = keys.QUEUE_PREFIX + "default"
    redis_client.rpush(queue, "m", "m")
    assert table.recovery.missing_messages("default", grace_s=0.2) == []
    time.sleep(0.25)
    redis_client.rpush(queue, "m")  # it was on its way
    assert table.recovery.missing_messages("default", grace_s=0.2) == []
    redis_client.delete(queue)
    assert table.recovery.missing_messages("default", grace_s=0.2) == []
    time.sleep(0.25)
    assert len(table.recovery.missing_messages("default", grace_s=0.2)) == 3
    assert table.queries.status("job").republished == 3


def verdicts(table: JobTable) -> tuple[int | None, int | None, int | None]:
    status = table.queries.status("job")
    return status.correct, status.wrong, status.unknown_labels


def test_what_labels_say_is_counted_where_a_bit_changes_and_taken_back_when_reopened(table: JobTable) -> None:
    spec = make_job(table, 5, chunk_size=5)
    assert verdicts(table) == (None, None, None)
    claim = take(table, 0, spec)
    ends = {0: "+281 tabby", 1: "-281 tabby", 2: "+7", 3: "9", 4: "?9"}
    for _ in range(2):  # a repeated commit counts nothing
        table.commit(claim, done={0: ends[0], 1: ends[1]}, failed=[], lease_s=60)
    table.commit(claim, done=ends, failed=[], lease_s=60)
    assert verdicts(table) == (2, 1, 1)
    assert table.queries.histogram("job") == {"281 tabby": 2, "7": 1, "9": 2}
    mine = table.finalize("job", "me")
    assert mine is not None
    table.finish("job", "me", mine)
    table.actions.maintain("job", JobState.REPAIRING, "me")
    generation = table.actions.retry("job", "default", retry_id="me", mode="repair")
    again = {n: ends[n] for n in (0, 1, 3, 4)}
    table.actions.reopen("job", generation, 0, {n: Item(uri=f"s3://b/{n}.jpg") for n in again}, again)
    assert verdicts(table) == (1, 0, 0)
    assert table.queries.histogram("job") == {"7": 1}


def test_the_first_worker_pins_the_weights_of_a_job(table: JobTable) -> None:
    """Whoever comes later, or asks again as its answer was lost, hears which they are."""
    spec = make_job(table, 8)
    first, second = take(table, 0, spec), take(table, 1, spec)
    assert table.queries.pinned_weights("job") is None
    assert table.queries.status("job").weights_sha256 is None
    assert [table.pin_weights(first, "a" * 64), table.pin_weights(second, "b" * 64)] == ["a" * 64] * 2
    assert table.pin_weights(first, "a" * 64) == table.queries.pinned_weights("job") == "a" * 64
    assert table.queries.status("job").weights_sha256 == "a" * 64
    table.actions.pause("job")
    assert table.pin_weights(second, "b" * 64) == "a" * 64
    table.actions.cancel("job")
    assert table.pin_weights(second, "b" * 64) is None


def test_weights_are_pinned_for_one_life_of_a_job(table: JobTable) -> None:
    spec = make_job(table, 4)
    claim = take(table, 0, spec)
    assert table.pin_weights(replace(claim, life="another"), "a" * 64) is None
    assert table.queries.pinned_weights("job") is None


@pytest.mark.parametrize(("done", "pinned"), [(0, None), (1, "a" * 64)])
def test_a_retry_keeps_the_weights_by_which_something_was_explained(
    table: JobTable, done: int, pinned: str | None
) -> None:
    """Else half of the pictures would be of others. Where nothing was, the user may have mended just them."""
    spec = make_job(table, 4)
    claim = take(table, 0, spec)
    table.pin_weights(claim, "a" * 64)
    table.commit(claim, done=claim.pending[:done], failed=[], lease_s=LEASE_S)
    table.fail("job", "the weights do not fit", claim=claim)
    mine = table.finalize("job", "me")
    assert mine is not None
    assert table.finish("job", "me", mine)
    table.actions.retry("job", spec.queue, retry_id="r")
    assert table.queries.pinned_weights("job") == pinned


def test_a_worker_passes_over_jobs_whose_weights_it_fetches(table: JobTable) -> None:
    make_job(table, 4, job="fetched")
    assert table.next_chunk("default", "fetched", 0, exact=False, passed_over=["fetched"]) == OnlyRefusedJobs("default")
    assert table.next_chunk("default", "fetched", 0, exact=True, passed_over=["fetched"]) == OnlyRefusedJobs("default")
    make_job(table, 4, job="other")
    assert table.next_chunk("default", "fetched", 0, exact=False, passed_over=["fetched"]) == ("other", 0)
    assert table.next_chunk("default", "fetched", 0, exact=True, passed_over=["other"]) == ("fetched", 0)
