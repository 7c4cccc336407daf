"""PNG, by OpenCV; which chunks there are is found by walking from one to the next.

Where there are more than programs write, OpenCV gets only those that hold the picture: libpng unpacks texts and
profiles that nobody looks at, a megabyte for each kilobyte.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from worker.pictures.formats import opencv, refused
from worker.pictures.formats.exif import upright
from worker.pictures.formats.transparency import over_white

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
#: A file of 64 MiB in chunks of 1 KiB has 65536.
MAX_CHUNKS: Final = 2**18
#: Of those that nobody looks at so many may stay, and so many packed bytes in them: a copy without them costs time.
_MANY, _MANY_BYTES = 64, 2**12
_PACKED: Final = frozenset({b"iCCP", b"iTXt", b"zTXt"})
#: OpenCV's reader of animations crashes on some broken ones.
_ANIMATION: Final = frozenset({b"acTL", b"fcTL", b"fdAT"})
_IHDR_END: Final = 33
_GREY, _RGB, _PALETTE, _WITH_ALPHA = 0, 2, 3, frozenset({4, 6})
_DEEP: Final = 16
#: Color type → numbers a pixel, and the bits that each may have (PNG 1.2, section 4.1.1).
_KINDS: Final = {
    _GREY: (1, {1, 2, 4, 8, 16}), _RGB: (3, {8, 16}), _PALETTE: (1, {1, 2, 4, 8}), 4: (2, {8, 16}), 6: (4, {8, 16}),
}  # fmt: skip
#: zlib makes at most so many bytes of one.
_MOST_UNPACKED: Final = 1032
#: Colors a palette has; bytes of each, in PLTE and in tRNS of other pictures.
_COLORS, _COLOR_BYTES, _VALUE_BYTES = 256, 3, 2


@dataclass
class _Header:
    """What the chunks say, as far as it decides how the picture is read."""

    #: Bits of a number, and the color type.
    depth: int
    color: int
    #: What OpenCV needs to know beside the pixels; tRNS where it is in its place, before the pixels; eXIf anywhere.
    palette: bytes = b""
    transparent: bytes = b""
    exif: bytes = b""
    #: Where the chunks of pixels begin and end.
    pixels: list[tuple[int, int]] = field(default_factory=list)
    #: Whether there are chunks that OpenCV must not get, or the file does not end as it should.
    more: bool = False


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode to upright (H, W, 3) uint8 RGB, transparent parts over white; of an animation the still picture.

    Raises:
        ImageError: It is broken, truncated or too large.
    """
    header = _walk(data)
    _check(data, header)
    if header.more:
        data = _still(data, header)
    if header.color not in _WITH_ALPHA and not header.transparent:
        return upright(opencv.color(data, "PNG"), header.exif)
    return upright(_laid(opencv.as_it_is(data, "PNG"), header), header.exif)


def _walk(data: bytes) -> _Header:
    if not data.startswith(b"\0\0\0\x0dIHDR", len(SIGNATURE)) or len(data) < _IHDR_END:
        raise refused.broken("PNG")
    header, ended = _Header(depth=data[24], color=data[25]), False
    others = packed = 0
    for at, length, kind in _chunks(data):
        end = at + 12 + length
        if kind == b"IDAT":
            header.pixels.append((at, end))
        elif kind == b"tRNS" and not header.pixels and not header.transparent:
            header.transparent = data[at + 8 : end - 4]
        elif kind == b"PLTE" and not header.pixels and not header.palette:
            header.palette = data[at + 8 : end - 4]
        elif kind == b"IEND":
            ended = end <= len(data)
        else:
            others += 1
            packed += length if kind in _PACKED else 0
            header.more |= kind in _ANIMATION
            if kind == b"eXIf":
                header.exif = data[at + 8 : end - 4]
    header.more |= not ended or others > _MANY or packed > _MANY_BYTES
    return header


def _check(data: bytes, header: _Header) -> None:
    """Hold what the chunks say against each other, before anything is unpacked.

    Raises:
        ImageError: They cannot all be true, or the picture is too large.
    """
    numbers, depths = _KINDS.get(header.color, (0, set()))
    if header.depth not in depths or not header.pixels:
        raise refused.broken("PNG")
    width, height = struct.unpack_from(">II", data, 16)
    opaque = header.color not in _WITH_ALPHA and not header.transparent
    # OpenCV holds its picture twice, and then we that one and ours.
    decoded = 3 if opaque else (1 if header.color == _GREY else 4) * (2 if header.depth == _DEEP else 1)
    opencv.check_size("PNG", height, width, max(2 * decoded, decoded + 4, 6))
    packed = sum(min(end, len(data)) - at - 12 for at, end in header.pixels)
    if packed * _MOST_UNPACKED < height * (width * numbers * header.depth // 8):
        raise refused.broken("PNG", "there are fewer bytes than it has pixels")
    colors, rest = divmod(len(header.palette), _COLOR_BYTES)
    if header.color == _PALETTE and (rest or not 0 < colors <= _COLORS or len(header.transparent) > colors):
        raise refused.broken("PNG", "its palette is not whole")
    if header.color in _WITH_ALPHA:
        header.more |= bool(header.palette or header.transparent)
        header.transparent = b""
    elif header.color != _PALETTE:
        header.more |= bool(header.palette)
        if header.transparent and len(header.transparent) != numbers * _VALUE_BYTES:
            raise refused.broken("PNG", "its transparent value is not whole")


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


def _still(data: bytes, header: _Header) -> bytes:
    """The same picture with nothing else, and with the end that it lacks; cut pixels stay cut."""
    pieces = [data[:_IHDR_END]]
    if header.color == _PALETTE:
        pieces.append(_chunk(b"PLTE" + header.palette))
    if header.transparent:
        pieces.append(_chunk(b"tRNS" + header.transparent))
    pieces += [data[at:end] for at, end in header.pixels]
    at, end = header.pixels[-1]
    if end > len(data):
        pieces[-1] = _chunk(data[at + 4 : end - 4])
    return b"".join([*pieces, _chunk(b"IEND")])


def _chunk(content: bytes) -> bytes:
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def _laid(picture: NDArray[Any], header: _Header) -> NDArray[np.uint8]:
    """OpenCV's picture over white."""
    if picture.shape[2:] == (4,):
        return over_white(picture[..., :3], picture[..., 3])
    if picture.ndim == 2:  # noqa: PLR2004 - OpenCV leaves the transparency of gray to us
        return _grey_over_white(picture, header)
    return np.asarray(picture >> 8 if picture.dtype == np.uint16 else picture, np.uint8)


def _grey_over_white(gray: NDArray[Any], header: _Header) -> NDArray[np.uint8]:
    """(H, W) gray of which one value is transparent, to (H, W, 3)."""
    key = int.from_bytes(header.transparent) & (2**header.depth - 1)
    if header.depth < 8:  # noqa: PLR2004 - the decoder spreads 1, 2 and 4 bits over 8
        key *= 255 // (2**header.depth - 1)
    shown = (gray >> 8 if gray.dtype == np.uint16 else gray).astype(np.uint8)
    shown[gray == key] = 255
    return np.repeat(shown[..., None], 3, axis=2)
