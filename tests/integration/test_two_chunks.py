"""A process with two chunks in hand: the device goes on from one to the next, and what dies with both is given back."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from stacks import asleep, children_of, eventually, own_stack

from deploy.programs import free_ports
from deploy.stack import Worker
from producer.client.client import Client
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from deploy.stack import Stack
    from producer.jobs.model.status import JobStatus

NETWORK = "efficientnet_lite0"


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Stack]:
    """One worker, of one process, that serves its metrics and preloads its network."""
    # Leases that run out on no machine, however busy: what is given back here is given back by those who know.
    settings = {"GRADCAM_WORKER_BATCH_SIZE": "4", "GRADCAM_WORKER_LEASE_S": "30"}
    with own_stack(tmp_path_factory.mktemp("two"), settings) as stack:
        nowhere = f"squeezenet1_1={(stack.directory / 'nowhere').as_uri()}"
        options = ["--metrics-port", str(port), "--preload", NETWORK, "--preload", nowhere]
        stack.worker = Worker(
            stack.directory / "worker.log", stack.environment(), processes=1, devices="cpu", options=options
        )
        stack.worker.start()
        yield stack


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(48):
        cv2.imwrite(str(folder / f"{number:02d}.jpg"), random.integers(0, 255, (64, 64, 3), np.uint8))
    return sorted(folder.iterdir())


def in_hand(client: Client, job: str) -> int:
    return client.status(job).chunks.in_flight


def ended(client: Client, job: str) -> JobStatus:
    return client.wait(job, timeout_s=120)


def test_a_job_finds_its_model_preloaded(own: Stack, photos: list[Path]) -> None:
    """The first test: nothing but what is preloaded has been loaded."""
    client = Client.from_env()
    job = client.submit(photos[:1], network=NETWORK, class_name="tabby", outputs=["cam"])
    assert ended(client, job).state is JobState.SUCCEEDED
    lines = (own.directory / "worker.log").read_text().splitlines()
    actions = [line.partition("action=")[2].split(" ")[0] for line in lines if "action=" in line]
    assert actions.count("model_loaded") == 1
    assert actions.index("model_loaded") < actions.index("not_preloaded") < actions.index("ready")


def test_a_process_takes_its_next_chunk_before_it_is_done_with_one(own: Stack, photos: list[Path]) -> None:
    client = Client.from_env()
    job = client.submit(photos, network=NETWORK, chunk_size=8)
    eventually(lambda: in_hand(client, job) == 2)
    status = ended(client, job)
    assert (status.state, status.done, status.republished) == (JobState.SUCCEEDED, 48, 0)
    assert status.device_busy is not None
    # The edges between six chunks are hidden: without, the device waited a third of the time here.
    assert status.device_busy > 0.5


def test_jobs_of_two_networks_take_turns_in_one_process(own: Stack, photos: list[Path]) -> None:
    client = Client.from_env()
    jobs = [
        client.submit(photos[:16], network=network, weight_path="random", chunk_size=4, outputs=["cam"])
        for network in ("squeezenet1_1", "shufflenet_v2_x0_5")
    ]
    for job in jobs:
        assert ended(client, job).done == 16
    layers = {result.layer for job in jobs for result in client.results(job)}
    assert len(layers) == 2


def test_a_job_that_fails_as_a_whole_leaves_the_chunk_beside_it_alone(own: Stack, photos: list[Path]) -> None:
    client = Client.from_env()
    with asleep(own):  # a job that fails while it is being sent is another story
        good = client.submit(photos, network=NETWORK, chunk_size=8, outputs=["cam"])
        bad = client.submit(photos, network=NETWORK, layer_name="nowhere", chunk_size=8)
    assert ended(client, bad).state is JobState.FAILED
    assert (ended(client, good).state, client.status(good).done) == (JobState.SUCCEEDED, 48)


def test_a_process_killed_at_work_gives_both_chunks_back_and_loses_nothing(own: Stack, photos: list[Path]) -> None:
    client = Client.from_env()
    job = client.submit(photos, network=NETWORK, chunk_size=16)
    eventually(lambda: in_hand(client, job) == 2, every_s=0.01)
    assert own.worker is not None
    for child in children_of(own.worker):
        child.kill()
    status = ended(client, job)
    assert (status.state, status.done, status.failed, status.total) == (JobState.SUCCEEDED, 48, 0, 48)
    log = (own.directory / "worker.log").read_text()
    assert log.count(f"action=reclaimed job={job}") == 2


def test_the_metrics_count_images_and_the_time_of_each_stage(own: Stack, photos: list[Path], port: int) -> None:
    def metrics() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    client = Client.from_env()

    def batched(found: dict[str, float]) -> float:
        return found.get("gradcam_batch_images_sum", 0.0)

    images = f'gradcam_images_total{{network="{NETWORK}",reason="",state="done"}}'
    before = metrics()
    assert ended(client, client.submit(photos[:8], network=NETWORK)).done == 8
    after = metrics()
    assert after[images] == before.get(images, 0.0) + 8
    assert batched(after) == batched(before) + 8
    assert after['gradcam_stage_seconds_count{stage="explain"}'] >= 8
    assert after["gradcam_models_reused_total"] > 0
    assert after["gradcam_model_load_seconds_count"] >= 1
    assert sum(value for name, value in after.items() if name.startswith("gradcam_processes{")) == 1
    assert after["gradcam_process_deaths_total"] == 0
    for stage in ("fetch", "decode", "explain", "render", "encode", "upload", "record"):
        assert after[f'gradcam_stage_work_seconds_total{{stage="{stage}"}}'] > 0
    assert after['gradcam_stage_wait_seconds_total{stage="explain"}'] > 0
    assert "gradcam_device_idle_seconds_total" in after


def test_a_stopping_process_gives_both_chunks_back_at_once(own: Stack, photos: list[Path]) -> None:
    """The last test: the worker is another one afterwards."""
    client = Client.from_env()
    job = client.submit(photos * 2, network=NETWORK, chunk_size=32, input_size=(96, 96))
    eventually(lambda: in_hand(client, job) == 2, every_s=0.01)
    assert own.worker is not None
    began = time.monotonic()
    own.worker.stop()
    stopped_s = time.monotonic() - began
    status = client.status(job)
    assert status.chunks.in_flight == 0
    assert status.done + status.failed < 96
    assert stopped_s < 25
    own.start_worker()
    status = ended(client, job)
    assert (status.state, status.done, status.republished) == (JobState.SUCCEEDED, 96, 0)
