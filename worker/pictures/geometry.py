"""Bring a picture to the network's size by squash, crop or pad, and bring results back to the original's geometry.

Pixels are areas: pixel i covers [i, i + 1) and its center is i + 0.5 (half-pixel centers). OpenCV resizes bilinearly
without antialiasing; Pillow resizes with it, where that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.pictures.min_max import Floats

Picture = NDArray[np.uint8]

#: How a picture is brought to the network's size.
FITS: Final = ("squash", "crop", "pad")
#: How a picture is resized: by OpenCV without antialiasing, or by one of Pillow's filters, all of which antialias.
BILINEAR: Final = "bilinear"
FILTERS: Final[dict[str, Image.Resampling | None]] = {
    BILINEAR: None,
    "bilinear-antialias": Image.Resampling.BILINEAR,
    "bicubic-antialias": Image.Resampling.BICUBIC,
}
#: Pillow resizes a whole picture to at most so many pixels before a crop; of a larger one only what the crop shows.
_WHOLE_PIXELS: Final = 2**24
#: The share of a resized side that a center crop keeps; 224 px come from 256, 299 from 342.
CROP_SHARE: Final = 0.875
#: RGB of a padded picture's border: ImageNet's mean, which the network reads as about 0.
BORDER: Final = (124, 116, 104)


@dataclass(frozen=True)
class Frame:
    """Where the whole original lies in the network's picture; lengths in pixels.

    It sticks out where it is cropped (`top`, `left` below 0), and leaves a border where it is padded.
    """

    #: (H0, W0), height and width of the original.
    original: tuple[int, int]
    #: (H, W), height and width of the network's picture.
    size: tuple[int, int]
    #: First row and column of the resized original, counted in the network's picture.
    top: int
    left: int
    #: Height and width of the resized original.
    height: int
    width: int

    def to_original(self, values: Floats) -> NDArray[np.float32]:
        """Bring a map or a gradient back to the original's geometry.

        Args:
            values: (H, W) or (H, W, 3), in the network's geometry; any range, also negative.

        Returns:
            (H0, W0) or (H0, W0, 3) float32, resized bilinearly with half-pixel centers. Values are neither normalized
            nor divided by the change of area. 0 in pixels of which a crop saw no part; the border of a pad is cut away
            first, so it does not bleed in.

        Raises:
            ValueError: the values are not of the network's size.
        """
        if values.shape[:2] != self.size:
            raise ValueError(f"values of {values.shape[:2]} do not belong to a picture of {self.size}")
        rows, columns = self._seen()
        inner = np.ascontiguousarray(values[rows, columns], np.float32)  # what is neither border nor cropped away
        height, width = self.original
        if inner.shape[:2] == (self.height, self.width):
            return np.asarray(cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        whole = np.zeros((height, width, *values.shape[2:]), np.float32)  # (H0, W0[, 3])
        y = _covered(rows.start - self.top, rows.stop - self.top, self.height, height)
        x = _covered(columns.start - self.left, columns.stop - self.left, self.width, width)
        ys = _centers(y, height, self.height) + (self.top - rows.start)
        xs = _centers(x, width, self.width) + (self.left - columns.start)
        whole[y.start : y.stop, x.start : x.stop] = _along(_along(inner, ys, axis=0), xs, axis=1)
        return whole

    def mask_to_original(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bring an (h, w) mask of the network's picture, of any resolution, back as (H0, W0); False where unseen."""
        height, width = self.size
        whole = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return self.to_original(np.asarray(whole, np.float32)) >= 0.5  # noqa: PLR2004 - between outside and inside

    def box_to_original(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """Bring x0, y0, x1, y1 in px of the network's picture back to px of the original, cut at its borders."""
        (height, width), x, y = self.original, box[::2], box[1::2]
        x0, x1 = (min(max((at - self.left) * width / self.width, 0.0), width) for at in x)
        y0, y1 = (min(max((at - self.top) * height / self.height, 0.0), height) for at in y)
        return x0, y0, x1, y1

    def _seen(self) -> tuple[slice, slice]:
        """Rows and columns of the network's picture that show the original."""
        height, width = self.size
        rows = slice(max(self.top, 0), min(self.top + self.height, height))
        return rows, slice(max(self.left, 0), min(self.left + self.width, width))


def fit(
    rgb: Picture,
    size: tuple[int, int],
    how: str,
    resize: tuple[int, int] | int | None = None,
    border: tuple[int, int, int] = BORDER,
    resize_filter: str = BILINEAR,
) -> tuple[Picture, Frame]:
    """Bring a picture to the network's size, on bytes.

    Args:
        rgb: (H0, W0, 3) uint8 RGB of any size.
        size: (H, W), height and width that the network reads, in pixels.
        how: one of `FITS`. `squash` resizes both sides, keeping no aspect ratio. `crop` resizes to `resize`, then cuts
            (H, W) out of the center, with torchvision's rounding. `pad` makes all of the picture fit, keeping its
            aspect ratio (a side is at least 1 px), in the center of a border.
        resize: of `crop` only, as torchvision's `Resize` reads it: the shorter side in pixels, or (height, width);
            None is the least size that keeps the aspect ratio and covers (H, W) / `CROP_SHARE`, rounded.
        border: RGB bytes of what the picture does not cover: `pad`, and a `resize` below (H, W).
        resize_filter: one of `FILTERS`.

    Returns:
        The (H, W, 3) uint8 RGB picture, and the frame that leads back.

    Raises:
        ValueError: the fit or the filter is not known.
    """
    if resize_filter not in FILTERS:
        raise ValueError(f"unknown filter {resize_filter!r}; known are {', '.join(FILTERS)}")
    if how not in FITS:
        raise ValueError(f"unknown fit {how!r}; known are {', '.join(FITS)}")
    original = (rgb.shape[0], rgb.shape[1])
    inner = size
    if how == "pad":
        inner = _inside(original, size)
    elif how == "crop":
        inner = _resized(original, size, resize)
    top, left = _offset(size[0], inner[0]), _offset(size[1], inner[1])
    frame = Frame(original, size, top, left, *inner)
    rows, columns = frame._seen()
    if (antialias := FILTERS[resize_filter]) is not None:
        shown = _antialiased(rgb, frame, antialias)
    elif inner == (rows.stop - rows.start, columns.stop - columns.start):
        shown = np.asarray(cv2.resize(rgb, (inner[1], inner[0]), interpolation=cv2.INTER_LINEAR), np.uint8)
    else:
        shown = _cut(rgb, frame)
    if shown.shape[:2] == size:
        return shown, frame
    picture = np.empty((*size, 3), np.uint8)
    picture[:] = border
    picture[rows, columns] = shown
    return picture, frame


def _inside(original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the original, as large as fits into `size`."""
    scale = min(size[0] / original[0], size[1] / original[1])
    height, width = (min(max(round(side * scale), 1), limit) for side, limit in zip(original, size, strict=True))
    return height, width


def _resized(original: tuple[int, int], size: tuple[int, int], resize: tuple[int, int] | int | None) -> tuple[int, int]:
    """Return height and width before the crop; the longer side is truncated, as torchvision does."""
    if isinstance(resize, tuple):
        return resize
    if resize is None:
        need_height, need_width = (round(side / CROP_SHARE) for side in size)
    else:
        need_height = need_width = resize
    height, width = original
    if need_height * width >= need_width * height:
        return need_height, need_height * width // height
    return need_width * height // width, need_width


def _offset(outer: int, inner: int) -> int:
    """Where the resized side begins; torchvision's CenterCrop rounds halves to even when cutting, down when padding."""
    return (outer - inner) // 2 if outer >= inner else -round((inner - outer) / 2)


def _cut(rgb: Picture, frame: Frame) -> Picture:
    """Resize only what the crop shows: a whole 1 x 5000 picture, resized to 256 rows, would take a gigabyte."""
    rows, columns = frame._seen()
    height, width = frame.original
    ys = _centers(range(rows.start - frame.top, rows.stop - frame.top), frame.height, height)
    xs = _centers(range(columns.start - frame.left, columns.stop - frame.left), frame.width, width)
    first, last = max(int(np.floor(xs[0])), 0), int(np.ceil(xs[-1])) + 1
    mixed = _along(_along(rgb[:, first:last], ys, axis=0), xs - first, axis=1)  # (h, w, 3) float32, of [0, 255]
    return np.rint(mixed).astype(np.uint8)


def _antialiased(rgb: Picture, frame: Frame, how: Image.Resampling) -> Picture:
    """Resize with Pillow, as torchvision does with a `PIL.Image`, and cut out what the crop shows."""
    rows, columns = (
        slice(s.start - at, s.stop - at) for s, at in zip(frame._seen(), (frame.top, frame.left), strict=True)
    )
    image, (height, width) = Image.fromarray(rgb), frame.original
    if frame.height * frame.width <= _WHOLE_PIXELS:
        return np.array(image.resize((frame.width, frame.height), how))[rows, columns]
    # The filter looks beyond the box: the pixels are those of the whole, to a rounding.
    y, x = height / frame.height, width / frame.width
    box = (columns.start * x, rows.start * y, min(columns.stop * x, width), min(rows.stop * y, height))
    return np.array(image.resize((columns.stop - columns.start, rows.stop - rows.start), how, box=box))


def _covered(start: int, stop: int, inner: int, original: int) -> range:
    """Return the pixels of the original's side with a part in [start, stop) of the resized side."""
    return range(start * original // inner, -(-stop * original // inner))


def _centers(pixels: range, of: int, to: int) -> NDArray[np.float64]:
    """Return where the centers of pixels of a side of `of` pixels lie: fractional indices on a side of `to` pixels."""
    return (np.asarray(pixels, np.float64) + 0.5) * (to / of) - 0.5


def _along(values: NDArray[Any], at: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Interpolate linearly at fractional indices of one axis; beyond the ends the last value goes on."""
    last = values.shape[axis] - 1
    at = np.clip(at, 0, last)
    low = at.astype(np.intp)
    weight = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    near = np.take(values, low, axis).astype(np.float32)
    far: NDArray[np.float32] = np.take(values, np.minimum(low + 1, last), axis).astype(np.float32)
    far -= near
    far *= weight
    far += near
    return far
