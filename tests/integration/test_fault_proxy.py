"""The faults of the fault proxy, each on the real servers and with the real clients that meet it in the other tests."""

from __future__ import annotations

import http.client
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any

import boto3
import psutil
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from fault_proxy import FaultProxy, HttpFaultProxy
from redis.backoff import NoBackoff
from redis.retry import Retry
from s3_servers import chosen, proxied

from deploy.servers import SeaweedFS
from producer.jobs.model.settings import Connections, read
from producer.jobs.store.bucket import Storage
from producer.jobs.store.s3_client import open_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from deploy.stack import Stack

Connect = Callable[..., redis.Redis]


@pytest.fixture
def valkey(stack: Stack) -> Iterator[FaultProxy]:
    with FaultProxy(stack.redis.ports["redis"]) as proxy:
        yield proxy


@pytest.fixture
def connect(stack: Stack, valkey: FaultProxy, redis_client: redis.Redis) -> Iterator[Connect]:
    """Clients through the proxy that do not try again by themselves, with a connection that is open already."""
    defaults: dict[str, Any] = {"password": stack.redis.password, "socket_timeout": 3, "retry": Retry(NoBackoff(), 0)}
    with ExitStack() as clients:

        def make(**options: Any) -> redis.Redis:
            made = redis.Redis(port=valkey.port, db=1, **(defaults | options))
            assert clients.enter_context(closing(made)).ping()
            return made

        yield make


@pytest.fixture(scope="module")
def s3_proxy(stack: Stack) -> Iterator[HttpFaultProxy]:
    with proxied(stack.s3) as proxy:
        yield proxy


@pytest.fixture
def store(s3_proxy: HttpFaultProxy) -> Iterator[HttpFaultProxy]:
    """One proxy for all tests, since S3 clients take a while to make; every test begins without connections."""
    s3_proxy.counts.clear()
    yield s3_proxy
    s3_proxy.passing()
    s3_proxy.cut()


@pytest.fixture(scope="module")
def s3_client(s3_proxy: HttpFaultProxy) -> Iterator[S3Client]:
    """The client as workers make it."""
    address = f"http://127.0.0.1:{s3_proxy.port}"
    with closing(open_s3(read(Connections).model_copy(update={"s3_endpoint_url": address}), 32)[0]) as client:
        yield client


@pytest.fixture
def storage(stack: Stack, store: HttpFaultProxy, s3_client: S3Client) -> Storage:
    """Our own storage through the proxy, with a connection that is open already."""
    made = Storage(s3_client, stack.s3.bucket, "")
    made.check()
    return made


@pytest.fixture(scope="module")
def past_it(stack: Stack) -> Iterator[Storage]:
    """The same bucket, past the proxy."""
    with closing(stack.s3.client()) as client:
        yield Storage(client, stack.s3.bucket, "")


@pytest.fixture
def impatient(stack: Stack, store: HttpFaultProxy) -> Iterator[S3Client]:
    """An S3 client that waits half a second, twice."""
    retries: Any = {"mode": "standard", "total_max_attempts": 2}
    config = Config(read_timeout=0.5, connect_timeout=0.5, retries=retries, s3={"addressing_style": "path"})
    with closing(
        boto3.session.Session().client("s3", endpoint_url=f"http://127.0.0.1:{store.port}", config=config)
    ) as client:
        client.head_bucket(Bucket=stack.s3.bucket)
        yield client


def _puts(method: str, _path: str) -> bool:
    return method == "PUT"


# Redis: a stream of bytes.


def test_what_passes_arrives_whole_both_ways(connect: Connect, redis_client: redis.Redis) -> None:
    value = os.urandom(5_000_000)
    client = connect()
    client.set("large", value)
    assert client.get("large") == redis_client.get("large") == value


def test_two_hundred_connections_are_served_at_once(connect: Connect, valkey: FaultProxy) -> None:
    pool = connect(max_connections=200).connection_pool
    with ThreadPoolExecutor(16) as threads:
        held = list(threads.map(lambda _: pool.get_connection(), range(200)))
        for connection in held:
            connection.send_command("INCR", "n")
        answers = sorted(threads.map(lambda connection: connection.read_response(), held))
    assert answers == list(range(1, 201))
    valkey.cut()
    assert valkey.counts["cut"] == 200
    for connection in held:
        with pytest.raises(redis.ConnectionError):
            connection.read_response()
        pool.release(connection)


