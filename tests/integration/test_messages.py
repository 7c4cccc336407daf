"""Whatever lies in the queues and whatever becomes of Redis: the worker's main process goes on, and says so."""

from __future__ import annotations

import base64
import json
import pickle
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import pytest
import redis
from budget import either
from hypothesis import given, settings
from hypothesis import strategies as st
from stacks import SMALL, eventually, frozen, own_stack

from producer.client.client import Client
from producer.jobs.broker import celery_app
from producer.jobs.broker.celery_app import BadMessage, BrokerAway, Pointer, read_pointer
from producer.jobs.broker.transport import envelope
from producer.jobs.model.keys import QUEUE_PREFIX
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from deploy.stack import Stack

PHOTO = Path(str(__import__("skimage").__file__)).parent / "data" / "coffee.png"
SECRET = "what-a-user-sent"
GONE = object()


# -- what a message must be -------------------------------------------------------------------------------------------


def body(*parts: Any) -> str:
    return base64.b64encode(json.dumps(parts).encode()).decode()


EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: As celery 5.7 writes it.
OURS: dict[str, Any] = {
    "body": body(["job-1", 3], {}, EMBED),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {
        "lang": "py", "task": "gradcam.explain_chunk", "id": "44f1d99f-1284-4aab-a7fb-3acf6115dd44",
        "shadow": None, "eta": None,
        "expires": None, "group": None, "group_index": None, "retries": 0, "timelimit": [None, None],
        "root_id": "44f1d99f-1284-4aab-a7fb-3acf6115dd44", "parent_id": None, "argsrepr": "", "kwargsrepr": "{}",
        "origin": "gen3184@vm", "ignore_result": True, "replaced_task_nesting": 0, "stamped_headers": None,
        "stamps": {}, "gradcam_published_at": 1234.5,
    },
    "properties": {
        "correlation_id": "44f1d99f-1284-4aab-a7fb-3acf6115dd44", "reply_to": "bcd32c2b-6b27-3a0f-b9dc-7c98058cce34",
        "argsrepr": "", "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "high"}, "priority": 0,
        "body_encoding": "base64", "delivery_tag": "886dbc2a-25fc-4695-80b6-746a7d921d64",
    },
}  # fmt: skip


def changed(place: str, value: Any) -> bytes:
    message = deepcopy(OURS)
    *outer, last = place.split("/")
    part = message
    for name in outer:
        part = part[name]
    if value is GONE:
        del part[last]
    else:
        part[last] = value
    return json.dumps(message).encode()


NO_JSON, NO_ENVELOPE, TOO_LARGE = "it is not JSON", "it is no envelope", "it is larger than 16384 bytes"


def not_ours(place: str) -> str:
    return f"its {place} is not as we send it"


