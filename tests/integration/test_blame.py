"""Jobs that end the processes which load their model, or meet what nobody foresaw: they fail, and delay nobody."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch
from budget import either
from command import gradcam
from hostile_weights import CASES
from stacks import POISON, SMALL, eventually, own_stack
from torchvision.models import shufflenet_v2_x0_5

from producer.client.client import Client
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from deploy.stack import Stack

OTHER = "squeezenet1_0"
PHOTO = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"


@pytest.fixture(scope="module")
def poisonous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker, of one process, to whom weights can be poison."""
    settings = {
        "PYTHONPATH": os.pathsep.join([str(POISON), os.environ.get("PYTHONPATH", "")]),
        # Leases that run out on no machine, however busy.
        "GRADCAM_WORKER_LEASE_S": "10",
        # Enough on a busy machine, and soon over where it hangs.
        "GRADCAM_WORKER_LOAD_TIMEOUT_S": "15",
    }
    with own_stack(tmp_path_factory.mktemp("blame"), settings) as stack:
        stack.start_worker()
        first = Client.from_env()
        first.wait(first.submit([PHOTO], **SMALL), timeout_s=120)
        yield stack


def poisoned(client: Client, folder: Path, word: str, images: int = 4) -> str:
    """A job whose model cannot be loaded."""
    weights = folder / f"{word.replace(':', '-')}.pth"
    weights.write_text(word)
    return client.submit([PHOTO] * images, network=OTHER, weight_path=weights, chunk_size=1, outputs=["cam"])


def log(stack: Stack) -> str:
    return (stack.directory / "worker.log").read_text()


# Segfaults and what hangs are in test_poison, too.
@pytest.mark.parametrize(
    "word", either(["poison:killed"], ["poison:segfault", "poison:killed", "poison:hang", "poison:hang-all"])
)
def test_a_model_that_ends_each_process_which_loads_it_fails_its_job(
    poisonous: Stack, tmp_path: Path, word: str
) -> None:
    client = Client.from_env()
    deaths = log(poisonous).count("action=child_died")
    bad = poisoned(client, tmp_path, word)
    good = client.submit([PHOTO] * 24, chunk_size=4, **SMALL)
    status = client.wait(bad, timeout_s=150)
    assert status.state is JobState.FAILED
    assert "the weights crash the process that loads them" in (status.error or "")
    assert "--weight-path" in (status.error or "")
    assert (status.done, status.failed) == (0, 0)
    assert client.wait(good, timeout_s=60).done == 24
    # The first may have had a chunk of the good job beside it, and then says nothing.
    assert log(poisonous).count("action=child_died") - deaths <= 3


@pytest.mark.filterwarnings("ignore")  # of torch, about kinds of tensors that it calls a beta
def test_hostile_weights_end_their_job_in_a_sentence_and_no_process(poisonous: Stack, tmp_path: Path) -> None:
    """A run with -s and all cases prints the table of docs/hostile-input.md."""
    client = Client.from_env()
    deaths = log(poisonous).count("action=child_died")
    torch.manual_seed(0)
    state = shufflenet_v2_x0_5(num_classes=5).state_dict()
    quick = ("a head of 2^31 rows without columns", "a key of 2^60 tuples", "a head with one NaN")
    for number, case in enumerate(either(quick, tuple(CASES))):
        make, words = CASES[case]
        path = tmp_path / f"{number}.pth"
        path.write_bytes(make(state, "fc.weight"))
        started = time.monotonic()
        bad = client.submit([PHOTO] * 2, network="shufflenet_v2_x0_5", weight_path=path, chunk_size=1, outputs=["cam"])
        good = client.submit([PHOTO] * 8, chunk_size=2, **SMALL)
        status = client.wait(bad, timeout_s=60)
        told_s = time.monotonic() - started
        assert client.wait(good, timeout_s=60).done == 8
        print(f"| {case} | {told_s:.1f} s | {time.monotonic() - started:.1f} s |")
        assert (status.state, status.done, status.failed) == (JobState.FAILED, 0, 0)
        assert re.search(words, status.error or ""), (case, status.error)
    assert log(poisonous).count("action=child_died") == deaths


