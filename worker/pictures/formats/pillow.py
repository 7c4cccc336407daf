"""Pillow's decoders, set up for bytes of strangers, and its pictures taken over in small parts."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from producer.jobs.model.errors import ImageError
from worker.pictures.formats.transparency import blocks, over_white

# What they warn of, and log, is decided here, or ends as this image's error.
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pixels are counted before Pillow sees them, against a limit that the operator sets.
Image.MAX_IMAGE_PIXELS = None


def load(data: bytes, format: str, unknown: ImageError, broken: ImageError) -> Image.Image:
    """Read a picture's first frame or page.

    Args:
        data: The file.
        format: Such as TIFF.
        unknown: Raised where Pillow does not know the kind.
        broken: Raised where it cannot read on.
    """
    stage = unknown
    try:
        image = Image.open(io.BytesIO(data), formats=[format])
        stage = broken
        image.load()
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise whatever their Python does on bytes of strangers
        raise stage from None
    return image


def taken(image: Image.Image, shown: Callable[[Image.Image], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pillow's picture as (H, W, 3) uint8 RGB, part by part: Pillow would hold three copies of it."""
    picture = np.empty((image.height, image.width, 3), np.uint8)
    for rows, columns in blocks(image.height, image.width):
        picture[rows, columns] = shown(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
    return picture


def opaque(part: Image.Image) -> NDArray[np.uint8]:
    """A part without alpha."""
    return np.asarray(part.convert("RGB"), np.uint8)


def transparent_over_white(part: Image.Image) -> NDArray[np.uint8]:
    """A part with straight or associated alpha, over white."""
    straight = part.convert("LA") if part.mode == "La" else part
    rgba = np.asarray(straight.convert("RGBA"))  # (h, w, 4)
    return over_white(rgba[..., :3], rgba[..., 3])