BAD: list[tuple[bytes, str]] = [
    (b"", NO_JSON),
    (b"garbage", NO_JSON),
    (SECRET.encode(), NO_JSON),
    (b"\xff\xfe\x00", NO_JSON),
    (b'{"headers": "\xff"}', NO_JSON),
    (b"[" * 10_000, NO_JSON),
    (b'{"a":' * 3000, NO_JSON),
    (json.dumps(OURS).encode()[:-1], NO_JSON),
    (b"9" * 10_000, NO_JSON),
    (b"[" * 100_000, TOO_LARGE),
    (b"x" * 2_000_000, TOO_LARGE),
    (changed("headers/origin", SECRET * 2000), TOO_LARGE),
    (b"[]", NO_ENVELOPE),
    (b"1", NO_ENVELOPE),
    (b"null", NO_ENVELOPE),
    (b'"text"', NO_ENVELOPE),
    (b"{}", not_ours("content-type")),
    (b'{"body": 1}', not_ours("content-type")),
    (changed("content-type", "application/x-python-serialize"), not_ours("content-type")),
    (changed("content-type", GONE), not_ours("content-type")),
    (changed("content-encoding", "binary"), not_ours("content-encoding")),
    (changed("content-encoding", None), not_ours("content-encoding")),
    (changed("headers", GONE), not_ours("headers")),
    (changed("headers", None), not_ours("headers")),
    (changed("headers", [SECRET]), not_ours("headers")),
    (changed("headers/task", "celery.backend_cleanup"), not_ours("headers.task")),
    (changed("headers/task", SECRET), not_ours("headers.task")),
    (changed("headers/task", [1]), not_ours("headers.task")),
    (changed("headers/task", GONE), not_ours("headers.task")),
    (changed("headers/eta", "2999-01-01T00:00:00"), not_ours("headers.eta")),
    (changed("headers/eta", 1), not_ours("headers.eta")),
    (changed("headers/expires", "2020-01-01T00:00:00"), not_ours("headers.expires")),
    (changed("headers/timelimit", [1, None]), not_ours("headers.timelimit.0")),
    (changed("headers/timelimit", 5), not_ours("headers.timelimit")),
    (changed("headers/group", SECRET), not_ours("headers.group")),
    (changed("headers/chord", {"task": SECRET}), not_ours("headers.chord")),
    (changed("headers/compression", "application/x-gzip"), not_ours("headers.compression")),
    (changed("headers/gradcam_published_at", GONE), not_ours("headers.gradcam_published_at")),
    (changed("headers/gradcam_published_at", "1"), not_ours("headers.gradcam_published_at")),
    (changed("headers/gradcam_published_at", True), not_ours("headers.gradcam_published_at")),
    (changed("headers/gradcam_published_at", -1), not_ours("headers.gradcam_published_at")),
    (changed("headers/gradcam_published_at", float("nan")), not_ours("headers.gradcam_published_at")),
    (changed("headers/gradcam_published_at", float("inf")), not_ours("headers.gradcam_published_at")),
    (changed("properties", GONE), not_ours("properties")),
    (changed("properties", None), not_ours("properties")),
    (changed("properties/delivery_info", GONE), not_ours("properties.delivery_info")),
    (changed("properties/delivery_info", [SECRET]), not_ours("properties.delivery_info")),
    (changed("properties/delivery_tag", GONE), not_ours("properties.delivery_tag")),
    (changed("properties/delivery_tag", {}), not_ours("properties.delivery_tag")),
    (changed("properties/body_encoding", "utf-8"), not_ours("properties.body_encoding")),
    (changed("body", None), not_ours("body")),
    (changed("body", SECRET + "!"), "its body is not base64"),
    (changed("body", "é"), "its body is not base64"),
    (changed("body", base64.b64encode(pickle.dumps(SECRET)).decode()), "its body is not JSON"),
    (changed("body", base64.b64encode(b"[" * 5000).decode()), "its body is not JSON"),
    (changed("body", body()), not_ours("body.0")),
    (changed("body", base64.b64encode(b'{"args": []}').decode()), not_ours("body")),
    (changed("body", body([], {}, EMBED)), not_ours("body.0.0")),
    (changed("body", body(["job-1"], {}, EMBED)), not_ours("body.0.1")),
    (changed("body", body(["job-1", 3, SECRET], {}, EMBED)), not_ours("body.0")),
    (changed("body", body(["job-1", 3.0], {}, EMBED)), not_ours("body.0.1")),
    (changed("body", body(["job-1", True], {}, EMBED)), not_ours("body.0.1")),
    (changed("body", body(["job-1", -1], {}, EMBED)), not_ours("body.0.1")),
    (changed("body", body(["job-1", 2**31], {}, EMBED)), not_ours("body.0.1")),
    (changed("body", body([[SECRET], {"a": 1}], {}, EMBED)), not_ours("body.0.0")),
    (changed("body", body(["", 0], {}, EMBED)), "its job has a name that no job has"),
    (changed("body", body([f"{SECRET} ../..", 0], {}, EMBED)), "its job has a name that no job has"),
    (changed("body", body(["job-1", 3], {SECRET: 1}, EMBED)), not_ours("body.1")),
    (changed("body", body(["job-1", 3], {}, None)), not_ours("body.2")),
    (changed("body", body(["job-1", 3], {}, {"callbacks": [SECRET]})), not_ours("body.2.callbacks")),
    (changed("body", body(["job-1", 3], {}, {"chord": {"task": SECRET}})), not_ours("body.2.chord")),
    *(
        (changed("headers/task", task), not_ours("headers.task"))
        for task in ("celery.group", "celery.chord", "os.system", "")
    ),
    (changed("headers/task", "gradcam.explain_chunk "), not_ours("headers.task")),
    (changed("headers/gradcam_published_at", 10**400), not_ours("headers.gradcam_published_at")),
    (changed("headers/gradcam_published_at", [1.0]), not_ours("headers.gradcam_published_at")),
    (changed("body", body(["job-1", 10**400], {}, EMBED)), not_ours("body.0.1")),
    (changed("body", body(["job-1", "3"], {}, EMBED)), not_ours("body.0.1")),
    (changed("body", body(["job-1", [[3]]], {}, EMBED)), not_ours("body.0.1")),
    (changed("body", body(["x" * 5000, 3], {}, EMBED)), "its job has a name that no job has"),
    (changed("body", base64.b64encode(b'{"a":' * 1500).decode()), "its body is not JSON"),
    (changed("body", base64.b64encode(json.dumps(OURS).encode()).decode()), not_ours("body")),
    (changed("content-type", ["application/json"]), not_ours("content-type")),
    (changed("properties/delivery_info/routing_key", {SECRET: 1}), not_ours("properties.delivery_info.routing_key")),
]


