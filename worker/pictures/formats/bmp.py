"""BMP, by OpenCV; pixels with masks of their own (BITFIELDS) are read here: OpenCV swaps their colors."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.pictures.formats import opencv, refused
from worker.pictures.formats.transparency import over_white

#: Length of the shortest header with a compression field, and of the shortest with a mask of alpha.
_INFO, _V3 = 40, 56
#: BITFIELDS, and BITFIELDS with a fourth mask behind a short header.
_FIELDS, _ALPHA_FIELDS = 3, 6
#: JPEG and PNG inside of a BMP are for printers.
_INSIDE: Final = frozenset({4, 5})
#: Rows unpacked at a time, so that a large picture takes little more memory than its pixels.
_ROWS: Final = 256


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode to (H, W, 3) uint8 RGB, transparent parts over white.

    Raises:
        ImageError: It is broken, truncated, too large or of a kind that is not read.
    """
    try:
        offset, header, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
        if header >= _INFO and compression in {_FIELDS, _ALPHA_FIELDS} and bits in {16, 32}:
            masks = struct.unpack_from("<4I", data, 54)
            if header < _V3 and compression == _FIELDS:
                masks = (*masks[:3], 0)  # behind three masks the palette or the pixels begin
            return _by_masks(data, offset, (abs(height), width), bits, masks, upside_down=height > 0)
    except struct.error:
        raise refused.broken("BMP") from None
    if header >= _INFO and compression in _INSIDE:
        raise refused.not_read("BMP", "JPEG or PNG data inside of it", "take them out, or save it as PNG")
    return opencv.color(data, "BMP")


def _by_masks(
    data: bytes, offset: int, size: tuple[int, int], bits: int, masks: tuple[int, ...], *, upside_down: bool
) -> NDArray[np.uint8]:
    height, width = size
    if height < 1 or width < 1:
        raise refused.broken("BMP")
    if height * width > opencv.MAX_PIXELS:
        raise refused.too_large("BMP", opencv.MAX_PIXELS)
    stride = (width * bits + 31) // 32 * 4
    if offset < _INFO or offset + stride * height > len(data):
        raise refused.broken("BMP")
    rows = np.frombuffer(data, np.uint8, stride * height, offset).reshape(height, stride)
    pixels = rows[:, : width * bits // 8].view(f"<u{bits // 8}")  # (H, W)
    if upside_down:
        pixels = pixels[::-1]
    rgba = np.empty((height, width, 4), np.uint8)
    for top in range(0, height, _ROWS):
        for channel, mask in enumerate(masks):
            rgba[top : top + _ROWS, :, channel] = _channel(pixels[top : top + _ROWS], mask)
    # An alpha of zeros everywhere is what programs write that know of none: browsers show such a picture, too.
    if masks[3] and rgba[..., 3].any():
        return over_white(rgba[..., :3], rgba[..., 3])
    return np.ascontiguousarray(rgba[..., :3])


def _channel(pixels: NDArray[np.uint16] | NDArray[np.uint32], mask: int) -> NDArray[np.uint8]:
    """The bits under a mask, as 0 to 255, rounded."""
    mask &= 2 ** (8 * pixels.itemsize) - 1
    if not mask:
        return np.zeros(pixels.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    wide = max((mask >> shift).bit_length() - 8, 0)  # of more than 8 bits the upper 8 count
    most = mask >> shift >> wide
    table = ((np.arange(most + 1) * 255 + most // 2) // most).astype(np.uint8)
    unpacked: NDArray[np.uint8] = table[(pixels & np.array(mask, pixels.dtype)) >> np.array(shift + wide, pixels.dtype)]
    return unpacked
