"""A chunk's path, a line a stage: fetch, decode, explain, render, encode, upload, manifest, commit.

Fetching and decoding go on ahead of the device and rendering and uploading behind it, in threads of their own; the
thread that runs a chunk owns the device. Objects come first, then the manifest, then the commit: what is called done
is always there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from producer.jobs import keys, uris
from producer.jobs.ahead import ahead
from producer.jobs.errors import GradcamError, ItemError, ModelError, StoreError, WorkerError
from producer.jobs.spec import Failure, Item, Result
from worker.decode import decode, prepare
from worker.device import Explained, explain_arrays
from worker.guesses import guesses
from worker.render import encode, normalised, render
from worker.upload import upload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from producer.jobs.fetch import Fetcher
    from producer.jobs.storage import Storage
    from producer.jobs.table import Claim, Committed, JobTable
    from worker.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass
class _Image:
    """One item on its way through the stages."""

    offset: int
    item: Item
    #: stage → seconds of work
    seconds: dict[str, float] = field(default_factory=dict)
    #: Float RGB in [0, 1], (H, W, 3).
    picture: NDArray[np.float32] | None = None
    #: What the network reads, (3, H, W).
    input: NDArray[np.float32] | None = None
    #: Why it fails alone.
    error: ItemError | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure one stage's work on this image."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - started, 6)


class LeaseLost(GradcamError):
    """The chunk is not ours any more."""


class Pipeline:
    """Works off claimed chunks; one per process, its pools live as long as it does."""

    def __init__(
        self, table: JobTable, storage: Storage, fetcher: Fetcher, settings: WorkerSettings, *, stop: Callable[[], bool]
    ) -> None:
        self._table, self._storage, self._fetcher, self._settings, self._stop = table, storage, fetcher, settings, stop
        self._before = ThreadPoolExecutor(settings.io_threads, thread_name_prefix="fetch")
        self._behind = ThreadPoolExecutor(settings.io_threads, thread_name_prefix="upload")

    def run(self, claim: Claim, network: Network) -> bool:
        """Work off a chunk.

        Returns:
            Whether all of it is committed; False when told to stop before, the rest is then still pending.

        Raises:
            LeaseLost: The chunk is not ours any more, or the job goes no further.
            JobError, WorkerError: Somebody else's fault than an image's; what was finished is committed.
        """
        ledger = _Ledger(self._table, self._storage, claim, self._settings)
        try:
            return self._run(claim, network, ledger)
        except BaseException:
            # What is finished stays finished, also under an old token; the first error is the one to tell.
            with suppress(GradcamError):
                ledger.commit()
            raise

    def _run(self, claim: Claim, network: Network, ledger: _Ledger) -> bool:
        size = self._settings.batch_size
        images = (_Image(offset, claim.items[offset]) for offset in claim.pending)
        depth = 2 * size + self._settings.io_threads
        with closing(ahead(self._before, lambda image: self._load(image, network), images, depth=depth)) as loaded:
            for batch in _batches(loaded, size):
                for image, explained in self._explain(batch, network, claim.spec.class_id):
                    ledger.add(self._behind.submit(self._finish, image, explained, claim, network))
                # At most two batches wait behind the device: memory stays flat when the store is slow.
                ledger.harvest(leave=2 * size)
                ledger.keep()
                if self._stop():
                    break
        ledger.harvest(leave=0)
        ledger.commit()
        return ledger.complete

    def _load(self, image: _Image, network: Network) -> _Image:
        with _own_fault(image):
            with image.timed("fetch"):
                data = self._fetcher.fetch(image.item.uri)
            with image.timed("decode"):
                image.picture, image.input = prepare(decode(data), network.size, network.mean, network.std)
        return image

    def _explain(
        self, batch: list[_Image], network: Network, class_id: int | None
    ) -> Iterator[tuple[_Image, Explained | None]]:
        wanted = [_class_of(image, class_id) for image in batch]
        for image, class_of in zip(batch, wanted, strict=True):
            if image.error is None and class_of is not None and network.classes <= class_of:
                image.error = ModelError(
                    f"class {class_of} is out of range: {network.name} has classes 0 to {network.classes - 1}"
                )
        good = [(image, class_of) for image, class_of in zip(batch, wanted, strict=True) if image.error is None]
        yield from ((image, None) for image in batch if image.error is not None)
        if not good:
            return
        started = time.perf_counter()
        answers = explain_arrays(network, [i.input for i, _ in good if i.input is not None], [c for _, c in good])
        share = round((time.perf_counter() - started) / len(good), 6)
        for (image, _), answer in zip(good, answers, strict=True):
            image.seconds["explain"], image.input = share, None
            if isinstance(answer, ItemError):
                image.error = answer
                yield image, None
            else:
                yield image, answer

    def _finish(self, image: _Image, explained: Explained | None, claim: Claim, network: Network) -> _Ended:
        if explained is None or image.picture is None:
            return _failed(image, claim)
        objects: dict[str, str] = {}
        with _own_fault(image):
            with image.timed("render"):
                pictures = render(image.picture, explained.map, explained.guided, claim.spec.outputs)
                _, flat = normalised(explained.map)
            with image.timed("encode"):
                files = {kind: encode(picture, claim.spec.format) for kind, picture in pictures.items()}
            with image.timed("upload"):
                objects = upload(
                    self._storage,
                    files,
                    job=claim.job,
                    index=claim.index(image.offset),
                    stem=uris.stem(image.item.uri),
                    network=claim.spec.network,
                    suffix=claim.spec.format,
                )
        if image.error is not None:
            return _failed(image, claim)
        chosen, top5 = guesses(explained.logits, explained.class_id, network.categories)
        result = Result(
            index=claim.index(image.offset),
            uri=uris.redact(image.item.uri),
            id=image.item.id,
            state="done",
            class_id=chosen.class_id,
            class_name=chosen.class_name,
            probability=chosen.probability,
            top5=top5,
            network=claim.spec.network,
            layer=network.layer_name,
            flat=flat,
            guided_relus=explained.guided_relus,
            random_weights=network.random,
            objects=objects,
            seconds=image.seconds,
        )
        return _Ended(image.offset, result, None)


@dataclass(frozen=True)
class _Ended:
    """An item's end, to be recorded."""

    offset: int
    result: Result
    failure: Failure | None


