"""The policies for buckets in SECURITY.md: jobs run under them, each right in them is used, others are refused."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import cv2
import numpy as np
import pytest
import s3_servers
import torch
from fault_proxy import HttpFaultProxy

from deploy.make_bucket import make_bucket
from deploy.stack import Stack, Worker
from producer.client.client import Client
from producer.jobs.model.errors import GradcamError
from producer.jobs.model.settings import Connections, read
from producer.jobs.model.states import JobState
from producer.maintenance import doctor

PAGE = (Path(__file__).parents[2] / "SECURITY.md").read_text()
PREFIX = "jobs"
#: Used only behind a failed upload of a large file; and for S3 to say 404 of what is not there, not 403.
_SELDOM = {"s3:AbortMultipartUpload"}
_FOR_404 = {"Worker": {"s3:ListBucket"}}


def policy(who: str, bucket: str) -> list[dict[str, Any]]:
    """The statements of a policy on the page."""
    blocks = [block for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL) if f'"{who}' in block]
    (text,) = blocks
    found: list[dict[str, Any]] = json.loads(text.replace("BUCKET", bucket).replace("PREFIX", PREFIX))["Statement"]
    return found


def action(method: str, target: str) -> tuple[str, str]:
    """The action that a request needs, and the resource."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
    if not key and method in {"GET", "HEAD"}:
        return "s3:ListBucket", bucket
    if method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", f"{bucket}/{key}"
    if method == "POST" and "delete" in query:  # the keys stand in its body
        return "s3:DeleteObject", f"{bucket}/{PREFIX}/"
    return "s3:GetObject" if method in {"GET", "HEAD"} else "s3:PutObject", f"{bucket}/{key}"


@dataclass
class Guard:
    """A proxy before the store that answers as a store with a policy does."""

    statements: list[dict[str, Any]]
    used: set[str] = field(default_factory=set)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def refuses(self, method: str, target: str) -> bool:
        """Whether the policy lacks a right that a request needs."""
        name, resource = action(method, target)
        for statement in self.statements:
            if name in statement["Action"] and fnmatch.fnmatchcase(f"arn:aws:s3:::{resource}", statement["Resource"]):
                self.used.add(name)
                return False
        self.refused.append((method, target))
        return True


@contextmanager
def guarded(stack: Stack, statements: list[dict[str, Any]]) -> Iterator[tuple[Guard, str]]:
    guard = Guard(statements)
    with s3_servers.proxied(stack.s3) as proxy:
        assert isinstance(proxy, HttpFaultProxy)
        proxy.answer_errors(403, "AccessDenied", None, guard.refuses)
        yield guard, f"http://127.0.0.1:{proxy.port}"


@pytest.fixture
def as_who(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Client]:
    """A client at another address of the store."""

    def made(endpoint: str) -> Client:
        monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", endpoint)
        return Client.from_env()

    return made


def test_jobs_run_under_the_policies_and_each_right_is_used(
    stack: Stack, as_who: Callable[[str], Client], tmp_path: Path
) -> None:
    """All that a job does: uploads, own weights, pictures alone and in shards, results, repair, deletion, doctor."""
    from torchvision.models import squeezenet1_1

    weights = tmp_path / "weights.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), weights)
    photos = [tmp_path / f"{number}.png" for number in range(3)]
    for number, photo in enumerate(photos):
        cv2.imwrite(str(photo), np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8))
    stack.stop_worker()
    bucket = stack.s3.bucket
    with (
        guarded(stack, policy("Producer", bucket)) as (producer, at),
        guarded(stack, policy("Worker", bucket)) as (worker, workers_at),
        guarded(stack, policy("Reader", bucket)) as (reader, readers_at),
    ):
        client = as_who(at)
        environment = {**stack.environment(), "GRADCAM_S3_ENDPOINT_URL": workers_at}
        process = Worker(tmp_path / "log", environment, processes=1, devices="cpu")
        process.start()
        try:
            own: dict[str, Any] = {"network": "squeezenet1_1", "weight_path": str(weights)}
            jobs = [client.submit(photos, **own), client.submit(photos, **own, pack="tar", outputs=("cam",))]
            assert [client.wait(job, timeout_s=90).state for job in jobs] == [JobState.SUCCEEDED] * 2
        finally:
            process.stop()
        assert [len(list(client.results(job))) for job in jobs] == [3, 3]
        assert list(client.audit(jobs[0], repair=True)) == []
        reading = as_who(readers_at)
        assert [len(list(reading.results(job))) for job in jobs] == [3, 3]
        reading.download(jobs[0], tmp_path / "results")
        reading.export(jobs[1], tmp_path / "results.csv")
        with pytest.raises(GradcamError):
            reading.delete(jobs[0], objects=True)
        assert reader.refused
        client = as_who(at)
        # Of the first job nothing was deleted by who may only read.
        assert client.delete(jobs[1], objects=True) > 0
        answers = list(doctor.examine(read(Connections)))
        assert {answer.verdict for answer in answers if answer.check.startswith("S3")} <= {"ok", "warn"}
    assert producer.refused == []
    assert worker.refused == []
    for who, guard in (("Producer", producer), ("Worker", worker), ("Reader", reader)):
        given = {name for statement in policy(who, bucket) for name in statement["Action"]}
        assert guard.used == given - _SELDOM - _FOR_404.get(who, set()), who


def test_the_buckets_helper_of_compose_needs_no_more_than_a_worker_where_the_bucket_is_there(
    stack: Stack, as_who: Callable[[str], Client]
) -> None:
    """Keys of a store of one's own may neither list all buckets nor delete."""
    with guarded(stack, policy("Worker", stack.s3.bucket)) as (guard, at):
        as_who(at)
        assert not make_bucket(read(Connections))
    assert guard.used == {"s3:ListBucket", "s3:PutObject"}
    assert guard.refused == []


def test_a_policy_on_the_page_names_nothing_but_its_own_place() -> None:
    for who in ("Producer", "Worker", "Reader"):
        for statement in policy(who, "bucket"):
            assert "*" not in "".join(statement["Action"])
            assert statement["Resource"] in {"arn:aws:s3:::bucket", f"arn:aws:s3:::bucket/{PREFIX}/*"}


def test_files_and_tests_that_the_page_names_exist() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`((?:producer|worker|deploy|tests)/[\w/.]+)`", PAGE)
    assert len(named) > 30
    assert [path for path in named if not (root / path).exists()] == []