@pytest.mark.parametrize(("message", "reason"), BAD, ids=[f"{n}-{reason}" for n, (_, reason) in enumerate(BAD)])
def test_a_message_that_is_not_ours_is_refused_in_words_that_show_nothing_of_it(message: bytes, reason: str) -> None:
    with pytest.raises(BadMessage) as refused:
        read_pointer(message)
    assert str(refused.value) == reason


def test_our_message_is_read_whatever_another_celery_adds_to_it() -> None:
    pointer = Pointer("job-1", 3, 1234.5)
    assert read_pointer(json.dumps(OURS).encode()) == pointer
    for place in ("headers/new_in_5_9", "properties/new_in_5_9", "new_in_5_9"):
        assert read_pointer(changed(place, {"a": [1]})) == pointer
    assert read_pointer(changed("headers/timelimit", None)) == pointer


def test_nothing_but_the_pointer_gets_through() -> None:
    pointer = Pointer("job-1", 3, 1234.5)
    written = envelope(pointer, "high")
    assert read_pointer(written) == pointer
    assert envelope(read_pointer(changed("headers/stamps", {SECRET: SECRET})), "high").count(SECRET.encode()) == 0
    # Nobody chooses what Celery knows a message by.
    assert json.loads(written)["headers"]["id"] != json.loads(envelope(pointer, "high"))["headers"]["id"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
)
PLACES = [*OURS, *(f"{part}/{name}" for part in ("headers", "properties") for name in OURS[part])]


@given(place=st.sampled_from(PLACES), value=JSON)
@settings(max_examples=either(50, 100), deadline=None)
def test_no_message_raises_anything_else(place: str, value: Any) -> None:
    for message in (changed(place, value), json.dumps(value).encode(), repr(value).encode(errors="surrogatepass")):
        with suppress(BadMessage):
            assert read_pointer(message).job == "job-1"


# -- a worker and its Redis -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Servers and a worker that these tests may do anything to, and this process's environment pointing at them."""
    with own_stack(tmp_path_factory.mktemp("messages"), {"GRADCAM_WORKER_LEASE_S": "6"}) as stack:
        stack.start_worker()
        yield stack


