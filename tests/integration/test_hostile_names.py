"""Names of strangers on real servers: forged ones in Redis, weights among the jobs of an old bucket, planted files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pty
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from command import gradcam
from torchvision.models import shufflenet_v2_x0_5

from producer import cli
from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import OtherVersion, UnknownJob, UsageError
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.results import Result
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.submission.weights import place_weights
from worker.recover.reconciler import reconcile

if TYPE_CHECKING:
    import redis

    from producer.jobs.table.table import JobTable

NETWORK = "shufflenet_v2_x0_5"
COFFEE = Path(str(__import__("skimage").__file__)).parent / "data" / "coffee.png"
FORGED = [
    b"../x",
    b"..",
    b"",
    b"a/b",
    b"a\nb",
    b"\x1b[2Jx",
    "\u202egpj".encode(),
    b"\xff\xfe",
    b"_system",
    b"x" * 2**20,
]
#: The lists of jobs.
LISTS = [keys.JOBS, *(keys.round_robin(queue) for queue in ("high", "default", "low"))]
NO_CHUNKS = [b"../x", b"", b"01", b"-1", b"1e3", b"0x1", b"nan", b"2147483648", b"\x1b[2J", b"9" * 2**20]


def make_job(client: Client, job: str, images: int = 4, **spec: Any) -> JobSpec:
    """A job whose images nobody works at: no worker reads this database, or all have their end at once."""
    made = JobSpec(network=NETWORK, store=client.storage.place, chunk_size=2, **spec)
    client.table.create(job, made, lifetime_s=3600)
    for number in range(images // 2):
        lines = [uri_line(f"s3://photos/{index}.jpg") for index in (2 * number, 2 * number + 1)]
        client.table.add_chunk(job, Chunk.compress(number, lines))
    client.table.close(job, chunks=images // 2, items=images)
    return made


def finished(client: Client, job: str, names: list[str], **of_image: Any) -> dict[str, bytes]:
    """A job that has ended, with a picture an image; no worker need be there."""
    spec = make_job(client, job, images=len(names), outputs=("cam",))
    content = {}
    for chunk in range(len(names) // 2):
        claim = client.table.claim(job, chunk, spec, claim_id="test", lease_s=60)
        assert claim is not None
        results = []
        for index in (2 * chunk, 2 * chunk + 1):
            key = keys.picture(client.storage.prefix, job, index, names[index])
            content[names[index]] = f"{job} {names[index]}".encode()
            client.storage.put(key, content[names[index]])
            results.append(
                Result(
                    index=index, uri=f"s3://photos/{index}.jpg", state="done", objects={"cam": key}, network=NETWORK,
                    **of_image,
                )
            )  # fmt: skip
        part = keys.manifest(client.storage.prefix, job, chunk, claim.token, 0, claim.epoch)
        client.storage.put(part, "\n".join(result.line for result in results).encode())
        client.table.commit(claim, done=[0, 1], failed=[], lease_s=60)
    mine = client.table.finalize(job, "test")
    assert mine is not None
    client.storage.put(keys.summary(client.storage.prefix, job), json.dumps({"spec": {}}).encode())
    assert client.table.finish(job, "test", mine)
    return content


# -- forged names in Redis --------------------------------------------------------------------------------------------


@pytest.fixture
def forged(unattended: Client, redis_client: redis.Redis) -> Client:
    """A job that is at work, and beside it forged ones with a hash and a waiting chunk of their own."""
    make_job(unattended, "cats")
    spec: Any = redis_client.hgetall("gradcam:job:cats")
    for name in FORGED:
        redis_client.hset(b"gradcam:job:" + name, mapping=spec)
        redis_client.zadd(b"gradcam:job:" + name + b":waiting", {"0": 1})
        for key in LISTS:
            redis_client.zadd(key, {name: 0})
        redis_client.sadd(keys.ACTIVE, name)
    return unattended


def sweep(client: Client) -> int:
    """What the reconciler of a worker does; how many messages it sends."""
    sent: list[Any] = []

    def send(*pointer: Any) -> None:
        sent.append(pointer)

    reconcile(client.table, client.storage, send, who="test", grace_s=3600, publish=send)
    return len(sent)


def test_forged_names_of_jobs_are_told_once_and_dropped_and_the_rest_goes_on(
    forged: Client, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert sweep(forged) == 0
        (record,) = caplog.records
        assert f"{len(FORGED) * (len(LISTS) + 1)} entries of Redis have names that no job has" in record.getMessage()
        assert record.getMessage().isprintable()
        assert len(record.getMessage()) < 500
        sweep(forged)
        assert len(caplog.records) == 1
    assert redis_client.zrange(keys.JOBS, 0, -1) == redis_client.zrange(keys.round_robin("default"), 0, -1) == [b"cats"]
    assert redis_client.smembers(keys.ACTIVE) == {b"cats"}
    assert forged.status("cats").state is JobState.RUNNING


def test_no_worker_gets_a_chunk_of_a_forged_job_also_before_they_are_dropped(forged: Client) -> None:
    table = forged.table
    found: list[Any] = [table.next_chunk("default", "cats", 0, exact=exact) for exact in (False, True, False)]
    assert [job for job, _ in found] == ["cats"] * 3
    assert {job for job, _ in table.recovery.missing_messages("default", grace_s=0)} == {"cats"}
    assert table.recovery.active() == ["cats"]
    table.recovery.restore_active()
    table.recovery.forget_expired()
    assert table.recovery.active() == ["cats"]


def test_list_shows_the_other_jobs_and_says_what_it_leaves_out(forged: Client) -> None:
    run = gradcam("list")
    assert "cats" in run.stdout
    assert (run.stdout + run.stderr).replace("\n", "").isprintable()
    assert run.stderr.startswith(f"left out: {len(FORGED)} entries of gradcam:jobs")
    assert [status.job for status in forged.list()] == ["cats"]
    assert json.loads(gradcam("list", "--json").stdout)[0]["job"] == "cats"


def test_no_verb_touches_a_forged_job_nor_an_object_elsewhere(forged: Client) -> None:
    """The hash is there, so that only the name says that it is none of ours."""
    beside = ["x/job.json", f"{forged.storage.prefix}/_system/kept", "job.json"]
    for key in beside:
        forged.storage.put(key, b"kept")
    calls: list[Any] = [
        forged.status, forged.cancel, forged.pause, forged.resume, forged.retry, forged.delete,
        lambda job: forged.delete(job, objects=True), lambda job: list(forged.audit(job)),
        lambda job: list(forged.results(job)), lambda job: list(forged.failures(job)),
    ]  # fmt: skip
    for name in ("../x", "..", "a/b", "\x1b[2Jx", "_system", "cats:chunks", "x" * 2**20):
        for call in calls:
            with pytest.raises(UnknownJob) as refused:
                call(name)
            assert str(refused.value).isprintable()
    assert [forged.storage.get(key) for key in beside] == [b"kept"] * 3


def test_forged_names_of_chunks_are_told_once_and_dropped_and_the_job_goes_on(
    unattended: Client, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_job(unattended, "cats")
    for name in NO_CHUNKS:
        for part in ("waiting", "leases"):
            redis_client.zadd(f"gradcam:job:cats:{part}", {name: 0})
        for part in ("chunks", "items"):
            redis_client.hset(f"gradcam:job:cats:{part}", name, "forged:1")
    table: JobTable = unattended.table
    assert set(table.queries.chunks("cats")) == {0, 1}
    # A worker that comes before the reconciler gets a chunk all the same.
    assert table.next_chunk("default", "cats", 0, exact=False) == ("cats", 0)
    assert {chunk for _, chunk in table.recovery.missing_messages("default", grace_s=0)} <= {0, 1}
    with caplog.at_level(logging.WARNING):
        sweep(unattended)
        (record,) = caplog.records
        assert f"{4 * len(NO_CHUNKS)} entries of its chunks have names that no chunk has" in record.getMessage()
        sweep(unattended)
        assert len(caplog.records) == 1
    assert unattended.status("cats").state is JobState.RUNNING
    assert unattended.status("cats").chunks.waiting == 2
    assert table.claim("cats", 1, spec, claim_id="me", lease_s=60) is not None


def test_a_hundred_forged_chunks_before_the_real_ones_are_dropped_in_one_look(
    unattended: Client, redis_client: redis.Redis
) -> None:
    make_job(unattended, "cats")
    redis_client.zadd("gradcam:job:cats:waiting", {f"../{number}": 0 for number in range(1000)})
    assert unattended.table.next_chunk("default", "cats", 0, exact=False) is None
    sweep(unattended)
    assert unattended.table.next_chunk("default", "cats", 0, exact=False) == ("cats", 0)


@pytest.mark.parametrize("life", ["../../x", "a/b", "\x1b[2J", "x" * 2**20])
def test_a_forged_life_comes_into_no_key_of_a_shard(unattended: Client, redis_client: redis.Redis, life: str) -> None:
    spec = make_job(unattended, "cats")
    redis_client.hset("gradcam:job:cats", "life", life)
    with pytest.raises(OtherVersion, match="what Redis holds of job cats cannot be read"):
        unattended.table.claim("cats", 0, spec, claim_id="me", lease_s=60)


# -- an old bucket ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
def test_weights_of_an_old_bucket_are_loaded_from_where_they_are(client: Client, tmp_path: Path) -> None:
    """Whoever submits again names the same address, so that a job of an earlier release can be continued."""
    torch.manual_seed(0)
    checkpoint = tmp_path / "checkpoint.pth"
    torch.save(shufflenet_v2_x0_5(num_classes=3).state_dict(), checkpoint)
    digest = sha256_of(checkpoint)
    old = keys.old_weights(client.storage.prefix, digest)
    client.storage.put_file(old, checkpoint)
    job = client.submit([str(COFFEE)], network=NETWORK, weight_path=checkpoint, outputs=["cam"])
    assert client.table.queries.existing_spec(job).weights == client.storage.uri(old)
    assert client.wait(job, timeout_s=60).state is JobState.SUCCEEDED
    assert client.storage.size(keys.weights(client.storage.prefix, digest)) is None
    client.storage.delete([old])


def test_a_job_called_weights_of_an_old_bucket_is_deleted_without_the_weights_of_others(unattended: Client) -> None:
    """Releases up to 0.3.0 put weights among the jobs: `delete --objects` of a job of that name took all along."""
    storage = unattended.storage
    old = keys.old_weights(storage.prefix, "0" * 64)
    storage.put(old, b"weights")
    finished(unattended, "weights", ["a.jpg", "b.jpg"])
    assert len(list(storage.keys(f"{storage.prefix}/weights/"))) == 5
    assert [result.state for result in unattended.results("weights")] == ["done", "done"]
    assert list(unattended.audit("weights")) == []
    assert "4 objects deleted" in gradcam("delete", "weights", "--objects", "--yes").stderr
    assert list(storage.keys(f"{storage.prefix}/weights/")) == [old]
    with pytest.raises(UnknownJob):
        unattended.status("weights")
    with pytest.raises(UsageError, match="cannot name a job"):
        unattended.submit([str(COFFEE)], network=NETWORK, name="weights")
    storage.delete([old])


def test_new_weights_and_probes_lie_where_no_job_can(unattended: Client, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"new weights")
    storage, path = unattended.storage, str(tmp_path / "weights.pth")
    uri, digest = place_weights(path, storage)
    assert uri == storage.uri(f"{storage.prefix}/_system/weights/{digest}")
    assert storage.get(keys.weights(storage.prefix, str(digest))) == b"new weights"
    # What lies at the old place and is not the file does not count.
    old = keys.old_weights(storage.prefix, str(digest))
    storage.put(old, b"half")
    assert place_weights(path, storage) == (uri, digest)
    storage.put(old, b"new weights")
    assert place_weights(path, storage) == (storage.uri(old), digest)
    storage.delete([old])
    before = set(storage.keys(""))
    assert storage.accepts_writes()
    assert set(storage.keys("")) - before <= {f"{storage.prefix}/_system/probe"}


def test_a_model_of_hugging_face_stays_at_the_old_place_whole_or_not(unattended: Client, tmp_path: Path) -> None:
    """A worker looks for the weights beside the bundle."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    storage, weights = unattended.storage, hashlib.sha256(b"weights").hexdigest()
    uri, digest = place_weights(str(tmp_path), storage, "hf")
    new = keys.weights(storage.prefix, str(digest))
    assert uri == storage.uri(new)
    assert storage.get(keys.weights(storage.prefix, weights)) == b"weights"
    old = {keys.old_weights(storage.prefix, str(digest)): storage.get(new)}
    old[keys.old_weights(storage.prefix, weights)] = b"weights"
    for number, (key, content) in enumerate(old.items(), 1):
        storage.put(key, content)
        there = keys.old_weights if number == 2 else keys.weights
        assert place_weights(str(tmp_path), storage, "hf")[0] == storage.uri(there(storage.prefix, str(digest)))
    storage.delete(list(old))


