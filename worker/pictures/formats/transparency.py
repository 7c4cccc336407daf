"""Transparent pictures are laid over white, as on a page that a browser shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Pixels worked on at a time, so that a large picture takes little more memory than its pixels, whatever its shape.
_PIXELS: Final = 2**15


def blocks(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of small parts that make up the whole picture."""
    columns = min(width, _PIXELS)
    rows = max(1, _PIXELS // max(width, 1))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield slice(top, min(top + rows, height)), slice(left, min(left + columns, width))


def over_white(rgb: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.uint8]:
    """Lay a picture with straight alpha over white.

    Args:
        rgb: (H, W, 3), uint8, or uint16 of which the upper 8 bits count.
        alpha: (H, W), of the same type; 0 is transparent.

    Returns:
        (H, W, 3) uint8, rounded.
    """
    laid = np.empty(rgb.shape, np.uint8)
    for block in blocks(*alpha.shape):
        laid[block] = _mixed(_upper_eight(rgb[block]), _upper_eight(alpha[block][..., None]))
    return laid


def _upper_eight(values: NDArray[Any]) -> NDArray[np.uint16]:
    return np.asarray(values >> 8 if values.dtype == np.uint16 else values, np.uint16)


def _mixed(color: NDArray[np.uint16], cover: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(h, w, 3) and (h, w, 1) of 0 to 255, rounded."""
    mixed = color * cover + 255 * (255 - cover)  # at most 255 * 255: fits
    return (mixed + 127) // 255
