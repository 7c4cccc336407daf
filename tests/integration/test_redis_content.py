"""What Redis holds may be a newer release's, or a typo: it concerns its job alone, and nothing is done by half."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any, cast

import fuzz_redis
import pytest
import redis
from command import gradcam
from fuzz_redis import BAD, GOOD, LEASE_S, SPEC, VALUES

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import (
    GradcamError,
    OtherVersion,
    ServiceError,
    StoreError,
    UnknownJob,
    UnreadableJob,
)
from producer.jobs.model.items import Chunk, Item
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.results import Failure
from producer.jobs.model.settings import Connections, read
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.jobs.store import finalize as summaries
from producer.jobs.store.bucket import Storage
from producer.jobs.table.claims import Claim
from producer.jobs.table.table import JobTable
from producer.jobs.table.troubles import Kind
from producer.maintenance.doctor import examine
from producer.maintenance.retry import retry_failed
from producer.output.manifest import ChunkRecords
from producer.output.results import MAX_PART_BYTES, read_parts
from worker.recover.reconciler import Reconciler, reconcile

HASH = JobKeys(BAD).hash
COUNTS = (
    *("total", "done", "failed", "n_chunks", "n_open", "token", "generation", "epoch", "since", "ends", "base_n"),
    *("republished", "declined", "strikes", "mark_n", "last_mark_n", "reopening", "open_chunks", "chunk_size"),
)
SECONDS = (
    *("created_at", "ingest_at", "started_at", "finished_at", "progress_at", "mark_at", "last_mark_at", "reopened_at"),
    *("ready_at",),
    *("struck_at", "not_before", "maintained_until", "lifetime_s"),
)
#: No count, and no time, is any of these.
NO_NUMBERS = (
    *(
        "",
        "-1",
        "9000000000000000000",
        "1" + "0" * 400,
        "1e400",
        "-1e400",
        "nan",
        "-nan",
        "inf",
        "-inf",
        "0x10",
        " 7",
        "7 ",
    ),
    *("007", "1_000", "٣", "true", "[]", "[" * 2000, "\0", "A" * 9000),
)
#: The server is kept by no script for longer.
SLOW_MS = 1000


#: Those two jobs as DUMP gives them: made once, and restored for each test.
_DUMPS: dict[bytes, bytes] = {}


@pytest.fixture
def table(redis_client: redis.Redis) -> Iterator[JobTable]:
    """Two jobs, of which `bad` has chunks in every place; no command may keep the server for long."""
    made = JobTable(redis_client, patience_s=0)
    if not _DUMPS:
        fuzz_redis._make(made, JobState.RUNNING)
        names = cast("list[bytes]", redis_client.keys())
        _DUMPS.update({name: cast("bytes", redis_client.dump(name)) for name in names})
        redis_client.flushdb()
    with redis_client.pipeline(transaction=False) as pipe:
        for name, dump in _DUMPS.items():
            pipe.restore(name, 0, dump)
        pipe.execute()
    redis_client.config_set("slowlog-log-slower-than", SLOW_MS * 1000)
    redis_client.slowlog_reset()
    yield made
    slow = [entry for entry in redis_client.slowlog_get(9) if b"EVALSHA" in entry["command"]]
    redis_client.config_set("slowlog-log-slower-than", 10_000)
    assert slow == []


def everything(table: JobTable, claim: Claim) -> dict[str, Callable[[], object]]:
    """Each script that takes a job's numbers, by its name; `renew` takes none."""
    job, actions, life = BAD, table.actions, claim.life
    return {
        "status": lambda: table.queries.status(job),
        "claim": lambda: table.claim(job, 3, SPEC, claim_id="again", lease_s=LEASE_S),
        "commit": lambda: table.commit(claim, done={0: "+281 tabby"}, failed=[], lease_s=LEASE_S, seconds={"fetch": 1}),
        "release": lambda: table.release(claim),
        "reclaim_from_dead": lambda: table.reclaim_from_dead(job, 2, claim_id="me-2", weight=2, life=life),
        "reconcile": lambda: table.recovery.reconcile(job),
        "trouble": lambda: table.troubles.tell("w", "h", job, Kind.ERROR, "why"),
        "annotate": lambda: table.annotate(job, life, layer="x"),
        "add_chunk": lambda: table.add_chunk(job, Chunk.compress(5, [Item(uri="s3://b/x").line])),
        "close": lambda: table.close(job, chunks=5, items=18),
        "fail": lambda: table.fail(job, "why"),
        "finalize": lambda: table.finalize(job, "me"),
        "decline": lambda: table.decline(job, "me"),
        "pause": lambda: actions.pause(job),
        "resume": lambda: actions.resume(job),
        "retry": lambda: actions.retry(job, "default", retry_id="again"),
        "maintain": lambda: actions.maintain(job, JobState.DELETING, "me"),
        "create": lambda: table.create(job, SPEC, lifetime_s=60),
        "cancel": lambda: actions.cancel(job),
    }


