"""What each stage does to one image; `pipeline.py` knows their order and whose threads run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import numpy as np

from producer.jobs.fetch import addresses
from producer.jobs.model import keys
from producer.jobs.model.errors import ImageError, JobError, ModelError
from producer.jobs.model.waits import STORE, waiting
from worker.chunks.item import Image, done, failed, own_fault
from worker.chunks.upload import upload
from worker.models.classes import PREDICTED, checked_class, label_of
from worker.pictures.arrays import to_npz
from worker.pictures.decode import Picture, decode, normalize
from worker.pictures.geometry import average_maps, fit
from worker.pictures.render import draw, encode, normalized

if TYPE_CHECKING:
    from collections.abc import Callable

    from producer.jobs.fetch.fetcher import Fetcher
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from worker.chunks.recorder import Ended
    from worker.device.batches import Explained
    from worker.models.networks import Network

#: Pictures of the original's size take 40 bytes a pixel while they are drawn: 640 MiB for the largest.
MAX_ORIGINAL_PIXELS: Final = 16 * 2**20
#: kind → suffix and content
Files = dict[str, tuple[str, bytes]]


def load(image: Image, fetcher: Fetcher, network: Network, spec: JobSpec) -> Image:
    """Fetch, decode, and bring to the network's size; what is wrong with the image is noted in it."""
    with own_fault(image):
        image.label = label_of(network, image.item.label)
        image.asked = _asked_of(image, network, spec)
        with image.timed("fetch"), waiting(_server_of(image.item.uri)):
            data = fetcher.fetch(image.item.uri)
        with image.timed("decode"):
            original = decode(data)
            fitted, image.frame = fit(original, network.size, spec.fit, network.resize_px)
            image.input = normalize(fitted, network.mean, network.std)
            image.picture = fitted if spec.output_size == "input" else _small_enough(original)
        image.waits_from_now()
    return image


def finish(image: Image, storage: Storage, claim: Claim, network: Network, *, hold: Callable[[], None]) -> Ended:
    """Draw, encode and upload; where pictures are packed, they are in what is given back instead.

    Args:
        image: What was explained.
        storage: Our bucket.
        claim: The chunk it is of.
        network: What explained it.
        hold: Makes sure that the chunk is still ours: nothing is written after that.
    """
    objects: dict[str, str] = {}
    members: dict[str, bytes] = {}
    flats: list[bool] = []
    with own_fault(image):
        several = len(image.explained) > 1
        for explained in image.explained:
            drawn, flat = _draw(image, explained, claim.spec)
            flats.append(flat)
            files = {f"class{explained.class_id}-{name}" if several else name: file for name, file in drawn.items()}
            if claim.spec.pack == "tar":
                packed = _pack(storage, claim, image, files)
                members |= {address.rsplit("#", 1)[1]: files[kind][1] for kind, address in packed.items()}
                objects |= packed
            else:
                hold()
                objects |= _upload(storage, claim, image, files)
    if image.error is not None or not image.explained:
        return failed(image, claim)
    return done(image, claim, network, flats, objects, members)


def _asked_of(image: Image, network: Network, spec: JobSpec) -> int | tuple[int, ...] | None:
    """The class asked for of this image alone: its own, or its label's.

    Raises:
        ModelError: The network has no such class.
    """
    item = image.item
    try:
        if spec.explain == "predicted" or item.label is None:
            return checked_class(network, item.class_id, item.class_name)
        if image.label is None:
            number = int(item.label) if item.label.isdecimal() else None
            checked_class(network, number, None if number is not None else item.label)
    except JobError as error:
        raise ModelError(f"its label: {error}" if item.label else str(error)) from None
    return image.label if spec.explain == "label" or image.label is None else (PREDICTED, image.label)


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


def _draw(image: Image, explained: Explained, spec: JobSpec) -> tuple[Files, bool]:
    """One class's files, and whether its map is flat."""
    if image.picture is None or image.frame is None:
        raise AssertionError("an image was explained that was never decoded")
    with image.timed("render"):
        flat = all([normalized(map_)[1] for map_ in explained.maps])
        heat = average_maps(explained.maps, explained.guided.shape[:2])
        if len(explained.maps) > 1:
            heat, _ = normalized(heat)  # as pytorch-grad-cam does with an average
        guided = explained.guided
        if spec.output_size == "original":
            heat, guided = image.frame.to_original(heat), image.frame.to_original(guided)
        pictures = draw(image.picture / np.float32(255), heat, guided, spec.outputs)
    with image.timed("encode"):
        files: Files = {kind: (spec.format, encode(picture, spec.format)) for kind, picture in pictures.items()}
        if spec.raw:
            files["raw"] = ("npz", to_npz(list(explained.maps), explained.guided))
    return files, flat


def shard_of(storage: Storage, claim: Claim) -> str:
    """The shard of a chunk's pictures: no other holder, and no other life of the job, has one of that name."""
    return keys.shard(storage.prefix, claim.job, claim.chunk, claim.token, claim.life)


def _pack(storage: Storage, claim: Claim, image: Image, files: Files) -> dict[str, str]:
    """Where in the chunk's shard the files will be, by kind."""
    shard = shard_of(storage, claim)
    index = claim.index(image.offset)
    return {kind: keys.in_shard(shard, keys.member(index, f"{kind}.{suffix}")) for kind, (suffix, _) in files.items()}


def _upload(storage: Storage, claim: Claim, image: Image, files: Files) -> dict[str, str]:
    with image.timed("upload"):
        return upload(
            storage,
            files,
            job=claim.job,
            index=claim.index(image.offset),
            stem=addresses.stem(image.item.uri),
            network=claim.spec.network,
        )
