"""What workers say against jobs, in the job table: when it counts as the job's own fault, and whose turn it is then."""

from __future__ import annotations

import time

import pytest
import redis

from producer.jobs.model import keys
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.jobs.table.claims import Claim, OnlyRefusedJobs
from producer.jobs.table.table import JobTable
from producer.jobs.table.troubles import Kind

SPEC = JobSpec(chunk_size=1)
CRASHED = 2


@pytest.fixture
def table(redis_client: redis.Redis) -> JobTable:
    return JobTable(redis_client)


def make(table: JobTable, job: str, chunks: int = 4) -> None:
    table.create(job, SPEC, lifetime_s=60)
    for number in range(chunks):
        table.add_chunk(job, Chunk.compress(number, [uri_line(f"s3://b/{number}.jpg")]))
    table.close(job, chunks=chunks, items=chunks)


def take(table: JobTable, job: str, chunk: int = 0, claim_id: str = "me") -> Claim:
    claim = table.claim(job, chunk, SPEC, claim_id=claim_id, lease_s=30)
    assert claim is not None
    return claim


def tell(table: JobTable, worker: str, kind: Kind, sentence: str = "no", host: str = "h", job: str = "bad") -> str:
    return table.troubles.tell(worker, host, job, kind, sentence)


def whose_turns(table: JobTable, worker: str = "", times: int = 4, *, exact: bool = False) -> list[str]:
    found = [table.next_chunk("default", "bad", 0, exact=exact, worker=worker) for _ in range(times)]
    return [turn[0] for turn in found if isinstance(turn, tuple)]


# -- what one worker cannot do -----------------------------------------------------------------------------------------


def test_a_job_fails_at_once_when_the_only_worker_cannot_do_it(table: JobTable) -> None:
    make(table, "bad")
    table.registry.heartbeat("a")
    assert tell(table, "a", Kind.REFUSED, "the bucket is closed") == JobState.FINALIZING
    assert table.queries.status("bad").error == "the bucket is closed"


def test_a_job_goes_on_while_a_worker_is_alive_that_has_said_nothing_against_it(table: JobTable) -> None:
    make(table, "bad")
    table.registry.heartbeat("a")
    table.registry.heartbeat("b")
    assert tell(table, "a", Kind.REFUSED, "the bucket is closed") == JobState.RUNNING
    assert table.queries.status("bad").problem == "worker a cannot do this job: the bucket is closed"
    assert isinstance(table.next_chunk("default", "bad", 0, exact=False, worker="a"), OnlyRefusedJobs)
    assert table.next_chunk("default", "bad", 0, exact=False, worker="b") == ("bad", 0)
    assert tell(table, "b", Kind.REFUSED, "the bucket is closed") == JobState.FINALIZING


def test_workers_that_read_other_queues_or_are_gone_are_not_waited_for(table: JobTable) -> None:
    make(table, "bad")
    table.registry.heartbeat("a", ("default", "low"))
    table.registry.heartbeat("other", ("high",))
    table.redis.zadd("gradcam:workers", {"dead": time.time() - 61})
    assert tell(table, "a", Kind.REFUSED) == JobState.FINALIZING


def test_the_last_worker_that_had_said_nothing_may_go(table: JobTable) -> None:
    make(table, "bad")
    table.registry.heartbeat("a")
    table.registry.heartbeat("b")
    assert tell(table, "a", Kind.REFUSED) == JobState.RUNNING
    table.registry.deregister("b")
    table.recovery.reconcile("bad")
    assert table.queries.status("bad").error == "no"


def test_what_a_worker_said_is_no_problem_any_more_when_it_is_gone(table: JobTable) -> None:
    make(table, "bad")
    table.registry.heartbeat("a")
    table.registry.heartbeat("b")
    tell(table, "a", Kind.REFUSED)
    table.registry.deregister("a")
    assert table.queries.status("bad").problem is None


def test_workers_that_ended_without_a_word_are_forgotten(table: JobTable) -> None:
    table.registry.heartbeat("dead", ("high",))
    table.registry.heartbeat("alive", ("high",))
    table.redis.zadd("gradcam:workers", {"dead": time.time() - 90_000})
    table.registry.forget_silent()
    assert table.redis.zrange("gradcam:workers", 0, -1) == [b"alive"]
    assert table.redis.hkeys("gradcam:queues") == [b"alive"]


