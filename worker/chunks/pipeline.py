"""A chunk's path, a line a stage: fetch, decode, explain, render, encode, upload, manifest, commit.

Fetching and decoding go on ahead of the device and rendering and uploading behind it, in threads of their own; the
device has a thread of its own, too, which two chunks in hand share. Objects come first, then the manifest, then the
commit: what is called done is always there.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from producer.jobs.fetch import addresses
from producer.jobs.model.errors import CrashedWorker, ItemError, ItemTimeout, ModelError, WorkerError
from producer.jobs.model.prefetch import prefetch_map
from producer.jobs.model.stage_times import IDLE
from producer.jobs.model.waits import waiting
from worker import metrics
from worker.chunks import stages
from worker.chunks.item import Image, failed
from worker.chunks.recorder import Ended, Ledger
from worker.chunks.shard import Shard
from worker.device.batches import Explained, batch_key, explain_classes, oom_halvings
from worker.device.thread import DeviceThread, Ran
from worker.models.classes import checked_class
from worker.recover.watchdog import CONVICTING, HUNG

if TYPE_CHECKING:
    from producer.jobs.fetch.fetcher import Fetcher
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable
    from worker.chunks.lease import Lease
    from worker.device.batch_size import BatchSizes
    from worker.models.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)
#: How often a future that is waited for is looked at.
_LOOK_EVERY_S = 0.5
#: Batches of one chunk in the device's row: one at work, one ready.
_ROW = 2
#: So many images are marked with one call of Redis.
_MARKED = 16
#: So many at most go through the network at once whose originals are kept to be drawn on: one may have 48 MB.
_MOST_ORIGINALS = 16
#: What came of a batch: of each image its explanations, or why there are none.
_Answers = list[list[Explained] | ModelError]


class _StoppedError(Exception):
    """This process was told to stop: what has not begun does not begin."""


@dataclass(frozen=True)
class Hand:
    """A chunk in hand, and what is needed to work at it."""

    claim: Claim
    network: Network
    lease: Lease
    #: The lower, the sooner the device works at it: the one taken first.
    order: int
    #: Since when, in seconds of the monotonic clock.
    since: float
    #: Called when its last image is on its way: another chunk's may be fetched now.
    fed: Callable[[], None]
    #: Returns as soon as no other chunk is in hand.
    alone: Callable[[], None]


class Pipeline:
    """Works off claimed chunks, up to two at a time; one per process, its pools live as long as it does."""

    def __init__(
        self,
        table: JobTable,
        storage: Storage,
        fetcher: Fetcher,
        sizes: BatchSizes,
        settings: WorkerSettings,
        *,
        stop: Callable[[], bool],
        at_work: Callable[[], None],
    ) -> None:
        self._table, self._storage, self._fetcher, self._settings, self._stop = table, storage, fetcher, settings, stop
        self._sizes, self._at_work = sizes, at_work
        #: The network whose lack of ReLUs was told of last.
        self._told = ""
        self._before = ThreadPoolExecutor(settings.io_threads, thread_name_prefix="fetch")
        self._device = DeviceThread()
        self._behind = ThreadPoolExecutor(settings.io_threads, thread_name_prefix="upload")
        #: Threads that an image keeps from ever ending; a process with one should end after its chunk.
        self.hanging = 0
        self._lock = threading.Lock()
        self._under_way = 0

    def under_way(self) -> int:
        """How many stages of images and batches are running, of all chunks, also of those that broke off."""
        return self._under_way

    @contextmanager
    def _at(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def run(self, hand: Hand) -> bool:
        """Work off a chunk.

        Returns:
            Whether all of it is committed; False when told to stop before, the rest is then still pending.

        Raises:
            LeaseLost: The chunk is not ours any more, or the job goes no further.
            JobError, WorkerError: Somebody else's fault than an image's; what was finished is committed.
        """
        with self._shard(hand) as shard:
            ledger = Ledger(
                self._table,
                self._storage,
                hand.claim,
                hand.lease,
                lease_s=self._settings.lease_s,
                commit_every_s=self._settings.commit_every_s,
                wait=partial(self._finished, hand),
                shard=shard,
            )
            try:
                self._run(hand, ledger)
            except BaseException:
                # What is finished stays finished, also under an old token; the first error is the one to tell.
                ledger.settle()
                raise
            return ledger.complete

    def _shard(self, hand: Hand) -> AbstractContextManager[Shard | None]:
        if hand.claim.spec.pack == "none":
            return nullcontext()
        return Shard(self._storage, stages.shard_of(self._storage, hand.claim), hold=hand.lease.hold)

    def _run(self, hand: Hand, ledger: Ledger) -> None:
        claim = hand.claim
        hand.lease.step(self._settings.item_timeout_s)
        images = [Image(offset, claim.items[offset]) for offset in claim.pending]
        for image in images:
            image.error = verdict(claim.suspects.get(image.offset, 0))
        ledger.end(failed(image, claim) for image in images if image.error is not None)
        left = [image for image in images if image.error is None]
        kind = batch_key(hand.network, claim.spec)
        most = sys.maxsize if claim.spec.output_size == "input" else _MOST_ORIGINALS
        healthy = [image for image in left if image.offset not in claim.suspects]
        self._stream(healthy, lambda: min(self._sizes.size(kind), most), hand, ledger)
        # Each alone, so that the next death says whose fault it is; last, so that it takes nobody along.
        suspects = [image for image in left if image.offset in claim.suspects]
        if suspects:
            hand.alone()
        for image in suspects:
            # A thread that hangs at another image would take part: the chunk goes back, and this process retires.
            if not self._stop() and not self.hanging:
                ledger.harvest(leave=0)
                self._stream([image], lambda: 1, hand, ledger)
        ledger.harvest(leave=0)
        ledger.commit()

    def _stream(self, images: Sequence[Image], size: Callable[[], int], hand: Hand, ledger: Ledger) -> None:
        """Take images through all stages in batches, until they end or this process is told to stop."""
        spec, fetchers = hand.claim.spec, self._settings.io_threads
        # What is drawn on originals keeps all of them in memory: fewer wait for the device.
        batches_ahead = 2 if spec.output_size == "input" else 1
        loaded = prefetch_map(
            self._before,
            partial(self._load, hand),
            self._fed(ledger.marked(images, at_once=_MARKED), hand),
            depth=lambda: min(batches_ahead * size() + fetchers, len(images)),
            wait=partial(self._loaded, hand.lease),
        )
        row: deque[tuple[list[Image], Future[Ran[_Answers]]]] = deque()
        with closing(loaded):
            try:
                for batch in self._batches(loaded, size, hand, ledger):
                    row.append((batch, self._submit(batch, hand)))
                    while len(row) >= _ROW:
                        self._explained(*row.popleft(), hand, ledger)
                    # At most two batches wait behind the device: memory stays flat when the store is slow.
                    ledger.harvest(leave=2 * size())
                    if self._stop():
                        break
                while row:
                    self._explained(*row.popleft(), hand, ledger)
            except _StoppedError:
                pass
            finally:
                for _, future in row:
                    future.cancel()

    # -- ahead of the device -------------------------------------------------------------------------------------

    def _fed(self, images: Iterable[Image], hand: Hand) -> Iterator[Image]:
        for image in images:
            image.waits_from_now()
            yield image
        hand.fed()

    def _batches(
        self, loaded: Generator[Image, None, None], size: Callable[[], int], hand: Hand, ledger: Ledger
    ) -> Iterator[list[Image]]:
        """Full batches of those that came this far; one that did not leaves the batch, and its place to the next."""
        batch: list[Image] = []
        for image in loaded:
            if image.error is not None or image.input is None:
                ledger.leave(failed(image, hand.claim))
                continue
            batch.append(image)
            if len(batch) >= size():
                hand.lease.step(self._settings.item_timeout_s)
                yield batch
                batch = []
        if batch:
            yield batch

    def _load(self, hand: Hand, image: Image) -> Image:
        with self._at():
            return stages.load(image, self._fetcher, hand.network, hand.claim.spec)

    def _loaded(self, lease: Lease, image: Image, future: Future[Image]) -> Image:
        stage = self._hangs(lease, image, future, stop=self._stop)
        return future.result() if stage is None else self._given_up(image, stage)

    # -- on the device -------------------------------------------------------------------------------------------

    def _submit(self, batch: list[Image], hand: Hand) -> Future[Ran[_Answers]]:
        return self._device.submit(
            lambda: self._explain(batch, hand), order=hand.order, job=hand.claim.job, since=hand.since
        )

    def _explain(self, batch: list[Image], hand: Hand) -> _Answers:
        """Runs in the device's thread."""
        if self._stop():
            raise _StoppedError
        with self._at(), waiting("the device", server=False):
            return self._explain_now(batch, hand)

    def _explain_now(self, batch: list[Image], hand: Hand) -> _Answers:
        hand.lease.step(self._settings.item_timeout_s)
        spec = hand.claim.spec
        usual = checked_class(hand.network, spec.class_id, spec.class_name)
        halvings = oom_halvings.value
        answers = explain_classes(
            hand.network,
            [image.input for image in batch if image.input is not None],
            [usual if image.asked is None else image.asked for image in batch],
            top_k=spec.top_k,
            method=spec.method,
            precision=spec.precision,
        )
        if oom_halvings.value > halvings:
            metrics.halved()
            self._sizes.too_large(batch_key(hand.network, spec), len(batch))
        return answers

    def _explained(self, batch: list[Image], future: Future[Ran[_Answers]], hand: Hand, ledger: Ledger) -> None:
        """Take a batch from the device; one whose answer cannot be used fails alone."""
        while not wait([future], timeout=_LOOK_EVERY_S).done:
            # In the row: the other chunk's batch has its own time. At work: its time runs.
            if not future.running():
                hand.lease.step(self._settings.item_timeout_s)
        ran = future.result()
        self._at_work()
        hand.lease.step(self._settings.item_timeout_s)
        if len(ran.value) != len(batch):
            raise AssertionError("a batch came back with another length")
        self._sizes.ran(batch_key(hand.network, hand.claim.spec), len(batch), ran.seconds)
        ledger.note(IDLE, ran.idle_s)
        self._tell_if_unguided(hand.network, ran.value)
        for image, answer in zip(batch, ran.value, strict=True):
            image.begun("explain", ran.began)
            image.seconds["explain"], image.input = round(ran.seconds / len(batch), 6), None
            if isinstance(answer, ModelError):
                image.error = answer
            else:
                # A label that was predicted is explained once.
                image.explained = list({each.class_id: each for each in answer}.values())
            image.waits_from_now()
            ledger.add(image, self._behind.submit(self._finish, hand, image))

    def _tell_if_unguided(self, network: Network, answers: _Answers) -> None:
        explained = next((answer[0] for answer in answers if not isinstance(answer, ModelError)), None)
        if explained is not None and explained.guided_relus == 0 and self._told != network.name:
            self._told = network.name
            log.warning("action=unguided %s has no ReLU: its `gb` pictures are the plain gradient.", network.name)

    # -- behind the device ---------------------------------------------------------------------------------------

    def _finish(self, hand: Hand, image: Image) -> Ended:
        with self._at():
            return stages.finish(image, self._storage, hand.claim, hand.network, hold=hand.lease.hold)

    def _finished(self, hand: Hand, image: Image, future: Future[Ended]) -> Ended:
        stage = self._hangs(hand.lease, image, future)
        return future.result() if stage is None else failed(self._given_up(image, stage), hand.claim)

    # -- what hangs ----------------------------------------------------------------------------------------------

    def _hangs(
        self, lease: Lease, image: Image, future: Future[Any], stop: Callable[[], bool] = lambda: False
    ) -> str | None:
        """Wait for a future; the stage in which its image takes longer than it may, None when the future is done.

        Raises:
            _StoppedError: It shall not be waited for.
        """
        limit_s = self._settings.item_timeout_s
        while not wait([future], timeout=_LOOK_EVERY_S).done:
            if stop():
                raise _StoppedError
            stage = image.overdue(limit_s)
            if stage is not None:
                return stage
            if self.hanging >= self._settings.io_threads and future.cancel():
                raise WorkerError("every thread hangs at an image; this process starts anew")
            lease.step(limit_s)
        return None

    def _given_up(self, image: Image, stage: str) -> Image:
        """The image in place of one that a thread still has in hand, and may have for ever."""
        self.hanging += 1
        limit_s = self._settings.item_timeout_s
        log.warning("action=hanging An image hangs in %s: %s", stage, addresses.redact(image.item.uri))
        error = ItemTimeout(f"{stage} takes longer than {limit_s:g} s")
        return Image(image.offset, image.item, seconds=dict(image.seconds), error=error)


def verdict(weight: int) -> ItemError | None:
    """What the deaths that an image was alone in say of it."""
    if weight >= HUNG:
        return ItemTimeout("the process that worked at it hung and had to be killed")
    if weight >= CONVICTING:
        return CrashedWorker(
            "the processes that worked at it alone died: it crashes a decoder, or needs too much memory"
        )
    return None
