"""Hostile text in Redis: what workers write there is short and harmless, and what anybody wrote there is shown so."""

from __future__ import annotations

import json
import time
from unicodedata import category

import pytest
import redis
from command import gradcam

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import ItemError
from producer.jobs.model.items import Chunk, Item
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.results import Failure
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.text import LINE_CHARS, SENTENCE_CHARS
from producer.jobs.table.claims import Claim
from producer.jobs.table.table import JobTable
from producer.jobs.table.troubles import Kind

NASTY = "a\x1b[2J\x9b31m\r\n\u2028b\u202egpj\u2066\u200b\ufeff\U000e0041 [bold]c[/] e" + 50 * "\u0301" + 2**20 * "\x07"
#: What a worker that is not ours may have written.
RAW, BIG = NASTY[:2_000], NASTY[:100_000]
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def assert_harmless(text: str, chars: int = LINE_CHARS) -> None:
    for line in text.replace("\t", "").splitlines():
        assert [char for char in line if category(char) in HIDDEN] == []
        assert len(line) <= chars
        assert "\u0301" * 7 not in line


@pytest.fixture
def table(redis_client: redis.Redis) -> JobTable:
    return JobTable(redis_client)


def claim(table: JobTable, item: Item) -> Claim:
    spec = JobSpec(chunk_size=2, network="resnet50")
    table.create("job", spec, lifetime_s=60)
    table.add_chunk("job", Chunk.compress(0, [item.line, Item(uri="s3://b/other.jpg").line]))
    table.close("job", chunks=1, items=2)
    found = table.claim("job", 0, spec, claim_id="me", lease_s=30)
    assert found is not None
    return found


def fail(table: JobTable, item: Item, message: str) -> None:
    mine = claim(table, item)
    failure = Failure(index=0, item=mine.items[0], reason="fetch", message=message)
    table.commit(mine, done=[], failed=[failure], lease_s=30)


def test_a_megabyte_of_text_takes_a_kilobyte_of_redis(table: JobTable, redis_client: redis.Redis) -> None:
    """Errors of libraries quote their input: a name in a weights file would be stored by each worker that meets it."""
    mine = claim(table, Item(uri="s3://b/a.jpg"))
    table.registry.heartbeat("w")
    table.registry.heartbeat("other")
    table.registry.report_problem("w", NASTY)
    table.registry.waits_for("w", NASTY, 5)
    table.troubles.tell("w", "h", "job", Kind.REFUSED, NASTY, mine)
    failure = Failure(index=0, item=mine.items[0], reason="fetch", message=str(ItemError(NASTY)))
    table.commit(mine, done=[], failed=[failure], lease_s=30)
    table.fail("job", NASTY, claim=mine)
    redis_client.hset(JobKeys("job").hash, "seen", 1)
    stored = {
        key: redis_client.dump(key)
        for key in redis_client.scan_iter("gradcam:*")
        if redis_client.type(key) in {b"hash", b"string"}
    }
    assert len(stored) > 5
    assert {key: len(value) for key, value in stored.items() if value is not None and len(value) > 6000} == {}
    problem = redis_client.hget(keys.PROBLEMS, "w")
    error = redis_client.hget(JobKeys("job").hash, "error")
    assert isinstance(problem, bytes)
    assert isinstance(error, bytes)
    assert_harmless(problem.decode(), SENTENCE_CHARS)
    assert_harmless(error.decode(), SENTENCE_CHARS)


def test_whatever_stands_in_redis_is_shown_harmlessly(unattended: Client, table: JobTable) -> None:
    """Another release, or whoever reaches Redis, may have written it."""
    fail(table, Item(uri=f"s3://b/{RAW[:60]}", id=RAW[:900], label=RAW[:60], keep={"note": RAW}), BIG)
    client = table.redis
    job = JobKeys("job")
    failure = json.loads(client.hget(job.part("failures"), "0") or b"{}")
    client.hset(job.part("failures"), "0", json.dumps({**failure, "reason": RAW, "message": BIG}))
    client.hset(job.part("reasons"), mapping={"fetch": 0, RAW: 1})
    client.hset(job.hash, mapping={"error": BIG, "network": RAW, "progress_at": time.time() - 100})
    client.hset(keys.PROBLEMS, RAW, BIG)
    client.hset(keys.WAITS, RAW, json.dumps({"what": BIG, "since": time.time() - 99, "at": time.time()}))
    client.zadd(keys.WORKERS, {RAW: time.time()})
    client.hset(keys.RELEASES, "0.0.1" + RAW, f"{time.time()} {RAW}")
    said = [
        gradcam("status", "job"),
        gradcam("list"),
        gradcam("failures", "job"),
        gradcam("wait", "job", "--timeout", "0s", code=5),
        gradcam("retry", "job", "--only", "nothing", code=2),
    ]
    for run in said:
        assert_harmless(run.stdout, 3 * LINE_CHARS)
        assert_harmless(run.stderr)
        assert len(run.stdout) < 15 * LINE_CHARS
    assert "cannot work" in said[0].stdout
    assert "[bold]c[/]" in said[2].stdout
    for machine in (
        gradcam("status", "job", "--json"),
        gradcam("failures", "job", "--json"),
        gradcam("list", "--json"),
    ):
        assert [char for char in set(machine.stdout) if category(char) in HIDDEN and char != "\n"] == []
    found = json.loads(gradcam("failures", "job", "--json").stdout)
    assert (found["item"]["id"], found["item"]["keep"]) == (RAW[:900], {"note": RAW})
