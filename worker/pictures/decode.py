"""Bytes become a picture, and a picture becomes what the network reads.

docs/pictures.md says what is read and how, and what is refused; `formats/` has a module for each format. A truncated
file is an error, never a picture that is half gray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from producer.jobs.model.errors import ImageError
from worker.pictures.formats import bmp, gif, jpeg, opencv, png, refused, tiff, webp

Picture = NDArray[np.uint8]
MAX_PIXELS: Final = opencv.MAX_PIXELS

#: First bytes of a file → the reader of its format; no other decoder gets bytes of strangers.
_READERS: Final[dict[bytes, Callable[[bytes], Picture]]] = {
    b"\xff\xd8\xff": jpeg.read,
    png.SIGNATURE: png.read,
    b"RIFF": webp.read,
    b"GIF8": gif.read,
    b"BM": bmp.read,
    b"II*\0": tiff.read,
    b"MM\0*": tiff.read,
    b"II+\0": tiff.read,
    b"MM\0+": tiff.read,
}
#: Marks in the first bytes of other kinds of pictures: position, mark, name.
_OTHERS: Final = (
    (4, b"ftypheic", "HEIC"), (4, b"ftypheix", "HEIC"), (4, b"ftypmif1", "HEIF"), (4, b"ftypmsf1", "HEIF"),
    (4, b"ftypavif", "AVIF"), (4, b"ftypavis", "AVIF"), (4, b"ftypcrx ", "CR3"), (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"), (4, b"jP  \r\n\x87\n", "JPEG 2000"), (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"), (0, b"\0\0\1\0", "icon"), (0, b"v/1\1", "OpenEXR"),
)  # fmt: skip


def decode(data: bytes) -> Picture:
    """Decode a JPEG, PNG, WebP, GIF, BMP or TIFF file to upright (H, W, 3) uint8 RGB, transparent parts over white.

    Raises:
        ImageError: the bytes are of no such file, or of a kind that is not read; they are broken or truncated; or the
            picture has more than `MAX_PIXELS` pixels.
    """
    if not data:
        raise ImageError("the file is empty")
    reader = next((reader for magic, reader in _READERS.items() if data.startswith(magic)), None)
    if reader is not None:
        return reader(data)
    other = next((name for at, magic, name in _OTHERS if data.startswith(magic, at)), None)
    if other is not None:
        raise refused.not_read(other, "only JPEG, PNG, WebP, GIF, BMP and TIFF are", "save it as JPEG or PNG")
    raise ImageError("not a picture (JPEG, PNG, WebP, GIF, BMP or TIFF)")


def normalize(picture: Picture, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Turn a picture of the network's size into the network's input: (picture / 255 - mean) / std.

    Args:
        picture: (H, W, 3) uint8 RGB.
        mean: three numbers, of RGB in [0, 1], or one for all.
        std: three numbers, of RGB in [0, 1], or one for all.

    Returns:
        (3, H, W) float32.
    """
    # Plane by plane: three times as fast as along the last axis of three.
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32)  # (3, H, W)
    # Division, not a product with 1/255: so that 255 times the picture gives the bytes back exactly.
    planes /= 255
    planes -= np.asarray(mean, np.float32)[:, None, None]
    planes /= np.asarray(std, np.float32)[:, None, None]
    return planes
