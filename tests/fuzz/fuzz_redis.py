"""What lies in Redis, mutated: jobs on a real server, chunks and messages; each is read, or told in a sentence.

An input of `job` is no text but a seed: it says what of a job's keys is changed, and in what. Then everything
that reads jobs is asked, and a job beside it must get its turn all the same.
"""

from __future__ import annotations

import atexit
import base64
import json
import logging
import random
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, cast

import redis
from fuzz_mutations import Format, Structure
from fuzz_targets import Target

from deploy.servers import Valkey
from producer.jobs.broker.celery_app import BadMessage, read_pointer
from producer.jobs.broker.transport import envelope
from producer.jobs.model import keys
from producer.jobs.model.errors import GradcamError, ServiceError, UnreadableJob
from producer.jobs.model.items import Chunk, Item, decompress_items
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.results import Failure, Result
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.jobs.table.claims import Claim
from producer.jobs.table.table import JobTable
from producer.jobs.table.troubles import Kind
from producer.output.manifest import ChunkRecords
from worker.chunks.messages import Message, Messages
from worker.recover.reconciler import reconcile

#: Calls something, and takes note of a sentence that it raises.
Ask: TypeAlias = Callable[[Callable[[], object]], Any]
#: The job that is mutated, and the one beside it.
BAD, GOOD = "bad", "good"
#: A script that keeps the server for longer is a finding.
SLOW_MS: Final = 1000
#: Longer than any fuzzing, so that the same input means the same.
LEASE_S = 1e6
SPEC = JobSpec(chunk_size=4)
#: Numbers and words at which what counts goes wrong.
VALUES: tuple[str, ...] = (
    *("", "0", "-1", "1", "3", "512", "513", "65536", "2147483647", "2147483648", "4294967296", "9000000000000000"),
    *("9223372036854775807", "-9223372036854775808", "1" + "0" * 400, "1e400", "-1e400", "1e15", "nan", "-nan", "inf"),
    *(
        "0x10",
        " 7",
        "7 ",
        "007",
        "-0",
        "1.5",
        "1_000",
        "٣",
        "true",
        "null",
        "[]",
        "{}",
        '"7"',
        "[" * 2000,
        "\0",
        "\x1b[2J",
    ),
    *("running", "paused", "archived", "unreadable", "finalizing", "deleting", "repairing", "open", "closed", "high"),
    *("urgent", "9e15:9e15", "x:9000000000000000", "0=1,1=2", "load", "1,2,3", "A" * 300, "1," * 40_000),
    *('{"kind":"error","tries":1e300,"host":[],"sentence":{}}', '{"kind":"version","until":"9e99"}', '{"reason":[1]}'),
)
#: Parts that are no whole text.
BYTES = (b"\xff\xfe", b"\x80" * 40, zlib.compress(b"\n" * 100_000), zlib.compress(b'{"uri":"s3://b/x"}'))


class _NoStore:
    """A store that forgets: what is fuzzed is Redis."""

    prefix = ""

    def put(self, key: str, body: bytes) -> None:
        assert key.endswith("job.json")
        json.loads(body)


class _Server(NamedTuple):
    client: redis.Redis
    table: JobTable
    #: State → key → what DUMP says of it.
    dumps: dict[str, dict[bytes, bytes]]


@cache
def _server() -> _Server:
    """A Valkey of this process, and jobs in every state as dumps of their keys."""
    folder = Path(tempfile.mkdtemp(prefix="gradcam-fuzz-"))
    valkey = Valkey(folder, {}, "fuzz")
    valkey.start()
    client = redis.Redis.from_url(valkey.url)

    def stop() -> None:
        client.close()
        valkey.stop()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    client.config_set("appendonly", "no")
    client.config_set("slowlog-log-slower-than", SLOW_MS * 1000)
    table = JobTable(client, patience_s=0)
    dumps = {}
    for state in (JobState.RUNNING, JobState.FINALIZING, JobState.COMPLETED_WITH_ERRORS, JobState.REPAIRING):
        client.flushdb()
        _make(table, state)
        names = cast("list[bytes]", client.keys())
        dumps[state.value] = {name: cast("bytes", client.dump(name)) for name in names}
    return _Server(client, table, dumps)