class _Ledger:
    """Ends of one chunk's items on their way into manifest and job table; keeps the lease while there is progress."""

    def __init__(self, table: JobTable, storage: Storage, claim: Claim, settings: WorkerSettings) -> None:
        self._table, self._storage, self._claim, self._settings = table, storage, claim, settings
        self._underway: list[Future[_Ended]] = []
        self._ended: list[_Ended] = []
        self._part = 0
        self._renewed = self._committed = time.monotonic()
        self.complete = False

    def add(self, future: Future[_Ended]) -> None:
        self._underway.append(future)

    def harvest(self, *, leave: int) -> None:
        """Take in what has ended, waiting until at most `leave` are under way."""
        while self._underway and (len(self._underway) > leave or self._underway[0].done()):
            self._ended.append(self._underway.pop(0).result())
            self.keep()
        if time.monotonic() - self._committed >= self._settings.commit_every_s:
            self.commit()

    def keep(self) -> None:
        """Renew the lease, after progress, not more often than needed.

        Raises:
            LeaseLost: It is not ours any more.
        """
        if time.monotonic() - self._renewed < self._settings.lease_s / 4:
            return
        self._renewed = time.monotonic()
        if not self._table.renew(self._claim, lease_s=self._settings.lease_s):
            raise LeaseLost

    def commit(self) -> None:
        """Record what has ended: the manifest first, then the bits."""
        self._committed = time.monotonic()
        ended, self._ended = self._ended, []
        if not ended:
            return
        claim = self._claim
        key = keys.manifest(self._storage.prefix, claim.job, claim.chunk, claim.token, self._part)
        self._part += 1
        lines = (end.result.model_dump_json(exclude_none=True) for end in ended)
        try:
            self._storage.put(key, "\n".join(lines).encode())
        except StoreError as error:
            # No image's fault: without its manifest nothing of this part counts, another worker may do better.
            raise WorkerError(str(error)) from None
        done = [end.offset for end in ended if end.failure is None]
        failed = [end.failure for end in ended if end.failure is not None]
        committed = self._table.commit(claim, done=done, failed=failed, lease_s=self._settings.lease_s)
        self._note(committed)

    def _note(self, committed: Committed | None) -> None:
        if committed is None:
            raise LeaseLost
        self.complete = committed.complete
        log.info(
            "action=committed job=%s chunk=%d %d images done, %d failed.",
            self._claim.job,
            self._claim.chunk,
            committed.done,
            committed.failed,
        )


class _Unexpected(ItemError):
    """Something went wrong that nobody thought of; the worker's log has the details."""

    reason = "internal"


@contextmanager
def _own_fault(image: _Image) -> Iterator[None]:
    """What goes wrong with one image stays with it; other people's faults go on."""
    try:
        yield
    except ItemError as error:
        image.error = error
    except GradcamError:
        raise
    except Exception as error:
        # The edge of an item: a bug that one picture brings out must not take its neighbours along.
        log.exception("action=item_bug A stage failed on %s.", uris.redact(image.item.uri))
        image.error = _Unexpected(f"a bug of gradcam-queue ({type(error).__name__}); the worker's log has the details")


def _failed(image: _Image, claim: Claim) -> _Ended:
    error = image.error or _Unexpected("nothing came of it, and nothing says why")
    index, message = claim.index(image.offset), str(error)[:500]
    failure = Failure(index=index, item=image.item, reason=error.reason, message=message, attempts=claim.attempt)
    result = Result(
        index=index,
        uri=uris.redact(image.item.uri),
        id=image.item.id,
        state="failed",
        network=claim.spec.network,
        seconds=image.seconds,
        reason=error.reason,
        message=message,
    )
    return _Ended(image.offset, result, failure)


def _class_of(image: _Image, of_the_job: int | None) -> int | None:
    return of_the_job if image.item.class_id is None else image.item.class_id


def _batches(stream: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(stream)
    while batch := list(islice(iterator, size)):
        yield batch
