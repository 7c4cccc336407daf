"""Data sets as users have them: lists with columns, priorities, dry runs, waiting, keeping house."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command import gradcam
from stacks import asleep, eventually

from producer.client.client import Client
from producer.input.sources import ReadOptions
from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob
from producer.jobs.model.states import JobState
from producer.submission.spec_builder import fitting_size

if TYPE_CHECKING:
    from deploy.stack import Stack

NETWORK = "efficientnet_lite0"
PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"
COFFEE, CAT = str(PHOTOS / "coffee.png"), str(PHOTOS / "chelsea.png")
#: Where many pictures are explained that nobody looks at.
SMALL = (96, 96)
#: The largest batch on a CPU.
BATCH = 32


@pytest.mark.usefixtures("worker")
def test_a_lists_classes_ids_and_kept_columns_reach_the_results(client: Client, tmp_path: Path) -> None:
    rows = f"photo,label,number,split\n{COFFEE},espresso,c-1,train\n{CAT},281,c-2,val\n{CAT},,c-3,val\n"
    (tmp_path / "list.csv").write_text(rows)
    told = gradcam(
        "submit", str(tmp_path / "list.csv"), "--allow-local", "--uri-column", "photo", "--class-column", "label",
        "--id-column", "number", "--keep-columns", "split", "--network", NETWORK, "--wait", "--json",
    )  # fmt: skip
    job = json.loads(told.stdout.splitlines()[-1])["job"]
    results = list(client.results(job))
    assert [(r.id, r.class_name, r.keep) for r in results[:2]] == [
        ("c-1", "espresso", {"split": "train"}),
        ("c-2", "tabby", {"split": "val"}),
    ]
    assert results[2].class_name == "Egyptian cat"  # the predicted one
    summary = json.loads(client.storage.get(keys.summary(client.storage.prefix, job)))
    counts = {row["class_name"]: row["count"] for row in summary["classes"]}
    assert counts == {"espresso": 1, "tabby": 1, "Egyptian cat": 1}
    stages = summary["status"]["stages"]
    assert list(stages) == ["fetch", "decode", "explain", "render", "encode", "upload", "record"]
    assert all(stage["work_s"] > 0 for stage in stages.values())
    assert all(stages[behind_a_row]["wait_s"] > 0 for behind_a_row in ("fetch", "explain", "render"))
    assert 0 < summary["status"]["device_busy"] <= 1


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(client: Client, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"s3://bucket/{n}.jpg\n" for n in range(1000)))
    before = [job.job for job in client.list(limit=1000)]
    told = gradcam("submit", str(tmp_path / "list.txt"), "--chunk-size", "256", "--dry-run", "--json").stdout
    plan = json.loads(told)
    assert (plan["images"], plan["chunks"], plan["chunk_size"], plan["files"]) == (1000, 4, 256, 0)
    assert plan["first"][0] == "s3://bucket/0.jpg"
    assert 5_000 < plan["redis_bytes"] < 40_000
    assert "1,000" in gradcam("submit", str(tmp_path / "list.txt"), "--dry-run").stdout
    assert [job.job for job in client.list(limit=1000)] == before


def test_what_redis_holds_of_a_waiting_job_is_what_the_dry_run_said(unattended: Client, tmp_path: Path) -> None:
    client = unattended
    (tmp_path / "list.txt").write_text("".join(f"s3://bucket/a/folder/{n:08d}.jpg\n" for n in range(50_000)))
    plan = client.plan([tmp_path / "list.txt"], chunk_size=256)
    before = client.table.redis.info("memory")["used_memory"]
    job = client.submit([tmp_path / "list.txt"], chunk_size=256)
    held = client.table.redis.info("memory")["used_memory"] - before
    assert 0.5 * plan.redis_bytes < held < 1.5 * plan.redis_bytes
    client.cancel(job)
    client.delete(job)


def test_an_urgent_job_overtakes_and_two_of_one_class_share_the_worker(client: Client, worker: Stack) -> None:
    parameters = {"network": NETWORK, "chunk_size": 4, "outputs": ["cam"], "input_size": SMALL}
    with asleep(worker):
        big = client.submit([COFFEE] * 120, **parameters)  # type: ignore[arg-type]
        small = client.submit([CAT] * 20, **parameters)  # type: ignore[arg-type]
        urgent = client.submit([CAT] * 4, queue="high", **parameters)  # type: ignore[arg-type]
    eventually(lambda: client.status(urgent).ended, every_s=0.02)
    # What was in flight before it, and what shares its batch.
    assert client.status(big).done + client.status(small).done <= 4 + BATCH
    eventually(lambda: client.status(small).ended, every_s=0.02)
    assert client.status(big).done <= 20 + BATCH
    assert client.wait(big, timeout_s=60).republished == 0


@pytest.mark.usefixtures("worker")
def test_chunks_become_as_large_as_ten_seconds_of_work_and_a_continued_job_keeps_its_size(client: Client) -> None:
    assert [fitting_size(speed) for speed in (None, 0.1, 12.0, 1000.0)] == [64, 16, 120, 512]
    client.wait(client.submit([COFFEE] * 16, network=NETWORK, chunk_size=16, outputs=["cam"]), timeout_s=60)
    speed = client.table.registry.speed(NETWORK)
    device = client.table.redis.hget(keys.DEVICE_SPEEDS, NETWORK)
    assert float(device or 0) == speed, "this worker's device has one process"
    assert speed is not None
    job = client.submit([COFFEE], network=NETWORK, name="fitting", outputs=["cam"])
    assert client.table.queries.existing_spec(job).chunk_size == fitting_size(speed)
    client.table.registry.note_speed(NETWORK, 2.0)
    client.submit([COFFEE], network=NETWORK, name="fitting", outputs=["cam"])
    client.wait("fitting", timeout_s=60)
    client.table.redis.delete(keys.SPEEDS)


@pytest.mark.usefixtures("worker")
def test_waiting_for_jobs_ends_with_the_gravest_code(client: Client) -> None:
    good = client.submit([COFFEE], network=NETWORK, outputs=["cam"])
    bad = client.submit([f"s3://{client.storage.bucket}/not/there.jpg"], network=NETWORK, outputs=["cam"])
    assert gradcam("wait", good, "--timeout", "1m").stdout.split("\t")[1] == "succeeded"
    assert len(gradcam("wait", good, bad, "--json", code=1).stdout.splitlines()) == 2
    long = client.submit([COFFEE] * 400, network=NETWORK, outputs=["cam"])
    assert "still" in gradcam("wait", long, "--timeout", "1s", code=5).stderr
    client.cancel(long)
    assert gradcam("wait", long, code=3).returncode == 3
    assert "no job" in gradcam("wait", "nothing", code=2).stderr


@pytest.mark.usefixtures("worker")
def test_a_status_says_where_chunks_are_and_who_is_at_work(client: Client) -> None:
    job = client.submit([COFFEE] * 200, network=NETWORK, chunk_size=20, outputs=["cam"], input_size=SMALL)
    eventually(lambda: client.status(job).chunks.complete and client.status(job).chunks.in_flight)
    status = client.status(job)
    assert status.chunks.total == 10
    assert status.chunks.waiting + status.chunks.in_flight + status.chunks.complete == 10
    assert status.running == 20 * status.chunks.in_flight
    lines = gradcam("status", job, "--watch", "--jsonl").stdout.splitlines()
    assert json.loads(lines[-1])["state"] == "succeeded"
    assert len(lines) > 1


@pytest.mark.usefixtures("worker")
def test_jobs_are_listed_by_state_and_name_page_by_page(client: Client) -> None:
    names = [f"list-{n}" for n in range(3)]
    for name in names:
        client.wait(client.submit([COFFEE], network=NETWORK, outputs=["cam"], name=name), timeout_s=60)
    listed = json.loads(gradcam("list", "--name", "list-*", "--state", "succeeded", "--json").stdout)
    assert [job["job"] for job in listed] == names[::-1]
    page = json.loads(gradcam("list", "--name", "list-*", "--limit", "1", "--offset", "1", "--json").stdout)
    assert [job["job"] for job in page] == ["list-1"]
    assert gradcam("list", "--name", "no-such-*").stdout == ""


@pytest.mark.usefixtures("worker")
def test_a_deleted_job_is_gone_with_its_objects_and_one_at_work_is_refused(client: Client) -> None:
    job = client.submit([COFFEE, CAT], network=NETWORK, outputs=["cam"])
    client.wait(job, timeout_s=60)
    prefix = keys.job_prefix(client.storage.prefix, job)
    assert list(client.storage.keys(prefix))
    assert "objects deleted" in gradcam("delete", job, "--objects", "--yes").stderr
    assert list(client.storage.keys(prefix)) == []
    assert not list(client.table.redis.scan_iter(f"gradcam:job:{job}*"))
    with pytest.raises(UnknownJob):
        client.status(job)
    busy = client.submit([COFFEE] * 100, network=NETWORK, outputs=["cam"])
    assert "has not ended" in gradcam("delete", busy, "--yes", code=2).stderr
    client.cancel(busy)
    # A worker may be writing its summary in this moment.
    assert client.wait(busy, timeout_s=60).state is JobState.CANCELLED
    gradcam("delete", busy, "--objects", "--yes")


def test_the_doctor_says_a_line_a_question_and_what_to_do(client: Client, stack: Stack) -> None:
    told = gradcam("doctor", "--json").stdout.splitlines()
    verdicts = {answer["check"]: answer["verdict"] for answer in map(json.loads, told)}
    healthy = {"versions", "Redis", "persistence", "eviction", "clock", "S3 list", "S3 write", "S3 read"}
    assert {check for check in verdicts if verdicts[check] == "ok"} >= healthy
    assert not list(client.storage.keys(f"{client.storage.prefix}/_system/probe-"))
    client.table.redis.config_set("maxmemory-policy", "allkeys-lru")
    client.table.redis.config_set("maxmemory", int(client.table.redis.info("memory")["used_memory"]) + 2**17)
    try:
        words = gradcam("doctor", code=4).stdout
    finally:
        client.table.redis.config_set("maxmemory-policy", "noeviction")
        client.table.redis.config_set("maxmemory", 0)
    assert "allkeys-lru): `CONFIG SET maxmemory-policy noeviction`" in words
    assert "warn  memory" in words
    away = gradcam("doctor", code=4, env={"GRADCAM_REDIS_URL": "redis://:word@127.0.0.1:9/0"}).stdout
    assert "bad   Redis" in away
    assert "word" not in away
    assert "bad   S3 list" in gradcam("doctor", code=4, env={"GRADCAM_S3_BUCKET": "not-there"}).stdout


class NotAStore(BaseHTTPRequestHandler):
    """What stands at the address that was set by mistake."""

    status = 403

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"no")

    def log_message(self, *_: object) -> None:
        pass


class AnotherStore(NotAStore):
    status = 200


def test_the_doctor_opens_an_address_that_is_signed_for_others(client: Client, stack: Stack) -> None:
    """A wrong public address was noticed by whoever got the addresses of `results --urls`."""

    def told(url: str) -> str:
        said = gradcam("doctor", env={"GRADCAM_S3_PUBLIC_ENDPOINT_URL": url}).stdout
        assert "Signature" not in said
        return next(line for line in said.splitlines() if "S3 public" in line)

    assert "S3 public" not in gradcam("doctor").stdout
    ours = stack.environment()["GRADCAM_S3_ENDPOINT_URL"]
    assert told(ours.replace("127.0.0.1", "localhost")).startswith("ok ")
    away = told("http://127.0.0.1:9")
    assert away.startswith("warn")
    assert "cannot be reached from this machine" in away
    for kind, words in ((NotAStore, "answers 403 to an address that is signed for it"), (AnotherStore, "not the obj")):
        with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
            threading.Thread(target=server.serve_forever).start()
            line = told(f"http://127.0.0.1:{server.server_port}")
            server.shutdown()
        assert line.startswith("warn")
        assert words in line
    assert not list(client.storage.keys(f"{client.storage.prefix}/_system/probe-"))


@pytest.mark.usefixtures("worker")
def test_what_manifests_no_longer_tell_is_said_and_not_left_out_in_silence(client: Client, tmp_path: Path) -> None:
    job = client.submit([COFFEE, CAT, COFFEE], network=NETWORK, outputs=["cam"], chunk_size=1)
    client.wait(job, timeout_s=60)
    part = next(client.storage.keys(keys.manifest_prefix(client.storage.prefix, job)))
    client.storage.delete([part])
    run = gradcam("results", job, "--jsonl", code=4)
    assert len(run.stdout.splitlines()) == 2
    assert "of 1 image nothing is known" in run.stderr
    # What is known is written whole, and then told that it is not all.
    gradcam("results", job, "--csv", "--output", str(tmp_path / "m.csv"), code=4)
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 3


@pytest.mark.usefixtures("worker")
def test_a_cancelled_jobs_name_is_refused_and_its_counts_stay_true(client: Client) -> None:
    images = [COFFEE] * 100
    job = client.submit(images, network=NETWORK, outputs=["cam"], chunk_size=10, name="stopped")
    eventually(lambda: client.status(job).chunks.complete)
    client.cancel(job)
    # A worker may write its summary, in place of this client.
    status = client.wait(job, timeout_s=60)
    assert status.state is JobState.CANCELLED
    assert status.chunks.complete < 10
    assert status.chunks.waiting == 0
    run = gradcam(
        "submit", *images, "--network", NETWORK, "--outputs", "cam", "--name", "stopped", "--chunk-size", "10", code=2
    )
    assert "was cancelled" in run.stderr
    run = gradcam("submit", COFFEE, "--network", NETWORK, "--name", "stopped", "--chunk-size", "10", code=2)
    assert "(--outputs)" in run.stderr
    assert "give --yes" in gradcam("delete", job, code=2).stderr


@pytest.mark.usefixtures("worker")
def test_objects_of_a_job_that_redis_forgot_can_be_deleted(client: Client) -> None:
    job = client.submit([COFFEE], network=NETWORK, outputs=["cam"], name="forgotten")
    client.wait(job, timeout_s=60)
    client.delete(job)
    with pytest.raises(UnknownJob):
        client.delete(job)
    assert client.delete(job, objects=True) == len([".json", "input", "picture", "manifest"])
    assert not list(client.storage.keys(keys.job_prefix(client.storage.prefix, job)))


@pytest.mark.usefixtures("worker")
def test_classes_as_pandas_writes_them_are_numbers(client: Client, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"image,label\n{COFFEE},967.0\n{CAT},\n")
    job = client.submit(
        [tmp_path / "list.csv"],
        network=NETWORK,
        outputs=["cam"],
        reading=ReadOptions(class_column="label", allow_local=True),
    )
    client.wait(job, timeout_s=60)
    assert next(client.results(job)).class_id == 967


@pytest.mark.usefixtures("worker")
def test_an_id_that_looks_like_a_formula_is_none_in_a_table(client: Client, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"image,name\n{COFFEE},=1+1\n")
    job = client.submit(
        [tmp_path / "list.csv"],
        network=NETWORK,
        outputs=["cam"],
        reading=ReadOptions(id_column="name", allow_local=True),
    )
    client.wait(job, timeout_s=60)
    assert ",'=1+1," in gradcam("results", job, "--csv").stdout
    assert next(client.results(job)).id == "=1+1"


def test_a_submission_waits_while_redis_is_nearly_full_and_goes_on(unattended: Client, tmp_path: Path) -> None:
    client = unattended
    (tmp_path / "list.txt").write_text("".join(f"s3://bucket/{n:06d}.jpg\n" for n in range(1000)))
    said: list[str] = []

    def make_room(sentence: str) -> None:
        said.append(sentence)
        client.table.redis.config_set("maxmemory", 0)

    used = int(client.table.redis.info("memory")["used_memory"])
    client.table.redis.config_set("maxmemory", int(used / 0.9))
    try:
        job = client.submit([tmp_path / "list.txt"], chunk_size=100, waiting=make_room)
    finally:
        client.table.redis.config_set("maxmemory", 0)
    assert said == [sentence for sentence in said if "full: waiting for workers" in sentence]
    assert said
    assert client.status(job).total == 1000
    client.cancel(job)