def test_jobs_with_an_error_that_nobody_foresaw_fail_and_one_behind_them_has_its_turn(
    poisonous: Stack, tmp_path: Path
) -> None:
    client = Client.from_env()
    bad = [poisoned(client, tmp_path, "poison:error") for _ in range(either(1, 2))]
    too_large = poisoned(client, tmp_path, "poison:memory")
    good = client.submit([PHOTO] * 4, chunk_size=4, **SMALL)
    assert client.wait(good, timeout_s=60).done == 4
    for job in bad:
        status = client.wait(job, timeout_s=60)
        assert status.state is JobState.FAILED
        assert "LookupError: nobody thought of https://***@example.org/weights (3 tries;" in (status.error or "")
        assert "hidden" not in (status.error or "")
        assert "and more" not in (status.error or "")
    status = client.wait(too_large, timeout_s=60)
    assert status.state is JobState.FAILED
    assert "a model does not fit into the device's memory" in (status.error or "")
    assert "(3 tries;" in (status.error or "")
    # It was tried by more than one process, and the worker says nothing against itself.
    assert "action=retired" in log(poisonous)
    assert client.table.redis.hlen("gradcam:problems") == 0


def test_an_error_in_a_stage_is_the_images_own(poisonous: Stack, tmp_path: Path) -> None:
    client = Client.from_env()
    # Of a JPEG the decoder gets all of the file.
    jpeg = cv2.imencode(".jpg", np.full((40, 40, 3), 128, np.uint8))[1].tobytes()
    (tmp_path / "bad.jpg").write_bytes(jpeg + b"poison:error")
    job = client.submit([PHOTO, tmp_path / "bad.jpg"], **SMALL)
    status = client.wait(job, timeout_s=60)
    assert (status.state, status.done) == (JobState.COMPLETED_WITH_ERRORS, 1)
    assert status.failures == {"internal": 1}


# -- a job of another version -----------------------------------------------------------------------------------------


def newer(client: Client, job: str, chunks: int) -> None:
    """A job that a newer release wrote, with its messages."""
    spec = JobSpec(network=OTHER, chunk_size=1, store=client.storage.place)
    client.table.create(job, spec, name=job, lifetime_s=3600)
    written = {**json.loads(spec.model_dump_json()), "version": 2, "something": "new"}
    client.table.redis.hset(f"gradcam:job:{job}", "spec", json.dumps(written))
    send = client._services.messages.publisher(job, "default")
    for number in range(chunks):
        published_at = client.table.add_chunk(job, Chunk.compress(number, [uri_line("s3://b/a.png")]))
        assert published_at is not None
        send(number, published_at)
    client.table.close(job, chunks=chunks, items=chunks)


def test_a_job_of_a_newer_release_is_left_alone_and_can_be_listed_and_cancelled(poisonous: Stack) -> None:
    client = Client.from_env()
    alone = client.submit([PHOTO] * 24, chunk_size=4, **SMALL)
    started = time.monotonic()
    client.wait(alone, timeout_s=60)
    alone_s = time.monotonic() - started

    before = log(poisonous).count("action=job_refused")
    newer(client, "newer", chunks=30)
    eventually(lambda: client.status("newer").problem, within_s=30)
    assert "written by another version" in (client.status("newer").problem or "")
    started = time.monotonic()
    beside = client.submit([PHOTO] * 24, chunk_size=4, **SMALL)
    assert client.wait(beside, timeout_s=60).done == 24
    assert time.monotonic() - started < 2 * alone_s + 3
    # It does not come back to it in a circle, and its messages are there for those who can do it.
    assert log(poisonous).count("action=job_refused") - before <= 2
    assert client.status("newer").state is JobState.RUNNING
    eventually(lambda: client.table.redis.llen("gradcam:queue:default") >= 29)

    assert "newer" in gradcam("list").stdout
    assert gradcam("pause", "newer").stdout.split("\t")[1] == "paused"
    assert gradcam("resume", "newer").stdout.split("\t")[1] == "running"
    assert gradcam("cancel", "newer").stdout.split("\t")[1] == "cancelled"
    assert json.loads(client.storage.get("jobs/newer/job.json"))["spec"]["something"] == "new"
    gradcam("delete", "newer", "--objects", "--yes")
    assert list(client.storage.keys("jobs/newer/")) == []
