"""Pictures for networks that read grey, and grey gradients for pictures of RGB."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

_Kind = TypeVar("_Kind", bound=np.generic)
_GREY = 1


def as_read(picture: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Return a picture as a network sees it: for one channel its luminance, in all three planes.

    Args:
        picture: (H, W, 3) uint8 RGB.
        channels: How many the network reads: 3, or 1 for grey.

    Returns:
        (H, W, 3) uint8. Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded as by OpenCV's RGB2GRAY.
    """
    if channels != _GREY:
        return picture
    return np.asarray(cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)


def as_drawn(values: NDArray[_Kind]) -> NDArray[_Kind]:
    """Return (H, W, C) values of one channel as three equal ones, to be drawn as grey; others as they are."""
    return np.repeat(values, 3, axis=2) if values.shape[2] == _GREY else values
