"""Turn a map and a guided gradient into the four pictures: `heatmap`, `cam`, `gb` and `cam_gb`; draw masks and boxes.

All is float32, as the network gives it, and exact where truncation could show. Values are divided first and then
multiplied by 255: the quotient q/255 gives q for every level q, and a maximum is always 255.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.pictures.min_max import Floats, min_max_scaled

Picture = NDArray[np.uint8]

#: The four pictures, in the order in which they are named everywhere.
OUTPUTS: Final = ("heatmap", "cam", "gb", "cam_gb")
#: The color of a mask's pixels in RGB, and its share there.
MASK_COLOR: Final = (255, 0, 0)
MASK_OPACITY: Final = 0.5
#: The color of a box in RGB; its line takes this share of the picture's shorter side, at least 1 px.
BOX_COLOR: Final = (255, 255, 255)
BOX_LINE_SHARE: Final = 1 / 150
#: File format → options; JPEG without chroma subsampling, which makes red and blue edges bleed.
JPEG_QUALITY: Final = 95
_ENCODINGS: Final[dict[str, list[int]]] = {
    "jpg": [
        cv2.IMWRITE_JPEG_QUALITY,
        JPEG_QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ],
    "png": [],
}
#: (256, 1, 3) uint8: OpenCV's JET, from dark blue (0, 0, 128) over green to dark red (128, 0, 0), in RGB.
JET: Final = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_JET)[..., ::-1].copy()


def render(picture: Floats, map: Floats, guided: Floats, outputs: Collection[str] = OUTPUTS) -> dict[str, Picture]:
    """Draw the pictures of one image that `outputs` names, each (H, W, 3) uint8 RGB.

    Args:
        picture: (H, W, 3) RGB in [0, 1], as resized for the network, before mean and standard deviation.
        map: (h, w), >= 0, Grad-CAM after ReLU and not normalized; resized bilinearly with half-pixel centers.
        guided: (H, W, 3), signed guided gradient.
        outputs: which of `OUTPUTS` to draw.

    Every value is truncated, not rounded. A constant picture becomes zeros in each stretch from minimum to maximum.

    Raises:
        ModelError: map or guided gradient is not finite.
        ValueError: an output is not known.
    """
    heat, _flat = heat_of([map], (picture.shape[0], picture.shape[1]))
    return draw(np.float32(255) * np.asarray(picture, np.float32), heat, guided, outputs)


def heat_of(maps: Sequence[Floats], size: tuple[int, int]) -> tuple[NDArray[np.float32], bool]:
    """Bring the map of a layer to the picture's size and [0, 1]; of several, their average, stretched again.

    Args:
        maps: one (h, w) a layer, each of its own size; each is brought to [0, 1] by its own range, then resized.
        size: (H, W) of the answer; resized bilinearly with half-pixel centers.

    Returns:
        (H, W) float32 in [0, 1], and whether every map was constant; a constant one counts as 0. An average is
        stretched to its own range, as pytorch-grad-cam does: its maximum is 1 only where the layers agree.

    Raises:
        ModelError: a map is not finite.
    """
    height, width = size
    scaled = [min_max_scaled(values) for values in maps]  # each (h, w)
    resized = [
        np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        for small, _ in scaled
    ]
    flat = all(flat for _, flat in scaled)
    if len(resized) == 1:
        return resized[0], flat
    heat, _ = min_max_scaled(np.sum(resized, axis=0) / np.float32(len(resized)))
    return heat, flat


def draw(
    picture: Picture | NDArray[np.float32],
    heat: NDArray[np.float32],
    guided: Floats,
    outputs: Collection[str] = OUTPUTS,
) -> dict[str, Picture]:
    """Draw pictures as `render` does, from a map that is in [0, 1] and has the picture's size already.

    Args:
        picture: (H, W, 3) RGB in [0, 255].
        heat: (H, W) float32 in [0, 1]; not scaled again.
        guided: (H, W, 3), signed guided gradient.
        outputs: which of `OUTPUTS` to draw.

    Raises:
        ModelError: the guided gradient is not finite.
        ValueError: an output is not known.
    """
    if unknown := set(outputs) - set(OUTPUTS):
        raise ValueError(f"unknown outputs {sorted(unknown)}; known are {', '.join(OUTPUTS)}")
    heatmap = _jet(heat)  # (H, W, 3)
    make: dict[str, Callable[[], Picture]] = {
        "heatmap": lambda: heatmap,
        # 255 times heatmap/255 + picture: the stretch does not see the factor, and bytes stay whole numbers.
        "cam": lambda: _stretched(np.asarray(cv2.add(picture, heatmap, dtype=cv2.CV_32F), np.float32)),
        "gb": lambda: _stretched(guided),
        "cam_gb": lambda: _stretched(guided * cv2.merge((heat, heat, heat))),  # faster than along an axis of three
    }
    with np.errstate(over="ignore", invalid="ignore"):  # 0 times infinity becomes our own error
        return {name: make[name]() for name in OUTPUTS if name in outputs}


def draw_mask(picture: Picture, mask: NDArray[np.bool_]) -> Picture:
    """Draw the pixels of a mask in `MASK_COLOR` over a picture, at `MASK_OPACITY`; the others stay as they are.

    Args:
        picture: (H, W, 3) uint8 RGB.
        mask: (h, w) bool; resized to the picture by the nearest pixel.

    Returns:
        (H, W, 3) uint8 RGB, truncated.
    """
    height, width = picture.shape[:2]
    inside = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT) > 0  # (H, W)
    drawn = picture.copy()
    mixed = (1 - MASK_OPACITY) * picture[inside] + MASK_OPACITY * np.array(MASK_COLOR, np.float32)
    drawn[inside] = mixed.astype(np.uint8)
    return drawn


def draw_box(picture: Picture, box: Sequence[float]) -> Picture:
    """Draw the outline of a box into a copy of a picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        box: x0, y0, x1, y1 in px of it; pixel i covers [i, i + 1).
    """
    height, width = picture.shape[:2]
    line_px = max(1, round(min(height, width) * BOX_LINE_SHARE))
    x0, y0 = (min(max(int(at), 0), side - 1) for at, side in zip(box[:2], (width, height), strict=True))
    x1, y1 = (min(max(int(at), 0), side - 1) for at, side in zip(box[2:], (width, height), strict=True))
    return np.asarray(cv2.rectangle(picture.copy(), (x0, y0), (x1, y1), BOX_COLOR, line_px), np.uint8)


def encode(image_rgb: Picture, format: str = "jpg") -> bytes:
    """Write an (H, W, 3) uint8 RGB picture as `jpg` (quality 95, no chroma subsampling) or `png`.

    Raises:
        ValueError: the format is not known, or it cannot hold the picture.
    """
    if format not in _ENCODINGS:
        raise ValueError(f"unknown picture format {format!r}; known are {', '.join(_ENCODINGS)}")
    bgr = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(f".{format}", bgr, _ENCODINGS[format])
    if not written:
        raise ValueError(f"a picture of {image_rgb.shape} cannot be written as {format}")
    return data.tobytes()


def _jet(heat: NDArray[np.float32]) -> Picture:
    levels = (heat * np.float32(255)).astype(np.uint8)  # (H, W), truncated
    return np.asarray(cv2.applyColorMap(levels, JET), np.uint8)  # (H, W, 3)


def _stretched(values: Floats) -> Picture:
    """Stretch from the minimum to the maximum over the whole (H, W, 3) to 0..255, truncated."""
    scaled, _flat = min_max_scaled(values)
    scaled *= 255
    # C order whatever that of the gradient was: OpenCV would copy the picture to write it.
    stretched: Picture = scaled.astype(np.uint8, order="C")
    return stretched
