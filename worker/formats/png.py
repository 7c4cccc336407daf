"""PNG, by OpenCV; which chunks there are is found by walking from one to the next."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.formats import opencv
from worker.formats.exif import upright
from worker.formats.transparency import over_white

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
#: A file of 64 MiB in chunks of 1 KiB has 65536. What stands behind so many is not looked for.
MAX_CHUNKS: Final = 2**18
_GREY, _WITH_ALPHA = 0, frozenset({4, 6})
_DEEP: Final = 16


@dataclass
class _Header:
    """What the chunks say, as far as it decides how the picture is read."""

    #: Bits of a sample, and the colour type (PNG 1.2, section 4.1.1).
    depth: int
    colour: int
    #: tRNS where it is in its place, before the pixels; eXIf anywhere.
    transparent: bytes = b""
    exif: bytes = b""
    #: Where the last chunk of pixels begins, and its length as it says itself; and whether the file ends as it should.
    pixels: tuple[int, int] | None = None
    ended: bool = False


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode to upright (H, W, 3) uint8 RGB, transparent parts over white.

    Raises:
        ImageError: It is broken, truncated or too large.
    """
    header = _walk(data)
    if not header.ended and header.pixels is not None:
        data = _with_end(data, *header.pixels)
    if header.colour in _WITH_ALPHA or header.transparent:
        picture = opencv.as_it_is(data, "PNG")
        if picture.ndim == 2:  # noqa: PLR2004 - OpenCV leaves the transparency of grey to us
            picture = _grey_with_alpha(picture, header)
        if picture.shape[2:] == (4,):
            return upright(over_white(picture[..., :3], picture[..., 3]), header.exif)
    return upright(opencv.colour(data, "PNG"), header.exif)


def _walk(data: bytes) -> _Header:
    at = len(SIGNATURE)
    header = _Header(*data[at + 16 : at + 18]) if data.startswith(b"IHDR", at + 4) and len(data) > at + 17 else None
    if header is None:
        return _Header(0, 0)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return header
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            # Cut behind these letters nothing is lost but the chunk's own checksum.
            header.ended = at + 12 <= len(data)
            return header
        if kind == b"IDAT":
            header.pixels = at, length
        elif kind == b"tRNS" and header.pixels is None:
            header.transparent = data[at + 8 : at + 8 + length]
        elif kind == b"eXIf":
            header.exif = data[at + 8 : at + 8 + length]
        at += 12 + length
    header.ended = True
    return header


def _with_end(data: bytes, at: int, length: int) -> bytes:
    """A file cut behind its pixels, with the end that it lacks; cut within them, what there is decides."""
    chunk = b"IDAT" + data[at + 8 : at + 8 + length]
    return b"".join((data[:at], *map(_chunk, (chunk, b"IEND"))))


def _chunk(content: bytes) -> bytes:
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def _grey_with_alpha(grey: NDArray[np.generic], header: _Header) -> NDArray[np.generic]:
    """(H, W) grey of which one value is transparent, to (H, W, 4)."""
    if header.colour != _GREY or len(header.transparent) < 2:  # noqa: PLR2004 - one number of 16 bits
        return grey
    key = int.from_bytes(header.transparent[:2]) & (2**header.depth - 1)
    if header.depth < 8:  # noqa: PLR2004 - the decoder spreads 1, 2 and 4 bits over 8
        key *= 255 // (2**header.depth - 1)
    most = 2**16 - 1 if header.depth == _DEEP else 255
    alpha = np.where(grey == key, 0, most).astype(grey.dtype)
    return np.dstack([grey, grey, grey, alpha])
