"""A store and a Redis that stand still: status, check and doctor say so, and a worker that is stopped ends in time.

One worker is behind a store that freezes, another behind a Redis that does; both work at one job. The tests follow one
another.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import pytest
from command import Run, gradcam, worker_check
from fault_proxy import FaultProxy, HttpFaultProxy
from stacks import eventually, own_stack

from deploy.stack import Stack, Worker
from producer.client.client import Client
from producer.jobs.model import release
from producer.jobs.model.waits import REDIS, STORE
from producer.maintenance.doctor import LIMIT_S

NETWORK = "efficientnet_lite0"
GRACE_S = 10.0


class Rig(NamedTuple):
    stack: Stack
    store: HttpFaultProxy
    redis: FaultProxy
    #: Behind the store that freezes.
    one: Worker
    #: Behind the Redis that does.
    other: Worker
    job: str


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Both workers are at work, and then nothing answers them any more."""
    folder = tmp_path_factory.mktemp("standstill")
    random = np.random.default_rng(0)
    for number in range(16):
        cv2.imwrite(str(folder / f"{number:02d}.jpg"), random.integers(0, 255, (64, 64, 3), np.uint8))
    settings = {
        "GRADCAM_WORKER_GRACE_S": f"{GRACE_S:g}",
        "GRADCAM_WORKER_LEASE_S": "120",  # what is given back here is given back, and does not run out
        "GRADCAM_WORKER_BATCH_SIZE": "2",
        "GRADCAM_WORKER_RUN_DIR": str(folder),
    }
    with ExitStack() as ends:
        stack = ends.enter_context(own_stack(folder / "stack", settings))
        store = ends.enter_context(HttpFaultProxy(stack.s3.ports["s3.port"]))
        proxy = ends.enter_context(FaultProxy(stack.redis.ports["redis"]))
        frozen_store = {"GRADCAM_S3_ENDPOINT_URL": f"http://127.0.0.1:{store.port}"}
        frozen_redis = {"GRADCAM_REDIS_URL": f"redis://:{stack.redis.password}@127.0.0.1:{proxy.port}/0"}
        workers = [
            Worker(folder / f"log{n}", {**stack.environment(), **behind}, processes=1, devices="cpu")
            for n, behind in enumerate((frozen_store, frozen_redis))
        ]
        for worker in workers:
            ends.callback(worker.stop)
            worker.start()
        client = Client.from_env()
        job = client.submit(sorted(folder.glob("*.jpg")) * 64, network=NETWORK, chunk_size=128)
        eventually(lambda: sorted(states().values()) == ["working", "working"], within_s=120)
        eventually(lambda: all("action=committed" in worker.log.read_text() for worker in workers), within_s=120)
        store.freeze()
        proxy.freeze()
        one, other = workers
        yield Rig(stack, store, proxy, one, other, job)
        store.passing()
        proxy.passing()


def check(*arguments: str) -> Run:
    # One of them sees Redis at another address: to a check it is of another stack.
    return worker_check("--all", *arguments)


def states() -> dict[str, str]:
    found: list[dict[str, Any]] = json.loads(check("--json").stdout or "[]")
    return {process["name"]: process["state"] for process in found}


def test_doctor_gives_each_question_five_seconds_and_says_each_answer_at_once(rig: Rig) -> None:
    started = time.monotonic()
    environment = {**rig.stack.environment(), "GRADCAM_S3_ENDPOINT_URL": f"http://127.0.0.1:{rig.store.port}"}
    command = [sys.executable, "-m", "producer.cli", "doctor"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as doctor:
        assert doctor.stdout is not None
        lines = [(line, time.monotonic() - started) for line in doctor.stdout]
    assert doctor.returncode == 4
    assert lines[-1][0].startswith("bad   S3 list      no answer within 5 s")
    # Redis' lines were there while the store was waited for.
    assert lines[-1][1] - lines[-2][1] > LIMIT_S - 1
    assert time.monotonic() - started < LIMIT_S + 10
    away = gradcam("doctor", code=4, env={"GRADCAM_REDIS_URL": f"redis://:x@127.0.0.1:{rig.redis.port}/0"}).stdout
    assert "bad   Redis        no answer within 5 s" in away
    assert "ok    S3 list" in away


def test_check_says_which_server_a_process_waits_for(rig: Rig) -> None:
    eventually(lambda: set(states().values()) == {"waiting"}, within_s=60, every_s=0.5)
    said = check()
    assert f"it has waited for {STORE} for" in said.stdout
    assert f"it has waited for {REDIS} for" in said.stdout
    assert said.returncode == 0
    impatient = check("--within-s", "5")
    assert impatient.returncode == 1
    assert "2 of 2 processes cannot work" in impatient.stderr


def test_status_says_since_when_there_is_no_progress_and_what_is_waited_for(rig: Rig) -> None:
    client = Client.from_env()
    eventually(lambda: client.status(rig.job).stalled_s is not None, within_s=60)
    status = client.status(rig.job)
    assert (status.images_per_s, status.eta_s, status.device_busy) == (None, None, None)
    assert [(wait.what, wait.workers) for wait in status.waited_for] == [(STORE, 1)]
    assert status.waited_for[0].longest_s > 10
    told = gradcam("status", rig.job).stdout
    assert "no progress for" in told
    assert f"1 worker waits for {STORE}" in told
    assert "bound the speed" not in told
    (answer,) = [json.loads(line) for line in gradcam("doctor", "--json").stdout.splitlines() if '"workers"' in line]
    assert STORE in answer["words"]


def test_a_worker_that_is_stopped_ends_in_time_and_gives_back_what_it_can(rig: Rig) -> None:
    client = Client.from_env()
    assert client.status(rig.job).chunks.in_flight >= 2
    started = time.monotonic()
    for worker in (rig.one, rig.other):
        assert worker.process is not None
        worker.process.send_signal(signal.SIGTERM)
    for worker in (rig.one, rig.other):
        assert worker.process is not None
        assert worker.process.wait(timeout=2 * GRACE_S) == 0
    # Nobody is killed before his time; what ends has to be seen, too, on a machine that is busy.
    assert time.monotonic() - started < GRACE_S + 2
    assert "action=stop_forced" in rig.other.log.read_text()
    for worker in (rig.one, rig.other):
        assert "Traceback" not in worker.log.read_text()
    # That behind the frozen store could still say what it had in hand: its lease had two minutes to go.
    holders = client.table.redis.hvals(f"gradcam:job:{rig.job}:holders")
    assert len({cast(bytes, holder).decode().split(":")[1].split("/")[0] for holder in holders}) == 1


def test_a_worker_of_another_release_is_told_by_status_and_doctor(rig: Rig) -> None:
    client = Client.from_env()
    now = client.table.registry.now()
    client.table.redis.zadd("gradcam:workers", {"host-cpu-old": now})
    client.table.redis.hset("gradcam:releases", "0.0.9+g012345678", f"{now:.3f} host-cpu-old")
    assert client.status(rig.job).other_versions == {"0.0.9+g012345678": "host-cpu-old"}
    said = f"workers of another release are running: 0.0.9+g012345678 (host-cpu-old); this is {release.own()}"
    assert said in gradcam("status", rig.job).stdout
    assert said in gradcam("doctor").stdout
    client.table.redis.hset("gradcam:releases", "0.0.9+g012345678", f"{now - 100:.3f} host-cpu-old")
    client.table.registry.heartbeat("host-cpu-new")
    assert client.status(rig.job).other_versions == {}
    assert client.table.redis.hkeys("gradcam:releases") == [release.own().encode()]
    assert f"all workers that tell are of {release.own()}" in gradcam("doctor").stdout
