"""What each stage does to one image. `pipeline.py` knows their order and which threads run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from producer.jobs.fetch import addresses
from producer.jobs.model import keys
from producer.jobs.model.errors import ImageError, JobError, ModelError
from producer.jobs.model.spec import MASK
from producer.jobs.model.waits import STORE, waiting
from worker.chunks.outcome import done, failed, own_fault
from worker.chunks.upload import upload
from worker.engine.detection import BOXES
from worker.engine.segmentation import PREDICTED as PIXELS
from worker.models.classes import PREDICTED, checked_class, label_of
from worker.models.own_model import DETECTION
from worker.models.predictions import above
from worker.pictures import channels
from worker.pictures.arrays import to_npz
from worker.pictures.decode import Picture, decode
from worker.pictures.geometry import fit
from worker.pictures.render import OUTPUTS, draw, draw_box, draw_mask, encode, heat_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from producer.jobs.fetch.fetcher import Fetcher
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from worker.chunks.chunk import Ended, ImageTask
    from worker.device.batches import Explained
    from worker.models.networks import Network

#: Pictures of the original's size take 40 bytes a pixel while they are drawn: 640 MiB for the largest.
MAX_ORIGINAL_PIXELS: Final = 16 * 2**20
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
            fitted, task.frame = fit(
                original, network.size, spec.fit, network.resize_px, resize_filter=network.resize_filter
            )
            task.picture = channels.as_read(fitted, network.channels)
            task.input = task.picture[..., : network.channels]
            if spec.output_size == "original":
                task.picture = channels.as_read(_small_enough(original), network.channels)
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
            drawn, flat = _draw(task, explained, claim.spec)
            flats.append(flat)
            prefix = f"class{explained.class_id}-" if several else ""
            if BOXES in explained.beside:
                prefix = f"box{explained.class_id + 1}-"
            files = {prefix + name: file for name, file in drawn.items()}
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


def _small_enough(original: Picture) -> Picture:
    if original.shape[0] * original.shape[1] > MAX_ORIGINAL_PIXELS:
        raise ImageError(f"it has more than {MAX_ORIGINAL_PIXELS} pixels, too many for --output-size original")
    return original


def drawn_by_device(network: Network, spec: JobSpec) -> Sequence[str]:
    """The outputs that are drawn on the device; none: the host draws, from what comes back.

    A CPU draws faster with OpenCV. Pictures of the originals' sizes are of other sizes each, and are the host's.
    """
    on_device = network.device.type == "cuda" and spec.output_size == "input"
    return _of_all_networks(spec) if on_device else ()


def _of_all_networks(spec: JobSpec) -> Sequence[str]:
    return [name for name in spec.outputs if name in OUTPUTS]


def _draw(task: ImageTask, explained: Explained, spec: JobSpec) -> tuple[Files, bool]:
    """One class's files, and whether its map is flat."""
    with task.timed("render"):
        pictures, flat = _pictures(task, explained, spec)
    with task.timed("encode"):
        files: Files = {kind: (spec.format, encode(picture, spec.format)) for kind, picture in pictures.items()}
        if spec.raw and explained.guided is not None:
            files["raw"] = ("npz", to_npz(list(explained.maps), explained.guided))
    return files, flat


def _pictures(task: ImageTask, explained: Explained, spec: JobSpec) -> tuple[dict[str, Picture], bool]:
    pictures, flat = _drawn(task, explained, spec)
    if MASK in spec.outputs and PIXELS in explained.beside:
        pictures[MASK] = _mask(task, explained, spec)
    if BOXES in explained.beside and task.frame is not None:
        box = explained.beside[BOXES][explained.class_id].tolist()
        box = task.frame.box_to_original(box) if spec.output_size == "original" else box
        pictures = {kind: draw_box(picture, box) for kind, picture in pictures.items()}
    return pictures, flat


def _mask(task: ImageTask, explained: Explained, spec: JobSpec) -> Picture:
    """The pixels over which a class's scores are summed, drawn over the picture."""
    if task.picture is None or task.frame is None:
        raise AssertionError("an image was explained that was never decoded")
    mask = task.chunk.network.mask(explained.beside[PIXELS], explained.class_id)
    return draw_mask(task.picture, task.frame.mask_to_original(mask) if spec.output_size == "original" else mask)


def _drawn(task: ImageTask, explained: Explained, spec: JobSpec) -> tuple[dict[str, Picture], bool]:
    if explained.drawn is not None:
        return dict(explained.drawn.pictures), explained.drawn.flat
    guided = explained.guided
    if task.picture is None or task.frame is None or guided is None:
        raise AssertionError("an image was explained that was never decoded")
    guided = channels.as_drawn(guided)
    heat, flat = heat_of(explained.maps, task.frame.size)
    if spec.output_size == "original":
        heat, guided = task.frame.to_original(heat), task.frame.to_original(guided)
    return draw(task.picture, heat, guided, _of_all_networks(spec)), flat


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
