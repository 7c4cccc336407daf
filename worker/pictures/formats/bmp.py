"""BMP, by OpenCV; pixels with masks of their own (BITFIELDS) are read here: OpenCV swaps their colors."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.pictures.formats import opencv, refused
from worker.pictures.formats.transparency import blocks, over_white

#: Lengths of headers that there are: OS/2's, and Windows' from version 3 to 5.
_HEADERS: Final = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
#: Length of OS/2's header, of the shortest with a compression field, and of the shortest with a mask of alpha.
_CORE, _INFO, _V3 = 12, 40, 56
#: BITFIELDS, and BITFIELDS with a fourth mask behind a short header.
_FIELDS, _ALPHA_FIELDS = 3, 6
#: Run lengths of 8 and of 4 bits.
_RUNS: Final = {1: 8, 2: 4}
#: Of which so many, which are looked through in Python, cost about a second.
MAX_RUNS: Final = 2**22
#: JPEG and PNG inside of a BMP are for printers.
_INSIDE: Final = frozenset({4, 5})
_BITS: Final = frozenset({1, 4, 8, 16, 24, 32})
#: Bytes a pixel: OpenCV holds its picture twice; ours with masks is of four numbers and then of three.
_BYTES, _BYTES_OF_MASKS = 6, 7


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode to (H, W, 3) uint8 RGB, transparent parts over white.

    Raises:
        ImageError: It is broken, truncated, too large or of a kind that is not read.
    """
    try:
        offset, header = struct.unpack_from("<II", data, 10)
        width, height, _, bits = struct.unpack_from("<HHHH" if header == _CORE else "<iiHH", data, 18)
        compression = struct.unpack_from("<I", data, 30)[0] if header >= _INFO else 0
        size = abs(height), width
        if compression in {_FIELDS, _ALPHA_FIELDS} and bits in {16, 32}:
            masks = struct.unpack_from("<4I", data, 54)
            if header < _V3 and compression == _FIELDS:
                masks = (*masks[:3], 0)  # behind three masks the palette or the pixels begin
            opencv.check_size("BMP", *size, _BYTES_OF_MASKS)
            return _by_masks(_rows(data, offset, size, bits), width, bits, masks, upside_down=height > 0)
    except struct.error:
        raise refused.broken("BMP") from None
    if compression in _INSIDE:
        raise refused.not_read("BMP", "JPEG or PNG data inside of it", "take them out, or save it as PNG")
    if bits not in _BITS or header not in _HEADERS:
        raise refused.broken("BMP")
    opencv.check_size("BMP", *size, _BYTES)
    if _RUNS.get(compression) == bits:
        _check_runs(data, offset, size, bits)
    else:
        _rows(data, offset, size, bits)
    return opencv.color(data, "BMP")


def _rows(data: bytes, offset: int, size: tuple[int, int], bits: int) -> NDArray[np.uint8]:
    """(H, bytes of a row); all of them are there.

    Raises:
        ImageError: They are not.
    """
    height, width = size
    stride = (width * bits + 31) // 32 * 4
    if offset < _CORE or offset + stride * height > len(data):
        raise refused.broken("BMP", "there are fewer bytes than it has rows")
    return np.frombuffer(data, np.uint8, stride * height, offset).reshape(height, stride)


def _check_runs(data: bytes, at: int, size: tuple[int, int], bits: int) -> None:
    """Whether run lengths go through all rows; what they leave out of a row is not looked at.

    Raises:
        ImageError: They do not.
    """
    height, width = size
    rows = column = 0
    for _ in range(MAX_RUNS):
        count, value = data[at : at + 2].ljust(2, b"\0")
        if at + 2 > len(data) or (count == 0 and value == 1):
            break
        at += 2
        if count:
            column += count
        elif value == 0:  # the end of a row
            rows, column = rows + 1, 0
        elif value == 2:  # noqa: PLR2004 - a step to the right and up
            if at + 2 > len(data):
                break
            column, rows, at = column + data[at], rows + data[at + 1], at + 2
        else:  # so many single pixels, in whole words
            at += (value * bits + 15) // 16 * 2
            if at > len(data):
                break
            column += value
        if rows >= height:
            return
    else:
        raise refused.not_read("BMP", f"more than {MAX_RUNS} runs", "save it as PNG")
    if rows < height - 1 or column < width:
        raise refused.broken("BMP", "there are fewer runs than it has rows")


def _by_masks(
    rows: NDArray[np.uint8], width: int, bits: int, masks: tuple[int, ...], *, upside_down: bool
) -> NDArray[np.uint8]:
    pixels = rows[:, : width * bits // 8].view(f"<u{bits // 8}")  # (H, W)
    if upside_down:
        pixels = pixels[::-1]
    rgba = np.empty((*pixels.shape, 4), np.uint8)
    for block in blocks(*pixels.shape):
        for channel, mask in enumerate(masks):
            rgba[(*block, channel)] = _channel(pixels[block], mask)
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
