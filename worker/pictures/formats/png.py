"""PNG, by OpenCV; which chunks there are is found by walking from one to the next."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.pictures.formats import opencv, refused
from worker.pictures.formats.exif import upright
from worker.pictures.formats.transparency import over_white

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
#: A file of 64 MiB in chunks of 1 KiB has 65536.
MAX_CHUNKS: Final = 2**18
_ANIMATION: Final = frozenset({b"acTL", b"fcTL", b"fdAT"})
_IHDR_END: Final = 33
_GREY, _WITH_ALPHA = 0, frozenset({4, 6})
_DEEP: Final = 16


@dataclass
class _Header:
    """What the chunks say, as far as it decides how the picture is read."""

    #: Bits of a sample, and the color type (PNG 1.2, section 4.1.1).
    depth: int
    color: int
    #: tRNS where it is in its place, before the pixels; eXIf anywhere.
    transparent: bytes = b""
    exif: bytes = b""
    #: Where the last chunk of pixels begins; whether it is animated; whether the file ends as it should.
    last: int | None = None
    animated: bool = False
    ended: bool = False


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode to upright (H, W, 3) uint8 RGB, transparent parts over white; of an animation the still picture.

    Raises:
        ImageError: It is broken, truncated or too large.
    """
    header = _walk(data)
    if header.last is None:
        raise refused.broken("PNG")
    if header.animated or not header.ended:
        data = _still(data, header.last)
    if header.color in _WITH_ALPHA or header.transparent:
        picture = opencv.as_it_is(data, "PNG")
        if picture.ndim == 2:  # noqa: PLR2004 - OpenCV leaves the transparency of gray to us
            picture = _grey_with_alpha(picture, header)
        if picture.shape[2:] == (4,):
            return upright(over_white(picture[..., :3], picture[..., 3]), header.exif)
    return upright(opencv.color(data, "PNG"), header.exif)


def _walk(data: bytes) -> _Header:
    if not data.startswith(b"IHDR", 12) or len(data) < _IHDR_END:
        raise refused.broken("PNG")
    header = _Header(depth=data[24], color=data[25])
    for at, length, kind in _chunks(data):
        if kind == b"IDAT":
            header.last = at
        elif kind == b"tRNS" and header.last is None:
            header.transparent = data[at + 8 : at + 8 + length]
        elif kind == b"eXIf":
            header.exif = data[at + 8 : at + 8 + length]
        elif kind in _ANIMATION:
            header.animated = True
        elif kind == b"IEND":
            header.ended = at + 12 <= len(data)
    return header


def _chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Where each chunk begins, how long its content is as it says itself, and its kind; up to the end or the cut."""
    at = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield at, length, kind
        if kind == b"IEND":
            return
        at += 12 + length
    raise refused.broken("PNG", f"it has more than {MAX_CHUNKS} chunks")


def _still(data: bytes, last: int) -> bytes:
    """The same picture without animation, and with the end that it lacks; where pixels are cut, what there is counts.

    OpenCV's reader of animations crashes on some broken ones.
    """
    pieces = [SIGNATURE]
    for at, length, kind in _chunks(data):
        whole = data[at : at + 12 + length]
        if at == last and len(whole) < 12 + length:
            whole = _chunk(data[at + 4 : at + 8 + length])
        if kind not in _ANIMATION:
            pieces.append(whole)
        if at == last:
            break
    return b"".join([*pieces, _chunk(b"IEND")])


def _chunk(content: bytes) -> bytes:
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def _grey_with_alpha(gray: NDArray[np.generic], header: _Header) -> NDArray[np.generic]:
    """(H, W) gray of which one value is transparent, to (H, W, 4)."""
    if header.color != _GREY or len(header.transparent) < 2:  # noqa: PLR2004 - one number of 16 bits
        return gray
    key = int.from_bytes(header.transparent[:2]) & (2**header.depth - 1)
    if header.depth < 8:  # noqa: PLR2004 - the decoder spreads 1, 2 and 4 bits over 8
        key *= 255 // (2**header.depth - 1)
    most = 2**16 - 1 if header.depth == _DEEP else 255
    alpha = np.where(gray == key, 0, most).astype(gray.dtype)
    return np.dstack([gray, gray, gray, alpha])
