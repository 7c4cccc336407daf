"""OpenCV's decoders, set up for bytes of strangers."""

from __future__ import annotations

import os
from typing import Any, Final

# OpenCV reads this once, when it is loaded; its own limit of 2**30 pixels lets a 400 kB file take gigabytes.
#: `GRADCAM_WORKER_MAX_PIXELS`, which `worker/app.py` puts there; else 64 Mi. A pixel takes 3 bytes, so these 192 MB.
MAX_PIXELS: Final = int(os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64 * 2**20)))

import cv2 as cv2  # noqa: E402, PLC0414 - after the limit above; others take it from here
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from worker.pictures.formats import refused  # noqa: E402
from worker.pictures.formats.transparency import blocks  # noqa: E402

#: What decoding a picture may take, beside its file; who allows more pixels allows more memory.
MAX_BYTES: Final = max(500_000_000, 7 * MAX_PIXELS)
#: Of these, what any picture takes, however small.
_ANY_PICTURE: Final = 10_000_000

# Images are decoded beside each other in threads already; OpenCV's own threads would only get in their way.
cv2.setNumThreads(1)
# Each bad picture is told as its own error; OpenCV's lines about it on stderr say no more.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def check_size(format: str, height: int, width: int, bytes_a_pixel: float) -> None:
    """Count pixels and memory before anything is unpacked.

    Args:
        format: Such as TIFF.
        height: As its header says.
        width: As its header says.
        bytes_a_pixel: What the decoder and we hold at once, measured: docs/pictures.md.

    Raises:
        ImageError: It is of no size, or too large.
    """
    if height < 1 or width < 1:
        raise refused.broken(format, "it has no pixels")
    if height * width > MAX_PIXELS:
        raise refused.too_large(format, MAX_PIXELS)
    if height * width * bytes_a_pixel + _ANY_PICTURE > MAX_BYTES:
        raise refused.too_deep(format, MAX_BYTES)


def color(data: bytes, format: str) -> NDArray[np.uint8]:
    """Decode to (H, W, 3) uint8 RGB without alpha, not turned.

    Raises:
        ImageError: It is broken, truncated or too large.
    """
    return np.asarray(_decode(data, format, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION), np.uint8)


def as_it_is(data: bytes, format: str) -> NDArray[Any]:
    """Decode to (H, W) gray, (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or uint16, not turned.

    Raises:
        ImageError: It is broken, truncated or too large.
    """
    decoded = _decode(data, format, cv2.IMREAD_UNCHANGED)
    swap = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}.get(decoded.shape[2] if decoded.ndim > 2 else 0)  # noqa: PLR2004
    if swap is not None:
        for part in blocks(*decoded.shape[:2]):  # in its place: OpenCV would make two copies of all of it
            decoded[part] = cv2.cvtColor(decoded[part], swap)
    return decoded


def _decode(data: bytes, format: str, flags: int) -> NDArray[Any]:
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise refused.too_large(format, MAX_PIXELS) from None
        raise refused.broken(format) from None
    if decoded is None:
        raise refused.broken(format)
    return np.asarray(decoded)