def test_a_cut_connection_is_reset_and_a_new_one_is_made(connect: Connect, valkey: FaultProxy) -> None:
    client = connect()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(client.blpop, ["nothing"], 3)
        _until(lambda: any(other["cmd"] == "blpop" for other in client.client_list()))
        valkey.cut()
        with pytest.raises(redis.ConnectionError, match="reset by peer"):
            waiting.result()
    assert client.ping()


def test_a_refused_connection_is_refused_until_all_passes(connect: Connect, valkey: FaultProxy) -> None:
    client = connect()
    valkey.refuse()
    for _ in range(3):  # the first on the connection that was closed
        with pytest.raises(redis.ConnectionError):
            client.ping()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", valkey.port), timeout=1)
    valkey.passing()
    assert client.ping()
    assert valkey.counts == {"refuse": 1}


def test_a_frozen_connection_goes_on_with_nothing_lost(
    connect: Connect, valkey: FaultProxy, redis_client: redis.Redis
) -> None:
    client = connect(single_connection_client=True)
    number = client.client_id()
    valkey.freeze()
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(client.incr, "n")
        newcomer = threads.submit(connect)  # a stopped server's system accepts for it
        _until(lambda: valkey.counts["freeze"] == 2)
        time.sleep(0.2)
        assert not answer.done()
        assert not newcomer.done()
        assert redis_client.get("n") is None
        valkey.passing()
        assert answer.result(timeout=2) == 1
        assert newcomer.result(timeout=2)
    assert client.client_id() == number


def test_a_lost_connection_stays_silent_and_open(
    connect: Connect, valkey: FaultProxy, redis_client: redis.Redis
) -> None:
    """A server that hands a message to a client it cannot reach: nobody hears of it, also when the network is back."""
    old = connect(single_connection_client=True, socket_timeout=1)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(old.blpop, ["queue"], 5)
        _until(lambda: any(client["cmd"] == "blpop" for client in redis_client.client_list()))
        valkey.blackhole()
        redis_client.rpush("queue", "message")
        _until(lambda: redis_client.llen("queue") == 0)
        valkey.passing()
        with pytest.raises(redis.TimeoutError):  # and not a ConnectionError: no FIN, no RST
            waiting.result()
    assert connect().ping()
    assert valkey.counts == {"blackhole": 1}


def test_the_server_does_not_hear_that_a_lost_client_went_away(
    connect: Connect, valkey: FaultProxy, redis_client: redis.Redis
) -> None:
    client = connect(single_connection_client=True)
    number = client.client_id()
    valkey.blackhole()
    client.close()
    time.sleep(0.2)
    assert number in [int(other["id"]) for other in redis_client.client_list()]
    valkey.cut()
    _until(lambda: number not in [int(other["id"]) for other in redis_client.client_list()])


def test_a_request_whose_reply_is_lost_reached_the_server(
    connect: Connect, valkey: FaultProxy, redis_client: redis.Redis
) -> None:
    client = connect()
    valkey.lose_replies(1)
    with pytest.raises(redis.ConnectionError, match="reset by peer"):
        client.incr("n")
    assert redis_client.get("n") == b"1"
    assert client.incr("n") == 2
    assert valkey.counts == {"lose_replies": 1}


def test_a_client_that_tries_again_after_a_lost_reply_counts_twice(
    connect: Connect, valkey: FaultProxy, redis_client: redis.Redis
) -> None:
    client = connect(retry=Retry(NoBackoff(), 1))
    valkey.lose_replies(1)
    assert client.incr("n") == 2


def test_a_long_pipeline_whose_reply_is_lost_reached_the_server_whole(
    connect: Connect, valkey: FaultProxy, redis_client: redis.Redis
) -> None:
    client = connect()
    valkey.lose_replies(2)
    with client.pipeline() as pipeline:
        for number in range(3000):
            pipeline.rpush("list", b"%d" % number * 100)
        with pytest.raises(redis.ConnectionError):
            pipeline.execute()
    assert redis_client.llen("list") == 3000
    assert valkey.counts == {"lose_replies": 1}  # all its pieces are one