@pytest.fixture
def redis_client(own: Stack) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(own.redis.url)) as client:
        yield client


def log_of(own: Stack) -> str:
    return (own.directory / "worker.log").read_text(errors="replace")


def main_process(own: Stack) -> psutil.Process:
    """The launcher's Celery worker, which reads the queues; those that compute are its children."""
    assert own.worker is not None
    assert own.worker.process is not None
    (process,) = psutil.Process(own.worker.process.pid).children()
    return process


def explain(**parameters: Any) -> None:
    client = Client.from_env()
    job = client.submit([str(PHOTO)], **SMALL, **parameters)
    assert client.wait(job, timeout_s=60).state is JobState.SUCCEEDED


@contextmanager
def unharmed(own: Stack) -> Iterator[None]:
    """A job succeeds before and after, by the same main process, which has nothing unexpected to tell."""
    explain()
    process = main_process(own)
    time.sleep(0.2)  # the last job's process is idle now
    yield
    explain()
    assert main_process(own) == process
    assert "Traceback" not in log_of(own)
    assert own.redis.password not in log_of(own)


def valkey(own: Stack) -> psutil.Process:
    assert own.redis.process is not None
    return psutil.Process(own.redis.process.pid)


def test_no_message_ends_the_worker_and_each_is_told_in_a_sentence(own: Stack, redis_client: redis.Redis) -> None:
    app = celery_app.make_app(own.redis.url)
    made_by_celery: list[tuple[dict[str, Any], str]] = [
        ({"countdown": 10**6}, "headers.eta"),
        ({"expires": 10**6}, "headers.expires"),
        ({"time_limit": 1}, "headers.timelimit.0"),
        ({"group_id": SECRET}, "headers.group"),
        ({"chord": {"task": SECRET}}, "body.2.chord"),
        ({"link": app.signature("gradcam.explain_chunk")}, "body.2.callbacks"),
        ({"compression": "zlib"}, "headers.compression"),
        ({"serializer": "pickle"}, "content-type"),
        ({"name": SECRET}, "headers.task"),
        ({"args": ("job-1", 3, SECRET)}, "body.0"),
        ({"kwargs": {"job": SECRET}}, "body.1"),
        ({"headers": {}}, "headers.gradcam_published_at"),
    ]
    expected = Counter(reason for _, reason in BAD) + Counter(not_ours(place) for _, place in made_by_celery)
    with unharmed(own):
        for parameters, _ in made_by_celery:
            ours = {
                "name": celery_app.TASK,
                "args": ("job-1", 3),
                "headers": {"gradcam_published_at": 1.0},
                "queue": "high",
            }
            app.send_task(**{**ours, **parameters})
        for number, (message, _) in enumerate(BAD):
            redis_client.lpush(QUEUE_PREFIX + celery_app.QUEUES[number % 4], message)
        # These are as ours, and point to nothing: the job table knows.
        for job, chunk in (("no-such-job", 0), ("x", 2**31 - 1)):
            celery_app.publish(app, job, chunk, queue="high", published_at=1.0)
        eventually(lambda: log_of(own).count("action=bad_message") == expected.total())
    told = re.findall(r"action=bad_message queue=\w+ A message of (\d+) bytes was dropped: (.*)\.$", log_of(own), re.M)
    assert Counter(reason for _, reason in told) == expected
    assert {int(size) for size, _ in told} >= {len(message) for message, _ in BAD}
    assert SECRET not in log_of(own)
    # Nothing is noted down of what was delivered.
    assert not [key for key in redis_client.keys(QUEUE_PREFIX + "*") if b"unacked" in key or b"kombu" in key]


