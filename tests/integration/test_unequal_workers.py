"""Workers that lack what others have: jobs go on with the others, and end when there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import s3_servers
from fault_proxy import HttpFaultProxy
from stacks import eventually, own_stack

from deploy.stack import Worker
from producer.client.client import Client
from producer.jobs.model.errors import WorkerError
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.settings import Connections, read
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.jobs.store.bucket import Storage
from producer.jobs.store.finalize import finalize
from worker.recover.reconciler import Reconciler
from worker.supervise.busy_file import BUSY_KINDS

if TYPE_CHECKING:
    from deploy.stack import Stack

NETWORK = "efficientnet_lite0"
PHOTO = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with own_stack(tmp_path_factory.mktemp("unequal"), {"GRADCAM_WORKER_LEASE_S": "10"}) as stack:
        yield stack


@pytest.fixture(scope="module")
def read_only(own: Stack) -> Iterator[HttpFaultProxy]:
    """A way to the store by which nothing can be written."""
    with s3_servers.proxied(own.s3) as proxy:
        proxy.answer_errors(403, "AccessDenied", only=lambda method, _: method == "PUT")
        yield proxy


def start(stack: ExitStack, own: Stack, name: str, **settings: str) -> Worker:
    worker = Worker(own.directory / f"{name}.log", {**own.environment(), **settings}, processes=1, devices="cpu")
    worker.start()
    stack.callback(worker.stop)
    return worker


def name_of(own: Stack, log: str) -> str:
    """The one process of a launcher, by its log."""
    return (own.directory / f"{log}.log").read_text().partition("action=starting Starting ")[2].partition(" ")[0]


def names(client: Client) -> set[str]:
    return {cast(bytes, name).decode() for name in client.table.redis.zrange("gradcam:workers", 0, -1)}


def test_jobs_go_on_beside_badly_provisioned_workers_and_fail_when_none_else_is_alive(
    own: Stack, read_only: HttpFaultProxy
) -> None:
    client = Client.from_env()
    with ExitStack() as workers:
        start(workers, own, "read-only", GRADCAM_S3_ENDPOINT_URL=f"http://127.0.0.1:{read_only.port}")
        start(workers, own, "prefix", GRADCAM_S3_PREFIX="elsewhere")
        good = start(workers, own, "good")
        eventually(lambda: len(names(client)) == 3, within_s=120)

        job = client.submit([PHOTO] * 60, network=NETWORK, chunk_size=4, outputs=["cam"])
        problems: set[str] = set()
        for status in client.watch(job):
            problems |= {status.problem} if status.problem else set()
        assert (status.state, status.done, status.error) == (JobState.SUCCEEDED, 60, None)
        assert {name for problem in problems for name in names(client) if f"worker {name} cannot do" in problem}
        assert any("AccessDenied" in problem or "elsewhere" in problem for problem in problems)
        # One can do no job at all; the other has nothing against jobs that write where it does.
        said = {worker.name: worker.problem for worker in client.workers()}
        assert [problem for problem in said.values() if problem] == [said[name_of(own, "read-only")]]
        # Each refused what it had in flight, and took no more of the job.
        for bad in ("read-only", "prefix"):
            assert (own.directory / f"{bad}.log").read_text().count("action=job_refused") <= len(BUSY_KINDS)

        good.stop()
        eventually(lambda: len(names(client)) == 2, within_s=60)
        lost = client.submit([PHOTO] * 8, network=NETWORK, chunk_size=4, outputs=["cam"])
        status = client.wait(lost, timeout_s=60)
        assert (status.state, status.done) == (JobState.FAILED, 0)
        assert "GRADCAM_S3_BUCKET" in (status.error or "")


# -- the end of a job --------------------------------------------------------------------------------------------------


def complete(client: Client, job: str) -> None:
    """A job of which nothing but its summary is left."""
    spec = JobSpec(chunk_size=1)
    client.table.create(job, spec, name=job, lifetime_s=60)
    client.table.add_chunk(job, Chunk.compress(0, [uri_line("s3://b/a.jpg")]))
    client.table.close(job, chunks=1, items=1)
    claim = client.table.claim(job, 0, spec, claim_id="me", lease_s=30)
    assert claim is not None
    client.table.commit(claim, done=[0], failed=[], lease_s=30)
    assert client.status(job).state is JobState.FINALIZING


def wrong(monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The store with credentials that it refuses."""
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        return Storage.from_settings(read(Connections))


def test_who_cannot_write_the_summary_leaves_it_to_others_at_once(own: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client.from_env()
    bad = wrong(monkeypatch)
    complete(client, "declined")
    with pytest.raises(WorkerError):
        finalize(client.table, bad, "declined", "bad")
    assert client.table.finalize("declined", "bad") is None  # not again, for a while
    assert finalize(client.table, client.storage, "declined", "good")
    assert client.status("declined").state is JobState.SUCCEEDED


def test_a_user_ends_a_job_whose_worker_cannot_write_its_summary(own: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client.from_env()
    bad = wrong(monkeypatch)
    complete(client, "held")
    with pytest.raises(WorkerError):
        finalize(client.table, bad, "held", "bad")
    client.delete("held")
    assert client.table.queries.outline("held") is None


def reconciler(client: Client, storage: Storage, who: str) -> Reconciler:
    def nothing(*_: Any) -> None:
        pass

    return Reconciler(
        client.table,
        storage,
        nothing,
        publish=nothing,
        who=who,
        queues=(),
        interval_s=0.5,
        grace_s=10,
        before_each=nothing,
    )


def test_a_job_ends_although_the_worker_that_looks_after_all_cannot_write(
    own: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its clock it would be the first to look each time."""
    client = Client.from_env()
    complete(client, "looked-after")
    bad, good = reconciler(client, wrong(monkeypatch), "bad"), reconciler(client, client.storage, "good")
    bad.start()
    time.sleep(0.25)
    good.start()
    try:
        eventually(lambda: client.status("looked-after").ended, within_s=10)
    finally:
        bad.stop()
        good.stop()
    assert client.status("looked-after").state is JobState.SUCCEEDED
    assert client.storage.size("jobs/looked-after/job.json")


def test_a_closed_bucket_ends_a_job_without_its_summary_only_when_nobody_can_write_it(
    own: Stack, read_only: HttpFaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client.from_env()
    with monkeypatch.context() as patch:
        patch.setenv("GRADCAM_S3_ENDPOINT_URL", f"http://127.0.0.1:{read_only.port}")
        closed = Storage.from_settings(read(Connections))
    complete(client, "closed")
    for worker in ("a", "b"):
        client.table.registry.heartbeat(worker)
    assert not finalize(client.table, closed, "closed", "a")
    assert client.status("closed").state is JobState.FINALIZING
    assert finalize(client.table, closed, "closed", "b")
    assert client.status("closed").state is JobState.SUCCEEDED