def _make(table: JobTable, state: JobState) -> None:
    """A job with chunks in every place, and one beside it."""
    # Alive however long the fuzzing takes: else the word of one would be that of all, and the job would fail.
    table.redis.zadd(keys.WORKERS, {"worker-9": time.time() + 1e8})
    add(table, BAD, 18)
    failed = table.claim(BAD, 0, SPEC, claim_id="dead", lease_s=LEASE_S)
    assert failed is not None
    table.renew(failed, lease_s=LEASE_S, loading=True)
    table.reclaim_from_dead(BAD, 0, claim_id="dead", weight=1, life=failed.life)
    _commit(table, _claimed(table, 0), done=[0, 2, 3], failed=[1])
    table.renew(_claimed(table, 1, lease_s=-5.0), lease_s=-5.0, marked=[2])  # its lease is over
    table.renew(_claimed(table, 2), lease_s=LEASE_S, marked=[0, 1])
    table.troubles.tell("worker-1", "host", BAD, Kind.REFUSED, "no such network here")
    if state is not JobState.RUNNING:
        for chunk in range(1, 5):
            if (claim := table.claim(BAD, chunk, SPEC, claim_id=f"me-{chunk}", lease_s=-5.0)) is None:
                table.reclaim_from_dead(BAD, chunk, claim_id=f"me-{chunk}", weight=2, marked=[1])
                claim = table.claim(BAD, chunk, SPEC, claim_id=f"me-{chunk}", lease_s=-5.0)
            if claim is not None and state is not JobState.FINALIZING:
                _commit(table, claim, done=claim.pending[:1], failed=claim.pending[1:])
        table.fail(BAD, "the weights do not fit")
    if state not in {JobState.RUNNING, JobState.FINALIZING}:
        mine = table.finalize(BAD, "me")
        assert mine is not None
        assert table.finish(BAD, "me", mine)
    if state is JobState.REPAIRING:
        table.actions.maintain(BAD, state, "somebody")
    add(table, GOOD, 8)
    table.registry.heartbeat("worker-1", ("default",), ("mine",))
    table.registry.waits_for("worker-1", "the store", 12)
    table.registry.report_problem("worker-1", "the bucket is closed")
    table.registry.note_speed(SPEC.network, 12.5)


