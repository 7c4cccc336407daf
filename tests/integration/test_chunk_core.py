"""The core of a worker: a chunk from its claim to its commit, with a small network and everything else real."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import redis
from chunk_core import BAD, BATCH, Core
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.errors import DeviceError, GradcamError
from producer.jobs.model.states import JobState
from producer.jobs.table.table import JobTable
from producer.jobs.tracing.otlp import OtlpTraces
from producer.output.results import read_chunks
from worker.chunks import pipeline, stages
from worker.chunks.chunk import ChunkContext
from worker.chunks.lease import Lease, LeaseLost
from worker.device.batches import Answers, Computation, explain_classes


@pytest.fixture
def core(client: Client, redis_client: redis.Redis) -> Core:
    return Core(JobTable(redis_client), client.storage)


def counts(core: Core, job: str) -> tuple[int, int]:
    status = core.table.queries.status(job)
    return status.done, status.failed


def objects(core: Core, job: str) -> list[str]:
    return list(core.storage.keys(keys.images_prefix(core.storage.prefix, job)))


def test_a_chunk_goes_from_claim_to_commit(core: Core) -> None:
    core.job("whole", [core.image(color) for color in range(10)])
    assert core.run(core.claim("whole"))
    assert counts(core, "whole") == (10, 0)
    assert core.table.queries.status("whole").state is JobState.FINALIZING
    assert len(objects(core, "whole")) == 40
    timings = core.table.queries.status("whole").stages
    assert {"fetch", "decode", "explain", "render", "encode", "upload", "record"} <= set(timings)


def test_what_is_recorded_names_the_pictures_that_are_there(core: Core) -> None:
    core.job("named", [core.image(1), core.image(2)], outputs=("cam",))
    core.run(core.claim("named"))
    key = next(iter(core.storage.keys(keys.manifest_prefix(core.storage.prefix, "named"))))
    lines = core.storage.get(key).decode().splitlines()
    assert len(lines) == 2
    assert all(found in "".join(lines) for found in objects(core, "named"))


def test_a_broken_image_fails_alone(core: Core) -> None:
    core.job("broken", [core.image(1), core.image(broken=True), core.image(2)])
    assert core.run(core.claim("broken"))
    assert counts(core, "broken") == (2, 1)
    (failure,) = core.table.queries.failures("broken")
    assert (failure.index, failure.reason) == (1, "image")


def test_full_batches_leave_and_the_rest_follows(core: Core) -> None:
    core.job("batches", [core.image(color) for color in range(BATCH * 2 + 1)])
    core.run(core.claim("batches"))
    assert core.model.batches == [BATCH, BATCH, 1]


def test_chunks_of_one_model_share_batches_also_of_several_jobs(core: Core) -> None:
    names = ["large", "small1", "small2"]
    core.job("large", [core.image(1)])
    core.job("small1", [core.image(2), core.image(3)])
    core.job("small2", [core.image(4), core.image(5)])
    core.model.gate.clear()
    runs = [core.begin(core.claim("large"))]
    core.wait_until(core.model.reached.is_set)
    runs += [core.begin(core.claim(name)) for name in names[1:]]
    core.wait_until(lambda: sum(len(stream.waiting) for stream in core.queue._streams) == 4)
    core.model.gate.set()
    assert all(run.result(60) for run in runs)
    assert core.model.batches == [1, 4]
    assert [counts(core, name) for name in names] == [(1, 0), (2, 0), (2, 0)]


@pytest.mark.parametrize("otherwise", [{"method": "layercam"}, {"direction": "down"}, {"mean": (0.5, 0.5, 0.5)}])
def test_jobs_that_ask_otherwise_do_not_share_a_batch(core: Core, otherwise: dict[str, Any]) -> None:
    core.job("first", [core.image(1)])
    core.job("plain", [core.image(2)])
    core.job("other", [core.image(3)], **otherwise)
    core.model.gate.clear()
    runs = [core.begin(core.claim("first"))]
    core.wait_until(core.model.reached.is_set)
    runs += [core.begin(core.claim(name)) for name in ("plain", "other")]
    core.wait_until(lambda: sum(len(stream.waiting) for stream in core.queue._streams) == 2)
    core.model.gate.set()
    assert all(run.result(60) for run in runs)
    assert core.model.batches == [1, 1, 1]


def test_an_image_that_breaks_a_shared_batch_is_its_own_jobs_trouble(core: Core) -> None:
    """Three errors that nobody foresaw convict a job: it must not be the one that happened to share the batch."""
    core.job("first", [core.image(1)])
    core.job("good", [core.image(2)])
    core.job("bad", [core.image(BAD)])
    core.model.gate.clear()
    first = core.begin(core.claim("first"))
    core.wait_until(core.model.reached.is_set)
    good, bad = (core.begin(core.claim(name)) for name in ("good", "bad"))
    core.wait_until(lambda: sum(len(stream.waiting) for stream in core.queue._streams) == 2)
    core.model.gate.set()
    assert first.result(60)
    assert good.result(60)
    with pytest.raises(GradcamError, match="a white picture"):
        bad.result(60)
    assert (counts(core, "good"), counts(core, "bad")) == ((1, 0), (0, 0))


def test_what_was_finished_before_a_fault_is_committed(core: Core) -> None:
    core.job("fault", [*(core.image(color) for color in range(BATCH)), core.image(BAD)])
    core.model.bad_gate.clear()
    # A suspect comes last, and alone.
    run = core.begin(replace(core.claim("fault"), suspects={BATCH: 1}), commit_every_s=0.0)
    core.wait_until(lambda: counts(core, "fault") == (BATCH, 0))
    core.model.bad_gate.set()
    with pytest.raises(GradcamError, match="a white picture"):
        run.result(60)
    assert counts(core, "fault") == (BATCH, 0)
    assert core.table.claim("fault", 0, core.table.queries.spec("fault")[0], claim_id="me", lease_s=9) is None  # type: ignore[index]


def test_a_stopping_process_finishes_the_batch_on_the_device_and_nothing_more(core: Core) -> None:
    core.job("stop", [core.image(color) for color in range(BATCH * 3)])
    core.model.gate.clear()
    run = core.begin(core.claim("stop"))
    core.wait_until(core.model.reached.is_set)
    core.drained = True
    core.model.gate.set()
    assert run.result(60) is False
    assert core.model.batches == [BATCH]
    assert counts(core, "stop") == (BATCH, 0)


def test_a_cancelled_job_stops_and_writes_nothing_more(core: Core) -> None:
    core.job("cancelled", [core.image(color) for color in range(40)])
    core.model.gate.clear()
    run = core.begin(core.claim("cancelled"))
    core.wait_until(core.model.reached.is_set)
    core.table.actions.cancel("cancelled")
    core.model.gate.set()
    with pytest.raises(LeaseLost):
        run.result(60)
    assert len(core.model.batches) < 10
    before = objects(core, "cancelled")
    assert len(before) < 160
    assert objects(core, "cancelled") == before


def test_suspects_run_alone_and_last(core: Core) -> None:
    core.job("suspects", [core.image(color) for color in range(6)])
    claim = core.claim("suspects")
    assert core.run(replace(claim, suspects={0: 0, 3: 1}))
    assert core.model.batches == [4, 1, 1]
    assert counts(core, "suspects") == (6, 0)


@pytest.mark.parametrize(("weight", "reason"), [(4, "crashed_worker"), (100, "timeout")])
def test_an_image_whose_deaths_weigh_enough_fails_without_being_tried(core: Core, weight: int, reason: str) -> None:
    name = f"convicted{weight}"
    core.job(name, [core.image(color) for color in range(3)])
    assert core.run(replace(core.claim(name), suspects={1: weight}))
    assert (counts(core, name), core.model.batches) == ((2, 1), [2])
    assert [failure.reason for failure in core.table.queries.failures(name)] == [reason]


def test_images_are_marked_before_anything_is_done_with_them(core: Core) -> None:
    core.job("marks", [core.image(color) for color in range(20)])
    core.model.gate.clear()
    claim = core.claim("marks")
    run = core.begin(claim)
    core.wait_until(core.model.reached.is_set)
    marked = core.table._scripts.do(lambda client: client.hget("gradcam:job:marks:marks", "0"))
    assert isinstance(marked, bytes)
    assert {int(offset) for offset in marked.decode().split(",")} >= set(range(BATCH))
    core.model.gate.set()
    assert run.result(60)


def test_parts_are_committed_while_the_rest_is_under_way(core: Core) -> None:
    core.job("parts", [core.image(color) for color in range(BATCH * 4)])
    core.model.gate.clear()
    run = core.begin(core.claim("parts"), commit_every_s=0.0)
    core.wait_until(core.model.reached.is_set)
    assert counts(core, "parts") == (0, 0)
    core.model.gate.set()
    assert run.result(60)
    parts = list(core.storage.keys(keys.manifest_prefix(core.storage.prefix, "parts")))
    assert len(parts) > 1
    chunks = read_chunks(core.storage, "parts", chunk_size=BATCH * 4)
    records = [result for chunk in chunks for result in chunk.results()]
    assert len(records) == BATCH * 4


def test_a_packed_chunk_is_one_shard_or_nothing(core: Core) -> None:
    core.job("one-shard", [core.image(color) for color in range(5)], pack="tar")
    assert core.run(core.claim("one-shard"))
    shards = list(core.storage.keys(keys.shards_prefix(core.storage.prefix, "one-shard")))
    assert len(shards) == 1
    with tarfile.open(fileobj=io.BytesIO(core.storage.get(shards[0]))) as tar:
        names = tar.getnames()
    assert len(names) == 25
    assert names == sorted(names, key=lambda name: name.split(".")[0])
    core.job("no-shard", [core.image(1), core.image(BAD)], pack="tar")
    with pytest.raises(GradcamError):
        core.run(core.claim("no-shard"))
    assert not list(core.storage.keys(keys.shards_prefix(core.storage.prefix, "no-shard")))
    assert counts(core, "no-shard") == (0, 0)


def test_uploads_that_go_on_do_not_hide_a_device_that_hangs(core: Core, tmp_path: Path) -> None:
    core.job("lease", [core.image(1)])
    claim, busy = core.claim("lease"), tmp_path / "busy"
    with Lease(core.table, claim, claim_id="core/lease", lease_s=30, busy_file=busy) as lease:
        with lease.batch(5):
            until = busy.stat().st_mtime
            lease.step(1000)
            assert busy.stat().st_mtime < until + 100
        # What the chunk itself does counts again: recording, while the store is away.
        assert busy.stat().st_mtime > until + 500


def test_of_two_batches_on_the_device_the_one_that_is_due_first_counts(core: Core, tmp_path: Path) -> None:
    core.job("two", [core.image(1)])
    busy = tmp_path / "busy"
    with Lease(core.table, core.claim("two"), claim_id="core/two", lease_s=30, busy_file=busy) as lease:
        lease.step(5)
        first, second = lease.batch(1000), lease.batch(2000)
        first.__enter__()
        due = busy.stat().st_mtime
        second.__enter__()
        assert abs(busy.stat().st_mtime - due) < 100
        first.__exit__(None, None, None)
        assert busy.stat().st_mtime > due + 500
        second.__exit__(None, None, None)
        assert busy.stat().st_mtime < due


class Overlapping:
    """A real computation that the pipeline waits for in another thread, as it does for a GPU."""

    overlaps = True

    def __init__(self, computation: Computation) -> None:
        self._computation = computation

    def answers(self) -> Answers:
        return self._computation.answers()


def test_a_device_that_works_by_itself_and_draws_makes_the_hosts_pictures(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [core.image(color) for color in range(BATCH + 2)]
    core.job("host", [*images, core.image(broken=True)], format="png", top_k=2)
    assert core.run(core.claim("host"))
    monkeypatch.setattr(pipeline, "explain_classes", lambda *a, **named: Overlapping(explain_classes(*a, **named)))
    monkeypatch.setattr(stages, "drawn_by_device", lambda _network, spec: spec.outputs)
    core.job("device", [*images, core.image(broken=True)], format="png", top_k=2, raw=True)
    assert core.run(core.claim("device"))
    assert counts(core, "device") == counts(core, "host") == (BATCH + 2, 1)

    by_host, by_device = (objects(core, job) for job in ("host", "device"))
    pictures = [key for key in by_device if key.endswith(".png")]
    assert [key.rsplit("/", 2)[1:] for key in pictures] == [key.rsplit("/", 2)[1:] for key in by_host]
    assert len(by_device) - len(pictures) == 2 * (BATCH + 2)
    for one, other in zip(by_host, pictures, strict=True):
        a, b = (cv2.imdecode(np.frombuffer(core.storage.get(key), np.uint8), cv2.IMREAD_COLOR) for key in (one, other))
        assert a is not None
        assert b is not None
        away = np.abs(a.astype(int) - b).max()
        assert away <= (0 if one.endswith("-gb.png") else 8), one  # a level of the heatmap is a step of 4 to 8


def test_an_error_of_a_device_that_works_by_itself_is_nobodys_image(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Overlapping):
        def answers(self) -> Answers:
            raise DeviceError("cuda failed: an illegal memory access was encountered")

    monkeypatch.setattr(pipeline, "explain_classes", lambda *a, **named: Broken(explain_classes(*a, **named)))
    core.job("fails", [core.image(color) for color in range(BATCH + 1)])
    with pytest.raises(DeviceError):
        core.run(core.claim("fails"))
    assert counts(core, "fails") == (0, 0)
    # What was held for the batch is free again: the next chunk runs.
    monkeypatch.setattr(pipeline, "explain_classes", explain_classes)
    core.job("works", [core.image(1)])
    assert core.run(core.claim("works"))
    assert not core.queue._behind


def test_a_batch_that_outlives_its_chunk_leaves_the_next_ones_file_alone(core: Core, tmp_path: Path) -> None:
    for name in ("gone", "next"):
        core.job(name, [core.image(1)])
    busy = tmp_path / "busy"
    with Lease(core.table, core.claim("gone"), claim_id="core/gone", lease_s=30, busy_file=busy) as lease:
        batch = lease.batch(5)
        batch.__enter__()
    with Lease(core.table, core.claim("next"), claim_id="core/next", lease_s=30, busy_file=busy) as other:
        other.step(1000)
        until = busy.stat().st_mtime
        batch.__exit__(None, None, None)
        assert busy.stat().st_mtime == until


def test_images_given_up_behind_the_device_make_room_for_others(core: Core) -> None:
    """Else three uploads that hang would stop a device of batch size one for ever."""
    core.job("behind", [core.image(color) for color in range(BATCH)])
    core.model.gate.clear()
    run = core.begin(core.claim("behind"))
    core.wait_until(core.model.reached.is_set)
    (stream,) = core.queue._streams
    tasks = run_of(core).in_flight()
    assert core.queue._behind[stream.key] == BATCH
    for task in tasks:
        assert core.pipeline.give_up(task, stream)
    assert core.queue._behind[stream.key] == 0
    core.model.gate.set()
    assert run.result(60) is False
    assert core.queue._behind[stream.key] == 0


def run_of(core: Core) -> ChunkContext:
    assert core.chunk is not None
    return core.chunk


# -- spans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", ["none", "tar"])
def test_each_stage_of_a_chunk_is_one_span_with_its_sums(core: Core, pack: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    core.job("spans", [*(core.image(color) for color in range(9)), core.image(broken=True)], pack=pack)
    with OtlpTraces(provider).span("chunk") as span:
        core.run(core.claim("spans"), span=span)
    spans = {each.name: dict(each.attributes or {}) for each in exporter.get_finished_spans()}
    assert (spans["chunk"]["gradcam.done"], spans["chunk"]["gradcam.failed"]) == (9, 1)
    images = {name: facts.get("gradcam.images") for name, facts in spans.items() if name != "chunk"}
    upload = {"upload": 9} if pack == "none" else {"upload": None}
    assert images == {
        "fetch": 10, "decode": 10, "explain": 9, "render": 9, "encode": 9, **upload, "record": None, "commit": None,
    }  # fmt: skip
    assert spans["explain"]["gradcam.times"] == len(core.model.batches)
    timings = core.table.queries.status("spans").stages
    for stage in ("fetch", "decode", "explain", "render", "encode"):
        assert spans[stage]["gradcam.seconds"] == pytest.approx(timings[stage].work_s, abs=0.01)