# -- downloads --------------------------------------------------------------------------------------------------------


def test_planted_files_are_refused_in_a_sentence_and_the_other_pictures_come(
    unattended: Client, tmp_path: Path
) -> None:
    names = [f"{name}-{NETWORK}-cam.jpg" for name in ("file", "folder", "link", "nothing", "good", "better")]
    content = finished(unattended, "planted", names)
    folder, secret, other = tmp_path / "out", tmp_path / "secret", tmp_path / "elsewhere"
    folder.mkdir()
    other.mkdir()
    secret.write_bytes(b"secret")
    (folder / names[0]).write_bytes(b"mine")
    (folder / names[1]).symlink_to(other)
    (folder / names[2]).symlink_to(secret)
    (folder / names[3]).symlink_to(tmp_path / "new")
    run = gradcam("results", "planted", "--output-dir", str(folder), code=2)
    assert "4 pictures were not written, the first: file-" in run.stderr
    assert "no download of job planted wrote it: move it away, or choose another --output-dir" in run.stderr
    assert f"all others are in {folder}" in run.stderr
    assert (secret.read_bytes(), list(other.iterdir()), (tmp_path / "new").exists()) == (b"secret", [], False)
    assert (folder / names[0]).read_bytes() == b"mine"
    assert {name: (folder / name).read_bytes() for name in names[4:]} == {name: content[name] for name in names[4:]}

    for name in names[:4]:
        (folder / name).unlink()
    (folder / names[4]).write_bytes(b"cut")
    run = gradcam("results", "planted", "--output-dir", str(folder))
    assert run.stderr == f"6 pictures in {folder}, 1 of them were there already\n"
    assert {name: (folder / name).read_bytes() for name in names} == content


