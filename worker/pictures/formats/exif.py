"""How a camera was held: the orientation in an EXIF block, and the picture turned upright."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.pictures.formats import ifd
from worker.pictures.formats.opencv import cv2

_ORIENTATION: Final = 0x112

#: EXIF 2.3, tag 0x112: what makes each orientation upright. 1 is upright, all else is not defined.
_TURNS: Final[dict[int, Callable[[NDArray[np.uint8]], object]]] = {
    2: lambda picture: cv2.flip(picture, 1),
    3: lambda picture: cv2.rotate(picture, cv2.ROTATE_180),
    4: lambda picture: cv2.flip(picture, 0),
    5: cv2.transpose,
    6: lambda picture: cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE),
    7: lambda picture: cv2.rotate(cv2.transpose(picture), cv2.ROTATE_180),
    8: lambda picture: cv2.rotate(picture, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def orientation(block: bytes) -> int:
    """The orientation in an EXIF block, 1 to 8, whatever type of whole number it has; 1 where there is none."""
    try:
        said = ifd.read(block.removeprefix(b"Exif\0\0"), {_ORIENTATION}).first(_ORIENTATION, 1)
    except ValueError:
        return 1  # EXIF is broken in many whole pictures
    return said if said in _TURNS else 1


def upright(picture: NDArray[np.uint8], block: bytes) -> NDArray[np.uint8]:
    """Turn a (H, W, 3) picture as its EXIF block says; an empty block says nothing."""
    turn = _TURNS.get(orientation(block)) if block else None
    return picture if turn is None else np.asarray(turn(picture), np.uint8)
