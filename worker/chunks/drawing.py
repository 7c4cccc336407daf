"""What a job says of pictures: how an image is brought to the network's size, and what is drawn of an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from producer.jobs.model.errors import ImageError
from producer.jobs.model.spec import MASK
from worker.engine.detection import BOXES
from worker.engine.segmentation import PREDICTED
from worker.pictures import channels
from worker.pictures.decode import Picture
from worker.pictures.geometry import Frame, fit
from worker.pictures.render import OUTPUTS, draw, draw_box, draw_mask, heat_of

if TYPE_CHECKING:
    from producer.jobs.model.spec import JobSpec
    from worker.device.batches import Explained
    from worker.models.networks import Network

#: Pictures of the original's size take 40 bytes a pixel while they are drawn: 640 MiB for the largest.
MAX_ORIGINAL_PIXELS: Final = 16 * 2**20


@dataclass(frozen=True)
class Fitted:
    """An image as the network reads it, and what is drawn on."""

    #: (H, W, C) uint8, of the network's size and channels.
    input: Picture
    #: (H, W, 3) uint8 RGB, of the network's size or the original's.
    picture: Picture
    #: The way back to the original's geometry.
    frame: Frame


def fitted(original: Picture, network: Network, spec: JobSpec) -> Fitted:
    """Bring a decoded image, (H, W, 3) uint8 RGB, to the network's size as the job asks for.

    Raises:
        ImageError: It is too large for pictures of its own size.
    """
    small, frame = fit(original, network.size, spec.fit, network.resize_px, resize_filter=network.resize_filter)
    picture = channels.as_read(small, network.channels)
    read = picture[..., : network.channels]
    if spec.output_size == "original":
        if original.shape[0] * original.shape[1] > MAX_ORIGINAL_PIXELS:
            raise ImageError(f"it has more than {MAX_ORIGINAL_PIXELS} pixels, too many for --output-size original")
        picture = channels.as_read(original, network.channels)
    return Fitted(read, picture, frame)


def of_all_networks(spec: JobSpec) -> Sequence[str]:
    """Return the outputs that a job asks for and that each network has."""
    return [name for name in spec.outputs if name in OUTPUTS]


def drawn(
    picture: Picture, frame: Frame, explained: Explained, network: Network, spec: JobSpec
) -> tuple[dict[str, Picture], bool]:
    """Draw what a job asks for of one class, or of one box.

    Args:
        picture: (H, W, 3) uint8 RGB, what is drawn on.
        frame: The way back to the original's geometry.
        explained: What the network says.
        network: By which it was explained.
        spec: Which outputs, and of which size.

    Returns:
        Output to (H, W, 3) uint8 RGB, and whether the (first) map is the same everywhere.
    """
    is_original = spec.output_size == "original"
    if explained.drawn is not None:
        pictures, flat = dict(explained.drawn.pictures), explained.drawn.flat
    else:
        if explained.guided is None:
            raise AssertionError("numbers come back unless only pictures were asked for")
        guided = channels.as_drawn(explained.guided)
        heat, flat = heat_of(explained.maps, frame.size)
        if is_original:
            heat, guided = frame.to_original(heat), frame.to_original(guided)
        pictures = draw(picture, heat, guided, of_all_networks(spec))
    if MASK in spec.outputs and PREDICTED in explained.beside:
        # The pixels over which a class's scores are summed.
        mask = network.mask(explained.beside[PREDICTED], explained.class_id)
        pictures[MASK] = draw_mask(picture, frame.mask_to_original(mask) if is_original else mask)
    if BOXES in explained.beside:
        box = explained.beside[BOXES][explained.class_id].tolist()
        box = frame.box_to_original(box) if is_original else box
        pictures = {kind: draw_box(each, box) for kind, each in pictures.items()}
    return pictures, flat
