"""Consume messages: claim the chunk that each lets us take, run it, and say whose fault it was if it broke off.

A process has several chunks in flight (`slots.py`). The next is taken when all images of those before are on their way,
so that its first images are there when the device is done with theirs, while their last pictures are uploaded.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Final

from producer.jobs.fetch.pace import interruptible
from producer.jobs.model.errors import Interrupted, JobError, NotHere, OtherVersion, ServiceError, WorkerError
from producer.jobs.model.states import JobState
from producer.jobs.model.text import counted
from producer.jobs.model.waits import waiting
from producer.jobs.store.finalize import finalize, versions
from producer.jobs.table.claims import OnlyRefusedJobs
from producer.jobs.tracing.traces import CHUNKS_IN_TRACE, FLUSH_WITHIN_S
from worker.chunks.chunk import ChunkContext, longest_stage_s
from worker.chunks.chunk_run import ChunkRun
from worker.chunks.lease import Lease, LeaseLost
from worker.chunks.messages import Message
from worker.chunks.recorder import ResultRecorder
from worker.chunks.shard import Shard
from worker.chunks.stages import shard_of
from worker.models.loader import WEIGHTS_TIMEOUT_S, is_pinned, other_weights

if TYPE_CHECKING:
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable
    from producer.jobs.tracing.traces import Span, Traces
    from worker.chunks.faults import FaultHandler
    from worker.chunks.messages import Messages
    from worker.chunks.pipeline import Pipeline
    from worker.chunks.slots import Slot, Slots
    from worker.models.loader import Fetched, Models
    from worker.models.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

#: The exit code of a process that makes way for a new one, having recorded and given back everything.
RETIRED: Final = 75
#: A chunk may be taken by another process in the same moment; so often another one is asked for.
_CHUNKS_TRIED: Final = 5
#: How often a process with a free slot looks for another message.
_LOOK_EVERY_S: Final = 0.25
#: How long a process that comes to an end holds up its parent's next message.
_STOPPING_PAUSE_S: Final = 0.5


class ChunkConsumer:
    """Works at chunks while there are messages; one per process.

    Args:
        table: The job table.
        storage: Our bucket.
        settings: The worker's.
        slots: What is in flight.
        messages: Which chunks there are for us.
        models: The models in memory.
        pipeline: What images go through.
        faults: What follows from an error.
        traces: Where the span of each chunk goes.
    """

    def __init__(
        self,
        table: JobTable,
        storage: Storage,
        settings: WorkerSettings,
        *,
        slots: Slots,
        messages: Messages,
        models: Models,
        pipeline: Pipeline,
        faults: FaultHandler,
        traces: Traces,
    ) -> None:
        self._table, self._storage, self._settings = table, storage, settings
        self._slots, self._messages, self._models = slots, messages, models
        self._pipeline, self._faults, self._traces = pipeline, faults, traces
        self._threads = ThreadPoolExecutor(settings.slots, thread_name_prefix="chunk")
        self._ends = threading.Lock()
        #: When a chunk last came to its end, in seconds of the monotonic clock.
        self._last_end = 0.0

    def consume(self, message: Message, delivery: str) -> None:
        """Work at the chunk that a message lets us take, and at others while there are messages.

        Args:
            message: What Celery has read.
            delivery: What claim ids begin with; the process's parent knows it, too.
        """
        if self._slots.stopping():
            # For others, now: what is not sent is found by the reconciler, but later.
            self._messages.give_back(Message("recovery", message.job, message.chunk))
            # The parent may read on, and nobody else be there: the same message must not go in a circle.
            time.sleep(_STOPPING_PAUSE_S)
            return
        self._start(message, delivery)
        while True:
            if self._slots.wait_for_room(_LOOK_EVERY_S) and (found := self._next()) is not None:
                self._start(found, delivery)
                continue
            if self._slots.empty():
                break
            self._slots.wait_for_change(_LOOK_EVERY_S)
        self._rest()
        if why := self._slots.why_it_ends():
            log.warning("action=retired %s; this process makes way for a new one.", why)
            self.stop()
            os._exit(RETIRED)

    def stop(self) -> None:
        """Tell what has not been told yet: the process ends."""
        self._traces.flush()

    def preload(self, names: Sequence[str]) -> None:
        """Load models before a job asks for them; what cannot be loaded is only warned of."""
        self._models.preload(names)

    def give_up(self, within_s: float) -> None:
        """End now: a server, or a batch, does not come to its end. Others get the chunks in flight."""
        claims = self._slots.claims()
        log.warning("action=stop_forced What was waited for did not come in time; %d chunks go to others.", len(claims))
        # Our parent shall not take this for a death that an image caused.
        for file in self._settings.busy_files:
            file.unlink(missing_ok=True)
        until = time.monotonic() + within_s
        self._messages.release_all(claims, within_s=within_s)
        self._traces.flush(min(max(until - time.monotonic(), 0), FLUSH_WITHIN_S))
        os._exit(RETIRED)

    def _next(self) -> Message | None:
        try:
            return self._messages.next()
        except Exception as error:
            self._faults.own_fault("", -1, error)
            return None

    def _start(self, message: Message, delivery: str) -> None:
        self._threads.submit(self._process_message, self._slots.take(delivery), message)

    def _rest(self) -> None:
        while self._slots.paused() and not self._slots.told_to_stop():
            time.sleep(_LOOK_EVERY_S)

    # -- one message -----------------------------------------------------------------------------------------------

    def _process_message(self, slot: Slot, message: Message) -> None:
        try:
            for _ in range(_CHUNKS_TRIED):
                found = self._messages.chunk_for(message)
                if isinstance(found, OnlyRefusedJobs):
                    self._faults.only_for_others()
                    return
                if found is None or self._process_chunk(slot, *found):
                    return
            self._messages.give_back(message)
        except Exception as error:
            self._faults.own_fault(message.job, message.chunk, error)
        finally:
            self._slots.free(slot)

    def _process_chunk(self, slot: Slot, job: str, chunk: int) -> bool:
        """Work at a chunk; False when there was nothing to do, so that another may be tried."""
        try:
            claim = self._claim(slot, job, chunk)
            if claim is None:
                return False
            self._run_claimed(slot, claim)
            finalize(self._table, self._storage, job, self._settings.name)
        except OtherVersion as error:
            self._faults.leave_to_others(job, error)
            return False
        except LeaseLost:
            log.info("action=lease_lost job=%s chunk=%d Not ours any more.", job, chunk)
        except (WorkerError, ServiceError) as error:
            self._faults.own_fault(job, chunk, error)
        if hanging := self._slots.hanging():
            self._slots.retire(counted(hanging, "thread hangs", "threads hang") + " at images")
        return True

    def _claim(self, slot: Slot, job: str, chunk: int) -> Claim | None:
        found = self._table.queries.spec(job)
        if found is None or found[1] is not JobState.RUNNING:
            return None
        claim = self._table.claim(job, chunk, found[0], claim_id=slot.claim_id, lease_s=self._settings.lease_s)
        if claim is not None:
            self._slots.claimed(slot, claim)
        return claim

    def _run_claimed(self, slot: Slot, claim: Claim) -> None:
        """Run a claimed chunk, and give back what of it is not done.

        Raises:
            LeaseLost: It is not ours any more.
        """
        try:
            with self._span(claim) as span:
                complete = self._run(slot, claim, span)
                span.note(complete=complete)
        except LeaseLost:
            self._messages.release(claim)
            raise
        except Interrupted as why:
            log.info("action=given_back job=%s chunk=%d Given back: %s.", claim.job, claim.chunk, why)
            self._messages.release(claim)
            return
        except Exception as error:
            self._broke_off(claim, error)
            return
        except BaseException:
            self._messages.release(claim)
            raise
        if not complete:
            self._messages.release(claim)

    def _span(self, claim: Claim) -> AbstractContextManager[Span]:
        settings = self._settings
        return self._traces.span(
            "chunk",
            parent=claim.traceparent,
            apart=claim.chunk >= CHUNKS_IN_TRACE,
            job=claim.job,
            chunk=claim.chunk,
            attempt=claim.attempt,
            images=len(claim.pending),
            network=claim.spec.network,
            device=settings.device,
            worker=settings.name,
            complete=False,
        )

    def _broke_off(self, claim: Claim, error: Exception) -> None:
        """Say whose fault it was: the job's, or perhaps ours."""
        if isinstance(error, JobError) and not isinstance(error, NotHere):
            log.warning("action=job_failed job=%s The job fails: %s", claim.job, error)
            self._table.fail(claim.job, str(error), claim=claim)
            return
        try:
            self._faults.chunk_broke_off(claim, error)
        finally:
            # To the end of its priority's queue: what fails must not be what is tried first.
            self._messages.release(claim, claim.spec.queue)

    # -- one chunk -------------------------------------------------------------------------------------------------

    def _run(self, slot: Slot, claim: Claim, span: Span) -> bool:
        """Load the model and explain the chunk; whether all of it is committed."""
        settings = self._settings
        busy_file = settings.busy_files[slot.number] if settings.busy_files else None
        with Lease(self._table, claim, claim_id=slot.claim_id, lease_s=settings.lease_s, busy_file=busy_file) as lease:
            self._check_store(claim.spec)
            network = self._load(slot, claim, lease, span)
            if self._slots.stopping():
                return False
            self._annotate(claim, network)
            chunk = ChunkContext(claim, network, lease, order=slot.order, since=time.monotonic(), span=span)
            with self._shard(chunk) as shard:
                recorder = ResultRecorder(
                    self._table,
                    self._storage,
                    claim,
                    lease,
                    lease_s=settings.lease_s,
                    commit_every_s=settings.commit_every_s,
                    shard=shard,
                    span=span,
                )
                complete = ChunkRun(
                    chunk,
                    self._pipeline,
                    recorder,
                    self._slots,
                    slot,
                    io_threads=settings.io_threads,
                    item_timeout_s=settings.item_timeout_s,
                ).run()
        if complete:
            self._went_well(claim, chunk.since)
        return complete

    def _shard(self, chunk: ChunkContext) -> AbstractContextManager[Shard | None]:
        claim = chunk.claim
        if claim.spec.pack == "none":
            return nullcontext()
        return Shard(self._storage, shard_of(self._storage, claim), hold=chunk.lease.hold)

    def _check_store(self, spec: JobSpec) -> None:
        if spec.store not in {"", self._storage.place}:
            raise NotHere(
                f"the job was sent for pictures in {spec.store}, the workers write to {self._storage.place}: "
                "give both the same GRADCAM_S3_BUCKET and GRADCAM_S3_PREFIX"
            )
        self._faults.check_bucket()

    def _load(self, slot: Slot, claim: Claim, lease: Lease, span: Span) -> Network:
        """The model of a claim's job; its weights are fetched first, while other chunks are worked at.

        Raises:
            Interrupted: The chunk is not ours any more, or goes back for now.
            JobError: As `Models.get`; also where the job is explained by other weights.
        """
        spec, limit_s = claim.spec, WEIGHTS_TIMEOUT_S + self._settings.item_timeout_s
        open_ = is_pinned(spec)
        pinned = self._table.queries.pinned_weights(claim.job) if open_ else None
        with ExitStack() as held:
            fetched = None
            if self._models.at_hand(spec, pinned):
                lease.step(limit_s)  # another thread may let it go in this moment
            else:
                with span.timed("weights"):
                    fetched = self._fetch(slot, claim, lease, held, pinned)
                if claim.load_suspect:
                    # Alone, so that the next death says whose fault it is, and takes nobody along.
                    step_s = self._settings.item_timeout_s
                    self._slots.wait_until_exclusive(slot, lambda: lease.step(step_s), limit_s=longest_stage_s(step_s))
                lease.step(limit_s)
            with waiting("a model to be loaded", server=False), span.timed("model"):
                # Nothing is marked before: a process that dies until then says nothing of the weights.
                network = self._models.get(spec, fetched, pinned, lambda: lease.load(self._settings.load_timeout_s))
        self._faults.model_loaded(claim)
        if open_:
            self._pin(claim, network.weights_digest)
        return network

    def _fetch(self, slot: Slot, claim: Claim, lease: Lease, held: ExitStack, pinned: str | None) -> Fetched:
        """Bring the weights of a claim's job to this machine, where they stay until `held` is closed."""
        limit_s = WEIGHTS_TIMEOUT_S + self._settings.item_timeout_s

        def check() -> None:
            if self._slots.stopping():
                raise Interrupted("this process stops")
            if self._slots.gives_way(slot):
                raise Interrupted("weights of a job of higher priority are fetched first")
            lease.look()

        lease.fetch(limit_s)
        if not self._slots.begin_fetch(slot):
            raise Interrupted("weights of other jobs are fetched first")
        with waiting("weights to be fetched", server=False), interruptible(check):
            fetched = held.enter_context(self._models.fetched(claim.spec, pinned))

        def meanwhile() -> None:
            check()
            lease.step(limit_s)

        self._slots.end_fetch(slot, meanwhile)
        return fetched

    def _pin(self, claim: Claim, sha256: str) -> None:
        """Let all workers explain the job by these weights, or say that others have begun with other ones."""
        pinned = self._table.pin_weights(claim, sha256)
        if pinned is None:
            raise LeaseLost
        if pinned != sha256:
            raise other_weights(claim.spec, pinned, sha256)

    def _annotate(self, claim: Claim, network: Network) -> None:
        self._table.annotate(
            claim.job,
            claim.life,
            weights_sha256=network.weights_digest,
            weights_read=network.weights_read,
            layer=",".join(network.layer_names),
            preprocessing=network.preprocessing,
            worker_versions=json.dumps(versions("gradcam-queue", "torch", "torchvision", "timm")),
        )

    def _went_well(self, claim: Claim, since: float) -> None:
        """Take note of a chunk that came to its end, and of how fast it was."""
        # With several in flight, the time of one chunk is that from one end to the next.
        with self._ends:
            now, last = time.monotonic(), self._last_end
            self._last_end = now
        seconds = now - max(since, last)
        # One that waited for its last upload while another ended tells nothing of the speed.
        telling = last <= since or seconds >= (now - since) / 2
        self._faults.went_well(claim)
        if telling and not claim.suspects and len(claim.pending) == claim.spec.chunk_size:
            self._table.registry.note_speed(
                claim.spec.network,
                len(claim.pending) / seconds,
                processes=self._settings.processes_on_device,
            )
