"""Work at the chunk that a message points to. What becomes of each kind of fault is decided here."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from producer.jobs.errors import DeviceError, GradcamError, JobError, ServiceError, WorkerError
from producer.jobs.fetch import Fetcher
from producer.jobs.finalise import finalise, versions
from producer.jobs.states import JobState
from worker.lease import Lease, LeaseLost
from worker.models import WEIGHTS_TIMEOUT_S, Models
from worker.pipeline import Pipeline

if TYPE_CHECKING:
    from producer.jobs.storage import Storage
    from producer.jobs.table import Claim, JobTable
    from worker.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

#: A worker with a fault of its own waits this long before it tries again, twice as long each time.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
#: The exit code of a process that makes way for a new one, having recorded and given back everything.
RETIRED = 75
#: A chunk whose turn it is may be taken by another process in the same moment; so often another one is asked for.
_TURNS = 5
#: Called with job, chunk, queue and the time published.
Republish = Callable[[str, int, float], None]


class Work:
    """What a worker process keeps between chunks: models, connections, pools."""

    def __init__(self, table: JobTable, storage: Storage, settings: WorkerSettings, republish: Republish) -> None:
        self._table, self._storage, self._settings, self._republish = table, storage, settings, republish
        self._fetcher = Fetcher(settings.fetch_policy, storage.client, store_answers=storage.answers)
        self._models = Models(self._fetcher, settings)
        self._pipeline = Pipeline(table, storage, self._fetcher, settings, stop=self.stopping)
        self._pause_s = _FIRST_PAUSE_S

    def stopping(self) -> bool:
        """Whether the launcher asked this process to come to an end."""
        return self._settings.drain_file is not None and self._settings.drain_file.exists()

    def work(self, queue: str, job: str, chunk: int, claim_id: str) -> None:
        """Work at the chunk whose turn it is, if there is one; a message that is old, doubled or forged harms nothing.

        Args:
            queue: Where the message was read.
            job: What the message says.
            chunk: What the message says.
            claim_id: What the chunk is claimed with; the process's parent knows it, too.
        """
        if self.stopping():
            # For others, now: what is not sent is found by the reconciler, but later.
            with suppress(ServiceError):
                self._republish(job, chunk, self._table.roster.now())
            return
        try:
            for _ in range(_TURNS):
                turn = self._table.turn(queue, job, chunk, exact=queue == "recovery")
                if turn is None or self._try(*turn, claim_id):
                    return
        except ServiceError as error:
            self._complain(job, chunk, error)

    def _try(self, job: str, chunk: int, claim_id: str) -> bool:
        """Work at a chunk; False when there was nothing to do at it, so that another may be tried."""
        worked = True
        try:
            try:
                worked = self._work(job, chunk, claim_id)
            except JobError as error:
                log.warning("action=job_failed job=%s The job fails: %s", job, error)
                self._table.fail(job, str(error))
            finalise(self._table, self._storage, job, self._settings.name)
        except LeaseLost:
            log.info("action=lease_lost job=%s chunk=%d Not ours any more.", job, chunk)
        except (WorkerError, ServiceError) as error:
            self._complain(job, chunk, error)
        if self._pipeline.hanging:
            log.warning(
                "action=retired %d threads hang at images; this process makes way for a new one.",
                self._pipeline.hanging,
            )
            os._exit(RETIRED)
        return worked

    def _work(self, job: str, chunk: int, claim_id: str) -> bool:
        found = self._table.spec(job)
        if found is None or found[1] is not JobState.RUNNING:
            return False
        spec = found[0]
        if spec.store not in {"", self._storage.place}:
            raise JobError(
                f"the job was sent for pictures in {spec.store}, the workers write to {self._storage.place}: "
                "give both the same GRADCAM_S3_BUCKET and GRADCAM_S3_PREFIX"
            )
        settings = self._settings
        claim = self._table.claim(job, chunk, spec, claim_id=claim_id, lease_s=settings.lease_s)
        if claim is None:
            return False
        try:
            with Lease(
                self._table, claim, claim_id=claim_id, lease_s=settings.lease_s, busy_file=settings.busy_file
            ) as lease:
                lease.step(WEIGHTS_TIMEOUT_S + settings.item_timeout_s)
                network = self._models.get(spec)
                self._annotate(job, network)
                started = time.monotonic()
                complete = self._pipeline.run(claim, network, lease)
                seconds = time.monotonic() - started
        except (WorkerError, ServiceError, LeaseLost):
            self._release(claim)
            raise
        if not complete:
            self._release(claim)
        if self._pause_s > _FIRST_PAUSE_S:
            self._pause_s = _FIRST_PAUSE_S
            self._table.roster.recovered(settings.name)
        if complete and not claim.suspects and len(claim.pending) >= settings.batch_size:
            self._table.roster.note_speed(spec.network, len(claim.pending) / seconds)
        return True

    def _release(self, claim: Claim) -> None:
        published_at = self._table.release(claim)
        if published_at is not None:
            # What cannot be sent now is a lost message like any other: the reconciler finds it.
            with suppress(ServiceError):
                self._republish(claim.job, claim.chunk, published_at)

    def _complain(self, job: str, chunk: int, error: GradcamError) -> None:
        """Say what is wrong with this worker, and leave the work to others for a while."""
        log.error("action=worker_fault job=%s chunk=%d This worker cannot work: %s", job, chunk, error)
        with suppress(ServiceError):
            self._table.roster.complain(self._settings.name, str(error))
        until = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        while time.monotonic() < until and not self.stopping():
            time.sleep(0.2)
        if isinstance(error, DeviceError):
            log.warning("action=retired The device failed; this process makes way for a new one.")
            os._exit(RETIRED)

    def _annotate(self, job: str, network: Network) -> None:
        self._table.annotate(
            job,
            weights_sha256=network.weights_digest,
            layer=",".join(network.layer_names),
            worker_versions=json.dumps(versions("gradcam-queue", "torch", "torchvision", "timm")),
        )
