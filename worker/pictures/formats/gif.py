"""GIF, by Pillow: OpenCV's reader forgets which pixels are transparent. The first frame is shown over white."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.pictures.formats import opencv, pillow, refused

#: Bytes a pixel: Pillow's frame and canvas, and ours.
_BYTES: Final = 5
_IMAGE, _EXTENSION, _CONTROL = 0x2C, 0x21, 0xF9
_SCREEN: Final = 13  # bytes of signature and logical screen descriptor
#: Comments and the like before the first frame are few.
MAX_BLOCKS: Final = 4096
#: And these have parts of 255 bytes at most: so many are 64 MiB.
MAX_PARTS: Final = 2**18


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode to (H, W, 3) uint8 RGB; transparent pixels, and those that the first frame leaves out, are white.

    Raises:
        ImageError: It is broken, truncated or too large.
    """
    try:
        control, frame = _first_frame(data)
        width, height = struct.unpack_from("<HH", data, 6)
        left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, frame + 1)
    except (struct.error, IndexError):
        raise refused.broken("GIF") from None
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    opencv.check_size("GIF", height, width, _BYTES)
    if not frame_width or not frame_height:
        raise refused.broken("GIF")
    head = data[: _SCREEN + _table_bytes(data[10])]
    # Without the comments before the frame: Pillow joins their blocks in quadratic time.
    image = pillow.load(head + control + data[frame:], "GIF", refused.broken("GIF"), refused.broken("GIF"))
    with image:
        shown = pillow.transparent_over_white if image.has_transparency_data else pillow.opaque
        picture = pillow.taken(image, shown)
    for outside in (slice(top), slice(top + frame_height, None)):
        picture[outside] = 255
    for outside in (slice(left), slice(left + frame_width, None)):
        picture[:, outside] = 255
    return picture


def _first_frame(data: bytes) -> tuple[bytes, int]:
    """The graphic control extension of the first frame, and where its descriptor begins.

    Raises:
        IndexError: There is no frame.
    """
    at = _SCREEN + _table_bytes(data[10])
    control, parts = b"", 0
    for _ in range(MAX_BLOCKS):
        if data[at] == _IMAGE:
            return control, at
        if data[at] != _EXTENSION:
            at += 1  # a stray byte, as Pillow and browsers skip it
            continue
        start, kind = at, data[at + 1]
        at += 2
        while data[at]:
            at += 1 + data[at]
            parts += 1
            if parts > MAX_PARTS:
                raise refused.broken("GIF", f"more than {MAX_PARTS} parts stand before its first frame")
        at += 1
        if kind == _CONTROL:
            control = data[start:at]
    raise IndexError("no frame")


def _table_bytes(flags: int) -> int:
    """Size of a color table, as the flags before it say."""
    return 3 * 2 ** (1 + (flags & 7)) if flags & 0x80 else 0