def test_a_key_that_is_no_list_is_told_and_left_and_the_other_queues_are_read(
    own: Stack, redis_client: redis.Redis
) -> None:
    key = QUEUE_PREFIX + "high"
    with unharmed(own):
        redis_client.set(key, SECRET)
        eventually(lambda: "action=bad_queue queue=high" in log_of(own))
        explain()
        with pytest.raises(BrokerAway, match="the queue `high`: WRONGTYPE"):
            celery_app.publish(celery_app.make_app(own.redis.url), "job-1", 0, queue="high", published_at=1.0)
        time.sleep(2.5)  # it is looked at again, and not told again
        assert redis_client.get(key) == SECRET.encode()
        redis_client.delete(key)
        explain(queue="high")
        eventually(lambda: "action=good_queue queue=high" in log_of(own))
    assert log_of(own).count("action=bad_queue queue=high") == 1
    assert SECRET not in log_of(own)


def test_a_full_redis_is_read_from_and_refuses_messages_in_a_sentence(own: Stack, redis_client: redis.Redis) -> None:
    app = celery_app.make_app(own.redis.url)
    with unharmed(own):
        with frozen(main_process(own)):
            time.sleep(1.1)  # what it had asked for has come back empty
            celery_app.publish(app, "no-such-job", 0, queue="high", published_at=1.0)
            redis_client.lpush(QUEUE_PREFIX + "high", b"garbage while Redis is full")
            redis_client.config_set("maxmemory", 1)
        try:
            eventually(lambda: not redis_client.exists(QUEUE_PREFIX + "high"))
            with pytest.raises(BrokerAway, match="used memory > 'maxmemory'"):
                celery_app.publish(app, "job-1", 0, queue="high", published_at=1.0)
            # The worker connects again while Redis is full.
            redis_client.client_kill_filter(_type="normal", skipme=True)
            time.sleep(1)
        finally:
            redis_client.config_set("maxmemory", 0)


def test_a_redis_that_restarts_again_and_again_is_waited_for(own: Stack) -> None:
    with unharmed(own):
        for _ in range(3):
            own.redis.kill()
            time.sleep(0.5)
            own.redis.restart()
            back = time.monotonic()
            explain()
            assert time.monotonic() - back < 10
            time.sleep(0.2)


def test_cut_connections_and_a_redis_that_stands_still_are_survived(own: Stack, redis_client: redis.Redis) -> None:
    with unharmed(own):
        for _ in range(2):
            redis_client.client_kill_filter(_type="normal", skipme=True)
            explain()
            time.sleep(0.2)
        with frozen(valkey(own)):
            time.sleep(5)


def test_a_redis_that_is_no_primary_for_a_while_is_told_once_and_tried_again(
    own: Stack, redis_client: redis.Redis
) -> None:
    with unharmed(own):
        redis_client.set(QUEUE_PREFIX + "low", "no list")
        eventually(lambda: "action=bad_queue queue=low" in log_of(own))
        redis_client.replicaof("127.0.0.1", "1")
        try:
            eventually(lambda: "action=redis_refuses" in log_of(own))
            before = redis_client.info("stats")["total_connections_received"]
            time.sleep(3)
            # It is left alone meanwhile, and not asked in circles.
            assert redis_client.info("stats")["total_connections_received"] - before < 20
        finally:
            redis_client.replicaof("NO", "ONE")
            redis_client.delete(QUEUE_PREFIX + "low")
    assert log_of(own).count("action=redis_refuses") == 1


# -- the producer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def unread(own: Stack) -> Iterator[redis.Redis]:
    """A database that no worker reads."""
    with closing(redis.Redis.from_url(own.redis.url.removesuffix("/0") + "/1")) as client:
        client.flushdb()
        yield client
        client.flushdb()


def pointers(client: redis.Redis) -> list[Pointer]:
    """What lies in the queue `low`, the next to be read at last."""
    return [read_pointer(message) for message in cast("list[bytes]", client.lrange(QUEUE_PREFIX + "low", 0, -1))]


def impatient_app(own: Stack) -> Any:
    """An application for that database whose connections give up after a second."""
    app = celery_app.make_app(own.redis.url.removesuffix("/0") + "/1")
    app.conf.broker_transport_options["socket_timeout"] = 1
    return app


