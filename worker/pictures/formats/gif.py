"""GIF, by Pillow: OpenCV's reader forgets which pixels are transparent. The first frame is shown over white."""

from __future__ import annotations

import io
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.pictures.formats import opencv, refused
from worker.pictures.formats.transparency import over_white

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
    if width * height > opencv.MAX_PIXELS:
        raise refused.too_large("GIF", opencv.MAX_PIXELS)
    if not frame_width or not frame_height:
        raise refused.broken("GIF")
    head = data[: _SCREEN + _table_bytes(data[10])]
    try:
        # Without the comments before the frame: Pillow joins their blocks in quadratic time.
        with Image.open(io.BytesIO(head + control + data[frame:]), formats=["GIF"]) as image:
            pixels = np.asarray(image.convert("RGBA"))  # (H, W, 4)
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise whatever their Python does on bytes of strangers
        raise refused.broken("GIF") from None
    alpha = np.zeros(pixels.shape[:2], np.uint8)
    inside = slice(top, top + frame_height), slice(left, left + frame_width)
    alpha[inside] = pixels[..., 3][inside]
    return over_white(pixels[..., :3], alpha)


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
