"""TIFF and BigTIFF, by Pillow; the first directory, read here before, says whether it can be shown as it is meant.

A TIFF holds any numbers. Which of them are black and white is known of unsigned ones (0, and the largest that fits) and
agreed of floats (0 and 1); the rest is refused, never guessed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.pictures.formats import ifd, opencv, pillow, refused

# Tags of TIFF 6.0, section 8, and of its supplements.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANES = 273, 274, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT, _DNG = 322, 323, 324, 325, 338, 339, 50706
_LISTS: Final = frozenset({_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES})
_TAGS: Final = _LISTS | {
    *(_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _ROWS, _PLANES),
    *(_TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _FORMAT, _DNG),
}
#: Strips or tiles: as many as tiles of 16 x 16 in the largest picture. Pillow makes an object of each.
MAX_PARTS: Final = ifd.MAX_LIST
#: A tile is larger than a small picture; not much.
_TILE_PIXELS: Final = 2**20
#: Parts that are equal may lie in the same place; each is read anew.
_TIMES_READ: Final = 16

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
_ONE_NUMBER, _YCBCR = frozenset({0, 1, 3}), 6  # of the photometrics
_OLD_JPEG, _APART = 6, 2  # a compression; planes behind each other
_UNSIGNED, _SIGNED, _FLOAT, _VOID = 1, 2, 3, 4
_TO_EIGHT: Final = "save it as 8 or 16 bit gray or RGB"


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode the first page to upright (H, W, 3) uint8 RGB, transparent parts over white.

    Raises:
        ImageError: It is broken, truncated, too large or of a kind that is not read.
    """
    try:
        directory = ifd.read(data, _TAGS, _LISTS)
    except ValueError:
        raise refused.broken("TIFF") from None
    _check(data, directory)
    _check_parts(data, directory)
    bits = directory.numbers.get(_BITS, (1,))[0]
    white_is_zero = directory.first(_PHOTOMETRIC, 0) == 0
    unknown = refused.not_read("TIFF", _described(directory), _TO_EIGHT)
    with pillow.load(data, "TIFF", unknown, refused.broken("TIFF")) as image:  # also turns it upright
        return pillow.taken(image, lambda part: _shown(part, bits, white_is_zero=white_is_zero))


def _check(data: bytes, directory: ifd.Directory) -> None:
    """Refuse what would be shown wrong, or would take more time or memory than a picture may.

    Raises:
        ImageError: So it is.
    """
    width, height = directory.first(_WIDTH, 0), directory.first(_HEIGHT, 0)
    if width < 1 or height < 1 or not directory.numbers.keys() & {_STRIPS, _TILES}:
        raise refused.broken("TIFF")
    opencv.check_size("TIFF", height, width, _bytes_a_pixel(directory, height, width))
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


def _bytes_a_pixel(directory: ifd.Directory, height: int, width: int) -> float:
    """What Pillow holds while it reads, or we while we take it over; both were measured."""
    samples, bits = directory.first(_SAMPLES, 1), max(directory.numbers.get(_BITS, (1,)))
    photometric = directory.first(_PHOTOMETRIC, 0)
    simple = photometric in _ONE_NUMBER and samples == 1
    picture = (1 if bits <= 8 else 2 if bits <= 16 else 4) if simple else 4  # noqa: PLR2004
    turned = picture if directory.first(_ORIENTATION, 1) > 1 else 0
    if directory.first(_COMPRESSION, 1) == 1:
        part = 0.0  # read row by row
    else:
        number = 4 if photometric == _YCBCR else samples * bits / 8
        if _TILES in directory.numbers:
            pixels = directory.first(_TILE_WIDTH, 0) * directory.first(_TILE_HEIGHT, 0)
        else:
            pixels = min(directory.first(_ROWS, height), height) * width
        part = number * pixels / (height * width)
    return picture + max(3, turned, part)


def _check_parts(data: bytes, directory: ifd.Directory) -> None:
    """Whether all strips or tiles are there, before any is unpacked: libtiff fills what is missing with gray.

    Raises:
        ImageError: Some are not.
    """
    width, height = directory.first(_WIDTH, 0), directory.first(_HEIGHT, 0)
    if _TILES in directory.numbers:
        columns, rows = directory.first(_TILE_WIDTH, 0), directory.first(_TILE_HEIGHT, 0)
        at, lengths = directory.numbers[_TILES], directory.numbers.get(_TILE_BYTES, ())
        if columns * rows > max(width * height, _TILE_PIXELS):
            raise refused.broken("TIFF", "a tile is larger than the picture")
    else:
        columns, rows = width, min(directory.first(_ROWS, height), height)
        at, lengths = directory.numbers[_STRIPS], directory.numbers.get(_STRIP_BYTES, ())
    if columns < 1 or rows < 1:
        raise refused.broken("TIFF")
    parts = -(-width // columns) * -(-height // rows)
    if directory.first(_PLANES, 1) == _APART:
        parts *= directory.first(_SAMPLES, 1)
    if directory.first(_COMPRESSION, 1) == _OLD_JPEG:
        return  # of which it says in another way where it lies
    if min(len(at), len(lengths)) < parts:
        raise refused.broken("TIFF", f"of {parts} strips or tiles it has {min(len(at), len(lengths))}")
    if any(not length or start + length > len(data) for start, length in zip(at, lengths, strict=False)):
        raise refused.broken("TIFF", "strips or tiles of it are not there")
    if sum(lengths) > _TIMES_READ * len(data):
        raise refused.broken("TIFF", "its strips or tiles are longer than the file")


def _described(directory: ifd.Directory) -> str:
    """Such as: 4 signed numbers of 16 bits a pixel, CMYK."""
    samples, bits = directory.first(_SAMPLES, 1), directory.first(_BITS, 1)
    formats = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float", _VOID: "untyped"}
    format = formats.get(directory.first(_FORMAT, _UNSIGNED), "complex")
    numbers = "number" if samples == 1 else "numbers"
    return f"{samples} {format} {numbers} of {bits} bits a pixel, {_PHOTOMETRICS[directory.first(_PHOTOMETRIC, 0)]}"


def _shown(image: Image.Image, bits: int, *, white_is_zero: bool) -> NDArray[np.uint8]:
    """A part of Pillow's picture as (h, w, 3) uint8 RGB."""
    if image.mode in {"La", "LA", "PA", "RGBA", "RGBa"}:
        return pillow.transparent_over_white(image)
    if image.mode == "F":
        gray = _of_floats(np.asarray(image))
    elif image.mode == "I":
        gray = (np.asarray(image).view(np.uint32) >> 24).astype(np.uint8)
    elif image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> (bits - 8)).astype(np.uint8)  # 12 or 16
    else:
        return pillow.opaque(image)
    # Of the deep kinds Pillow leaves it to us to invert them.
    return np.repeat((255 - gray if white_is_zero else gray)[..., None], 3, axis=2)  # (H, W, 3)


def _of_floats(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    # `not all`, so that NaN counts as outside.
    if not ((values >= 0) & (values <= 1)).all():
        kind = "float numbers outside of 0 to 1, and it does not say which are black and white"
        raise refused.not_read("TIFF", kind, "scale them to 0 to 1, or save them as unsigned 8 or 16 bits")
    return np.rint(values * 255).astype(np.uint8)
