"""Workers and clients of earlier releases beside today's, as real processes of their own wheels: nothing is lost.

The tests go on from each other: a worker takes five seconds to start, so each one that is alive serves several.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import releases
from command import gradcam
from releases import Release, ReleaseWorker, kill_all
from stacks import SMALL, children_of, eventually, frozen, mains_of, own_stack

from deploy.stack import Stack, Worker
from producer.client.client import Client
from producer.jobs.model.errors import UsageError
from producer.jobs.model.states import JobState

#: The last release with other workers' records, and the last one that knows less of a job.
OLD, OLDER = "0.3.0", "0.2.0"
#: A job that two workers share, so long that one can be killed amidst it; and one that a worker does alone.
MANY, FEW = 80, 16
FLAGS = ("--network", "squeezenet1_1", "--weight-path", "random", "--outputs", "cam")
#: Dead holders are not waited for long, and a slow machine's live ones are not taken for dead.
SETTINGS = {"GRADCAM_WORKER_LEASE_S": "5", "GRADCAM_WORKER_BATCH_SIZE": "4"}


class Fleet:
    """A stack with workers by name."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self.workers: dict[str, Worker] = {}
        self.old = releases.of(OLD, folder)
        self.client = Client.from_env()

    def start(self, name: str, release: Release | None = None) -> None:
        """Start a launcher of a release, or of today's code, with one process."""
        log = self.folder / f"{name}.log"
        if release is None:
            environment = {**self.stack.environment(), **SETTINGS}
            self.workers[name] = Worker(log, environment, processes=1, devices="cpu")
        else:
            self.workers[name] = ReleaseWorker(release, self.stack, log, SETTINGS)
        self.workers[name].start()

    def ready(self, name: str) -> None:
        """Wait until a worker reads messages."""
        eventually(lambda: "action=ready" in self.log(name))

    def log(self, name: str) -> str:
        """What a worker and its processes wrote."""
        path = self.workers[name].log
        return path.read_text() if path.exists() else ""

    def stop(self, name: str) -> None:
        """SIGTERM, as systemd and Kubernetes send it."""
        self.workers[name].stop()

    def kill(self, name: str) -> None:
        """No warning for anybody."""
        kill_all(self.workers[name])

    @contextmanager
    def standing(self, name: str) -> Iterator[None]:
        """A worker takes nothing for as long as the `with` lasts."""
        with ExitStack() as stopped:
            for process in [*children_of(self.workers[name]), *mains_of(self.workers[name])]:
                stopped.enter_context(frozen(process))
            yield

    def took_part(self, name: str, job: str) -> bool:
        """Whether a worker has recorded something of a job."""
        return f"action=committed job={job} " in self.log(name)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A worker of an earlier release and one of today's, and a bucket with pictures."""
    folder = tmp_path_factory.mktemp("fleet")
    with own_stack(folder / "stack", SETTINGS) as stack:
        made = Fleet(stack, folder)
        try:
            made.start("old", made.old)
            made.start("new")
            made.ready("old")
            made.ready("new")
            yield made
        finally:
            for worker in made.workers.values():
                worker.stop()


@pytest.fixture(scope="module")
def photos(fleet: Fleet) -> list[str]:
    random, storage = np.random.default_rng(0), fleet.client.storage
    for number in range(MANY):
        picture = cv2.imencode(".jpg", random.integers(0, 255, (64, 64, 3), np.uint8))[1].tobytes()
        storage.put(f"in/{number:03d}.jpg", picture)
    return [f"s3://{storage.bucket}/in/{number:03d}.jpg" for number in range(MANY)]