def add(table: JobTable, job: str, items: int) -> None:
    """A job of so many items, whole."""
    table.create(job, SPEC, lifetime_s=3600.0)
    lines = [Item(uri=f"s3://b/{n}.jpg", id=str(n)).line for n in range(items)]
    size = SPEC.chunk_size
    for number in range(-(-items // size)):
        table.add_chunk(job, Chunk.compress(number, lines[number * size : (number + 1) * size]))
    table.close(job, chunks=-(-items // size), items=items)


def _claimed(table: JobTable, chunk: int, lease_s: float = LEASE_S) -> Claim:
    claim = table.claim(BAD, chunk, SPEC, claim_id=f"me-{chunk}", lease_s=lease_s)
    assert claim is not None
    return claim


def _commit(table: JobTable, claim: Claim, *, done: list[int], failed: list[int]) -> None:
    failures = [
        Failure(index=claim.index(n), item=claim.items[n], reason="fetch", message="gone", attempts=claim.attempt)
        for n in failed
    ]
    seconds = {"fetch": 0.5, "explain": 1.0, "explain:idle": 0.25}
    table.commit(claim, done=dict.fromkeys(done, "+281 tabby"), failed=failures, lease_s=LEASE_S, seconds=seconds)


# -- jobs --------------------------------------------------------------------------------------------------------------


def _job(data: bytes) -> str:
    """Change some of a job's keys and ask everything that reads them."""
    chance = random.Random(data)
    client, table, dumps = _server()
    state = chance.choice((JobState.RUNNING.value,) * 3 + tuple(dumps))
    with client.pipeline(transaction=False) as pipe:
        pipe.flushdb()
        pipe.execute_command("SLOWLOG", "RESET")  # type: ignore[no-untyped-call]
        for name, dump in dumps[state].items():
            pipe.restore(name, 0, dump)
        pipe.execute()
    shared = False
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        shared |= _mutate(client, chance, list(dumps[state]))
    logging.disable(logging.CRITICAL)  # what is told in the log is read in its own tests
    try:
        told = _ask(table, chance, shared=shared)
    finally:
        logging.disable(logging.NOTSET)
    assert client.slowlog_len() == 0, client.slowlog_get(1)
    return "told" if told else "read"


def _mutate(client: redis.Redis, chance: random.Random, names: list[bytes]) -> bool:
    """Change one thing; whether it concerns a key that all jobs share."""
    hash_ = JobKeys(BAD).hash.encode()
    own = sorted(name for name in names if name.startswith(hash_))
    shared = sorted(
        key.encode()
        for key in (
            *(keys.WORKERS, keys.QUEUES, keys.PROBLEMS, keys.WAITS, keys.RELEASES, keys.NETWORKS, keys.SPEEDS),
            keys.DEVICE_SPEEDS,
        )
    )
    name = hash_ if chance.random() < 0.5 else chance.choice(own) if chance.random() < 0.8 else chance.choice(shared)
    value = _value(chance)
    if chance.random() < 0.1:
        client.delete(name)
        other = chance.choice(("nothing", "string", "list", "set", "zset", "hash"))
        {  # type: ignore[no-untyped-call]
            "nothing": lambda: None,
            "string": lambda: client.set(name, value),
            "list": lambda: client.rpush(name, value),
            "set": lambda: client.sadd(name, value),
            "zset": lambda: client.zadd(name, {value: 1.0}),
            "hash": lambda: client.hset(name, value, value),
        }[other]()
        return name in shared
    kind = cast("bytes", client.type(name))
    if kind == b"hash":
        fields = sorted(cast("list[bytes]", client.hkeys(name)))
        field = chance.choice(fields) if fields and chance.random() < 0.9 else value
        if chance.random() < 0.1:
            client.hdel(name, field)
        else:
            old = cast("bytes | None", client.hget(name, field)) or b""
            client.hset(name, field, _damaged(old, chance) if chance.random() < 0.3 else value)
    elif kind == b"zset":
        score = chance.choice((-1e300, -1.0, 0.0, 1e15, 1e300, float("inf"), float("-inf"), time.time() + 9e9))
        members = sorted(cast("list[bytes]", client.zrange(name, 0, -1)))
        client.zadd(name, {chance.choice((*members, value)): score})
    elif kind == b"string":
        client.set(name, _damaged(cast("bytes", client.get(name)), chance))
    return name in shared


def _value(chance: random.Random) -> bytes:
    return chance.choice(BYTES) if chance.random() < 0.1 else chance.choice(VALUES).encode()


def _damaged(old: bytes, chance: random.Random) -> bytes:
    data = bytearray(old)
    for _ in range(chance.choice((1, 2, 8))):
        at = chance.randrange(len(data) + 1)
        data[at : at + chance.choice((0, 1, 1, 5))] = chance.choice((b"", b"9", b"-", b"\0", chance.randbytes(2)))
    return bytes(data)


def _ask(table: JobTable, chance: random.Random, *, shared: bool) -> bool:
    """Do everything that workers and clients do; whether any of it was told. Raises what nobody foresaw."""
    told = 0

    def ask(call: Callable[[], object]) -> Any:
        nonlocal told
        try:
            return call()
        except GradcamError as error:
            told += 1
            _check_sentence(str(error))
            # What concerns one job is never a fault of Redis: workers pause at those.
            if isinstance(error, ServiceError) and not shared:
                raise
            return None

    queries = table.queries
    listed = ask(lambda: queries.jobs(limit=9)) or []
    if not shared:
        assert {status.job for status in listed} >= {GOOD}
        assert {status.total for status in listed if status.job == GOOD} == {8}
    for status in listed:
        assert status.model_dump_json()
        if status.job == BAD:
            error = _error(lambda: queries.status(BAD))
            assert (status.state is JobState.UNREADABLE) == (error is UnreadableJob)

    def send(queue: str, chunk: int) -> None:
        assert 0 <= chunk < 2**31
        table.redis.lpush(keys.QUEUE_PREFIX + queue, b"a message")

    unable: list[str] = []
    ask(
        lambda: reconcile(
            table,
            cast("Any", _NoStore()),
            lambda job, chunk, _: send("recovery", chunk),
            who="worker-2",
            grace_s=0.0,
            publish=lambda queue, job, chunk, _: send(queue, chunk),
            unable=unable.append,
            unreadable=lambda job, why: None,
        )
    )
    assert not unable, "an error that nobody foresaw keeps this worker from leading"
    registry = table.registry
    reads = [
        *(queries.spec, queries.outline, queries.facts, queries.histogram, queries.chunks, queries.since),
        *(queries.place_of_summary, lambda job: queries.items_of(job, 3)),
        *(lambda job: list(queries.failures(job)), lambda job: list(queries.states(job))),
        *(lambda _: registry.heartbeat("worker-1", ("default",), ("mine",)), lambda _: registry.networks()),
        *(lambda _: registry.speed(SPEC.network), lambda _: registry.batch_size("x")),
    ]
    for read in chance.sample(reads, 5):
        ask(partial(read, BAD))
    _work(table, ask, shared=shared)
    actions = table.actions
    for verb in chance.sample(
        [
            lambda: actions.pause(BAD),
            lambda: actions.resume(BAD),
            lambda: actions.cancel(BAD),
            lambda: actions.retry(BAD, "default", retry_id="again"),
            lambda: actions.maintain(BAD, JobState.DELETING, "me"),
            lambda: table.create(BAD, SPEC, lifetime_s=3600.0),
        ],
        2,
    ):
        ask(verb)
    if _error(lambda: queries.status(BAD)) is UnreadableJob:
        # What the sentence says to do.
        actions.delete(BAD)
        assert queries.state(BAD) is None
    return bool(told)


def _error(call: Callable[[], object]) -> type[Exception] | None:
    try:
        call()
    except GradcamError as error:
        return type(error)
    return None


def _work(table: JobTable, ask: Ask, *, shared: bool) -> None:
    """What a worker does with messages, one after the other, until all of the job beside is done."""
    messages = Messages(table, lambda *_: None, lambda: None, queues=("default",), worker="worker-2")
    for number in range(8):
        message = Message("default" if number % 3 else "recovery", BAD, number % 5)
        found = ask(partial(messages.chunk_for, message))
        if isinstance(found, tuple):
            _work_at(table, found[0], found[1], f"w-{number}", ask)
    if not shared:
        assert table.queries.status(GOOD).pending == 0, "a job beside it had to wait"


def _work_at(table: JobTable, job: str, chunk: int, claim_id: str, ask: Ask) -> None:
    known = _unless_told(table, job, lambda: table.queries.spec(job), ask)
    if known is None or known[1] is not JobState.RUNNING:
        return
    claim = _unless_told(table, job, lambda: table.claim(job, chunk, known[0], claim_id=claim_id, lease_s=LEASE_S), ask)
    if claim is None:
        return
    assert claim.items.keys() >= set(claim.pending)
    if ask(lambda: table.renew(claim, lease_s=LEASE_S, marked=claim.pending[:1])):
        ask(lambda: _commit(table, claim, done=claim.pending[1:], failed=claim.pending[:1]))
    ask(lambda: table.release(claim))


def _check_sentence(sentence: str) -> None:
    assert 0 < len(sentence) < 600, sentence
    assert sentence.isprintable(), sentence


def _unless_told(table: JobTable, job: str, call: Callable[[], Any], ask: Ask) -> Any:
    """As `worker/chunks/faults.py`: a job that cannot be read is left alone for a while."""
    try:
        return call()
    except GradcamError as error:
        why = str(error)
    ask(lambda: table.troubles.tell("worker-2", "host", job, Kind.VERSION, why))
    return None


# -- what is read in this process --------------------------------------------------------------------------------------


def _chunk(data: bytes) -> str:
    """The items of a chunk, as they are and as what unpacks to them."""
    verdicts = set()
    for payload in (data, zlib.compress(data, 1)):
        try:
            items = decompress_items(payload)
        except ValueError:
            verdicts.add("told")
            continue
        assert all(isinstance(item, Item) for item in items.values())
        verdicts.add("read")
    return "read" if "read" in verdicts else "told"


def _message(data: bytes) -> str:
    """A message, as it is and as the body of one."""
    whole = json.loads(_messages()[0])
    verdicts = set()
    for message in (data, json.dumps(whole | {"body": base64.b64encode(data).decode()}).encode()):
        try:
            pointer = read_pointer(message)
        except BadMessage as error:
            _check_sentence(str(error))
            verdicts.add("told")
            continue
        assert 0 <= pointer.chunk < 2**31
        verdicts.add("read")
    return "read" if "read" in verdicts else "told"


def _manifest(data: bytes) -> str:
    """A part of a manifest: what can be read of it is, and the rest is told line by line."""
    records = ChunkRecords(0, 0)
    part = keys.ManifestPart(0, 1, 1, 0)
    records.add("manifest/x", part, data, 4)
    for result in records.results():
        assert 0 <= result.index < 4
        assert Result.model_validate_json(result.line)
    return "told" if records.damage else "read"


def _lines() -> list[bytes]:
    items = [Item(uri=f"s3://bucket/{n}.jpg", id=f"n-{n}", class_id=n, keep={"split": "a"}).line for n in range(4)]
    return [
        "\n".join(items).encode(),
        items[0].encode(),
        b'{"uri":"https://h/x?a=b","label":"cat"}\n\n' + items[1].encode(),
    ]


def _messages() -> list[bytes]:
    from producer.jobs.broker.celery_app import Pointer

    body = json.dumps([["job-1", 3], {}, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))]).encode()
    return [envelope(Pointer("job-1", 3, 1234.5), "high"), body]


def _parts_of_manifest() -> list[bytes]:
    done = Result(
        index=0, uri="s3://b/0.jpg", state="done", class_id=281, class_name="tabby", probability=0.5, network="vgg16",
        keep={"split": "a"}, objects={"cam": "p/cam.jpg"}, seconds={"fetch": 0.1},
    )  # fmt: skip
    failed = Result(index=1, uri="s3://b/1.jpg", state="failed", reason="fetch", message="gone")
    return [f"{done.line}\n{failed.line}\n".encode(), done.line.encode()]


def _json_structure(data: bytes) -> Structure:
    """Between commas, colons and brackets."""
    marks = [at for at, byte in enumerate(data) if byte in b",:{}[]\n"]
    return Structure([(at + 1, end) for at, end in pairwise(marks) if end > at + 1])


def targets() -> Iterator[Target]:
    """A target for each of what is read from Redis, and manifests."""
    of_json = Format(_json_structure)
    yield Target("job", [b"any bytes are a seed"], _job, Format())
    yield Target("chunk", [*_lines(), *(zlib.compress(lines) for lines in _lines())], _chunk, of_json)
    yield Target("message", _messages(), _message, of_json)
    yield Target("manifest", _parts_of_manifest(), _manifest, of_json)
