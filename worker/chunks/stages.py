"""What each stage does to one image. `pipeline.py` knows their order and which threads run them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from producer.jobs.fetch import addresses
from producer.jobs.model import keys
from producer.jobs.model.errors import JobError, ModelError
from producer.jobs.model.waits import STORE, waiting
from worker.chunks.drawing import drawn, fitted, of_all_networks
from worker.chunks.outcome import done, failed, own_fault
from worker.chunks.upload import upload
from worker.engine.detection import BOXES
from worker.models.classes import PREDICTED, checked_class, label_of
from worker.models.own_model import DETECTION
from worker.models.predictions import above
from worker.pictures.arrays import to_npz
from worker.pictures.decode import decode
from worker.pictures.render import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from producer.jobs.fetch.fetcher import Fetcher
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from worker.chunks.chunk import Ended, ImageTask
    from worker.device.batches import Explained
    from worker.models.networks import Network

#: kind → suffix and content
Files = dict[str, tuple[str, bytes]]


def load(task: ImageTask, fetcher: Fetcher, network: Network, spec: JobSpec) -> None:
    """Fetch, decode, and bring to the network's size; what is wrong with the image is noted in it."""
    with own_fault(task):
        task.label, task.label_problem = label_of(network, task.item.label)
        task.asked = _asked_of(task, network, spec)
        with task.timed("fetch"), waiting(_server_of(task.item.uri)):
            data = fetcher.fetch(task.item.uri, job=task.chunk.claim.job)
        with task.timed("decode"):
            original = decode(data)
            found = fitted(original, network, spec)
            task.input, task.picture, task.frame = found.input, found.picture, found.frame
        task.waits_from_now()


def finish(task: ImageTask, storage: Storage) -> Ended:
    """Draw, encode and upload; where pictures are packed, they are in what is given back instead.

    Raises:
        LeaseLost: The chunk is not ours any more: nothing was written.
        JobError, WorkerError, ServiceError: Somebody else's fault than the image's.
    """
    claim = task.chunk.claim
    objects: dict[str, str] = {}
    members: dict[str, bytes] = {}
    flats: list[bool] = []
    with own_fault(task):
        _leave_unlikely(task, claim.spec)
        several = len(task.explained) > 1
        for explained in task.explained:
            made, flat = _draw(task, explained, claim.spec)
            flats.append(flat)
            prefix = f"class{explained.class_id}-" if several else ""
            if BOXES in explained.beside:
                prefix = f"box{explained.class_id + 1}-"
            files = {prefix + name: file for name, file in made.items()}
            if claim.spec.pack == "tar":
                packed = _pack(storage, claim, task, files)
                members |= {address.rsplit("#", 1)[1]: files[kind][1] for kind, address in packed.items()}
                objects |= packed
            else:
                task.chunk.lease.hold()
                objects |= _upload(storage, claim, task, files)
    nothing = not task.explained and task.chunk.network.task != DETECTION  # no box may score enough
    if task.error is not None or nothing:
        return failed(task)
    return done(task, flats, objects, members)


def _leave_unlikely(task: ImageTask, spec: JobSpec) -> None:
    """Keep the classes above the job's threshold, of the most likely ones that were explained; at least the first.

    How many there are is known when the network has answered, and a batch has the same number of each image.
    """
    if spec.threshold is not None and task.asked is None and task.explained:
        task.explained, task.above = above(task.explained, spec.threshold, task.chunk.network.activation)


def _asked_of(task: ImageTask, network: Network, spec: JobSpec) -> int | tuple[int, ...] | None:
    """The class to explain: the image's own, its label's, or the job's; None for the most likely.

    Raises:
        ModelError: The network has no such class.
    """
    item = task.item
    if network.task == DETECTION:
        if item.class_id is not None or item.class_name is not None:
            raise ModelError(f"{network.name} explains boxes, those that score most: leave the image's class out")
        return None
    try:
        if spec.explain == "predicted" or item.label is None:
            own = checked_class(network, item.class_id, item.class_name)
            return checked_class(network, spec.class_id, spec.class_name) if own is None else own
        if task.label_problem is not None:
            raise ModelError(f"its label: {task.label_problem}")
    except JobError as error:
        raise ModelError(str(error)) from None
    return task.label if spec.explain == "label" or task.label is None else (PREDICTED, task.label)


def _server_of(uri: str) -> str:
    """Who is waited for while an image is fetched, as it may be shown."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "an image"  # fetching it says what is wrong with its address
    return STORE if parts.scheme == "s3" else f"images of {parts.hostname or 'this machine'}"


def drawn_by_device(network: Network, spec: JobSpec) -> Sequence[str]:
    """The outputs that are drawn on the device; none: the host draws, from what comes back.

    A CPU draws faster with OpenCV. Pictures of the originals' sizes are of other sizes each, and are the host's.
    """
    on_device = network.device.type == "cuda" and spec.output_size == "input"
    return of_all_networks(spec) if on_device else ()


def _draw(task: ImageTask, explained: Explained, spec: JobSpec) -> tuple[Files, bool]:
    """One class's files, and whether its map is flat."""
    if task.picture is None or task.frame is None:
        raise AssertionError("an image was explained that was never decoded")
    with task.timed("render"):
        pictures, flat = drawn(task.picture, task.frame, explained, task.chunk.network, spec)
    with task.timed("encode"):
        files: Files = {kind: (spec.format, encode(picture, spec.format)) for kind, picture in pictures.items()}
        if spec.raw and explained.guided is not None:
            files["raw"] = ("npz", to_npz(list(explained.maps), explained.guided))
    return files, flat


def shard_of(storage: Storage, claim: Claim) -> str:
    """The shard of a chunk's pictures: no other holder, and no other life of the job, has one of that name."""
    return keys.shard(storage.prefix, claim.job, claim.chunk, claim.token, claim.life)


def _pack(storage: Storage, claim: Claim, task: ImageTask, files: Files) -> dict[str, str]:
    """Where in the chunk's shard the files will be, by kind."""
    shard = shard_of(storage, claim)
    index = claim.index(task.offset)
    return {kind: keys.in_shard(shard, keys.member(index, f"{kind}.{suffix}")) for kind, (suffix, _) in files.items()}


def _upload(storage: Storage, claim: Claim, task: ImageTask, files: Files) -> dict[str, str]:
    with task.timed("upload"):
        return upload(
            storage,
            files,
            job=claim.job,
            index=claim.index(task.offset),
            stem=addresses.stem(task.item.uri),
            network=claim.spec.network,
        )
