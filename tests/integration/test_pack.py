"""Packed output: the pictures of a chunk in one webdataset shard, whole or not at all."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stacks import children_of, eventually

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import UsageError
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from deploy.stack import Stack

NETWORK = "efficientnet_lite0"
PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"
COFFEE, CAT = str(PHOTOS / "coffee.png"), str(PHOTOS / "chelsea.png")
PACKED: dict[str, Any] = {"network": NETWORK, "outputs": ["cam", "gb"], "pack": "tar"}

READ = """
import json, sys
import cv2, numpy as np, webdataset
read = {}
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False):
    picture = cv2.imdecode(np.frombuffer(sample["cam.jpg"], np.uint8), cv2.IMREAD_COLOR)
    read[sample["__key__"]] = {
        "members": list(sample), "known": json.loads(sample["json"]), "shape": picture.shape
    }
print(json.dumps(read))
"""


def shards(client: Client, job: str) -> list[str]:
    return list(client.storage.keys(keys.shards_prefix(client.storage.prefix, job)))


def names(client: Client, shard: str) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(client.storage.get(shard))) as tar:
        return tar.getnames()


@pytest.mark.usefixtures("worker")
def test_webdataset_reads_the_shards(client: Client, tmp_path: Path) -> None:
    job = client.submit([COFFEE, CAT, COFFEE, CAT, COFFEE], chunk_size=2, **PACKED)
    assert client.wait(job, timeout_s=60).state is JobState.SUCCEEDED
    assert [keys.chunk_of(shard) for shard in shards(client, job)] == [0, 1, 2]
    assert not list(client.storage.keys(keys.images_prefix(client.storage.prefix, job)))
    files = []
    for shard in shards(client, job):
        path = tmp_path / shard.rsplit("/", 1)[1]
        path.write_bytes(client.storage.get(shard))
        files.append(str(path))
    # In a process of its own: it leaves its files to the garbage collector.
    read = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, *files], check=True, capture_output=True, text=True
    )
    samples = json.loads(read.stdout)
    assert sorted(samples) == [f"{n:08d}" for n in range(5)]
    first = samples["00000000"]
    assert (first["known"]["class_name"], first["known"]["index"]) == ("espresso", 0)
    assert first["shape"] == [224, 224, 3]
    assert set(first["members"]) >= {"cam.jpg", "gb.jpg", "json"}


@pytest.mark.usefixtures("worker")
def test_packed_pictures_are_downloaded_and_audited_like_others(client: Client, tmp_path: Path) -> None:
    packed = client.submit([COFFEE, CAT, COFFEE], chunk_size=2, **PACKED)
    loose = client.submit([COFFEE, CAT, COFFEE], chunk_size=2, network=NETWORK, outputs=["cam", "gb"])
    for job in (packed, loose):
        client.wait(job, timeout_s=60)
        client.download(job, tmp_path / job)
    files = sorted(path.name for path in (tmp_path / loose).glob("[!.]*"))
    assert len(files) == 6
    assert sorted(path.name for path in (tmp_path / packed).glob("[!.]*")) == files
    for name in files:
        assert (tmp_path / packed / name).read_bytes() == (tmp_path / loose / name).read_bytes()
    assert list(client.audit(packed)) == []

    client.storage.delete(shards(client, packed)[:1])
    stray = keys.shard(client.storage.prefix, packed, 77, 1, "0123456789abcdef")
    client.storage.put(stray, b"stray")
    found = {(finding.kind, finding.index) for finding in client.audit(packed, repair=True)}
    assert found == {("missing", 0), ("missing", 1), ("extra", None)}
    status = client.wait(packed, timeout_s=60)
    assert (status.done, status.generation) == (3, 2)
    assert list(client.audit(packed)) == []


@pytest.mark.usefixtures("worker")
def test_a_repair_never_deletes_a_shard_of_images_whose_manifest_is_gone(client: Client) -> None:
    job = client.submit([COFFEE, CAT, COFFEE], chunk_size=2, **PACKED)
    client.wait(job, timeout_s=60)
    before = shards(client, job)
    whole = {shard: client.storage.get(shard) for shard in before}
    for shard in before:  # what a shard says of its images is lost as well, its pictures may not be
        client.storage.put(shard, whole[shard].replace(b'"index"', b'"other"'))
    client.storage.delete(list(client.storage.keys(keys.manifest_prefix(client.storage.prefix, job))))
    assert {finding.kind for finding in client.audit(job)} == {"missing"}
    with pytest.raises(UsageError, match="of 3 images nothing is left"):
        list(client.audit(job, repair=True))
    assert shards(client, job) == before
    for shard in before:
        client.storage.put(shard, whole[shard])
    # What lies in the shards tells the addresses of the images: they are explained again, into shards of their own.
    list(client.audit(job, repair=True))
    assert set(before) <= set(shards(client, job))
    assert client.wait(job, timeout_s=60).done == 3
    assert {finding.key for finding in client.audit(job, repair=True)} == set(before)
    assert list(client.audit(job)) == []
    assert len(list(client.results(job))) == 3


@pytest.mark.usefixtures("worker")
def test_a_retry_of_a_packed_job_adds_a_shard_and_touches_no_other(client: Client) -> None:
    late = f"s3://{client.storage.bucket}/late/packed.png"
    job = client.submit([COFFEE, late, CAT], chunk_size=3, **PACKED)
    assert client.wait(job, timeout_s=60).failures == {"fetch": 1}
    (first,) = shards(client, job)
    before = client.storage.get(first)
    assert [name for name in names(client, first) if name.endswith("json")] == ["00000000.json", "00000002.json"]
    client.storage.put("late/packed.png", (PHOTOS / "coffee.png").read_bytes())
    client.retry(job)
    assert client.wait(job, timeout_s=60).done == 3
    assert client.storage.get(first) == before
    (again,) = set(shards(client, job)) - {first}
    assert names(client, again) == ["00000001.cam.jpg", "00000001.gb.jpg", "00000001.json"]
    assert list(client.audit(job)) == []


def test_a_process_that_dies_leaves_no_half_shard(client: Client, worker: Stack) -> None:
    job = client.submit([COFFEE] * 30, chunk_size=30, **PACKED)
    eventually(lambda: client.table.redis.zcard(f"gradcam:job:{job}:leases"))
    assert worker.worker is not None
    eventually(lambda: client.table.redis.hget(f"gradcam:job:{job}:marks", "0"))
    for child in children_of(worker.worker):
        child.kill()
    assert client.status(job).done == 0
    status = client.wait(job, timeout_s=120)
    assert (status.state, status.done) == (JobState.SUCCEEDED, 30)
    (shard,) = shards(client, job)
    assert len(names(client, shard)) == 90
