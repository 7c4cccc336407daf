"""Work at the chunk that a message points to. What becomes of each kind of fault is decided here."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs import uris
from producer.jobs.errors import DeviceError, FetchError, GradcamError, JobError, ServiceError, WorkerError
from producer.jobs.fetch import Fetcher
from producer.jobs.finalise import finalise, versions
from producer.jobs.spec import JobSpec
from producer.jobs.states import JobState
from producer.jobs.storage import sha256_of
from worker import networks
from worker.cache import ModelCache
from worker.classes import checked_class
from worker.device import choose
from worker.lease import Lease, LeaseLost
from worker.pipeline import Pipeline

if TYPE_CHECKING:
    from producer.jobs.storage import Storage
    from producer.jobs.table import Claim, JobTable
    from worker.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

#: The largest weights file that is fetched: VGG19 has 0.55 GB, the largest of torchvision 2.4 GB.
MAX_WEIGHTS_BYTES = 8 * 2**30
#: What fetching them may take: 8 GiB at 4 MB/s.
WEIGHTS_TIMEOUT_S = 1800.0
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
        self._models: ModelCache[JobSpec, Network] = ModelCache(settings.model_cache_bytes, self._load)
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
                network = self._models.get(_model_key(spec))
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

    # -- models --------------------------------------------------------------------------------------------------

    def _load(self, spec: JobSpec) -> Network:
        started = time.monotonic()
        load = partial(
            networks.load,
            spec.network,
            layer=spec.layer,
            labels=spec.labels,
            device=choose(self._settings.device),
            download=self._download,
        )
        if "://" in spec.weights:
            with tempfile.TemporaryDirectory(prefix="gradcam-weights-") as folder:
                path = self._fetch_weights(spec, Path(folder))
                try:
                    network = load(weights=path)
                except JobError as error:
                    # The user knows the address, not the place on this worker's disk.
                    given = "given with --weight-path" if spec.weights_sha256 else uris.redact(spec.weights)
                    raise JobError(str(error).replace(str(path), given)) from None
        else:
            network = load(weights=spec.weights)
        checked_class(network, spec.class_id, spec.class_name)
        log.info(
            "action=model_loaded network=%s layer=%s device=%s Loaded in %.1f s.",
            spec.network,
            network.layer_name,
            network.device,
            time.monotonic() - started,
        )
        return network

    def _fetch_weights(self, spec: JobSpec, folder: Path) -> Path:
        path = folder / "weights"
        try:
            self._download(spec.weights, path)
        except FetchError as error:
            raise JobError(f"the weights cannot be fetched: {error}; correct --weight-path") from None
        # Uploaded weights are named by their content; other bytes under that name are not what the user gave.
        if spec.weights_sha256 and sha256_of(path) != spec.weights_sha256:
            raise JobError(
                f"the weights at {uris.redact(spec.weights)} are not those that were uploaded: submit them again"
            )
        return path

    def _download(self, uri: str, path: Path) -> None:
        try:
            with path.open("wb") as file:
                self._fetcher.fetch_to(uri, file, MAX_WEIGHTS_BYTES, WEIGHTS_TIMEOUT_S)
        except OSError as error:
            raise WorkerError(f"no weights can be written to {path.parent} ({error.strerror})") from None


def _model_key(spec: JobSpec) -> JobSpec:
    """Of a spec, what decides the model: jobs that differ elsewhere share it."""
    kept = ("network", "weights", "weights_sha256", "layer", "labels", "class_id", "class_name")
    return JobSpec(**{name: getattr(spec, name) for name in kept})