def check_whole(fleet: Fleet, job: str, images: int = FEW) -> None:
    """Every image ended as done, once; its picture is in the store and decodes; nothing is left over."""
    client = fleet.client
    status = client.wait(job, timeout_s=120)
    assert (status.state, status.done, status.failed, status.total) == (JobState.SUCCEEDED, images, 0, images)
    assert status.generation == 1
    found = list(client.results(job))
    assert [result.index for result in found] == list(range(images))
    for result in found:
        picture = cv2.imdecode(np.frombuffer(client.storage.get(result.objects["cam"]), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape == (224, 224, 3)
    assert list(client.audit(job)) == []
    table = client.table.redis
    assert table.hget(f"gradcam:job:{job}", "ends") == b"1"
    assert all(table.ttl(key) > 0 for key in table.keys(f"gradcam:job:{job}*"))


def check_that_older_ones_read_it(fleet: Fleet, job: str, images: int) -> None:
    """What one release wrote, the other one reads."""
    told = json.loads(fleet.old.gradcam(fleet.stack, "status", job, "--json"))
    assert (told["state"], told["done"]) == ("succeeded", images)
    lines = fleet.old.gradcam(fleet.stack, "results", job, "--jsonl").splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(images))


def shared(fleet: Fleet, photos: list[str], job: str, victim: str) -> None:
    """Two releases share a job, and one of them is killed amidst it."""
    fleet.client.submit(photos, name=job, chunk_size=4, **SMALL)
    eventually(lambda: fleet.took_part("old", job) and fleet.took_part("new", job), every_s=0.01)
    fleet.kill(victim)
    assert not fleet.client.status(job).ended
    check_whole(fleet, job, MANY)
    check_that_older_ones_read_it(fleet, job, MANY)


def test_two_releases_share_a_job_and_lose_nothing_when_the_older_worker_is_killed(
    fleet: Fleet, photos: list[str]
) -> None:
    assert fleet.client.status(fleet.client.submit(photos[:1], **SMALL)).other_versions.keys() == {OLD}
    shared(fleet, photos, "older-killed", "old")


# -- from here on the worker of today is alone -------------------------------------------------------------------------


def test_a_job_of_an_older_client_is_done_by_a_newer_worker(fleet: Fleet, photos: list[str]) -> None:
    fleet.old.gradcam(fleet.stack, "submit", *photos[:FEW], "--name", "from-older", *FLAGS)
    check_whole(fleet, "from-older")


def test_a_newer_client_goes_on_with_what_an_older_one_began(fleet: Fleet, photos: list[str]) -> None:
    """Under the same name it is the same job, and so it is the other way round."""
    gradcam("submit", *photos[:FEW], "--name", "from-older", *FLAGS)
    fleet.client.submit(photos[:8], name="from-newer", **SMALL)
    fleet.client.wait("from-newer", timeout_s=60)
    fleet.old.gradcam(fleet.stack, "submit", *photos[:8], "--name", "from-newer", *FLAGS)
    assert fleet.client.status("from-newer").done == 8


def test_an_older_client_acts_on_jobs_of_a_newer_one(fleet: Fleet, photos: list[str]) -> None:
    stack, old = fleet.stack, fleet.old
    with fleet.standing("new"):
        images = [*photos[:FEW], f"{photos[0]}.gone"]
        job = fleet.client.submit(images, name="acted-on", chunk_size=4, queue="low", **SMALL)
        fleet.client.pause(job, because="a look at it")
        assert json.loads(old.gradcam(stack, "status", job, "--json"))["state"] == "paused"
        assert "\trunning\t" in old.gradcam(stack, "resume", job)
    assert fleet.client.wait(job, timeout_s=60).failed == 1
    old.gradcam(stack, "retry", job)
    assert fleet.client.wait(job, timeout_s=60).generation == 2
    # The history is unknown to the older one, and stays readable.
    assert [action.verb for action in fleet.client.history(job)] == ["pause"]
    old.gradcam(stack, "delete", job, "--objects", "--yes")
    assert list(fleet.client.storage.keys(f"jobs/{job}/")) == []
    fleet.client.submit(photos[:1], name=job, **SMALL)
    assert fleet.client.history(job) == []
    fleet.client.wait(job, timeout_s=60)


def test_a_newer_client_acts_on_jobs_of_an_older_one(fleet: Fleet, photos: list[str]) -> None:
    client = fleet.client
    with fleet.standing("new"):
        fleet.old.gradcam(fleet.stack, "submit", *photos[:FEW], "--name", "acted-on-2", "--chunk-size", "4", *FLAGS)
        assert client.pause("acted-on-2").state is JobState.PAUSED
        assert client.resume("acted-on-2").state is JobState.RUNNING
        assert client.cancel("acted-on-2").state is JobState.CANCELLED
    assert "cancelled" in fleet.old.gradcam(fleet.stack, "status", "acted-on-2", code=3)
    client.delete("acted-on-2", objects=True)
    assert "acted-on-2" not in fleet.old.gradcam(fleet.stack, "list")


def test_a_job_that_older_workers_do_not_know_waits_for_a_newer_one_and_says_so(
    fleet: Fleet, photos: list[str]
) -> None:
    """Producers first: the older workers leave such jobs alone, and do the others."""
    fleet.start("older", releases.of(OLDER, fleet.folder))
    fleet.ready("older")
    with fleet.standing("new"):
        job = fleet.client.submit(photos[:FEW], name="unknown", **SMALL)
        eventually(lambda: fleet.client.status(job).problem)
        told = gradcam("status", job).stdout
        assert "cannot do this job" in told
        assert "was written by another version of gradcam-queue: update this one" in told
        assert fleet.client.status(job).state is JobState.RUNNING
    check_whole(fleet, job)
    assert not fleet.took_part("older", job)
    fleet.stop("older")


def test_two_releases_share_a_job_and_lose_nothing_when_the_newer_worker_is_killed(
    fleet: Fleet, photos: list[str]
) -> None:
    """As in an upgrade that is taken back."""
    fleet.start("old", fleet.old)
    eventually(lambda: fleet.log("old").count("action=ready") == 2)
    shared(fleet, photos, "newer-killed", "new")


# -- from here on the older worker is alone ----------------------------------------------------------------------------


def test_a_job_of_a_newer_client_is_done_by_an_older_worker_that_knows_its_parameters(
    fleet: Fleet, photos: list[str]
) -> None:
    fleet.client.submit(photos[:FEW], name="known", **SMALL)
    check_whole(fleet, "known")


def test_an_older_worker_that_cannot_be_asked_to_leave_is_told(fleet: Fleet) -> None:
    """Drains came with 0.4.0: what nobody hears must not look as if it were done."""
    worker = next(worker for worker in fleet.client.workers() if not worker.known)
    with pytest.raises(UsageError, match="cannot be asked to leave: send SIGTERM to its launcher"):
        fleet.client.drain(worker.name)
