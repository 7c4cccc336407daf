"""On MinIO, which answers otherwise than AWS and SeaweedFS do; `make test-minio` runs more."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from s3_servers import chosen, proxied
from stacks import own_stack

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import JobError, WorkerError
from producer.jobs.model.settings import Connections, read
from producer.jobs.model.states import JobState
from producer.jobs.store.bucket import Storage
from producer.maintenance.doctor import examine
from producer.output.objects import Objects

if TYPE_CHECKING:
    from deploy.servers import SeaweedFS

#: What a file system or a tool may have named an object, and what XML, signatures and addresses stumble over.
ODD = [
    *("a&b<c>\"'", "new\nline", "cr\rx", "tab\tx", " before", "behind ", "q?x#y%20+=", "back\\slash", "a*b|c:d", "~t"),
    *(
        "é",
        "e\u0301",
        "文件/名.jpg",
        "🐱.png",
        "\x01\x1f",
        "\x7f",
        "\ufffe",
        "\u2028",
        "x" * 200,
        "double//slash",
        ".hid",
    ),
]


@pytest.fixture
def storage(minio: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The settings point at MinIO; Redis is the stack's."""
    monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", minio.endpoint_url)
    monkeypatch.setenv("GRADCAM_S3_BUCKET", minio.bucket)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", minio.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", minio.secret_key)
    return Storage.from_settings(read(Connections))


def test_objects_of_any_name_are_deleted_together(storage: Storage) -> None:
    names = [f"odd/{number}/{name}" for number, name in enumerate(ODD)]
    for name in names:
        storage.put(name, b"body")
    assert all(storage.size(name) == 4 for name in names)
    storage.delete([*names, "odd/never-there"])
    assert [name for name in names if storage.size(name) is not None] == []
    assert list(storage.keys("odd/")) == []


def test_all_that_a_doctor_asks_of_the_store_is_answered(storage: Storage) -> None:
    answers = [answer for answer in examine(read(Connections)) if answer.check.startswith("S3")]
    assert {answer.check: answer.words for answer in answers if answer.verdict != "ok"} == {}
    assert "S3 delete" in {answer.check for answer in answers}


@pytest.mark.usefixtures("redis_client")
def test_a_repair_deletes_what_is_extra_and_a_delete_the_rest(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A database that no worker looks at.
    monkeypatch.setenv("GRADCAM_REDIS_URL", os.environ["GRADCAM_REDIS_URL"].removesuffix("/0") + "/1")
    (tmp_path / "photo.png").write_bytes(b"never looked at")
    client = Client.from_env()
    job = client.submit([str(tmp_path / "photo.png")], network="resnet50", name="on-minio")
    client.cancel(job)
    stray = keys.picture(storage.prefix, job, 0, "stray.jpg")
    storage.put(stray, b"stray")
    assert [finding.key for finding in client.audit(job, repair=True)] == [stray]
    assert storage.size(stray) is None
    assert client.status(job).state is JobState.CANCELLED
    assert client.delete(job, objects=True)
    assert list(storage.keys(keys.job_prefix(storage.prefix, job))) == []


def test_a_large_file_goes_in_parts_and_comes_back(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2**17  # 32 MiB
    (tmp_path / "weights.pth").write_bytes(content)
    storage.put_file("large/weights.pth", tmp_path / "weights.pth")
    assert storage.get("large/weights.pth") == content


def test_presigned_addresses_open_without_credentials(storage: Storage) -> None:
    storage.put("signed/é b+c.jpg", b"picture")
    with urlopen(Objects(storage, "signed").url("signed/é b+c.jpg", expires_s=60), timeout=10) as answer:
        assert answer.read() == b"picture"


def test_whose_fault_an_error_is_is_known_there_too(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match="not-there"):
        Storage(storage.client, "not-there", storage.prefix).check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    with pytest.raises(WorkerError, match="AWS_SECRET_ACCESS_KEY"):
        Storage.from_settings(read(Connections)).check()


def test_the_suite_runs_on_a_given_server_and_leaves_nothing_there(
    minio: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADCAM_TEST_S3_ENDPOINT_URL", minio.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", minio.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", minio.secret_key)
    assert chosen().__name__ == "Given"
    with closing(minio.client()) as client:
        before = client.list_buckets()["Buckets"]
        with own_stack(tmp_path) as stack, proxied(stack.s3) as proxy:
            storage = Client.from_env().storage
            assert storage.bucket not in {bucket["Name"] for bucket in before}
            storage.put("given/a", b"body")
            through = read(Connections).model_copy(update={"s3_endpoint_url": f"http://127.0.0.1:{proxy.port}"})
            assert Storage.from_settings(through).get("given/a") == b"body"
        assert client.list_buckets()["Buckets"] == before
