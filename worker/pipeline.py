"""A chunk's path, a line a stage: fetch, decode, explain, render, encode, upload, manifest, commit.

Fetching and decoding go on ahead of the device and rendering and uploading behind it, in threads of their own; the
thread that runs a chunk owns the device. Objects come first, then the manifest, then the commit: what is called done
is always there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from producer.jobs import uris
from producer.jobs.ahead import ahead
from producer.jobs.errors import GradcamError, ImageError, ItemError, JobError, ModelError
from producer.jobs.spec import ExplainedClass, Failure, Item, JobSpec, Result
from worker.classes import checked_class
from worker.decode import Picture, decode, normalise
from worker.device import Explained, explain_classes
from worker.geometry import Frame, average_maps, fit
from worker.guesses import guesses
from worker.ledger import Ended, Ledger
from worker.raw import pack
from worker.render import draw, encode, normalised
from worker.upload import upload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from producer.jobs.fetch import Fetcher
    from producer.jobs.storage import Storage
    from producer.jobs.table import Claim, JobTable
    from worker.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Pictures of the original's size take 40 bytes a pixel while they are drawn: 640 MiB for the largest.
MAX_ORIGINAL_PIXELS: Final = 16 * 2**20


@dataclass
class _Image:
    """One item on its way through the stages."""

    offset: int
    item: Item
    #: stage → seconds of work
    seconds: dict[str, float] = field(default_factory=dict)
    #: The class asked for of this image alone.
    asked: int | None = None
    #: What is drawn on: (H, W, 3) uint8 RGB, of the network's size or the original's.
    picture: Picture | None = None
    #: The way back to the original's geometry.
    frame: Frame | None = None
    #: What the network reads, (3, H, W).
    input: NDArray[np.float32] | None = None
    #: One a class, once explained.
    explained: list[Explained] = field(default_factory=list)
    #: Why it fails alone.
    error: ItemError | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure one stage's work on this image."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - started, 6)


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

    def run(self, claim: Claim, network: Network) -> bool:
        """Work off a chunk.

        Returns:
            Whether all of it is committed; False when told to stop before, the rest is then still pending.

        Raises:
            LeaseLost: The chunk is not ours any more, or the job goes no further.
            JobError, WorkerError: Somebody else's fault than an image's; what was finished is committed.
        """
        ledger = Ledger(self._table, self._storage, claim, self._settings)
        try:
            return self._run(claim, network, ledger)
        except BaseException:
            # What is finished stays finished, also under an old token; the first error is the one to tell.
            with suppress(GradcamError):
                ledger.commit()
            raise

    def _run(self, claim: Claim, network: Network, ledger: Ledger) -> bool:
        size = self._settings.batch_size
        images = (_Image(offset, claim.items[offset]) for offset in claim.pending)
        depth = 2 * size + self._settings.io_threads
        with closing(
            ahead(self._before, lambda image: self._load(image, network, claim.spec), images, depth=depth)
        ) as loaded:
            for batch in _batches(loaded, size):
                for image in self._explain(batch, network, claim.spec):
                    ledger.add(self._behind.submit(self._finish, image, claim, network))
                # At most two batches wait behind the device: memory stays flat when the store is slow.
                ledger.harvest(leave=2 * size)
                ledger.keep()
                if self._stop():
                    break
        ledger.harvest(leave=0)
        ledger.commit()
        return ledger.complete

    def _load(self, image: _Image, network: Network, spec: JobSpec) -> _Image:
        with _own_fault(image):
            image.asked = _class_of(image.item, network)
            with image.timed("fetch"):
                data = self._fetcher.fetch(image.item.uri)
            with image.timed("decode"):
                original = decode(data)
                fitted, image.frame = fit(original, network.size, spec.fit, network.resize_px)
                image.input = normalise(fitted, network.mean, network.std)
                image.picture = fitted if spec.output_size == "input" else _small_enough(original)
        return image

    def _explain(self, batch: list[_Image], network: Network, spec: JobSpec) -> list[_Image]:
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

    def _finish(self, image: _Image, claim: Claim, network: Network) -> Ended:
        objects: dict[str, str] = {}
        flats: list[bool] = []
        with _own_fault(image):
            several = len(image.explained) > 1
            for explained in image.explained:
                files, flat = self._draw(image, explained, claim.spec)
                flats.append(flat)
                with image.timed("upload"):
                    objects |= upload(
                        self._storage,
                        {
                            f"class{explained.class_id}-{name}" if several else name: file
                            for name, file in files.items()
                        },
                        job=claim.job,
                        index=claim.index(image.offset),
                        stem=uris.stem(image.item.uri),
                        network=claim.spec.network,
                    )
        if image.error is not None or not image.explained:
            return _failed(image, claim)
        return Ended(image.offset, _done(image, claim, network, flats, objects), None)

    def _draw(self, image: _Image, explained: Explained, spec: JobSpec) -> tuple[dict[str, tuple[str, bytes]], bool]:
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


def _failed(image: _Image, claim: Claim) -> Ended:
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
    return Ended(image.offset, result, failure)


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


def _done(image: _Image, claim: Claim, network: Network, flats: list[bool], objects: dict[str, str]) -> Result:
    first = image.explained[0]
    chosen, top5 = guesses(first.logits, first.class_id, network.categories)
    several = [guesses(each.logits, each.class_id, network.categories)[0] for each in image.explained]
    return Result(
        index=claim.index(image.offset),
        uri=uris.redact(image.item.uri),
        id=image.item.id,
        state="done",
        class_id=chosen.class_id,
        class_name=chosen.class_name,
        probability=chosen.probability,
        top5=top5,
        classes=tuple(
            ExplainedClass(**guess.model_dump(), flat=flat) for guess, flat in zip(several, flats, strict=True)
        )
        if len(several) > 1
        else (),
        network=claim.spec.network,
        layer=",".join(network.layer_names),
        flat=flats[0],
        guided_relus=first.guided_relus,
        random_weights=network.random,
        objects=objects,
        seconds=image.seconds,
    )


def _batches(stream: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(stream)
    while batch := list(islice(iterator, size)):
        yield batch