def test_what_is_published_is_what_is_read(own: Stack, unread: redis.Redis) -> None:
    app = impatient_app(own)
    celery_app.publish(app, "job-1", 7, queue="low", published_at=1.5)
    assert pointers(unread) == [Pointer("job-1", 7, 1.5)]
    assert unread.keys() == [b"gradcam:queue:low"]


def test_a_message_that_nobody_takes_goes_back_to_where_it_was(own: Stack, unread: redis.Redis) -> None:
    app = impatient_app(own)
    for chunk in (1, 2):
        celery_app.publish(app, "job-1", chunk, queue="low", published_at=1.5)
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("low")
        assert [pointer.chunk for pointer in pointers(unread)] == [2]
        message.requeue()
        assert [pointer.chunk for pointer in pointers(unread)] == [2, 1]


def test_publishing_waits_for_a_redis_that_restarts(own: Stack, unread: redis.Redis) -> None:
    app = impatient_app(own)
    celery_app.publish(app, "job-1", 0, queue="low", published_at=1.0)
    own.redis.kill()
    restart = threading.Timer(1.5, own.redis.restart)
    restart.start()
    celery_app.publish(app, "job-1", 1, queue="low", published_at=1.0)
    restart.join()
    # Written to disk every second: the first may be lost, and is the job table's to find.
    assert [pointer.chunk for pointer in pointers(unread)] in ([1, 0], [1])


def test_publishing_into_a_redis_that_stands_still_sends_at_most_one_copy_more(own: Stack, unread: redis.Redis) -> None:
    app = impatient_app(own)
    celery_app.publish(app, "job-1", 0, queue="low", published_at=1.0)
    process = valkey(own)
    go_on = threading.Timer(3, process.resume)
    process.suspend()
    go_on.start()
    celery_app.publish(app, "job-1", 1, queue="low", published_at=1.0)
    go_on.join()
    time.sleep(0.2)
    assert [pointer.chunk for pointer in pointers(unread)] in ([1, 0], [1, 1, 0])


def test_publishing_ends_in_a_sentence_when_redis_stays_away(own: Stack, unread: redis.Redis) -> None:
    app = impatient_app(own)
    celery_app.publish(app, "job-1", 0, queue="low", published_at=1.0)
    with frozen(valkey(own)):
        started = time.monotonic()
        with pytest.raises(BrokerAway, match=r"has taken no message for 1 s \(TimeoutError\)") as gave_up:
            celery_app.publish(app, "job-1", 1, queue="low", published_at=1.0, within_s=1)
        assert time.monotonic() - started < 6
    assert own.redis.password not in str(gave_up.value)
    away = celery_app.make_app("redis://:word@127.0.0.1:9/0")
    away.conf.broker_connection_timeout = 0.1  # for the first connection, by kombu
    with pytest.raises(BrokerAway, match="ConnectionError") as gave_up:
        celery_app.publish(away, "job-1", 1, queue="low", published_at=1.0, within_s=0)
    assert "word" not in str(gave_up.value)


def test_the_servers_certificate_is_checked_unless_the_address_says_otherwise(tmp_path: Path) -> None:
    """Left to itself kombu takes any certificate for `rediss://`, and says so in the log."""
    assert not celery_app.make_app("redis://h/0").connection_for_read().ssl
    checked = celery_app.make_app("rediss://:word@h/0").connection_for_read()
    assert checked.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert checked.as_uri() == "rediss://:**@h:6379/0"
    (tmp_path / "ca.pem").touch()
    own_authority = celery_app.make_app(f"rediss://h/0?ssl_ca_certs={tmp_path}/ca.pem").connection_for_read()
    assert own_authority.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": f"{tmp_path}/ca.pem"}
    assert redis.SSLConnection(**own_authority.ssl).cert_reqs == ssl.CERT_REQUIRED
