"""TIFF and BigTIFF, by Pillow; the first directory, read here before, says whether it can be shown as it is meant.

A TIFF holds any numbers. Which of them are black and white is known of unsigned ones (0, and the largest that fits) and
agreed of floats (0 and 1); the rest is refused, never guessed.
"""

from __future__ import annotations

import io
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.pictures.formats import ifd, opencv, refused
from worker.pictures.formats.transparency import over_white

# Tags of TIFF 6.0, section 8, and of its supplements.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _TILES, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _FORMAT, _DNG = 273, 324, 277, 322, 323, 338, 339, 50706
_TAGS: Final = frozenset(
    {
        _SUBFILE,
        _WIDTH,
        _HEIGHT,
        _BITS,
        _COMPRESSION,
        _PHOTOMETRIC,
        _STRIPS,
        _TILES,
        _SAMPLES,
        _TILE_WIDTH,
        _TILE_HEIGHT,
        _EXTRA,
        _FORMAT,
    }
    | {_STRIPS, _TILES, _DNG}
)
#: Strips or tiles: as many as tiles of 16 x 16 in the largest picture. Pillow makes an object of each.
MAX_PARTS: Final = 2**18

_PHOTOMETRICS: Final = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}
_OTHER_PHOTOMETRICS: Final = {
    4: "a mask of another picture", 8: "CIELab colors", 9: "ICCLab colors", 10: "ITULab colors",
    32803: "a camera's raw picture", 32844: "LogL brightness", 32845: "LogLuv colors", 34892: "a camera's raw picture",
}  # fmt: skip
_COMPRESSIONS: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000})
_OTHER_COMPRESSIONS: Final = {
    33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 50002: "JPEG XL", 52546: "JPEG XL",
    50001: "WebP", 34892: "lossy JPEG of DNG", 34661: "JBIG", 34713: "Nikon's NEF",
}  # fmt: skip
_UNSIGNED, _SIGNED, _FLOAT, _VOID = 1, 2, 3, 4
_TO_EIGHT: Final = "save it as 8 or 16 bit gray or RGB"

# What they warn of is decided here, or ends as this image's error.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode the first page to upright (H, W, 3) uint8 RGB, transparent parts over white.

    Raises:
        ImageError: It is broken, truncated, too large or of a kind that is not read.
    """
    try:
        directory = ifd.read(data, _TAGS)
    except ValueError:
        raise refused.broken("TIFF") from None
    _check(data, directory)
    bits = directory.numbers.get(_BITS, (1,))[0]
    white_is_zero = directory.first(_PHOTOMETRIC, 0) == 0
    try:
        image = Image.open(io.BytesIO(data), formats=["TIFF"])
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise whatever their Python does on bytes of strangers
        raise refused.not_read("TIFF", _described(directory), _TO_EIGHT) from None
    with image:
        try:
            image.load()  # also turns it upright
        except MemoryError:
            raise
        except Exception:  # as above
            raise refused.broken("TIFF") from None
        return _shown(image, bits, white_is_zero=white_is_zero)


def _check(data: bytes, directory: ifd.Directory) -> None:
    """Refuse what would be shown wrong, or would take more time or memory than a picture may.

    Raises:
        ImageError: So it is.
    """
    width, height = directory.first(_WIDTH, 0), directory.first(_HEIGHT, 0)
    if width < 1 or height < 1 or not directory.numbers.keys() & {_STRIPS, _TILES}:
        raise refused.broken("TIFF")
    if max(width * height, directory.first(_TILE_WIDTH, 0) * directory.first(_TILE_HEIGHT, 0)) > opencv.MAX_PIXELS:
        raise refused.too_large("TIFF", opencv.MAX_PIXELS)
    if directory.longest > MAX_PARTS:
        raise refused.not_read("TIFF", f"an entry of {directory.longest} numbers", "save it in larger strips or tiles")
    if _DNG in directory.numbers or data[8:10] == b"CR" or directory.first(_SUBFILE, 0) & 1:
        kind = "a camera's raw picture, or one whose first page is a preview"
        raise refused.not_read("TIFF", kind, "develop it, or save its full page as JPEG, PNG or TIFF")
    if data.startswith(b"MM\0+"):
        raise refused.not_read("TIFF", "a BigTIFF in big-endian order", "save it in little-endian order")
    photometric, compression = directory.first(_PHOTOMETRIC, 0), directory.first(_COMPRESSION, 1)
    if photometric not in _PHOTOMETRICS:
        kind = _OTHER_PHOTOMETRICS.get(photometric, f"colors of kind {photometric}")
        raise refused.not_read("TIFF", kind, _TO_EIGHT)
    if compression not in _COMPRESSIONS:
        kind = f"compressed by {_OTHER_COMPRESSIONS.get(compression, f'method {compression}')}"
        raise refused.not_read("TIFF", kind, "save it with LZW, Deflate or no compression")
    if set(directory.numbers.get(_FORMAT, (_UNSIGNED,))) - {_UNSIGNED, _FLOAT, _VOID}:
        kind = f"{_described(directory)}, and it does not say which numbers are black and white"
        raise refused.not_read("TIFF", kind, "scale them to unsigned 8 or 16 bits")


def _described(directory: ifd.Directory) -> str:
    """Such as: 4 signed numbers of 16 bits a pixel, CMYK."""
    samples, bits = directory.first(_SAMPLES, 1), directory.first(_BITS, 1)
    formats = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float", _VOID: "untyped"}
    format = formats.get(directory.first(_FORMAT, _UNSIGNED), "complex")
    numbers = "number" if samples == 1 else "numbers"
    return f"{samples} {format} {numbers} of {bits} bits a pixel, {_PHOTOMETRICS[directory.first(_PHOTOMETRIC, 0)]}"


def _shown(image: Image.Image, bits: int, *, white_is_zero: bool) -> NDArray[np.uint8]:
    """Pillow's picture as (H, W, 3) uint8 RGB."""
    if image.mode in {"La", "LA", "PA", "RGBA", "RGBa"}:
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = np.asarray(straight.convert("RGBA"))  # (H, W, 4)
        return over_white(rgba[..., :3], rgba[..., 3])
    if image.mode == "F":
        gray = _of_floats(np.asarray(image))
    elif image.mode == "I":
        gray = (np.asarray(image).view(np.uint32) >> 24).astype(np.uint8)
    elif image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> (bits - 8)).astype(np.uint8)  # 12 or 16
    else:
        return np.array(image.convert("RGB"), np.uint8)
    # Of the deep kinds Pillow leaves it to us to invert them.
    return np.repeat((255 - gray if white_is_zero else gray)[..., None], 3, axis=2)  # (H, W, 3)


def _of_floats(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    # `not all`, so that NaN counts as outside.
    if not ((values >= 0) & (values <= 1)).all():
        kind = "float numbers outside of 0 to 1, and it does not say which are black and white"
        raise refused.not_read("TIFF", kind, "scale them to 0 to 1, or save them as unsigned 8 or 16 bits")
    return np.rint(values * 255).astype(np.uint8)