def test_what_dead_workers_complained_of_and_waited_for_goes_though_others_complain_still(table: JobTable) -> None:
    """The hash as a whole goes 2 min after the last word of anybody, and each status reads all of it."""
    registry = table.registry
    for worker in ("alive", "dead"):
        registry.heartbeat(worker)
    registry.report_problem("never seen", "it cannot get what it needs")
    for worker in ("dead", "alive"):
        registry.report_problem(worker, "the disk is full")
        registry.waits_for(worker, "the object store", 1)
    registry.forget_silent()
    assert set(table.redis.hkeys("gradcam:problems")) == {b"dead", b"alive"}
    table.redis.zadd("gradcam:workers", {"dead": time.time() - keys.PROBLEM_LIFETIME_S - 1})
    registry.forget_silent()
    assert table.redis.hkeys("gradcam:problems") == [b"alive"]
    assert table.redis.hkeys("gradcam:waits") == [b"alive"]


def test_a_wish_that_somebody_leaves_is_forgotten_after_an_hour_though_others_are_asked(table: JobTable) -> None:
    """A launcher started again under its name, as in a container, would leave at once."""
    table.registry.drain("launcher-1")
    table.redis.hset("gradcam:drains", "launcher-0", f"{time.time() - 3601:.3f}")
    table.redis.hset("gradcam:drains", "of another release", "{}")
    table.registry.forget_silent()
    assert set(table.redis.hkeys("gradcam:drains")) == {b"launcher-1", b"of another release"}


def test_a_worker_that_did_a_chunk_takes_its_word_back(table: JobTable) -> None:
    make(table, "bad")
    table.registry.heartbeat("a")
    table.registry.heartbeat("b")
    tell(table, "a", Kind.REFUSED)
    assert take(table, "bad").troubled
    table.troubles.over("bad", "a")
    assert table.queries.status("bad").problem is None
    assert tell(table, "b", Kind.REFUSED) == JobState.RUNNING


def test_a_word_of_another_generation_or_life_does_not_count(table: JobTable) -> None:
    make(table, "bad")
    claim = take(table, "bad")
    table.registry.heartbeat("a")
    table.fail("bad", "the weights are gone")
    mine = table.finalize("bad", "me")
    assert mine is not None
    table.finish("bad", "me", mine)
    generation = table.actions.retry("bad", "default", retry_id="again")
    table.actions.reopened("bad", generation)
    assert table.troubles.tell("a", "h", "bad", Kind.REFUSED, "no", claim) == "gone"
    assert table.queries.status("bad").state is JobState.RUNNING


# -- what nobody foresaw -----------------------------------------------------------------------------------------------


def test_an_unforeseen_error_convicts_after_three_tries_of_all_who_are_alive(table: JobTable) -> None:
    make(table, "bad")
    table.registry.heartbeat("a")
    assert [tell(table, "a", Kind.ERROR, "ValueError: x") for _ in range(3)] == ["running", "running", "finalizing"]
    assert table.queries.status("bad").error == "ValueError: x (3 tries; the log of the workers has more)"


def test_a_machine_with_errors_of_its_own_convicts_nothing_while_another_has_not_tried(table: JobTable) -> None:
    make(table, "bad")
    for worker in ("a0", "a1", "a2", "b"):
        table.registry.heartbeat(worker)
    for _ in range(3):
        for worker in ("a0", "a1", "a2"):
            assert tell(table, worker, Kind.ERROR, host="a") == JobState.RUNNING
    assert isinstance(table.next_chunk("default", "bad", 0, exact=False, worker="a0"), OnlyRefusedJobs)
    assert tell(table, "b", Kind.ERROR, host="b") == JobState.FINALIZING


def test_three_workers_of_two_machines_need_no_fourth(table: JobTable) -> None:
    make(table, "bad")
    for worker in ("a", "b", "c", "d", "e"):
        table.registry.heartbeat(worker)
    told = [tell(table, worker, Kind.ERROR, host=host) for worker, host in (("a", "1"), ("b", "2"), ("c", "2"))]
    assert told == ["running", "running", "finalizing"]