def test_each_reply_waits_when_there_is_a_delay(connect: Connect, valkey: FaultProxy) -> None:
    client = connect()
    valkey.delay(0.2)
    assert _seconds(client.ping) >= 0.2
    valkey.passing()
    assert _seconds(client.ping) < 0.2
    assert valkey.counts == {"delay": 1}


def test_without_a_server_behind_it_connections_are_reset(connect: Connect, valkey: FaultProxy) -> None:
    client = connect()
    target, valkey.target = valkey.target, None
    assert client.ping()  # a connection that is there stays
    valkey.cut()
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            client.ping()
    valkey.target = target
    assert client.ping()


@pytest.mark.parametrize("fault", ["passing", "freeze", "refuse", "blackhole", "cut"])
def test_nothing_is_left_of_a_stopped_proxy(stack: Stack, fault: str) -> None:
    process = psutil.Process()
    files, threads = process.num_fds(), threading.active_count()
    with FaultProxy(stack.redis.ports["redis"]) as proxy:
        clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(10)]
        clients[0].sendall(b"PING\r\n")
        assert clients[0].recv(100)
        getattr(proxy, fault)()
        for client in clients[1:]:
            with suppress(ConnectionError):
                client.sendall(b"PING\r\n")
    for client in clients:
        client.close()
    assert (process.num_fds(), threading.active_count()) == (files, threads)
    proxy.stop()  # once more does no harm
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=1)


# S3: HTTP.


def test_objects_small_large_and_none_pass_unchanged(storage: Storage, past_it: Storage) -> None:
    large = os.urandom(9_000_000)  # in two parts
    storage.client.upload_fileobj(io.BytesIO(large), storage.bucket, "proxy/large")
    storage.put("proxy/small", b"small")
    storage.put("proxy/nothing", b"")
    assert past_it.get("proxy/large") == storage.get("proxy/large") == large
    assert (storage.get("proxy/small"), storage.get("proxy/nothing")) == (b"small", b"")
    assert (storage.size("proxy/large"), storage.size("proxy/absent")) == (9_000_000, None)
    storage.client.delete_object(Bucket=storage.bucket, Key="proxy/small")
    assert list(storage.keys("proxy/")) == ["proxy/large", "proxy/nothing"]


def test_chunked_bodies_pass_and_the_connection_is_kept(storage: Storage, store: HttpFaultProxy) -> None:
    if chosen() is not SeaweedFS:
        pytest.skip("AWS and MinIO take no body whose length is not said")
    url = storage.client.generate_presigned_url("put_object", Params={"Bucket": storage.bucket, "Key": "proxy/chunked"})
    with closing(http.client.HTTPConnection("127.0.0.1", store.port, timeout=3)) as connection:
        for _ in range(2):
            pieces = [b"a" * 70_000, b"b", b"c" * 3_000]
            connection.request("PUT", url.split(f":{store.port}")[1], iter(pieces), encode_chunked=True)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"")
            assert storage.get("proxy/chunked") == b"".join(pieces)


def test_a_burst_of_slow_down_is_got_over_by_retries(storage: Storage, store: HttpFaultProxy, past_it: Storage) -> None:
    store.answer_errors(503, "SlowDown", n=2)
    storage.put("proxy/burst", b"body")
    assert past_it.get("proxy/burst") == b"body"
    assert store.counts == {"answer_errors": 2}


def test_errors_that_do_not_end_reach_the_caller_but_not_the_server(
    impatient: S3Client, store: HttpFaultProxy, past_it: Storage
) -> None:
    store.answer_errors(500, "InternalError")
    with pytest.raises(ClientError, match="InternalError"):
        _put(impatient, past_it.bucket, "proxy/never")
    assert past_it.size("proxy/never") is None
    assert store.counts == {"answer_errors": 2}
    store.passing()
    _put(impatient, past_it.bucket, "proxy/never")
    assert past_it.size("proxy/never") == 4


def test_errors_hit_only_what_they_are_meant_for(storage: Storage, store: HttpFaultProxy) -> None:
    store.answer_errors(403, "AccessDenied", only=lambda method, path: method == "PUT" and "/proxy/closed" in path)
    storage.put("proxy/open", b"body")
    assert storage.size("proxy/closed") is None
    with pytest.raises(ClientError, match="AccessDenied"):
        _put(storage.client, storage.bucket, "proxy/closed")
    assert store.counts == {"answer_errors": 1}


