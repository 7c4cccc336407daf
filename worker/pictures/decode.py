"""Bytes become a picture.

docs/pictures.md says what is read and how, and what is refused; `formats/` has a module for each format. A truncated
file is an error, never a picture that is half gray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from producer.jobs.model.errors import ImageError
from worker.pictures.formats import bmp, c_stderr, gif, jpeg, opencv, png, refused, tiff, webp

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
        try:
            return reader(data)
        finally:
            c_stderr.throw_away()
    other = next((name for at, magic, name in _OTHERS if data.startswith(magic, at)), None)
    if other is not None:
        raise refused.not_read(other, "only JPEG, PNG, WebP, GIF, BMP and TIFF are", "save it as JPEG or PNG")
    raise ImageError("not a picture (JPEG, PNG, WebP, GIF, BMP or TIFF)")
