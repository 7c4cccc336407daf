"""The short way to small objects: what goes over it is as boto3 would have it, and what it cannot do boto3 does."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import boto3
import pytest
from fault_proxy import HttpFaultProxy

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.errors import FetchError
from producer.jobs.model.settings import Connections, read
from producer.jobs.store.bucket import Storage
from producer.jobs.store.s3_client import open_s3
from producer.jobs.store.s3_fast_path import S3FastPath

if TYPE_CHECKING:
    from deploy.stack import Stack

KEYS = ["direct/a", "direct/with space+plus&amp=1.jpg", "direct/é~ü%20.png", "direct/double//slash", "direct/*'()!"]


@pytest.fixture
def storage(stack: Stack) -> Storage:
    return Storage.from_settings(read(Connections))


@pytest.mark.parametrize("key", KEYS)
def test_boto3_reads_what_went_over_it_and_the_other_way_round(storage: Storage, key: str) -> None:
    assert storage.fast_path is not None
    assert storage.fast_path.put(storage.bucket, key, b"\0\xff" * 5000, "image/jpeg")
    told = storage.client.get_object(Bucket=storage.bucket, Key=key)
    assert (told["Body"].read(), told["ContentType"]) == (b"\0\xff" * 5000, "image/jpeg")
    answer = storage.fast_path.get(storage.bucket, key)
    assert answer is not None
    with closing(answer):
        assert answer.length == 10_000
        assert b"".join(answer.iter_chunks(4096)) == b"\0\xff" * 5000


def test_an_empty_object_goes_over_it(storage: Storage) -> None:
    assert storage.fast_path is not None
    assert storage.fast_path.put(storage.bucket, "direct/empty", b"", "text/plain")
    assert storage.size("direct/empty") == 0


def test_a_missing_object_is_boto3s_to_tell_and_says_nothing_of_the_bucket(storage: Storage) -> None:
    assert storage.fast_path is not None
    for _ in range(5):
        assert storage.fast_path.get(storage.bucket, "direct/nothing") is None
    assert storage.fast_path.put(storage.bucket, "direct/b", b"b", "text/plain")


def test_without_credentials_it_does_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_s3(read(Connections), 32)[0]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    fast_path = S3FastPath(boto3.session.Session(), client, connections=1)
    assert not fast_path.put("gradcam", "direct/c", b"c", "text/plain")


def test_behind_a_users_proxy_it_does_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    storage = Storage.from_settings(read(Connections))
    assert storage.fast_path is not None
    assert not storage.fast_path.put(storage.bucket, "direct/d", b"d", "text/plain")


def test_a_bucket_that_never_answers_well_is_left_to_boto3(broken: tuple[Storage, HttpFaultProxy]) -> None:
    storage, proxy = broken
    assert storage.fast_path is not None
    proxy.answer_errors(301, "PermanentRedirect")
    for _ in range(5):
        assert not storage.fast_path.put(storage.bucket, "direct/e", b"e", "text/plain")
    assert proxy.counts["answer_errors"] == 3


def test_one_that_has_answered_well_is_tried_again(broken: tuple[Storage, HttpFaultProxy]) -> None:
    storage, proxy = broken
    assert storage.fast_path is not None
    assert storage.fast_path.put(storage.bucket, "direct/f", b"f", "text/plain")
    proxy.answer_errors(503, "SlowDown", n=5)
    for _ in range(5):
        assert not storage.fast_path.put(storage.bucket, "direct/f", b"f", "text/plain")
    assert storage.fast_path.put(storage.bucket, "direct/f", b"f", "text/plain")


def test_an_object_that_breaks_off_is_fetched_again(broken: tuple[Storage, HttpFaultProxy]) -> None:
    storage, proxy = broken
    storage.put("direct/large", b"x" * 300_000)
    fetcher = Fetcher(FetchPolicy(), storage.client, fast_path=storage.fast_path)
    proxy.break_bodies(1, only=lambda method, _: method == "GET")
    assert fetcher.fetch(f"s3://{storage.bucket}/direct/large") == b"x" * 300_000
    assert proxy.counts["break_bodies"] == 1


def test_an_object_that_is_too_large_is_refused_before_it_is_read(storage: Storage) -> None:
    storage.put("direct/large", b"x" * 300_000)
    fetcher = Fetcher(FetchPolicy(max_bytes=1000), storage.client, fast_path=storage.fast_path)
    with pytest.raises(FetchError, match="1,000 bytes"):
        fetcher.fetch(f"s3://{storage.bucket}/direct/large")


def test_dots_in_a_key_lead_nowhere_else(storage: Storage) -> None:
    """urllib3 would take them out of an address, and another object would answer where nothing checks signatures."""
    storage.put("direct/other", b"other")
    fetcher = Fetcher(FetchPolicy(), storage.client, fast_path=storage.fast_path)
    with pytest.raises(FetchError):
        fetcher.fetch(f"s3://{storage.bucket}/direct/here/../other")