def test_a_put_whose_reply_is_lost_is_repeated_and_there(
    storage: Storage, store: HttpFaultProxy, past_it: Storage
) -> None:
    store.lose_replies(1, only=_puts)
    storage.put("proxy/lost", b"body")
    assert storage.get("proxy/lost") == past_it.get("proxy/lost") == b"body"
    assert store.counts == {"lose_replies": 1}


def test_a_put_whose_reply_is_lost_reached_the_server(
    impatient: S3Client, store: HttpFaultProxy, past_it: Storage
) -> None:
    store.lose_replies(None)
    with pytest.raises(BotoCoreError, match="Connection was closed"):
        _put(impatient, past_it.bucket, "proxy/once", b"body" * 50_000)
    assert past_it.get("proxy/once") == b"body" * 50_000
    assert store.counts == {"lose_replies": 2}


def test_a_broken_body_is_an_error_in_the_middle_of_it(storage: Storage, store: HttpFaultProxy) -> None:
    """boto3 tries a request again, but not the body it has begun to give out: that is for whoever reads it."""
    body = os.urandom(3_000_000)
    storage.put("proxy/body", body)
    store.break_bodies(1)
    stream = storage.client.get_object(Bucket=storage.bucket, Key="proxy/body")["Body"]
    assert stream.read(1000) == body[:1000]
    with pytest.raises(BotoCoreError):
        stream.read()
    assert storage.get("proxy/body") == body
    assert store.counts == {"break_bodies": 1}


def test_a_download_gets_over_a_broken_body(storage: Storage, store: HttpFaultProxy) -> None:
    body = os.urandom(3_000_000)
    storage.put("proxy/body", body)
    store.break_bodies(1, only=lambda method, _path: method == "GET")
    into = io.BytesIO()
    storage.client.download_fileobj(storage.bucket, "proxy/body", into)
    assert into.getvalue() == body
    assert store.counts == {"break_bodies": 1}


def test_short_bodies_are_not_broken(storage: Storage, store: HttpFaultProxy) -> None:
    storage.put("proxy/short", b"body")
    store.break_bodies(1)
    assert storage.get("proxy/short") == b"body"
    assert not store.counts


def test_a_cut_of_pooled_connections_is_not_noticed(storage: Storage, store: HttpFaultProxy) -> None:
    store.cut()
    storage.put("proxy/cut", b"body")
    assert store.counts == {"cut": 1}


def test_a_store_that_comes_back_is_found_by_retries(storage: Storage, store: HttpFaultProxy) -> None:
    store.refuse()
    timer = threading.Timer(0.3, store.passing)
    timer.start()
    storage.put("proxy/back", b"body")
    timer.join()
    assert storage.get("proxy/back") == b"body"


def test_a_frozen_download_goes_on(storage: Storage, store: HttpFaultProxy) -> None:
    body = os.urandom(8_000_000)
    storage.put("proxy/frozen", body)
    stream = storage.client.get_object(Bucket=storage.bucket, Key="proxy/frozen")["Body"]
    first = stream.read(1000)
    store.freeze()
    with ThreadPoolExecutor() as threads:
        rest = threads.submit(stream.read)
        time.sleep(0.3)
        assert not rest.done()
        store.passing()
        assert first + rest.result(timeout=3) == body


def test_a_lost_pooled_connection_costs_one_timeout(
    impatient: S3Client, store: HttpFaultProxy, past_it: Storage
) -> None:
    store.blackhole()
    store.passing()
    assert _seconds(lambda: _put(impatient, past_it.bucket, "proxy/dead")) >= 0.5
    assert past_it.size("proxy/dead") == 4


def test_replies_of_the_store_wait_when_there_is_a_delay(storage: Storage, store: HttpFaultProxy) -> None:
    store.delay(0.3)
    assert _seconds(lambda: storage.put("proxy/slow", b"body")) >= 0.3
    assert store.counts == {"delay": 1}


def _put(client: S3Client, bucket: str, key: str, body: bytes = b"body") -> None:
    client.put_object(Bucket=bucket, Key=key, Body=body)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 3
    while not condition():
        assert time.monotonic() < deadline, "waited for 3 s"
        time.sleep(0.01)
