"""One trace from `gradcam submit` to the commits: real processes, real servers, and a collector that reads OTLP."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import skimage
from command import gradcam_process
from otlp_receiver import Received, Receiver, receiving
from stacks import SMALL, children_of, eventually, own_stack

from deploy.stack import Worker
from producer.client.client import Client
from producer.jobs.model.keys import JobKeys
from producer.jobs.tracing.traces import ATTRIBUTES, SPANS

if TYPE_CHECKING:
    from deploy.stack import Stack

ROOT = Path(__file__).parents[2]
CAT = str(Path(skimage.__file__).parent / "data" / "chelsea.png")
#: Stages of images, in their order.
STAGES = ("fetch", "decode", "explain", "render", "encode", "upload")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Stack]:
    settings = {
        "GRADCAM_TRACES": "otlp",
        "GRADCAM_LOG": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=sesame",
        "GRADCAM_WORKER_RUN_DIR": str(tmp_path_factory.mktemp("run")),
        # Nobody needs to be told of a death by a lease while a model is loaded.
        "GRADCAM_WORKER_LEASE_S": "10",
    }
    with own_stack(tmp_path_factory.mktemp("traces"), settings) as stack:
        yield stack


def of_job(spans: list[Received], job: str) -> list[Received]:
    return [span for span in spans if span.facts.get("gradcam.job") == job]


@dataclass(frozen=True)
class Told:
    """What a worker's log has, and how long things took while the collector hung."""

    log: Path
    submitted_s: float
    done_s: float

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def told(own: Stack, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """One worker does four jobs, then it is stopped.

    The child is killed at `cats`. Redis has no span of `lost`. The collector hangs during `hung`, and `last` is all
    that was done since spans were sent.
    """
    log = tmp_path_factory.mktemp("log") / "log"
    typed = ("--network", "squeezenet1_1", "--weight-path", "random", "--outputs", "cam", "--chunk-size", "20")
    gradcam_process("submit", *[CAT] * 40, *typed, "--name", "cats")
    client = Client.from_env()
    client.submit([CAT], name="lost", **SMALL)
    with redis.Redis.from_url(own.redis.url) as connection:
        connection.hset(JobKeys("lost").hash, "traceparent", b"00-\xff" + b"x" * 10_000)
    worker = Worker(log, own.environment(), processes=1, devices="cpu")

    worker.start()
    try:
        eventually(lambda: log.exists() and "Loaded in" in log.read_text(), within_s=60)
        children_of(worker)[0].kill()
        for job in ("cats", "lost"):
            client.wait(job, timeout_s=60)
        eventually(lambda: len(of_job(receiver.spans("chunk"), "cats")) > 1)
        receiver.answers.clear()
        began = time.monotonic()
        client.submit([CAT] * 20, name="hung", **SMALL)
        submitted = time.monotonic()
        client.wait("hung", timeout_s=60)
        done = time.monotonic()
        eventually(lambda: "traces_lost" in log.read_text())
        receiver.answers.set()
        client.submit([CAT], name="last", **SMALL)
        client.wait("last", timeout_s=60)
    finally:
        # The SDK sends every 5 s: what was told last comes by the flush of the process that ends.
        worker.stop()
    return Told(log, submitted - began, done - submitted)


def test_one_trace_leads_from_the_submission_to_the_commits(told: Told, receiver: Receiver) -> None:
    job = "cats"
    (submit,) = of_job(receiver.spans("submit"), job)
    assert submit.facts == {
        "gradcam.job": job, "gradcam.network": "squeezenet1_1", "gradcam.images": 40, "gradcam.chunks": 2,
    }  # fmt: skip
    chunks = of_job(receiver.spans("chunk"), job)
    assert {(span.trace_id, span.parent_id) for span in chunks} == {(submit.trace_id, submit.span_id)}
    assert (submit.service, {span.service for span in chunks}) == ("gradcam", {"gradcam-worker"})
    assert [span.facts["gradcam.complete"] for span in chunks] == [True, True]
    for chunk in chunks:
        inside = {span.name: span for span in receiver.spans() if span.parent_id == chunk.span_id}
        assert {*STAGES, "model", "record", "commit"} <= set(inside)
        assert all(chunk.began_ns <= span.began_ns <= span.ended_ns for span in inside.values())
        assert all(inside[one].began_ns <= inside[other].began_ns for one, other in pairwise(STAGES))
        assert {inside[stage].facts["gradcam.images"] for stage in STAGES} == {chunk.facts["gradcam.images"]}


def test_a_chunk_whose_process_was_killed_is_in_the_same_trace_when_it_is_handed_out_again(
    told: Told, receiver: Receiver
) -> None:
    job = "cats"
    again = [span for span in of_job(receiver.spans("chunk"), job) if span.facts["gradcam.attempt"] > 1]
    assert again
    assert all(span.facts["gradcam.complete"] for span in again)
    assert "Its process died; others get it." in told.log.read_text()


def test_a_job_whose_span_redis_has_damaged_is_explained_in_a_trace_of_its_own(told: Told, receiver: Receiver) -> None:
    (chunk,) = of_job(receiver.spans("chunk"), "lost")
    (submit,) = of_job(receiver.spans("submit"), "lost")
    assert (chunk.parent_id, chunk.links, chunk.facts["gradcam.done"]) == ("", (), 1)
    assert chunk.trace_id != submit.trace_id


def test_spans_have_the_names_and_attributes_of_the_documentation_and_no_secret(
    told: Told, own: Stack, receiver: Receiver
) -> None:
    assert {span.name for span in receiver.spans()} <= set(SPANS)
    assert {name for span in receiver.spans() for name in span.facts} == set(ATTRIBUTES)
    secrets = ("sesame", own.env["AWS_SECRET_ACCESS_KEY"], own.env["GRADCAM_REDIS_URL"].split("@")[0].split(":")[-1])
    assert [secret for secret in secrets if secret.encode() in receiver.raw or secret in told.log.read_text()] == []


def test_lines_of_the_log_have_job_chunk_worker_and_trace(told: Told, receiver: Receiver) -> None:
    job = "cats"
    committed = [one for one in told.records if one["action"] == "committed" and one["job"] == job]
    assert {one["chunk"] for one in committed} == {0, 1}
    assert {one["trace_id"] for one in committed} == {of_job(receiver.spans("submit"), job)[0].trace_id}
    workers = {span.facts["gradcam.worker"] for span in of_job(receiver.spans("chunk"), job)}
    assert {one["worker"] for one in committed} <= workers


@pytest.mark.parametrize("program", ["jq", "grep"])
def test_the_documented_query_finds_the_lines_of_one_job(told: Told, program: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    (query,) = re.findall(rf"^docker compose logs .* worker \| ({program} .*?)(?: +#.*)?$", page, re.MULTILINE)
    lines = tmp_path / "lines"
    # C libraries may write lines of their own.
    lines.write_text("OMP: Info #1\n" + told.log.read_text())
    command = f"{query.replace('audit-7', 'cats')} < {lines}"
    run = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True, timeout=30)
    expected = [one for one in told.records if one.get("job") == "cats"]
    assert len(expected) > 3
    assert [json.loads(line) for line in run.stdout.splitlines()] == expected


def test_a_collector_that_hangs_holds_up_no_job_and_is_told_once(told: Told) -> None:
    assert (told.submitted_s < 15, told.done_s < 15) == (True, True)
    about = [one for one in told.records if "pans" in one["message"] or "opentelemetry" in one.get("from", "")]
    assert [one["action"] for one in about] == ["traces_lost"]
    assert about[0]["message"].startswith("Spans cannot be sent, and are lost (")


def test_the_last_spans_of_a_process_are_sent_before_it_ends(told: Told, receiver: Receiver) -> None:
    assert [span.facts["gradcam.complete"] for span in of_job(receiver.spans("chunk"), "last")] == [True]
