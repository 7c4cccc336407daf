"""The object store, on a real server: what is written is there, and whose fault it is when it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fault_proxy import HttpFaultProxy

from producer.jobs.errors import JobError, StoreError, WorkerError
from producer.jobs.settings import Connections, read
from producer.jobs.storage import Storage

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
    assert not storage.takes()


def test_objects_are_deleted_by_name(storage: Storage) -> None:
    storage.put("store/gone", b"body")
    storage.delete(["store/gone", "store/never-there"])
    assert storage.size("store/gone") is None
