"""The wiring of a child process, the one that owns a device. It imports torch; the main process never does."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.model.errors import ServiceError
from producer.jobs.store.bucket import Storage
from producer.jobs.table.redis_scripts import make_redis_client
from producer.jobs.table.table import JobTable
from producer.jobs.tracing.traces import open_traces
from worker import metrics
from worker.chunks.consumer import ChunkConsumer
from worker.chunks.faults import FaultHandler
from worker.chunks.messages import Messages
from worker.chunks.pipeline import Pipeline
from worker.chunks.slots import Slots
from worker.chunks.wait_reporter import WaitReporter
from worker.chunks.work_meter import WorkMeter
from worker.device.batch_queue import BatchQueue
from worker.device.batch_size import BatchSizes
from worker.device.batches import memory_allows_twice, open_device
from worker.logs import RefusalLog
from worker.models.loader import Models
from worker.supervise.grace import CHILD_SHARE, Grace

if TYPE_CHECKING:
    from producer.jobs.model.settings import Connections
    from worker.chunks.chunk import ImageTask
    from worker.chunks.messages import Pop, Publish
    from worker.settings import WorkerSettings
    from worker.supervise.health import Health

log = logging.getLogger(__name__)

#: How often it is asked anew whether this process was told to stop.
_LOOK_EVERY_S: Final = 0.05


def make_consumer(
    connections: Connections,
    settings: WorkerSettings,
    health: Health,
    *,
    publish: Publish,
    pop: Callable[[JobTable], Pop],
) -> ChunkConsumer:
    """Open the device, connect, and put together what consumes messages; its threads run from now on.

    Args:
        connections: Where Redis and the store are.
        settings: The worker's.
        health: Where this process says how it is.
        publish: Sends a message.
        pop: Gives what reads the next message of a job table's Redis.

    Raises:
        WorkerError: The device cannot be used.
        SettingsError: A variable of OpenTelemetry cannot be used.
    """
    traces = open_traces(connections.traces, "gradcam-worker", partial(log.warning, "action=traces_lost %s"))
    device = open_device(settings.device)
    storage = Storage.from_settings(connections, connections=2 * settings.io_threads, failed=metrics.store_failed)
    # A Redis that is away just now is no fault of this process: its first chunk waits for it.
    table = JobTable(make_redis_client(connections))
    fetcher = Fetcher(
        settings.fetch_policy.model_copy(update={"own_place": (storage.bucket, storage.prefix)}),
        storage.client,
        store_answers=storage.answers,
        object_data=storage.object_data,
        refused=RefusalLog().tell,
    )

    sizes = _batch_sizes(table, settings)
    queue: BatchQueue[ImageTask] = BatchQueue(lambda key: sizes.size(key.size))
    slots = Slots(settings.slots, drained=_drained(settings), hungry=queue.hungry)
    meter = WorkMeter()

    def computed(network: str, images: int, seconds: float) -> None:
        health.at_work()
        meter.computed(network, images, seconds)

    def work() -> str:
        return json.dumps({**meter.facts(), "in_hand": sum(len(claim.pending) for claim in slots.claims())})

    pipeline = Pipeline(
        fetcher,
        storage,
        queue,
        sizes,
        slots,
        io_threads=settings.io_threads,
        item_timeout_s=settings.item_timeout_s,
        computed=computed,
    )
    consumer = ChunkConsumer(
        table,
        storage,
        settings,
        slots=slots,
        messages=Messages(
            table, publish, pop(table), queues=settings.queues, worker=settings.name, passed_over=slots.passed_over
        ),
        models=Models(fetcher, settings, device),
        pipeline=pipeline,
        faults=FaultHandler(table, storage, health, slots, settings.name),
        traces=traces,
    )
    WaitReporter(table.registry, settings.name, health, work).start()
    if settings.drain_file is not None:
        Grace(settings.drain_files, settings.grace_s, CHILD_SHARE, consumer.give_up).start()
    return consumer


def _drained(settings: WorkerSettings) -> Callable[[], bool]:
    """Whether this process was told to stop, or its parent is gone: then nobody watches it or can stop it any more."""
    parent, files = os.getppid(), settings.drain_files

    looked, told = 0.0, False

    def drained() -> bool:
        nonlocal looked, told
        # Asked twice an image; the answer may be a twentieth of a second old.
        if (now := time.monotonic()) - looked > _LOOK_EVERY_S:
            # That the launcher's folder is gone says nothing: it may have been tidied away, and is made again.
            looked, told = now, os.getppid() != parent or any(file.exists() for file in files)
        return told

    return drained


def _batch_sizes(table: JobTable, settings: WorkerSettings) -> BatchSizes:
    def recall(batch_key: str) -> int | None:
        with suppress(ServiceError):
            return table.registry.batch_size(batch_key)
        return None

    return BatchSizes(
        settings.largest_batch,
        recall=recall,
        remember=table.registry.note_batch_size,
        allows=memory_allows_twice,
    )
