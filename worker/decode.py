"""Bytes become a picture, and a picture becomes what the network reads.

What is decided here: EXIF rotation is applied, except where there is alpha, which OpenCV reads unrotated only; grey,
palette and CMYK become RGB; of 16 bits the upper 8 count; alpha of PNG and WebP is laid over white; of an animation the
first frame counts. A truncated file is an error, never a picture that is half grey.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

# OpenCV reads this once, when it is loaded; its own limit of 2**30 pixels lets a 400 kB file take gigabytes.
#: `GRADCAM_WORKER_MAX_PIXELS`, which `worker/app.py` puts there; else 64 Mi. A pixel takes 3 bytes, so these 192 MB.
MAX_PIXELS: Final = int(os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64 * 2**20)))

import cv2  # noqa: E402 - after the limit above
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from producer.jobs.errors import ImageError  # noqa: E402

Picture = NDArray[np.uint8]

#: What files of each format begin with; other decoders of OpenCV are not handed bytes of strangers.
_MAGIC: Final = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
#: What transparent pixels are laid over, as a browser does.
_WHITE: Final = 255

# Images are decoded beside each other in threads already; OpenCV's own threads would only get in their way.
cv2.setNumThreads(1)
# Each bad picture is told as its own error; OpenCV's lines about it on stderr say no more.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes) -> Picture:
    """Decode a JPEG, PNG, WebP, GIF, BMP or TIFF file to (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the bytes are none of these, broken, truncated, or of more than `MAX_PIXELS` pixels.
    """
    format = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    if format is None:
        raise ImageError("not a picture (JPEG, PNG, WebP, GIF, BMP or TIFF)" if data else "the file is empty")
    buffer = np.frombuffer(data, np.uint8)
    try:
        if _may_have_alpha(data, format):
            decoded = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
            if decoded is not None and decoded.shape[2:] == (4,):
                return _over_white(decoded)  # (H, W, 4) BGRA
        decoded = cv2.imdecode(buffer, cv2.IMREAD_COLOR)  # (H, W, 3) uint8 BGR
    except cv2.error as error:
        raise ImageError(_reason(error, format)) from None
    if decoded is None:
        raise ImageError(f"the {format} picture is broken or truncated")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def normalise(picture: Picture, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Make of a picture of the network's size what the network reads: (picture / 255 - mean) / std.

    Args:
        picture: (H, W, 3) uint8 RGB.
        mean: three numbers, of RGB in [0, 1].
        std: three numbers, of RGB in [0, 1].

    Returns:
        (3, H, W) float32.
    """
    # Plane by plane: three times as fast as along the last axis of three.
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32)  # (3, H, W)
    # Division, not a product with 1/255: so that 255 times the picture gives the bytes back exactly.
    planes /= 255
    planes -= np.asarray(mean, np.float32)[:, None, None]
    planes /= np.asarray(std, np.float32)[:, None, None]
    return planes


def prepare(
    rgb: Picture, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make of a picture the network's input and the base of the overlay.

    Args:
        rgb: (H', W', 3) uint8 RGB of any size.
        size: (H, W), height and width that the network reads.
        mean: three numbers, of RGB in [0, 1].
        std: three numbers, of RGB in [0, 1].

    Returns:
        The picture, (H, W, 3) float32 in [0, 1], and the input, (3, H, W) float32, (picture - mean) / std.

    Resized bilinearly on bytes, without antialiasing, keeping neither aspect ratio nor crop: as the original does.
    """
    height, width = size
    resized = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)  # (H, W, 3)
    fitted = np.asarray(resized, np.uint8)
    return np.divide(fitted, 255, dtype=np.float32), normalise(fitted, mean, std)


def _may_have_alpha(data: bytes, format: str) -> bool:
    """Whether a second look for an alpha channel is worth its time; wrong only in saying yes too often."""
    if format == "PNG":
        with_alpha = data[25:26] in (b"\x04", b"\x06")  # the colour type: grey or RGB with alpha
        return with_alpha or b"tRNS" in data[: max(data.find(b"IDAT"), 0)]
    return format == "WebP" and data[12:16] in (b"VP8X", b"VP8L")


def _over_white(bgra: NDArray[Any]) -> Picture:
    """(H, W, 4) of 8 or 16 bits, straight alpha, to (H, W, 3) RGB, rounded."""
    if bgra.dtype == np.uint16:
        bgra = (bgra >> 8).astype(np.uint8)
    rgba = cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA).astype(np.uint16)
    alpha = rgba[..., 3:]  # (H, W, 1)
    mixed = rgba[..., :3] * alpha + _WHITE * (255 - alpha)  # at most 255 * 255: fits
    return ((mixed + 127) // 255).astype(np.uint8)


def _reason(error: cv2.error, format: str) -> str:
    if "CV_IO_MAX_IMAGE" in str(error):
        return f"the {format} picture has more than {MAX_PIXELS} pixels"
    return f"the {format} picture cannot be decoded"
