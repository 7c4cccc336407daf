"""The core of a worker in this process: a network of a few kilobytes, everything else is real.

Claims, leases, images, pictures, manifests and commits go through the job table and the store of the test run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import nn

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.spec import JobSpec
from producer.jobs.tracing.traces import NO_SPAN, Span
from worker.chunks.chunk import ChunkContext
from worker.chunks.chunk_run import ChunkRun
from worker.chunks.lease import Lease
from worker.chunks.pipeline import Pipeline
from worker.chunks.recorder import ResultRecorder
from worker.chunks.shard import Shard
from worker.chunks.slots import Slots
from worker.chunks.stages import shard_of
from worker.device.batch_queue import BatchQueue
from worker.device.batch_size import BatchSizes
from worker.models.as_asked import preprocessed
from worker.models.networks import Network

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable
    from worker.chunks.chunk import ImageTask

SIDE = 8
LEASE_S = 30.0
#: A picture of this color makes the model fail.
BAD = 255
#: An exact size is all that counts here.
BATCH = 4


class Model(nn.Module):
    """A convolution and a head. It takes note of its batches, waits at a gate, and fails at white pictures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * (SIDE - 2) ** 2, 5)
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()
        #: White pictures wait here.
        self.bad_gate = threading.Event()
        self.bad_gate.set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        self.reached.set()
        assert self.gate.wait(60)
        if (x.amin(dim=(1, 2, 3)) >= 1).any():
            assert self.bad_gate.wait(60)
            raise ValueError("a white picture")
        logits: torch.Tensor = self.head(self.conv(x).relu().flatten(1))
        return logits


def network_of(model: Model) -> Network:
    return Network(
        name="small",
        model=model.eval().requires_grad_(False),
        layer=model.conv,
        layer_name="conv",
        layer_names=("conv",),
        size=(SIDE, SIDE),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize_px=SIDE,
        classes=5,
        categories=None,
        weights_digest="random",
        random=True,
        device=torch.device("cpu"),
    )


class Core:
    """What a worker process has, less Celery and the models' loader."""

    def __init__(self, table: JobTable, storage: Storage, *, item_timeout_s: float = 60.0) -> None:
        self.table, self.storage, self.item_timeout_s = table, storage, item_timeout_s
        self.model = Model()
        self.network = network_of(self.model)
        self.drained = False
        sizes = BatchSizes(BATCH, recall=lambda _key: BATCH)
        self.queue: BatchQueue[ImageTask] = BatchQueue(lambda key: sizes.size(key.size))
        self.slots = Slots(8, drained=lambda: self.drained, hungry=self.queue.hungry)
        self.pipeline = Pipeline(
            Fetcher(FetchPolicy(), storage.client, object_data=storage.object_data),
            storage,
            self.queue,
            sizes,
            self.slots,
            io_threads=4,
            item_timeout_s=item_timeout_s,
            computed=lambda *_: None,
        )
        self._pool = ThreadPoolExecutor(8)
        self._uploaded: dict[int, str] = {}
        #: The chunk that was begun last.
        self.chunk: ChunkContext | None = None

    def image(self, color: int = 100, *, broken: bool = False) -> str:
        """The address of a picture of one color."""
        number = -1 if broken else color
        if number not in self._uploaded:
            picture = np.full((SIDE, SIDE, 3), color, np.uint8)
            content = b"\xff\xd8no picture" if broken else cv2.imencode(".png", picture)[1].tobytes()
            key = f"core/{number}.png"
            self.storage.put(key, content)
            self._uploaded[number] = self.storage.uri(key)
        return self._uploaded[number]

    def job(self, name: str, uris: Sequence[str], **spec: Any) -> JobSpec:
        """A job of one chunk."""
        made = JobSpec(network="small", chunk_size=len(uris), **spec)
        self.table.create(name, made, lifetime_s=600)
        self.table.add_chunk(name, Chunk.compress(0, [uri_line(uri) for uri in uris]))
        self.table.close(name, chunks=1, items=len(uris))
        return made

    def claim(self, name: str, *, lease_s: float = LEASE_S) -> Claim:
        found = self.table.queries.spec(name)
        assert found is not None
        claim = self.table.claim(name, 0, found[0], claim_id=f"core/{name}", lease_s=lease_s)
        assert claim is not None
        return claim

    def run(self, claim: Claim, *, commit_every_s: float = 60.0, span: Span = NO_SPAN) -> bool:
        """Run a claimed chunk; whether all of it is committed."""
        slot = self.slots.take("core")
        self.slots.claimed(slot, claim)
        try:
            with ExitStack() as stack:
                lease = stack.enter_context(Lease(self.table, claim, claim_id=f"core/{claim.job}", lease_s=LEASE_S))
                shard = None
                if claim.spec.pack == "tar":
                    shard = stack.enter_context(Shard(self.storage, shard_of(self.storage, claim), hold=lease.hold))
                recorder = ResultRecorder(
                    self.table,
                    self.storage,
                    claim,
                    lease,
                    lease_s=LEASE_S,
                    commit_every_s=commit_every_s,
                    shard=shard,
                    span=span,
                )
                network = preprocessed(self.network, claim.spec.mean, claim.spec.std)
                now = time.monotonic()
                chunk = self.chunk = ChunkContext(claim, network, lease, order=slot.order, since=now, span=span)
                return ChunkRun(
                    chunk,
                    self.pipeline,
                    recorder,
                    self.slots,
                    slot,
                    io_threads=4,
                    item_timeout_s=self.item_timeout_s,
                ).run()
        finally:
            self.slots.free(slot)

    def begin(self, claim: Claim, *, commit_every_s: float = 60.0) -> Future[bool]:
        """Run a claimed chunk in a thread of its own."""
        return self._pool.submit(self.run, claim, commit_every_s=commit_every_s)

    def wait_until(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < until, "it did not happen within 30 s"
            time.sleep(0.01)