def test_a_job_of_another_version_is_left_alone_and_never_fails_for_it(table: JobTable) -> None:
    make(table, "bad")
    table.registry.heartbeat("a")
    for _ in range(5):
        assert tell(table, "a", Kind.VERSION, "written by another version") == JobState.RUNNING
    assert table.next_chunk("default", "bad", 0, exact=True, worker="a") == OnlyRefusedJobs("default")


# -- deaths ------------------------------------------------------------------------------------------------------------


def die_loading(table: JobTable, claim_id: str, weight: int) -> float | None:
    claim = take(table, "bad", claim_id=claim_id)
    assert table.renew(claim, lease_s=30, loading=True)
    return table.reclaim_from_dead("bad", 0, claim_id=claim_id, weight=weight, loading=True)


def test_two_deaths_in_loading_its_model_convict_a_job(table: JobTable) -> None:
    make(table, "bad")
    assert die_loading(table, "one", CRASHED) is not None
    claim = take(table, "bad", chunk=1)
    assert claim.load_suspect
    assert claim.suspects == {}  # of no image
    assert die_loading(table, "two", CRASHED) is None
    assert "the weights crash the process that loads them" in (table.queries.status("bad").error or "")


def test_deaths_in_loading_do_not_add_up_where_somebody_loaded_it_in_between(table: JobTable) -> None:
    make(table, "bad")
    for number in range(4):
        assert die_loading(table, str(number), CRASHED) is not None
        table.troubles.loaded("bad")
    assert table.queries.status("bad").state is JobState.RUNNING


def test_a_death_beside_another_chunk_makes_the_next_load_a_lonely_one_and_no_more(table: JobTable) -> None:
    make(table, "bad")
    for number in range(4):
        assert die_loading(table, str(number), 0) is not None
    assert take(table, "bad", chunk=1).load_suspect
    assert table.queries.status("bad").state is JobState.RUNNING


# -- whose turn --------------------------------------------------------------------------------------------------------


def test_a_job_in_trouble_waits_for_others_but_not_for_nothing(table: JobTable) -> None:
    make(table, "bad")
    make(table, "good")
    table.registry.heartbeat("a")
    tell(table, "a", Kind.ERROR)
    assert whose_turns(table, "a") == ["good"] * 4
    # Its message of `recovery` is leave like any other.
    assert whose_turns(table, "a", exact=True) == ["good"] * 4
    table.actions.cancel("good")
    assert whose_turns(table, "a", times=1) == ["bad"]


def test_one_death_puts_nothing_off_and_a_second_one_does(table: JobTable, redis_client: redis.Redis) -> None:
    make(table, "bad")
    make(table, "good")
    take(table, "bad", claim_id="one")
    table.reclaim_from_dead("bad", 0, claim_id="one", weight=1)
    assert whose_turns(table, times=1, exact=True) == ["bad"]
    redis_client.hset("gradcam:job:bad", "struck_at", time.time() - 10)
    take(table, "bad", claim_id="two")
    table.reclaim_from_dead("bad", 0, claim_id="two", weight=1)
    assert whose_turns(table, times=3, exact=True) == ["good"] * 3
    redis_client.hset("gradcam:job:bad", "not_before", time.time() - 1)
    assert whose_turns(table, times=1, exact=True) == ["bad"]


def test_a_job_is_put_off_no_longer_than_half_a_minute_whatever_redis_clock_does(
    table: JobTable, redis_client: redis.Redis
) -> None:
    """The clock of a primary, or of the replica that took its place, went back: others went first."""
    make(table, "bad")
    make(table, "good")
    redis_client.hset("gradcam:job:bad", "not_before", time.time() + 3600)
    assert "bad" in whose_turns(table, times=2)
    assert whose_turns(table, times=1, exact=True) == ["bad"]


def test_a_machine_that_takes_many_chunks_along_is_one_accident(table: JobTable) -> None:
    make(table, "bad", chunks=8)
    make(table, "good")
    for chunk in range(8):
        take(table, "bad", chunk, claim_id=str(chunk))
        table.reclaim_from_dead("bad", chunk, claim_id=str(chunk), weight=1)
    assert whose_turns(table, times=1, exact=True) == ["bad"]
