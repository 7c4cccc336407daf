"""Lines of the job table's scripts that only mutants showed to be untested: each test kills one that survived."""

from __future__ import annotations

import re
import time
from collections import Counter
from importlib.resources import files

import pytest
import redis

from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.results import Failure
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.jobs.table.claims import Claim
from producer.jobs.table.recovery import SILENT_RETRY_S
from producer.jobs.table.table import JobTable
from producer.jobs.table.troubles import Kind
from producer.jobs.table.user_actions import Generation

SPEC = JobSpec(chunk_size=2)
LEASE_S = 30.0
HASH = "gradcam:job:job"


@pytest.fixture
def table(redis_client: redis.Redis) -> JobTable:
    made = JobTable(redis_client)
    made.create("job", SPEC, lifetime_s=60)
    made.add_chunk("job", Chunk.compress(0, [uri_line(f"s3://b/{number}.jpg") for number in range(2)]))
    made.close("job", chunks=1, items=2)
    return made


def take(table: JobTable, claim_id: str = "me") -> Claim:
    claim = table.claim("job", 0, SPEC, claim_id=claim_id, lease_s=LEASE_S)
    assert claim is not None
    return claim


def ended(table: JobTable) -> None:
    """One image done, one failed."""
    claim = take(table)
    failure = Failure(index=1, item=claim.items[1], reason="fetch", message="gone")
    table.commit(claim, done={0: "281 tabby"}, failed=[failure], lease_s=LEASE_S)
    finish(table)


def finish(table: JobTable) -> None:
    mine = table.finalize("job", "me")
    assert mine is not None
    assert table.finish("job", "me", mine)


def retried(table: JobTable, *, to_its_end: bool = True) -> Generation:
    """A retry, that of a client that died before it had said that all is reopened, or that of one that did."""
    (failure,) = table.queries.failures("job")
    generation = table.actions.retry("job", "default", retry_id="again")
    items = table.queries.items_of("job", 0) | {1: failure.item}
    assert table.actions.reopen("job", generation, 0, items, {1: ""}) is not None
    if to_its_end:
        table.actions.reopened("job", generation)
    return generation


def test_a_paused_jobs_chunk_comes_back_from_a_dead_process_before_its_lease_runs_out(table: JobTable) -> None:
    take(table, "dead")
    table.actions.pause("job")
    table.reclaim_from_dead("job", 0, claim_id="dead", weight=1)
    table.actions.resume("job")
    assert take(table, "alive").attempt == 2


def test_an_epoch_is_later_than_the_last_also_when_the_clock_goes_back(
    table: JobTable, redis_client: redis.Redis
) -> None:
    ended(table)
    ahead = int((time.time() + 3600) * 1000)
    redis_client.hset(HASH, "epoch", ahead)
    retried(table)
    assert take(table).epoch == ahead + 1


def test_attempts_are_counted_anew_by_a_retry(table: JobTable) -> None:
    """Else a chunk that once needed two would be worked at image by image for ever."""
    take(table, "dead")
    table.reclaim_from_dead("job", 0, claim_id="dead", weight=1)
    claim = take(table)
    failure = Failure(index=1, item=claim.items[1], reason="fetch", message="gone")
    table.commit(claim, done={}, failed=[failure], lease_s=LEASE_S)
    table.release(claim)
    table.fail("job", "the weights do not fit")
    finish(table)
    retried(table)
    assert take(table).attempt == 1


def test_a_retry_whose_client_died_goes_on_with_what_is_reopened_after_a_while_and_not_before(
    table: JobTable, redis_client: redis.Redis
) -> None:
    ended(table)
    retried(table, to_its_end=False)
    claim = take(table)
    table.commit(claim, done={1: "281 tabby"}, failed=[], lease_s=LEASE_S)
    table.recovery.reconcile("job")
    assert table.queries.status("job").state is JobState.RUNNING  # its client may reopen more
    redis_client.hset(HASH, "reopened_at", time.time() - SILENT_RETRY_S - 1)
    table.recovery.reconcile("job")
    assert table.queries.status("job").state is JobState.FINALIZING


def test_what_a_worker_says_against_a_job_that_has_ended_is_not_kept(
    table: JobTable, redis_client: redis.Redis
) -> None:
    """A key that is made then would have no lifetime, and the job's next generation would begin with it."""
    ended(table)
    assert table.troubles.tell("host-a", "h", "job", Kind.REFUSED, "no such network") == "completed_with_errors"
    assert not redis_client.exists(f"{HASH}:troubles")
    assert table.queries.status("job").state is JobState.COMPLETED_WITH_ERRORS


def test_each_name_of_what_all_scripts_begin_with_is_given_once() -> None:
    """Two parts had a `LONGEST_S`, of 30 s and of a year: the last one counted everywhere."""
    parts = [
        path.read_text()
        for path in files("producer.jobs.table.lua").iterdir()
        if path.name.startswith("_") and path.name.endswith(".lua")
    ]
    given = re.findall(r"^local (?:function )?([\w, ]+)", "\n".join(parts), re.MULTILINE)
    names = [name.strip() for each in given for name in each.split(",")]
    assert {"now", "LONGEST_S", "to_the_end"} <= set(names)
    assert [name for name, times in Counter(names).items() if times > 1] == []
