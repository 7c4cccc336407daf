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

from producer.jobs.errors import DeviceError, GradcamError, JobError, ServiceError, WorkerError
from producer.jobs.fetch import Fetcher
from producer.jobs.finalise import finalise, versions
from producer.jobs.states import JobState
from producer.jobs.waits import waiting
from worker.batching import BatchSizes
from worker.device import memory_allows_twice
from worker.grace import CHILD_SHARE, Grace
from worker.health import BUSY
from worker.lease import Lease, LeaseLost
from worker.models import WEIGHTS_TIMEOUT_S, Models
from worker.pipeline import Hand, Pipeline
from worker.teller import Teller

if TYPE_CHECKING:
    from producer.jobs.queue import Pointer
    from producer.jobs.storage import Storage
    from producer.jobs.table import Claim, JobTable
    from worker.health import Health
    from worker.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

#: A worker with a fault of its own waits this long before it tries again, twice as long each time.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
#: The exit code of a process that makes way for a new one, having recorded and given back everything.
RETIRED = 75
#: A chunk whose turn it is may be taken by another process in the same moment; so often another one is asked for.
_TURNS = 5
#: How often a process with a hand free looks for another message.
_LOOK_EVERY_S = 0.25
#: Called with job, chunk and the time published.
Republish = Callable[[str, int, float], None]
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
        republish: Republish,
        take: Take,
    ) -> None:
        self._table, self._storage, self._settings, self._health = table, storage, settings, health
        self._republish, self._take = republish, take
        self._fetcher = Fetcher(
            settings.fetch_policy, storage.client, store_answers=storage.answers, direct=storage.direct
        )
        self._models = Models(self._fetcher, settings)
        sizes = BatchSizes(
            settings.largest_batch,
            recall=self._recall,
            remember=table.roster.note_batch_size,
            allows=memory_allows_twice,
        )
        self._pipeline = Pipeline(
            table, storage, self._fetcher, sizes, settings, stop=self.stopping, at_work=self._health.at_work
        )
        Teller(table.roster, settings.name, health).start()
        if settings.drain_file is not None:
            Grace(settings.drain_file, settings.grace_s, CHILD_SHARE, self._give_up).start()
        self._threads = ThreadPoolExecutor(len(BUSY), thread_name_prefix="chunk")
        self._orders = itertools.count()
        self._parent = os.getppid()
        #: Guards all that follows, and tells of its changes.
        self._changed = threading.Condition()
        self._in_hand: dict[int, _Taken] = {}
        self._pause_s = _FIRST_PAUSE_S
        self._paused_until = 0.0
        self._last_end = 0.0
        #: Why this process makes way for a new one.
        self._retires: str | None = None

    def stopping(self) -> bool:
        """Whether this process comes to an end: the launcher asked for it, or it makes way for a new one."""
        return self._retires is not None or self._drained()

    def _drained(self) -> bool:
        # A process whose parent or whose launcher's folder is gone is one that nobody watches or can stop any more.
        drain = self._settings.drain_file
        return os.getppid() != self._parent or (drain is not None and (drain.exists() or not drain.parent.exists()))

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
                self._republish(job, chunk, self._table.roster.now())
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
        if self._retires is not None:
            log.warning("action=retired %s; this process makes way for a new one.", self._retires)
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
            and time.monotonic() >= self._paused_until
            and not self.stopping()
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
            self._bug("", -1, error)
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
                turn = self._table.turn(queue, job, chunk, exact=queue == "recovery")
                if turn is None or self._try(taken, *turn):
                    return
        except ServiceError as error:
            self._complain(job, chunk, error)
        except Exception as error:
            self._bug(job, chunk, error)
        finally:
            with self._changed:
                del self._in_hand[taken.slot]
                self._changed.notify_all()

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
            except JobError as error:
                log.warning("action=job_failed job=%s The job fails: %s", job, error)
                self._table.fail(job, str(error))
            finalise(self._table, self._storage, job, self._settings.name)
        except LeaseLost:
            log.info("action=lease_lost job=%s chunk=%d Not ours any more.", job, chunk)
        except (WorkerError, ServiceError) as error:
            self._complain(job, chunk, error)
        if self._pipeline.hanging:
            self._retires = f"{self._pipeline.hanging} threads hang at images"
        return worked

    def _work(self, taken: _Taken, job: str, chunk: int) -> bool:
        try:
            found = self._table.spec(job)
        except JobError as error:
            raise WorkerError(str(error)) from None  # a worker of that version can do it
        if found is None or found[1] is not JobState.RUNNING:
            return False
        spec = found[0]
        if spec.store not in {"", self._storage.place}:
            raise JobError(
                f"the job was sent for pictures in {spec.store}, the workers write to {self._storage.place}: "
                "give both the same GRADCAM_S3_BUCKET and GRADCAM_S3_PREFIX"
            )
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
                lease.step(WEIGHTS_TIMEOUT_S + settings.item_timeout_s)
                with waiting("a model to be loaded", server=False):
                    network = self._models.get(spec)
                if self.stopping():
                    self._release(claim)
                    return True
                self._annotate(job, network)
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
        except JobError:
            raise
        except BaseException:
            self._release(claim)
            raise
        if complete:
            self._well(claim, since)
        else:
            self._release(claim)
        return True

    def _release(self, claim: Claim) -> None:
        # A chunk that cannot be given back is free when its lease runs out, and what cannot be sent now is a lost
        # message like any other.
        with suppress(ServiceError):
            published_at = self._table.release(claim)
            if published_at is not None:
                self._republish(claim.job, claim.chunk, published_at)

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

    def _annotate(self, job: str, network: Network) -> None:
        self._table.annotate(
            job,
            weights_sha256=network.weights_digest,
            layer=",".join(network.layer_names),
            worker_versions=json.dumps(versions("gradcam-queue", "torch", "torchvision", "timm")),
        )

    # -- how this process is -------------------------------------------------------------------------------------

    def _well(self, claim: Claim, since: float) -> None:
        """Take note of a chunk that came to its end."""
        with self._changed:
            had_fault, self._pause_s = self._pause_s > _FIRST_PAUSE_S, _FIRST_PAUSE_S
            # With two in hand, the time of one chunk is that from one end to the next.
            now, last = time.monotonic(), self._last_end
            seconds, self._last_end = now - max(since, last), now
            # One that waited for its last upload while the other ended tells nothing of the other's speed.
            telling = last <= since or seconds >= (now - since) / 2
        if had_fault:
            self._health.well()
            self._table.roster.recovered(self._settings.name)
        if telling and not claim.suspects and len(claim.pending) == claim.spec.chunk_size:
            self._table.roster.note_speed(claim.spec.network, len(claim.pending) / seconds)

    def _complain(self, job: str, chunk: int, error: GradcamError) -> None:
        """Say what is wrong with this worker, and leave the work to others for a while."""
        log.error("action=worker_fault job=%s chunk=%d This worker cannot work: %s", job, chunk, error)
        self._health.fault(str(error))
        with suppress(ServiceError):
            self._table.roster.complain(self._settings.name, str(error))
        with self._changed:
            # Both chunks in hand may tell of one fault.
            if time.monotonic() >= self._paused_until:
                self._paused_until = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            if isinstance(error, DeviceError):
                self._retires = "The device failed"

    def _bug(self, job: str, chunk: int, error: Exception) -> None:
        """Tell what nobody thought of, and go on slowly: it may be everywhere."""
        log.error("action=bug job=%s chunk=%d Something unexpected went wrong.", job, chunk, exc_info=error)
        self._complain(job, chunk, WorkerError(f"a bug of gradcam-queue ({type(error).__name__}); its log has more"))

    def _rest(self) -> None:
        while time.monotonic() < self._paused_until and not self._drained():
            time.sleep(0.2)

    def _recall(self, kind_of_work: str) -> int | None:
        with suppress(ServiceError):
            return self._table.roster.batch_size(kind_of_work)
        return None
