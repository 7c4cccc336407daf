"""Transparent pictures are laid over white, as on a page that a browser shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def over_white(rgb: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.uint8]:
    """Lay a picture with straight alpha over white.

    Args:
        rgb: (H, W, 3), uint8, or uint16 of which the upper 8 bits count.
        alpha: (H, W), of the same type; 0 is transparent.

    Returns:
        (H, W, 3) uint8, rounded.
    """
    colour, cover = (
        (values >> 8 if values.dtype == np.uint16 else values).astype(np.uint16) for values in (rgb, alpha[..., None])
    )
    mixed = colour * cover + 255 * (255 - cover)  # at most 255 * 255: fits
    return ((mixed + 127) // 255).astype(np.uint8)
