"""Work at the chunks that messages point to. What becomes of each kind of fault is decided here.

A process has up to two chunks in hand. The second is taken when all images of the first are on their way, so that its
first images are there when the device is done with the first, and the first's last pictures are uploaded meanwhile.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.model.errors import JobError, NotHere, OtherVersion, ServiceError, WorkerError
from producer.jobs.model.states import JobState
from producer.jobs.model.waits import waiting
from producer.jobs.store.finalize import finalize, versions
from producer.jobs.table.claims import OnlyRefusedJobs
from worker.chunks.faults import FaultHandler
from worker.chunks.lease import Lease, LeaseLost
from worker.chunks.pipeline import Hand, Pipeline
from worker.chunks.wait_reporter import WaitReporter
from worker.device.batch_size import BatchSizes
from worker.device.batches import memory_allows_twice
from worker.models.loader import WEIGHTS_TIMEOUT_S, Models
from worker.supervise.grace import CHILD_SHARE, Grace
from worker.supervise.health import BUSY

if TYPE_CHECKING:
    from producer.jobs.broker.celery_app import Pointer
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable
    from worker.models.networks import Network
    from worker.settings import WorkerSettings
    from worker.supervise.health import Health

log = logging.getLogger(__name__)

#: The exit code of a process that makes way for a new one, having recorded and given back everything.
RETIRED = 75
#: A chunk whose turn it is may be taken by another process in the same moment; so often another one is asked for.
_TURNS = 5
#: How often a process with a hand free looks for another message.
_LOOK_EVERY_S = 0.25
#: How long a process that comes to an end holds up its parent's next message.
_STOPPING_PAUSE_S = 0.5
#: Called with queue, job, chunk and the time published.
Publish = Callable[[str, str, int, float], None]
#: Gives the next message and its queue, None when there is none.
Take = Callable[[], "tuple[str, Pointer] | None"]


@dataclass
class _Taken:
    """What one hand does."""

    #: The number of the hand.
    slot: int
    #: The lower, the earlier taken.
    order: int
    #: What it claims with.
    claim_id: str
    #: Whether all its images are on their way.
    fed: bool = False
    #: Whether images are in it that may have killed a process: nothing is begun beside those.
    suspicious: bool = False
    #: What it has in hand.
    claim: Claim | None = None


class Work:
    """What a worker process keeps between chunks: models, connections, pools."""

    def __init__(
        self,
        table: JobTable,
        storage: Storage,
        settings: WorkerSettings,
        health: Health,
        publish: Publish,
        take: Take,
    ) -> None:
        self._table, self._storage, self._settings, self._health = table, storage, settings, health
        self._publish, self._take = publish, take
        self._blame = FaultHandler(table, storage, health, settings.name)
        self._fetcher = Fetcher(
            settings.fetch_policy, storage.client, store_answers=storage.answers, fast_path=storage.fast_path
        )
        self._models = Models(self._fetcher, settings)
        sizes = BatchSizes(
            settings.largest_batch,
            recall=self._recall,
            remember=table.registry.note_batch_size,
            allows=memory_allows_twice,
        )
        self._pipeline = Pipeline(
            table, storage, self._fetcher, sizes, settings, stop=self.stopping, at_work=self._health.at_work
        )
        WaitReporter(table.registry, settings.name, health).start()
        if settings.drain_file is not None:
            Grace(settings.drain_file, settings.grace_s, CHILD_SHARE, self._give_up).start()
        self._threads = ThreadPoolExecutor(len(BUSY), thread_name_prefix="chunk")
        self._orders = itertools.count()
        self._parent = os.getppid()
        #: Guards all that follows, and tells of its changes.
        self._changed = threading.Condition()
        self._in_hand: dict[int, _Taken] = {}
        self._last_end = 0.0

    def stopping(self) -> bool:
        """Whether this process comes to an end: the launcher asked for it, or it makes way for a new one."""
        return self._blame.retires is not None or self._drained()

    def _drained(self) -> bool:
        # A process whose parent is gone is one that nobody watches or can stop any more. That the launcher's folder is
        # gone says nothing: it may have been tidied away, and is made again.
        drain = self._settings.drain_file
        return os.getppid() != self._parent or (drain is not None and drain.exists())

    def work(self, queue: str, job: str, chunk: int, delivery: str) -> None:
        """Work at the chunk whose turn it is, and at others while there are messages; returns when there is none.

        A message that is old, doubled or forged harms nothing.

        Args:
            queue: Where the message was read.
            job: What the message says.
            chunk: What the message says.
            delivery: What claim ids begin with; the process's parent knows it, too.
        """
        if self.stopping():
            # For others, now: what is not sent is found by the reconciler, but later.
            with suppress(ServiceError):
                self._publish("recovery", job, chunk, self._table.registry.now())
            # The parent may read on, and nobody else be there: the same message must not go in a circle.
            time.sleep(_STOPPING_PAUSE_S)
            return
        self._begin(queue, job, chunk, delivery)
        while True:
            self._wait(lambda: not self._has_room())
            if self._has_room() and (found := self._next()) is not None:
                self._begin(found[0], found[1].job, found[1].chunk, delivery)
                continue
            if not self._in_hand:
                break
            self._wait(self._has_room)
        self._rest()
        if why := self._blame.retires or self._blame.worn_out:
            log.warning("action=retired %s; this process makes way for a new one.", why)
            os._exit(RETIRED)

    def preload(self) -> None:
        """Load the models that the settings name; what cannot be loaded is only warned of."""
        self._models.preload(self._settings.preload)

    # -- hands ---------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        """Whether another chunk may be begun."""
        taken = list(self._in_hand.values())
        return (
            len(taken) < len(BUSY)
            and all(each.fed and not each.suspicious for each in taken)
            and not self._blame.paused
            and not self.stopping()
            and self._blame.worn_out is None
        )

    def _wait(self, while_: Callable[[], bool]) -> None:
        """Wait for a change, a quarter of a second at most; only with something in hand, and while it is so."""
        with self._changed:
            if self._in_hand and while_():
                self._changed.wait(_LOOK_EVERY_S)

    def _next(self) -> tuple[str, Pointer] | None:
        try:
            return self._take()
        except ServiceError:
            return None  # a Redis that is away is a fault that the chunk in hand will tell
        except Exception as error:
            self._blame.own("", -1, error)
            return None

    def _begin(self, queue: str, job: str, chunk: int, delivery: str) -> None:
        with self._changed:
            slot = next(slot for slot in range(len(BUSY)) if slot not in self._in_hand)
            order = next(self._orders)
            taken = self._in_hand[slot] = _Taken(slot, order, f"{delivery}/{order}")
        self._threads.submit(self._handle, taken, queue, job, chunk)

    def _handle(self, taken: _Taken, queue: str, job: str, chunk: int) -> None:
        try:
            for _ in range(_TURNS):
                turn = self._turn(queue, job, chunk)
                if turn is None or self._try(taken, *turn):
                    return
            self._give(queue, job, chunk)
        except Exception as error:
            self._blame.own(job, chunk, error)
        finally:
            with self._changed:
                del self._in_hand[taken.slot]
                self._changed.notify_all()

    def _turn(self, queue: str, job: str, chunk: int) -> tuple[str, int] | None:
        """Which chunk a message is worth to us. One that only others can make use of is given back, for them."""
        name = self._settings.name
        turn = self._table.next_chunk(queue, job, chunk, exact=queue == "recovery", worker=name)
        if not isinstance(turn, OnlyRefusedJobs):
            return turn
        self._give(turn.queue, job, chunk)
        # Another class may have something: else its messages would wait behind these for ever.
        for other in self._settings.queues:
            found = self._table.next_chunk(other, job, chunk, exact=False, worker=name) if other != turn.queue else None
            if isinstance(found, tuple):
                return found
        self._blame.nothing_but_left_alone()
        return None

    def _fed(self, taken: _Taken) -> None:
        with self._changed:
            taken.fed = True
            self._changed.notify_all()

    def _alone(self, taken: _Taken, lease: Lease) -> None:
        """Wait until nothing else is in hand or under way. The other never waits so: none is begun beside suspects."""
        with self._changed:
            while not self._changed.wait_for(lambda: list(self._in_hand) == [taken.slot], timeout=_LOOK_EVERY_S):
                lease.step(self._settings.item_timeout_s)
        # What a chunk had begun that broke off goes on to its end.
        while self._pipeline.under_way() and not self._pipeline.hanging:
            lease.step(self._settings.item_timeout_s)
            time.sleep(_LOOK_EVERY_S)

    # -- one chunk -----------------------------------------------------------------------------------------------

    def _try(self, taken: _Taken, job: str, chunk: int) -> bool:
        """Work at a chunk; False when there was nothing to do at it, so that another may be tried."""
        worked = True
        try:
            try:
                worked = self._work(taken, job, chunk)
            except OtherVersion as error:
                self._blame.job(job, error)
                return False
            finalize(self._table, self._storage, job, self._settings.name)
        except LeaseLost:
            log.info("action=lease_lost job=%s chunk=%d Not ours any more.", job, chunk)
        except (WorkerError, ServiceError) as error:
            self._blame.own(job, chunk, error)
        if self._pipeline.hanging:
            self._blame.retires = f"{self._pipeline.hanging} threads hang at images"
        return worked

    def _work(self, taken: _Taken, job: str, chunk: int) -> bool:
        found = self._table.queries.spec(job)
        if found is None or found[1] is not JobState.RUNNING:
            return False
        spec = found[0]
        settings = self._settings
        claim = self._table.claim(job, chunk, spec, claim_id=taken.claim_id, lease_s=settings.lease_s)
        if claim is None:
            return False
        taken.suspicious, taken.claim = bool(claim.suspects), claim
        busy_file = settings.busy_files[taken.slot] if settings.busy_files else None
        try:
            with Lease(
                self._table, claim, claim_id=taken.claim_id, lease_s=settings.lease_s, busy_file=busy_file
            ) as lease:
                self._check_store(spec)
                network = self._load(taken, claim, lease)
                if self.stopping():
                    self._release(claim)
                    return True
                self._annotate(claim, network)
                since = time.monotonic()
                complete = self._pipeline.run(
                    Hand(
                        claim,
                        network,
                        lease,
                        order=taken.order,
                        since=since,
                        fed=lambda: self._fed(taken),
                        alone=lambda: self._alone(taken, lease),
                    )
                )
        except LeaseLost:
            self._release(claim)
            raise
        except Exception as error:
            if isinstance(error, JobError) and not isinstance(error, NotHere):
                log.warning("action=job_failed job=%s The job fails: %s", job, error)
                self._table.fail(job, str(error), claim=claim)
                return True
            # The message goes to its class, and is read in its turn: what fails must not be what is tried first.
            try:
                self._blame.chunk(claim, error)
            finally:
                self._release(claim, spec.queue)
            return True
        except BaseException:
            self._release(claim)
            raise
        if complete:
            self._well(claim, since)
        else:
            self._release(claim)
        return True

    def _check_store(self, spec: JobSpec) -> None:
        if spec.store not in {"", self._storage.place}:
            raise NotHere(
                f"the job was sent for pictures in {spec.store}, the workers write to {self._storage.place}: "
                "give both the same GRADCAM_S3_BUCKET and GRADCAM_S3_PREFIX"
            )
        self._blame.check_bucket()

    def _load(self, taken: _Taken, claim: Claim, lease: Lease) -> Network:
        limit_s = WEIGHTS_TIMEOUT_S + self._settings.item_timeout_s
        if self._models.at_hand(claim.spec):
            lease.step(limit_s)  # another thread may let it go in this moment
        else:
            if claim.load_suspect:
                # Alone, so that the next death says whose fault it is, and takes nobody along.
                taken.suspicious = True
                self._alone(taken, lease)
            lease.load(limit_s)
        with waiting("a model to be loaded", server=False):
            network = self._models.get(claim.spec)
        self._blame.loaded(claim)
        return network

    def _release(self, claim: Claim, queue: str = "recovery") -> None:
        # A chunk that cannot be given back is free when its lease runs out, and what cannot be sent now is a lost
        # message like any other.
        with suppress(ServiceError):
            published_at = self._table.release(claim)
            if published_at is not None:
                self._publish(queue, claim.job, claim.chunk, published_at)

    def _give(self, queue: str, job: str, chunk: int) -> None:
        with suppress(ServiceError):
            self._publish(queue, job, chunk, self._table.registry.now())

    def _give_up(self, within_s: float) -> None:
        """The time to stop is nearly over, and a server, or a batch, does not come to its end: others begin again."""
        with self._changed:
            claims = [taken.claim for taken in self._in_hand.values() if taken.claim is not None]
        log.warning("action=stop_forced What was waited for did not come in time; %d chunks go to others.", len(claims))
        # Our parent shall not take this for a death that an image caused.
        for file in self._settings.busy_files:
            file.unlink(missing_ok=True)
        releasing = [threading.Thread(target=self._release, args=(claim,), daemon=True) for claim in claims]
        for thread in releasing:
            thread.start()
        until = time.monotonic() + within_s
        for thread in releasing:
            thread.join(max(until - time.monotonic(), 0))
        os._exit(RETIRED)

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

    # -- how this process is -------------------------------------------------------------------------------------

    def _well(self, claim: Claim, since: float) -> None:
        """Take note of a chunk that came to its end."""
        with self._changed:
            # With two in hand, the time of one chunk is that from one end to the next.
            now, last = time.monotonic(), self._last_end
            seconds, self._last_end = now - max(since, last), now
            # One that waited for its last upload while the other ended tells nothing of the other's speed.
            telling = last <= since or seconds >= (now - since) / 2
        self._blame.well(claim)
        if telling and not claim.suspects and len(claim.pending) == claim.spec.chunk_size:
            self._table.registry.note_speed(claim.spec.network, len(claim.pending) / seconds)

    def _rest(self) -> None:
        while self._blame.paused and not self._drained():
            time.sleep(0.2)

    def _recall(self, batch_key: str) -> int | None:
        with suppress(ServiceError):
            return self._table.registry.batch_size(batch_key)
        return None