def test_pictures_of_another_job_stay_and_a_folder_of_an_earlier_release_goes_on(
    unattended: Client, tmp_path: Path
) -> None:
    names = [f"{name}-{NETWORK}-cam.jpg" for name in ("a", "b")]
    one, two = (finished(unattended, job, names) for job in ("one", "other"))
    assert unattended.download("one", tmp_path).already == 0
    with pytest.raises(UsageError, match="2 pictures were not written"):
        unattended.download("other", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("[!.]*")} == one
    (tmp_path / ".gradcam-one").unlink()
    assert unattended.download("one", tmp_path).already == 2
    assert two != one


# -- a terminal -------------------------------------------------------------------------------------------------------


def test_a_table_on_a_terminal_shows_control_and_bidi_characters_as_text(
    unattended: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "\x1b]0;owned\x07\u202egpj\r=1"
    finished(unattended, "shown", ["a.jpg", "b.jpg"], id=hostile, keep={"\x1b[2J\u2066": "x"})
    assert hostile in gradcam("results", "shown", "--csv").stdout.replace("\r'", "\r")  # a file has it as it is
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(its, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.run(lambda: cli.cli(["results", "shown", "--csv"], standalone_mode=False)) == 0
        monkeypatch.undo()
        shown = screen.read(100_000)
    lines = shown.decode().splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert r"\u001b]0;owned\u0007\u202egpj\u000d'=1" in lines[1]
