"""WebP, by OpenCV; whether it has alpha, and its EXIF block, are found by walking its chunks."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.pictures.formats import opencv
from worker.pictures.formats.exif import upright
from worker.pictures.formats.transparency import over_white

#: A chunk is a frame, or what the file says of itself. What stands behind so many is not looked for.
MAX_CHUNKS: Final = 2**14
#: Flags of VP8X: it has alpha, it is an animation (whose frames need not cover all of it).
_ALPHA, _ANIMATION = 0x10, 0x02


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode to upright (H, W, 3) uint8 RGB, transparent parts over white; of an animation the first frame.

    Raises:
        ImageError: It is broken, truncated or too large.
    """
    exif = _exif(data) if data.startswith(b"VP8X", 12) else b""
    if _may_be_transparent(data):
        picture = opencv.as_it_is(data, "WebP")
        if picture.shape[2:] == (4,):
            return upright(over_white(picture[..., :3], picture[..., 3]), exif)
    return upright(opencv.color(data, "WebP"), exif)


def _may_be_transparent(data: bytes) -> bool:
    kind, flags = data[12:16], data[20:25].ljust(5, b"\0")
    if kind == b"VP8L":
        return bool(flags[4] & 0x10)  # the lossless header's own bit, behind 28 bits of width and height
    return kind == b"VP8X" and bool(flags[0] & (_ALPHA | _ANIMATION))


def _exif(data: bytes) -> bytes:
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return b""