def all_of(client: redis.Redis) -> dict[bytes, Any]:
    """All that Redis holds of the job. Not as `DUMP` has it: the order in a hash changes while that grows."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"hash": client.hgetall,
        b"zset": lambda name: client.zrange(name, 0, -1, withscores=True),
        b"list": lambda name: client.lrange(name, 0, -1),
        b"set": client.smembers,
        b"string": client.get,
    }
    names = cast("list[bytes]", client.keys(HASH + "*"))
    return {name: read[cast("bytes", client.type(name))](name) for name in names}


@pytest.fixture
def claim(table: JobTable) -> Claim:
    made = table.claim(BAD, 3, SPEC, claim_id="mine", lease_s=LEASE_S)
    assert made is not None
    return made


def turns(table: JobTable, worker: str = "w", calls: int = 6) -> set[str]:
    """The jobs of which a worker gets chunks."""
    found = [table.next_chunk("default", BAD, 0, exact=False, worker=worker) for _ in range(calls)]
    return {one[0] for one in found if isinstance(one, tuple)}


@pytest.mark.parametrize("field", [*COUNTS, *SECONDS])
def test_a_number_out_of_range_is_refused_by_every_script_before_anything_is_done(
    table: JobTable, claim: Claim, redis_client: redis.Redis, field: str
) -> None:
    """A chunk count of 9e15 kept the server busy for ever: every other job, and every other program, stood still."""
    whole = cast("bytes | None", redis_client.hget(HASH, field))
    scripts = cycle(everything(table, claim))
    bad = {*NO_NUMBERS, "1.5", "1e15", "1e3"} if field in COUNTS else {*NO_NUMBERS} - {"007"}
    bad |= {"0", "513"} if field == "chunk_size" else set()
    for value in sorted(bad):
        redis_client.hset(HASH, field, value)
        before = all_of(redis_client)
        # All scripts by turns, and each of these for each value.
        for script in {"status", "claim", "commit", *islice(scripts, 4)}:
            with pytest.raises(UnreadableJob, match=rf"job bad cannot be read \(`{field}`\).*gradcam delete bad"):
                everything(table, claim)[script]()
        assert all_of(redis_client) == before
    assert turns(table, calls=2) == {GOOD}
    if whole is None:
        redis_client.hdel(HASH, field)
    else:
        redis_client.hset(HASH, field, whole)
    assert table.queries.status(BAD).state is JobState.RUNNING


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("state", word) for word in ("archived", "unreadable", "RUNNING", "", "\xff")),
        *(("ingest", word) for word in ("ajar", "", "1")),
        *(("queue", word) for word in ("urgent", "default:x", "")),
        *(("outcome", word) for word in ("succeeded", "?", "")),
        *(("life", word) for word in ("a b", "x" * 65, "\xff")),
        *(("correct", "much"), ("wrong", "1e400"), ("unknown_labels", "0x1"), ("done", "18"), ("failed", "16")),
    ],
)
def test_a_word_that_this_version_does_not_know_concerns_its_job_alone(
    table: JobTable, claim: Claim, redis_client: redis.Redis, field: str, value: str
) -> None:
    redis_client.hset(HASH, field, value.encode("latin-1"))
    before = all_of(redis_client)
    for call in everything(table, claim).values():
        with pytest.raises(UnreadableJob):
            call()
    assert all_of(redis_client) == before
    assert {status.job: status.state for status in table.queries.jobs(limit=9)} == {
        BAD: JobState.UNREADABLE, GOOD: JobState.RUNNING
    }  # fmt: skip
    assert turns(table) == {GOOD}


@pytest.mark.parametrize("part", ["hash", *keys.JOB_PARTS])
@pytest.mark.parametrize("kind", ["string", "list", "set", "zset", "hash"])
def test_a_key_of_another_type_concerns_its_job_alone(
    table: JobTable, claim: Claim, redis_client: redis.Redis, part: str, kind: str
) -> None:
    name = HASH if part == "hash" else f"{HASH}:{part}"
    if cast("bytes", redis_client.type(name)).decode() == kind or (part == "hash" and kind == "hash"):
        return
    redis_client.delete(name)
    match kind:
        case "string":
            redis_client.set(name, "x" * 9)
        case "list":
            redis_client.rpush(name, "x")
        case "set":
            redis_client.sadd(name, "x")
        case "zset":
            redis_client.zadd(name, {"x": 1})
        case _:
            redis_client.hset(name, "x", "y")
    # One that was not there may be of its own type now.
    told = 0
    for call in everything(table, claim).values():
        try:
            call()
        except UnreadableJob:
            told += 1
        except GradcamError:
            continue
    own = {"waiting": "zset", "leases": "zset", "bits": "string", "history": "list"}.get(part, "hash")
    assert (told == len(everything(table, claim))) == (kind != own)
    assert GOOD in turns(table, worker="another")
    listed = {status.job: status for status in table.queries.jobs(limit=9)}
    assert listed[GOOD].state is JobState.RUNNING
    if kind != own:
        assert listed[BAD].state is JobState.UNREADABLE
        table.actions.delete(BAD)
        assert not redis_client.keys(HASH + "*")


@pytest.mark.parametrize(
    "entry", ["x:9000000000000000", "x:0", "x:-4", "x:5", "x:4.0", "4", "", "x:nan", "x" * 100 + ":4"]
)
def test_a_chunk_of_an_impossible_size_is_refused_before_its_bits_are_read(
    table: JobTable, claim: Claim, redis_client: redis.Redis, entry: str
) -> None:
    redis_client.hset(f"{HASH}:chunks", "3", entry)
    table.release(claim)
    before = all_of(redis_client)
    for call in ("claim", "commit"):
        with pytest.raises(UnreadableJob, match=r"\(`chunks`\)"):
            everything(table, claim)[call]()
    assert all_of(redis_client) == before


def test_a_chunk_far_behind_the_last_takes_no_memory(table: JobTable, redis_client: redis.Redis) -> None:
    """Its bits would be half a gigabyte of zeros in Redis."""
    for number in ("2000000000", "-1", "9" * 30, "1e9", "01"):
        redis_client.hset(f"{HASH}:items", number, Chunk.compress(0, [Item(uri="s3://b/x").line]).payload)
        redis_client.hset(f"{HASH}:chunks", number, "0" * 16 + ":1")
        with pytest.raises((UnreadableJob, ValueError)):
            table.claim(BAD, cast("int", number), SPEC, claim_id="me", lease_s=LEASE_S)
    assert redis_client.strlen(f"{HASH}:bits") < 100


def test_a_job_that_others_cannot_read_keeps_nobody_from_leading_and_is_told_once(
    table: JobTable, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis_client.hset(HASH, "total", "9" * 30)
    assert table.claim(GOOD, 0, SPEC, claim_id="x", lease_s=-5.0)  # it ran out long ago
    published: list[tuple[str, int]] = []
    made = Reconciler(
        table, cast("Storage", fuzz_redis._NoStore()), lambda job, chunk, _: published.append((job, chunk)),
        publish=lambda *_: None, who="w", queues=(), interval_s=0.01, grace_s=1e9, before_each=lambda: None,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            made._once()
            time.sleep(0.02)
    assert published == [(GOOD, 0)]
    assert made._leads_from == 0
    told = [record.getMessage() for record in caplog.records if "action=job_unreadable" in record.getMessage()]
    assert told == [
        "action=job_unreadable job=bad It is left alone: what Redis holds of job bad cannot be read (`total`): a newer "
        "gradcam-queue wrote it, or something else did: update this one, or `gradcam delete bad` forgets it"
    ]


def test_the_command_lists_a_job_that_cannot_be_read_and_says_why(
    unattended: Client, redis_client: redis.Redis
) -> None:
    fuzz_redis._make(unattended.table, JobState.RUNNING)
    redis_client.hset(HASH, "state", "archived")
    why = "what Redis holds of job bad cannot be read (`state`)"
    run = gradcam("list", code=0)
    assert ["unreadable" in line for line in run.stdout.splitlines() if line.strip().startswith(BAD)] == [True]
    assert any(line.strip().startswith(GOOD) and "running" in line for line in run.stdout.splitlines())
    assert why in run.stderr
    found = {one["job"]: one for one in json.loads(gradcam("list", "--json", code=0).stdout)}
    assert found[BAD]["state"] == "unreadable"
    assert why in found[BAD]["problem"]
    run = gradcam("status", BAD, code=4)
    assert why in run.stderr
    assert "Traceback" not in run.stderr
    gradcam("cancel", BAD, code=4)
    assert [one.job for one in unattended.list(state=["unreadable"])] == [BAD]
    gradcam("delete", BAD, "--yes", code=0)
    with pytest.raises(UnknownJob):
        unattended.status(BAD)


def test_jobs_that_cannot_be_read_make_way_however_many_there_are(table: JobTable, redis_client: redis.Redis) -> None:
    with redis_client.pipeline(transaction=False) as pipe:
        for number in range(3000):
            pipe.hset(JobKeys(f"x{number}").hash, mapping={"state": "running", "ingest": "open", "total": "many"})
            pipe.zadd(keys.round_robin("default"), {f"x{number}": number / 1e6})
        pipe.execute()
    assert GOOD in turns(table, calls=8)
    assert table.recovery.missing_messages("default", grace_s=0)


def test_places_in_the_row_that_no_number_follows_keep_nobody_from_its_turn(
    table: JobTable, redis_client: redis.Redis
) -> None:
    """One more than 1e300 is 1e300: the first by name had every turn."""
    redis_client.zadd(keys.round_robin("default"), {BAD: 1e300, GOOD: float("inf")})
    assert turns(table, calls=2) == {BAD, GOOD}


def test_times_far_ahead_hold_nothing_up(table: JobTable, redis_client: redis.Redis) -> None:
    ahead = time.time() + 9e8
    redis_client.zadd(f"{HASH}:leases", {"2": float("inf"), "1": ahead})
    assert sorted(table.recovery.reconcile(BAD).expired) == [1, 2]
    redis_client.hset(HASH, "not_before", ahead)
    redis_client.hset(f"{HASH}:troubles", "worker:w", json.dumps({"kind": "refused", "until": str(ahead)}))
    assert turns(table) == {BAD, GOOD}
    redis_client.hset(
        HASH, mapping={"state": "deleting", "before": "failed", "maintained_until": ahead, "maintainer": "x"}
    )
    assert table.actions.maintain(BAD, JobState.DELETING, "me")


@pytest.mark.parametrize(
    "word",
    [
        *("", "x", "[]", "null", "[" * 3000, "9" * 999, '{"kind":"error"}'),
        '{"kind":"error","tries":1e300,"host":[],"sentence":{}}',
        '{"kind":"refused","sentence":7,"until":[]}',
        '{"kind":"error","tries":-1,"host":"\\u0000","sentence":null}',
    ],
)
def test_a_workers_word_that_cannot_be_read_hides_nothing(
    table: JobTable, redis_client: redis.Redis, word: str
) -> None:
    redis_client.hset(f"{HASH}:troubles", mapping={"worker:worker-1": word, "load": word})
    assert "worker worker-1 cannot do this job" in (table.queries.status(BAD).problem or "")
    assert table.troubles.tell("worker-1", "host", BAD, Kind.VERSION, "it is newer") == "running"
    assert "it is newer" in (table.queries.status(BAD).problem or "")
    assert turns(table, worker="worker-1") == {GOOD}


def test_marks_and_suspects_of_megabytes_name_nobody(table: JobTable, redis_client: redis.Redis) -> None:
    for chunk in (3, 4):
        assert table.claim(BAD, chunk, SPEC, claim_id="dead", lease_s=-5.0)
    redis_client.hset(f"{HASH}:marks", "3", "1," * 5_000_000)
    redis_client.hset(f"{HASH}:suspects", mapping={"3": "1=1," * 5_000_000, "4": "1=" + "9" * 5000 + ",700=1,2=3"})
    assert sorted(table.recovery.reconcile(BAD).expired) == [1, 3, 4]
    taken = table.claim(BAD, 4, SPEC, claim_id="me", lease_s=LEASE_S)
    assert taken is not None
    assert taken.suspects == {2: 3}


@pytest.mark.parametrize("part", ["attempts", "reasons", "classes", "timings"])
def test_counts_that_only_tell_something_stop_no_commit(
    table: JobTable, claim: Claim, redis_client: redis.Redis, part: str
) -> None:
    """Half of a commit had been done when such a count stopped it: images were done, and counted nowhere."""
    for value in ("much", "9223372036854775807", ""):
        redis_client.hset(f"{HASH}:{part}", mapping={"3": value, "fetch": value, "281 tabby": value})
    failed = [Failure(index=13, item=claim.items[1], reason="fetch", message="gone")]
    committed = table.commit(claim, done={0: "+281 tabby"}, failed=failed, lease_s=LEASE_S, seconds={"fetch": 1})
    assert committed is not None
    assert (committed.done, committed.failed) == (1, 1)
    status = table.queries.status(BAD)
    assert (status.done, status.failed) == (4, 2)


def test_images_that_are_not_those_of_the_chunk_are_of_another_version(
    table: JobTable, claim: Claim, redis_client: redis.Redis
) -> None:
    table.release(claim)
    payloads = (b"", b"\xff" * 40, Chunk.compress(3, [Item(uri="s3://b/x").line]).payload, b"x" * 2**20)
    for payload in payloads:
        redis_client.hset(f"{HASH}:items", "3", payload)
        with pytest.raises(OtherVersion, match="the images of job bad"):
            table.claim(BAD, 3, SPEC, claim_id="me", lease_s=LEASE_S)
        assert redis_client.zscore(f"{HASH}:waiting", "3") is not None  # given back
    redis_client.hset(f"{HASH}:items", "3", payloads[1])
    with pytest.raises(UnreadableJob):
        table.queries.items_of(BAD, 3)


@pytest.mark.parametrize("line", ["", "{}", "[" * 9000, '{"index":9000000000000000}', "\xff"])
def test_a_failure_that_cannot_be_read_is_told_behind_all_others(
    table: JobTable, claim: Claim, redis_client: redis.Redis, line: str
) -> None:
    failure = Failure(index=12, item=claim.items[0], reason="fetch", message="gone")
    table.commit(claim, done={}, failed=[failure], lease_s=LEASE_S)
    table.actions.cancel(BAD)
    redis_client.hset(HASH, "outcome", "failed")
    mine = table.finalize(BAD, "me")
    assert mine is not None
    assert table.finish(BAD, "me", mine)
    redis_client.hset(f"{HASH}:failures", "1", line.encode("latin-1"))
    found = []
    with pytest.raises(UnreadableJob, match="why 1 of its images failed"):  # noqa: PT012 - what comes before it counts
        for one in table.queries.failures(BAD):
            found.append(one.index)
    assert found == [12]
    with pytest.raises(UnreadableJob):
        retry_failed(table, lambda *_: None, BAD, "default")
    status = table.queries.status(BAD)
    assert (status.state, status.failed) == (JobState.RUNNING, 1)
    assert "reopening" not in str(redis_client.hkeys(HASH))


def test_a_job_ends_though_its_summary_cannot_be_made(table: JobTable, redis_client: redis.Redis) -> None:
    """It was tried for ever, and the job never ended."""
    redis_client.hset(f"{HASH}:classes", "281 tabby", "many")
    redis_client.hset(HASH, "spec", "{")
    table.actions.cancel(BAD)
    # Another version may be able to: each worker that is alive leaves it to the others first.
    assert [summaries.finalize(table, cast("Storage", fuzz_redis._NoStore()), BAD, who) for who in "ab"] == [
        False,
        True,
    ]
    assert table.queries.status(BAD).state is JobState.CANCELLED
    assert redis_client.hget(HASH, "summary") == b"0"


# -- what is no job's --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*VALUES, "\xff\xfe"])
def test_what_a_worker_tells_otherwise_stops_no_other(table: JobTable, redis_client: redis.Redis, value: str) -> None:
    told = value.encode("latin-1", errors="replace")
    for key in (keys.RELEASES, keys.NETWORKS, keys.QUEUES, keys.WAITS, keys.PROBLEMS):
        redis_client.hset(key, "x", told)
    redis_client.hset(keys.SPEEDS, SPEC.network, told)
    redis_client.hset(keys.BATCH_SIZES, "x", told)
    table.registry.heartbeat("w", ("default",), ("mine",))
    now = table.registry.now()
    assert "mine" in table.registry.networks()
    assert "w" in table.registry.releases(now).values()
    assert all(0 <= wait.longest_s < 1e12 for wait in table.registry.waits(now))
    assert 0 < (table.registry.speed(SPEC.network) or 1) <= 1e6
    assert 1 <= (table.registry.batch_size("x") or 1) <= 1e6
    assert table.queries.status(GOOD).model_dump_json()


@pytest.mark.parametrize(
    "key",
    [keys.WORKERS, keys.QUEUES, keys.RELEASES, keys.NETWORKS, keys.WAITS, keys.PROBLEMS, keys.round_robin("default")],
)
def test_a_key_that_all_share_of_another_type_is_named(
    table: JobTable, unattended: Client, redis_client: redis.Redis, key: str
) -> None:
    redis_client.delete(key)
    redis_client.set(key, "x")
    if key == keys.round_robin("default"):
        with pytest.raises(ServiceError, match=f"{key} that is not ours: rename or delete"):
            table.create("another", SPEC, lifetime_s=60)
        assert not redis_client.exists(JobKeys("another").hash)
    elif key not in {keys.WAITS, keys.PROBLEMS}:
        with pytest.raises(ServiceError, match=f"{key}.* that is not ours: rename or delete"):
            table.registry.heartbeat("w", ("default",), ("mine",))
    words = {one.check: one for one in examine(unattended._services.settings)}
    assert words["rights"].verdict == "ok"
    # Lost work is looked for all the same.
    assert table.claim(GOOD, 0, SPEC, claim_id="x", lease_s=-5.0)
    published: list[str] = []
    if key != keys.round_robin("default"):
        reconcile(
            table, cast("Storage", fuzz_redis._NoStore()), lambda job, *_: published.append(job), who="w", grace_s=1e9,
            publish=lambda *_: None,
        )  # fmt: skip
        assert GOOD in published


# -- the store ---------------------------------------------------------------------------------------------------------

WHOLE = JobSpec().model_dump(mode="json")
SUMMARIES: dict[str, bytes] = {
    "nothing": b"",
    "torn": json.dumps({"spec": WHOLE}).encode()[:-20],
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "no spec": b"{}",
    "a spec that is a list": b'{"spec": []}',
    "nested": b'{"spec": ' + b"[" * 1_000_000,
    "a number without end": b'{"since": ' + b"9" * 100_000 + b"}",
    "a time that is none": json.dumps({"spec": WHOLE, "since": 1e300}).encode(),
    "infinite": b'{"since": Infinity, "spec": {}}',
    "below zero": json.dumps({"spec": WHOLE, "since": -1}).encode(),
    "no text": b"\xff\xfe\x00",
    "gzip": b"\x1f\x8b\x08" + b"\0" * 100,
}


@pytest.mark.parametrize("case", SUMMARIES)
def test_a_summary_that_cannot_be_read_is_a_sentence(stack: object, case: str) -> None:
    storage = Storage.from_settings(read(Connections))
    storage.put(keys.summary(storage.prefix, "content"), SUMMARIES[case])
    with pytest.raises(
        summaries.DamagedSummary, match=r"content/job.json cannot be read, it is torn or not ours"
    ) as told:
        summaries.recorded_spec(storage, "content")
    assert len(str(told.value)) < 500
    assert issubclass(summaries.DamagedSummary, StoreError)  # exit code 4


def test_a_summary_of_a_newer_version_is_told_from_a_torn_one(stack: object) -> None:
    storage = Storage.from_settings(read(Connections))
    for spec in (WHOLE | {"version": 2}, WHOLE | {"color": "red"}):
        storage.put(keys.summary(storage.prefix, "content"), json.dumps({"spec": spec, "more": 1}).encode())
        with pytest.raises(summaries.NewerSummary, match="newer version of gradcam-queue"):
            summaries.recorded_spec(storage, "content")


def test_a_summary_longer_than_any_is_not_fetched(stack: object) -> None:
    storage = Storage.from_settings(read(Connections))
    storage.put(keys.summary(storage.prefix, "content"), bytes(summaries.MAX_SUMMARY_BYTES + 1))
    try:
        with pytest.raises(summaries.DamagedSummary):
            summaries.recorded_spec(storage, "content")
    finally:
        storage.delete([keys.summary(storage.prefix, "content")])


def test_a_part_of_a_manifest_longer_than_any_is_not_fetched_and_the_others_are_read(stack: object) -> None:
    storage = Storage.from_settings(read(Connections))
    prefix = keys.manifest_prefix(storage.prefix, "content")
    storage.put(f"{prefix}whole", fuzz_redis._parts_of_manifest()[0])
    part = keys.ManifestPart(0, 1, 1, 0)
    # What is not there would be an error of the store.
    parts = [(f"{prefix}not-there", part, MAX_PART_BYTES + 1), (f"{prefix}whole", part, 999)]
    records = read_parts(storage, ChunkRecords(0, 0), parts, 4)
    assert [(one.key, one.line) for one in records.damage] == [(f"{prefix}not-there", None)]
    assert [result.index for result in records.results()] == [0, 1]
