"""The object store, on a real server: what is written is there, and whose fault it is when it cannot be."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from fault_proxy import HttpFaultProxy

from producer.jobs.model.errors import BucketClosed, JobError, StoreError, WorkerError
from producer.jobs.model.settings import Connections, read
from producer.jobs.store.bucket import Storage

if TYPE_CHECKING:
    from deploy.stack import Stack


@pytest.fixture
def storage(stack: Stack) -> Storage:
    return Storage.from_settings(read(Connections))


def test_what_is_put_is_there_and_listed_in_order(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    storage.put("store/b", b"second")
    storage.put_file("store/a", tmp_path / "file")
    assert list(storage.keys("store/")) == ["store/a", "store/b"]
    assert (storage.get("store/a"), storage.size("store/b")) == (b"from a file", 6)
    assert storage.size("store/nothing") is None
    storage.check()


def test_a_bucket_that_is_not_there_is_the_jobs_fault(storage: Storage) -> None:
    other = Storage(storage.client, "not-there", storage.prefix)
    with pytest.raises(JobError, match="GRADCAM_S3_BUCKET"):
        other.check()
    with pytest.raises(JobError, match="not-there"):
        other.get("key")


def test_credentials_that_are_refused_are_the_workers_fault(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    with pytest.raises(WorkerError, match="AWS_SECRET_ACCESS_KEY") as caught:
        Storage.from_settings(read(Connections)).check()
    assert "hunter2" not in str(caught.value)


def test_a_store_that_is_away_is_the_workers_fault(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(WorkerError, match="GRADCAM_S3_ENDPOINT_URL"):
        Storage.from_settings(read(Connections)).check()


def test_a_burst_of_errors_is_nobodys_fault(broken: tuple[Storage, HttpFaultProxy]) -> None:
    storage, proxy = broken
    proxy.answer_errors(503, "SlowDown", n=2)
    storage.put("store/burst", b"body")
    proxy.answer_errors(500, "InternalError", n=1)
    proxy.break_bodies(1)
    storage.put("store/large", b"x" * 100_000)
    assert storage.get("store/large") == b"x" * 100_000
    assert (proxy.counts["answer_errors"], proxy.counts["break_bodies"]) == (3, 1)


def test_a_write_whose_reply_was_lost_is_there_once(broken: tuple[Storage, HttpFaultProxy]) -> None:
    storage, proxy = broken
    proxy.lose_replies(1, only=lambda method, _: method == "PUT")
    storage.put("store/lost", b"body")
    assert proxy.counts["lose_replies"] == 1
    assert storage.get("store/lost") == b"body"


def test_an_object_that_is_refused_while_others_are_taken_is_the_items_fault(
    broken: tuple[Storage, HttpFaultProxy],
) -> None:
    storage, proxy = broken
    proxy.answer_errors(500, "InternalError", only=lambda _, path: path.endswith("cursed"))
    with pytest.raises(StoreError, match="took others meanwhile"):
        storage.put("store/cursed", b"body")
    storage.put("store/blessed", b"body")


def test_a_store_that_takes_nothing_is_the_workers_trouble_and_no_items(broken: tuple[Storage, HttpFaultProxy]) -> None:
    """A store whose disk is full still answers those who read."""
    storage, proxy = broken
    proxy.answer_errors(500, "InternalError", only=lambda method, _: method == "PUT")
    with pytest.raises(WorkerError, match="InternalError"):
        storage.put("store/any", b"body")
    assert storage.answers()
    assert not storage.accepts_writes()


def test_objects_are_deleted_by_name(storage: Storage) -> None:
    storage.put("store/gone", b"body")
    storage.delete(["store/gone", "store/never-there"])
    assert storage.size("store/gone") is None


def test_folders_that_consoles_and_file_systems_list_are_no_objects_of_ours(storage: Storage) -> None:
    storage.client.put_object(Bucket=storage.bucket, Key="folders/made-by-a-console/", Body=b"")
    storage.put("folders/b", b"body")
    assert list(storage.keys("folders/")) == ["folders/b"]


def sums_of(headers: dict[str, str]) -> list[str]:
    return sorted(name.lower() for name in headers if "md5" in name.lower() or "checksum" in name.lower())


def test_a_delete_carries_the_sum_that_every_server_takes(storage: Storage) -> None:
    """Many servers ask for MD5, which boto3 no longer sends, and some refuse sums that they do not know."""
    sent: list[AWSPreparedRequest] = []
    storage.client.meta.events.register("before-send.s3.DeleteObjects", lambda request, **_: sent.append(request))
    storage.delete(["sums/é\r\n"])
    (request,) = sent
    headers = {name: value if isinstance(value, str) else value.decode() for name, value in request.headers.items()}
    assert sums_of(headers) == ["content-md5"]
    assert isinstance(request.body, bytes)
    assert base64.b64decode(headers["Content-MD5"]) == hashlib.md5(request.body).digest()
    assert "content-md5;" in headers["Authorization"]


def test_an_express_bucket_is_asked_with_the_sum_that_it_knows(storage: Storage) -> None:
    """S3 Express One Zone is the one store that takes no MD5."""
    headers = {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-sdk-checksum-algorithm": "CRC32"}
    request = AWSRequest("POST", "https://pictures--use1-az4--x-s3/?delete", headers=headers, data=b"<Delete/>")
    names = ("signature_version", "region_name", "request_signer", "operation_name")
    told = dict.fromkeys(names, "")
    storage.client.meta.events.emit("before-sign.s3.DeleteObjects", request=request, signing_name="s3express", **told)
    assert sums_of(dict(request.headers.items())) == sorted(headers)


def test_each_request_that_fails_is_told_with_its_fault_also_where_the_next_try_succeeds(
    broken: tuple[Storage, HttpFaultProxy],
) -> None:
    """Metrics count them: a store that is overloaded is slow long before anything fails."""
    _, proxy = broken
    told: list[str] = []
    storage = Storage.from_settings(read(Connections), failed=told.append)
    storage.put("told/1", b"x")
    assert told == []
    proxy.answer_errors(503, "SlowDown", n=2)
    storage.put("told/1", b"x")
    assert told == ["first_try", "away"]
    assert storage.size("told/none") is None
    assert told == ["first_try", "away"], "an object that is not there is no fault"
    proxy.answer_errors(403, "InvalidAccessKeyId", n=1)
    with pytest.raises(WorkerError, match="refuses the credentials"):
        storage.check()
    proxy.lose_replies(n=1)
    storage.check()
    assert told[2:] == ["credentials", "away"]


def test_a_write_that_is_denied_is_told_apart_from_a_read_that_is(broken: tuple[Storage, HttpFaultProxy]) -> None:
    """Images lie in buckets that may be closed, and fail alone; what is written lies in our own, and all jobs fail."""
    _, proxy = broken
    told: list[str] = []
    storage = Storage.from_settings(read(Connections), failed=told.append)
    storage.put("denied/1", b"x")
    proxy.answer_errors(403, "AccessDenied")
    with pytest.raises(BucketClosed):
        storage.put("denied/1", b"x")
    with pytest.raises(BucketClosed):
        storage.delete(["denied/1"])
    assert told == ["first_try", "denied_write", "denied_write"]
    del told[:]
    with pytest.raises(BucketClosed):
        storage.size("denied/1")
    with pytest.raises(BucketClosed):
        list(storage.keys("denied/"))
    assert set(told) == {"denied"}
