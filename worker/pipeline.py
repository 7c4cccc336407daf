"""A chunk's path, a line a stage: fetch, decode, explain, render, encode, upload, manifest, commit.

Fetching and decoding go on ahead of the device and rendering and uploading behind it, in threads of their own; the
thread that runs a chunk owns the device. Objects come first, then the manifest, then the commit: what is called done
is always there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from producer.jobs import keys, uris
from producer.jobs.ahead import ahead
from producer.jobs.errors import CrashedWorker, ImageError, ItemError, ItemTimeout, JobError, ModelError, WorkerError
from worker.classes import checked_class
from worker.decode import Picture, decode, normalise
from worker.device import Explained, explain_classes
from worker.geometry import average_maps, fit
from worker.image import Image, done, failed, own_fault
from worker.ledger import Ended, Ledger
from worker.raw import pack
from worker.render import draw, encode, normalised
from worker.shard import Shard
from worker.upload import upload
from worker.watchdog import CONVICTING, HUNG

if TYPE_CHECKING:
    from producer.jobs.fetch import Fetcher
    from producer.jobs.spec import Item, JobSpec
    from producer.jobs.storage import Storage
    from producer.jobs.table import Claim, JobTable
    from worker.lease import Lease
    from worker.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)
_T = TypeVar("_T")
#: How often a future that is waited for is looked at.
_LOOK_EVERY_S = 0.5

#: Pictures of the original's size take 40 bytes a pixel while they are drawn: 640 MiB for the largest.
MAX_ORIGINAL_PIXELS: Final = 16 * 2**20


class Pipeline:
    """Works off claimed chunks; one per process, its pools live as long as it does."""

    def __init__(
        self, table: JobTable, storage: Storage, fetcher: Fetcher, settings: WorkerSettings, *, stop: Callable[[], bool]
    ) -> None:
        self._table, self._storage, self._fetcher, self._settings, self._stop = table, storage, fetcher, settings, stop
        #: The network whose lack of ReLUs was told of last.
        self._told: Network | None = None
        self._before = ThreadPoolExecutor(settings.io_threads, thread_name_prefix="fetch")
        self._behind = ThreadPoolExecutor(settings.io_threads, thread_name_prefix="upload")
        #: Threads that an image keeps from ever ending; a process with one should end after its chunk.
        self.hanging = 0

    def run(self, claim: Claim, network: Network, lease: Lease) -> bool:
        """Work off a chunk.

        Returns:
            Whether all of it is committed; False when told to stop before, the rest is then still pending.

        Raises:
            LeaseLost: The chunk is not ours any more, or the job goes no further.
            JobError, WorkerError: Somebody else's fault than an image's; what was finished is committed.
        """
        with self._shard(claim) as shard:
            ledger = Ledger(
                self._table,
                self._storage,
                claim,
                lease,
                lease_s=self._settings.lease_s,
                commit_every_s=self._settings.commit_every_s,
                wait=partial(self._finished, claim, lease),
                shard=shard,
            )
            try:
                self._run(claim, network, lease, ledger)
            except BaseException:
                # What is finished stays finished, also under an old token; the first error is the one to tell.
                ledger.settle()
                raise
            return ledger.complete

    def _shard(self, claim: Claim) -> AbstractContextManager[Shard | None]:
        if claim.spec.pack == "none":
            return nullcontext()
        return Shard(self._storage, keys.shard(self._storage.prefix, claim.job, claim.chunk, claim.generation))

    def _run(self, claim: Claim, network: Network, lease: Lease, ledger: Ledger) -> None:
        lease.step(self._settings.item_timeout_s)
        images = [Image(offset, claim.items[offset]) for offset in claim.pending]
        for image in images:
            image.error = verdict(claim.suspects.get(image.offset, 0))
        ledger.end(failed(image, claim) for image in images if image.error is not None)
        left = [image for image in images if image.error is None]
        self._stream(
            [image for image in left if image.offset not in claim.suspects],
            self._settings.batch_size,
            claim,
            network,
            lease,
            ledger,
        )
        # Each alone, so that the next death says whose fault it is; last, so that it takes nobody along.
        for image in left:
            if image.offset in claim.suspects and not self._stop():
                ledger.harvest(leave=0)
                self._stream([image], 1, claim, network, lease, ledger)
        ledger.harvest(leave=0)
        ledger.commit()

    def _stream(
        self, images: Sequence[Image], size: int, claim: Claim, network: Network, lease: Lease, ledger: Ledger
    ) -> None:
        """Take images through all stages in batches, until they end or this process is told to stop."""
        loaded = ahead(
            self._before,
            lambda image: self._load(image, network, claim.spec),
            ledger.marked(images, at_once=size),
            depth=min(2 * size + self._settings.io_threads, len(images) or 1),
            wait=partial(self._loaded, lease),
        )
        with closing(loaded):
            for batch in _batches(loaded, size):
                lease.step(self._settings.item_timeout_s)
                for image in self._explain(batch, network, claim.spec):
                    ledger.add(image, self._behind.submit(self._finish, image, claim, network))
                # At most two batches wait behind the device: memory stays flat when the store is slow.
                ledger.harvest(leave=2 * size)
                if self._stop():
                    break

    def _loaded(self, lease: Lease, image: Image, future: Future[Image]) -> Image:
        stage = self._hangs(lease, image, future)
        return future.result() if stage is None else self._given_up(image, stage)

    def _finished(self, claim: Claim, lease: Lease, image: Image, future: Future[Ended]) -> Ended:
        stage = self._hangs(lease, image, future)
        return future.result() if stage is None else failed(self._given_up(image, stage), claim)

    def _hangs(self, lease: Lease, image: Image, future: Future[Any]) -> str | None:
        """Wait for a future; the stage in which its image takes longer than it may, None when the future is done."""
        limit_s = self._settings.item_timeout_s
        while not wait([future], timeout=_LOOK_EVERY_S).done:
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
        log.warning("action=hanging An image hangs in %s: %s", stage, uris.redact(image.item.uri))
        error = ItemTimeout(f"{stage} takes longer than {limit_s:g} s")
        return Image(image.offset, image.item, seconds=dict(image.seconds), error=error)

    def _load(self, image: Image, network: Network, spec: JobSpec) -> Image:
        with own_fault(image):
            image.asked = _class_of(image.item, network)
            with image.timed("fetch"):
                data = self._fetcher.fetch(image.item.uri)
            with image.timed("decode"):
                original = decode(data)
                fitted, image.frame = fit(original, network.size, spec.fit, network.resize_px)
                image.input = normalise(fitted, network.mean, network.std)
                image.picture = fitted if spec.output_size == "input" else _small_enough(original)
        return image

    def _explain(self, batch: list[Image], network: Network, spec: JobSpec) -> list[Image]:
        """Explain those of a batch that came this far; one whose answer cannot be used fails alone."""
        good = [image for image in batch if image.error is None and image.input is not None]
        if not good:
            return batch
        started = time.perf_counter()
        usual = checked_class(network, spec.class_id, spec.class_name)
        answers = explain_classes(
            network,
            [image.input for image in good if image.input is not None],
            [usual if image.asked is None else image.asked for image in good],
            top_k=spec.top_k,
            method=spec.method,
            precision=spec.precision,
        )
        share = round((time.perf_counter() - started) / len(good), 6)
        self._tell_if_unguided(network, answers)
        for image, answer in zip(good, answers, strict=True):
            image.seconds["explain"], image.input = share, None
            if isinstance(answer, ModelError):
                image.error = answer
            else:
                image.explained = answer
        return batch

    def _tell_if_unguided(self, network: Network, answers: Sequence[list[Explained] | ModelError]) -> None:
        explained = next((answer[0] for answer in answers if not isinstance(answer, ModelError)), None)
        if explained is not None and explained.guided_relus == 0 and self._told is not network:
            self._told = network
            log.warning("action=unguided %s has no ReLU: its `gb` pictures are the plain gradient.", network.name)

    def _finish(self, image: Image, claim: Claim, network: Network) -> Ended:
        objects: dict[str, str] = {}
        members: dict[str, bytes] = {}
        flats: list[bool] = []
        with own_fault(image):
            several = len(image.explained) > 1
            for explained in image.explained:
                drawn, flat = self._draw(image, explained, claim.spec)
                flats.append(flat)
                files = {f"class{explained.class_id}-{name}" if several else name: file for name, file in drawn.items()}
                if claim.spec.pack == "tar":
                    packed = self._pack(claim, image, files)
                    members |= {address.rsplit("#", 1)[1]: files[kind][1] for kind, address in packed.items()}
                    objects |= packed
                else:
                    objects |= self._upload(claim, image, files)
        if image.error is not None or not image.explained:
            return failed(image, claim)
        return done(image, claim, network, flats, objects, members)

    def _pack(self, claim: Claim, image: Image, files: dict[str, tuple[str, bytes]]) -> dict[str, str]:
        """Where in the chunk's shard the files will be, by kind."""
        shard = keys.shard(self._storage.prefix, claim.job, claim.chunk, claim.generation)
        index = claim.index(image.offset)
        return {
            kind: keys.in_shard(shard, keys.member(index, f"{kind}.{suffix}")) for kind, (suffix, _) in files.items()
        }

    def _upload(self, claim: Claim, image: Image, files: dict[str, tuple[str, bytes]]) -> dict[str, str]:
        with image.timed("upload"):
            return upload(
                self._storage,
                files,
                job=claim.job,
                index=claim.index(image.offset),
                stem=uris.stem(image.item.uri),
                network=claim.spec.network,
            )

    def _draw(self, image: Image, explained: Explained, spec: JobSpec) -> tuple[dict[str, tuple[str, bytes]], bool]:
        """One class's files: kind → suffix and content; and whether its map is flat."""
        if image.picture is None or image.frame is None:
            raise AssertionError("an image was explained that was never decoded")
        with image.timed("render"):
            flat = all([normalised(map_)[1] for map_ in explained.maps])
            heat = average_maps(explained.maps, explained.guided.shape[:2])
            if len(explained.maps) > 1:
                heat, _ = normalised(heat)  # as pytorch-grad-cam does with an average
            guided = explained.guided
            if spec.output_size == "original":
                heat, guided = image.frame.to_original(heat), image.frame.to_original(guided)
            pictures = draw(image.picture / np.float32(255), heat, guided, spec.outputs)
        with image.timed("encode"):
            files: dict[str, tuple[str, bytes]] = {
                kind: (spec.format, encode(picture, spec.format)) for kind, picture in pictures.items()
            }
            if spec.raw:
                files["raw"] = ("npz", pack(list(explained.maps), explained.guided))
        return files, flat


def verdict(weight: int) -> ItemError | None:
    """What the deaths that an image was alone in say of it."""
    if weight >= HUNG:
        return ItemTimeout("the process that worked at it hung and had to be killed")
    if weight >= CONVICTING:
        return CrashedWorker(
            "the processes that worked at it alone died: it crashes a decoder, or needs too much memory"
        )
    return None


def _class_of(item: Item, network: Network) -> int | None:
    """The class asked for of this image alone.

    Raises:
        ModelError: The network has no such class.
    """
    try:
        return checked_class(network, item.class_id, item.class_name)
    except JobError as error:
        raise ModelError(str(error)) from None


def _small_enough(original: Picture) -> Picture:
    if original.shape[0] * original.shape[1] > MAX_ORIGINAL_PIXELS:
        raise ImageError(f"it has more than {MAX_ORIGINAL_PIXELS} pixels, too many for --output-size original")
    return original


def _batches(stream: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(stream)
    while batch := list(islice(iterator, size)):
        yield batch
